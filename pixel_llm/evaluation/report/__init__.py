"""A report of one or more runs as a single HTML file that works offline."""

"""What the exit status of a script says, to people and to what restarts runs.

The numbers above 63 are those of BSD's sysexits.h; `docs/survival.md` tells
which of them a launcher may answer by starting the same command again.
"""

import os

# Ended by an error that the user can mend; the same command fails again.
ERROR = 1
# A checkpoint could not be written: mend the disk first.
NOT_SAVED = os.EX_IOERR
# Asked to stop, and saved: the same command goes on from there.
AGAIN = os.EX_TEMPFAIL
# Stuck, or out of touch with the other processes: the same command goes on from
# the last checkpoint.
STUCK = os.EX_PROTOCOL
# Stopped by hand, with Ctrl-C, and saved: what a shell has for SIGINT.
INTERRUPTED = 130

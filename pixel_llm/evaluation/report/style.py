"""The look of the report: light or dark as the reader's system asks."""

CSS = """
:root {
  color-scheme: light dark;
  --back: #fbfbfa; --card: #ffffff; --text: #1c1e21; --dim: #5a6068;
  --line: #d9dce1; --good: #14713b; --bad: #b3261e; --link: #0b57d0;
  --c0: #0b62c4; --c1: #c2500a; --c2: #17784a; --c3: #a02c84; --c4: #6b5b00;
  --c5: #5546c8;
  --pred: rgb(255 140 0); --true: rgb(0 150 255);
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #15171a; --card: #1e2125; --text: #e8eaed; --dim: #a5acb5;
    --line: #3a3f46; --good: #6fd394; --bad: #ff8a80; --link: #8ab4f8;
    --c0: #6db3ff; --c1: #ffa15c; --c2: #6fd394; --c3: #f28bd6; --c4: #e3cf5b;
    --c5: #b3a8ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1180px; padding: 1.5rem 1rem 4rem;
  background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; }
a { color: var(--link); overflow-wrap: anywhere; }
.dim, .last { color: var(--dim); font-size: .87rem; }
.last { margin: .1rem 0 0; overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; font-size: .9em; }
pre {
  overflow-x: auto; padding: .8rem; font-size: .8rem; line-height: 1.4;
  background: var(--back); border: 1px solid var(--line); border-radius: 8px;
}
summary { cursor: pointer; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); }
th, td {
  text-align: left; padding: .35rem .8rem; border: 1px solid var(--line);
  font-weight: normal; overflow-wrap: anywhere;
}
thead th { font-weight: 600; }
th.group { color: var(--dim); font-size: .87rem; background: var(--back); }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.grid-of-charts {
  display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr));
}
.grid-of-samples {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr));
}
.grid-of-samples.wide {
  grid-template-columns: repeat(auto-fill, minmax(min(520px, 100%), 1fr));
}
.card, .chart {
  margin: 0; padding: .8rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; min-width: 0;
}
.chart figcaption { font-weight: 600; overflow-wrap: anywhere; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--dim); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 2; stroke: currentColor; }
.dot { fill: currentColor; }
.dot.hidden { opacity: 0; }
.dot.hidden:hover { opacity: 1; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.line.c1 { stroke-dasharray: 7 3; } .line.c2 { stroke-dasharray: 2 3; }
.line.c3 { stroke-dasharray: 9 3 2 3; }
.swatch {
  display: inline-block; width: 1.6em; height: .75em; margin-right: .35em;
  border-radius: 3px; vertical-align: baseline; background: currentColor;
}
.swatch.pred { background: var(--pred); }
.swatch.true { background: none; border: 2px dashed var(--true); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: .5rem 0; }
.picture {
  display: block; width: 100%; height: auto; max-height: 75vh;
  border-radius: 6px; background: #808080;
}
.picture rect, .picture polyline { vector-effect: non-scaling-stroke; }
.casing { fill: none; stroke: rgb(0 0 0 / .5); stroke-width: 5; }
.pred-box { fill: none; stroke: var(--pred); stroke-width: 3; }
.true-box {
  fill: none; stroke: var(--true); stroke-width: 3; stroke-dasharray: 9 5;
}
.word { stroke-width: 1.5; stroke-opacity: .9; fill-opacity: .06; }
.worddot { stroke: #000; stroke-opacity: .7; vector-effect: non-scaling-stroke; }
.path {
  fill: none; stroke: #fff; stroke-opacity: .75; stroke-width: 1.5;
  stroke-linejoin: round;
}
.said { font-weight: 600; overflow-wrap: anywhere; margin: .6rem 0 .3rem; }
.badges { display: flex; flex-wrap: wrap; gap: .35rem; margin: .35rem 0; }
.badge {
  border: 1px solid var(--line); border-radius: 999px; padding: 0 .6rem;
  font-size: .85rem; font-variant-numeric: tabular-nums;
}
.badge.good { color: var(--good); border-color: currentColor; }
.badge.bad { color: var(--bad); border-color: currentColor; }
.caption { line-height: 1.9; margin: .5rem 0 0; }
.chip { padding: .1rem .3rem; border-radius: 5px; color: #111; }
.chip.dark { color: #fff; }
.chip.none { color: var(--dim); border-bottom: 1px dashed var(--dim); }
.pair { display: grid; gap: .8rem; }
@media (min-width: 900px) { .pair { grid-template-columns: 1fr 1fr; } }
.pair h4 { margin: 0 0 .3rem; font-size: .9rem; font-weight: 600; }
"""

"""How the page of a report looks: on dark and light screens, on phones, and on paper."""

CSS = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #656d76; --back: #f6f7f9; --card: #fff; --line: #d8dee4;
  --bar: #3b82f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4af; --back: #111417; --card: #1a1e23;
  --line: #343b43; --bar: #3b82f6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 70rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; }
h2 { margin: 0 0 .2rem; font-size: 1.15rem; }
p { margin: .2rem 0 .8rem; max-width: 48rem; }
.soft, figcaption, th, caption { color: var(--soft); }
section { margin: 1rem 0; padding: 1rem 1.1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.4rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.tile { padding: .6rem .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile b { display: block; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.charts svg, .wide svg { display: block; width: 100%; height: auto; }
.one { max-width: 32rem; } .one svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; } .wide svg { min-width: 36rem; }
.side svg { display: block; width: 100%; height: auto; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem;
  align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 500; text-align: left; overflow-wrap: normal; }
td, th { padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
.bar { min-width: 3.6rem; white-space: nowrap; } td.bar { width: 22%; } td.n { width: 1%; }
.n:has(+ .bar) { padding-right: 1.2rem; }
.bar i { display: block; height: .35rem; width: var(--part); border-radius: 2px; background: var(--bar); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: .9rem; }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.35; } figcaption b { color: var(--ink); font-weight: 600; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; background: #8881; }
img.small { image-rendering: pixelated; }
.maps { width: auto; } .maps td, .maps th { border: 0; padding: .2rem .35rem .2rem 0; font-size: .8rem;
  vertical-align: top; }
.maps img { display: block; width: 7.4rem; height: 7.4rem; object-fit: contain; border-radius: 6px; }
.maps th[colspan] { border-bottom: 1px solid var(--line); text-align: center; }
.facts td:first-child { color: var(--soft); white-space: nowrap; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --back: #fff; --card: #fff; --line: #ccc; }
  html { font-size: 11px; } body { max-width: none; padding: 0; font-size: 1rem; }
  .charts, .side { grid-template-columns: 1fr 1fr; } .scroll, .wide { overflow: visible; } .wide svg { min-width: 0; }
  .sheet { grid-template-columns: repeat(6, 1fr); } .maps img { width: 2.1cm; height: 2.1cm; } .one { max-width: 9cm; }
  section, .tile { break-inside: avoid; border-radius: 0; } section.long { break-inside: auto; }
  figure, tr { break-inside: avoid; }
  .bar i, img, svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The look of the report, on a screen and on paper. Colours are those of Okabe and Ito."""

CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --back: #f6f8fa; --blue: #0072b2; --red: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 2rem 4rem; max-width: 76rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.75rem; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p { max-width: 50rem; margin: .5rem 0; }
.soft, caption, figcaption { color: var(--soft); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: .75rem 0 0; }
a { color: var(--blue); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.facts div { background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem; }
.facts dt { color: var(--soft); font-size: .875rem; }
.facts dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts .alert { border-left: 5px solid var(--red); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; font-size: .9rem; }
caption { text-align: left; padding: .25rem 0 .5rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { background: var(--back); border-bottom: 2px solid var(--line); vertical-align: bottom; }
td { font-variant-numeric: tabular-nums; }
tbody th { font-weight: 600; }
.number { white-space: nowrap; }
.structure { min-width: 9rem; }
.flag { display: inline-block; padding: 0 .45rem; border: 1px solid var(--red); border-radius: 4px; color: #9a3f00;
  font-size: .85rem; font-weight: 600; white-space: nowrap; }
.code { font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; font-size: .85em; overflow-wrap: anywhere; }
.bar { display: block; }
.bar .grid { stroke: var(--line); }
.bar .range { stroke: var(--blue); stroke-width: 3; }
.bar .point { fill: var(--blue); }
.bar .truth { fill: #fff; stroke: var(--red); stroke-width: 2; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1.5rem; align-items: start; }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; margin: .25rem 0 1rem; }
.notice { border-left: 5px solid var(--red); background: var(--back); padding: .6rem 1rem; max-width: 50rem; }
@media print {
  @page { size: A4; margin: 14mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav { display: none; }
  h2 { break-after: avoid; margin-top: 1.2rem; }
  h3 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: .2rem .35rem; }
  thead { display: table-header-group; }
  tr, figure, .facts div, .case { break-inside: avoid; }
  .lead { break-after: avoid; }
  p { break-inside: avoid; }
  #slices { break-before: page; }
  .case img { max-height: 52mm; }
  .pair img { max-height: 82mm; }
  .pair { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .facts { grid-template-columns: repeat(5, 1fr); gap: .4rem; }
  .facts dd { font-size: 1.1rem; }
  .bar { width: 100px; }
  .structure { min-width: 28mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

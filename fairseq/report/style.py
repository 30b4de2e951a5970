"""The style sheet of the page: system fonts, two columns of cards, light and dark."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: light-dark(#f4f6f9, #0e1219); --card: light-dark(#ffffff, #161b24);
  --ink: light-dark(#1d2330, #e8ecf3); --muted: light-dark(#667085, #93a0b4);
  --line: light-dark(#e4e8ee, #262d3a); --soft: light-dark(#eef2f8, #1e2531);
  --good: light-dark(#14845f, #4cc79a); --bad: light-dark(#b3442c, #f08a70);
  --bar: light-dark(#2f7ed8, #4b93e6); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 4px; }
h2 { font-size: 13px; font-weight: 600; letter-spacing: 0.06em; text-transform: uppercase;
  color: var(--muted); margin: 44px 0 12px; }
h3 { font-size: 15px; font-weight: 600; margin: 0 0 8px; }
.muted { color: var(--muted); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; overflow-x: auto; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.charts .wide { grid-column: 1 / -1; }
.tools, .legend { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 8px 18px;
  align-items: center; font-size: 14px; }
.legend:empty { display: none; }
.tools label { display: inline-flex; align-items: center; gap: 6px; }
button, select { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 3px 10px; cursor: pointer; }
.legend { gap: 8px; }
.legend button { display: inline-flex; align-items: center; gap: 8px; max-width: 100%;
  overflow-wrap: anywhere; text-align: left; }
.legend button[aria-pressed=false] { opacity: 0.4; }
.legend .absent { text-decoration: line-through; }
figure { margin: 0; position: relative; }
figure.card { padding: 12px 14px; overflow: visible; }
.head { display: flex; justify-content: space-between; align-items: baseline; font-size: 13px; }
.plot { display: block; width: 100%; height: 260px; touch-action: pan-y; cursor: crosshair;
  user-select: none; }
.wide .plot { height: 360px; }
.plot text { fill: var(--muted); font-size: 12px; font-variant-numeric: tabular-nums; }
.plot .grid { stroke: var(--line); }
.plot .cross { stroke: var(--muted); stroke-dasharray: 2 3; }
.plot .zoom { fill: var(--bar); opacity: 0.15; }
.tip { position: absolute; top: 44px; z-index: 2; max-width: 70%; padding: 8px 10px;
  pointer-events: none; font-size: 13px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; box-shadow: 0 4px 16px rgb(0 0 0 / 0.18); }
.tip td, .tip th { border: 0; padding: 1px 0 1px 12px; font-size: 12px; }
.tip td:first-child { white-space: normal; overflow-wrap: anywhere; }
.tip svg { margin-right: 8px; }
.state { border-radius: 999px; padding: 2px 9px; font-size: 13px; background: var(--soft); }
.progress { color: var(--muted); font-size: 12px; line-height: 1.3; margin-top: 3px; }
.state.alive { color: var(--bar); }
.state.finished { color: var(--good); }
.state.stopped { color: var(--bad); }
.samples { display: grid; gap: 16px; }
.said td:last-child, .said th:last-child { text-align: left; white-space: pre-wrap;
  overflow-wrap: anywhere; width: 100%; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; font-size: 13px; color: var(--muted);
  padding: 0 0 8px 14px; white-space: nowrap; }
td { text-align: right; padding: 8px 0 8px 14px; font-size: 14px; border-top: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.best { color: var(--good); font-weight: 600; }
.settings td, .settings th { text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 6em; }
.settings td:first-child { white-space: nowrap; }
.swatch { margin-right: 9px; stroke-width: 3; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--soft); border-radius: 8px; padding: 12px 14px; margin: 6px 0 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { border-top: 1px solid var(--line); padding: 10px 0; }
details:first-child { border-top: 0; padding-top: 0; }
details:last-child { padding-bottom: 0; }
summary { cursor: pointer; font-weight: 600; }
.guesses { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr));
  gap: 16px; }
.mask { background: var(--soft); border-radius: 5px; padding: 1px 7px; color: var(--muted); }
.guess { display: grid; grid-template-columns: 8em 1fr 4em; gap: 10px; align-items: center;
  padding: 3px 0; font-variant-numeric: tabular-nums; }
.guess .track { background: var(--soft); border-radius: 4px; height: 8px; }
.guess .fill { background: var(--bar); border-radius: 4px; height: 8px; min-width: 2px; }
.guess .share { text-align: right; color: var(--muted); }
.accepted { color: var(--good); font-weight: 600; }
.note { border-left: 3px solid #c9a227; padding-left: 14px; }
@media (max-width: 760px) { .charts { grid-template-columns: 1fr; } main { padding: 28px 14px; } }
"""

"""The style sheet of the page: system fonts, two columns of cards, light and dark."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: #f4f6f9; --card: #ffffff; --ink: #1d2330; --muted: #667085; --line: #e4e8ee;
  --soft: #eef2f8; --good: #14845f; --bar: #2f7ed8; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0e1219; --card: #161b24; --ink: #e8ecf3; --muted: #93a0b4; --line: #262d3a;
  --soft: #1e2531; --good: #4cc79a; --bar: #4b93e6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 4px; }
h2 { font-size: 13px; font-weight: 600; letter-spacing: 0.06em; text-transform: uppercase;
  color: var(--muted); margin: 44px 0 12px; }
h3 { font-size: 15px; font-weight: 600; margin: 0 0 8px; }
.muted { color: var(--muted); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; overflow-x: auto; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.charts .wide { grid-column: 1 / -1; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; font-size: 13px; color: var(--muted);
  padding: 0 0 8px 20px; white-space: nowrap; }
td { text-align: right; padding: 8px 0 8px 20px; border-top: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.best { color: var(--good); font-weight: 600; }
.settings td, .settings th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 9px; }
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

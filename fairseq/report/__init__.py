"""One page about one or several runs: figures, curves, settings, and what the model guesses.

``state``, ``runs`` (read run folders) <- ``charts`` (PNGs), ``curves`` (data of ``plot.js``, which
draws in the page), ``samples``, ``listing`` (text) <- ``page`` <- ``watch`` (a page that follows).
"""

from __future__ import annotations

from fairseq.report.page import write_report
from fairseq.report.runs import Run, load_runs, summarize
from fairseq.report.samples import FillMaskExample

__all__ = ["FillMaskExample", "Run", "load_runs", "summarize", "write_report"]

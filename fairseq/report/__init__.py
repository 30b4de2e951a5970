"""One page about one or several runs: figures, curves, settings, and what the model guesses.

``runs`` (reads run folders) <- ``charts`` (draws curves) <- ``page`` (writes the page).
"""

from __future__ import annotations

from fairseq.report.page import FillMaskExample, write_report
from fairseq.report.runs import Run, load_runs, summarize

__all__ = ["FillMaskExample", "Run", "load_runs", "summarize", "write_report"]

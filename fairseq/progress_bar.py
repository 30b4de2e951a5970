"""The old import path of :mod:`fairseq.logging.progress_bar`."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("fairseq.logging.progress_bar")

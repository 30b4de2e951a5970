"""The old import path of :mod:`fairseq.logging.metrics`."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("fairseq.logging.metrics")

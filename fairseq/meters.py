"""The old import path of :mod:`fairseq.logging.meters`."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("fairseq.logging.meters")

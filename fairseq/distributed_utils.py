"""The old import path of :mod:`fairseq.distributed.utils`."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("fairseq.distributed.utils")

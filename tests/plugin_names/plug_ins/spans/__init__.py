"""A language model that remembers the batch before; all files of the folder are imported."""

import importlib
import os

for name in os.listdir(os.path.dirname(__file__)):
    if name.endswith(".py") and not name.startswith("_"):
        importlib.import_module(f"{__name__}.{name[:-3]}")

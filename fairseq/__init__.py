"""fairseq, reborn: language-model pre-training research with the original's commands and files.

Importing the package imports nothing else; names are fetched on first use (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairseq.aliases import MODULES, install
from fairseq.lazy import lazy_names
from fairseq.version import __version__

if TYPE_CHECKING:
    from fairseq.training.api import TrainResult as TrainResult
    from fairseq.training.api import train as train

install()
_PACKAGES = (
    "checkpoint",
    "config",
    "criterions",
    "data",
    "dataclass",
    "decoding",
    "distributed",
    "evaluation",
    "export",
    "files",
    "hub",
    "logging",
    "models",
    "modules",
    "ops",
    "optim",
    "preprocess",
    "report",
    "tasks",
    "training",
    "utils",
)
_OLD = {path.removeprefix("fairseq."): new for path, new in MODULES.items() if path.count(".") == 1}

__getattr__, __dir__, _names = lazy_names(
    __name__,
    {name: f"fairseq.{name}" for name in (*_PACKAGES, *_OLD)}
    | dict.fromkeys(("train", "TrainResult"), "fairseq.training.api"),
)
__all__ = ["__version__"]

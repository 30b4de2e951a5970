"""fairseq, reborn: language-model pre-training research with the original's commands and files.

Importing the package imports nothing else; names are fetched on first use (PEP 562).
"""

from __future__ import annotations

from fairseq.lazy import lazy_names
from fairseq.version import __version__

_SUBMODULES = (
    "binarizer",
    "checkpoint_utils",
    "criterions",
    "data",
    "dataclass",
    "distributed",
    "file_io",
    "file_utils",
    "hub_utils",
    "logging",
    "models",
    "modules",
    "nan_detector",
    "optim",
    "options",
    "registry",
    "tasks",
    "tokenizer",
    "trainer",
    "utils",
)

__getattr__, __dir__, _names = lazy_names(
    __name__,
    {
        **{name: f"fairseq.{name}" for name in _SUBMODULES},
        "distributed_utils": "fairseq.distributed_utils",
        "meters": "fairseq.logging.meters",
        "metrics": "fairseq.logging.metrics",
        "progress_bar": "fairseq.logging.progress_bar",
    },
)
__all__ = ["__version__"]

"""``fairseq.scoring``: the registry of scorers, for plug-ins that bring one.

There is none here: the original's compare translations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import Namespace
from typing import Any

from fairseq.config.registry import setup_registry
from fairseq.config.schema import FairseqDataclass
from fairseq.protocols import Settings

__all__ = ["SCORER_DATACLASS_REGISTRY", "SCORER_REGISTRY", "BaseScorer", "build_scorer"]


class BaseScorer(ABC):
    """Collects pairs of texts and says how alike they are."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg = cfg
        self.ref: list[str] = []
        self.pred: list[str] = []

    def add_string(self, ref: str, pred: str) -> None:
        """Take a pair in: what is right, and what was predicted."""
        self.ref.append(ref)
        self.pred.append(pred)

    @abstractmethod
    def score(self) -> float:
        """Return the score of all pairs."""

    @abstractmethod
    def result_string(self) -> str:
        """Return the score in words."""


_build, register_scorer, SCORER_REGISTRY, SCORER_DATACLASS_REGISTRY = setup_registry("--scoring")


def build_scorer(choice: str | FairseqDataclass | Namespace, tgt_dict: object = None) -> Any:
    """Build the scorer that ``choice`` names; the dictionary is for old callers."""
    return _build(choice)

"""The tokenizer that only tidies white space."""

from __future__ import annotations

import re

from fairseq.data.encoders import register_tokenizer
from fairseq.protocols import Settings

WHITE_SPACE = re.compile(r"\s+")


@register_tokenizer("space")
class SpaceTokenizer:
    """Words are what stands between white space; every run of it becomes one space."""

    def __init__(self, cfg: Settings = None) -> None:
        """Accept and ignore a configuration: there is nothing to set."""

    def encode(self, x: str) -> str:
        """Return ``x`` with each run of white space as one space."""
        return WHITE_SPACE.sub(" ", x)

    def decode(self, x: str) -> str:
        """Return ``x`` as it is."""
        return x

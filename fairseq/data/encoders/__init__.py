"""Text encoders: the registries behind ``--bpe`` and ``--tokenizer``.

A BPE turns text into pieces joined by spaces, which is what ``fairseq-preprocess`` and dictionaries
count as words; a tokenizer comes before it. The rows are lazy: an encoder's module is imported when
its name is looked up, and the library behind it when an encoder is built.
"""

from __future__ import annotations

from typing import Protocol

from fairseq.config.registries import BPE_REGISTRY, TOKENIZER_REGISTRY
from fairseq.config.registry import setup_registry


class TextEncoder(Protocol):
    """What every encoder offers."""

    def encode(self, x: str) -> str:
        """Return the pieces of the text ``x``, joined by spaces."""

    def decode(self, x: str) -> str:
        """Return the text whose pieces are ``x``."""


build_bpe, register_bpe, _, BPE_DATACLASS_REGISTRY = setup_registry("--bpe", registry=BPE_REGISTRY)
build_tokenizer, register_tokenizer, _, TOKENIZER_DATACLASS_REGISTRY = setup_registry(
    "--tokenizer", registry=TOKENIZER_REGISTRY
)


__all__ = [
    "BPE_DATACLASS_REGISTRY",
    "BPE_REGISTRY",
    "TOKENIZER_DATACLASS_REGISTRY",
    "TOKENIZER_REGISTRY",
    "TextEncoder",
    "build_bpe",
    "build_tokenizer",
    "register_bpe",
    "register_tokenizer",
]

"""Text encoders: the registries behind ``--bpe`` and ``--tokenizer``.

A BPE turns text into pieces joined by spaces, which is what ``fairseq-preprocess`` and dictionaries
count as words; a tokenizer comes before it. The rows are lazy: an encoder's module is imported when
its name is looked up, and the library behind it when an encoder is built.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from fairseq.catalog import BPES, TOKENIZERS
from fairseq.errors import ConfigError
from fairseq.registry import setup_registry


class TextEncoder(Protocol):
    """What every encoder offers."""

    def encode(self, x: str) -> str:
        """Return the pieces of the text ``x``, joined by spaces."""

    def decode(self, x: str) -> str:
        """Return the text whose pieces are ``x``."""


build_bpe, register_bpe, BPE_REGISTRY, BPE_DATACLASS_REGISTRY = setup_registry("--bpe", rows=BPES)
build_tokenizer, register_tokenizer, TOKENIZER_REGISTRY, TOKENIZER_DATACLASS_REGISTRY = (
    setup_registry("--tokenizer", rows=TOKENIZERS)
)


def require_library(name: str, purpose: str) -> Any:
    """Import and return the third-party module ``name``.

    Args:
        name: the module, which is also the name of its package.
        purpose: what needs it, for the message ("--bpe gpt2").

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs the package '{name}', which cannot be imported ({error}). "
            f"Install it: pip install {name}"
        ) from error


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
    "require_library",
]

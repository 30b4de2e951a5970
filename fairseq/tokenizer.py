"""The line tokenizer that the commands use for text whose words are already apart."""

from __future__ import annotations

from collections.abc import Callable

Tokenize = Callable[[str], list[str]]


def tokenize_line(line: str) -> list[str]:
    """Split a line at runs of Unicode white space (``\\s``, the same that ``str.split`` knows)."""
    return line.split()

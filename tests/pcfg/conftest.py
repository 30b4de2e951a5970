"""The small grammar, as a file and read."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_grammars import TOY

from fairseq.pcfg.grammar import Grammar, read_grammar


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.rules"
    path.write_text(TOY)
    return path


@pytest.fixture
def toy(toy_file: Path) -> Grammar:
    return read_grammar(toy_file)

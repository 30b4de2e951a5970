"""``examples/training_in_python.py`` runs as printed, with fewer updates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT, text_of

EXAMPLE = ROOT / "examples" / "training_in_python.py"


def test_every_cell_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text, changed = re.subn(r"^UPDATES = \d+", "UPDATES = 4", text_of(EXAMPLE), flags=re.M)
    assert changed == 1
    text = text.replace('"validate_interval_updates": 50', '"validate_interval_updates": 2')
    names: dict[str, Any] = {}
    for cell in re.split(r"^# %%.*$", text, flags=re.M):  # as a notebook runs them
        exec(compile(cell, str(EXAMPLE), "exec"), names)
    said = capsys.readouterr().out
    result = names["result"]
    assert result.updates == 4 and result.best["ppl"] > 1
    assert [update for update, _ in names["losses"]] == [2, 4]
    assert f"best perplexity {result.best['ppl']:.1f}" in said
    assert len(re.findall(r"^(?:alibi|learned) +\d+\.\d$", said, re.M)) == 2
    assert len(re.findall(r"^0\.\d{3} return the ", said, re.M)) == 3

"""A checkpoint of an earlier release goes on as it would have gone on there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Recorder, config, make_corpus, train

from scripts.make_earlier_release import CUT, KINDS, UPDATES, computing

FIXTURE = Path(__file__).parent / "earlier_release"


@pytest.mark.reliability
@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_with_the_losses_of_then(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str, Any], None],
) -> None:
    """Bit by bit where torch and the processor are those of then, else to what rounding allows."""
    record = json.loads((FIXTURE / "losses.json").read_text(encoding="utf-8"))
    expected = {int(update): loss for update, loss in record["losses"][kind].items()}
    assert list(expected) == list(range(CUT + 1, UPDATES + 1))
    (tmp_path / "run").mkdir()
    shutil.copyfile(FIXTURE / f"{kind}.pt", tmp_path / "run" / "checkpoint_last.pt")
    recorder = Recorder(monkeypatch)
    data = make_corpus(tmp_path / "data")
    train(config(data, tmp_path / "run", **KINDS[kind], max_update=UPDATES, no_save=True))
    assert list(recorder.losses) == list(expected)
    found = [float.fromhex(loss) for loss in recorder.losses.values()]
    then = [float.fromhex(loss) for loss in expected.values()]
    assert found == pytest.approx(then, rel=1e-3)
    if record["computing"] == computing():
        assert recorder.losses == expected
        figure(f"updates after an earlier release's checkpoint ({kind}), identical", len(found))

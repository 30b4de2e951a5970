"""fairseq-validate of a folder: each checkpoint as alone, in the order of their numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fairseq import evaluation
from fairseq.errors import MissingFileError
from fairseq.logging.meters import exact
from fairseq_cli import validate
from tests.tiny_run import config, make_corpus, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("folder") / "data")


def test_every_checkpoint_is_evaluated_as_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, alone = tmp_path / "runs", evaluation.validate
    names = ["a/checkpoint2.pt", "a/checkpoint10.pt", "b/checkpoint_last.pt"]
    for seed, name in enumerate(names):
        run = tmp_path / f"run{seed}"
        train(config(data, run, seed=seed + 1, max_update=2))
        (runs / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(run / "checkpoint_last.pt", runs / name)
    os.link(runs / names[2], runs / "b/checkpoint_z.pt")
    calls: list[str] = []
    monkeypatch.setattr(
        evaluation, "validate", lambda given: (calls.append(given["path"]), alone(given))[1]
    )
    words = [str(data), "--path", str(runs)]
    assert validate.run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [*names, "b/checkpoint_z.pt"] and len(calls) == 3
    for name in names:
        given = {"data": str(data), "path": str(runs / name), "log_format": "none"}
        assert found[name]["valid"]["loss"] == exact(alone(given)["valid"]["loss"])
    assert len({found[name]["valid"]["loss"] for name in names}) == 3

    (runs / "a/broken.pt").write_bytes(b"no checkpoint")
    capsys.readouterr()
    assert validate.run(words) == 1
    lines = capsys.readouterr().out.splitlines()[-6:]
    assert lines[0].split()[:3] == ["checkpoint", "subset", "loss"]
    assert [line.split()[:2] for line in lines[1:5]] == [[name, "valid"] for name in found]
    assert lines[1].split()[2] == f"{found[names[0]]['valid']['loss']:.6g}"
    assert lines[5].startswith("a/broken.pt: ")


def test_a_folder_without_checkpoints_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no checkpoint"):
        validate.run([str(data), "--path", str(tmp_path)])

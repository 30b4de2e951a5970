"""A model is used for the tokens that it predicts; a task that asks for others is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_run import DECODER, SMALL, config, make_corpus, train

from fairseq.errors import ConfigError
from fairseq.evaluation import validate
from fairseq.tasks.loading import built_for_weights

CAUSAL = {**DECODER, "max_update": 1}
LAST = "checkpoint_last.pt"
MASKED = {name: SMALL[name] for name in ("task", "criterion")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_corpus(tmp_path_factory.mktemp("corpus") / "data")
    words = (folder / "dict.txt").read_text(encoding="utf-8")
    # the causal task's dictionary has a filler where the masked one's has <mask>
    more = "".join(f"madeupword{n:04d} 0\n" for n in range(8))
    (folder / "dict.txt").write_text(words + more, encoding="utf-8")
    return folder


def test_a_causal_model_fills_no_masks(data: Path, tmp_path: Path) -> None:
    """Neither in training nor in an evaluation, whose figure would mean nothing."""
    with pytest.raises(ConfigError, match=r"--task masked_lm .*predicts \['future'\]"):
        train(config(data, tmp_path / "trained", **{**CAUSAL, **MASKED}))
    train(config(data, tmp_path / "run", **CAUSAL))
    flat = {"data": str(data), "path": str(tmp_path / "run" / LAST), "batch_size": 4}
    assert validate(flat)["valid"]["loss"] is not None
    with pytest.raises(ConfigError, match=r"--task masked_lm .*predicts \['future'\]"):
        validate({**flat, **MASKED})


def test_a_masked_model_continues_no_text(data: Path, tmp_path: Path) -> None:
    """What is asked for by default is not blamed on a flag."""
    train(config(data, tmp_path, max_update=1))
    flat = {"data": str(data), "path": str(tmp_path / LAST), "batch_size": 4}
    with pytest.raises(ConfigError, match="cannot predict .*name a causal --arch"):
        validate({**flat, "task": "language_modeling", "criterion": "cross_entropy"})


def test_tasks_of_older_plug_ins_build_models_without_being_told_why() -> None:
    old = SimpleNamespace(build_model=lambda args: ("old", args))
    new = SimpleNamespace(build_model=lambda cfg, from_checkpoint=False: (cfg, from_checkpoint))
    loose = SimpleNamespace(build_model=lambda *args, **kwargs: (args, kwargs))
    assert built_for_weights(old, "settings") == ("old", "settings")
    assert built_for_weights(new, "settings") == ("settings", True)
    assert built_for_weights(loose, "settings") == (("settings",), {"from_checkpoint": True})

"""``fairseq_cli.train.train`` and ``validate``, which plug-ins call from loops of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairseq.training.trainer import Trainer
from fairseq_cli import train
from tests.tiny_run import config, make_corpus


def test_an_epoch_and_a_validation_by_hand(tmp_path: Path) -> None:
    from fairseq import checkpoint_utils, tasks

    cfg = config(make_corpus(tmp_path / "bin"), tmp_path / "run", max_update=0, max_epoch=2)
    task: Any = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    task.load_dataset("valid")
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    _, epoch_itr = checkpoint_utils.load_checkpoint(cfg.checkpoint, trainer)
    (before,) = train.validate(cfg, trainer, task, epoch_itr, ["valid"])
    assert trainer.get_num_updates() == 0 and before is not None
    losses, should_stop = train.train(cfg, trainer, task, epoch_itr)
    assert trainer.get_num_updates() == 6 and not should_stop
    assert losses[0] is not None and losses[0] != before
    assert (tmp_path / "run" / "checkpoint1.pt").is_file()
    (after,) = train.validate(cfg, trainer, task, epoch_itr, ["valid"])
    assert after == pytest.approx(losses[0])

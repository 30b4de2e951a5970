"""Recipes of published students: both readers agree, and the numbers are the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairseq.config import options
from fairseq.config.components import as_config
from fairseq_cli.hydra_train import compose

FOLDER = Path(__file__).resolve().parents[2] / "examples/distillation/config"
# name -> weights of CE, LM and cosine; rate; beta 2; rows of 8 processes an update; tokens a row
PUBLISHED = {
    "distilgpt2": ((5.0, 2.0, 1.0), 2.5e-4, "(0.9,0.999)", 4096, 1024),
    "distilbert": ((5.0, 2.0, 1.0), 5e-4, "(0.9,0.98)", 2000, 512),
    "distilroberta": ((5.0, 2.0, 1.0), 5e-4, "(0.9,0.98)", 2000, 512),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_students(name: str) -> None:
    weights, rate, betas, rows, tokens = PUBLISHED[name]
    words = ["task.data=bin", "criterion.teacher_path=teacher", "checkpoint.grow_from=teacher.pt"]
    config = as_config(compose(str(FOLDER), name, words), strict=True)
    parser = options.get_training_parser(argv=())
    parser.add_argument("--config")
    flags = ["--teacher-path", "teacher", "--grow-from", "teacher.pt"]
    again = options.parse_config(
        parser, ["bin", "--config", str(FOLDER / f"{name}.yaml"), *flags]
    ).thawed()
    again.generation.no_seed_provided = config.generation.no_seed_provided
    assert config == again
    cfg, masked = config.criterion, name != "distilgpt2"
    lm = cfg.alpha_mlm if masked else cfg.alpha_clm
    assert (cfg.alpha_ce, lm, cfg.alpha_cos) == weights
    assert cfg.distillation_temperature == 2.0 and cfg.alpha_mse == 0
    assert config.optimization.lr == [rate] and config.optimizer.adam_betas == betas
    (frequency,) = config.optimization.update_freq
    assert 8 * (config.dataset.batch_size or 0) * frequency == rows
    assert config.task.tokens_per_sample == tokens
    assert config.checkpoint.grow_layers == [0, 2, 4, 7, 9, 11]
    assert config.lr_scheduler.warmup_updates * 20 == config.optimization.max_update
    assert not masked or config.task.mask_smoothing == 0.7
    side = "encoder" if masked else "decoder"
    assert config.model[f"{side}_layers"] == 6 and config.model[f"{side}_embed_dim"] == 768

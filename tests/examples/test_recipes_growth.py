"""Recipes of growth: every kind and size composes, with the numbers of the paper."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fairseq.config.components import as_config
from fairseq.config.sections import FairseqConfig
from fairseq.growth.sizes import Pair, Sizes, check_pair, sizes_of
from fairseq_cli.hydra_train import compose

FOLDER = Path(__file__).resolve().parents[2] / "examples/growth/config"
SIZES = ((3, 768), (6, 512), (6, 768), (12, 512), (12, 768))
# kind -> rows an update of 4 processes, rate
KINDS = {"bert": (256, 2e-4), "roberta": (1024, 8e-4)}


def recipe(name: str, *words: str) -> FairseqConfig:
    return as_config(compose(str(FOLDER), name, ["task.data=bin", *words]), strict=True)


@pytest.mark.parametrize(("kind", "size"), list(itertools.product(KINDS, SIZES)))
def test_the_papers(kind: str, size: tuple[int, int]) -> None:
    layers, width = size
    config = recipe("paper", f"+kind={kind}", f"+size=l{layers}_d{width}")
    assert sizes_of(config.model) == Sizes(layers, width, 4 * width, width // 64)
    rows, rate = KINDS[kind]
    (frequency,) = config.optimization.update_freq
    assert 4 * (config.dataset.batch_size or 0) * frequency == rows
    assert config.optimization.lr == [rate] and config.optimization.max_update == 400_000
    assert config.lr_scheduler.warmup_updates == 10_000
    assert config.model.segments == (2 if kind == "bert" else 0)
    assert config.task.tokens_per_sample == 128 and config.task.mask_prob == 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_the_papers_pair_grows(kind: str) -> None:
    small, large = (recipe("paper", f"+kind={kind}", f"+size={s}") for s in ("l6_d512", "l12_d768"))
    check_pair(Pair(small.model, large.model))

"""Runs of every kind of training, cut at random moments, end with the bits of whole ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Recorder, config, digest, faults, make_corpus, train

from fairseq.tasks.base import FairseqTask

NARROW = {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16}
LM = {
    "task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm",
    "decoder_layers": 1, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 16,
    "decoder_input_dim": 16, "decoder_output_dim": 16, "decoder_attention_heads": 2,
    "share_decoder_input_output_embed": True, "sample_break_mode": "eos",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "masked_lm": NARROW,
    "causal": LM,
    "headless": {**NARROW, "criterion": "contrastive_weight_tying", "head": "none"},
    "distillation": {**NARROW, "criterion": "distillation", "alpha_mlm": 0.5},
}
# updates by how many batches they accumulate; epochs have six, so fours end them incomplete
UPDATES = {1: 14, 2: 7, 4: 5}


class Killed(BaseException):
    """Ends a run as SIGKILL would, as far as its files are concerned."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    train(config(data, folder, max_update=2))
    return str(folder / "checkpoint_last.pt")


def outcome(data: Path, folder: Path, die_at: int | None = None, **flags: Any) -> dict[int, str]:
    """Run, or run until the given micro-batch and leave the folder as a dead process would."""
    original, seen = FairseqTask.train_step, 0

    def train_step(*args: Any, **more: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == die_at:
            raise Killed
        return original(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FairseqTask, "train_step", train_step)
        recorder = Recorder(patch)
        try:
            train(config(data, folder, **flags))
        except Killed:
            assert die_at is not None
    return recorder.losses


@pytest.mark.parametrize("cuts", faults(2, 50))
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_cut_anywhere_ends_with_the_same_bits(
    kind: str,
    cuts: int,
    data: Path,
    teacher: str,
    tmp_path: Path,
    figure: Callable[[str, Any], None],
) -> None:
    rng, whole = random.Random(kind), {}
    more = {"teacher_path": teacher} if kind == "distillation" else {}
    for frequency, updates in UPDATES.items():
        settings = {**KINDS[kind], **more, "update_freq": [frequency], "max_update": updates}
        settings |= {"save_interval_updates": 2, "keep_interval_updates": 1}
        whole[frequency] = settings, outcome(data, tmp_path / f"whole{frequency}", **settings)
    for number in range(cuts):
        frequency = list(UPDATES)[number % 3]
        (settings, expected), folder = whole[frequency], tmp_path / str(number)
        at = rng.randrange(1, 15)
        before = outcome(data, folder, at, **settings)
        after = outcome(data, folder, **settings)
        assert len(before) < len(expected), (kind, number, at)
        assert {**before, **after} == expected, (kind, number, at)
        assert {**after, **before} == expected, (kind, number, at)
        last = "checkpoint_last.pt"
        assert digest(folder / last) == digest(tmp_path / f"whole{frequency}" / last)
    figure(f"random cuts ({kind}), all ended bit-identical", cuts)


@pytest.mark.parametrize("data_rng", ["philox", "fairseq-main"])
def test_every_seed_of_the_flag_trains(data_rng: str, data: Path, tmp_path: Path) -> None:
    """Numpy's generators take 32 bits, the flag 63."""
    for seed in (2**32 - 1, 2**32, 2**63 - 1):
        train(config(data, tmp_path / str(seed), **LM, seed=seed, data_rng=data_rng, max_update=1))
        assert (tmp_path / str(seed) / "checkpoint_last.pt").is_file()

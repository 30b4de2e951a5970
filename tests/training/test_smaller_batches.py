"""Out of memory: the update is the same, in smaller batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, content, faults, make_corpus, train

from fairseq.errors import FairseqError
from fairseq.tasks.base import FairseqTask
from fairseq.training.smaller_batches import cells_of, halves, is_out_of_memory
from fairseq.training.trainer import Trainer

EXACT = {"dropout": 0.0, "attention_dropout": 0.0, "batch_size": 16}
LM = {
    "task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm",
    "decoder_layers": 1, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 16,
    "decoder_attention_heads": 2, "sample_break_mode": "eos",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data", train_lines=64)


def limited(patch: pytest.MonkeyPatch, most: int, error: type[Exception]) -> list[int]:
    """Let no batch of more cells than that fit, after its backward pass; return what was tried."""
    original, tried = FairseqTask.train_step, []

    def train_step(task: Any, sample: Any, *rest: Any, **more: Any) -> Any:
        result = original(task, sample, *rest, **more)
        tried.append(cells_of(sample))
        if tried[-1] > most:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result

    patch.setattr(FairseqTask, "train_step", train_step)
    return tried


def gradients(patch: pytest.MonkeyPatch) -> list[list[torch.Tensor]]:
    """Note the gradients of every update, before they are applied."""
    step, noted = FairseqTask.optimizer_step, []

    def optimizer_step(task: Any, optimizer: Any, model: Any, update_num: int) -> None:
        noted.append([p.grad.detach().clone() for p in model.parameters() if p.grad is not None])
        step(task, optimizer, model, update_num)

    patch.setattr(FairseqTask, "optimizer_step", optimizer_step)
    return noted


@pytest.mark.parametrize("times", faults(2, 20))
@pytest.mark.parametrize("flags", [{}, {"update_freq": [2]}, LM], ids=["masked", "several", "lm"])
def test_the_gradient_is_the_same_in_smaller_batches(
    times: int, flags: Any, data: Path, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    flags = {**EXACT, **flags, "max_update": times}
    with pytest.MonkeyPatch.context() as patch:
        whole = gradients(patch)
        train(config(data, tmp_path / "whole", **flags))
    with pytest.MonkeyPatch.context() as patch:
        tried = limited(patch, 60, torch.OutOfMemoryError)
        first = gradients(patch)[:0]
        parts = gradients(patch)
        # one update from equal weights: what follows drifts by rounding
        train(config(data, tmp_path / "parts", **flags))
    assert not first and len(whole) == len(parts) == times
    assert max(tried) > 60 and sum(cells > 60 for cells in tried) < len(tried) / 2
    worst = max(float((a - b).abs().max()) for a, b in zip(whole[0], parts[0], strict=True))
    assert worst <= 1e-6
    figure("out of memory: updates in smaller batches", times)
    figure("out of memory: largest difference of a gradient", worst)
    logged = content(tmp_path / "parts" / "checkpoint_last.pt")["extra_state"]["fairseq_lm"]
    assert logged["progress"]["most_cells"] > 60  # what a resumed run divides at once


def test_a_loss_that_is_no_sum_over_rows_is_not_divided(data: Path, tmp_path: Path) -> None:
    flags = {**EXACT, "criterion": "contrastive_weight_tying", "head": "none"}
    with pytest.MonkeyPatch.context() as patch:
        limited(patch, 60, torch.OutOfMemoryError)
        with pytest.raises(FairseqError, match="cannot be divided.*--update-freq"):
            train(config(data, tmp_path, **flags))


def test_a_single_row_that_does_not_fit_ends_the_run(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        limited(patch, 0, RuntimeError)
        with pytest.raises(FairseqError, match="out of memory"):
            train(config(data, tmp_path, **EXACT))


def test_other_errors_pass(data: Path, tmp_path: Path) -> None:
    def broken(trainer: Trainer, calls: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch, broken)
        with pytest.raises(RuntimeError, match="shapes differ"):
            train(config(data, tmp_path))
    assert is_out_of_memory(RuntimeError("HIP out of memory")) and not is_out_of_memory(
        MemoryError()
    )


def test_what_cannot_be_read_again_is_not_divided() -> None:
    assert halves({"id": torch.tensor([1])}, None, 1) is None
    assert halves({"net_input": {}}, None, 1) is None
    assert halves("DUMMY", None, 1) is None

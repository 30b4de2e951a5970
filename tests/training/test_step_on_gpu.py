"""On a GPU, whole updates of ``fairseq-train`` do not wait for it between two records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CLAP, DECODER, HEADLESS, config, make_corpus, train

from fairseq.optim.adam import Adam
from fairseq.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
KINDS: dict[str, dict[str, Any]] = {
    "masked": {},
    "clap, alibi": {**CLAP, "attention_dropout": 0.0},
    "causal": DECODER,
    "headless": HEADLESS,
}


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Make waiting an error in updates after the fourth that write no record."""
    original: Callable[..., Any] = Trainer.train_step
    checked: list[int] = []

    def train_step(trainer: Trainer, samples: Any, raise_oom: bool = False) -> Any:
        update = trainer.get_num_updates() + 1
        if update > 4 and update % trainer.cfg.common.log_interval:
            torch.cuda.set_sync_debug_mode("error")
            checked.append(update)
        try:
            return original(trainer, samples, raise_oom)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "train_step", train_step)
    yield checked
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"amp": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_updates_do_not_wait(
    kind: str, precision: dict[str, Any], strict: list[int], tmp_path: Path
) -> None:
    data = make_corpus(tmp_path / "data")
    flags = {**KINDS[kind], **precision, "cpu": False, "device": "cuda", "log_interval": 4}
    train(config(data, tmp_path / "run", no_save=True, disable_validation=True, **flags))
    assert strict == [5, 6, 7, 9]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_kernel_leaves_a_step_out(scale: float) -> None:
    weight = torch.randn(1000, device="cuda").requires_grad_()
    optimizer = Adam([weight], 0.1, impl="fused")
    for gradient, skipped in ((1.0, 0.0), (torch.nan, 1.0), (1.0, 0.0)):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, gradient)
        optimizer.found_inf = torch.full((), skipped, device="cuda")
        optimizer.step(scale=scale)
        assert torch.equal(before, weight) == bool(skipped) and bool(weight.isfinite().all())

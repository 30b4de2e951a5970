"""An accelerator judges gradients; nobody asks it for a number between two records.

There is no accelerator here. The trainer is told that it has one, meters take tensors for its own,
and whatever would read a number of it is an error.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CLAP, DECODER, HEADLESS, config, content, digest, make_corpus, train
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fairseq.criterions.contrastive_weight_tying import ContrastiveWeightTyingCriterion
from fairseq.errors import FairseqError
from fairseq.logging import deferred
from fairseq.logging.sinks import read_jsonl
from fairseq.optim.adam import Adam
from fairseq.training.trainer import Trainer
from fairseq.training.update_log import UpdateLog

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero}
READS |= {aten.unique_dim, aten._unique, aten._unique2, aten.unique_consecutive}
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}

MODELS: dict[str, dict[str, Any]] = {
    "masked": {},
    "clap, alibi": CLAP,
    "causal": DECODER,
    "headless": HEADLESS,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


class NothingIsRead(TorchDispatchMode):
    """Makes reading a number of a tensor, or a shape that depends on numbers, an error."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = func.overloadpacket
        masks = packet in BY_INDEX and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        assert packet not in READS and not masks, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Let the trainer and the meters take the CPU for an accelerator."""

    def can_wait(log: UpdateLog) -> bool:
        return log.began and log.trainer.bad_updates == 0 and log.trainer.optimizer.skips_on_device

    patch.setattr(UpdateLog, "can_wait", can_wait)
    patch.setattr(deferred, "_is_on_host", lambda tensor: False)


def around_updates(patch: pytest.MonkeyPatch, context: Callable[[Trainer], Any]) -> list[int]:
    """Take every update inside a context; return where their numbers will be."""
    original, taken = Trainer.train_step, list[int]()

    def train_step(trainer: Trainer, samples: Any, raise_oom: bool = False) -> Any:
        with context(trainer):
            output = original(trainer, samples, raise_oom)
        taken.append(trainer.get_num_updates())
        return output

    patch.setattr(Trainer, "train_step", train_step)
    return taken


@contextmanager
def reading_nothing(trainer: Trainer) -> Iterator[None]:
    """Forbid to read but in the first update, and where a record is written."""
    update = trainer.get_num_updates() + 1
    if update == 1 or update % trainer.cfg.common.log_interval == 0:
        yield
        return
    with pytest.MonkeyPatch.context() as patch, NothingIsRead():
        for name in ("tolist", "numpy", "__array__"):
            here(patch, Tensor, name, lambda self, *given: pytest.fail("a tensor was read"))
        here(patch, Tensor, "any", lambda self, *given: True)  # asked for on a CPU only
        # what a criterion does with a batch on the host is no wait
        original = ContrastiveWeightTyingCriterion.prepare_sample
        patch.setattr(
            ContrastiveWeightTyingCriterion,
            "prepare_sample",
            lambda self, sample: on_the_host(original, self, sample),
        )
        yield


def on_the_host(function: Callable[..., Any], *given: Any) -> Any:
    with _disable_current_modes():
        return function(*given)


def here(patch: pytest.MonkeyPatch, owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Replace a method in this thread; the one that reads batches ahead keeps it."""
    original, thread = getattr(owner, name), threading.get_ident()

    def method(*given: Any) -> Any:
        return (function if threading.get_ident() == thread else original)(*given)

    patch.setattr(owner, name, method)


KINDS = [(kind, {}) for kind in MODELS]
KINDS += [("masked", flags) for flags in ({"bf16": True}, {"amp": True}, {"clip_norm": 1.0})]


@pytest.mark.parametrize(("kind", "flags"), KINDS, ids=str)
def test_no_number_is_asked_for_between_records(
    kind: str, flags: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    taken = around_updates(monkeypatch, reading_nothing)
    some = {**MODELS[kind], **flags, "log_interval": 4, "no_save": True}
    train(config(data, tmp_path, disable_validation=True, **some))
    assert taken == list(range(1, 10))


def test_the_test_notices_what_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the trainer looks at every norm, and the meters at every loss."""
    around_updates(monkeypatch, reading_nothing)
    with pytest.raises(AssertionError, match="_local_scalar_dense.*waits"):
        train(config(data, tmp_path, log_interval=4, no_save=True, disable_validation=True))


def figures(folder: Path) -> list[dict[str, Any]]:
    """Return what a run recorded, without what a clock says."""
    clocks = ("wall", "wps", "ups", "mfu", "time", "train_wall", "eta")
    rows = read_jsonl(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


@pytest.mark.parametrize("flags", [{}, {"bf16": True}, {"clip_norm": 0.5}], ids=str)
def test_the_same_steps_and_records_either_way(
    flags: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {**flags, "log_interval": 4, "save_interval_updates": 3}
    train(config(data, tmp_path / "now", **some))
    pretend(monkeypatch)
    train(config(data, tmp_path / "later", **some))
    assert figures(tmp_path / "now") == figures(tmp_path / "later")
    assert digest(tmp_path / "now/checkpoint_last.pt") == digest(
        tmp_path / "later/checkpoint_last.pt"
    )
    saved = [
        content(tmp_path / name / "checkpoint_1_3.pt")["extra_state"]["metrics"]["train"]
        for name in ("now", "later")
    ]
    averages = [[m for m in rows if m[2] == "AverageMeter"] for rows in saved]
    assert averages[0] == averages[1]  # a checkpoint between records knows of all updates


def poison(patch: pytest.MonkeyPatch, first: int, last: int, value: float) -> None:
    """Spoil a gradient in some updates."""

    def backward(self: Any, loss: Tensor) -> None:
        (loss * value if first <= self.trainer.get_num_updates() + 1 <= last else loss).backward()

    original = Trainer.train_step

    def train_step(trainer: Trainer, samples: Any, raise_oom: bool = False) -> Any:
        trainer.optimizer.trainer = trainer
        patch.setattr(type(trainer.optimizer), "backward", backward)
        return original(trainer, samples, raise_oom)

    patch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_updates_change_nothing_and_are_told_with_the_record(
    value: float,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretend(monkeypatch)
    poison(monkeypatch, 3, 4, value)
    weights: dict[int, str] = {}

    @contextmanager
    def look(trainer: Trainer) -> Iterator[None]:
        yield
        state = trainer.optimizer.state_dict()["state"].values()
        means = [s[name].tolist() for s in state for name in ("exp_avg", "exp_avg_sq")]
        weights[trainer.get_num_updates()] = json.dumps(
            [means, [p.tolist() for p in trainer.parameters()]]
        )

    around_updates(monkeypatch, look)
    with caplog.at_level("WARNING"):
        train(config(data, tmp_path, log_interval=5, no_epoch_checkpoints=True))
    assert weights[2] == weights[3] == weights[4] != weights[5]
    (told,) = [text for text in caplog.messages if "gradient norm" in text]
    norm = "nan" if value != value else "(inf|nan)"
    assert len(weights) == 9
    assert re.search(rf"updates 3 \({norm}\), 4 \({norm}\) of the latest 4; they left", told)
    (event,) = [r for r in read_jsonl(tmp_path / "events.jsonl") if r["event"] == "skipped"]
    assert event["update"] == 3 and event["reason"] == told
    rows = [row for row in figures(tmp_path) if row["tag"] != "valid"]
    assert all(row["loss"] == row["loss"] < 9 for row in rows)  # what had no effect is not averaged


def test_a_gradient_that_stays_bad_ends_the_run_with_its_cause(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch)
    poison(monkeypatch, 4, 10_000, torch.nan)
    with pytest.raises(FairseqError, match=r"10 updates in a row \(update 5\)"):
        train(config(data, tmp_path, log_interval=5, max_update=90))
    told = [text for text in caplog.messages if "gradient norm" in text]
    assert "updates 4 (nan), 5 (nan) of the latest 4" in told[0]
    assert len(told) == 1 + 8  # then the host looks at each, and the tenth is the error
    assert any(text.startswith("gradients are not finite: ") for text in caplog.messages)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_kernel_skips_a_step_and_no_other(scale: float) -> None:
    torch.manual_seed(0)
    params = [torch.randn(5, 3, requires_grad=True), torch.randn(7, requires_grad=True)]
    plain = [p.detach().clone().requires_grad_() for p in params]
    ours, theirs = Adam(params, 0.1, impl="fused"), Adam(plain, 0.1, impl="fused")
    for step in range(3):
        for p, q in zip(params, plain, strict=True):
            p.grad, q.grad = torch.full_like(p, step + 1.0), torch.full_like(p, step + 1.0)
        if step == 1:
            for p in params:
                assert p.grad is not None
                p.grad[0] = torch.nan
            before = [p.detach().clone() for p in params]
            ours.found_inf = torch.ones(())
            ours.step(scale=scale)
            assert all(map(torch.equal, before, params))
            means = [s[name] for s in ours.state.values() for name in ("exp_avg", "exp_avg_sq")]
            assert all(bool(mean.isfinite().all()) for mean in means)
            for s in theirs.state.values():
                s["step"] += 1  # a step that was left out counts
            continue
        ours.step(scale=scale)
        theirs.step(scale=scale)
    assert all(map(torch.equal, params, plain))

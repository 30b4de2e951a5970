"""A step never asks the device for a number, and mixes neither types nor devices.

Fake tensors have no values: whatever looks at one raises. Where torch was built for CUDA they are
on "cuda" (no GPU is needed), so that tensors left behind on the CPU show, too, and autocast can be
traced; backward passes run on fake CPU tensors only. What asks the CPU whether there is padding,
and spares a GPU the question, is answered yes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_knobs import COVERING, a_config
from test_knobs import data as data
from test_lm_knobs import COMMON, CRITERIONS, DECODER, ENCODER, FITS, HEADS
from tiny_lm import POSITIONS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map_only

from fairseq import tasks
from fairseq.config.components import make_config
from fairseq.errors import ConfigError
from fairseq.ops.attention_context import Alibi

Knobs = dict[str, Any]
# these look for the rows of each band of words, or for distinct tokens: one wait for each batch
WAITING = ("adaptive_loss", "contrastive_weight_tying")
DEVICE = "cuda" if torch.version.cuda else "cpu"
BACKENDS = ("auto", "sdpa", "explicit", "reference")


def parts(config: Any) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """Return a model, its criterion and a batch, on the CPU."""
    task = tasks.setup_task(config.task)
    model, criterion = task.build_model(config.model), task.build_criterion(config.criterion)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    criterion.prepare_update([batch])
    return model, criterion, batch


def cases() -> Iterator[Any]:
    for number, knobs in enumerate(COVERING):
        yield pytest.param("encoder", {**knobs, "dropout": 0.1}, id=f"encoder-{number}")
    for criterion, heads in FITS.items():
        for head in sorted(heads):
            for position in POSITIONS:
                knobs = {**DECODER, **HEADS[head], **POSITIONS[position], **CRITERIONS[criterion]}
                yield pytest.param("other", knobs, id=f"{criterion}-{head}-{position}")
    yield pytest.param("other", {**ENCODER, **CRITERIONS["headless"]}, id="encoder-headless")


def make(kind: str, knobs: Knobs, data: Path, backend: str) -> tuple[nn.Module, nn.Module, Any]:
    knobs = {**knobs, "attention_backend": backend}
    if kind == "encoder":
        return parts(a_config(data, knobs))
    return parts(make_config({**COMMON, **knobs, "data": str(data)}))


def waits(knobs: Knobs) -> bool:
    return knobs.get("criterion") in WAITING or "adaptive_input" in knobs


@pytest.fixture(autouse=True)
def padding_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "any", lambda self, *where: True)


def traced(kind: str, knobs: Knobs, backend: str, half: str, data: Path) -> None:
    if half == "autocast" and DEVICE == "cpu":
        pytest.skip("needs a CUDA build of torch (no GPU)")
    try:
        model, criterion, batch = make(kind, knobs, data, backend)
    except ConfigError:
        pytest.skip("a combination that is refused")
    if half == "bf16":
        model = model.bfloat16()
    context = torch.autocast("cuda", torch.bfloat16) if half == "autocast" else nullcontext()
    gradients = torch.set_grad_enabled(DEVICE == "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), gradients, context:
        replace(model), replace(criterion)
        batch = tree_map_only(Tensor, fake, batch)
        if waits(knobs):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                criterion(model, batch)
            return
        loss, _, _ = criterion(model, batch)
        assert loss.device.type == DEVICE and loss.dtype == torch.float32
        if DEVICE == "cpu":
            loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype, name


def fake(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def replace(whole: nn.Module) -> None:
    """Put fake tensors in place of all that a module holds; a shared one stays shared."""
    shared: dict[nn.Parameter, nn.Parameter] = {}
    for module in whole.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in shared:
                shared[parameter] = nn.Parameter(fake(parameter), parameter.requires_grad)
            module._parameters[name] = parameter if parameter is None else shared[parameter]
    for module in whole.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
        if isinstance(getattr(module, "alibi", None), Alibi):
            module.alibi.slopes_H = fake(module.alibi.slopes_H)


@pytest.mark.matrix
@pytest.mark.parametrize("half", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind, knobs", list(cases()))
def test_all_forward_passes(kind: str, knobs: Knobs, backend: str, half: str, data: Path) -> None:
    traced(kind, knobs, backend, half, data)


FEW = [
    ("encoder", COVERING[0]),
    ("other", {**DECODER, **HEADS["tied"], **POSITIONS["alibi"], **CRITERIONS["cross_entropy"]}),
]


@pytest.mark.parametrize("half", ["fp32", "bf16"])
@pytest.mark.parametrize("kind, knobs", FEW, ids=["encoder", "decoder"])
def test_some_forward_passes(kind: str, knobs: Knobs, half: str, data: Path) -> None:
    traced(kind, knobs, "auto", half, data)

"""A step never asks the device for a number, and mixes neither types nor devices.

Fake tensors have no values: whatever looks at one raises. They are on "cuda", which needs neither a
GPU nor a build of torch for one, so that tensors left behind on the CPU show, too. Backward passes
want a real device: they run on fake CPU tensors. Whether there is padding, which only a CPU is
asked, is answered yes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
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
from fairseq.optim import FP16Optimizer, MemoryEfficientFP16Optimizer, build_optimizer
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.base import FairseqOptimizer

Knobs = dict[str, Any]
# these look for the rows of each band of words, or for distinct tokens: one wait for each batch
WAITING = ("adaptive_loss", "contrastive_weight_tying")
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
    unpadded = knobs.get("unpadded") == "on"  # looks for the tokens
    return knobs.get("criterion") in WAITING or "adaptive_input" in knobs or unpadded


def step_by_step(x: Tensor, where: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Return a view of ``x``, and what is left of an index into it: tensors by dimension."""
    parts = list(where) if isinstance(where, tuple) else [where]
    if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
        at = next(n for n, part in enumerate(parts) if part is Ellipsis)
        given = sum(part is not None for part in parts) - 1
        parts[at : at + 1] = [slice(None)] * (x.dim() - given)
    left: list[Tensor | None] = []
    for part in parts:
        if part is None:
            x = x.unsqueeze(len(left))
        elif isinstance(part, int):
            x = x.select(len(left), part)
            continue
        elif isinstance(part, slice):
            x = torch.ops.aten.slice(x, len(left), part.start, part.stop, part.step or 1)
        left.append(part if isinstance(part, Tensor) else None)
    return x, left


def depends_on_data(x: Tensor) -> Tensor:
    """Say what fake tensors say where PyTorch was built for CUDA."""
    raise DynamicOutputShapeException(torch.ops.aten.nonzero.default)


def getitem(x: Tensor, where: Any) -> Tensor:
    view, left = step_by_step(x, where)
    if any(t is not None and t.dtype == torch.bool for t in left):
        depends_on_data(x)
    return torch.ops.aten.index(view, left) if any(t is not None for t in left) else view


def setitem(x: Tensor, where: Any, value: Any) -> None:
    view, left = step_by_step(x, where)
    value = (
        value if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype).to(x.device)
    )
    if any(t is not None for t in left):
        torch.ops.aten.index_put_(view, left, value)
    else:
        torch.ops.aten.copy_(view, value)


@pytest.fixture(autouse=True)
def padding_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "any", lambda self, *where: True)
    # a CPU may be asked for numbers; on "cuda" the question stays one that waits
    for name, asked, answer in (("all", Tensor.all, False), ("__float__", Tensor.__float__, 2.0)):

        def told(self: Tensor, *where: Any, asked: Any = asked, answer: Any = answer) -> Any:
            return answer if self.device.type == "cpu" else asked(self, *where)

        monkeypatch.setattr(Tensor, name, told)


@contextmanager
def no_device_is_asked(device: str) -> Iterator[None]:
    """Replace operators that, in a build without CUDA, want a device before they see a fake."""
    with pytest.MonkeyPatch.context() as patch:
        if device == "cuda" and not torch.version.cuda:
            patch.setattr(Tensor, "__invert__", lambda self: torch.ops.aten.bitwise_not(self))
            patch.setattr(Tensor, "__getitem__", getitem)
            patch.setattr(Tensor, "nonzero", depends_on_data)
            patch.setattr(Tensor, "__setitem__", setitem)
            patch.setattr(Tensor, "copy_", lambda self, other: torch.ops.aten.copy_(self, other))
        yield


@contextmanager
def autocast_without_a_gpu() -> Iterator[None]:
    """Do what torch.autocast does, which leaves it where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


def traced(kind: str, knobs: Knobs, backend: str, half: str, data: Path) -> None:
    trace(kind, knobs, backend, half, data, "cuda")
    if half != "autocast":
        trace(kind, knobs, backend, half, data, "cpu")


def trace(kind: str, knobs: Knobs, backend: str, half: str, data: Path, device: str) -> None:
    try:
        model, criterion, batch = make(kind, knobs, data, backend)
    except ConfigError:
        pytest.skip("a combination that is refused")
    if half == "bf16":
        model = model.bfloat16()
    context = autocast_without_a_gpu() if half == "autocast" else nullcontext()
    gradients = torch.set_grad_enabled(device == "cpu")
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with fakes, gradients, context, no_device_is_asked(device):
        replace(model, device), replace(criterion, device)
        batch = tree_map_only(Tensor, partial(fake, device=device), batch)
        if waits(knobs):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                criterion(model, batch)
            return
        loss, _, _ = criterion(model, batch)
        assert loss.device.type == device and loss.dtype == torch.float32
        if device == "cpu":
            loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype, name


def fake(tensor: Tensor, device: str) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def replace(whole: nn.Module, device: str) -> None:
    """Put fake tensors in place of all that a module holds; a shared one stays shared."""
    shared: dict[nn.Parameter, nn.Parameter] = {}
    for module in whole.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in shared:
                # autocast would keep the graph of what it casts, whatever the mode
                trained = parameter.requires_grad and device == "cpu"
                shared[parameter] = nn.Parameter(fake(parameter, device), trained)
            module._parameters[name] = parameter if parameter is None else shared[parameter]
    for module in whole.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer, device)
        for name, value in vars(module).items():  # ids of an update, which are no buffer
            if isinstance(value, Tensor):
                setattr(module, name, fake(value, device))
        if isinstance(getattr(module, "alibi", None), Alibi):
            module.alibi.slopes_H = fake(module.alibi.slopes_H, device)


@pytest.mark.matrix
@pytest.mark.parametrize("half", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind, knobs", list(cases()))
def test_all_forward_passes(kind: str, knobs: Knobs, backend: str, half: str, data: Path) -> None:
    traced(kind, knobs, backend, half, data)


@pytest.mark.parametrize("flags", [{}, {"bf16": True}, {"memory_efficient_bf16": True}], ids=str)
def test_the_step_of_the_optimizer(flags: Knobs) -> None:
    """Gradients are averaged, clipped, judged and applied, and nobody asks for a number."""
    common = {"memory_efficient_bf16": False, "bf16": bool(flags), "fp16": False, **flags}
    settings = FairseqAdamConfig(lr=[0.1], weight_decay=0.01)
    cfg = SimpleNamespace(common=SimpleNamespace(**common), optimizer=settings)
    settings._name = "adam"
    dtype = torch.bfloat16 if flags else torch.float32
    with FakeTensorMode(), torch.no_grad(), no_device_is_asked("cuda"):
        weight = nn.Parameter(torch.empty(4, 8, dtype=dtype, device="cuda"))
        if not flags:
            optimizer: FairseqOptimizer = build_optimizer(settings, [weight])
        else:
            frugal = "memory_efficient_bf16" in flags
            kind = MemoryEfficientFP16Optimizer if frugal else FP16Optimizer
            optimizer = kind.build_optimizer(cfg, [weight])
        for _ in range(2):
            optimizer.zero_grad()
            weight.grad = torch.empty_like(weight)
            optimizer.multiply_grads(0.5)
            norm = optimizer.clip_grad_norm(1.0)
            assert norm.device.type == "cuda" and optimizer.skips_on_device
            optimizer.skip_unless(norm.isfinite())
            optimizer.step()
        (state,) = optimizer.optimizer.state.values()
        assert state["exp_avg"].device.type == "cuda" and state["exp_avg"].dtype == torch.float32


FEW = [
    ("encoder", COVERING[0]),
    ("other", {**DECODER, **HEADS["tied"], **POSITIONS["alibi"], **CRITERIONS["cross_entropy"]}),
]


@pytest.mark.parametrize("half", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("kind, knobs", FEW, ids=["encoder", "decoder"])
def test_some_forward_passes(kind: str, knobs: Knobs, half: str, data: Path) -> None:
    traced(kind, knobs, "auto", half, data)

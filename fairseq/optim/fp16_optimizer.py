"""Training with half-precision weights: fp32 master weights, or none at all.

Gradients arrive multiplied by the loss scale. What they have yet to be multiplied by (the inverse
scale, the batch normalisation, the clipping) is gathered in one factor and applied inside the
step, so that nothing is rounded in half precision on the way.

The state carries three keys that the original ignores: ``fp32_params`` (the master weights; the
model's own are rounded) and ``loss_scaler`` (counters) beside the original's ``loss_scale``. With
them a resumed run continues bit by bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.config.sections import FairseqConfig
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.optim import build_optimizer, groups_by_name
from fairseq.optim.base import FairseqOptimizer, Params, match_state, named_trainable, trainable
from fairseq.optim.loss_scaler import DynamicLossScaler
from fairseq.optim.read_settings import setting
from fairseq.optim.wrapping import WrappingOptimizer
from fairseq.protocols import Settings, StateDict

logger = logging.getLogger(__name__)


def build_scaler(cfg: object) -> DynamicLossScaler | None:
    """Return the loss scaler that ``cfg.common`` asks for, None for bfloat16.

    Without ``--fp16-scale-window`` the window is ``2^14 / workers / --update-freq`` updates.
    """
    if setting(cfg, "common.bf16", False):
        return None
    window = setting(cfg, "common.fp16_scale_window")
    if window is None:
        workers = max(1, setting(cfg, "distributed_training.distributed_world_size", 1))
        # a list of frequencies counts by its first epoch
        frequency = (setting(cfg, "optimization.update_freq") or [1])[0]
        # 2^14 backward passes, whichever worker or accumulation step they belong to
        window = max(1, int(2**14 / workers / frequency))
    return DynamicLossScaler(
        init_scale=setting(cfg, "common.fp16_init_scale", 2**7),
        scale_window=window,
        tolerance=setting(cfg, "common.fp16_scale_tolerance", 0.0),
        threshold=setting(cfg, "common.threshold_loss_scale"),
        min_loss_scale=setting(cfg, "common.min_loss_scale", 1e-4),
    )


class HalfPrecisionOptimizer(WrappingOptimizer):
    """What both kinds share: the loss scale and the factor that the gradients still lack."""

    def __init__(
        self, cfg: Settings, params: Iterable[Tensor], optimizer: FairseqOptimizer
    ) -> None:
        super().__init__(cfg, params, optimizer)
        self.fp16_params = self.model_params
        self.scaler = build_scaler(cfg)
        self._factor: float | Tensor = 1.0
        self._reset_factor()

    def _reset_factor(self) -> None:
        self._factor = 1.0 if self.scaler is None else 1.0 / self.scaler.loss_scale

    def state_dict(self) -> dict[str, Any]:
        state = self.wrapped_optimizer.state_dict()
        if self.scaler is not None:
            state["loss_scale"] = self.scaler.loss_scale
            state["loss_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(
        self, state_dict: StateDict, optimizer_overrides: Mapping[str, object] | None = None
    ) -> None:
        self.wrapped_optimizer.load_state_dict(state_dict, optimizer_overrides)
        if self.scaler is not None and "loss_scale" in state_dict:
            self.scaler.loss_scale = float(state_dict["loss_scale"])
            self.scaler.load_state_dict(state_dict.get("loss_scaler", {}))
            self._reset_factor()

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def multiply_grads(self, c: float | Tensor) -> None:
        """Remember to multiply the gradients by ``c``."""
        self._factor = self._factor * c

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the norm of the true (unscaled, multiplied) gradients; remember to clip them.

        Raises:
            OverflowError: if the norm is not finite: skip this batch.
            FloatingPointError: if the loss scale cannot fall any further.
        """
        # 0 measures only: the clipping joins the factor, which the step applies
        norm = self._factor * self.wrapped_optimizer.clip_grad_norm(0, aggregate_norm_fn)
        if self.scaler is not None:
            self.scaler.check_overflow(norm)
        if max_norm > 0:
            # 1e-6 as in torch's own clipping, so that fp16 and fp32 runs clip alike
            self._factor = self._factor * (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def step(
        self,
        closure: Callable[[], float] | None = None,
        scale: float | Tensor = 1.0,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.wrapped_optimizer.step(closure, scale=scale / self._factor, groups=groups)
        if self.scaler is not None:
            self.scaler.update()

    def zero_grad(self) -> None:
        """Drop the gradients and forget the factors remembered for them."""
        # not the wrapped optimizer's zero_grad: the masters' gradients are views that must stay
        for param in self.fp16_params:
            param.grad = None
        self._reset_factor()

    @property
    def skips_on_device(self) -> bool:
        """Whether a step can be left out on the device: not where the scale depends on it."""
        return self.scaler is None and super().skips_on_device


class MemoryEfficientFP16Optimizer(HalfPrecisionOptimizer):
    """Half-precision weights without fp32 copies; the wrapped optimizer computes in fp32.

    Args:
        cfg: the whole configuration.
        params: the half-precision parameters.
        optimizer: the optimizer over the same parameters.
        allow_unsupported: accept an optimizer that computes in half precision.

    Raises:
        UnsupportedError: if ``optimizer`` computes in half precision.
    """

    def __init__(
        self,
        cfg: Settings,
        params: Iterable[Tensor],
        optimizer: FairseqOptimizer,
        allow_unsupported: bool = False,
    ) -> None:
        if not (allow_unsupported or optimizer.supports_memory_efficient_fp16):
            raise UnsupportedError(
                f"{type(optimizer).__name__} cannot train without fp32 master weights; use --fp16 "
                "or --bf16 instead of the memory-efficient mode, or --optimizer adam"
            )
        super().__init__(cfg, params, optimizer)

    def load_state_dict(
        self, state_dict: StateDict, optimizer_overrides: Mapping[str, object] | None = None
    ) -> None:
        """Load a state, whose statistics torch rounds: they are put back in full."""
        super().load_state_dict(state_dict, optimizer_overrides)
        for _, saved, param in match_state(state_dict, self.optimizer):
            state = self.optimizer.state[param] if saved else {}
            for name, value in saved.items():
                if isinstance(value, Tensor) and isinstance(state.get(name), Tensor):
                    state[name] = torch.empty_like(state[name], dtype=value.dtype).copy_(value)


class FP16Optimizer(HalfPrecisionOptimizer):
    """Half-precision weights with fp32 master weights, on which the wrapped optimizer works.

    Args:
        cfg: the whole configuration.
        params: the half-precision parameters of the model.
        fp32_optimizer: the optimizer over the master weights.
        fp32_params: the master weights: one per parameter, or ``{device: one flat vector}``.
    """

    def __init__(
        self,
        cfg: Settings,
        params: Iterable[Tensor],
        fp32_optimizer: FairseqOptimizer,
        fp32_params: list[Tensor] | dict[torch.device, Tensor],
    ) -> None:
        super().__init__(cfg, params, fp32_optimizer)
        self.fp32_params = fp32_params
        self._weights = _views(self.fp16_params, fp32_params)
        # allocated once, so that the views of them below stay valid for the whole run
        for master in self._masters:
            master.grad = torch.zeros_like(master)
        self._grads = _views(self.fp16_params, fp32_params, gradients=True)
        self._stale = False

    @classmethod
    def build_optimizer(cls, cfg: FairseqConfig, params: Params, **kwargs: Any) -> FP16Optimizer:
        """Copy ``params`` to fp32 and build the optimizer of ``cfg.optimizer`` on the copies.

        fp16 keeps one flat vector like the original, unless ``--fp16-no-flatten-grads`` or what
        needs shapes or names is given (``--weight-decay-mode matrices``, ``--param-groups``,
        ``--optimizer muon``); bf16 never does.
        """
        passed: list[Any] = list(params)
        names, weights = list(named_trainable(passed)), trainable(passed)
        rules = setting(cfg, "optimization.param_groups", "")
        if isinstance(weights[0], dict):
            raise ConfigError("parameter groups are not supported with --fp16 and --bf16")
        flat = not (
            setting(cfg, "common.bf16", False)
            or setting(cfg, "common.fp16_no_flatten_grads", False)
            or setting(cfg, "optimizer.weight_decay_mode", "all") == "matrices"
            or groups_by_name(cfg.optimizer, rules)
        )
        masters = build_masters(weights, flat)
        fp32_params = list(masters.values()) if isinstance(masters, dict) else masters
        named = names and not flat
        to_update: list[Any] = (
            [dict(zip(names, fp32_params, strict=True))] if named else fp32_params
        )
        optimizer = build_optimizer(cfg.optimizer, to_update, param_groups=rules)
        if flat and not optimizer.supports_flat_params:
            raise ConfigError(
                f"{type(optimizer).__name__} needs the shapes of the parameters; "
                "add --fp16-no-flatten-grads"
            )
        return cls(cfg, weights, optimizer, masters, **kwargs)

    @property
    def fp32_optimizer(self) -> FairseqOptimizer:
        """The optimizer over the master weights."""
        return self.wrapped_optimizer

    @property
    def _masters(self) -> list[Tensor]:
        masters = self.fp32_params
        return list(masters.values()) if isinstance(masters, dict) else masters

    def names_of(self, named: Mapping[str, Tensor]) -> list[str]:
        """Return the names of the weights behind the masters; all that lie in a flat one."""
        names = {id(param): name for name, param in named.items()}
        own = [names.get(id(param), "") for param in self.fp16_params]
        if isinstance(self.fp32_params, dict):
            return own
        return super().names_of(dict(zip(own, self.fp32_params, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, the loss scale and the master weights."""
        return {**super().state_dict(), "fp32_params": [m.detach() for m in self._masters]}

    def load_state_dict(
        self, state_dict: StateDict, optimizer_overrides: Mapping[str, object] | None = None
    ) -> None:
        """Load a state of ours or of the original, after the weights of the model.

        Saved master weights are taken only if they round to the model's weights: a model that
        was edited or averaged since keeps its own.
        """
        super().load_state_dict(state_dict, optimizer_overrides)
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self.fp16_params)
            if "fp32_params" in state_dict:
                self._restore_masters(state_dict["fp32_params"])

    def _restore_masters(self, saved: list[Tensor]) -> None:
        masters = self._masters
        if [m.shape for m in saved] == [m.shape for m in masters]:
            # the comparison needs the saved values in place: self._weights are views of masters
            rebuilt = [master.clone() for master in masters]
            torch._foreach_copy_(masters, saved)
            rounded = [w.to(p.dtype) for w, p in zip(self._weights, self.fp16_params, strict=True)]
            if all(map(torch.equal, rounded, self.fp16_params)):
                return
            torch._foreach_copy_(masters, rebuilt)
        logger.warning(
            "the fp32 master weights of the checkpoint belong to other weights than the model's; "
            "they are rebuilt from the model"
        )

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        self._stale = True

    @torch.no_grad()
    def _collect(self) -> None:
        """Copy the model's gradients to the masters, once; a missing one counts as zero."""
        if not self._stale:
            return
        self._stale = False
        pairs = list(zip(self._grads, self.fp16_params, strict=True))
        present = [(ours, p.grad) for ours, p in pairs if p.grad is not None]
        if present:
            torch._foreach_copy_([ours for ours, _ in present], [grad for _, grad in present])
        for ours, param in pairs:
            if param.grad is None:
                # or the step would use what the update before left there
                ours.zero_()

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        self._collect()
        return super().clip_grad_norm(max_norm, aggregate_norm_fn)

    def step(
        self,
        closure: Callable[[], float] | None = None,
        scale: float | Tensor = 1.0,
        groups: Sequence[str] | None = None,
    ) -> None:
        self._collect()
        super().step(closure, scale, groups)
        with torch.no_grad():
            torch._foreach_copy_(self.fp16_params, self._weights)


def build_masters(params: list[Tensor], flat: bool) -> list[Tensor] | dict[torch.device, Tensor]:
    """Return fp32 copies of ``params``: one each, or one flat vector per device."""
    with torch.no_grad():
        if not flat:
            return [torch.nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in params]
        pieces: dict[torch.device, list[Tensor]] = {}
        for param in params:
            pieces.setdefault(param.device, []).append(param.detach().float().flatten())
        return {device: torch.nn.Parameter(torch.cat(p)) for device, p in pieces.items()}


def _views(
    params: list[Tensor],
    masters: list[Tensor] | dict[torch.device, Tensor],
    gradients: bool = False,
) -> list[Tensor]:
    """Return, for each of ``params``, its place in the masters (or in their gradients)."""

    def tensor_of(master: Tensor) -> Tensor:
        if gradients:
            assert master.grad is not None
            return master.grad
        return master.detach()

    if not isinstance(masters, dict):
        return [tensor_of(master) for master in masters]
    start = dict.fromkeys(masters, 0)
    views = []
    for param in params:
        flat, first = tensor_of(masters[param.device]), start[param.device]
        start[param.device] += param.numel()
        views.append(flat[first : start[param.device]].view(param.shape))
    return views

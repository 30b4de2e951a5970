"""The base of every optimizer: a thin coat over a ``torch.optim.Optimizer``.

The trainer speaks to this interface only; the wrappers for reduced precision implement it too.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairseq.distributed.utils import average_gradients
from fairseq.errors import CheckpointError, ConfigError, did_you_mean
from fairseq.optim.read_settings import learning_rates, pair
from fairseq.protocols import Settings, StateDict
from fairseq.utils import clip_grad_norm_

# torch's own type of a parameter group: "params" and its hyperparameters, by name.
Group = dict[str, Any]
# What an optimizer may be given: tensors, dicts name -> tensor, or groups.
Params = Iterable[Tensor] | Iterable[Group]
# The statistics of one parameter: tensors and counters, by name.
State = dict[str, Any]


class FairseqOptimizer:
    """An optimizer as the trainer sees it.

    A subclass sets ``self._optimizer`` to a ``torch.optim.Optimizer`` in its constructor.

    Attributes:
        splits_by_name: parameters are treated by their names, see :meth:`settings_by_name`.
    """

    splits_by_name = False
    cfg: Any  # of the class that the subclass was registered with

    def __init__(self, cfg: Settings) -> None:
        self.cfg = cfg

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The wrapped ``torch.optim.Optimizer``."""
        if not isinstance(getattr(self, "_optimizer", None), torch.optim.Optimizer):
            raise NotImplementedError(
                f"{type(self).__name__} must set self._optimizer to a torch.optim.Optimizer"
            )
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Keyword arguments of the wrapped optimizer, as the configuration states them."""
        raise NotImplementedError

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the wrapped optimizer."""
        return self.optimizer.param_groups

    @property
    def params(self) -> Iterator[Tensor]:
        """Every parameter that is optimized, in the order of the groups."""
        for group in self.param_groups:
            yield from group["params"]

    def names_of(self, named: Mapping[str, Tensor]) -> list[str]:
        """Return the names of :attr:`params`, which lie in ``named``; of others, an empty one."""
        names = {id(param): name for name, param in named.items()}
        return [names.get(id(param), "") for param in self.params]

    @staticmethod
    def settings_by_name(cfg: Any, named: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """Return settings of the parameter groups that parameters of these names belong to."""
        return {}

    def get_lr(self) -> float:
        """Return the learning rate in force, before the factors of ``--param-groups``."""
        groups = self.param_groups
        unscaled = next((g for g in groups if g.get("lr_scale", 1.0) == 1.0), None)
        return unscaled["lr"] if unscaled else groups[0]["lr"] / groups[0]["lr_scale"]

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group, times the factor that the group may have."""
        for group in self.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer, in the layout of ``torch.optim``."""
        return self.optimizer.state_dict()

    def load_state_dict(
        self, state_dict: StateDict, optimizer_overrides: Mapping[str, object] | None = None
    ) -> None:
        """Load a state; its hyperparameters win over the configuration, overrides over both.

        Overrides leave alone what ``--param-groups`` set for a group.

        Args:
            state_dict: what :meth:`state_dict` returned.
            optimizer_overrides: group settings to replace, such as ``{"weight_decay": 0.1}``.

        Raises:
            CheckpointError: if the state belongs to other parameters.
            ConfigError: if an override names no setting of this optimizer, or is no value for it.
        """
        check_state_fits(state_dict, self.optimizer)
        self.optimizer.load_state_dict(state_dict)
        for _, saved, param in match_state(state_dict, self.optimizer):
            state = self.optimizer.state[param] if saved else {}
            for name, value in saved.items():
                if state.get(name) is value and isinstance(value, Tensor):
                    state[name] = value.clone()  # updates must not write into the checkpoint
        for name, value in (optimizer_overrides or {}).items():
            known = [key for key in self.param_groups[0] if key != "params"]
            if name not in known:
                raise ConfigError(
                    f"--optimizer-overrides: this optimizer has no setting '{name}'"
                    f"{did_you_mean(name, known)}; it has {', '.join(known)}"
                )
            present = self.param_groups[0][name]
            if present is not None and _shape_of(value) != _shape_of(present):
                raise ConfigError(
                    f"--optimizer-overrides: {name} is like {present!r}, not {value!r}"
                )
            for group in self.param_groups:
                if name not in group.get("by_rule", ()):
                    group[name] = value * group.get("lr_scale", 1.0) if name == "lr" else value

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` (a 0-dim tensor) to the parameters."""
        loss.backward()

    def all_reduce_grads(self, module: object) -> None:
        """Reduce gradients over the workers, for modules that do not do so while going backward."""
        if hasattr(module, "all_reduce_grads"):
            module.all_reduce_grads()
        elif isinstance(module, torch.nn.Module):
            average_gradients(module)

    @torch.no_grad()
    def multiply_grads(self, c: float | Tensor) -> None:
        """Multiply all gradients by the constant ``c``, a number or a 0-dim tensor."""
        scale_([p.grad for p in self.params if p.grad is not None], c)

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Clip gradients and return their norm; see :func:`fairseq.utils.clip_grad_norm_`."""
        return clip_grad_norm_(self.params, max_norm, aggregate_norm_fn)

    def step(
        self,
        closure: Callable[[], float] | None = None,
        scale: float | Tensor = 1.0,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Update the parameters.

        Args:
            closure: recomputes the loss, for optimizers that need it.
            scale: the gradients are divided by it first.
            groups: names of parameter groups, for optimizers that support them.
        """
        options: dict[str, Any] = {}
        if isinstance(scale, Tensor) or scale != 1.0:
            if self.supports_step_with_scale:
                options["scale"] = scale
            else:
                self.multiply_grads(1.0 / scale)
        if self.supports_groups:
            options["groups"] = groups
        self.optimizer.step(closure, **options)

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        """Whether half-precision parameters are updated with arithmetic and state in fp32."""
        return getattr(self.optimizer, "supports_memory_efficient_fp16", False)

    @property
    def supports_step_with_scale(self) -> bool:
        """Whether the wrapped ``step`` takes ``scale``."""
        return getattr(self.optimizer, "supports_step_with_scale", False)

    @property
    def supports_groups(self) -> bool:
        """Whether the wrapped ``step`` takes ``groups``."""
        return getattr(self.optimizer, "supports_groups", False)

    @property
    def supports_flat_params(self) -> bool:
        """Whether all parameters may be handed over as one vector (not if shapes matter)."""
        return getattr(self.optimizer, "supports_flat_params", False)

    @property
    def skips_on_device(self) -> bool:
        """Whether :meth:`skip_unless` is there."""
        return getattr(self.optimizer, "skips_on_device", False)

    def skip_unless(self, finite: Tensor) -> None:
        """Let the next step change nothing if ``finite`` (0-dim, bool) is False; nobody reads it.

        The step counts all the same.
        """
        self.optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]

    def average_params(self) -> None:
        """Replace the parameters by an average, for optimizers that keep one."""


class ConfiguredOptimizer(FairseqOptimizer):
    """An optimizer whose class takes the learning rate and fields of the configuration.

    Args:
        cfg: of the class that the optimizer is registered with.
        params: tensors or torch parameter groups.

    Attributes:
        torch_class: what is wrapped.
        arguments: its keywords -> names of the fields.
        pairs: those keywords that take two numbers, which the configuration may hold as a text.
    """

    torch_class: ClassVar[Callable[..., torch.optim.Optimizer]]
    arguments: ClassVar[Mapping[str, str]] = {"weight_decay": "weight_decay"}
    pairs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: Settings, params: Params) -> None:
        super().__init__(cfg)
        self._optimizer = self._make(list(params))

    def _make(self, params: list[Any]) -> torch.optim.Optimizer:
        return type(self).torch_class(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"lr": learning_rates(self.cfg)[0]}
        for keyword, field in self.arguments.items():
            value = getattr(self.cfg, field)
            is_pair = keyword in self.pairs
            settings[keyword] = pair(value, f"--{field.replace('_', '-')}") if is_pair else value
        return settings


class LegacyFairseqOptimizer(FairseqOptimizer):
    """Base of plug-ins that are configured by a flat namespace, kept as ``self.args``."""

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        self.args = args


def scale_(gradients: list[Tensor], factor: float | Tensor) -> None:
    """Multiply every tensor of ``gradients`` in place by a number or a 0-dim tensor."""
    if gradients:
        if isinstance(factor, Tensor):
            factor = factor.to(gradients[0].device)
        torch._foreach_mul_(gradients, factor)


def named_trainable(params: Params) -> dict[str, Tensor]:
    """Return what requires a gradient in dicts ``name -> tensor``; nothing for other ``params``."""
    dicts: list[Any] = list(params)
    if any(not isinstance(p, dict) or _is_group(p) for p in dicts):
        return {}
    return {name: p for named in dicts for name, p in named.items() if p.requires_grad}


def _is_group(params: object) -> bool:
    return isinstance(params, dict) and not isinstance(params.get("params", params), (Tensor, dict))


def trainable(params: Params) -> list[Any]:
    """Return what an optimizer should see of ``params``: only what requires a gradient.

    Args:
        params: tensors, or dicts ``name -> tensor`` (flattened), or torch parameter groups
            (dicts with the key ``"params"``; they stay groups).

    Raises:
        ConfigError: if nothing requires a gradient.
    """
    items: list[Any] = list(params)
    if items and all(map(_is_group, items)):
        kept = [{**g, "params": [p for p in g["params"] if p.requires_grad]} for g in items]
        kept = [group for group in kept if group["params"]]
    else:
        if items and all(isinstance(p, dict) for p in items):
            items = [tensor for named in items for tensor in named.values()]
        kept = [p for p in items if p.requires_grad]
    if not kept:
        raise ConfigError("the optimizer got no parameter that requires a gradient")
    return kept


def check_state_fits(state_dict: StateDict, optimizer: torch.optim.Optimizer) -> None:
    """Raise CheckpointError unless groups, parameter counts and shapes of a state match.

    ``torch`` itself compares no shapes: a state of other parameters would fail, or be broadcast,
    in the middle of the first step.
    """
    remedy = (
        "It was saved for another model or precision (--fp16 without --fp16-no-flatten-grads keeps "
        "one flat vector) or --param-groups. Use the same flags, or start afresh with "
        "--reset-optimizer."
    )
    saved = [group["params"] for group in state_dict["param_groups"]]
    ours = [group["params"] for group in optimizer.param_groups]
    if [len(ids) for ids in saved] != [len(params) for params in ours]:
        raise CheckpointError(
            f"the optimizer state has groups of {[len(ids) for ids in saved]} parameters, "
            f"this run of {[len(params) for params in ours]}. {remedy}"
        )
    for index, state, param in match_state(state_dict, optimizer):
        for name, value in state.items():
            # a factored statistic has fewer dimensions than its parameter, a counter none
            same_rank = isinstance(value, Tensor) and value.dim() == param.dim() > 0
            if same_rank and value.shape != param.shape:
                raise CheckpointError(
                    f"the optimizer state '{name}' of parameter {index} has the shape "
                    f"{tuple(value.shape)}, the parameter {tuple(param.shape)}. {remedy}"
                )


def _shape_of(value: object) -> object:
    """Return 1 for a number, or the same of each part of a pair; others tell their type."""
    if isinstance(value, (tuple, list)):
        return [_shape_of(part) for part in value]
    is_number = isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
    return 1 if is_number else type(value)


def match_state(
    state_dict: StateDict, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[int, dict[str, Any], Tensor]]:
    """Yield ``(index, saved state, parameter)`` for every parameter, in the order of the groups."""
    for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        for index, param in zip(saved["params"], group["params"], strict=True):
            yield index, state_dict["state"].get(index, {}), param

"""The frame of our own update rules: one tensor at a time, arithmetic and state in fp32.

Half-precision parameters are widened, updated and rounded back, so every rule written on this
frame also serves the memory-efficient precision modes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq.optim.base import Group, State

# (parameter, gradient, state of the parameter); tensors in fp32 or fp64
Item = tuple[Tensor, Tensor, dict[str, Any]]


def zeros_like(param: Tensor) -> Tensor:
    """Return zeros of the type and shape of ``param``, laid out in memory as it is."""
    # to keep a layout on "meta", where only sizes are asked for, torch imports symbolic algebra
    return param.new_zeros(param.shape) if param.is_meta else torch.zeros_like(param)


class PerTensorOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` whose subclass states :meth:`init_state` and :meth:`rule`."""

    supports_memory_efficient_fp16 = True
    supports_step_with_scale = True
    supports_flat_params = True

    # torch asks its compiler to leave these alone, and imports it for that at their first call; it
    # is large, and optimizers are never compiled here
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def init_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        """Return the state of ``param`` (fp32 or fp64, any shape) before its first update."""
        raise NotImplementedError

    def rule(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Update ``param`` and ``state`` in place; ``grad`` has the shape and type of ``param``."""
        raise NotImplementedError

    def update(self, items: list[Item], group: Group, scale: float | Tensor) -> None:
        """Apply the rule to ``items``, whose gradients are still multiplied by ``scale``."""
        unit = not isinstance(scale, Tensor) and scale == 1.0
        for param, grad, state in items:
            self.rule(param, grad if unit else grad / scale, state, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, scale: float | Tensor = 1.0) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: recomputes the loss with gradients.
            scale: the gradients are divided by it.

        Returns:
            what ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            items: list[Item] = []
            for param in group["params"]:
                if param.grad is None:
                    continue
                narrow = param.dtype not in (torch.float32, torch.float64)
                # state starts from the wide tensor, and so is fp32 whatever the weights are
                wide = param.float() if narrow else param
                state = self.state[param]
                if not state:
                    state.update(self.init_state(wide, group))
                item = (wide, param.grad.to(wide.dtype), state)
                if narrow:  # one at a time: the wide copy is the only extra memory
                    self.update([item], group, scale)
                    param.copy_(wide)
                else:
                    items.append(item)
            self.update(items, group, scale)
        return loss

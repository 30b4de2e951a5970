"""Finding the module that breaks a training step: the first NaN or infinity, by name."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fairseq.utils import apply_to_sample

logger = logging.getLogger("fairseq.nan_detector")


class NanDetector:
    """Names the module that first produces a NaN or an infinity, inside a ``with`` block.

    A negative infinity in the forward pass does not count: masks are made of it. Looking at every
    output makes the host wait for the device: this is for one step, not for a whole training.

    Args:
        model: whose modules are watched.
        forward: look at the outputs of modules.
        backward: look at the gradients that modules hand down, and at those of parameters.

    Attributes:
        found: ``"forward"`` or ``"backward"`` -> name of the first such module; empty if all is
            well.
    """

    def __init__(self, model: nn.Module, forward: bool = True, backward: bool = True) -> None:
        self.model, self.forward, self.backward = model, forward, backward
        self.found: dict[str, str] = {}
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> NanDetector:
        """Begin to watch; nothing is compiled meanwhile, since compiled calls know no new hook."""
        self._hooks.enter_context(torch.compiler.set_stance("force_eager"))
        self._hooks.enter_context(warnings.catch_warnings())
        # torch tells of every module that looks up embeddings: there is nothing below it
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for name, module in self.model.named_modules():
            name = name or type(module).__name__
            if self.forward:
                look = functools.partial(self._note, "forward", name)
                self._hooks.enter_context(module.register_forward_hook(look))
            if self.backward:
                look = functools.partial(self._note, "backward", name)
                self._hooks.enter_context(module.register_full_backward_hook(look))
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop watching; name the parameters whose gradients are not finite."""
        self._hooks.close()
        if not self.backward:
            return
        bad = [name for name, p in self.model.named_parameters() if not _is_finite(p.grad)]
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            logger.warning("gradients are not finite: %s%s", ", ".join(bad[:5]), more)

    def _note(
        self,
        direction: str,
        name: str,
        module: nn.Module,
        first: object,
        second: object,
    ) -> None:
        """Report the first result that is not finite; a hook, forward or backward.

        ``first`` and ``second`` are what torch hands to hooks: tensors in containers, of a forward
        pass inputs and outputs, of a backward pass gradients of inputs and of outputs.
        """
        # a backward hook gets what comes out first, the gradient of the inputs
        origin, result = (first, second) if direction == "forward" else (second, first)
        masks = direction == "forward"
        if direction in self.found or _is_finite(result, masks):
            return
        self.found[direction] = name
        cause = "from finite values" if _is_finite(origin, masks) else "so was what it got"
        logger.warning("not finite in the %s pass: %s (%s)", direction, name, cause)


def look_for_cause(model: nn.Module, run_again: Callable[[], None]) -> None:
    """Run an update that failed once more; log the module that broke it.

    A report that fails, on one process of several, ends none of them.
    """
    try:
        with NanDetector(model):
            run_again()
    except RuntimeError as error:  # hooks do not suit every module, nor do they fit any memory
        logger.warning("the module that broke the update cannot be told: %s", error)


def _is_finite(values: object, masks: bool = False) -> bool:
    """Tell whether all floating tensors inside nested containers are finite.

    Args:
        values: containers, tensors and others.
        masks: let negative infinities pass.
    """
    finite = True

    def look(tensor: Tensor) -> Tensor:
        nonlocal finite
        if tensor.is_floating_point():
            # NaN fails this comparison, too
            good = tensor < torch.inf if masks else tensor.isfinite()
            finite = finite and bool(good.all())
        return tensor

    apply_to_sample(look, values)
    return finite

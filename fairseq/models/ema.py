"""An exponential moving average of a model's weights.

``e <- d e + (1 - d) p`` after every update for each entry of the state dict; ``d`` is 0 until
``ema_start_update``. Source: Polyak and Juditsky 1992; Tarvainen and Valpola 2017, equation 1.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.aliases import NAMES
from fairseq.config.sections import EMAConfig
from fairseq.errors import CheckpointError
from fairseq.lazy import lazy_names

logger = logging.getLogger(__name__)
__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])


class EMA:
    """Keeps an averaged copy of ``model``, in fp32 if asked to or if the model is in half.

    Args:
        model: whose weights are averaged.
        config: settings with the fields of ``EMAConfig``.
        device: where the copy lives; the model's device if None.
        skip_keys: entries of the state dict that are copied, not averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        config: EMAConfig,
        device: torch.device | str | None = None,
        skip_keys: Collection[str] | None = None,
    ) -> None:
        self.config = config
        self.decay = float(config.ema_decay)
        self.skip_keys = set(skip_keys or ())
        self.update_freq_counter = 0
        self.fp32_params: dict[str, Tensor] = {}
        # a copy, not a second build: whatever a plug-in has added comes along
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False)
        if device is not None:
            self.model = self.model.to(device)
        # in half precision 1 - decay = 1e-4 of a weight is rounded away: nothing would move
        self.fp32 = config.ema_fp32 or any(
            value.dtype in (torch.float16, torch.bfloat16)
            for value in self.model.state_dict().values()
        )
        if self.fp32:
            self.build_fp32_params()

    def get_model(self) -> nn.Module:
        """Return the model with averaged weights."""
        return self.model

    def build_fp32_params(self, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Start the average in fp32 beside the model that is rounded from it.

        Args:
            state_dict: values to start from; the averaged model's if None.
        """
        source = self.model.state_dict() if state_dict is None else state_dict
        self.fp32_params = {
            # clones, so that the average does not move with the tensors it started from
            name: value.float().clone() if value.is_floating_point() else value.clone()
            for name, value in source.items()
        }

    def restore(self, state_dict: Mapping[str, Tensor], build_fp32_params: bool = False) -> None:
        """Load averaged weights; what they lack begins at the weights of the model.

        The original saves no final norm of a decoder among them: its averaged copy loses it.

        Args:
            state_dict: as saved.
            build_fp32_params: also start the fp32 average from them.
        """
        averages = self.model.state_dict()
        missing = [name for name in averages if name not in state_dict]
        # all missing is another model, which load_state_dict below tells better
        if missing and len(missing) < len(averages):
            logger.warning(
                "the moving average lacks %s: it starts here, from the model's", ", ".join(missing)
            )
            state_dict = {**state_dict, **{name: averages[name] for name in missing}}
        try:
            self.model.load_state_dict(dict(state_dict), strict=False)
        except RuntimeError as error:  # strict=False still refuses other shapes
            raise CheckpointError(f"the moving average does not fit the model: {error}") from error
        if build_fp32_params:
            self.build_fp32_params(state_dict)

    def get_decay(self) -> float:
        """Return the decay in force."""
        return self.decay

    def step(self, new_model: nn.Module, updates: int | None = None) -> None:
        """Take the weights of ``new_model`` into the average.

        Args:
            new_model: the model that was just updated.
            updates: number of updates done; needed for ``ema_start_update``.
        """
        if updates is not None:
            # a decay of 0 copies the weights: until then the average is the model itself
            self.decay = 0.0 if updates < self.config.ema_start_update else self.config.ema_decay
        if self.config.ema_update_freq > 1:
            self.update_freq_counter += 1
            if self.update_freq_counter < self.config.ema_update_freq:
                return
            self.update_freq_counter = 0
        self._step_internal(new_model, updates)

    @torch.no_grad()
    def _step_internal(self, new_model: nn.Module, updates: int | None = None) -> None:
        averages = self.model.state_dict()
        moved: set[int] = set()
        for name, value in new_model.state_dict().items():
            target = averages[name]
            # counters and version marks are states, not weights: an average of them means nothing
            if name in self.skip_keys or "version" in name or not value.is_floating_point():
                target.copy_(value)
                continue
            # a tied table has several names here, and one memory
            if not self.fp32 and target.data_ptr() in moved:
                continue
            moved.add(target.data_ptr())
            average = self.fp32_params[name] if self.fp32 else target
            average.mul_(self.decay).add_(value.to(average), alpha=1 - self.decay)
            if self.fp32:
                target.copy_(average)

    def reverse(self, model: nn.Module) -> nn.Module:
        """Load the averaged weights into ``model``."""
        model.load_state_dict(self.model.state_dict(), strict=False)
        return model

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint's ``extra_state`` keeps: ``ema`` and, if any, fp32 values."""
        kept: dict[str, Any] = {"ema": self.model.state_dict()}
        if self.fp32:
            kept["ema_fp32_params"] = self.fp32_params
        return kept

    def load_state(self, extra_state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned.

        A checkpoint without an average starts a new one from its weights, with a warning.
        """
        if "ema" not in extra_state:
            logger.warning("the checkpoint holds no moving average; a new one starts here")
            if self.fp32:
                self.build_fp32_params()
            return
        self.restore(extra_state["ema"])
        if self.fp32:
            # other runs have saved only what their averaged model holds
            exact = extra_state.get("ema_fp32_params", extra_state["ema"])
            self.build_fp32_params({**self.model.state_dict(), **exact})

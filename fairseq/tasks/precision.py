"""The precision of a run: the type of its weights, of its inputs, and of its arithmetic."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from torch import Tensor

from fairseq import utils
from fairseq.config.sections import CommonConfig, FairseqConfig
from fairseq.optim.amp_optimizer import amp_dtype

logger = logging.getLogger("fairseq.trainer_state")


def weights_dtype(common: CommonConfig, device: torch.device) -> torch.dtype | None:
    """Return the type of a run's weights, None for what its model is built with."""
    if common.fp16 and device.type == "cpu":
        logger.warning("half precision is slow on a CPU; bf16 (--bf16) or fp32 is faster")
    return torch.float16 if common.fp16 else torch.bfloat16 if common.bf16 else None


def autocast(cfg: FairseqConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return what a forward pass runs in: mixed precision if ``--amp`` asks for it."""
    if not cfg.common.amp:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=amp_dtype(cfg, device))


def to_device(sample: object, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Return a batch on ``device``, its inputs in the type of the weights."""
    sample = utils.move_to_device(sample, device)
    return sample if dtype is None else inputs_as(sample, dtype)


def inputs_as(sample: object, dtype: torch.dtype) -> Any:
    """Return a batch whose fp32 model inputs have the type of the weights.

    Labels, log-probabilities of a teacher and weights of a loss stay as they are: in bf16, 0.1 is
    0.1001. Inputs are what lies in ``net_input`` (or ``net_input0`` and so on); where there is no
    such key, everything but ``target``.
    """
    if not isinstance(sample, dict):
        return utils.apply_to_sample(lambda t: _cast(t, dtype), sample)
    named = [key for key in sample if str(key).startswith("net_input")]
    inputs = named or [key for key in sample if key != "target"]
    cast = {key: utils.apply_to_sample(lambda t: _cast(t, dtype), sample[key]) for key in inputs}
    return {**sample, **cast}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor

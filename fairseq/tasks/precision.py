"""The precision of a run: the type of its weights, of its inputs, and of its arithmetic."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq import utils
from fairseq.config.sections import CommonConfig, FairseqConfig
from fairseq.optim.amp_optimizer import amp_dtype

logger = logging.getLogger("fairseq.trainer_state")

PRODUCT = 256  # rows and columns of the matrices that types are compared with
SOME_TIME = 0.05  # seconds that a type is given
SLOWER = 1.2  # times; less is noise


def weights_dtype(common: CommonConfig, device: torch.device) -> torch.dtype | None:
    """Return the type of a run's weights, None for what its model is built with."""
    if common.fp16 and device.type == "cpu":
        logger.warning("half precision is slow on a CPU; bf16 (--bf16) or fp32 is faster")
    return torch.float16 if common.fp16 else torch.bfloat16 if common.bf16 else None


def product_seconds(dtype: torch.dtype) -> float:
    """Return how long a product of two small matrices takes on the CPU, the best of some."""
    a = torch.ones(PRODUCT, PRODUCT, dtype=dtype)  # draws no random number
    a @ a  # the first one prepares what the others use
    best, began = float("inf"), time.perf_counter()
    while (started := time.perf_counter()) < began + SOME_TIME or best == float("inf"):
        a @ a
        best = min(best, time.perf_counter() - started)
    return best


def warn_if_slow(
    cfg: FairseqConfig,
    device: torch.device,
    seconds: Callable[[torch.dtype], float] = product_seconds,
) -> None:
    """Warn if bf16 is asked for on a CPU that is faster without it, which only a try can tell.

    Args:
        cfg: the whole configuration.
        device: where the run computes.
        seconds: how long a product takes in a type.
    """
    common = cfg.common
    half = common.bf16 or (common.amp and amp_dtype(cfg, device) == torch.bfloat16)
    if device.type != "cpu" or not half:
        return
    narrow, wide = seconds(torch.bfloat16), seconds(torch.float32)
    if narrow > SLOWER * wide:
        logger.warning(
            "%s slows this processor down: a product of two %d x %d matrices takes %.1f times as "
            "long in bf16 as in fp32 (%.2f against %.2f ms); leave it out to train faster",
            "--bf16" if common.bf16 else "--amp",
            PRODUCT,
            PRODUCT,
            narrow / wide,
            1000 * narrow,
            1000 * wide,
        )


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

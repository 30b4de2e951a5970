"""Where to compute."""

from __future__ import annotations

import logging
import os

import torch

from fairseq.config.sections import FairseqConfig
from fairseq.errors import ConfigError

logger = logging.getLogger("fairseq.device")


def choose_device(cfg: FairseqConfig) -> torch.device:
    """Return the device of this process and make it current.

    Args:
        cfg: the whole configuration: ``common.device``, ``common.cpu`` and the process's GPU.

    Raises:
        ConfigError: if the device that was asked for is not there.
    """
    common = cfg.common
    wanted = "cpu" if common.cpu else common.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    if wanted == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: no GPU is usable here; use --device cpu")
        device = torch.device(
            # more processes than GPUs share them in turn
            "cuda",
            cfg.distributed_training.device_id % torch.cuda.device_count(),
        )
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = common.allow_tf32
        torch.backends.cudnn.allow_tf32 = common.allow_tf32
    elif wanted == "mps" and not _has_mps():
        raise ConfigError("--device mps: no Apple GPU is usable here; use --device cpu")
    else:
        device = torch.device(wanted)
    if common.deterministic:
        # read by cuBLAS when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # a few kernels have no deterministic counterpart: torch names them, and the run goes on
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def _has_mps() -> bool:
    return bool(getattr(torch.backends, "mps", None)) and torch.backends.mps.is_available()

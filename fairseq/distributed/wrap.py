"""Wrapping a model for several processes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fairseq.config.sections import DistributedTrainingConfig
from fairseq.distributed import utils
from fairseq.errors import UnsupportedError

# newer versions of torch call the flag otherwise
_BUFFER_FLAG = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class ModuleProxyWrapper(nn.Module):
    """Forwards unknown attributes to the model inside a wrapper such as DDP.

    Args:
        module: a wrapper whose ``module`` is the model.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        assert hasattr(module, "module"), "ModuleProxyWrapper expects a wrapped model"
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            pass
        wrapper: Any = super().__getattr__("module")
        return getattr(wrapper, name) if hasattr(wrapper, name) else getattr(wrapper.module, name)

    def forward(self, *args: object, **kwargs: object) -> Any:
        """Run the wrapper."""
        return self.module(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the model, without prefixes."""
        return self.module.module.state_dict(*args, **kwargs)  # type: ignore[union-attr]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the state of the model."""
        return self.module.module.load_state_dict(*args, **kwargs)  # type: ignore[union-attr]


def wrap_model(cfg: DistributedTrainingConfig, model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model, wrapped if there is more than one process.

    Under ``legacy_ddp`` it is not: the trainer averages gradients after the backward pass.

    Args:
        cfg: the distributed section.
        model: on ``device`` already.
        device: where this process computes.

    Raises:
        UnsupportedError: for a backend that does not exist here.
    """
    if utils.get_world_size() == 1 or cfg.ddp_backend in ("legacy_ddp", "no_c10d"):
        return model
    if cfg.ddp_backend == "fully_sharded":
        raise UnsupportedError("--ddp-backend fully_sharded is not available yet; use pytorch_ddp")
    buffers: dict[str, Any] = {_BUFFER_FLAG: cfg.broadcast_buffers}
    wrapped = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        bucket_cap_mb=cfg.bucket_cap_mb,
        find_unused_parameters=cfg.find_unused_parameters,
        gradient_as_bucket_view=cfg.gradient_as_bucket_view,
        **buffers,
    )
    return ModuleProxyWrapper(wrapped)

"""Several processes that train one model."""

from __future__ import annotations

from fairseq.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "utils": "fairseq.distributed.utils",
        "ModuleProxyWrapper": "fairseq.distributed.wrap",
        "wrap_model": "fairseq.distributed.wrap",
    },
)

"""An old import path of :class:`MultiheadAttention`."""

from fairseq.modules.transformer_layer import MultiheadAttention

__all__ = ["MultiheadAttention"]

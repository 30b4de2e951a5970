"""An old import path of :func:`init_bert_params`."""

from fairseq.modules.transformer_encoder import init_bert_params

__all__ = ["init_bert_params"]

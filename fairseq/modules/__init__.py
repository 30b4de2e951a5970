"""Building blocks of the models, under the names that plug-ins import."""

from __future__ import annotations

from fairseq.aliases import NAMES
from fairseq.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        **NAMES[__name__],
        "AdaptiveInput": "fairseq.modules.adaptive_input",
        "AdaptiveSoftmax": "fairseq.modules.adaptive_softmax",
        "LayerNorm": "fairseq.modules.pointwise",
        "LearnedPositionalEmbedding": "fairseq.modules.positions",
        "PositionalEmbedding": "fairseq.modules.positions",
        "SinusoidalPositionalEmbedding": "fairseq.modules.positions",
        "TransformerLayer": "fairseq.modules.transformer_layer",
        "TransformerEncoder": "fairseq.modules.transformer_encoder",
        "init_bert_params": "fairseq.modules.transformer_encoder",
        "gelu": "fairseq.modules.pointwise",
        "gelu_accurate": "fairseq.modules.pointwise",
    },
)

"""RoBERTa and its variants."""

from __future__ import annotations

from fairseq.aliases import NAMES
from fairseq.lazy import lazy_names

_MODEL = "fairseq.models.roberta.model"

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(
            (
                "RobertaClassificationHead",
                "RobertaEncoder",
                "RobertaLMHead",
                "RobertaModel",
                "base_architecture",
                "roberta_base_architecture",
                "roberta_large_architecture",
                "roberta_prenorm_architecture",
                "xlm_architecture",
            ),
            _MODEL,
        ),
        **NAMES[__name__],
        "RobertaConfig": "fairseq.models.roberta.config",
        "init_bert_params": "fairseq.modules.transformer_encoder",
        "RobertaHubInterface": "fairseq.models.roberta.hub_interface",
        "hub_interface": "fairseq.models.roberta.hub_interface",
        "model": _MODEL,
    },
)

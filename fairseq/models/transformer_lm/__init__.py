"""Causal language models: settings, presets, the decoder stack and the model around it."""

from __future__ import annotations

from fairseq import catalog
from fairseq.lazy import lazy_names

# the functions of the architectures, which the original keeps here
_PRESETS = {t.partition(":")[2] for m, t in catalog.ARCHITECTURES.values() if m == "transformer_lm"}
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(
            {"base_lm_architecture", "base_gpt3_architecture", *_PRESETS},
            "fairseq.models.transformer_lm.presets",
        ),
        "DEFAULT_MAX_TARGET_POSITIONS": "fairseq.models.transformer_lm.config",
        "TransformerDecoder": "fairseq.models.transformer_lm.decoder",
        "TransformerLanguageModel": "fairseq.models.transformer_lm.model",
        "TransformerLanguageModelConfig": "fairseq.models.transformer_lm.config",
    },
)

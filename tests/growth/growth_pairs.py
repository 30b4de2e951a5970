"""Tiny models of both families with weights that are nothing special, and their logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.growth.methods import GROWTH, Options
from fairseq.growth.sizes import resized
from fairseq.models.roberta import RobertaConfig, RobertaModel
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig

DICTIONARY = Dictionary()
for _word in range(9):
    DICTIONARY.add_symbol(f"w{_word}")
PAD, V = DICTIONARY.pad(), len(DICTIONARY)
TOKENS = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 4, 2, PAD, PAD]])
CLASSES = {
    "encoder": (RobertaModel, RobertaConfig),
    "decoder": (TransformerLanguageModel, TransformerLanguageModelConfig),
}
SIZES = {"layers": 2, "embed_dim": 8, "ffn_embed_dim": 12, "attention_heads": 2}


def a_config(family: str, **settings: Any) -> Any:
    """Return a configuration of two layers, eight channels, two heads."""
    sizes = {f"{family}_{name}": value for name, value in SIZES.items()}
    if family == "encoder":
        return RobertaConfig(**{**sizes, "max_positions": 10, **settings})
    widths = {"decoder_input_dim": 8, "decoder_output_dim": 8, "tokens_per_sample": 12}
    return TransformerLanguageModelConfig(
        **{**sizes, **widths, "max_target_positions": 12, "activation_fn": "gelu", **settings}
    )


def build(config: Any, seed: int = 0) -> Any:
    """Return a model in fp64 whose every weight is drawn, norms and biases too."""
    torch.manual_seed(seed)
    task = SimpleNamespace(
        cfg=SimpleNamespace(tokens_per_sample=12),
        source_dictionary=DICTIONARY,
        target_dictionary=DICTIONARY,
        max_positions=lambda: 12,
    )
    family = "encoder" if isinstance(config, RobertaConfig) else "decoder"
    model = CLASSES[family][0].build_model(config, task).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name and "norm" not in name:
                continue
            weight.add_(torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.2))
    return model


def logits_of(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    """Return the logits, or hidden states of models without head, where there are tokens."""
    with torch.no_grad():
        output, _ = model(tokens, features_only=model.config.head == "none")
    return output[tokens.ne(PAD)]


def grown(method: str, model: Any, target: Any, **options: Any) -> Any:
    """Return the model that a method makes, loaded from its state."""
    state = GROWTH[method](model.state_dict(), model.config, target, Options(**options))
    result = build(target, seed=9)
    result.load_state_dict(state)
    return result


def change(method: str, family: str, settings: dict[str, Any], **sizes: Any) -> float:
    """Return by how much logits change at most when a model grows."""
    model = build(a_config(family, **settings))
    eps, dtype = sizes.pop("eps", None), sizes.pop("dtype", torch.float64)
    options = sizes.pop("options", {})
    model.to(dtype)
    target = resized(model.config, **sizes)
    if eps is not None:
        target.layer_norm_eps = eps
    after = grown(method, model, target, **options).to(dtype)
    return float((logits_of(after) - logits_of(model)).abs().max())

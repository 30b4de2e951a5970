"""GPT-2 and GPT-NeoX of Hugging Face as ``transformer_lm`` checkpoints, compared when written.

A dictionary needs symbols for padding and for the unknown, which these models do not have. Where
the embedding table has no rows to spare, two are added after the last one, each the mean of all
rows: their logit is then the mean of the logits, which is never above the greatest one and at
least log V below their log-sum-exp, so that neither gets more than 1/V of the probability. The
logits of all other ids are theirs.

Shapes: V rows of the embedding table, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import UnsupportedError
from fairseq.export import decoder_out, decoder_tokenizer, encoder_out
from fairseq.export.compare import ODD_TEXTS, same_tokens
from fairseq.export.decoder_names import CAUSAL, OUTPUT, TABLE, CausalFamily, State, to_ours
from fairseq.export.encoder_names import OUR_ACTS
from fairseq.export.model_files import write_ours

_OUR_ACTS = {
    **OUR_ACTS, "gelu_fast": "gelu_accurate", "gelu_pytorch_tanh": "gelu_accurate",
    "silu": "swish", "swish": "swish", "tanh": "tanh", "linear": "linear",
}  # fmt: skip
# Settings of theirs with which they compute something else: name -> the values we know.
_KNOWN: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "add_cross_attention": (False, None),
    "do_layer_norm_before": (True, None),
    "_remove_final_layer_norm": (False, None),
    "layer_norm_elementwise_affine": (True, None),
    "enable_bias": (True, None),
}


def convert(
    transformers: ModuleType,
    source: Path,
    clean: Path,
    folder: Path,
    out: Path,
    sentences: Sequence[str],
    weights: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Write ``model.pt``, ``dict.txt`` and the encoder's file into a folder, and compare.

    Args:
        clean: a copy of ``source`` that transformers may read (``plain_folder``).
        folder: an empty folder, which will be called ``out``.
        sentences: on which both models are compared, beside random tokens.

    Returns:
        ``{"model_type", "head", "tokenizer", "added_rows", "sentences", "max_abs_difference",
        ...}``.

    Raises:
        CheckpointError: if weights are missing, or the imported model differs.
        UnsupportedError: for settings that ``transformer_lm`` does not have.
    """
    described = transformers.AutoConfig.from_pretrained(str(clean)).to_dict()
    family = CAUSAL[described["model_type"]]
    state, settings, tokenizer, dictionary, added = read(source, described, weights)
    dictionary.save(folder / "dict.txt")
    if dictionary.nspecial:
        settings["add_bos_token"] = described.get("bos_token_id") == dictionary.bos()
    encoder = decoder_tokenizer.save_encoder(folder, out, tokenizer, dictionary)
    split = encoder.pop("tokenizer")
    state = {"decoder.version": torch.tensor([3.0]), **state}
    write_ours(folder, out, state, {**settings, **encoder})
    hub = encoder_out.load_ours(folder / "model.pt", folder)
    their_model = getattr(transformers, family.classes[settings["head"] == "none"])
    their_model = their_model.from_pretrained(str(clean)).float().eval()
    tokens = []
    if not split.startswith("none"):
        texts = [*sentences, *ODD_TEXTS]
        tokens = decoder_out.our_tokens(hub, texts)
        its = transformers.AutoTokenizer.from_pretrained(str(clean))
        first = decoder_out.first_symbol(hub)
        front = [] if first is None else [dictionary.index(first)]
        same_tokens(
            lambda text: {"input_ids": [*front, *its(text, add_special_tokens=False)["input_ids"]]},
            texts,
            tokens,
            dictionary.unk(),
            len(dictionary) - 1,
        )
    limit = min(int(hub.model.max_positions()), settings["max_target_positions"])
    tokens += decoder_out.random_tokens(dictionary, limit)
    agreement = decoder_out.compare(hub, their_model, tokens, tokens)
    return {
        "model_type": family.model_type,
        "head": settings["head"],
        "tokenizer": split,
        "added_rows": added,
        "sentences": len(sentences) if not split.startswith("none") else 0,
        **agreement.facts(),
    }


def read(
    source: Path, described: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[State, dict[str, Any], decoder_tokenizer.FoundTokenizer, Dictionary, int]:
    """Return a decoder in our terms: weights, settings, tokenizer, dictionary, and added rows."""
    family, settings = CAUSAL[described["model_type"]], our_settings(described)
    heads = settings["decoder_attention_heads"]
    state = to_ours(weights, family, heads, described.get("attention_bias", True))
    settings |= settle_head(state, described, family)
    tokenizer, rows = decoder_tokenizer.find_tokenizer(source), len(state[TABLE])
    dictionary = decoder_tokenizer.make_dictionary(tokenizer, described, rows)
    add_rows(state, len(dictionary) - rows)
    return state, settings, tokenizer, dictionary, len(dictionary) - rows


# -- settings ------------------------------------------------------------------------------------


def our_settings(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return our settings of one of their models, but for its head.

    Raises:
        UnsupportedError: if ``transformer_lm`` cannot compute the same.
    """
    for name, known in _KNOWN.items():
        if described.get(name) not in known:
            raise UnsupportedError(f"{name} {described[name]!r} is not supported")
    if described.get("word_embed_proj_dim", described.get("hidden_size")) != described.get(
        "hidden_size"
    ):
        raise UnsupportedError(
            f"word_embed_proj_dim {described['word_embed_proj_dim']} is not hidden_size "
            f"{described['hidden_size']}: embeddings of another width are not supported"
        )
    family = CAUSAL[described["model_type"]]
    value = {ours: described[their_name] for ours, their_name in family.settings.items()}
    eps = described.get("layer_norm_eps", described.get("layer_norm_epsilon", 1e-5))
    if value["act"] not in _OUR_ACTS:
        raise UnsupportedError(f"the activation {value['act']!r} is not supported")
    rotary = family.positions is None
    learned = {"position": "learned", "position_offset": family.first_position}
    return {
        "arch": "transformer_lm",
        "task": "language_modeling",
        "tokens_per_sample": value["length"],
        "max_target_positions": value["length"],
        "decoder_layers": value["layers"],
        "decoder_embed_dim": value["width"],
        "decoder_input_dim": value["width"],
        "decoder_output_dim": value["width"],
        "decoder_ffn_embed_dim": value["inner"] or 4 * value["width"],
        "decoder_attention_heads": value["heads"],
        "decoder_normalize_before": True,
        "no_scale_embedding": True,
        "activation_fn": _OUR_ACTS[value["act"]],
        "dropout": value["dropout"],
        "attention_dropout": value["attention"],
        "layer_norm_eps": eps,
        **(_rotary(described) if rotary else learned),
    }


def _rotary(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of rotary positions and of the residual."""
    rope = described.get("rope_parameters") or described.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta", described.get("rotary_emb_base", 10000))
    if kind != "default" or base != 10000:
        raise UnsupportedError(
            f"rotary positions of type {kind!r} and base {base}: only type 'default' and base "
            "10000 are supported"
        )
    fraction = rope.get("partial_rotary_factor", described.get("rotary_pct", 0.25))
    return {
        "position": "rotary",
        "rotary_fraction": fraction,
        "parallel_residual": described["use_parallel_residual"],
    }


def settle_head(state: State, described: Mapping[str, Any], family: CausalFamily) -> Any:
    """Return the settings of the head; drop a copy of a tied table, or add one.

    An untied model whose file lacks the head is a headless one, as headless-lm publishes them.

    Raises:
        UnsupportedError: if the model is of another class.
    """
    named = described.get("architectures") or [family.classes[OUTPUT not in state]]
    if named[0] not in family.classes:
        raise UnsupportedError(
            f"{named[0]} cannot be imported, only {' and '.join(family.classes)}"
        )
    tied = bool(described.get("tie_word_embeddings"))
    if named[0] == family.classes[1] or not (tied or OUTPUT in state):
        state.pop(OUTPUT, None)
        return {"head": "none", "criterion": "contrastive_weight_tying"}
    if tied:
        state[OUTPUT] = state[TABLE]
    return {
        "head": "vocabulary",
        "criterion": "cross_entropy",
        "share_decoder_input_output_embed": tied,
    }


def add_rows(state: State, added: int) -> None:
    """Add rows to the tables, in place: the mean of those they have."""
    for name in (TABLE, OUTPUT):
        if name in state:
            mean_C = state[name].mean(0)
            state[name] = torch.cat([state[name], mean_C.expand(added, -1)])

"""Models of Hugging Face as checkpoints of ours, compared before the result gets its name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fairseq.errors import CheckpointError, UnsupportedError
from fairseq.export import decoder_in, encoder_out, encoder_tokenizers, heads, sentencepiece_files
from fairseq.export.compare import ODD_TEXTS, Agreement, same_tokens
from fairseq.export.decoder_names import CAUSAL
from fairseq.export.encoder_names import ENCODER, FAMILIES, HEAD, OUR_ACTS, to_ours
from fairseq.export.loaded import TheirTokenizer
from fairseq.export.model_files import read_weights, sound_folder, write_ours
from fairseq.export.plain_folder import plain_folder, read_json
from fairseq.files.folders import new_folder
from fairseq.files.io import require_file

# Families that are RoBERTa with another tokenizer.
FAMILY_OF = {"xlm-roberta": "roberta", "camembert": "roberta"}


def from_huggingface(
    source: Path, out: Path, sentences: Sequence[str] | None = None, force: bool = False
) -> dict[str, Any]:
    """Import a model folder as ``model.pt``, ``dict.txt`` and the file of its text encoder.

    RoBERTa, XLM-R, CamemBERT, BERT and DistilBERT become ``roberta``; GPT-2, GPT-NeoX and OPT
    ``transformer_lm``. A classifier of sentences comes with its head and the names of its labels.

    Args:
        source: the folder.
        out: the folder to make.
        sentences: on which both models are compared.
        force: replace ``out``.

    Returns:
        ``{"model_type", "head", "sentences", "max_abs_difference"}`` and, of causal language
        models, ``"tokenizer"`` and ``"added_rows"``.

    Raises:
        CheckpointError: if weights are missing, or the imported model differs.
        UnsupportedError: for other kinds of models.
    """
    transformers = encoder_out.require_transformers()
    with sound_folder(source):
        return _convert(transformers, source, out, sentences, force)


def _convert(
    transformers: ModuleType, source: Path, out: Path, sentences: Sequence[str] | None, force: bool
) -> dict[str, Any]:
    """Do the work of :func:`from_huggingface`; a damaged folder may raise anything."""
    described = read_json(
        require_file(source / "config.json", "configuration", "Is this a model folder?")
    )
    kind = described.get("model_type")
    if kind not in (*FAMILIES, *FAMILY_OF, *CAUSAL):
        known = ", ".join([*FAMILIES, *FAMILY_OF, *CAUSAL])
        raise UnsupportedError(f"{source}: model_type {kind!r} cannot be imported; {known} can")
    sentences = list(sentences or encoder_out.default_sentences())
    if kind in CAUSAL:
        with new_folder(out, force, source) as folder, plain_folder(source) as clean:
            their_weights = read_weights(source)
            result = decoder_in.convert(
                transformers, source, clean, folder, out, sentences, their_weights
            )
        return result
    shape = FAMILY_OF.get(kind, kind)
    weights = read_weights(source)
    _refuse(described, shape, weights)
    classifies = heads.of_model(described, weights, shape)
    state = to_ours(weights, FAMILIES[shape], bool(described.get("tie_word_embeddings", True)))
    if classifies:
        state = {name: value for name, value in state.items() if not name.startswith(HEAD)}
        state.update(heads.to_ours(weights, shape))
    with new_folder(out, force, source) as folder, plain_folder(source) as clean:
        settings = encoder_settings(described, shape, state)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(clean))
        dictionary, encoder = _import_tokenizer(tokenizer, source, folder, out, kind)
        dictionary.save(folder / "dict.txt")
        if classifies:
            settings.update(heads.our_settings(described, shape))
            heads.write_dictionaries(folder, dictionary, described)
        rows = len(state[f"{ENCODER}embed_tokens.weight"])
        if rows < len(dictionary):
            raise CheckpointError(
                f"{source}: the tokenizer has {len(dictionary)} symbols, the table {rows} rows"
            )
        state = {f"{ENCODER}version": torch.tensor([3.0]), **state}
        write_ours(folder, out, state, {**settings, **encoder})
        agreement = _compare(transformers, clean, folder, sentences, tokenizer, classifies)
        agreement.check()
    left = sorted({key for key in weights if any(part in key for part in heads.UNUSED)})
    left = [] if classifies and shape == "bert" else left
    return {
        "model_type": kind,
        "head": "classification" if classifies else settings["head"],
        **({"labels": settings["num_classes"]} if classifies else {}),
        **({"left_out": ", ".join(left)} if left else {}),
        "sentences": len(sentences),
        **agreement.facts(),
    }


def _refuse(described: Mapping[str, Any], kind: str, weights: Mapping[str, Tensor]) -> None:
    """Raise for settings with which a model computes what ours does not.

    Raises:
        UnsupportedError: naming them.
    """
    for name in ("is_decoder", "add_cross_attention"):
        if described.get(name):
            raise UnsupportedError(
                f"{name} is true: this {kind} sees the past only, which roberta cannot; GPT-2, "
                "GPT-NeoX and OPT come in as transformer_lm"
            )
    positions = described.get("position_embedding_type", "absolute")
    if positions not in ("absolute", None):
        raise UnsupportedError(f"position_embedding_type {positions!r} is not supported")
    act = described.get("hidden_act", "gelu")
    named = (described.get("architectures") or [""])[0]
    if kind == "roberta" and act != "gelu" and named.endswith("MaskedLM"):
        raise UnsupportedError(
            f"hidden_act {act!r}: the vocabulary head of their RoBERTa has gelu all the same, ours "
            "has the activation of its layers; remove lm_head.* to import it without"
        )


def _compare(
    transformers: ModuleType,
    source: Path,
    folder: Path,
    sentences: Sequence[str],
    tokenizer: TheirTokenizer,
    classifies: bool,
) -> Agreement:
    """Return how far an encoder is from what was made of it.

    Raises:
        CheckpointError: if the tokenizers differ.
    """
    hub = encoder_out.load_ours(folder / "model.pt", folder)
    headless = hub.model.encoder.lm_head is None
    kind = heads.CLASSIFIER if classifies else "" if headless else "ForMaskedLM"
    auto = getattr(transformers, f"AutoModel{kind}")
    their_model = auto.from_pretrained(str(source)).float().eval()
    texts = [*sentences, *ODD_TEXTS]
    tokens = encoder_out.our_tokens(hub, texts)
    dictionary = hub.task.source_dictionary
    same_tokens(tokenizer, texts, tokens, dictionary.unk(), len(dictionary) - 1)
    return encoder_out.compare(hub, their_model, tokens, tokens, heads.NAME if classifies else None)


def encoder_settings(described: Mapping[str, Any], kind: str, state: Mapping[str, Tensor]) -> Any:
    """Return our settings of one of their models."""
    act = described.get("hidden_act", described.get("activation", "gelu"))
    if act not in OUR_ACTS:
        raise UnsupportedError(f"the activation {act!r} is not supported")
    get = described.get
    dropout = get("hidden_dropout_prob", get("dropout", 0.1))
    front = described.get("pad_token_id", 1) + 1 if kind == "roberta" else 0
    length = len(state[f"{ENCODER}embed_positions.weight"]) - front
    headless = f"{HEAD}dense.weight" not in state
    return {
        "arch": "roberta",
        "task": "masked_lm",
        "criterion": "sentence_prediction" if headless else "masked_lm",
        "tokens_per_sample": length,
        "encoder_layers": get("num_hidden_layers", get("n_layers")),
        "encoder_embed_dim": get("hidden_size", get("dim")),
        "encoder_ffn_embed_dim": get("intermediate_size", get("hidden_dim")),
        "encoder_attention_heads": get("num_attention_heads", get("n_heads")),
        "activation_fn": OUR_ACTS[act],
        "dropout": dropout,
        "attention_dropout": get("attention_probs_dropout_prob", get("attention_dropout", 0.1)),
        "layer_norm_eps": get("layer_norm_eps", 1e-12),
        "segments": len(state.get(f"{ENCODER}embed_segments.weight", ())),
        "position_offset": None if kind == "roberta" else 0,
        "max_positions": length,
        "head": "none" if headless else "roberta",
        "untie_weights_roberta": not get("tie_word_embeddings", True),
    }


def _import_tokenizer(
    tokenizer: TheirTokenizer, source: Path, folder: Path, out: Path, kind: str
) -> tuple[Any, dict[str, Any]]:
    """Write the encoder's file; return the dictionary and the encoder's settings, as of ``out``."""
    content = encoder_tokenizers.content_of(tokenizer, source)
    model = content["model"].get("type")
    if model == "Unigram":
        dictionary = encoder_tokenizers.read_unigram(content, tokenizer, source)
        path = folder / "sentencepiece.bpe.model"
        sentencepiece_files.write_model(path, content, list(content["special"]))
        return dictionary, {"bpe": "sentencepiece", "sentencepiece_model": str(out / path.name)}
    if model == "BPE":
        dictionary, tokenizer_json = encoder_tokenizers.read_byte_level(content, tokenizer, source)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(tokenizer_json, ensure_ascii=False), encoding="utf-8")
        return dictionary, {"bpe": "byte_level", "byte_level_tokenizer": str(out / path.name)}
    dictionary, settings = encoder_tokenizers.read_wordpiece(content, tokenizer, source)
    path = folder / "vocab.txt"
    path.write_text("".join(f"{symbol}\n" for symbol in dictionary.symbols), encoding="utf-8")
    return dictionary, {"bpe": "wordpiece", "wordpiece_vocab": str(out / path.name), **settings}

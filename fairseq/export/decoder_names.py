"""Weights of causal language models: our names, and those of Hugging Face's families.

Shapes: V rows of the embedding table, C channels, P positions, H heads, D channels of a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq.errors import CheckpointError

State = dict[str, Tensor]
TABLE = "decoder.embed_tokens.weight"
POSITIONS = "decoder.embed_positions.weight"
OUTPUT = "decoder.output_projection.weight"
BIAS = "decoder.output_projection.bias"
NORM = "decoder.layer_norm"
THEIR_OUTPUT = "lm_head.weight"
_OLD_OUTPUT = "embed_out.weight"  # GPT-NeoX's, in files of transformers 4
KINDS = ("weight", "bias")
_QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
# Masks and frequencies that old files hold; they follow from the settings.
_CONSTANTS = re.compile(r"\.(?:attn|attention)\.(?:bias|masked_bias)$|rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class CausalFamily:
    """How one family of Hugging Face names and stores its weights.

    Attributes:
        model_type: the family, as ``config.json`` names it.
        classes: the classes with a vocabulary head and without.
        body: prefix of the body inside a model with a head.
        layers: prefix of the layers inside the body.
        table: the embedding table.
        positions: the table of positions, None where there is none.
        norm: the layer norm after the last layer.
        fused: queries, keys and values of a layer, one linear map; None where they are three.
        layer: our name -> theirs, of the rest of a layer.
        per_head: the fused map holds q, k and v of the first head, then of the second, and so on;
            otherwise q of all heads, then k, then v.
        transposed: linear maps are stored as (inputs, outputs).
        config: the class of the settings.
        settings: what they call the settings that all have.
        first_position: row of the position table that the first token takes.
    """

    model_type: str
    classes: tuple[str, str]
    body: str
    layers: str
    table: str
    positions: str | None
    norm: str
    fused: str | None
    layer: Mapping[str, str]
    per_head: bool
    transposed: bool
    config: str
    settings: Mapping[str, str]
    first_position: int = 0


CAUSAL = {
    "gpt2": CausalFamily(
        model_type="gpt2",
        classes=("GPT2LMHeadModel", "GPT2Model"),
        body="transformer.",
        layers="h.",
        table="wte.weight",
        positions="wpe.weight",
        norm="ln_f",
        fused="attn.c_attn",
        layer={
            "self_attn.out_proj": "attn.c_proj",
            "self_attn_layer_norm": "ln_1",
            "fc1": "mlp.c_fc",
            "fc2": "mlp.c_proj",
            "final_layer_norm": "ln_2",
        },
        per_head=False,
        transposed=True,
        config="GPT2Config",
        settings={
            "width": "n_embd", "inner": "n_inner", "layers": "n_layer", "heads": "n_head",
            "act": "activation_function", "length": "n_positions", "dropout": "resid_pdrop",
            "attention": "attn_pdrop",
        },
    ),
    "gpt_neox": CausalFamily(
        model_type="gpt_neox",
        classes=("GPTNeoXForCausalLM", "GPTNeoXModel"),
        body="gpt_neox.",
        layers="layers.",
        table="embed_in.weight",
        positions=None,
        norm="final_layer_norm",
        fused="attention.query_key_value",
        layer={
            "self_attn.out_proj": "attention.dense",
            "self_attn_layer_norm": "input_layernorm",
            "fc1": "mlp.dense_h_to_4h",
            "fc2": "mlp.dense_4h_to_h",
            "final_layer_norm": "post_attention_layernorm",
        },
        per_head=True,
        transposed=False,
        config="GPTNeoXConfig",
        settings={
            "width": "hidden_size", "inner": "intermediate_size", "layers": "num_hidden_layers",
            "heads": "num_attention_heads", "act": "hidden_act",
            "length": "max_position_embeddings", "dropout": "hidden_dropout",
            "attention": "attention_dropout",
        },
    ),
    "opt": CausalFamily(
        model_type="opt",
        classes=("OPTForCausalLM", "OPTModel"),
        body="model.decoder.",
        layers="layers.",
        table="embed_tokens.weight",
        positions="embed_positions.weight",
        norm="final_layer_norm",
        fused=None,
        layer={
            **{name: name for name in (*_QKV, "self_attn.out_proj", "self_attn_layer_norm")},
            **{name: name for name in ("fc1", "fc2", "final_layer_norm")},
        },
        per_head=False,
        transposed=False,
        config="OPTConfig",
        settings={
            "width": "hidden_size", "inner": "ffn_dim", "layers": "num_hidden_layers",
            "heads": "num_attention_heads", "act": "activation_function",
            "length": "max_position_embeddings", "dropout": "dropout",
            "attention": "attention_dropout",
        },
        first_position=2,
    ),
}  # fmt: skip


def _single_names(family: CausalFamily, layers: int) -> dict[str, str]:
    """Return their name of each of our weights that is one tensor in both."""
    body = family.body
    names = {TABLE: body + family.table, OUTPUT: THEIR_OUTPUT}
    if family.positions is not None:
        names[POSITIONS] = body + family.positions
    for kind in KINDS:
        names[f"{NORM}.{kind}"] = f"{body}{family.norm}.{kind}"
        for number in range(layers):
            for ours, their_name in family.layer.items():
                name = f"{body}{family.layers}{number}.{their_name}.{kind}"
                names[f"decoder.layers.{number}.{ours}.{kind}"] = name
    return names


def _turned(value: Tensor, family: CausalFamily) -> Tensor:
    """Return a weight of a linear map in the other layout; anything else as it is."""
    return value.t().contiguous() if family.transposed and value.dim() == 2 else value


def fuse(parts: Sequence[Tensor], heads: int, per_head: bool) -> Tensor:
    """Return q, k and v, each (C, ...), as one tensor (3 C, ...)."""
    if not per_head:
        return torch.cat(list(parts))
    stacked = torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1)  # H, 3, D
    return stacked.flatten(0, 2).contiguous()


def split(fused: Tensor, heads: int, per_head: bool) -> list[Tensor]:
    """Return q, k and v, each (C, ...), of one tensor (3 C, ...)."""
    if not per_head:
        return [part.clone() for part in fused.chunk(3)]
    parts = fused.unflatten(0, (heads, 3, -1)).unbind(1)
    return [part.flatten(0, 1).clone() for part in parts]


def to_theirs(state: Mapping[str, Tensor], family: CausalFamily, layers: int, heads: int) -> State:
    """Return our weights under their names and in their layout.

    Raises:
        CheckpointError: if one of them has no place there.
    """
    state = dict(state)
    renamed: State = {}
    for number in range(layers):
        ours = f"decoder.layers.{number}."
        for kind in KINDS if family.fused else ():
            parts = [state.pop(f"{ours}{name}.{kind}") for name in _QKV]
            name = f"{family.body}{family.layers}{number}.{family.fused}.{kind}"
            renamed[name] = _turned(fuse(parts, heads, family.per_head), family)
    names = _single_names(family, layers)
    if unknown := sorted(state.keys() - names.keys()):
        raise CheckpointError(
            f"{family.classes[0]} of Hugging Face has no place for {', '.join(unknown[:5])}"
        )
    for key, value in state.items():
        is_layer = ".layers." in key
        renamed[names[key]] = _turned(value, family) if is_layer else value.clone()
    return renamed


def to_ours(
    weights: Mapping[str, Tensor], family: CausalFamily, heads: int, attention_bias: bool = True
) -> State:
    """Return their weights under our names and in our layout; a body without a head is accepted.

    Args:
        weights: their weights, with or without the prefix of the body.
        family: whose they are.
        heads: H.
        attention_bias: whether the attention has biases; zeros take their place if not.

    Raises:
        CheckpointError: if a weight is missing, or one is not known.
    """
    prefix = re.compile("^" + "".join(f"(?:{re.escape(part)})?" for part in _parts(family.body)))
    rest = {prefix.sub("", k): v for k, v in weights.items() if not _CONSTANTS.search(k)}
    if _OLD_OUTPUT in rest:
        rest[THEIR_OUTPUT] = rest.pop(_OLD_OUTPUT)
    layers = len({key.split(".")[1] for key in rest if key.startswith(family.layers)})
    if not attention_bias:
        _add_zeros(rest, family, layers)
    names = {k: v.removeprefix(family.body) for k, v in _single_names(family, layers).items()}
    fused = [f"{family.layers}{n}.{family.fused}" for n in range(layers) if family.fused]
    expected = {*names.values(), *(f"{name}.{kind}" for name in fused for kind in KINDS)}
    missing = sorted(expected - rest.keys() - {THEIR_OUTPUT})
    unknown = sorted(rest.keys() - expected)
    if missing or unknown or not layers:
        raise CheckpointError(
            f"these are no weights of {family.model_type}: missing {', '.join(missing[:5])}; "
            f"not known {', '.join(unknown[:5])}"
        )
    ours = {}
    for key, name in names.items():
        if name in rest:
            value = rest[name]
            ours[key] = _turned(value, family) if ".layers." in key else value.clone()
    for number, name in enumerate(fused):
        for kind in KINDS:
            parts = split(_turned(rest[f"{name}.{kind}"], family), heads, family.per_head)
            projections = [f"decoder.layers.{number}.{projection}.{kind}" for projection in _QKV]
            ours.update(zip(projections, parts, strict=True))
    return ours


def _parts(body: str) -> list[str]:
    """Return the parts of a prefix, each of which a file may lack."""
    return re.findall(r"[^.]+\.", body)


def _add_zeros(state: State, family: CausalFamily, layers: int) -> None:
    """Add the biases that an attention without any has not, in place."""
    for number in range(layers):
        for name in filter(None, (family.fused, family.layer["self_attn.out_proj"])):
            weight = state.get(f"{family.layers}{number}.{name}.weight")
            if weight is not None:
                outputs = weight.shape[1 if family.transposed else 0]
                state.setdefault(f"{family.layers}{number}.{name}.bias", torch.zeros(outputs))

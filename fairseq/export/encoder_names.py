"""Names of weights: ours (fairseq's) and those of Hugging Face's encoder families.

Shapes: V rows of the embedding table, C channels, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fairseq.errors import CheckpointError

State = dict[str, Tensor]
ENCODER = "encoder.sentence_encoder."
# our name of an activation -> theirs, and back
THEIR_ACTS = {"gelu": "gelu", "gelu_fast": "gelu_new", "gelu_accurate": "gelu_new", "relu": "relu"}
OUR_ACTS = {"gelu": "gelu", "gelu_new": "gelu_accurate", "relu": "relu"}
HEAD = "encoder.lm_head."


@dataclass(frozen=True)
class Family:
    """How one family of Hugging Face names its weights.

    Attributes:
        model_type: the family, as ``config.json`` names it.
        body: prefix of the encoder inside a model with a head.
        layers: prefix of the layers inside the encoder.
        layer: our name -> theirs, inside a layer.
        head: our name -> theirs, of the vocabulary head.
        tied: their names of the output table and of a second copy of its bias.
    """

    model_type: str
    body: str
    layers: str
    layer: Mapping[str, str]
    head: Mapping[str, str]
    tied: tuple[str, str]


_BERT_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
FAMILIES = {
    "roberta": Family(
        "roberta",
        "roberta.",
        "encoder.layer.",
        _BERT_LAYER,
        {"dense": "lm_head.dense", "layer_norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
        ("lm_head.decoder.weight", "lm_head.decoder.bias"),
    ),
    "bert": Family(
        "bert",
        "bert.",
        "encoder.layer.",
        _BERT_LAYER,
        {
            "dense": "cls.predictions.transform.dense",
            "layer_norm": "cls.predictions.transform.LayerNorm",
            "bias": "cls.predictions.bias",
        },
        ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    ),
    "distilbert": Family(
        "distilbert",
        "distilbert.",
        "transformer.layer.",
        {
            "self_attn.q_proj": "attention.q_lin",
            "self_attn.k_proj": "attention.k_lin",
            "self_attn.v_proj": "attention.v_lin",
            "self_attn.out_proj": "attention.out_lin",
            "self_attn_layer_norm": "sa_layer_norm",
            "fc1": "ffn.lin1",
            "fc2": "ffn.lin2",
            "final_layer_norm": "output_layer_norm",
        },
        {
            "dense": "vocab_transform",
            "layer_norm": "vocab_layer_norm",
            "bias": "vocab_projector.bias",
        },
        ("vocab_projector.weight", "vocab_projector.bias"),
    ),
}
_EMBEDDINGS = {
    "embed_tokens.weight": "embeddings.word_embeddings.weight",
    "embed_positions.weight": "embeddings.position_embeddings.weight",
    "embed_segments.weight": "embeddings.token_type_embeddings.weight",
    "layernorm_embedding.weight": "embeddings.LayerNorm.weight",
    "layernorm_embedding.bias": "embeddings.LayerNorm.bias",
}


def theirs_of(family: Family, layers: int) -> dict[str, str]:
    """Return their name of each of our weights, for a model with a head."""
    names = {ENCODER + ours: family.body + their_name for ours, their_name in _EMBEDDINGS.items()}
    for number in range(layers):
        for ours, their_name in family.layer.items():
            for kind in ("weight", "bias"):
                name = f"{family.body}{family.layers}{number}.{their_name}.{kind}"
                names[f"{ENCODER}layers.{number}.{ours}.{kind}"] = name
    for ours, their_name in family.head.items():
        for kind in ("",) if ours == "bias" else (".weight", ".bias"):
            names[f"{HEAD}{ours}{kind}"] = their_name + kind
    names[f"{HEAD}weight"] = family.tied[0]
    return names


def layer_count(state: Mapping[str, Tensor], family: Family) -> int:
    """Return how many layers a model of theirs has."""
    prefix = family.layers
    numbers = {key.split(prefix)[1].split(".")[0] for key in state if prefix in key}
    return len(numbers)


def to_theirs(state: Mapping[str, Tensor], family: Family, layers: int) -> State:
    """Return our weights under their names.

    Raises:
        CheckpointError: if one of them has no name there.
    """
    names = theirs_of(family, layers)
    # no encoder of theirs needs the version mark and sentence heads
    ours_alone = (f"{ENCODER}version", "classification_heads.")
    kept = {key: value for key, value in state.items() if not key.startswith(ours_alone)}
    if unknown := sorted(kept.keys() - names.keys()):
        raise CheckpointError(
            f"{family.model_type} of Hugging Face has no place for {', '.join(unknown[:5])}"
        )
    renamed = {names[key]: value.clone() for key, value in kept.items()}
    bias = names[f"{HEAD}bias"]
    if bias in renamed:
        renamed[family.tied[1]] = renamed[bias].clone()
    return renamed


def to_ours(state: Mapping[str, Tensor], family: Family, tied: bool = True) -> State:
    """Return their weights under our names; a body without a head is accepted.

    An untied head adds the bias that belongs to its table; a tied one has a copy of its own.

    RoBERTa's single segment vector, which every token gets, is added to the position vectors.

    Raises:
        CheckpointError: if a weight of the encoder is missing.
    """
    layers = layer_count(state, family)
    body = any(key.startswith(family.body) for key in state)
    ours: State = {}
    missing = []
    for name, their_name in theirs_of(family, layers).items():
        key = their_name if body or name.startswith(HEAD) else their_name.removeprefix(family.body)
        if key in state:
            ours[name] = state[key].clone()
        elif not name.startswith(HEAD) and "segments" not in name:
            missing.append(key)
    if missing or not layers:
        raise CheckpointError(
            f"these are no weights of {family.model_type}: missing {', '.join(missing[:5])}"
        )
    if not tied and f"{HEAD}bias" in ours and family.tied[1] in state:
        ours[f"{HEAD}bias"] = state[family.tied[1]].clone()
    segments = ours.get(f"{ENCODER}embed_segments.weight")
    if segments is not None and len(segments) == 1:
        del ours[f"{ENCODER}embed_segments.weight"]
        positions_PC = ours[f"{ENCODER}embed_positions.weight"]
        ours[f"{ENCODER}embed_positions.weight"] = positions_PC + segments
    head = [key for key in ours if key.startswith(HEAD)]
    if f"{HEAD}dense.weight" not in ours:  # a table alone is no head
        for key in head:
            del ours[key]
    elif f"{HEAD}weight" not in ours:
        ours[f"{HEAD}weight"] = ours[f"{ENCODER}embed_tokens.weight"].clone()
    return ours

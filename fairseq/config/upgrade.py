"""Old names, new names: the one two-way table through which foreign configurations pass.

Reading: command lines, YAML, checkpoints of the original and of the CLAP/ALiBi fork go from old to
new. Writing: a checkpoint's ``cfg`` goes from new to old and holds only keys the original knows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fairseq.errors import ConfigError

logger = logging.getLogger(__name__)

Values = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One old name.

    Attributes:
        section: the section the name lives in.
        old: the old name.
        default: the value the old name had when it was not stated.
        read: turns an old value into new values; it gets the value and all values beside it.
        write: computes the old value from the new ones; None if it is never written.
        flag: whether the fork had it as a flag.
        flat: whether the name means this in flat settings, too.
        both_ways: whether the default is read as well, as models have different defaults.
    """

    section: str
    old: str
    default: Any
    read: Callable[[Any, Values], Values]
    write: Callable[[Values], Any] | None = None
    flag: bool = False
    flat: bool = True
    both_ways: bool = False


def _no_positions(value: object, values: Values) -> Values:
    alibi = values.get("encoder_alibi") or str(values.get("position", "")).startswith("alibi")
    return {} if alibi else {"position": "none"}


def _alibi(value: object, values: Values) -> Values:
    if not values.get("no_token_positional_embeddings"):
        raise ConfigError(
            "encoder_alibi without no_token_positional_embeddings adds ALiBi to position "
            "embeddings, which is not supported; set both, or --position alibi"
        )
    asymmetric = values.get("encoder_alibi_asymmetrical")
    return {"position": "alibi-asymmetric" if asymmetric else "alibi"}


def _sinusoidal(value: object, values: Values) -> Values:
    without = values.get("no_token_positional_embeddings") or values.get("encoder_alibi")
    return {} if without else {"position": "sinusoidal"}


def _becomes(new: str, value: object) -> Callable[[Any, Values], Values]:
    return lambda old, values: {new: value}


def _same(key: str) -> Callable[[Any, Values], Values]:
    return lambda value, values: {key: value}


def _drop(value: object, values: Values) -> Values:
    return {}


def _is(key: str, *wanted: object) -> Callable[[Values], bool]:
    return lambda values: values.get(key) in wanted


def _self_masking(value: object, values: Values) -> Values:
    """Warn about the fork's models that hid tokens themselves, in every forward pass.

    Only they have ``zero_masking`` beside it; flat settings of other models hold the task's
    ``mask_prob`` under the same name.
    """
    if values.get("zero_masking"):
        logger.warning(
            "this model was trained to hide %s of its own input at random (self-masking); that is "
            "not reproduced: it sees its input as it is",
            value,
        )
    return {}


ALIBI = ("alibi", "alibi-asymmetric")
ROWS: tuple[Row, ...] = (
    Row(
        "model",
        "encoder_learned_pos",
        True,
        _sinusoidal,
        lambda v: v.get("position") != "sinusoidal",
    ),
    Row(
        "model",
        "no_token_positional_embeddings",
        False,
        _no_positions,
        _is("position", "none", *ALIBI),
    ),
    Row("model", "encoder_alibi", False, _alibi, _is("position", *ALIBI)),
    Row("model", "encoder_alibi_asymmetrical", False, _drop, _is("position", "alibi-asymmetric")),
    Row("model", "decoder_alibi", False, _becomes("position", "alibi")),
    Row(
        "model",
        "contrastive_pretraining",
        False,
        _becomes("head", "clap"),
        _is("head", "clap"),
        flag=True,
    ),
    Row(
        "model",
        "initial_beta",
        1.0,
        _same("clap_initial_beta"),
        lambda v: v["clap_initial_beta"],
        flag=True,
    ),
    Row(
        "model",
        "l2norm_embedding",
        True,
        _becomes("clap_normalize", False),
        lambda v: v["clap_normalize"],
        flag=True,
    ),
    Row(
        "model",
        "zero_masking",
        False,
        _becomes("mask_embedding", "zero"),
        _is("mask_embedding", "zero"),
        flag=True,
    ),
    Row(
        "model",
        "no_scale_embedding",
        True,
        lambda value, values: {"scale_embedding": not value},
        lambda v: not v["scale_embedding"],
        both_ways=True,
    ),
    Row("model", "mask_prob", 0.0, _self_masking, flat=False),
    Row("model", "max_source_positions", None, _drop, lambda v: v["max_positions"]),
    Row("model", "adaptive_input", False, _drop, lambda v: False),
    Row("task", "omit_mask_and_pad", False, _same("omit_mask"), flag=True),
    Row("task", "omit_unk", False, _drop, flag=True),
    Row("optimization", "min_lr", None, _same("stop_min_lr"), flat=False),
    Row("common_eval", "remove_bpe", None, _same("post_process")),
)
OLD_NAMES = {row.old for row in ROWS}
# Keys that only the fork knows: they are written only when they differ from the default, so that
# a plain RoBERTa checkpoint loads in the original.
FORK_ONLY = {
    "encoder_alibi",
    "encoder_alibi_asymmetrical",
    "contrastive_pretraining",
    "initial_beta",
    "l2norm_embedding",
    "zero_masking",
    "omit_mask",
}
# Keys that the original's main branch has and its release 0.12, or the fork, refuses: likewise.
LATER = {
    "task": {"include_index", "skip_masking", "d2v2_multi"},
    "criterion": {"report_mcc", "report_acc_and_f1", "report_pearson_and_spearman"},
}
# Knobs of language models without an old name: written as they are where they are not as usual.
_OF_DECODERS = {
    "head": "vocabulary",
    "position": None,
    "clap_initial_beta": 1.0,
    "clap_normalize": True,
}


def upgrade_args(
    values: Mapping[str, object], section: str, flat: bool = False, fields: Collection[str] = ()
) -> Values:
    """Return ``values`` of one section with every old name replaced by what stands for it now.

    A non-default old name wins over a new name beside it: it was put there by someone who knows
    only the old one, while new names may be there with their defaults.

    Args:
        values: settings, old and new names mixed.
        section: the section they belong to.
        flat: they are the settings of all sections together.
        fields: names that the section's own configuration uses; they are not old.
    """
    result = dict(values)
    for row in ROWS:
        if row.section != section or row.old not in values or row.old in fields:
            continue
        if flat and not row.flat:
            continue
        value = result.pop(row.old)
        if value is not None and value != row.default:
            result.update(row.read(value, dict(values)))
        elif value is not None and row.both_ways:
            for new, its_value in row.read(value, dict(values)).items():
                result.setdefault(new, its_value)
    return result


def downgrade(values: Mapping[str, object], section: str) -> Values:
    """Return the old names of one section with the values the original expects."""
    if section == "model" and "decoder_layers" in values:  # the original has flags for the rest
        said = {new: values[new] for new, usual in _OF_DECODERS.items() if values[new] != usual}
        return {**said, **_alibi_decoder(values)}
    old: Values = {}
    for row in ROWS:
        if row.section == section and row.write is not None:
            value = row.write(dict(values))
            if row.old not in FORK_ONLY or value != row.default:
                old[row.old] = value
    return old


def _alibi_decoder(values: Mapping[str, object]) -> Values:
    """Return what makes the fork build a decoder with ALiBi, empty if it cannot.

    It reads ``decoder_alibi`` only under the name of its architecture, which makes every decoder a
    pre-norm one. The original knows no such name, so it refuses the file instead of leaving
    positions out.
    """
    if values["position"] != "alibi" or not values["decoder_normalize_before"]:
        return {}
    return {
        "_name": "transformer_lm_alibi",
        "decoder_alibi": True,
        "no_token_positional_embeddings": True,
    }

"""Settings that no tensor shows: under other ones the weights of a file are another function."""

from __future__ import annotations

import logging
from typing import Any

from fairseq.checkpoint.layout import config_of
from fairseq.config.sections import FairseqConfig
from fairseq.errors import FairseqError
from fairseq.growth.sizes import position_of, scale_of, slopes_of
from fairseq.protocols import StateDict

logger = logging.getLogger("fairseq.trainer_state")

NAMES = (
    *("activation_fn", "layer_norm_eps", "encoder_normalize_before", "decoder_normalize_before"),
    *("parallel_residual", "position_offset", "clap_normalize", "clap_normalize_hidden"),
)


def _function_of(config: Any) -> dict[str, str]:
    """Return what a model computes beside its tensors, by the flag that says it."""
    told = {name: config.get(name) for name in NAMES if name in config}
    if config.get("head") != "clap":
        told = {name: value for name, value in told.items() if not name.startswith("clap_")}
    told["embedding_multiplier"] = scale_of(config)
    if (position := position_of(config)).startswith("alibi"):
        told["alibi_slopes"] = slopes_of(config).tolist()
    if position == "rotary":
        told["rotary_fraction"] = config.get("rotary_fraction")
    told["position"] = position
    return {name: _text(value) for name, value in told.items()}


def warn_of_other_settings(path: str, state: StateDict, config: FairseqConfig) -> None:
    """Warn if a run begins or goes on under settings that make its weights another function.

    Args:
        path: of the file.
        state: its content.
        config: of the run.
    """
    try:
        before, after = (_function_of(c.model) for c in (config_of(state), config))
    except (FairseqError, AttributeError, TypeError):  # of other kinds, which growth does not know
        return
    other = [
        f"--{name.replace('_', '-')} {value} (here {after[name]})"
        for name, value in before.items()
        if name in after and after[name] != value
    ]
    if other:
        logger.warning(
            "%s was trained with %s: under other settings its weights compute something else. "
            "Give the flags of the file, unless the change is meant",
            path,
            ", ".join(other),
        )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)

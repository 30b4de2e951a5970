"""Settings that no tensor shows: of the weights of a file, and of its optimizer's state.

Under other settings weights are another function. A state has groups with settings of their own,
which win over those given, and goes to parameters by their places.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

from fairseq.checkpoint.layout import config_of
from fairseq.config.sections import FairseqConfig
from fairseq.errors import CheckpointError, FairseqError
from fairseq.growth.sizes import position_of, scale_of, slopes_of
from fairseq.optim.base import FairseqOptimizer, Group
from fairseq.protocols import StateDict

logger = logging.getLogger("fairseq.trainer_state")

NAMES = (
    *("activation_fn", "layer_norm_eps", "encoder_normalize_before", "decoder_normalize_before"),
    *("parallel_residual", "position_offset", "clap_normalize", "clap_normalize_hidden"),
)
# Of a group: what is no setting, what schedule and steps move, and which of the others rules set.
NO_SETTINGS = ("params", "lr", "lr_old", "by_rule")


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


def settings_in_force(optimizer: FairseqOptimizer) -> list[Group]:
    """Return the settings of each parameter group but those that the schedule moves."""
    return [
        {"lr_scale": 1.0, **{name: x for name, x in group.items() if name not in NO_SETTINGS}}
        for group in optimizer.param_groups
    ]


def warn_of_kept_settings(
    path: str, given: list[Group], taken: list[Group], overrides: Mapping[str, object]
) -> None:
    """Warn if an optimizer's state brought other settings than those given.

    Args:
        path: of the file.
        given: :func:`settings_in_force` before the state was loaded.
        taken: the same afterwards.
        overrides: what of the state was replaced on request.
    """
    kept: dict[str, str] = {}
    wanted: dict[str, Any] = {}
    for ours, theirs in zip(given, taken, strict=True):
        for name in ours.keys() & theirs.keys() - overrides.keys():
            if _text(ours[name]) != _text(theirs[name]) and name not in kept:
                kept[name] = f"{name} {_text(theirs[name])} (here {_text(ours[name])})"
                wanted[name] = ours[name]
    if kept:
        wanted.pop("lr_scale", None)  # a rule's: overrides leave it alone
        change = f'--optimizer-overrides "{wanted}" changes them in every group, ' if wanted else ""
        logger.warning(
            "%s: the run goes on with the optimizer settings of the checkpoint, not with those "
            "given: %s. %s--reset-optimizer begins with new ones, at update 0",
            path,
            ", ".join(kept[name] for name in sorted(kept)),
            change,
        )


def check_places(path: str, saved: list[str], ours: list[str]) -> None:
    """Refuse an optimizer's state whose places are those of other parameters.

    Args:
        path: of the file.
        saved: the names of the parameters it is the state of, in their order.
        ours: those that it would go to.

    Raises:
        CheckpointError: naming the first place where they differ.
    """
    pairs = itertools.zip_longest(saved, ours, fillvalue="none")  # one flat vector has any number
    for place, (before, now) in enumerate(pairs):
        if before != now:
            raise CheckpointError(
                f"{path}: the optimizer's state at place {place} is that of {before}, and would go "
                f"to {now}. Other parameters are trained now, or in other groups: give the "
                "--freeze-... flags, --param-groups and --muon-params of the file, or start afresh "
                "with --reset-optimizer"
            )


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)

"""From checkpoint to grown checkpoint: what fairseq-grow does."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.checkpoint.layout import config_of, derived_record, read_state
from fairseq.config.registries import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY
from fairseq.config.schema import assign
from fairseq.config.sections import FairseqConfig
from fairseq.errors import CheckpointError, ConfigError
from fairseq.export.encoder_out import find_data
from fairseq.export.model_files import write_model
from fairseq.files.folders import refuse_existing
from fairseq.files.io import require_checkpoint, require_file, sha256_of
from fairseq.growth.contrast import REPEATING, contrast_reason, score_factor, settled_contrast
from fairseq.growth.methods import Options
from fairseq.growth.sizes import (
    FIELDS,
    Config,
    Pair,
    position_of,
    resized,
    scale_of,
    side_of,
    sizes_of,
    slopes_of,
)
from fairseq.growth.start import (
    Source,
    check_operator,
    choose_method,
    dtype_of,
    fresh_weights,
    grow_state,
    read_source,
)
from fairseq.protocols import Task
from fairseq.tasks.loading import built_for_weights, task_of

ROWS, LENGTH = 4, 12  # of tokens that source and target are compared on
TOLERANCE = 1e-9  # in fp64, in units of the largest logit


class Opened:
    """A checkpoint to grow from, its task and its model.

    Args:
        path: the file.
        data: folder with its dictionary; None for its own folder, or the recorded one.
    """

    def __init__(self, path: Path, data: Path | None) -> None:
        require_checkpoint(path, "Give the .pt file.")
        folder = find_data(path, data)
        if not (folder / "input0" / "dict.txt").is_file():  # where sentence tasks have it
            require_file(folder / "dict.txt", "dictionary", "Name its folder with --data.")
        self.path = path
        content = read_state(path)
        self.config = config_of(content, {"data": str(folder)})
        self.task = task_of(content, self.config)
        self.source: Source = read_source(str(path), content, self.task)
        # without what is large: weights are the source's, and an optimizer's state is not used
        self.content = {**content, "model": {}, "last_optimizer_state": None}


def target_of(
    source: Source, flags: Mapping[str, Any], arch: str | None, options: Options, factor: int | None
) -> Config:
    """Return the configuration of the target.

    Args:
        source: the model to grow from; an operator knows its target.
        flags: settings of the model by field name, as stated by the user.
        arch: an architecture whose sizes are wanted.
        options: ``layers`` says how many there are.
        factor: times which width, FFN and heads grow.

    Raises:
        ConfigError: for an architecture of another family.
    """
    config = source.target or source.config
    side, stated = side_of(config), dict(flags)
    if arch is not None:
        preset = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[arch](preset)
        if not hasattr(preset, FIELDS["width"].format(side)):
            model = ARCH_MODEL_NAME_REGISTRY[arch]
            raise ConfigError(f"--arch {arch} is of the family {model}, the source is another one")
        stated = {**{n: v for n, v in vars(preset).items() if n in config}, **stated}
    sizes = {name: stated.get(field.format(side)) for name, field in FIELDS.items()}
    if options.layers is not None and sizes["layers"] is None:
        sizes["layers"] = len(options.layers)
    if factor is not None:
        if factor < 1 or sizes["width"] is not None:
            raise ConfigError("--grow-width is a whole number, and excludes other widths")
        sizes["width"] = factor * sizes_of(config).width
    target = resized(config, **sizes)
    assign(target, stated, "model")
    return target


def settle_target(name: str, source: Config, target: Config, stated: Mapping[str, object]) -> None:
    """Set, in place, what keeps the function the same where the target leaves it open.

    Means over channels need a smaller eps, heads keep their slopes, and embeddings of unit length
    are scaled up.
    """
    pair = Pair(source, target)
    small, large = pair.small, pair.large
    if name == "lemon" and large.width % small.width and "layer_norm_eps" not in stated:
        target.layer_norm_eps = source.layer_norm_eps * small.width / large.width
    if name not in REPEATING:
        return
    own_slopes = position_of(source).startswith("alibi") and small.heads != large.heads
    if own_slopes and "alibi_slopes" not in stated:
        target.alibi_slopes = (
            # rounded up, then cut: the number of heads need not be a multiple
            slopes_of(source).repeat(-(-large.heads // small.heads))[: large.heads].tolist()
        )
    if pair.unit_rows and large.width != small.width and "embedding_multiplier" not in stated:
        target.embedding_multiplier = scale_of(source) * (large.width / small.width) ** 0.5


def logits_of(task: Task, config: Config, state: Mapping[str, Tensor], tokens_BT: Tensor) -> Tensor:
    """Return the logits of a model, fp64 (B, T, V).

    Without a head they are the products with its embeddings; (B, T, C) hidden states where an
    adaptive softmax takes the place of logits, or the embeddings have another width.
    """
    model = built_for_weights(task, dataclasses.replace(config)).eval()
    wide = {name: x.double() if x.is_floating_point() else x for name, x in state.items()}
    model.upgrade_state_dict(wide)  # classifiers take the width that theirs have in the state
    # put in place of the model's own weights instead of copied into them: large models are large
    nn.Module.load_state_dict(model, wide, assign=True)
    model.double()  # what no state holds, such as tables of positions
    headless = config.get("head") == "none" or bool(config.get("adaptive_softmax_cutoff"))
    with torch.no_grad():
        output_BTX = model(tokens_BT, features_only=headless)[0]
        if config.get("head") != "none":
            return output_BTX
        table_VC = model.embedding_table()
        fits = table_VC.shape[1] == output_BTX.shape[-1]
        return output_BTX @ table_VC.T if fits else output_BTX


def largest_change(
    opened: Opened, target: Config, state: Mapping[str, Tensor], name: str
) -> float | None:
    """Return the largest difference of logits, in units of the largest logit.

    None if they cannot be compared: hidden states of another width. Scores of a model without a
    head are compared up to the factor that the method ``name`` gives them.
    """
    source, dictionary = opened.source, opened.task.source_dictionary
    # the same tokens every time, and no special ones: padding would be masked
    drawn = torch.Generator().manual_seed(0)
    first = min(dictionary.nspecial, len(dictionary) - 1)
    tokens_BT = torch.randint(first, len(dictionary), (ROWS, LENGTH), generator=drawn)
    limit = (
        source.config.get("max_positions") or source.config.get("max_target_positions") or LENGTH
    )
    tokens_BT = tokens_BT[:, : min(LENGTH, limit)]
    before = logits_of(opened.task, source.config, source.state, tokens_BT)
    after = logits_of(opened.task, target, state, tokens_BT)
    if before.shape != after.shape:
        return None
    if source.config.get("head") == "none" and name in REPEATING:
        after = after / score_factor(Pair(source.config, target))
    return float((after - before).abs().max() / before.abs().max().clamp(min=1))


def grow_file(
    opened: Opened,
    out: Path,
    method: str | None,
    target: Config,
    options: Options,
    operator: Opened | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write the grown model: an ordinary checkpoint without a training history.

    Where the method claims to be exact the logits of both models are compared first.

    Args:
        opened: the source.
        out: the file.
        method: its name; None for what a learned operator says.
        target: configuration of the target.
        options: of the method.
        operator: a learned operator in a file of its own.
        force: replace ``out``.

    Returns:
        ``{"method", "exact", "reason", "logit_change", "settings", "layers", "width", "ffn",
        "heads"}``; ``settings`` are those that trainings of it have to be given, too.

    Raises:
        DataError: if ``out`` exists.
        ConfigError: for what does not fit.
        CheckpointError: if a method that claims to be exact is not.
    """
    refuse_existing(out, force)
    source = opened.source
    if operator is not None:
        source = _with_operator(source, operator.source)
    name, chosen = choose_method(method, source.operator is not None)
    check_operator(source, target)
    loss = opened.config.criterion
    settled = settled_contrast(name, source.config, target, loss)
    reason = chosen.check(source.config, target, options)
    reason = reason or contrast_reason(name, source.config, target, loss, settled)
    if chosen.needs_fresh:
        fresh = fresh_weights(opened.task, target, options.seed)
        options = dataclasses.replace(options, fresh=fresh)
    state = grow_state(source, target, chosen, options)
    change = largest_change(opened, target, state, name)
    if reason is None and change is not None and not change <= TOLERANCE:
        raise CheckpointError(f"{name} should not change logits, but moves them by {change:.1e}")
    dtype = dtype_of(source.state)
    written = {n: x.to(dtype) if x.dtype == torch.float64 else x for n, x in state.items()}
    facts = {"method": name, "source": sha256_of(str(opened.path)), "updates": _updates(opened)}
    # an operator's own lineage begins with the source that it was learned for
    last = opened if operator is None else operator
    record = derived_record(last.content, str(last.path), name)
    config = opened.config.changed(model=target, criterion=settled)
    write_model(out, written, config, {"grown": facts}, record)
    sizes = sizes_of(target)._asdict()
    return {
        "method": name,
        "exact": reason is None,
        "reason": reason,
        "logit_change": change,
        "settings": _settings_of(opened.config, config),
    } | sizes


def _settings_of(before: FairseqConfig, after: FairseqConfig) -> dict[str, Any]:
    """Return the settings, beside the sizes, without which the target is another function."""
    names = ("layer_norm_eps", "alibi_slopes", "embedding_multiplier", "contrastive_temperature")
    return {
        name: section.get(name)
        for part in ("model", "criterion")
        for name in names
        if (section := getattr(after, part)) is not None
        and section.get(name) not in (None, getattr(before, part).get(name))  # None: the default
    }


def _updates(opened: Opened) -> int:
    return int(opened.content["optimizer_history"][-1].get("num_updates", 0))


def _with_operator(source: Source, operator: Source) -> Source:
    """Return the source with an operator that was learned for it.

    Raises:
        ConfigError: if it was learned for another one.
    """
    if operator.operator is None:
        raise ConfigError("--operator names an ordinary model; give a checkpoint of --arch ligo_*")
    same = source.state.keys() >= operator.state.keys() and all(
        x.shape == source.state[name].shape and torch.equal(x, source.state[name].to(x.dtype))
        for name, x in operator.state.items()
    )
    if not same:
        raise ConfigError("the operator belongs to another pair: it was learned for another source")
    return operator

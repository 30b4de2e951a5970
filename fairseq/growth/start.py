"""Growth between checkpoints: a source that was read becomes a state that a target loads."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq.checkpoint.layout import config_of, record_of
from fairseq.config.sections import CheckpointConfig, FairseqConfig
from fairseq.errors import CheckpointError, ConfigError
from fairseq.growth.carry import FLAG, Carried, inherited_layers
from fairseq.growth.contrast import contrast_reason
from fairseq.growth.ligo_model import LigoModel, LigoSettings
from fairseq.growth.methods import GROWTH, Method, Options
from fairseq.growth.sizes import Config, sizes_of
from fairseq.growth.tensors import join, split
from fairseq.protocols import Task
from fairseq.tasks.loading import model_of

logger = logging.getLogger(__name__)
HEADS = "load_checkpoint_heads"


class Source(NamedTuple):
    """A model to grow from.

    Attributes:
        config: its settings.
        state: its weights under today's names.
        operator: a learned operator that came with it, else None.
        target: settings of the model that operator makes, else None.
        share, in_matrix: how the operator was learned.
    """

    config: Config
    state: dict[str, Tensor]
    operator: dict[str, Tensor] | None = None
    target: Config | None = None
    share: str = "layer"
    in_matrix: str = "same"


def read_source(path: str, content: Mapping[str, Any], task: Task) -> Source:
    """Return the model of a checkpoint.

    Args:
        path: for messages.
        content: of the checkpoint, in today's layout.
        task: builds the model; its dictionary must be the checkpoint's.

    Raises:
        CheckpointError: if the file does not fit its own configuration, or the dictionary, or holds
            weights that are not finite.
    """
    config = dataclasses.replace(config_of(content).model)
    # classification heads that fine-tuning added grow along
    built = dataclasses.replace(config, **({HEADS: True} if HEADS in config else {}))
    model = model_of(content["model"], built, task, path)
    for name, x in model.state_dict().items():
        if not x.isfinite().all():  # whatever grows from it is as broken
            raise CheckpointError(f"{path} has weights that are not finite: {name}")
    if not isinstance(model, LigoModel):
        sizes_of(config)  # or say that this kind of model does not grow
        # in the precision of the file: the model that took the weights over made them fp32
        dtype = dtype_of(content["model"])
        state = {
            name: x if name.endswith("version") else x.to(dtype)
            for name, x in model.state_dict().items()
        }
        return Source(config, state)
    pair, settings = model.pair, model.config
    operator = {name: x.detach() for name, x in model.operator.by_name().items()}
    return Source(
        pair.source,
        join(split(model.source.by_name()), pair.one_table),
        operator,
        pair.target,
        settings.ligo_share,
        settings.ligo_in_matrix,
    )


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """Return the type of a model's weights."""
    # of a matrix: versions and counters are vectors of other types
    return next(x.dtype for name, x in state.items() if x.dim() > 1)


def choose_method(name: str | None, learned: bool) -> tuple[str, Method]:
    """Return the method's name and the method; a learned operator brings its own.

    Raises:
        ConfigError: if none is named, or one that contradicts the source.
        RegistryError: for an unknown name.
    """
    if learned:
        if name not in (None, "ligo"):
            raise ConfigError(
                f"the source is a learned operator, which the method {name} would ignore"
            )
        name = "ligo"
    if name is None:
        raise ConfigError(
            f"growth needs a method (fairseq-train: --grow-method): {', '.join(GROWTH)}"
        )
    if name == "ligo" and not learned:
        raise ConfigError("ligo grows from a learned operator: a checkpoint of --arch ligo_*")
    return name, GROWTH[name]


def check_operator(source: Source, target: Config) -> None:
    """Make sure that an operator makes this target.

    Raises:
        ConfigError: naming the sizes, if it makes another one.
    """
    if source.target is not None and sizes_of(source.target) != sizes_of(target):
        raise ConfigError(
            f"the operator belongs to another pair: it makes {_words(source.target)}, the target "
            f"has {_words(target)}"
        )


def _words(config: Config) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes_of(config)._asdict().items())


def options_of(settings: CheckpointConfig) -> Options:
    """Return what the ``--grow-*`` flags say."""
    return Options(
        layers=settings.grow_layers or None,
        seed=settings.grow_seed,
        noise=settings.grow_noise,
        norms=settings.grow_norms,
        fill=settings.grow_fill,
    )


def grow_state(
    source: Source, target: Config, method: Method, options: Options
) -> dict[str, Tensor]:
    """Return the grown weights, computed in fp64: they are rounded once, when they are loaded."""

    def wide(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: x.double() if x.is_floating_point() else x for n, x in state.items()}

    options = dataclasses.replace(
        options,
        operator=None if source.operator is None else wide(source.operator),
        share=source.share,
        in_matrix=source.in_matrix,
    )
    return method(wide(source.state), source.config, target, options)


def fresh_weights(task: Task, target: Config, seed: int) -> dict[str, Tensor]:
    """Return new weights of a target, drawn from the seed of growth."""
    with torch.random.fork_rng(devices=()):
        # model initialisation draws from torch's global generator
        torch.manual_seed(seed)
        weights: dict[str, Tensor] = task.build_model(dataclasses.replace(target)).state_dict()
    return weights


def grow_loaded(
    cfg: FairseqConfig, loaded: tuple[str, dict[str, Any]] | None, task: Task
) -> tuple[str, dict[str, Any]] | None:
    """Return what a run starts from, grown if ``--grow-from`` is what it starts from.

    Args:
        cfg: the configuration of the run; its model's is the target.
        loaded: path and content of the file; a run that goes on has another file, and is left
            alone.
        task: of the run.
    """
    settings = cfg.checkpoint
    if loaded is None or settings.grow_from is None or loaded[0] != settings.grow_from:
        return loaded
    path, content = loaded
    learned = isinstance(config_of(content).model, LigoSettings)
    name, method = choose_method(settings.grow_method, learned)
    options = options_of(settings)
    if not learned:  # before anything is built
        method.check(config_of(content).model, cfg.model, options)
    if method.needs_fresh:
        options = dataclasses.replace(options, fresh=fresh_weights(task, cfg.model, options.seed))
    source = read_source(path, content, task)
    check_operator(source, cfg.model)
    reason = method.check(source.config, cfg.model, options)
    trained = config_of(content).criterion
    reason = reason or contrast_reason(name, source.config, cfg.model, trained, cfg.criterion)
    verdict = "the same function" if reason is None else f"not exact: {reason}"
    logger.info("grown by %s from %s: %s", name, os.path.basename(path), verdict)
    carried = None
    if settings.grow_optimizer == "asymmetric":
        carried = _carried(
            content,
            source,
            lambda x: grow_state(source._replace(state=x), cfg.model, method, options),
        )
    state = grow_state(source, cfg.model, method, options)
    # what the loss has learned (projections, W) fits the source's width alone
    return path, {
        **content, "model": state, "criterion": None, "carried": carried, "grown_by": name
    }  # fmt: skip


def _carried(
    content: Mapping[str, Any],
    source: Source,
    grow: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> Carried:
    """Return what the optimizer of the grown model inherits from the source's checkpoint."""
    saved, last = content.get("last_optimizer_state"), content["optimizer_history"][-1]
    if saved is None or source.operator is not None:
        what = "is a learned operator" if saved is not None else "holds no optimizer state"
        raise ConfigError(f"{FLAG}: the source {what}: use --grow-optimizer reset")
    shapes = {name: x.shape for name, x in source.state.items()}
    return Carried(last["optimizer_name"], saved, shapes, inherited_layers(source.state, grow))


def recall_source(cfg: FairseqConfig, loaded: tuple[str, dict[str, Any]] | None) -> FairseqConfig:
    """Return a configuration by which an operator that goes on learning needs no source file.

    Args:
        cfg: of the run.
        loaded: path and content of the file that the run starts from.
    """
    model = cfg.model
    if loaded is None or not isinstance(model, LigoSettings):
        return cfg
    saved = (record_of(loaded[1]).get("config") or {}).get("model") or {}
    known = saved.get("ligo_source_config")
    return cfg.changed(model=dataclasses.replace(model, ligo_source_config=known))

"""Models and tasks from checkpoints: the one way that leads from a file to what computes.

:func:`fairseq.checkpoint.layout.read_state` reads the file, ``config_of`` its settings; these
build what the settings say. Everything that uses a model that exists goes this way; a run that
goes on also restores its training, see :mod:`fairseq.training.restore`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fairseq import tasks
from fairseq.checkpoint.layout import explain, vocabulary_of
from fairseq.config.sections import FairseqConfig
from fairseq.errors import ConfigError, FairseqError
from fairseq.protocols import Settings, StateDict, Task
from fairseq.tasks.base import FairseqTask
from fairseq.tasks.dictionaries import fit_dictionary


def task_of(content: StateDict, config: FairseqConfig) -> FairseqTask:
    """Return the task of a checkpoint, for evaluation alone."""
    task: FairseqTask = tasks.setup_task(config.task)
    fit_dictionary(task, vocabulary_of(content))
    task.load_state_dict(content["task_state"] or {})
    task.only_evaluates = True
    return task


def check_targets(model: object, task: object) -> None:
    """Refuse a model that predicts other tokens than its task asks for.

    A plug-in that does not say what it predicts (``supported_targets``), or asks for (``targets``),
    is trusted.

    Raises:
        ConfigError: if the positions of the one's output mean other tokens than the other's.
    """
    wanted = set(getattr(task, "targets", None) or ())
    given = set(getattr(model, "supported_targets", wanted))
    if not wanted <= given:
        name = getattr(getattr(task, "cfg", None), "_name", None) or type(task).__name__
        raise ConfigError(
            f"--task {name} asks for tokens that are hidden in the input, and "
            f"{type(model).__name__} predicts {sorted(given)} tokens: name the task that the model "
            "is for (a causal model: --task language_modeling), or another --arch"
        )


def model_of(
    state: Mapping[str, Tensor], settings: Settings, task: Task, path: str, strict: bool = True
) -> Any:
    """Return a model with its weights.

    Args:
        state: the weights, by name.
        settings: of the model.
        task: builds it; its dictionary must be the model's.
        path: of the file, for messages.
        strict: whether missing or surplus tensors are errors.

    Raises:
        CheckpointError: if the weights do not fit the settings, or the dictionary.
    """
    model = built_for_weights(task, settings)
    give_weights(model, state, settings, path, strict)
    return model


def built_for_weights(task: Task, settings: Settings) -> Any:
    """Return a model that is to be given weights, as its task builds it.

    Tasks of older plug-ins have no ``from_checkpoint``.
    """
    takes = inspect.signature(task.build_model).parameters.values()
    if any(p.name == "from_checkpoint" or p.kind is p.VAR_KEYWORD for p in takes):
        return task.build_model(settings, from_checkpoint=True)
    return task.build_model(settings)


def give_weights(
    model: Any, state: Mapping[str, Tensor], settings: Settings, path: str, strict: bool = True
) -> None:
    """Give a model the weights of a file; see :func:`model_of`.

    Raises:
        CheckpointError: if they do not fit.
    """
    try:
        model.load_state_dict(state, strict=strict, model_cfg=settings)
    except (FairseqError, RuntimeError) as error:
        raise explain(error, path) from error

"""A teacher: a model that students are compared with, in a room of its own.

It is no part of the criterion that asks it: not among its parameters, not in checkpoints, averages
or wrappers, not touched by casts or by the switch to training. Files of this project, of the
original and folders of Hugging Face are read directly.

Shapes: B batch, T time, N predicted positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq.checkpoint.layout import config_of, read_state
from fairseq.config import options
from fairseq.config.schema import parse_dict
from fairseq.config.sections import FairseqConfig
from fairseq.criterions.base import FairseqCriterion
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.dictionary_record import compare_with_record
from fairseq.distributed.device import choose_device
from fairseq.errors import CheckpointError, ConfigError, MissingFileError
from fairseq.files.io import checkpoints_there, sha256_of
from fairseq.models.base import BaseFairseqModel
from fairseq.modules.predictions import tells_projection
from fairseq.tasks.base import FairseqTask
from fairseq.tasks.loading import built_for_weights, give_weights
from fairseq.utils import split_paths

logger = logging.getLogger(__name__)


class ShortTeacherError(ConfigError):
    """A teacher that fits its student but for the samples, which are longer than it reaches."""


class Teacher:
    """A frozen model with its own device and type.

    Attributes:
        facts: path and digest, as checkpoints of its students keep them.
    """

    def __init__(
        self,
        model: BaseFairseqModel,
        path: str,
        digest: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device = device
        self.facts = {"path": path, "sha256": digest}

    def outputs(
        self, net_input: Mapping[str, Any], positions_N: Tensor | None, **wanted: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return what the model says of a batch, without gradients, dropout and autocast.

        The first of the two are the operands of the projection, or hidden states (B, T, C).

        Args:
            net_input: the batch, as the student sees it.
            positions_N: flat positions whose projection is wanted; None for none, which models
                without a vocabulary head can do, too.
            **wanted: further outputs, such as ``return_all_hiddens``.
        """
        if positions_N is None:
            wanted["features_only"] = True
        else:
            wanted["predicted_positions"] = positions_N
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.model.eval()(**net_input, **wanted)


class _Source(NamedTuple):
    state: dict[str, Tensor]
    model: Any  # the model's settings
    dictionary: Dictionary | None


def attach_teacher(
    config: FairseqConfig,
    task: FairseqTask,
    model: BaseFairseqModel,
    criterion: FairseqCriterion,
    required: bool = True,
) -> None:
    """Give a criterion that wants one its teacher, its cache, or both.

    Args:
        config: the whole configuration.
        task: builds the model, and knows the dictionary.
        model: the student.
        criterion: with ``wanted()`` and ``attach(model, teacher, cache)``; others are left alone.
        required: whether a teacher that is missing, or ends before the samples do, is an error;
            otherwise the criterion does without.

    Raises:
        CheckpointError: if the teacher cannot be read.
        ConfigError: if it does not fit the student.
        MissingFileError: if it is missing.
    """
    wanted = criterion.wanted()
    settings, cache, teacher = config.criterion, None, None
    try:
        if "cache" in wanted:
            from fairseq.teacher.cache import TeacherCache

            cache = TeacherCache(settings.teacher_cache, task.target_dictionary)
        if "teacher" in wanted:
            teacher = load_teacher(config, task, model)
    except (MissingFileError, ShortTeacherError) as error:
        if required:
            raise
        logger.warning("%s; only the terms of the student alone are computed", error)
        return
    if wanted:
        criterion.attach(model, teacher, cache)


def load_teacher(config: FairseqConfig, task: FairseqTask, student: BaseFairseqModel) -> Teacher:
    """Load the teacher that the criterion's settings name, and see that it fits the student."""
    settings = config.criterion
    path = Path(settings.teacher_path).expanduser()
    if not path.exists():
        raise MissingFileError(f"--teacher-path not found: {path}. {checkpoints_there(path)}")
    overrides = parse_dict("--teacher-overrides", settings.teacher_overrides)
    source = _from_folder(path, overrides) if path.is_dir() else _from_file(path, overrides)
    model = built_for_weights(task, source.model)
    # the kind goes first: models of another kind have another dictionary, too
    _check_fit(model, student, task, str(path), settings.alpha_ce or settings.alpha_mse)
    state = _with_rows_of(source, task.source_dictionary, str(path))
    give_weights(model, state, source.model, str(path))
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise CheckpointError(f"the teacher {path} has weights that are not finite: {name}")
    dtype = getattr(torch, settings.teacher_dtype)
    return Teacher(model, str(path), digest_of(path), choose_device(config), dtype)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of the configuration and the weights of a folder."""
    if path.is_file():
        return sha256_of(path)
    total = hashlib.sha256()
    for part in sorted(path.iterdir()):
        if part.name == "config.json" or part.suffix in (".safetensors", ".bin"):
            # names count: weights in exchanged files are other weights
            total.update(f"{part.name} {sha256_of(part)}\n".encode())
    return total.hexdigest()


def _from_folder(path: Path, overrides: dict[str, Any]) -> _Source:
    from fairseq.export.reading import read_huggingface

    read = read_huggingface(path)
    config = options.make_config({**read.settings, **overrides})
    return _Source({**read.state}, config.model, read.dictionary)


def _from_file(path: Path, overrides: dict[str, Any]) -> _Source:
    state = read_state(path)
    config = config_of(state, overrides)
    recorded = split_paths(getattr(config.task, "data", None) or "")
    for folder in (*([Path(overrides["data"])] if "data" in overrides else ()), path.parent,
                   *(Path(name) for name in recorded if name)):  # fmt: skip
        if (folder / "dict.txt").is_file():
            dictionary = Dictionary.load(folder / "dict.txt")
            compare_with_record(str(path), state, dictionary)
            return _Source(state["model"], config.model, dictionary)
    return _Source(state["model"], config.model, None)


# -- does it fit -----------------------------------------------------------------------------------


def _with_rows_of(source: _Source, ours: Dictionary, path: str) -> dict[str, Tensor]:
    """Return the state with one row for each of our symbols, in our order.

    Symbols that only round the size of a dictionary do not count; the teacher's rows for those
    that we lack are left out.

    Raises:
        ConfigError: if the dictionaries differ.
    """
    tables = {
        name: value
        for name, value in source.state.items()
        if name.endswith(("embed_tokens.weight", "lm_head.weight", "lm_head.bias",
                          "output_projection.weight", "output_projection.bias"))
    }  # fmt: skip
    rows = max((len(value) for value in tables.values()), default=len(ours))
    theirs = source.dictionary
    if theirs is None:
        logger.warning(
            "the teacher %s has no dict.txt beside it, so its ids cannot be compared with those of "
            "the data; name its data folder with --teacher-overrides \"{'data': ...}\"",
            path,
        )
        if rows != len(ours):
            raise ConfigError(
                f"the teacher {path} knows {rows} tokens, the dictionary of the data {len(ours)}"
            )
        return source.state
    mask = ours.mask_word
    if mask in ours and mask not in theirs and rows != len(theirs):
        # the last row is the mask, which its task added behind the symbols of the file
        theirs = theirs.resized(rows - 1) or theirs
        theirs.add_symbol(mask)
    elif rows != len(theirs):
        theirs = theirs.resized(rows) or theirs
    named = [[d[i] for i in range(len(d)) if not d.is_filler(i)] for d in (theirs, ours)]
    if named[0] != named[1] or len(theirs) != rows:
        pairs = enumerate(zip(*named, strict=False))
        place = next((n for n, (a, b) in pairs if a != b), min(map(len, named)))
        words = [repr(names[place]) if place < len(names) else "nothing" for names in named]
        raise ConfigError(
            f"the dictionaries differ: symbol {place} is {words[0]} for the teacher {path} "
            f"({len(theirs)} symbols, {rows} rows), {words[1]} in the data ({len(ours)}); student "
            "and teacher must share one: binarize the data with the teacher's dict.txt"
        )
    lacking = len([1 for symbol in ours.symbols if symbol not in theirs])
    if lacking:
        raise ConfigError(
            f"the dictionary of the data is rounded up by {lacking} symbols for which the teacher "
            f"{path} has no rows: binarize the data with the teacher's dict.txt"
        )
    row_V = torch.tensor([theirs.index(symbol) for symbol in ours.symbols])
    if torch.equal(row_V, torch.arange(rows)):
        return source.state
    return {**source.state, **{name: value[row_V] for name, value in tables.items()}}


def _no_language_model(teacher: BaseFairseqModel, path: str) -> str:
    """Return what to do about a teacher that says of no token what it predicts."""
    from fairseq.models.pcfg_lookup import PcfgLookup

    if isinstance(teacher, PcfgLookup):
        return (
            f"the teacher {path} is a lookup table (--arch pcfg_lookup), which has neither hidden "
            "states nor a table of logits: to learn the true distribution of every masked word, "
            "train without a teacher, --criterion masked_lm_truth --grammar FILE --soft-targets"
        )
    return (
        f"the teacher {path} does not say which tokens it predicts ({type(teacher).__name__} has "
        "no supported_targets): name a masked or a causal language model"
    )


def _check_fit(
    teacher: BaseFairseqModel,
    student: BaseFairseqModel,
    task: FairseqTask,
    path: str,
    at_logits: float,
) -> None:
    """Refuse a teacher of the other kind, with a shorter reach, or without the logits needed."""
    # positions mean the next token to one kind and a masked one to the other
    kinds = [set(getattr(model, "supported_targets", ())) for model in (teacher, student)]
    if not kinds[0]:
        raise ConfigError(_no_language_model(teacher, path))
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"the teacher {path} predicts {sorted(kinds[0])}, the student {sorted(kinds[1])}: "
            "masked models learn from masked ones, causal ones from causal ones"
        )
    blank = [getattr(getattr(m, "config", None), "mask_embedding", "") for m in (teacher, student)]
    if "zero" in blank and blank[0] != blank[1]:
        raise ConfigError(
            f"the teacher {path} and the student hide tokens differently: --mask-embedding "
            f"{blank[0] or 'learned'} and {blank[1] or 'learned'}; they must have the same"
        )
    decoder = getattr(teacher, "decoder", None)
    headless = getattr(getattr(teacher, "config", None), "head", None) == "none"
    headless = headless or getattr(decoder, "adaptive_softmax", None) is not None
    if at_logits and (headless or not tells_projection(teacher)):
        raise CheckpointError(
            f"{path} has no table of all logits: it can teach hidden states only (--alpha-ce 0, "
            "--alpha-mse 0)"
        )
    limit, wanted = teacher.max_positions(), getattr(task.cfg, "tokens_per_sample", None)
    if isinstance(limit, int) and isinstance(wanted, int):
        # the sign of the beginning comes on top of the sample's tokens
        wanted += bool(getattr(task.cfg, "add_bos_token", False))
        if wanted > limit:
            raise ShortTeacherError(
                f"samples have up to {wanted} tokens (--tokens-per-sample), but the teacher {path} "
                f"reaches {limit}: shorten them"
            )

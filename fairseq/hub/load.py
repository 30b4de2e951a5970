"""Loading a model for use: by folder, archive or published name.

Works with torch, numpy and the model's tokenizer alone.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq import utils
from fairseq.checkpoint import with_suffix
from fairseq.checkpoint.layout import config_of, read_state, record_of, upgrade_state
from fairseq.config.build import flatten, plain
from fairseq.config.components import class_of
from fairseq.config.registry import config_class
from fairseq.config.schema import default_of, is_reference, parse_dict, public_fields
from fairseq.config.sections import COMPONENTS, SECTIONS, FairseqConfig
from fairseq.config.upgrade import OLD_NAMES
from fairseq.data.storage.load import folder_of_dictionary
from fairseq.errors import CheckpointError, ConfigError, MissingFileError, did_you_mean
from fairseq.files import archives
from fairseq.files.archives import cached_name as url_to_filename  # noqa: F401 - for plug-ins
from fairseq.lazy import lazy_names
from fairseq.protocols import Settings
from fairseq.tasks.dictionaries import check_dictionaries
from fairseq.tasks.loading import check_targets, model_of, task_of

logger = logging.getLogger("fairseq.hub_utils")

__getattr__, __dir__, _names = lazy_names(
    __name__,
    dict.fromkeys(
        ("BPEHubInterface", "GeneratorHubInterface", "TokenizerHubInterface"),
        "fairseq.hub.language_model",
    ),
)

# files that lie beside a model -> the setting that names them
COMPANIONS = {
    "code": "bpe_codes",
    "bpecodes": "bpe_codes",
    "sentencepiece.bpe.model": "sentencepiece_model",
    "merges.txt": "bpe_merges",
    "vocab.json": "bpe_vocab",
    "tokenizer.json": "byte_level_tokenizer",
    "vocab.txt": "wordpiece_vocab",
    "encoder.json": "gpt2_encoder_json",
    "vocab.bpe": "gpt2_vocab_bpe",
}


def companions(*folders: str | os.PathLike[str]) -> dict[str, str]:
    """Return the files of text encoders that lie in folders, by setting; earlier folders win."""
    by_setting: dict[str, str] = {}
    for folder in folders:
        for file, setting in COMPANIONS.items():
            if (path := Path(folder) / file).is_file():
                by_setting.setdefault(setting, str(path))
    return by_setting


def from_pretrained(
    model_name_or_path: str | os.PathLike[str],
    checkpoint_file: str = "model.pt",
    data_name_or_path: str | os.PathLike[str] = ".",
    archive_map: Mapping[str, object] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Load models with their configuration and task.

    Args:
        model_name_or_path: folder, archive, URL, or a name of ``archive_map``.
        checkpoint_file: file inside the folder; several are joined with ``:``.
        data_name_or_path: folder with the dictionary; relative to the model folder if it starts
            with a dot. If the model folder itself has none, that which the model was trained on.
        archive_map: published names and their addresses.
        **kwargs: override settings of the checkpoint. ``bpe=None`` means the checkpoint's own
            encoder or, if it names none, the one its dictionary was made with; ``bpe="none"``
            that words are the dictionary's.

    Returns:
        ``{"args": configuration, "task": task, "models": list of models}``.

    Raises:
        ConfigError: for what cannot be a name.
        MissingFileError: if the model cannot be found.
    """
    model_name_or_path = _name("model_name_or_path", model_name_or_path)
    checkpoint_file = _name("checkpoint_file", checkpoint_file)
    data_name_or_path = _name("data_name_or_path", data_name_or_path)
    entry = (archive_map or {}).get(model_name_or_path, model_name_or_path)
    if isinstance(entry, Mapping):
        extra = {key: value for key, value in entry.items() if key != "path"}
        checkpoint_file = extra.pop("checkpoint_file", checkpoint_file)
        kwargs = {**extra, **kwargs}
        entry = entry["path"]
    if "data" in kwargs:
        raise ConfigError("give the folder of the dictionary as data_name_or_path, not as data")
    given = list(kwargs)
    folder = locate(str(entry), model_name_or_path)
    paths = [str(folder / name) for name in checkpoint_file.split(os.pathsep)]
    state = read_state(paths[0])
    data = _data_folder(data_name_or_path, folder, state)
    kwargs["data"] = str(data.resolve())
    kwargs = {**companions(data, folder), **kwargs}
    if kwargs.get("user_dir") is not None:
        from types import SimpleNamespace

        from fairseq.config.plugins import import_user_module

        import_user_module(SimpleNamespace(user_dir=kwargs.pop("user_dir")))
    without = kwargs.get("bpe") == "none"
    kwargs["bpe"] = encoder_name(kwargs.get("bpe"), state, data)
    overrides = {key: value for key, value in kwargs.items() if value is not None}
    models, config, task = load_model_ensemble_and_task(
        paths, overrides, state=state if len(paths) == 1 else None
    )
    if without:
        config.bpe = None
    name_unknown(given, config)
    return {"args": config, "task": task, "models": models}


def _name(what: str, value: object) -> str:
    """Return a name or path as a text.

    Raises:
        ConfigError: saying what it is instead.
    """
    path = value if isinstance(value, str | os.PathLike) else None
    if path is None or not isinstance(text := os.fspath(path), str):
        raise ConfigError(f"{what} is a name or a path, not {type(value).__name__} ({value!r})")
    return text


def _data_folder(name: str, folder: Path, state: Mapping[str, Any]) -> Path:
    """Return the folder of the dictionary, see :func:`from_pretrained`."""
    if not name.startswith("."):
        return Path(name)
    return (folder_of_dictionary(folder, state) if name == "." else None) or folder / name


def name_unknown(names: Iterable[str], config: FairseqConfig) -> None:
    """Warn of settings that were to replace those of a checkpoint, and are none of anything's."""
    known = {*vars(flatten(config)), *OLD_NAMES, *COMPONENTS.values(), *COMPANIONS.values()}
    known.add("load_checkpoint_heads")  # of RoBERTa, which gives it whatever the file holds
    for name in sorted({*names} - known):
        logger.warning(
            "no setting of this model is called '%s'%s: it is ignored",
            name,
            did_you_mean(name, known),
        )


def interface_of(
    model_class: Any,
    folder: str | os.PathLike[str],
    file: str,
    data: str | os.PathLike[str],
    /,
    **kwargs: Any,
) -> Any:
    """Load models by :func:`from_pretrained` and wrap them in what ``model_class`` hands out."""
    loaded = from_pretrained(folder, file, data, model_class.hub_models(), **kwargs)
    parts = loaded["args"], loaded["task"], loaded["models"]
    interface = model_class.hub_interface(*parts)
    if interface is not None:
        return interface
    from fairseq.hub.language_model import GeneratorHubInterface

    return GeneratorHubInterface(*parts)


def load_archive_file(archive_file: str) -> str:
    """Return the folder of a model: as given, unpacked, or fetched and unpacked.

    Raises:
        MissingFileError: if it is nowhere.
        CheckpointError: if the archive is damaged or unsafe.
    """
    return str(locate(archive_file, archive_file))


def encoder_name(asked: str | None, state: Mapping[str, Any], data: Path) -> str | None:
    """Return the text encoder: asked for, the checkpoint's, or what the dictionary looks like.

    An import records if there is none. Otherwise a dictionary of decimal numbers holds byte-level
    pieces if ``tokenizer.json`` lies beside it, GPT-2's if not; any other one holds words, as does
    that of a task that reads no data (a grammar's).
    """
    if asked is not None:
        return None if asked == "none" else asked
    config = config_of(state, settle=False)
    recorded = getattr(config, "bpe", None)
    if recorded is not None:
        return str(recorded._name)
    made = config.task is not None and not hasattr(config.task, "data")
    if made or record_of(state).get("text_encoder") == "none":
        return None
    if (data / "tokenizer.json").is_file():
        return "byte_level"
    dictionaries = [
        path for path in (data / "dict.txt", data / "input0/dict.txt") if path.is_file()
    ]
    if not dictionaries:
        return "gpt2"
    path = dictionaries[0]
    with open(path, encoding="utf-8-sig") as handle:
        words = [line.split(" ")[0] for _, line in zip(range(200), handle, strict=False)]
    words = [word for word in words if word and not word.startswith("madeupword")]
    return "gpt2" if words and all(word.isdigit() for word in words) else None


def locate(address: str, name: str) -> Path:
    """Return the folder of a model: as given, unpacked from an archive, or fetched and unpacked.

    Args:
        address: folder, archive or URL.
        name: what the user wrote, for messages.

    Raises:
        MissingFileError: if it is nowhere; the message says where a download may be put by hand.
    """
    if os.path.isdir(address):
        return Path(address)
    if address.endswith(".pt") and os.path.isfile(address):  # it is a zip file, too
        raise MissingFileError(
            f"{address} is a checkpoint, not a folder: give its folder, and checkpoint_file="
            f"'{os.path.basename(address)}'"
        )
    if archives.is_archive(address):
        return archives.extract(address, archives.cache_folder() / f"{_digest(address)}.unpacked")
    if "://" not in address:
        raise MissingFileError(
            f"no model called '{name}' and no folder or archive {address}; give the folder that "
            "holds the checkpoint"
        )
    cached = archives.cache_folder() / archives.cached_name(address)
    unpacked = cached.with_name(cached.name + ".unpacked")
    if unpacked.is_dir() or cached.is_file():
        return archives.extract(cached, unpacked)
    for older in sorted(cached.parent.glob(f"{cached.name}.*")):
        if archives.is_archive(older):
            return archives.extract(older, unpacked)
        if older.is_dir() and older != unpacked:
            return older
    _download(address, cached, name)
    return archives.extract(cached, unpacked)


def _digest(path: str) -> str:
    stat = os.stat(path)
    return archives.cached_name(f"{os.path.abspath(path)}:{stat.st_size}:{stat.st_mtime_ns}")


def _download(url: str, target: Path, name: str) -> None:
    import urllib.error
    import urllib.request

    from fairseq.files.io import atomic_write

    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=30) as reply, atomic_write(target) as writer:
            expected = reply.headers.get("Content-Length")
            while block := reply.read(1 << 20):
                writer.write(block)
            if expected is not None and writer.tell() != int(expected):
                raise OSError(f"only {writer.tell():,} of {int(expected):,} bytes arrived")
    except (urllib.error.URLError, OSError) as error:
        raise MissingFileError(
            f"'{name}' could not be downloaded from {url} ({error}). Without a network, fetch it "
            f"elsewhere and save it as {target}"
        ) from error


def load_model_ensemble(
    filenames: Sequence[str],
    arg_overrides: Mapping[str, object] | None = None,
    task: object = None,
    strict: bool = True,
    suffix: str = "",
    num_shards: int = 1,
    state: dict[str, Any] | None = None,
) -> tuple[list[Any], Any]:
    """Load models; returns ``(models, configuration)``. See the next function."""
    models, cfg, _ = load_model_ensemble_and_task(
        filenames, arg_overrides, task, strict, suffix, num_shards, state
    )
    return models, cfg


def load_model_ensemble_and_task(
    filenames: Sequence[str],
    arg_overrides: Mapping[str, object] | None = None,
    task: Any = None,
    strict: bool = True,
    suffix: str = "",
    num_shards: int = 1,
    state: dict[str, Any] | None = None,
) -> tuple[list[Any], Any, Any]:
    """Load models and the task they serve.

    Args:
        filenames: checkpoints; several form an ensemble.
        arg_overrides: values that replace the checkpoints'.
        task: the task, if there is one already.
        strict: whether missing or surplus tensors are errors.
        suffix: inserted before ``.pt``.
        num_shards: only 1 is supported.
        state: the content of the (only) file, if it was read already.

    Returns:
        ``(models, configuration of the last one, task)``.

    Raises:
        CheckpointError: if a file is damaged or does not fit its configuration.
    """
    if num_shards != 1:
        raise CheckpointError(
            f"a checkpoint in {num_shards} shards cannot be loaded; merge them with the program "
            "that wrote them"
        )
    loaded: list[Any] = []
    config: FairseqConfig | None = None
    for filename in filenames:
        name = with_suffix(filename, suffix)
        content = read_state(name) if state is None else upgrade_state(state)
        # frozen nowhere: plug-ins complete it while they build, and programs change what they get
        config = config_of(content, arg_overrides).thawed()
        if task is None:
            task = task_of(content, config)
        check_dictionaries(name, content, task)
        model = model_of(content["model"], config.model, task, name, strict)
        check_targets(model, task)
        loaded.append(model)
    return loaded, config, task


def stated_settings(cfg: Settings, task: str | None = None) -> dict[str, Any]:
    """Return the settings that a configuration states, flat.

    Args:
        cfg: a dict with just these settings; or a complete configuration (ours, a DictConfig, a
            Namespace), of which ``path``, ``data`` and what differs from the defaults counts.
        task: name of the task whose settings count, too; components are the checkpoint's.
    """
    if isinstance(cfg, FairseqConfig):
        cfg = flatten(cfg)
    if not isinstance(cfg, argparse.Namespace):
        values = plain(cfg)
        if not isinstance(values.get("common_eval"), dict):
            return values
        names = [*SECTIONS, "task"] if task else list(SECTIONS)
        shared = [values[name] for name in names if isinstance(values.get(name), dict)]
        data = (values.get("task") or {}).get("data")
        cfg = argparse.Namespace(**{k: v for section in shared for k, v in section.items()})
        cfg.data = data
    defaults = vars(flatten(FairseqConfig()))
    for name in COMPONENTS.values():
        defaults.pop(name, None)  # components are the checkpoint's
    if task:
        defaults |= {
            field.name: default_of(field)
            for field, _ in public_fields(config_class(class_of("task", task)))
            if not is_reference(default_of(field))
        }
    stated = {k: v for k, v in vars(cfg).items() if k in defaults and v != defaults[k]}
    return {**stated, "data": getattr(cfg, "data", None)}


def load_by_settings(
    flat: Mapping[str, Any], ensemble: bool = False, state: dict[str, Any] | None = None
) -> tuple[list[Any], Any, Any]:
    """Load ``(models, configuration, task)`` of the checkpoint ``flat["path"]``.

    Args:
        flat: flat settings, see :func:`fairseq.evaluation.validate`.
        ensemble: load every checkpoint that is named, not only the first.
        state: the content of the first file, if it was read already.

    Raises:
        ConfigError: if no path is given, or ``model_overrides`` is no dict.
    """
    path = flat.get("path")
    if not path:
        raise ConfigError("--path is missing: name the checkpoint to evaluate")
    replaced = parse_dict("--model-overrides", flat.get("model_overrides"))
    overrides = {**replaced, **flat}
    for name in ("path", "model_overrides"):
        overrides.pop(name, None)
    for name in ("batch_size", "max_tokens"):  # what is given counts for the evaluation, too
        if name in overrides:
            overrides.setdefault(f"{name}_valid", overrides[name])
    overrides.setdefault("distributed_world_size", 1)
    # the device that this command names counts, whatever the training named
    if "device" in overrides:
        overrides.setdefault("cpu", False)
    elif overrides.get("cpu"):
        overrides["device"] = "cpu"
    paths = utils.split_paths(path) if ensemble else utils.split_paths(path)[:1]
    state = state if len(paths) == 1 else None
    models, config, task = load_model_ensemble_and_task(paths, overrides, state=state)
    name_unknown(replaced, config)
    if flat.get("data") and not hasattr(config.task, "data"):
        logger.warning(
            "--task %s, with which %s was trained, makes its samples itself: %s is not read. To "
            "evaluate on it, name a task that reads data (fairseq-validate: --task masked_lm "
            "--criterion masked_lm; fairseq-hessian: the same by --model-overrides)",
            getattr(config.task, "_name", None),
            paths[0],
            flat["data"],
        )
    return models, config, task


def load_causal_models(flat: Mapping[str, object]) -> tuple[list[Any], Any, Any]:
    """Load ``(models, configuration, task)`` of the checkpoints in ``flat["path"]``.

    Raises:
        ConfigError: if no path is given, or the checkpoint is no causal LM.
    """
    loaded = load_by_settings(flat, ensemble=True)
    if not hasattr(loaded[2], "eval_lm_dataloader"):
        raise ConfigError(
            f"{flat['path']} was trained with --task {loaded[1].task._name}, not "
            "language_modeling; evaluate it with fairseq-validate"
        )
    return loaded

"""Loading a model for use: by folder, archive or published name.

Works with torch, numpy and the model's tokenizer alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq import archives, checkpoint_utils
from fairseq.checkpoint_state import record_of
from fairseq.errors import MissingFileError
from fairseq.lazy import lazy_names
from fairseq.safe_load import safe_load

logger = logging.getLogger(__name__)

__getattr__, __dir__, _names = lazy_names(
    __name__,
    dict.fromkeys(
        ("BPEHubInterface", "GeneratorHubInterface", "TokenizerHubInterface"),
        "fairseq.generator_hub_interface",
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
    found: dict[str, str] = {}
    for folder in folders:
        for file, setting in COMPANIONS.items():
            if (path := Path(folder) / file).is_file():
                found.setdefault(setting, str(path))
    return found


def from_pretrained(
    model_name_or_path: str,
    checkpoint_file: str = "model.pt",
    data_name_or_path: str = ".",
    archive_map: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Load models with their configuration and task.

    Args:
        model_name_or_path: folder, archive, URL, or a name of ``archive_map``.
        checkpoint_file: file inside the folder; several are joined with ``:``.
        data_name_or_path: folder with the dictionary; relative to the model folder if it starts
            with a dot.
        archive_map: published names and their addresses.
        **kwargs: override settings of the checkpoint. ``bpe=None`` means the checkpoint's own
            encoder or, if it names none, the one its dictionary was made with; ``bpe="none"``
            that words are the dictionary's.

    Returns:
        ``{"args": configuration, "task": task, "models": list of models}``.

    Raises:
        MissingFileError: if the model cannot be found.
    """
    entry = (archive_map or {}).get(model_name_or_path, model_name_or_path)
    if isinstance(entry, Mapping):
        extra = {key: value for key, value in entry.items() if key != "path"}
        checkpoint_file = extra.pop("checkpoint_file", checkpoint_file)
        kwargs = {**extra, **{k: v for k, v in kwargs.items() if k not in extra or k == "bpe"}}
        entry = entry["path"]
    folder = locate(str(entry), model_name_or_path)
    data = Path(data_name_or_path)
    if data_name_or_path.startswith("."):
        data = folder / data_name_or_path
    kwargs["data"] = str(data.resolve())
    kwargs = {**companions(data, folder), **kwargs}
    if kwargs.get("user_dir") is not None:
        from types import SimpleNamespace

        from fairseq.user_dir import import_user_module

        import_user_module(SimpleNamespace(user_dir=kwargs.pop("user_dir")))
    paths = [str(folder / name) for name in checkpoint_file.split(os.pathsep)]
    state = checkpoint_utils.upgrade_state(safe_load(paths[0]))
    without = kwargs.get("bpe") == "none"
    kwargs["bpe"] = _encoder_name(kwargs.get("bpe"), state, data)
    overrides = {key: value for key, value in kwargs.items() if value is not None}
    models, config, task = checkpoint_utils.load_model_ensemble_and_task(
        paths, overrides, state=state if len(paths) == 1 else None
    )
    if without:
        config.bpe = None
    return {"args": config, "task": task, "models": models}


def _encoder_name(asked: str | None, state: Mapping[str, Any], data: Path) -> str | None:
    """Return the text encoder: asked for, the checkpoint's, or what the dictionary looks like.

    An import records if there is none. Otherwise a dictionary of decimal numbers holds byte-level
    pieces if ``tokenizer.json`` lies beside it, GPT-2's if not; any other one holds words.
    """
    if asked is not None:
        return None if asked == "none" else asked
    own = getattr(checkpoint_utils.config_of(state, settle=False), "bpe", None)
    if own is not None:
        return str(own._name)
    if record_of(state).get("text_encoder") == "none":
        return None
    if (data / "tokenizer.json").is_file():
        return "byte_level"
    found = [path for path in (data / "dict.txt", data / "input0/dict.txt") if path.is_file()]
    if not found:
        return "gpt2"
    path = found[0]
    with open(path, encoding="utf-8") as handle:
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

    from fairseq.file_io import atomic_write

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

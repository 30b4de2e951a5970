"""Reading checkpoints without running anything that is inside them.

Every file goes through PyTorch's restricted unpickler with a fixed list of allowed names and no
fallback. Containers of omegaconf, Namespaces and the original's enums are rebuilt as inert
stand-ins and turned into plain dicts. There is no switch that turns this off.
"""

from __future__ import annotations

import argparse
import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairseq.errors import CheckpointError
from fairseq.file_io import PathLike, require_file


class StandIn:
    """Takes the place of a foreign object: keeps its state, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Ignore the constructor arguments, but keep them."""
        self = super().__new__(cls)
        self.__dict__["_arguments"] = args
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.__dict__.update(state)


class ContainerStandIn(StandIn):
    """An omegaconf DictConfig or ListConfig."""


class NodeStandIn(StandIn):
    """An omegaconf leaf."""


class EnumStandIn(StandIn):
    """A choice of the original's configuration."""


class NumpyScalarStandIn(StandIn):
    """A numpy scalar or dtype, which some files hold among their statistics."""


_OMEGACONF_NODES = (
    "AnyNode",
    "BooleanNode",
    "BytesNode",
    "EnumNode",
    "FloatNode",
    "IntegerNode",
    "PathNode",
    "StringNode",
)
_FOREIGN: tuple[tuple[type, str], ...] = (
    (ContainerStandIn, "omegaconf.dictconfig.DictConfig"),
    (ContainerStandIn, "omegaconf.listconfig.ListConfig"),
    (StandIn, "omegaconf.base.ContainerMetadata"),
    (StandIn, "omegaconf.base.Metadata"),
    (StandIn, "omegaconf.base.SCMode"),
    *((NodeStandIn, f"omegaconf.nodes.{name}") for name in _OMEGACONF_NODES),
    (StandIn, "typing.Any"),
    (EnumStandIn, "fairseq.dataclass.constants.Choices"),
    (EnumStandIn, "enum.Choices"),
    (NumpyScalarStandIn, "numpy.core.multiarray.scalar"),
    (NumpyScalarStandIn, "numpy._core.multiarray.scalar"),
    (NumpyScalarStandIn, "numpy.dtype"),
)
_ALLOWED: list[Any] = [argparse.Namespace, collections.defaultdict, *_FOREIGN]


def verify_zip(path: PathLike) -> None:
    """Check the CRC of every part of a zip file.

    Raises:
        CheckpointError: naming the first damaged part, or saying that the file is cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {error}") from error
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the part {damaged} does not match its checksum")


def safe_load(path: PathLike, verify: bool = True) -> Any:
    """Load a ``torch.save`` file, new or old format, onto the CPU.

    Args:
        path: the file.
        verify: check the checksums inside the file first.

    Returns:
        its content; foreign containers as plain dicts and lists.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged, or holds objects that are not allowed.
    """
    file = require_file(
        path, "checkpoint", "Check the path; --restore-file is not inside save-dir."
    )
    zipped = _looks_zipped(file)
    if zipped and verify:
        verify_zip(file)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{file} was refused: it is damaged, or holds objects that could run code when loaded "
            f"({reason})"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    return make_plain(content)


def _looks_zipped(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def make_plain(value: Any) -> Any:
    """Replace stand-ins by plain values, at any depth; Namespaces stay Namespaces."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, ContainerStandIn):
        content = value.__dict__.get("_content")
        return make_plain(content)
    if isinstance(value, NodeStandIn):
        return make_plain(value.__dict__.get("_val"))
    if isinstance(value, EnumStandIn):
        return value.__dict__["_arguments"][0] if value.__dict__["_arguments"] else None
    if isinstance(value, StandIn):
        return None
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**{key: make_plain(item) for key, item in vars(value).items()})
    if isinstance(value, Mapping):
        return (
            type(value)((key, make_plain(item)) for key, item in value.items())
            if isinstance(value, collections.OrderedDict)
            else {make_plain(key): make_plain(item) for key, item in value.items()}
        )
    if isinstance(value, (list, tuple)):
        return type(value)(make_plain(item) for item in value)
    return value

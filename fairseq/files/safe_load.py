"""Reading checkpoints without running anything that is inside them.

Every file goes through PyTorch's restricted unpickler with a fixed list of allowed names and no
fallback; names that other libraries allowed in this process do not count. Containers of omegaconf,
the original's enums and numpy scalars are read as inert stand-ins and turned into plain values.
There is no switch that turns this off.

Files in today's format (a zip) carry checksums, which are verified first. Those from before
PyTorch 1.6 have none: only damage to their structure is noticed.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import contextlib
import enum
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq.errors import CheckpointError
from fairseq.files.io import PathLike, require_checkpoint
from fairseq.files.tensor_sizes import refuse_unbacked
from fairseq.protocols import StateDict


class StandIn:
    """Takes the place of a foreign object: keeps arguments and state, does nothing."""

    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: object) -> StandIn:
        """Keep the constructor's arguments."""
        self = super().__new__(cls)
        self.arguments = args
        return self

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: StateDict) -> None:
        self.state = state

    def plain(self) -> Any:
        """Return what is used instead; nothing for types and other bookkeeping."""
        return None


class Container(StandIn):
    """An omegaconf DictConfig or ListConfig."""

    content = "_content"

    def plain(self) -> Any:
        """Return the content; a value that was never set counts as None."""
        value = self.state.get(self.content) if isinstance(self.state, Mapping) else None
        return None if isinstance(value, str) and value == "???" else make_plain(value)


class Node(Container):
    """An omegaconf leaf."""

    content = "_val"


class Choice(StandIn):
    """A member of one of the original's enums."""

    def plain(self) -> Any:
        return make_plain(self.arguments[0]) if self.arguments else None


class NumpyType(StandIn):
    """A numpy dtype."""

    def of_scalar(self) -> np.dtype[Any]:
        """Return the type.

        Raises:
            CheckpointError: if it is none of a number.
        """
        name = str(self.arguments[0]) if self.arguments else ""
        if not re.fullmatch(r"[iu][1248]|f[248]|b1", name):
            raise CheckpointError(f"it holds a numpy scalar of the unknown type '{name}'")
        big_endian = isinstance(self.state, tuple) and self.state[1:2] == (">",)
        return np.dtype((">" if big_endian else "<") + name)


class NumpyScalar(StandIn):
    """A numpy scalar, which some files hold among their statistics."""

    def plain(self) -> Any:
        if len(self.arguments) != 2 or not isinstance(self.arguments[0], NumpyType):
            raise CheckpointError("it holds a malformed numpy scalar")
        return np.frombuffer(self.arguments[1], self.arguments[0].of_scalar(), count=1)[0].item()


_OMEGACONF_NODES = ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
# Types that omegaconf's bookkeeping names: mere names here, which construct nothing.
_TYPE_NAMES = {
    "builtins": ("bool", "bytes", "dict", "float", "int", "list", "str", "tuple"),
    "typing": ("Any", "Dict", "List", "Optional", "Tuple", "Union"),
    "_operator": ("getitem",),
    "omegaconf.base": ("ContainerMetadata", "Metadata", "SCMode"),
    "fairseq.dataclass.configs": (
        "CheckpointConfig",
        "CommonConfig",
        "CommonEvalConfig",
        "DatasetConfig",
        "DistributedTrainingConfig",
        "EMAConfig",
        "EvalLMConfig",
        "FairseqBMUFConfig",
        "FairseqConfig",
        "GenerationConfig",
        "InteractiveConfig",
        "OptimizationConfig",
    ),
}
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    collections.defaultdict,
    (Container, "omegaconf.dictconfig.DictConfig"),
    (Container, "omegaconf.listconfig.ListConfig"),
    *((Node, f"omegaconf.nodes.{name}Node") for name in _OMEGACONF_NODES),
    (Choice, "fairseq.dataclass.constants.Choices"),
    (Choice, "enum.Choices"),
    (NumpyScalar, "numpy.core.multiarray.scalar"),
    (NumpyScalar, "numpy._core.multiarray.scalar"),
    (NumpyType, "numpy.dtype"),
    *((StandIn, f"{module}.{name}") for module, names in _TYPE_NAMES.items() for name in names),
]


_SCALARS = {str, int, float, bool, type(None), bytes, complex, torch.dtype, torch.device}


@contextlib.contextmanager
def _only_our_list() -> Iterator[None]:
    """Allow our names and torch's own, nothing that others added in this process."""
    serialization: Any = torch.serialization
    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals(_ALLOWED)
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)


def verify_zip(path: PathLike) -> None:
    """Check the CRC of every part of a ``torch.save`` file.

    Raises:
        CheckpointError: naming the first damaged part, or saying that the file is cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # what is stored as it is cannot unpack to more than the file holds
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise CheckpointError(f"{path} is compressed: torch.save writes no such files")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken header makes of the reader
        raise CheckpointError(f"{path} is damaged or cut off: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the part {damaged} does not match its checksum")


def safe_load(path: PathLike) -> Any:
    """Load a ``torch.save`` file, new or old format, onto the CPU.

    Returns:
        its content; foreign containers as plain dicts and lists.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged, or holds objects that are not allowed.
    """
    file = require_checkpoint(path)
    if not file.stat().st_size:
        raise CheckpointError(f"{file} is no checkpoint: it is empty")
    if _looks_zipped(file):
        verify_zip(file)
    try:
        with _only_our_list():
            content = torch.load(file, map_location="cpu", weights_only=True)
        return make_plain(content)
    except CheckpointError as error:
        raise CheckpointError(f"{file} was refused: {error}") from error
    except Exception as error:  # damaged bytes can raise anything
        reason = "it is no checkpoint, but a text" if _is_text(file) else _reason(error)
        raise CheckpointError(f"{file} was refused: {reason}") from error


def _reason(error: Exception) -> str:
    """Return what is wrong, without torch's advice to switch the safe loader off."""
    foreign = re.search(r"GLOBAL (\S+) was not an allowed|unsupported GLOBAL (\S+)", str(error))
    if foreign is not None:
        return (
            f"it holds a {foreign[1] or foreign[2]}, which is not among the plain types that "
            "checkpoints are made of; loading it could run code"
        )
    if isinstance(error, RecursionError):
        return "its content is nested too deeply"
    inner = re.search(r"WeightsUnpickler error: *(.*)", str(error))
    text = (inner[1] if inner else str(error).partition("\n")[0]).strip()
    return f"it is damaged, or no checkpoint ({type(error).__name__}{': ' * bool(text)}{text})"


def _is_text(path: Path) -> bool:
    """Tell whether a file begins with lines of text."""
    with open(path, "rb") as handle:
        head = handle.read(512)
    with contextlib.suppress(UnicodeDecodeError):
        # a character may be cut at the end of what was read
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
        return all(character.isprintable() or character in "\r\n\t" for character in text)
    return False


def _looks_zipped(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def make_plain(value: Any) -> Any:
    """Replace stand-ins by plain values, at any depth.

    Namespaces stay Namespaces, ordered dicts stay ordered dicts.

    Raises:
        CheckpointError: for a stand-in that makes no sense, or a tensor that is not in the file.
        RecursionError: if a container holds itself.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if isinstance(value, StandIn):
        return value.plain()
    if isinstance(value, torch.Tensor):
        refuse_unbacked(value)
        return value
    if kind is argparse.Namespace:
        return argparse.Namespace(**{key: make_plain(item) for key, item in vars(value).items()})
    if isinstance(value, dict):
        mapping = collections.OrderedDict if kind is collections.OrderedDict else dict
        return mapping((make_plain(key), make_plain(item)) for key, item in value.items())
    return kind(map(make_plain, value)) if kind in (list, tuple, set) else value


# -- what can be read back -------------------------------------------------------------------------


def storable(value: Any, where: str = "state", copies: dict[Any, Any] | None = None) -> Any:
    """Return a copy of ``value`` that :func:`safe_load` reads: plain types, tensors on the CPU.

    Enums and numpy scalars become their values. Tensors that share memory (tied weights) still do.

    Args:
        value: nested containers of numbers, texts and tensors.
        where: what it is, for the message.
        copies: tensors that were copied already.

    Raises:
        CheckpointError: naming what cannot be stored, and where it is.
    """
    kind = type(value)
    copies = {} if copies is None else copies
    if kind in _SCALARS:
        return value
    if isinstance(value, torch.Tensor):
        return _on_cpu(value, copies)
    if isinstance(value, dict):
        mapping = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
        return mapping(
            (storable(key, f"a key of {where}"), storable(item, f"{where}.{key}", copies))
            for key, item in value.items()
        )
    if kind in (list, tuple, set, torch.Size):
        return kind(storable(item, where, copies) for item in value)
    if kind is argparse.Namespace:
        return argparse.Namespace(**storable(vars(value), where, copies))
    if isinstance(value, enum.Enum):
        return storable(value.value, where)
    if isinstance(value, np.generic):
        return storable(value.item(), where)
    module = kind.__module__.partition("._")[0]  # pathlib, also where it is pathlib._local
    raise CheckpointError(
        f"{where} holds a {module}.{kind.__qualname__}, which could not be loaded again; "
        "keep tensors, numbers, texts, lists and dicts there"
    )


def _on_cpu(tensor: torch.Tensor, copies: dict[Any, Any]) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor.detach()
    key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if key not in copies:
        copies[key] = tensor.detach().cpu()
    return copies[key]

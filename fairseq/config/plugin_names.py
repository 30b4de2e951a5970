"""Functions on configurations under the import path that plug-ins use."""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from fairseq.config.build import plain
from fairseq.config.flags import gen_parser_from_dataclass
from fairseq.config.registry import REGISTRIES
from fairseq.config.schema import (
    ChoiceEnum,
    FairseqDataclass,
    assign,
    choices_of,
    field_types,
    list_parser,
    without_optional,
)
from fairseq.config.sections import (
    DatasetConfig,
    DistributedTrainingConfig,
    FairseqConfig,
    LogFormat,
)
from fairseq.errors import ConfigError, did_you_mean
from fairseq.protocols import Settings

__all__ = [
    "convert_namespace_to_omegaconf",
    "eval_str_list",
    "gen_parser_from_dataclass",
    "interpret_dc_type",
    "merge_with_parent",
    "omegaconf_no_object_check",
    "overwrite_args_by_name",
]


def convert_namespace_to_omegaconf(args: argparse.Namespace | FairseqConfig) -> FairseqConfig:
    """Return flat settings as a configuration: read by attribute or by key, as a DictConfig is."""
    from fairseq.config.components import as_config

    if isinstance(args, FairseqConfig):
        return args
    return as_config(args).thawed()  # old programs go on writing to it


def overwrite_args_by_name(cfg: Settings, overrides: Mapping[str, object]) -> None:
    """Replace settings wherever they occur in a nested configuration, in place.

    Args:
        cfg: ours, a DictConfig, a dict or a Namespace, with sections of any of these kinds.
        overrides: new values by name; the name of a component (``"optimizer": "adam"``) replaces
            its section by the component's defaults.
    """
    get, put = _accessors(cfg)
    for key in _keys(cfg):
        value = get(key)
        if key in overrides and key in REGISTRIES and isinstance(overrides[key], str):
            component = REGISTRIES[key]["dataclass_registry"][overrides[key]]()
            component._name = overrides[key]
            put(key, component if isinstance(cfg, FairseqDataclass) else plain(component))
            overwrite_args_by_name(get(key), overrides)
        elif isinstance(value, (FairseqDataclass, MutableMapping, argparse.Namespace)):
            overwrite_args_by_name(value, overrides)
        elif key in overrides:
            put(key, overrides[key])


def _keys(cfg: Any) -> list[str]:
    if isinstance(cfg, FairseqDataclass):
        return cfg._get_all_attributes()
    return [str(key) for key in (vars(cfg) if isinstance(cfg, argparse.Namespace) else cfg)]


def _accessors(cfg: Settings) -> tuple[Callable[[str], Any], Callable[[str, Any], None]]:
    if isinstance(cfg, MutableMapping):
        return cfg.__getitem__, cfg.__setitem__
    return lambda key: getattr(cfg, key), lambda key, value: setattr(cfg, key, value)


def merge_with_parent(dc: FairseqDataclass, cfg: Settings, remove_missing: bool = False) -> Any:
    """Return a copy of ``dc`` with the values of ``cfg``.

    Args:
        dc: gives fields, types and defaults.
        cfg: a DictConfig, dict, Namespace or configuration.
        remove_missing: drop what ``dc`` does not know instead of raising.

    Raises:
        ConfigError: for an unknown key or a value of the wrong type.
    """
    values = plain(cfg)
    known = dc._get_all_attributes()
    for key in () if remove_missing else values:
        if key not in known:
            raise ConfigError(f"{type(dc).__name__} has no field {key}{did_you_mean(key, known)}")
    merged = copy.deepcopy(dc)
    assign(merged, values)
    merged._name = values.get("_name", merged._name)
    return merged


def eval_str_list(x: object, x_type: Callable[[Any], object] = float) -> list[Any] | None:
    """Read ``"1,2"``, ``"[1, 2]"``, ``"4"`` or a sequence as a list; None stays None."""
    return None if x is None else list_parser(x_type)(x)


def interpret_dc_type(field_type: object) -> Any:
    """Return the type behind a field's annotation: T for ``Optional[T]``, ``str`` for ``Any``.

    Raises:
        RuntimeError: if the annotation is text.
    """
    if isinstance(field_type, str):
        raise RuntimeError("the annotation must be a type, not text")
    return without_optional(field_type)


@contextlib.contextmanager
def omegaconf_no_object_check() -> Iterator[None]:
    """Do nothing: configurations hold any object."""
    yield


def _enum(kind: object) -> Any:
    return ChoiceEnum(choices_of(kind) or [])


LOG_FORMAT_CHOICES = _enum(LogFormat)
DATASET_IMPL_CHOICES = _enum(field_types(DatasetConfig)["dataset_impl"])
DDP_BACKEND_CHOICES = _enum(field_types(DistributedTrainingConfig)["ddp_backend"])
DDP_COMM_HOOK_CHOICES = _enum(field_types(DistributedTrainingConfig)["ddp_comm_hook"])
ZERO_SHARDING_CHOICES = _enum(field_types(DistributedTrainingConfig)["zero_sharding"])


def hydra_init(cfg_name: str = "config") -> None:
    """Do nothing: every reader of configurations knows the dataclasses already."""


def add_defaults(cfg: Settings) -> None:
    """Do nothing: defaults are filled in when ``cfg`` becomes a configuration."""

"""Settings from Python: flags by name, with values instead of words, and recipes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fairseq.config import options, plugins
from fairseq.config.components import class_of, make_config
from fairseq.config.registries import CHOICES
from fairseq.config.schema import coerce
from fairseq.config.sections import FairseqConfig
from fairseq.config.yaml import read_yaml
from fairseq.errors import ConfigError, did_you_mean


def config_from_settings(
    settings: Mapping[str, Any], recipes: Sequence[str | os.PathLike[str]] = ()
) -> FairseqConfig:
    """Return the configuration that ``fairseq-train`` makes of the same flags and recipes.

    Args:
        settings: flags by name, with or without dashes (``lr``, ``tokens_per_sample``,
            ``--tokens-per-sample``), ``data`` among them. Values are numbers, texts, lists and
            booleans, or what the command line would say; None leaves a flag out.
        recipes: YAML files; later ones win, settings win over all.

    Raises:
        MissingFileError: if a recipe or ``user_dir`` does not exist.
        RegistryError: for a component that does not exist.
        ConfigError: for a flag that does not exist or is refused, and for bad values.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f'settings are a dict such as {{"lr": 0.001}}, not {type(settings).__name__}'
        )
    named = {
        _stem(str(name)): os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in settings.items()
        if value is not None
    }
    plugins.import_user_module(argparse.Namespace(user_dir=named.get("user_dir")))
    recipe = read_yaml(*(os.fspath(path) for path in recipes)) if recipes else {}
    plugins.refuse_named_code(recipe, "user_dir" in named)
    parser = options.get_training_parser(argv=[])
    names = {flag: str(named[flag]) for flag in CHOICES if flag in named}
    names = {**options.component_names(recipe), **names}
    for flag, name in names.items():
        class_of(flag, name)  # one that does not exist is an error before its flags are
    chosen = options.complete_parser(parser, [], names)
    flat = {**chosen, **_by_field(parser, named)}
    flat["no_seed_provided"] = "seed" not in {**flat, **(recipe.get("common") or {})}
    return make_config(flat, recipe, reach=parser.sections)


def _stem(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _by_field(parser: argparse.ArgumentParser, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the fields that the flags set.

    The opposite of a flag (``epoch_checkpoints`` for ``--no-epoch-checkpoints``) sets that field.

    Raises:
        ConfigError: for a name that is no flag.
    """
    flags = {_stem(flag): act for act in parser._actions for flag in act.option_strings}
    flags |= {act.dest: act for act in parser._actions}
    flags.pop("help", None)
    values = {}
    for name, value in named.items():
        if name not in flags:
            raise ConfigError(
                f"there is no flag --{name.replace('_', '-')} of fairseq-train, with the chosen "
                f"components{did_you_mean(name, flags)}"
            )
        action = flags[name]
        opposite = name != action.dest and isinstance(action.const, bool)
        values[action.dest] = action.const is coerce(value, bool, name) if opposite else value
    return values

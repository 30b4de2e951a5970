"""fairseq-hydra-train: train from YAML through Hydra."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_cli.entry import command

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  fairseq-hydra-train --config-dir recipes --config-name base task.data=/path/to/data-bin
  fairseq-hydra-train --config-dir recipes --config-name base task.data=data-bin \\
      optimization.lr=[0.001] model.position=alibi
  fairseq-hydra-train task=masked_lm task.data=data-bin model=roberta_tiny criterion=masked_lm \\
      optimizer=adam optimization.lr=[0.001] optimization.max_update=1000 dataset.batch_size=32

A recipe has the sections of a configuration: common, task, model, optimizer, ... Overrides follow
Hydra's grammar; a setting that the recipe does not mention needs no + in front. The run stays in
the folder it is launched from, unless hydra.run.dir=FOLDER is given.
"""
# Paths that are written to: they are relative to the folder of the run, all others to the launch's.
OUTPUTS = ("save_dir", "log_file", "tensorboard_logdir")


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's own options; the rest are Hydra overrides."""
    from fairseq.config.flags import Parser

    parser = Parser(
        "fairseq-hydra-train",
        usage="fairseq-hydra-train --config-dir FOLDER --config-name NAME [section.key=value ...]",
        description="Train from a YAML recipe, composed by Hydra.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="folder with recipes")
    parser.add_argument("--config-name", "-cn", metavar="NAME", help="the recipe, without .yaml")
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
    parser.add_argument(
        "--multirun", "-m", action="store_true", help="taken from old scripts: one run, no sweep"
    )
    parser.add_argument("overrides", nargs="*", help="section.key=value, ~section.key removes it")
    return parser


def compose(
    config_dir: str | None, config_name: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """Return the configuration that Hydra composes, as a plain nested dict.

    Interpolations are left as they are. An override that names a component (``optimizer=adam``)
    and is no choice of a folder of recipes sets the component's name.

    Raises:
        ConfigError: for a recipe or an override that Hydra refuses.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fairseq.config.hydra_reader import checked_recipes, refuse_resolver
    from fairseq.config.sections import COMPONENTS
    from fairseq.errors import ConfigError

    folder = Path(config_dir or Path.cwd()).resolve()
    names, rest = {}, []
    for override in overrides:
        key, _, value = override.partition("=")
        if "." not in key:  # a choice among recipes
            refuse_resolver(value, override)
        if key in COMPONENTS and (config_name is None or not (folder / key).is_dir()):
            names[key] = value.rpartition("/")[2]
        else:
            rest.append(f"++{override}" if "." in key and key[0] not in "+~" else override)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # recipes of the original are older than Hydra 1.1
            with checked_recipes(), initialize_config_dir(str(folder), version_base="1.1"):
                composed = hydra_compose(config_name, overrides=rest)
        nested: Any = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
    except (HydraException, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"Hydra cannot compose the configuration: {error}") from error
    for key, name in names.items():
        section = nested.get(key)
        nested[key] = {**(section if isinstance(section, dict) else {}), "_name": name}
    return _with_statements(nested, overrides)


def _with_statements(nested: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Note what overrides say in a recipe that keeps apart what was stated (a run's own)."""
    from fairseq.config.yaml import stacked

    if not isinstance(nested.get("stated"), dict):
        return nested
    told: dict[str, Any] = {}
    for override in overrides:
        section, _, key = override.partition("=")[0].lstrip("+").partition(".")
        if isinstance(values := nested.get(section), dict) and key in values:
            told.setdefault(section, {})[key] = values[key]
    return stacked(nested, told)


def enter_run_folder(folder: str, nested: dict[str, Any]) -> None:
    """Make ``folder`` the working directory; what is to be read stays where it is.

    Args:
        folder: created if it does not exist.
        nested: the composed configuration; relative input paths become absolute, in place.

    Raises:
        ConfigError: if the folder's name is to be computed.
    """
    from fairseq.config.components import as_config
    from fairseq.errors import ConfigError
    from fairseq.utils import split_paths

    if "${" in folder:
        raise ConfigError(f"hydra.run.dir={folder} is not evaluated; write the folder itself")
    config = as_config(nested, strict=True)
    for sections in (nested, nested.get("stated") or {}):
        for section, values in sections.items():
            for key in _inputs(getattr(config, section, None), values):
                paths = [
                    os.path.abspath(p) if os.path.exists(p) else p for p in split_paths(values[key])
                ]
                values[key] = os.pathsep.join(paths)
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)


def _inputs(built: object, values: object) -> list[str]:
    """Return the keys under which ``values`` name something to read.

    Args:
        built: what the configuration makes of the section; it knows which fields are paths.
        values: the section as it was written.
    """
    from fairseq.config.schema import default_of, public_fields

    if not isinstance(values, dict):
        return []
    fields = public_fields(type(built)) if dataclasses.is_dataclass(built) else []
    # a default, such as checkpoint_last.pt, is a file of the run folder
    defaults = {field.name: default_of(field) for field, _ in fields if field.metadata.get("path")}
    defaults = {"data": None, **defaults}  # plug-ins do not declare theirs as a path
    return [
        key
        for key, value in values.items()
        if key in defaults and key not in OUTPUTS
        if isinstance(value, str) and value != defaults[key]
    ]


def _refuse_sweep(words: Sequence[str]) -> None:
    """Refuse overrides that ask Hydra for several runs.

    Raises:
        ConfigError: naming the first.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from fairseq.errors import ConfigError

    for word in words:
        with contextlib.suppress(HydraException):  # one that is malformed is told when composing
            if OverridesParser.create().parse_override(word).is_sweep_override():
                raise ConfigError(
                    f"-m {word} asks for several runs: call the command in a loop, each time with "
                    "a checkpoint.save_dir of its own"
                )


def main(cfg: object) -> float | None:
    """Train as a nested configuration (a dict or DictConfig) says.

    Returns:
        the best validation metric; None after a crash under ``common.suppress_crashes``.
    """
    from fairseq.config.components import as_config
    from fairseq_cli import train

    config = as_config(cfg, strict=True)
    try:
        return train.main(config)
    except Exception:
        if not config.common.suppress_crashes:
            raise
        logger.exception("the run crashed (common.suppress_crashes is set)")
        return None


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, compose and train."""
    from fairseq.config.plugins import refuse_named_code

    parser = get_parser()
    known, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("-"):
            parser.error(f"unrecognized argument {word}")
    words = [*known.overrides, *unknown]
    if known.multirun:
        _refuse_sweep(words)
    hydra_own = [w for w in words if w.lstrip("+~").startswith(("hydra.", "hydra/"))]
    nested = compose(known.config_dir, known.config_name, [w for w in words if w not in hydra_own])
    stated = {word.partition("=")[0].lstrip("+") for word in words}
    refuse_named_code(nested, "common.user_dir" in stated)
    if known.cfg:
        import yaml

        print(yaml.safe_dump(nested, sort_keys=False), end="")
        return 0
    for override in hydra_own:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "hydra.run.dir":
            enter_run_folder(value.strip("'\""), nested)
        else:
            logger.warning("%s has no effect here", override)
    main(nested)
    return 0


cli_main = command(run)

if __name__ == "__main__":
    cli_main()

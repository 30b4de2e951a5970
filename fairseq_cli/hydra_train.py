"""fairseq-hydra-train: train from YAML through Hydra."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fairseq_cli.entry import run_command

EXAMPLES = """examples:
  fairseq-hydra-train --config-dir recipes --config-name base task.data=/path/to/data-bin
  fairseq-hydra-train --config-dir recipes --config-name base task.data=data-bin \\
      optimization.lr=[0.001] +model.position=alibi

A recipe has the sections of a configuration: common, task, model, optimizer, ... Overrides follow
Hydra's grammar. The run stays in the folder it is launched from.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's own options; the rest are Hydra overrides."""
    own = argparse.ArgumentParser(
        "fairseq-hydra-train",
        description="Train from a YAML recipe, composed by Hydra.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own.add_argument("--config-dir", "-cd", default=None, help="folder with recipes")
    own.add_argument("--config-name", "-cn", default=None, help="name of the recipe, without .yaml")
    own.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
    own.add_argument("overrides", nargs="*", help="section.key=value; +section.key=value adds")
    return own


def compose(config_dir: str | None, config_name: str | None, overrides: Sequence[str]) -> Any:
    """Return the configuration that Hydra composes, as a plain nested dict.

    Raises:
        ConfigError: for a recipe or an override that Hydra refuses.
    """
    from pathlib import Path

    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fairseq.errors import ConfigError

    folder = Path(config_dir or Path.cwd()).resolve()
    ours = [o for o in overrides if not o.startswith("hydra.")]
    try:
        with initialize_config_dir(str(folder), version_base="1.1"):
            composed = hydra_compose(config_name, overrides=ours)
    except (HydraException, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"Hydra cannot compose the configuration: {error}") from error
    OmegaConf.set_struct(composed, False)
    return OmegaConf.to_container(composed, resolve=False, enum_to_str=True)


def main(cfg: Any) -> float | None:
    """Train as a nested configuration (a dict or DictConfig) says."""
    from fairseq import options
    from fairseq.distributed.utils import call_main
    from fairseq.logging.progress_bar import setup_logging
    from fairseq.train_loop import run_training

    setup_logging()
    return call_main(options.as_config(cfg, strict=True), run_training)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, compose and train."""
    known, unknown = parser().parse_known_args(argv)
    for word in unknown:  # Hydra's own flags, such as -m, have no meaning without its launcher
        if word.startswith("-"):
            parser().error(f"unrecognized argument {word} (sweeps: call the command in a loop)")
    nested = compose(known.config_dir, known.config_name, [*known.overrides, *unknown])
    if nested.get("common", {}).get("user_dir"):
        from types import SimpleNamespace

        from fairseq.user_dir import import_user_module

        import_user_module(SimpleNamespace(user_dir=nested["common"]["user_dir"]))
    if known.cfg:
        import yaml

        print(yaml.safe_dump(nested, sort_keys=False), end="")
        return 0
    main(nested)
    return 0


def cli_main() -> None:
    """Run the command."""
    run_command(run)


if __name__ == "__main__":
    cli_main()

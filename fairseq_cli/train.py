"""fairseq-train: train a model."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_cli.entry import command

if TYPE_CHECKING:
    import argparse

    from fairseq.config.sections import FairseqConfig
    from fairseq.data.batches.epochs import EpochBatchIterator
    from fairseq.protocols import Task
    from fairseq.training.trainer import Trainer


USAGE = "fairseq-train DATA --arch NAME --task NAME --optimizer NAME [options]"
EXAMPLES = """examples:
  fairseq-train data-bin --task masked_lm --criterion masked_lm --arch roberta_tiny \\
      --optimizer adam --lr 0.0005 --batch-size 32 --tokens-per-sample 128 --max-update 1000
  fairseq-train data-bin --config zero_clap                 a recipe of the package
  fairseq-train data-bin --config recipe.yaml --save-dir runs/second
  fairseq-train --arch roberta --task masked_lm --help      the flags of this model and task
  fairseq-train ... --estimate                              memory, speed and time, then stop
  fairseq-train ... --show-config                           print the settings, do not train

A run that was stopped goes on when the same command is given again. Every flag --x of an option
that is on or off has its opposite --no-x.
"""


def train_here(cfg: FairseqConfig) -> float | None:
    """Train in this process, which may be one of several: plug-ins and logging are set up first."""
    from fairseq.config.plugins import import_user_module
    from fairseq.logging.progress_bar import setup_logging
    from fairseq.training.loop import run_training

    setup_logging()
    import_user_module(cfg.common)
    return run_training(cfg)


def estimate_here(cfg: FairseqConfig, as_json: bool = False) -> None:
    """Print what a run will cost; in a process like that of :func:`train_here`."""
    from fairseq.config.plugins import import_user_module
    from fairseq.distributed.utils import is_master
    from fairseq.logging.progress_bar import setup_logging
    from fairseq.training.estimate import estimate

    # a spawned process logs on standard output, which is for results here
    setup_logging(stream="stderr", force=cfg.distributed_training.distributed_world_size > 1)
    import_user_module(cfg.common)
    result = estimate(cfg)
    if is_master():
        print(json.dumps(result.record()) if as_json else result.table())


def main(cfg: object, strict: bool = False) -> float | None:
    """Train as a configuration says; return the best validation metric.

    Args:
        cfg: ours, a DictConfig or other nested mapping, or a flat Namespace.
        strict: unknown keys are errors.
    """
    from fairseq.config.components import as_config
    from fairseq.distributed.utils import call_main

    return call_main(as_config(cfg, strict), train_here)


def train(
    cfg: FairseqConfig, trainer: Trainer, task: Task, epoch_itr: EpochBatchIterator
) -> tuple[list[float | None], bool]:
    """Train for one epoch, for plug-ins that have a loop of their own.

    Args:
        cfg: the configuration.
        trainer: takes the updates.
        task: the trainer's; for old callers.
        epoch_itr: where the run stands in the data.

    Returns:
        ``(validation losses, whether training is to end)``.
    """
    return _loop(cfg, trainer, epoch_itr).train_epoch()


def validate(
    cfg: FairseqConfig,
    trainer: Trainer,
    task: Task,
    epoch_itr: EpochBatchIterator,
    subsets: Sequence[str],
) -> list[float | None]:
    """Evaluate subsets; return the metric that decides what is best, of each of them."""
    loop = _loop(cfg, trainer, epoch_itr)
    return [loop.validate(subset) for subset in subsets]


def _loop(cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator) -> Any:
    from fairseq.config.components import as_config
    from fairseq.distributed.signals import StopSignal
    from fairseq.training.loop import TrainLoop
    from fairseq.training.run_folder import RunFolder

    config = as_config(cfg)
    folder = RunFolder(config.checkpoint.save_dir, enabled=False)  # the caller keeps its own notes
    return TrainLoop(config, trainer, epoch_itr, StopSignal(), folder)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    from fairseq.config import options
    from fairseq.config.resolve import required_settings
    from fairseq.config.yaml import recipe_names

    parser = options.get_training_parser(argv=argv)
    parser.prog, parser.usage, parser.epilog = "fairseq-train", USAGE, EXAMPLES
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML recipe, or one that comes with the package: "
        + ", ".join(recipe_names())
        + "; later ones win, flags win over all",
    )
    parser.add_argument("--show-config", action="store_true", help="print the settings and stop")
    _add_estimate_flags(parser)
    argv = list(sys.argv[1:] if argv is None else argv)
    config = options.parse_config(parser, argv)
    if "--show-config" in argv:
        from fairseq.training.run_folder import config_as_yaml

        print(config_as_yaml(config), end="")
        return 0
    missing = required_settings(config)
    if missing:
        parser.error("training needs " + "; ".join(missing))
    if "--estimate" in argv:
        from fairseq.distributed.utils import call_main

        call_main(config, functools.partial(estimate_here, as_json="--json" in argv))
        return 0
    if "--json" in argv:
        parser.error("--json is the format of --estimate; logs have --log-format json")
    main(config)
    return 0


def _add_estimate_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what a run will cost")
    group.add_argument(
        "--estimate",
        action="store_true",
        help="set the run up, train a few updates, print parameters, memory by part, speed, "
        "operations and the time until the end, and stop; nothing is written",
    )
    group.add_argument("--json", action="store_true", help="with --estimate: as one JSON object")


cli_main = command(run)

if __name__ == "__main__":
    cli_main()

"""fairseq-train: train a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_cli.entry import run_command

if TYPE_CHECKING:
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
    config = options.parse_config(parser, argv)
    if "--show-config" in (sys.argv if argv is None else argv):
        from fairseq.training.run_folder import config_as_yaml

        print(config_as_yaml(config), end="")
        return 0
    missing = required_settings(config)
    if missing:
        parser.error("training needs " + "; ".join(missing))
    main(config)
    return 0


def cli_main(modify_parser: object = None) -> None:
    """Run the command; the argument is for old callers."""
    run_command(run)


if __name__ == "__main__":
    cli_main()

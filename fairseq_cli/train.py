"""fairseq-train: train a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from fairseq_cli.entry import run_command

EXAMPLES = """examples:
  fairseq-train data-bin --task masked_lm --criterion masked_lm --arch roberta_tiny \\
      --optimizer adam --lr 0.0005 --batch-size 32 --tokens-per-sample 128 --max-update 1000
  fairseq-train data-bin --config recipe.yaml --save-dir runs/second
  fairseq-train --arch roberta --task masked_lm --help      the flags of this model and task
  fairseq-train ... --show-config                           print the settings, do not train

A run that was stopped goes on when the same command is given again.
"""


def main(cfg: Any) -> float | None:
    """Train as a configuration (ours, a DictConfig or a flat Namespace) says."""
    from fairseq import options
    from fairseq.distributed.utils import call_main
    from fairseq.logging.progress_bar import setup_logging
    from fairseq.train_loop import run_training

    setup_logging()
    return call_main(options.as_config(cfg), run_training)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    from fairseq import options

    parser = options.get_training_parser(argv=argv)
    parser.prog, parser.epilog = "fairseq-train", EXAMPLES
    parser.usage = "fairseq-train DATA --arch NAME --task NAME --optimizer NAME [options]"
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; flags win")
    parser.add_argument("--show-config", action="store_true", help="print the settings and stop")
    show = "--show-config" in (sys.argv if argv is None else argv)
    config = options.parse_config(parser, argv)
    if show:
        from fairseq.run_folder import config_as_yaml

        print(config_as_yaml(config), end="")
        return 0
    main(config)
    return 0


def cli_main(modify_parser: Any = None) -> None:
    """Run the command."""
    run_command(run)


if __name__ == "__main__":
    cli_main()

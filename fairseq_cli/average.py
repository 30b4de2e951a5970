"""fairseq-average: the mean of several checkpoints' weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fairseq.errors import ConfigError
from fairseq_cli.entry import command, command_parser

EXAMPLES = """examples:
  fairseq-average --inputs a.pt b.pt c.pt --output mean.pt
  fairseq-average --inputs runs/mine --num-epoch-checkpoints 5 --output runs/mine/mean.pt
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    result = command_parser(
        "fairseq-average", "Average the weights of checkpoints.", EXAMPLES, allow_abbrev=True
    )
    result.add_argument(
        "--inputs", nargs="+", required=True, help="checkpoints, or one run folder", metavar="PATH"
    )
    result.add_argument("--output", required=True, metavar="FILE", help="file to write")
    folder = result.add_argument_group("which checkpoints of the run folder")
    count = folder.add_mutually_exclusive_group()
    number: dict[str, Any] = {"type": _count, "metavar": "N"}
    count.add_argument("--num-epoch-checkpoints", help="the newest N of epochs", **number)
    count.add_argument("--num-update-checkpoints", help="the newest N of updates", **number)
    count.add_argument("--num-best-checkpoints", help="the best N", **number)
    folder.add_argument(
        "--checkpoint-upper-bound", help="none after epoch or update N", type=int, metavar="N"
    )
    return result


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of checkpoints")
    return int(text)


def _best_first(paths: list[str]) -> list[str]:
    """Turn checkpoints that fall by their metric to best first: of a loss the lowest is."""
    from fairseq.checkpoint.layout import config_of, read_state

    maximize = paths and config_of(read_state(paths[0])).checkpoint.maximize_best_checkpoint_metric
    return paths if maximize else paths[::-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and average."""
    args = parser().parse_args(argv)
    from fairseq.checkpoint.average import last_n_checkpoints, write_average
    from fairseq.checkpoint.files import checkpoint_paths

    inputs = args.inputs
    if args.num_best_checkpoints:
        pattern = r"checkpoint\.best_.+_(-?\d+\.?\d*)\.pt"
        best = _best_first(checkpoint_paths(inputs[0], pattern))
        if not best:
            raise ConfigError(
                f"{inputs[0]} has no checkpoint.best_METRIC_VALUE.pt: fairseq-train keeps the best "
                "N with --keep-best-checkpoints N"
            )
        inputs = best[: args.num_best_checkpoints]
    elif args.num_epoch_checkpoints or args.num_update_checkpoints:
        number = args.num_epoch_checkpoints or args.num_update_checkpoints
        by_update = args.num_update_checkpoints is not None
        inputs = last_n_checkpoints(inputs, number, by_update, args.checkpoint_upper_bound)
    print("averaging:", *inputs, sep="\n  ")
    write_average(inputs, args.output)
    print(f"wrote {args.output}")
    return 0


cli_main = command(main)

if __name__ == "__main__":
    cli_main()

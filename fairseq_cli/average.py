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


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and average."""
    args = parser().parse_args(argv)
    from fairseq.checkpoint.average import best_n_checkpoints, last_n_checkpoints, write_average

    inputs, bound = args.inputs, args.checkpoint_upper_bound
    newest = args.num_epoch_checkpoints or args.num_update_checkpoints
    if bound is not None and not newest:
        raise ConfigError(
            "--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update-checkpoints"
        )
    if newest:
        by_update = args.num_update_checkpoints is not None
        inputs = last_n_checkpoints(inputs, newest, by_update, bound)
    elif args.num_best_checkpoints:
        inputs = best_n_checkpoints(inputs, args.num_best_checkpoints)
    print("averaging:", *inputs, sep="\n  ")
    write_average(inputs, args.output)
    print(f"wrote {args.output}")
    return 0


cli_main = command(main)

if __name__ == "__main__":
    cli_main()

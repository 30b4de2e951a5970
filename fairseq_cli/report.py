"""``fairseq-report``: one page with the curves and figures of one or several runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from fairseq_cli.entry import run_command

_EXAMPLES = """\
examples:
  fairseq-report checkpoints
      writes report/report.html and one PNG per curve about one run

  fairseq-report runs/baseline runs/clap runs/headless --output comparison --title "Three heads"
      draws three runs in the same axes and lists the settings that differ

  fairseq-report runs/small runs/large --x flops
      draws curves against floating-point operations instead of updates

  fairseq-report runs/* --json | jq '.runs[] | [.name, .best_valid_loss]'
      prints the final figures as JSON

A run folder is the --save-dir of a training: metrics.jsonl and, if there, config.yaml,
command.txt and versions.json. Exit status: 0 done, 1 a run cannot be read, 2 wrong usage.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="fairseq-report",
        description="Write one self-contained HTML page, and PNG files, about training runs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folder (a --save-dir)")
    parser.add_argument(
        "--output", metavar="FOLDER", default="report", help="where to write (default: report)"
    )
    parser.add_argument("--title", metavar="TEXT", help="heading (default: the names of the runs)")
    parser.add_argument(
        "--x", choices=("updates", "tokens", "time", "flops"), default="updates",
        help="what curves are drawn against (default: updates)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print the final figures of the runs as JSON"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and print its path, or with ``--json`` the figures in it.

    Args:
        argv: arguments without the program name; None takes those of the process.

    Raises:
        FairseqError: if a run cannot be read, or matplotlib is missing.
    """
    args = make_parser().parse_args(argv)
    from fairseq.report import load_runs, summarize, write_report

    path = write_report(args.runs, args.output, title=args.title, axis=args.x)
    if args.json:
        runs = [summarize(run) for run in load_runs(args.runs)]
        json.dump({"report": str(path), "runs": runs}, sys.stdout, indent=2)
        print()
    else:
        print(path)
    return 0


def cli_main() -> None:
    """Run the command and exit with its status."""
    run_command(main)


if __name__ == "__main__":
    cli_main()

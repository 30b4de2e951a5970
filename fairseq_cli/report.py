"""``fairseq-report``: one page with the curves and figures of one or several runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from fairseq_cli.entry import command, command_parser

_EXAMPLES = """\
examples:
  fairseq-report checkpoints
      writes report/report.html and one PNG per curve about one run

  fairseq-report runs/baseline runs/clap runs/headless --output comparison --title "Three heads"
      draws three runs in the same axes and lists the settings that differ

  fairseq-report runs/small runs/large --x flops
      draws curves against floating-point operations instead of updates

  fairseq-report runs/mine --watch
      writes the page anew while the run is alive; open it, it follows

  fairseq-report runs/* --list
      prints a table: updates, tokens, time over all restarts, best loss in bits, state

  fairseq-report runs/* --json | jq '.runs[] | [.name, .best_valid_loss]'
      prints the final figures as JSON

The page is one file that can be mailed: it fetches nothing. PNG files need matplotlib.
A run folder is the --save-dir of a training: metrics.jsonl and, if there, config.yaml, command.txt,
versions.json, events.jsonl and samples.jsonl.
Exit status: 0 done, 1 a run cannot be read, 2 wrong usage.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    description = "Write one self-contained HTML page, and PNG files, about training runs."
    parser = command_parser("fairseq-report", description, _EXAMPLES)
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
        "--watch", metavar="SECONDS", nargs="?", type=_interval, const=15,
        help="write the page anew whenever a run has written something, until none is alive "
        "(looks every 15 seconds if not told)",
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true", help="print a table of the runs; write no page"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the final figures of the runs as JSON"
    )
    return parser


def _interval(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 86400:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no whole number of seconds from 1 to 86400; runs go before --watch"
        )
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and print its path, with ``--json`` the figures in it; or list runs."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.list and args.watch:
        parser.error("--list prints a table and --watch writes a page: take one of them")
    from fairseq.report import listing, load_runs, summarize, watch, write_report

    if args.list:
        runs, others = listing.load_listed(args.runs)
        if args.json:
            _print_json({"runs": [summarize(run) for run in runs]})
        else:
            print(listing.table(runs))
        if others:
            print(f"no runs: {', '.join(others)}", file=sys.stderr)
        return 0
    settings = {"title": args.title, "axis": args.x}
    if args.watch:
        path = watch.watch(args.runs, args.output, args.watch, _tell, **settings)
    else:
        path = write_report(args.runs, args.output, **settings)
    if args.json:
        _print_json({"report": str(path), "runs": [summarize(run) for run in load_runs(args.runs)]})
    elif path is not None:
        print(path)
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(content: dict[str, Any]) -> None:
    json.dump(content, sys.stdout, indent=2)
    print()


cli_main = command(main)

if __name__ == "__main__":
    cli_main()

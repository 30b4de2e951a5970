"""fairseq-validate: evaluate a checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from fairseq_cli.entry import run_command

EXAMPLES = """examples:
  fairseq-validate data-bin --path runs/mine/checkpoint_best.pt --valid-subset valid,test
  fairseq-validate data-bin --path runs/alibi/checkpoint_best.pt --tokens-per-sample 512 \\
      --batch-size 8      an ALiBi model on longer text than it was trained on

Settings that are not given are the checkpoint's own.
"""


def main(cfg: Any, override_args: Any = None) -> dict[str, dict[str, Any]]:
    """Evaluate as a flat Namespace (or a dict) says."""
    from fairseq.evaluation import validate
    from fairseq.logging.progress_bar import setup_logging

    setup_logging()
    given = dict(vars(cfg)) if isinstance(cfg, argparse.Namespace) else dict(cfg)
    return validate({key: value for key, value in given.items() if value is not None})


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate."""
    from fairseq import options
    from fairseq.config.arguments import explicitly_given

    parser = options.get_validation_parser(argv=argv)
    parser.prog, parser.epilog = "fairseq-validate", EXAMPLES
    parser.usage = "fairseq-validate DATA --path CHECKPOINT [options]"
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    options.finish_validation_parser(parser, argv)
    given = vars(explicitly_given(parser, argv))
    as_json = given.pop("json", False)
    if as_json:
        given.setdefault("log_format", "none")
    results = main(given)
    if as_json:
        print(
            json.dumps({name: {k: float(v) for k, v in s.items()} for name, s in results.items()})
        )
    return 0


def cli_main() -> None:
    """Run the command."""
    run_command(run)


if __name__ == "__main__":
    cli_main()

"""fairseq-validate: evaluate a checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from fairseq_cli.entry import run_command

USAGE = "fairseq-validate DATA --path CHECKPOINT [options]"
EXAMPLES = """examples:
  fairseq-validate data-bin --path runs/mine/checkpoint_best.pt --valid-subset valid,test
  fairseq-validate data-bin --path runs/alibi/checkpoint_best.pt --tokens-per-sample 512 \\
      --batch-size 8      an ALiBi model on longer text than it was trained on

Settings that are not given are the checkpoint's own.
"""


def main(cfg: Any, override_args: Any = None) -> dict[str, dict[str, Any]]:
    """Evaluate a checkpoint with its own settings, except for those that are stated.

    Args:
        cfg: a dict with the flat settings that are stated; or a complete configuration (ours, a
            DictConfig, a Namespace), of which ``path``, ``data`` and what differs from the
            defaults of the shared sections counts.
        override_args: a Namespace of further settings that are stated.

    Returns:
        the statistics of every subset.
    """
    from fairseq.evaluation import validate
    from fairseq.logging.progress_bar import setup_logging

    setup_logging()
    given = {**_stated(cfg), **(vars(override_args) if override_args is not None else {})}
    return validate({key: value for key, value in given.items() if value is not None})


def _stated(cfg: Any) -> dict[str, Any]:
    from fairseq.config.build import flatten, plain
    from fairseq.config.sections import COMPONENTS, SECTIONS, FairseqConfig

    if isinstance(cfg, FairseqConfig):
        cfg = flatten(cfg)
    if not isinstance(cfg, argparse.Namespace):
        values = plain(cfg)
        if not isinstance(values.get("common_eval"), dict):
            return values
        shared = [values[name] for name in SECTIONS if isinstance(values.get(name), dict)]
        cfg = argparse.Namespace(**{k: v for section in shared for k, v in section.items()})
        cfg.data = (values.get("task") or {}).get("data")
    defaults = vars(flatten(FairseqConfig()))
    for name in COMPONENTS.values():
        del defaults[name]  # components are the checkpoint's
    stated = {k: v for k, v in vars(cfg).items() if k in defaults and v != defaults[k]}
    return {**stated, "data": getattr(cfg, "data", None)}


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate."""
    from fairseq import options
    from fairseq.config.arguments import explicitly_given

    argv = list(sys.argv[1:] if argv is None else argv)
    parser = options.get_validation_parser(argv=argv)
    parser.prog, parser.usage, parser.epilog = "fairseq-validate", USAGE, EXAMPLES
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    options.complete_parser(parser, argv, {} if "--help" in argv else {"task": "masked_lm"})
    given = vars(explicitly_given(parser, argv))
    as_json = given.pop("json", False)
    if as_json:
        given.setdefault("log_format", "none")
    results = main(given)
    if as_json:
        values = {name: {k: float(v) for k, v in s.items()} for name, s in results.items()}
        print(json.dumps(values))
    return 0


def cli_main() -> None:
    """Run the command."""
    run_command(run)


if __name__ == "__main__":
    cli_main()

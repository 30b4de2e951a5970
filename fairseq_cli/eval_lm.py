"""fairseq-eval-lm: loss and perplexity of a causal language model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from fairseq.lazy import lazy_names
from fairseq_cli.entry import command

USAGE = "fairseq-eval-lm DATA --path CHECKPOINT [options]"
EXAMPLES = """examples:
  fairseq-eval-lm data-bin --path runs/lm/checkpoint_best.pt
  fairseq-eval-lm data-bin --path runs/lm/checkpoint_best.pt --gen-subset valid \\
      --tokens-per-sample 512 --context-window 400     every token sees 400 others at least
  fairseq-eval-lm data-bin --path a.pt:b.pt            an ensemble of two
  fairseq-eval-lm data-bin --path runs/lm/checkpoint_best.pt --bpe gpt2 \\
      --last-word lambada.jsonl                        how often the last word is predicted
  fairseq-eval-lm data-bin --path runs/lm/checkpoint_best.pt \\
      --minimal-pairs blimp/data                       how often the good sentence is likelier

Settings that are not given are the checkpoint's own.
"""

__getattr__, __dir__, _names = lazy_names(
    __name__,
    {"eval_lm": "fairseq.evaluation.perplexity", "WordStat": "fairseq.evaluation.perplexity"},
)


def main(cfg: object, **unused: object) -> dict[str, Any]:
    """Evaluate a checkpoint with its own settings, except for those that are stated.

    Args:
        cfg: see :func:`fairseq.hub.load.stated_settings`.
        **unused: ignored.

    Returns:
        ``loss`` in bits a token, ``perplexity``, ``tokens``, ``seconds``.
    """
    from fairseq.evaluation.perplexity import evaluate
    from fairseq.hub.load import stated_settings
    from fairseq.logging.progress_bar import setup_logging

    setup_logging()
    figures = evaluate(stated_settings(cfg, "language_modeling"))
    for line in figures.pop("lines", []):
        print(line)
    tokens, seconds = figures["tokens"], figures["seconds"]
    print(f"Evaluated {tokens:,} tokens in {seconds:.1f}s ({tokens / seconds:.2f} tokens/s)")
    print(f"Loss (base 2): {figures['loss']:.4f}, Perplexity: {figures['perplexity']:.2f}")
    return figures


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate."""
    from fairseq_cli.flags import score_texts, stated_flags

    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(argv)
    parser.prog, parser.usage, parser.epilog = "fairseq-eval-lm", USAGE, EXAMPLES
    flat = stated_flags(parser, argv, "language_modeling")
    as_json = flat.pop("json", False)
    if as_json:
        flat.setdefault("log_format", "none")
    if score_texts(flat, as_json):
        return 0
    if as_json:
        from fairseq.evaluation.perplexity import evaluate

        print(json.dumps(evaluate(flat)))
    else:
        main(flat)
    return 0


def make_parser(argv: Sequence[str] = ()) -> Any:
    """Return the parser of the command, without the flags of components."""
    from fairseq.config import options
    from fairseq_cli.flags import add_last_word_flags

    parser = options.get_eval_lm_parser(argv=argv)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    add_last_word_flags(parser)
    return parser


cli_main = command(run)

if __name__ == "__main__":
    cli_main()

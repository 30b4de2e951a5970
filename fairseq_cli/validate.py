"""fairseq-validate: evaluate a checkpoint."""

from __future__ import annotations

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
  fairseq-validate data-bin --path runs/alibi/checkpoint_best.pt --at-lengths 128 256 512
  fairseq-validate data-bin --path runs/mine/checkpoint_best.pt --pseudo-ppl \\
      --sample-break-mode eos --pseudo-ppl-blocks 500

Settings that are not given are the checkpoint's own.
"""


def main(cfg: Any, override_args: Any = None) -> dict[str, dict[str, Any]]:
    """Evaluate a checkpoint with its own settings, except for those that are stated.

    Args:
        cfg: see :func:`fairseq.hub.load.stated_settings`.
        override_args: a Namespace of further settings that are stated.

    Returns:
        the statistics of every subset.
    """
    from fairseq.evaluation import validate
    from fairseq.hub.load import stated_settings
    from fairseq.logging.progress_bar import setup_logging

    setup_logging()
    given = {**stated_settings(cfg), **(vars(override_args) if override_args is not None else {})}
    return validate({key: value for key, value in given.items() if value is not None})


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate."""
    from fairseq.config import options
    from fairseq.logging.progress_bar import setup_logging
    from fairseq_cli.flags import stated_flags

    argv = list(sys.argv[1:] if argv is None else argv)
    parser = options.get_validation_parser(argv=argv)
    parser.prog, parser.usage, parser.epilog = "fairseq-validate", USAGE, EXAMPLES
    add_scores(parser)
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    given = stated_flags(parser, argv, "masked_lm")
    as_json, lengths = given.pop("json", False), given.pop("at_lengths", None)
    pseudo, most = given.pop("pseudo_ppl", False), given.pop("pseudo_ppl_blocks", None)
    setup_logging(stream="stderr" if as_json else "stdout")
    if as_json:
        given.setdefault("log_format", "none")
    texts, key = given.pop("last_word", None), given.pop("text_key", "text")
    if texts is not None:
        from fairseq.evaluation.continuations import describe, evaluate_last_words

        words = evaluate_last_words(given, texts, key)
        print(json.dumps(words) if as_json else describe(words))
        return 0
    if pseudo or lengths:
        return _scores(given, lengths, most, as_json)
    results = main(given)
    if as_json:
        print(json.dumps(_numbers(results)))
    return 0


def add_scores(parser: Any) -> Any:
    """Add the flags of the scores that only masked LMs have; return the parser."""
    from fairseq_cli.flags import add_last_word_flags

    scores = parser.add_argument_group("scores of masked LMs")
    scores.add_argument(
        "--pseudo-ppl", action="store_true",
        help="mask each token in turn (Salazar et al. 2020); with --sample-break-mode eos by line",
    )  # fmt: skip
    scores.add_argument(
        "--pseudo-ppl-blocks", type=int, metavar="N", help="only the first N blocks of a subset"
    )
    scores.add_argument(
        "--at-lengths", type=int, nargs="+", metavar="T",
        help="evaluate in blocks of these lengths (the trained one, twice, four times it)",
    )  # fmt: skip
    add_last_word_flags(parser)
    return parser


def _numbers(results: Any) -> Any:
    """Return statistics as plain numbers, not rounded."""
    from fairseq.logging.meters import exact

    if isinstance(results, dict):
        return {name: _numbers(value) for name, value in results.items()}
    return results if isinstance(results, str) else float(exact(results))


def _scores(given: Any, lengths: Sequence[int] | None, most: int | None, as_json: bool) -> int:
    """Print pseudo-perplexities, or the loss at several lengths."""
    from fairseq.evaluation import pseudo_perplexity

    results: Any
    if lengths:
        results = pseudo_perplexity.at_lengths(given, lengths)
    else:
        results = pseudo_perplexity.pseudo_perplexity(given, most)
    if as_json:
        print(json.dumps(_numbers(results)))
        return 0
    for name, found in results.items():
        if lengths:
            parts = [
                f"{subset} {value}" if subset == "refused" else
                f"{subset} loss {float(value['loss']):.3f} ppl {float(value['ppl']):.2f}"
                for subset, value in found.items()
            ]  # fmt: skip
            print(f"T={name}: {', '.join(parts)}")
        else:
            print(
                f"{name}: pseudo-perplexity {found['pseudo_ppl']:.3f} ({found['bits']:.3f} bits a "
                f"token, {found['tokens']:,} tokens in {found['blocks']:,} blocks)"
            )
            if "words" in found:
                print(
                    f"{name}: {found['pseudo_ppl_word']:.3f} a word, {found['bits_byte']:.3f} bits "
                    f"a byte ({found['words']:,} words, {found['bytes']:,} bytes)"
                )
    return 0


def cli_main() -> None:
    """Run the command."""
    run_command(run)


if __name__ == "__main__":
    cli_main()

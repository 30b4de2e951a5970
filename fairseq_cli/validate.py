"""fairseq-validate: evaluate a checkpoint."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_cli.entry import command

if TYPE_CHECKING:
    from argparse import ArgumentParser


USAGE = "fairseq-validate DATA --path CHECKPOINT [options]"
EXAMPLES = """examples:
  fairseq-validate data-bin --path runs/mine/checkpoint_best.pt --valid-subset valid,test
  fairseq-validate data-bin --path runs/alibi/checkpoint_best.pt --tokens-per-sample 512 \\
      --batch-size 8      an ALiBi model on longer text than it was trained on
  fairseq-validate data-bin --path runs/alibi/checkpoint_best.pt --at-lengths 128 256 512
  fairseq-validate data-bin --path runs/mine/checkpoint_best.pt --pseudo-ppl \\
      --sample-break-mode eos --pseudo-ppl-blocks 500
  fairseq-validate data-bin --path runs/teacher/checkpoint_best.pt --valid-subset train,valid \\
      --write-teacher-cache cache --top-k 64 --cache-temperatures 1,2
  fairseq-validate data-bin --path runs/student/checkpoint_best.pt --per-sample scores.csv
  fairseq-validate data-bin --path runs      every checkpoint below a folder, in one table
  fairseq-validate data-bin --path runs/mine/checkpoint_best.pt --minimal-pairs blimp/data

Settings that are not given are the checkpoint's own.
"""


def main(cfg: object, override_args: object = None) -> dict[str, dict[str, Any]]:
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
    flat = {**stated_settings(cfg), **(vars(override_args) if override_args is not None else {})}
    return validate({key: value for key, value in flat.items() if value is not None})


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate."""
    from fairseq.config import options
    from fairseq.logging.progress_bar import setup_logging
    from fairseq_cli.flags import score_texts, stated_flags

    argv = list(sys.argv[1:] if argv is None else argv)
    parser = options.get_validation_parser(argv=argv)
    parser.prog, parser.usage, parser.epilog = "fairseq-validate", USAGE, EXAMPLES
    add_scores(parser)
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    flat = stated_flags(parser, argv, "masked_lm")
    _check_company(flat)
    as_json, lengths = flat.pop("json", False), flat.pop("at_lengths", None)
    pseudo, most = flat.pop("pseudo_ppl", False), flat.pop("pseudo_ppl_blocks", None)
    setup_logging(stream="stderr" if as_json else "stdout")
    whole = os.path.isdir(flat.get("path") or "")
    if as_json or whole:
        flat.setdefault("log_format", "none")
    if score_texts(flat, as_json):
        return 0
    teaching = {name: flat.pop(name) for name in _TEACHER_FLAGS if name in flat}
    if {"write_teacher_cache", "per_sample"} & set(teaching):
        return _about_teachers(flat, teaching, as_json)
    if pseudo or lengths:
        return _scores(flat, lengths, most, as_json)
    if whole:
        return _folder(flat, as_json)
    results = main(flat)
    if as_json:
        print(json.dumps(_numbers(results)))
    return 0


def add_scores(parser: ArgumentParser) -> Any:
    """Add the flags of scores and of teachers; return the parser."""
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
    _add_teacher_flags(parser)
    return parser


_TEACHER_FLAGS = ("write_teacher_cache", "cache_method", "top_k", "cache_temperatures",
                  "cache_epochs", "cache_force", "per_sample", "plot")  # fmt: skip


def _add_teacher_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("teachers")
    add = group.add_argument
    add("--write-teacher-cache", metavar="DIR", help="store what --path says, for its students")
    add(
        "--cache-method", choices=("topk", "sample"), default="topk",
        help="keep the likeliest words and the mass of the others (a lower bound of the full "
        "divergence), or words drawn by their probability (unbiased)",
    )  # fmt: skip
    add(
        "--top-k",
        type=int,
        default=64,
        metavar="K",
        help="words kept of each position (default: 64)",
    )
    add(
        "--cache-temperatures", default="1", metavar="T,T",
        help="values of --distillation-temperature that students may use (default: 1)",
    )  # fmt: skip
    add(
        "--cache-epochs", type=int, default=1, metavar="N",
        help="store masked training data with the masks of epochs 1 to N (default: 1)",
    )  # fmt: skip
    add("--cache-force", action="store_true", help="replace DIR")
    add(
        "--per-sample", metavar="FILE",
        help="write length, cross-entropies of student and teacher and their KL of each sample",
    )  # fmt: skip
    add("--plot", metavar="FILE", help="draw the samples of --per-sample, student against teacher")


# flag -> the one without which it does nothing
_COMPANY = {"plot": "per_sample", "pseudo_ppl_blocks": "pseudo_ppl"} | dict.fromkeys(
    ("cache_method", "top_k", "cache_temperatures", "cache_epochs", "cache_force"),
    "write_teacher_cache",
)
_EVALUATIONS = ("last_word", "minimal_pairs", "pseudo_ppl", "at_lengths", "write_teacher_cache",
                "per_sample")  # fmt: skip


def _check_company(flat: dict[str, Any]) -> None:
    """Refuse flags that would do nothing, as they are given.

    Raises:
        ConfigError: naming the flag that is missing, or in the way.
    """
    from fairseq.errors import ConfigError
    from fairseq_cli.flags import flag_of, inert

    for name, other in _COMPANY.items():
        if name in flat and not flat.get(other):
            raise inert(name, other)
    asked = [flag_of(name) for name in _EVALUATIONS if flat.get(name)]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} are evaluations of their own: run one at a time")
    if flat.get("pseudo_ppl_blocks", 1) < 1:
        raise ConfigError("--pseudo-ppl-blocks must be at least 1")


def _about_teachers(flat: dict[str, Any], flags: dict[str, Any], as_json: bool) -> int:
    """Write a teacher's cache, or the scores of samples beside it."""
    from pathlib import Path

    from fairseq.config.schema import list_parser

    if "per_sample" in flags:
        from fairseq.evaluation.teacher_scores import write_sample_scores

        plot = Path(flags["plot"]) if "plot" in flags else None
        count = write_sample_scores(flat, Path(flags["per_sample"]), plot)
        result: dict[str, Any] = {"samples": count}
    else:
        from fairseq.evaluation.teacher_outputs import write_teacher_cache

        result = write_teacher_cache(
            flat,
            Path(flags["write_teacher_cache"]),
            flags.get("cache_method", "topk"),
            flags.get("top_k", 64),
            list_parser(float)(flags.get("cache_temperatures", "1")),
            flags.get("cache_epochs", 1),
            flags.get("cache_force", False),
        )
    lines = [f"{name}: {value}" for name, value in result.items()]
    print(json.dumps(result) if as_json else "\n".join(lines))
    return 0


def _numbers(results: object) -> Any:
    """Return statistics as plain numbers, not rounded."""
    from fairseq.logging.meters import exact

    if isinstance(results, dict):
        return {name: _numbers(value) for name, value in results.items()}
    return results if isinstance(results, str) else float(exact(results))


def _folder(flat: dict[str, Any], as_json: bool) -> int:
    """Print what every checkpoint below a folder is worth; 1 if one could not be evaluated."""
    from fairseq.evaluation.folder import table, validate_folder

    results = _numbers(validate_folder(flat))
    print(json.dumps(results) if as_json else table(results))
    return int(any("refused" in figures for figures in results.values()))


def _scores(
    flat: dict[str, Any], lengths: Sequence[int] | None, most: int | None, as_json: bool
) -> int:
    """Print pseudo-perplexities, or the loss at several lengths."""
    from fairseq.evaluation import pseudo_perplexity

    results: Any
    if lengths:
        results = pseudo_perplexity.at_lengths(flat, lengths)
    else:
        results = pseudo_perplexity.pseudo_perplexity(flat, most)
    if as_json:
        print(json.dumps(_numbers(results)))
        return 0
    for name, row in results.items():
        if lengths:
            parts = [
                f"{subset} {value}" if subset == "refused" else
                f"{subset} loss {float(value['loss']):.3f} ppl {float(value['ppl']):.2f}"
                for subset, value in row.items()
            ]  # fmt: skip
            print(f"T={name}: {', '.join(parts)}")
        else:
            print(
                f"{name}: pseudo-perplexity {row['pseudo_ppl']:.3f} ({row['bits']:.3f} bits a "
                f"token, {row['tokens']:,} tokens in {row['blocks']:,} blocks)"
            )
            if "words" in row:
                print(
                    f"{name}: {row['pseudo_ppl_word']:.3f} a word, {row['bits_byte']:.3f} bits "
                    f"a byte ({row['words']:,} words, {row['bytes']:,} bytes)"
                )
    return 0


cli_main = command(run)

if __name__ == "__main__":
    cli_main()

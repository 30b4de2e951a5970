"""fairseq-generate: continue binarized text, or texts of the command line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fairseq_cli.entry import command

if TYPE_CHECKING:
    from fairseq.hub.continue_text import Continuation, Tally


logger = logging.getLogger(__name__)

USAGE = "fairseq-generate [DATA] --path CHECKPOINT [options]"
FORMATS = ("text", "fairseq", "json")
# flag -> setting of a corpus, type, metavar, help
CORPUS: dict[str, tuple[str, Any, str, str]] = {
    "corpus": ("sentences", int, "N", "draw so many sentences; PATH may be a Hugging Face folder"),
    "corpus_out": ("folder", str, "FOLDER", "write train.txt, dict.txt and next.npz there"),
    "corpus_words": ("words", int, "N", "use only the N most frequent words (default: all)"),
    "corpus_length": ("longest", int, "N", "most words of a sentence (default: 24)"),
    "corpus_scored": (
        "scored", int, "N", "of the first N sentences also write masked.npz: the true distribution "
        "of every word given the others, by enumeration (default: 0)",
    ),
}  # fmt: skip
EXAMPLES = """examples:
  fairseq-generate --path runs/lm/checkpoint_best.pt --text "Once upon a time" --beam 1 \\
      --sampling --sampling-topp 0.9      continue a text; a masked model fills it:
  fairseq-generate --path runs/mlm/checkpoint_best.pt --text "The <mask> is a function."
  fairseq-generate data-bin --path runs/lm/checkpoint_best.pt --gen-subset valid \\
      --prefix-size 8      continue the first 8 tokens of every line
  fairseq-generate data-bin --path runs/lm/checkpoint_best.pt --prefix-size 8 \\
      --sampling --sampling-topp 0.9 --beam 3 --nbest 3 --seed 2      three samples of each
  fairseq-generate data-bin --path lm.pt --corpus 100000 --corpus-out corpus --corpus-words 2000
      a corpus of the model's own, with the probabilities it was drawn with
  fairseq-generate data-bin --path a.pt:b.pt --bpe gpt2 --json        an ensemble, as JSON lines

DATA may be left out where the model's own lies where it was. With --text the texts alone are
printed. A masked model fills --nbest times (5), each filling after its probability; several masks
are filled one by one, the most certain first.

Lines of --format fairseq: S source, T target, H score and pieces, D score and text, P score of
every token; scores are log-probabilities in bits. Outputs include the prompt, and --max-len-b
counts it. Settings that are not given are the checkpoint's own, but each line is a prompt unless
--sample-break-mode is given.
Files of the text encoder are found beside the dictionary or the checkpoint.
"""


def main(cfg: object) -> Any:
    """Continue a subset, and print what comes out.

    Args:
        cfg: see :func:`fairseq.hub.continue_text.stated`.

    Returns:
        how much was generated.
    """
    from fairseq.hub.continue_text import generate, stated, write_texts

    flat = stated(cfg)
    corpus = {name: flat.pop(name) for name in CORPUS if name in flat}
    if corpus:
        return write_corpus(flat, corpus)
    if texts := flat.pop("text", None):
        flat = {"format": "text", **flat}
        return show(lambda settings: write_texts(settings, texts), flat)
    return show(generate, flat)


def write_corpus(flat: dict[str, Any], corpus: dict[str, Any]) -> dict[str, Any]:
    """Draw a corpus instead, and print what was written; return it.

    Raises:
        ConfigError: if the size or the folder is not named.
    """
    from fairseq.errors import ConfigError
    from fairseq.hub import corpus as corpora

    if not {"corpus", "corpus_out"} <= corpus.keys():
        raise ConfigError("a corpus needs --corpus, its sentences, and --corpus-out, a folder")
    settings = corpora.CorpusSettings(
        **{CORPUS[name][0]: value for name, value in corpus.items()}, seed=flat.pop("seed", 1)
    )
    as_json = flat.pop("json", False)
    record = corpora.write_corpus(flat, settings)
    print(json.dumps(record) if as_json else "\n".join(f"{k}: {v}" for k, v in record.items()))
    return record


def show(
    command: Callable[[dict[str, Any]], tuple[Iterator[Continuation], Tally]],
    flat: dict[str, Any],
    with_time: bool = False,
) -> Any:
    """Run a command of :mod:`fairseq.hub.continue_text` and print its results; return the tally.

    Args:
        command: the function.
        flat: flat settings; ``format`` is one of ``FORMATS`` (``fairseq``), ``json`` the last.
        with_time: also print the seconds of each sentence.
    """
    from fairseq.logging.progress_bar import setup_logging

    setup_logging(stream="stderr")
    style, quiet = flat.pop("format", "fairseq"), flat.get("quiet", False)
    style = "json" if flat.pop("json", False) else style
    continuations, tally = command(flat)
    for continuation in continuations:
        if quiet:
            continue
        if style == "json":
            lines = iter([json.dumps(record) for record in continuation.records()])
        else:
            text = style == "text"
            lines = continuation.readable() if text else continuation.lines(with_time)
        for line in lines:
            print(line)
        sys.stdout.flush()
    logger.info("%s", tally)
    return tally


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and generate."""
    return parse_and_run(argv, main, make_parser, "fairseq-generate", USAGE, EXAMPLES)


def parse_and_run(
    argv: Sequence[str] | None, command: Any, make: Any, prog: str, usage: str, examples: str
) -> int:
    """Parse a command line of this command or of fairseq-interactive, and run it."""
    from fairseq_cli.flags import stated_flags

    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make(argv)
    parser.prog, parser.usage, parser.epilog = prog, usage, examples
    flat = stated_flags(parser, argv, "language_modeling")
    flat.pop("scoring", None)
    command(flat)
    return 0


def make_parser(argv: Sequence[str] = (), interactive: bool = False) -> Any:
    """Return the parser of the command, without the flags of components."""
    from fairseq.config import options

    parser = options.get_generation_parser(interactive, "language_modeling", argv=argv)
    parser.data_is_optional = True  # the checkpoint names its own
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument(
        "--format", choices=FORMATS, default=argparse.SUPPRESS,
        help="text: what came out; fairseq: lines for programs (see below); json: an object a "
        f"hypothesis (text {'on a terminal' if interactive else 'with --text'}, else fairseq)",
    )  # fmt: skip
    if not interactive:
        parser.add_argument(
            "--text", action="append", metavar="TEXT", default=argparse.SUPPRESS,
            help="continue this text, or fill its <mask>s, instead of a subset (several: again)",
        )  # fmt: skip
        group = parser.add_argument_group("draw a corpus instead, with its true probabilities")
        for name, (_, kind, metavar, text) in CORPUS.items():
            group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    parser.add_argument("--scoring", type=_scoring, help=argparse.SUPPRESS)
    return parser


def _scoring(name: str) -> str:
    """Accept the original's default, which has nothing to do here."""
    if name != "bleu":
        raise argparse.ArgumentTypeError(
            f"{name}: a continuation has no reference to be compared with; translation, which has "
            "one, is out of scope"
        )
    return name


cli_main = command(run)

if __name__ == "__main__":
    cli_main()

"""Flags that several evaluating commands share, and what a command line states."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from fairseq.errors import ConfigError

# text encoder, the flags that name its file (the first spelling is shown), the field, help
ENCODER_FILES = (
    ("gpt2", ("--gpt2-encoder-json", "--encoder-json"), "gpt2_encoder_json",
     "GPT-2's encoder.json"),
    ("gpt2", ("--gpt2-vocab-bpe", "--vocab-bpe"), "gpt2_vocab_bpe", "GPT-2's vocab.bpe"),
    ("byte_level", ("--tokenizer-file", "--byte-level-tokenizer"), "byte_level_tokenizer",
     "tokenizer.json written by fairseq-bpe train"),
    ("wordpiece", ("--wordpiece-vocab", "--vocab"), "wordpiece_vocab", "BERT's vocab.txt"),
    ("sentencepiece", ("--sentencepiece-model",), "sentencepiece_model",
     "SentencePiece .model file"),
)  # fmt: skip
ENCODER_FIELDS = tuple(field for _, _, field, _ in ENCODER_FILES)


def flag_of(name: str) -> str:
    """Return the flag that sets a field."""
    return f"--{name.replace('_', '-')}"


def inert(name: str, other: str) -> ConfigError:
    """Return the error for a field that does nothing without another one."""
    flag, needed = flag_of(name), flag_of(other)
    return ConfigError(f"{flag} belongs to {needed}; add that, or leave {flag} out")


def seed(text: str) -> int:
    """Read the value of a flag that seeds random draws.

    Raises:
        ArgumentTypeError: for what is no whole number, or a negative one.
    """
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a seed is a whole number, not {text!r}") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def add_user_dir(parser: Any) -> None:
    """Add the flag that names a plug-in, for :func:`fairseq.config.plugins.import_from_argv`."""
    parser.add_argument("--user-dir", metavar="FOLDER", help="a plug-in to import first")


def add_encoder_flags(parser: Any) -> None:
    """Add the flags that name the files of text encoders."""
    for name, flags, field, text in ENCODER_FILES:
        parser.add_argument(*flags, dest=field, metavar="FILE", help=f"{name}: {text}")


def encoder_settings(args: Any) -> dict[str, Any]:
    """Return the text encoder and its files, as far as a command line names them."""
    fields = ("bpe", *ENCODER_FIELDS)
    return {field: getattr(args, field) for field in fields if getattr(args, field) is not None}


def stated_flags(parser: Any, argv: Sequence[str], task: str) -> dict[str, Any]:
    """Parse a command line; return what it states, and the encoder whose file it names.

    Args:
        parser: without the flags of components.
        argv: the arguments.
        task: the task if none is named.

    Raises:
        ConfigError: for ``--bpe none`` where no text is encoded.
    """
    from fairseq.config import options
    from fairseq.config.flags import explicitly_given

    names = {}
    if "--help" not in argv:
        encoder = encoder_of_flags(argv)
        names = {"task": task} | ({"bpe": encoder} if encoder else {})
    options.refuse_words(parser, options.complete_parser(parser, argv, names))
    flat = vars(explicitly_given(parser, argv))
    if "bpe" in names:
        flat.setdefault("bpe", names["bpe"])
    if flat.get("bpe") == "none" and not {"last_word", "minimal_pairs"} & set(flat):
        raise ConfigError(
            "--bpe none belongs to --last-word and --minimal-pairs; without them, leave --bpe out"
        )
    return flat


def encoder_of_flags(argv: Sequence[str]) -> str | None:
    """Return the text encoder that a flag of its own chooses, as its file does, None for none.

    Args:
        argv: arguments such as ``--byte-level-tokenizer FILE``; ``--bpe`` is not looked for.
    """
    from fairseq.config import options
    from fairseq.config.components import class_of
    from fairseq.config.registry import config_class
    from fairseq.config.schema import public_fields

    settings = {word.split("=")[0][2:].replace("-", "_") for word in argv if word[:2] == "--"}
    for name in options.known_names("bpe") if settings else ():
        config = config_class(class_of("bpe", name))
        if config is not None and settings & {field.name for field, _ in public_fields(config)}:
            return name
    return None


def add_last_word_flags(parser: Any) -> Any:
    """Add the flags of :func:`score_texts`, let ``--bpe`` be ``none``; return the parser."""
    group = parser.add_argument_group("scores of texts")
    group.add_argument(
        "--minimal-pairs",
        metavar="FILE",
        help="is sentence_good more likely than sentence_bad? a .jsonl file or a folder (BLiMP)",
    )
    group.add_argument(
        "--last-word",
        metavar="FILE",
        help="predict the last word of each text of a .jsonl file given the rest (LAMBADA)",
    )
    group.add_argument(
        "--text-key",
        metavar="KEY",
        default="text",
        help="key of the text in that file (default: text)",
    )
    if (bpe := parser._option_string_actions.get("--bpe")) is not None:
        known = bpe.type
        bpe.type = lambda name: name if name == "none" else known(name)
        bpe.help += "; with --last-word and --minimal-pairs also none: words are the dictionary's"
    return parser


def score_texts(flat: dict[str, Any], as_json: bool) -> bool:
    """Score and print what ``--last-word`` or ``--minimal-pairs`` ask for; tell if one was given.

    Args:
        flat: what the command line states; these flags are taken out.
        as_json: print one JSON object.

    Raises:
        ConfigError: for both at once, or a ``--text-key`` that is not read.
    """
    texts, pairs = flat.pop("last_word", None), flat.pop("minimal_pairs", None)
    if "text_key" in flat and texts is None:
        raise inert("text_key", "last_word")
    key = flat.pop("text_key", "text")
    if texts is not None and pairs is not None:
        raise ConfigError("--last-word and --minimal-pairs are two scores: ask for one at a time")
    if pairs is not None:
        from fairseq.evaluation import minimal_pairs

        result = minimal_pairs.evaluate_minimal_pairs(flat, pairs)
        print(json.dumps(result) if as_json else minimal_pairs.describe(result))
    elif texts is not None:
        from fairseq.evaluation import continuations

        result = continuations.evaluate_last_words(flat, texts, key)
        print(json.dumps(result) if as_json else continuations.describe(result))
    return texts is not None or pairs is not None

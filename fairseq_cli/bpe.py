"""``fairseq-bpe``: train a byte-level tokenizer, encode text into pieces, decode it back."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq.catalog import BPES
from fairseq_cli.entry import command, command_parser
from fairseq_cli.flags import ENCODER_FILES, add_encoder_flags

if TYPE_CHECKING:
    from fairseq.data.encoders import TextEncoder

DESCRIPTION = "From text to the pieces that fairseq-preprocess counts, and back."

EXAMPLES = """\
examples:
  a tokenizer of your own, then the corpus in its pieces:
    fairseq-bpe train --inputs train.txt --vocab-size 8000 --output tokenizer.json
    fairseq-bpe encode --bpe byte_level --tokenizer-file tokenizer.json --keep-empty \\
        --inputs train.txt valid.txt --outputs train.bpe valid.bpe
    fairseq-preprocess --only-source --trainpref train.bpe --validpref valid.bpe \\
        --byte-level-tokenizer tokenizer.json --destdir data-bin
  what a tokenizer makes of a sentence, and back:
    echo "Hello world!" | fairseq-bpe encode --bpe byte_level --tokenizer-file tokenizer.json
    fairseq-bpe decode --bpe byte_level --tokenizer-file tokenizer.json --inputs train.bpe | head
"""

TRAIN_EXAMPLES = """\
examples:
  fairseq-bpe train --inputs train.txt --vocab-size 8000 --output tokenizer.json
  fairseq-bpe train --inputs a.jsonl b.jsonl.gz --text-key text --output tokenizer.json
"""

ENCODE_EXAMPLES = """\
Empty lines: with --keep-empty they stay, and each input is a file of its own (blank lines part
documents, so this is what language models want). Without it the inputs are parallel files, and a
line is dropped from all of them if it is empty in one.

examples:
  GPT-2's encoding, from its published files:
    fairseq-bpe encode --bpe gpt2 --gpt2-encoder-json encoder.json --gpt2-vocab-bpe vocab.bpe \\
        --keep-empty --inputs train.txt --outputs train.bpe
  BERT's word pieces, for a model that was imported:
    fairseq-bpe encode --bpe wordpiece --vocab bert/vocab.txt --keep-empty \\
        --inputs train.txt --outputs train.bpe
  sentence pairs that stay pairs:
    fairseq-bpe encode --inputs train.a train.b --outputs train.a.bpe train.b.bpe
  one JSON object per line: each is a document, its lines become lines, an empty line parts two
  documents (what --sample-break-mode complete_doc looks for):
    fairseq-bpe encode --inputs c4.jsonl.gz --text-key text --outputs c4.bpe
  a folder written by save_to_disk of the package datasets, the first 99.99% of its rows:
    fairseq-bpe encode --inputs owt2.hf --split "train(0:0.9999)" --outputs train.bpe
  each record one line, from a pipe:
    zcat c4.jsonl.gz | fairseq-bpe encode --jsonlines > c4.bpe
"""

DECODE_EXAMPLES = """\
examples:
  fairseq-bpe decode --bpe byte_level --tokenizer-file tokenizer.json \\
      --inputs train.bpe --outputs train.txt
"""


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command and its three sub-commands."""
    parser = command_parser("fairseq-bpe", DESCRIPTION, EXAMPLES, allow_abbrev=True)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,encode,decode}")
    train = _add_command(commands, "train", "learn a byte-level BPE from text", TRAIN_EXAMPLES)
    train.add_argument(
        "--inputs", nargs="+", required=True, metavar="FILE", help="text ('-': stdin)"
    )
    train.add_argument("--output", required=True, metavar="FILE", help="tokenizer.json to write")
    train.add_argument(
        "--vocab-size",
        type=int,
        default=8000,
        metavar="N",
        help="pieces, 256 bytes included (default: 8000)",
    )
    train.add_argument(
        "--min-frequency",
        type=int,
        default=2,
        metavar="N",
        help="rarer pairs are not merged (default: 2)",
    )
    _add_records(train)
    encode = _add_command(commands, "encode", "text -> pieces", ENCODE_EXAMPLES)
    _add_files(encode)
    encode.add_argument("--keep-empty", action="store_true", help="keep empty lines (see below)")
    _add_records(encode)
    _add_files(_add_command(commands, "decode", "pieces -> text", DECODE_EXAMPLES))
    return parser


def _add_command(commands: Any, name: str, help: str, epilog: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--json", action="store_true", help="print the summary as JSON on standard output"
    )
    return command


def _add_records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text-key",
        metavar="KEY",
        help="key of a document's text in JSON lines (.jsonl, .jsonl.gz), or its column in Parquet "
        "files and datasets folders; a.b is b inside a (default: text)",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="split of a datasets folder, name or name(lo:hi) for a fraction of its rows (train); "
        "of a Parquet file (lo:hi)",
    )
    parser.add_argument(
        "--skip-bad-records",
        action="store_true",
        help="leave out and count records that are not JSON or have no text",
    )
    parser.add_argument(
        "--jsonlines",
        nargs="?",
        const="text",
        metavar="FIELD",
        help='each line is a JSON object, its FIELD (without a value: "text") one line of text',
    )


def _documents(args: argparse.Namespace) -> Any:
    from fairseq.files.documents import choose_options

    return choose_options(
        args.inputs, args.text_key, args.skip_bad_records, args.split, args.jsonlines
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs", nargs="+", default=["-"], metavar="FILE", help="files to read (default: stdin)"
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        default=["-"],
        metavar="FILE",
        help="one per input (default: stdout)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: the cores of this machine)"
    )
    parser.add_argument(
        "--bpe", choices=sorted(BPES), default="gpt2", help="encoder (default: gpt2)"
    )
    add_encoder_flags(parser)
    word: Any = {"default": argparse.SUPPRESS}
    parser.add_argument(
        "--wordpiece-cased", action="store_true", help="wordpiece: keep capital letters", **word
    )
    parser.add_argument(
        "--wordpiece-accents",
        choices=["auto", "keep", "strip"],
        help="wordpiece: keep or strip accents (auto: they go with the capital letters)",
        **word,
    )
    parser.add_argument(
        "--no-wordpiece-chinese",
        dest="wordpiece_chinese",
        action="store_false",
        help="wordpiece: Chinese characters are no words of their own",
        **word,
    )


def _build(args: argparse.Namespace) -> TextEncoder:
    from fairseq.data.encoders import BPE_DATACLASS_REGISTRY, BPE_REGISTRY
    from fairseq.errors import ConfigError

    config = BPE_DATACLASS_REGISTRY[args.bpe]()
    for name, flags, field, _ in ENCODER_FILES:
        if getattr(args, field) is not None:
            if name != args.bpe:
                raise ConfigError(f"{flags[0]} belongs to --bpe {name}, not to --bpe {args.bpe}")
            setattr(config, field, getattr(args, field))
    switches = {k: v for k, v in vars(args).items() if k.startswith("wordpiece_") and v is not None}
    if switches and args.bpe != "wordpiece":
        raise ConfigError(f"settings of wordpiece were given, but --bpe is {args.bpe}")
    for field, value in switches.items():
        setattr(config, field, value)
    encoder: TextEncoder = BPE_REGISTRY[args.bpe](config)
    return encoder


def _train(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from fairseq.preprocess.encode import train_byte_level

    size = train_byte_level(
        args.inputs,
        args.vocab_size,
        args.output,
        args.min_frequency,
        args.jsonlines,
        _documents(args),
    )
    text = f"{args.output}: {size:,} pieces"
    if size < args.vocab_size:
        text += f" (the text offers no more; {args.vocab_size:,} were asked for)"
    return {"output": args.output, "vocab_size": size}, text


def _convert(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from fairseq.errors import ConfigError
    from fairseq.preprocess.encode import available_cores, decode_files, encode_files

    if args.json and "-" in args.outputs:
        raise ConfigError("--json prints on standard output: name a file with --outputs")
    workers = available_cores() if args.workers is None else args.workers
    if args.command == "decode":
        summary = decode_files(_build(args), args.inputs, args.outputs, workers)
    else:
        documents = _documents(args)
        summary = encode_files(
            _build(args),
            args.inputs,
            args.outputs,
            args.keep_empty,
            workers,
            args.jsonlines,
            documents,
        )
    rate = summary.bytes_read / 1e6 / max(summary.seconds, 1e-9)
    text = (
        f"{summary.written:,} lines, {summary.tokens:,} pieces, {summary.dropped:,} lines dropped, "
        f"{summary.seconds:.1f} s, {rate:.1f} MB/s"
    )
    if summary.records:
        text += f"; {summary.of_records()}"
    return dataclasses.asdict(summary), text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = get_parser().parse_args(argv)
    record, text = _train(args) if args.command == "train" else _convert(args)
    if args.json:
        print(json.dumps({"command": args.command, **record}))
    else:
        print(text, file=sys.stderr)
    return 0


cli_main = command(main)

if __name__ == "__main__":
    cli_main()

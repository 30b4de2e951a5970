"""fairseq-export: models to other toolkits, and from them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fairseq_cli.entry import command, command_parser
from fairseq_cli.flags import (
    ENCODER_FIELDS,
    add_encoder_flags,
    add_user_dir,
    encoder_settings,
    flag_of,
)

EXAMPLES = """examples:
  fairseq-export runs/mine/checkpoint_best.pt --to hf --out mine-hf
  fairseq-export mine-hf --from hf --out mine
  fairseq-export gpt2-folder --from hf --out gpt2
  fairseq-export runs/mine/checkpoint_best.pt --to hf --out mine-hf --push me/mine
  fairseq-export runs/mine --to hf --revisions --out mine-revisions
  fairseq-export headless.pt --add-head tied --log-unigram-bias --out model.pt
  fairseq-export runs/mine/checkpoint_best.pt --to fairseq --out plain.pt
  fairseq-export runs/mine/checkpoint_best.pt --to safetensors --out weights.safetensors

RoBERTa, XLM-R, CamemBERT, BERT and DistilBERT come as roberta, GPT-2, GPT-NeoX and OPT as
transformer_lm; classifiers of sentences come and go with their head and labels. Logits,
log-probabilities, perplexity and greedy continuations on 100 sentences, and on 60 texts that
tokenizers differ on, are compared before the result gets its name; a difference above 1e-5 (times
the greatest logit) is an error, and nothing is written.
"""
TOLD = {
    "remote_code": "class travels with the model",
    "extra_rows": "rows added",
    "sentences": "sentences compared",
    "max_abs_difference": "largest difference of logits",
    "log_probability_difference": "of log-probabilities",
    "perplexity": "perplexity on the compared texts",
}
# field -> the directions that read it; what is not here they all read
READ_BY = {
    "data": ("--to hf", "--add-head"),
    "sentences": ("--to hf", "--from hf"),
    "log_unigram_bias": ("--add-head",),
    **dict.fromkeys(
        ("bpe", *ENCODER_FIELDS, "classification_head", "revisions", "push", "public"),
        ("--to hf",),
    ),
}


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    description = "Convert a checkpoint to or from another toolkit."
    parser = command_parser("fairseq-export", description, EXAMPLES, allow_abbrev=True)
    parser.add_argument("source", type=Path, help="a checkpoint or, with --from, a model folder")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", choices=["hf", "safetensors", "fairseq"], help="what to write")
    way.add_argument("--from", dest="origin", choices=["hf"], help="what to read")
    way.add_argument(
        "--add-head",
        choices=["tied", "copy"],
        help="give a model without head one: the input embeddings, shared or copied",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder or file to write")
    parser.add_argument("--data", type=Path, help="folder with the checkpoint's dict.txt")
    parser.add_argument(
        "--bpe",
        metavar="NAME",
        help="the checkpoint's text encoder, or none if words are the dictionary's (default: as "
        "recorded; else byte_level if tokenizer.json lies beside dict.txt, gpt2 if that holds "
        "numbers)",
    )
    add_encoder_flags(parser)
    parser.add_argument(
        "--classification-head",
        metavar="NAME",
        help="with --to hf: take this head of an encoder along, or none: the vocabulary head "
        "(default: the one it was fine-tuned with)",
    )
    parser.add_argument(
        "--sentences", type=Path, help="text to compare on (default: Python's help)"
    )
    parser.add_argument(
        "--log-unigram-bias",
        action="store_true",
        help="with --add-head: a bias, log((count + 1) / sum) of the dictionary's counts",
    )
    parser.add_argument(
        "--push", metavar="REPO", help="with --to hf: upload the folder to this Hub repository"
    )
    parser.add_argument("--public", action="store_true", help="with --push: a new REPO is public")
    parser.add_argument(
        "--revisions",
        action="store_true",
        help="with --to hf: source is a run folder, and every checkpoint of it becomes a folder in "
        "--out (with --push a branch of the repository)",
    )
    add_user_dir(parser)
    parser.add_argument("--force", action="store_true", help="replace what --out names")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and convert."""
    parser = get_parser()
    args = parser.parse_args(argv)
    _check_company(parser, args)
    from fairseq.config.plugins import import_from_argv
    from fairseq.export import add_head, encoder_in, encoder_out, original_and_safetensors, push
    from fairseq.export.revisions import to_revisions
    from fairseq.files.io import require_text

    import_from_argv(argv)
    if args.push is not None:
        push.check_repository(args.push)
    lines = None
    if args.sentences is not None:
        text = require_text(args.sentences, "sentences", "Check --sentences.")
        lines = [line for line in text.splitlines() if line.strip()][: encoder_out.SENTENCES]
    if args.add_head is not None:
        result = add_head.add_head(
            args.source, args.out, args.add_head, args.data, args.log_unigram_bias, args.force
        )
    elif args.origin == "hf":
        result = encoder_in.from_huggingface(args.source, args.out, lines, args.force)
    elif args.to == "hf":
        write_hf = to_revisions if args.revisions else encoder_out.to_huggingface
        result = write_hf(
            args.source,
            args.out,
            args.data,
            lines,
            args.force,
            args.classification_head,
            **encoder_settings(args),
        )
        if args.push is not None:
            branches = result.get("revisions", [])
            result["pushed"] = push.push(
                args.out, args.push, private=not args.public, branches=branches
            )
    else:
        write = (
            original_and_safetensors.to_safetensors
            if args.to == "safetensors"
            else original_and_safetensors.to_fairseq
        )
        result = write(args.source, args.out, args.force)
    facts = ", ".join(f"{TOLD.get(name, name)} {_short(value)}" for name, value in result.items())
    print(json.dumps(result) if args.json else f"wrote {args.out}: {facts}")
    return 0


def _check_company(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the command if a flag is given that the direction does not read."""
    way = f"--to {args.to}" if args.to else f"--from {args.origin}" if args.origin else "--add-head"
    for name, ways in READ_BY.items():
        if getattr(args, name) not in (None, False) and way not in ways:
            parser.error(f"{flag_of(name)} belongs to {' and '.join(ways)}; {way} does not read it")
    if args.public and args.push is None:
        parser.error("--public belongs to --push")


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


cli_main = command(main)

if __name__ == "__main__":
    cli_main()

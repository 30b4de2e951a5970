"""fairseq-grow: a small model becomes the start of a larger one."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.catalog import GROWTH
from fairseq_cli.entry import command, command_parser
from fairseq_cli.flags import add_user_dir

if TYPE_CHECKING:
    from fairseq.config.schema import FairseqDataclass


EXAMPLES = """examples:
  fairseq-grow small.pt --out big.pt --method stack --encoder-layers 12
  fairseq-grow small.pt --out big.pt --method fpi --arch roberta_base
  fairseq-grow small.pt --out wide.pt --method enlarge --grow-width 2
  fairseq-grow base.pt --out half.pt --method extract --grow-layers 0,2,4,7,9,11
  fairseq-grow small.pt --out big.pt --method ligo --operator runs/ligo/checkpoint_last.pt

The sizes of the target are flags of the model (--encoder-layers, --decoder-embed-dim, ...) or those
of --arch; what is not given follows from the source: a wider model gets proportionally wider
feed-forward networks and more heads of the same size. Where a method says that the function stays
the same, logits are compared before the file gets its name. Train with the grown file by
--finetune-from-model, or grow and train in one with fairseq-train --grow-from.
"""


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser, without the flags of the model."""
    from fairseq.config.flags import add_field
    from fairseq.config.schema import public_fields
    from fairseq.config.sections import CheckpointConfig

    description = "Grow a checkpoint into a larger model, or extract a smaller one."
    parser = command_parser("fairseq-grow", description, EXAMPLES)
    parser.add_argument("source", type=Path, help="a checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--method", choices=sorted(GROWTH), metavar="NAME", help=", ".join(GROWTH))
    parser.add_argument("--operator", type=Path, metavar="FILE", help="ligo: the learned operator")
    parser.add_argument("--arch", metavar="NAME", help="take the sizes of this architecture")
    parser.add_argument("--grow-width", type=int, metavar="K", help="K times the width")
    config = CheckpointConfig()
    for field, kind in public_fields(CheckpointConfig):
        # a file that is grown has no state of an optimizer
        if field.name.startswith("grow_") and field.name not in (
            "grow_from",
            "grow_method",
            "grow_optimizer",
        ):
            add_field(parser, config, field, kind, None, False)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the source's dict.txt"
    )
    add_user_dir(parser)
    parser.add_argument("--force", action="store_true", help="replace what --out names")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def model_flags(
    parser: argparse.ArgumentParser, config: FairseqDataclass, rest: list[str]
) -> dict[str, Any]:
    """Return what the user states about the target, by field name; exit if that is no setting."""
    from fairseq.config.flags import gen_parser_from_dataclass

    target = argparse.ArgumentParser(parser.prog, add_help=False, allow_abbrev=False)
    gen_parser_from_dataclass(target, config, delete_default=True)
    stated, unknown = target.parse_known_args(rest)
    if unknown:
        parser.error(f"{config._name} has no such setting: {' '.join(unknown)}")
    return vars(stated)


def flag_of(name: str, value: object) -> str:
    """Return a setting as it is typed."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"--{name.replace('_', '-')} {text}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and grow."""
    parser = get_parser()
    args, rest = parser.parse_known_args(argv)
    from fairseq.config.plugins import import_from_argv
    from fairseq.config.ranges import check_fields
    from fairseq.config.sections import CheckpointConfig
    from fairseq.growth.files import Opened, grow_file, settle_target, target_of
    from fairseq.growth.start import options_of

    import_from_argv(argv)
    opened = Opened(args.source, args.data)
    operator = None
    if args.operator is not None:
        operator = Opened(args.operator, args.data or Path(opened.config.task.data))
    source = (operator or opened).source
    named = {field.name for field in dataclasses.fields(CheckpointConfig)}
    growth = {name: value for name, value in vars(args).items() if name in named}
    check_fields(section := CheckpointConfig(**growth), "checkpoint")
    options = options_of(section)
    stated = model_flags(parser, source.target or source.config, rest)
    target = target_of(source, stated, args.arch, options, args.grow_width)
    settle_target(args.method or "ligo", source.config, target, stated)
    check_fields(target, "model", stated)
    result = grow_file(opened, args.out, args.method, target, options, operator, args.force)
    if args.json:
        print(json.dumps(result))
        return 0
    verdict = "the same function" if result["exact"] else f"not exact: {result['reason']}"
    sizes = ", ".join(f"{name} {result[name]}" for name in ("layers", "width", "ffn", "heads"))
    moved = result["logit_change"]
    print(f"wrote {args.out}: {result['method']}, {sizes}; {verdict}")
    if result["settings"]:
        flags = " ".join(flag_of(name, value) for name, value in result["settings"].items())
        print(f"settings of its own, to be given when it is trained: {flags}")
    if moved is not None:
        print(f"logits move by {moved:.1e} at most, relative to the largest (in fp64)")
    return 0


cli_main = command(main)

if __name__ == "__main__":
    cli_main()

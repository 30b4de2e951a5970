"""fairseq-probe: what a linear map can read from frozen encoders."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from fairseq.catalog import PROBE_FEATURES, PROBE_SOLVERS
from fairseq_cli.entry import command, command_parser
from fairseq_cli.flags import add_user_dir, seed

EXAMPLES = """examples:
  fairseq-probe runs/mine/checkpoint_best.pt --train b1.csv --valid b2.csv --test b3.csv
  fairseq-probe small.pt enlarged.pt large.pt --train train.txt --train-labels train.label \\
      --valid valid.txt --valid-labels valid.label --features mean
  fairseq-probe model.pt --train t.csv --valid v.csv --lookup t.npz v.npz
      also on the true distributions that fairseq-pcfg score wrote

Files are CSV with the columns text and label, or lines with a file of labels beside. The majority,
one-hot tokens and the first encoder with random weights are always probed, too. Full fine-tuning is
fairseq-train --task sentence_prediction.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    description = "Fit linear classifiers on the features of frozen encoders."
    parser = command_parser("fairseq-probe", description, EXAMPLES)
    add = parser.add_argument
    add("checkpoints", metavar="CKPT", nargs="+", help="checkpoints of encoders")
    for split, needed in (("train", True), ("valid", True), ("test", False)):
        add(
            f"--{split}",
            metavar="FILE",
            required=needed,
            help="sentences, .csv with labels or one a line",
        )
        add(
            f"--{split}-labels",
            metavar="FILE",
            help="labels of sentences that are lines, one a line",
        )
    add("--features", choices=PROBE_FEATURES, default="positions", help="all tokens' states side "
        "by side, their mean, or the state of <s> (default: positions)")  # fmt: skip
    add("--solver", choices=PROBE_SOLVERS, default="lbfgs", help="logistic regression, the steps "
        "of the published probe, or ridge regression in closed form (default: lbfgs)")  # fmt: skip
    add(
        "--max-positions",
        type=int,
        metavar="N",
        help="positions side by side (default: those of the longest sentence)",
    )
    add("--lookup", nargs="+", metavar="NPZ", help="score files of train, valid and test, in order")
    add("--dict-dir", metavar="FOLDER", help="folder with dict.txt (default: the checkpoint's)")
    devices = ("auto", "cpu", "cuda", "mps")
    add("--device", choices=devices, default="auto", help="where encoders compute (default: auto)")
    add(
        "--seed",
        type=seed,
        default=1,
        metavar="N",
        help="seed of random weights and of sgd (default: 1)",
    )
    add_user_dir(parser)
    add("--json", action="store_true", help="print the rows as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Probe and print a table."""
    parser = make_parser()
    args = parser.parse_args(argv)
    from fairseq.config.plugins import import_from_argv
    from fairseq.evaluation.probes.run import probe
    from fairseq.evaluation.probes.sentences import read_labelled
    from fairseq.logging.progress_bar import setup_logging

    setup_logging("WARNING", "stderr")
    import_from_argv(argv)
    files = {name: getattr(args, name) for name in ("train", "valid", "test")}
    files = {name: path for name, path in files.items() if path is not None}
    if args.lookup and len(args.lookup) != len(files):
        parser.error(f"--lookup needs {len(files)} files, one each for {', '.join(files)}")
    data = {
        name: read_labelled(path, getattr(args, f"{name}_labels")) for name, path in files.items()
    }
    rows = probe(
        args.checkpoints,
        data,
        features=args.features,
        solver=args.solver,
        max_positions=args.max_positions,
        lookup=dict(zip(files, args.lookup, strict=True)) if args.lookup else None,
        dict_dir=args.dict_dir,
        device=args.device,
        seed=args.seed,
    )
    if args.json:
        print(json.dumps(rows))
        return 0
    print(f"accuracy in % on {list(files)[-1]}; features: {args.features}; solver: {args.solver}")
    for row in rows:
        print(f"{100 * row['accuracy']:6.2f} +- {100 * row['se']:.2f}  {row['features']}")
    return 0


cli_main = command(main)

if __name__ == "__main__":
    cli_main()

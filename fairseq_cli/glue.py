"""fairseq-glue: prepare, fine-tune and score the sentence tasks of GLUE."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from fairseq_cli.entry import command, command_parser
from fairseq_cli.flags import add_encoder_flags, add_user_dir, encoder_settings, seed

DESCRIPTION = "Fine-tune a checkpoint on tasks of GLUE, several seeds each, and print the scores."
EXAMPLES = """examples:
  fairseq-glue runs/mine/checkpoint_best.pt --glue-dir glue --tasks CoLA SST-2 MRPC \\
      --seeds 1 2 3 --out runs/mine-glue
  a classifier for transformers, with its head and the names of its labels:
    fairseq-glue model.pt --glue-dir glue --tasks SST-2 --out runs/sst2 --export hf
  a probe: the encoder stays as it is, its mean feeds the new head
    fairseq-glue model.pt --glue-dir glue --tasks CoLA --out probe \\
        --freeze-encoder --pooling mean --lr 0.001

--glue-dir holds the official files: CoLA/train.tsv, CoLA/dev.tsv, ... (MNLI: dev_matched.tsv and
dev_mismatched.tsv). Each task has its recipe; any flag of fairseq-train (--lr, --max-epoch,
--batch-size, --cpu, ...) wins over it, and the schedule follows. What is finished is kept in
OUT/results.json and not repeated; what was interrupted goes on. In the table "best" is the epoch
that validated best, "majority" what the most frequent label would score. With --export hf, a run
that is finished but was not exported is repeated.
"""


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's own options; the rest are flags of fairseq-train."""
    from fairseq.catalog import BPES

    usage = "fairseq-glue CHECKPOINT --glue-dir FOLDER --out FOLDER [options] [training flags]"
    parser = command_parser("fairseq-glue", DESCRIPTION, EXAMPLES, usage=usage)
    parser.add_argument("checkpoint", help="a pre-trained model")
    parser.add_argument(
        "--glue-dir", required=True, metavar="FOLDER", help="folder of the official files"
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="folder for results and runs"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks (default: all eight)")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=seed,
        default=[1],
        metavar="N",
        help="one run with each seed (default: 1)",
    )
    parser.add_argument(
        "--dict-dir", metavar="FOLDER", help="folder with dict.txt (default: the checkpoint's)"
    )
    parser.add_argument(
        "--bpe", choices=[*sorted(BPES), "none"], help="text encoder (default: the checkpoint's)"
    )
    add_encoder_flags(parser)
    parser.add_argument(
        "--keep-checkpoints", action="store_true", help="keep the fine-tuned models"
    )
    parser.add_argument(
        "--export", choices=["hf"], help="export the best model of each run, into its folder hf"
    )
    add_user_dir(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args, flags = get_parser().parse_known_args(argv)
    if args.user_dir is not None:
        flags += ["--user-dir", args.user_dir]  # of the trainings, too
    from pathlib import Path

    from fairseq.config.plugins import import_from_argv
    from fairseq.evaluation.glue.prepare import open_pretrained
    from fairseq.evaluation.glue.results import summarize, table
    from fairseq.evaluation.glue.runs import run_glue
    from fairseq.evaluation.glue.tasks import TASKS, find_task
    from fairseq.logging.progress_bar import setup_logging

    setup_logging("WARNING", "stderr")
    import_from_argv(argv)
    # what is named twice is run, and counted, once
    chosen = [find_task(name) for name in dict.fromkeys(args.tasks or TASKS)]
    pretrained = open_pretrained(args.checkpoint, args.dict_dir, **encoder_settings(args))
    runs = run_glue(
        chosen,
        list(dict.fromkeys(args.seeds)),
        pretrained,
        args.glue_dir,
        Path(args.out),
        flags,
        args.keep_checkpoints,
        args.export is not None,
    )
    rows = summarize(runs)
    print(json.dumps(rows) if args.json else table(rows))
    return 0


cli_main = command(main)

if __name__ == "__main__":
    cli_main()

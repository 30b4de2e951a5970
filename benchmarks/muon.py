"""Muon against AdamW on a small causal model, each at its best learning rate.

Usage: python benchmarks/muon.py --text FOLDER --out RUNS [--smoke]

FOLDER holds train.txt and valid.txt; their beginnings are used. Rates are tried with seed 0, and
further out as long as the best one is at an edge; then both train with three fresh seeds. A pair
starts from the same weights and reads the same batches. Finished runs are kept in RUNS. One thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
import comparison  # noqa: E402
import studies  # noqa: E402
import verdicts  # noqa: E402

from benchmarks.record import RESULTS, machine, publish  # noqa: E402

PARTS = {"train": 3_000_000, "valid": 100_000, "test": 20_000}  # bytes of text
VOCABULARY = 2000
RATES = (0.002, 0.004, 0.008)
WIDEST = 10  # doublings or halvings of the rate at most
COMMON = (
    "--task language_modeling --criterion cross_entropy --arch transformer_lm --decoder-layers 2 "
    "--decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4 "
    "--decoder-normalize-before --share-decoder-input-output-embed --dropout 0 "
    "--attention-dropout 0 --tokens-per-sample 64 --sample-break-mode none --batch-size 16 "
    "--adam-betas (0.9,0.95) --weight-decay 0.1 --weight-decay-mode matrices --clip-norm 1.0 "
    "--lr-scheduler wsd --decay-updates 0.2 --no-epoch-checkpoints --num-workers 0 --device cpu "
    "--log-interval 50 --log-format none"
)
OPTIMIZERS = {"AdamW": "--optimizer adam", "Muon": "--optimizer muon"}


def beginning(text: Path, folder: Path) -> Path:
    """Write the first lines of every split; return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in PARTS.items():
        source = text / f"{'valid' if split == 'test' else split}.txt"
        content = source.read_bytes()[:size]
        (folder / f"{split}.txt").write_bytes(content[: content.rindex(b"\n") + 1])
    return folder


def compare(
    budget: Sequence[str], train: Callable[[Sequence[studies.Run]], Sequence[Any]]
) -> dict[str, Any]:
    """Tune both, train both with fresh seeds; return bits a token on valid.

    Args:
        budget: flags of the length of a run.
        train: trains runs and returns their results.
    """
    result: dict[str, Any] = {}
    ends = {}
    for name, flags in OPTIMIZERS.items():

        def run(rate: float, seed: int = 0, name: str = name, flags: str = flags) -> studies.Run:
            words = (*COMMON.split(), *budget, *flags.split(), "--lr", f"{rate:g}")
            return studies.Run(name, seed, words)

        best, losses = studies.tune(run, RATES, train, WIDEST)
        ends[name] = comparison.finals(train([run(best, seed) for seed in studies.SEEDS]))
        bits = {f"{rate:g}": round(loss, 4) for rate, loss in sorted(losses.items())}
        result[name] = {
            "bits by rate, seed 0": bits,
            "best rate": best,
            "bits by seed": [round(loss, 4) for loss in ends[name]],
        }
    difference = verdicts.paired(ends["Muon"], ends["AdamW"])
    words = ("Muon is better", "AdamW is better", "cannot be told")
    result["Muon minus AdamW, bits"] = {
        "mean": round(difference.mean, 4),
        "interval_95": [round(difference.low, 4), round(difference.high, 4)],
        "so": verdicts.verdict(difference, words=words),
    }
    return result


def main() -> None:
    """Run, print the record and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="folder of train.txt, valid.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--smoke", action="store_true", help="three updates; nothing is written")
    args = parser.parse_args()
    before = machine()
    data = studies.prepare([beginning(args.text, args.out / "text")], args.out, VOCABULARY)
    updates = (1, 3) if args.smoke else (20, 200)
    budget = "--warmup-updates {} --max-update {}".format(*updates).split()
    result = compare(budget, lambda runs: studies.run_all(runs, data, args.out, jobs=1))
    publish("muon", result, None if args.smoke else RESULTS / "muon.json", before)


if __name__ == "__main__":
    main()

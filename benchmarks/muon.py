"""Muon against AdamW on a small causal model, each at its best learning rate.

Usage: python benchmarks/muon.py --text FOLDER --out RUNS [--smoke]

FOLDER holds train.txt and valid.txt; their beginnings are used. Rates are tried with seed 0, and
further out as long as the best one is at an edge; then both train with three fresh seeds. A pair
starts from the same weights and reads the same batches. Finished runs are kept in RUNS. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
import studies  # noqa: E402

from benchmarks.run import RESULTS, machine  # noqa: E402

PARTS = {"train": 3_000_000, "valid": 100_000, "test": 20_000}  # bytes of text
VOCABULARY = 2000
RATES = (0.002, 0.004, 0.008)
SEEDS = (1, 2, 3)
STUDENT = 4.303  # 97.5 % quantile of Student's t with len(SEEDS) - 1 = 2 degrees of freedom
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


class Comparison:
    """The runs of one comparison.

    Args:
        text: see the module.
        out: folder of the runs.
        smoke: three updates a run.
    """

    def __init__(self, text: Path, out: Path, smoke: bool) -> None:
        self.out = out
        self.data = studies.prepare(beginning(text, out / "text"), out, VOCABULARY)
        budget = "--warmup-updates 1 --max-update 3" if smoke else ""
        self.words = f"{COMMON} {budget or '--warmup-updates 20 --max-update 200'}".split()

    def losses(self, wanted: list[tuple[str, float, int]]) -> list[float]:
        """Return the loss on valid in bits of each (optimizer, rate, seed)."""
        runs = [
            studies.Run(name, seed, (*self.words, *OPTIMIZERS[name].split(), "--lr", f"{rate:g}"))
            for name, rate, seed in wanted
        ]
        found = studies.run_all(runs, self.data, self.out, jobs=1)
        return [result["curve"][-1]["loss"] for result in found]

    def tuned(self, name: str) -> dict[float, float]:
        """Return losses by rate, so many that the best one is at no edge."""
        found: dict[float, float] = {}
        wanted = list(RATES)
        while wanted:
            losses = self.losses([(name, rate, 0) for rate in wanted])
            found |= dict(zip(wanted, losses, strict=True))
            best = min(found, key=lambda rate: found[rate])
            wanted = [best / 2] if best == min(found) else [2 * best] if best == max(found) else []
        return dict(sorted(found.items()))


def paired(differences: list[float]) -> dict[str, Any]:
    """Return mean and 95 % interval of paired differences, and what they say."""
    mean = statistics.mean(differences)
    half = STUDENT * statistics.stdev(differences) / math.sqrt(len(differences))
    low, high = mean - half, mean + half
    verdict = "Muon is better" if high < 0 else "AdamW is better" if low > 0 else "cannot be told"
    return {"mean": round(mean, 4), "interval_95": [round(low, 4), round(high, 4)], "so": verdict}


def compare(comparison: Comparison) -> dict[str, Any]:
    """Tune both, train both with fresh seeds; return bits a token on valid."""
    result: dict[str, Any] = {}
    ends = {}
    for name in OPTIMIZERS:
        rates = comparison.tuned(name)
        best = min(rates, key=lambda rate: rates[rate])
        ends[name] = comparison.losses([(name, best, seed) for seed in SEEDS])
        result[name] = {
            "bits by rate, seed 0": {f"{rate:g}": round(loss, 4) for rate, loss in rates.items()},
            "best rate": best,
            "bits by seed": [round(loss, 4) for loss in ends[name]],
        }
    pairs = zip(ends["Muon"], ends["AdamW"], strict=True)
    result["Muon minus AdamW, bits"] = paired([muon - adam for muon, adam in pairs])
    return result


def main() -> None:
    """Run, print the record and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="folder of train.txt, valid.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--smoke", action="store_true", help="three updates; nothing is written")
    args = parser.parse_args()
    before = machine()
    result = compare(Comparison(args.text, args.out, args.smoke))
    command = "python benchmarks/muon.py --text ../shared/data/english --out runs"
    record = {"benchmark": "muon", "command": command, "machine": before, "result": result}
    print(json.dumps(record, indent=1))
    if not args.smoke:
        text = json.dumps(record, indent=1) + "\n"
        (RESULTS / "muon.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What `fairseq-train --estimate` says beside what the run then takes: memory, tokens a second.

Usage: python benchmarks/estimate.py [--updates N] [--rounds N] [--quick] [--out FILE]

Recipes of the package on made-up text. In a round each is estimated and then trained for N updates
and validated, in processes of their own. The peak of a run is what the system counts (its resident
set) until Python ends: torch built for CUDA reads its libraries once more while they are unloaded.
Its speed is that between the first and the last figures it logged. Ratios are estimate over run;
those of memory do not depend on what else the machine does, those of speed do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.record import RESULTS, publish  # noqa: E402

MODELS = ("masked", "causal", "zero_clap")
VOCABULARY, WIDTH = 8000, 127
QUICK = "--batch-size 2 --tokens-per-sample 32"
# runs a module and prints VmHWM, in kB, behind all else that is done at the exit
PROBE = """
import atexit, runpy, sys
from pathlib import Path
def tell():
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
atexit.register(tell)
sys.argv[:] = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def write_data(folder: Path, lines: int) -> Path:
    """Binarize words whose frequencies fall with their rank; return the folder of binary files."""
    weights = 1 / np.arange(10, VOCABULARY + 10)
    draw = np.random.default_rng(0)
    (folder / "known").write_text("".join(f"w{x} 1\n" for x in range(VOCABULARY)))
    for split, number in (("train", lines), ("valid", max(8, lines // 50))):
        words = draw.choice(VOCABULARY, size=(number, WIDTH), p=weights / weights.sum())
        text = "\n".join(" ".join(f"w{x}" for x in row) for row in words)
        (folder / split).write_text(text + "\n")
    call(
        "preprocess", "--only-source", "--srcdict", folder / "known", "--destdir", folder / "bin",
        "--trainpref", folder / "train", "--validpref", folder / "valid",
    )  # fmt: skip
    return folder / "bin"


def words_of(name: str, *words: Any) -> list[str]:
    """Return the command line of one of our commands."""
    return [sys.executable, "-m", f"fairseq_cli.{name}", *map(str, words)]


def call(name: str, *words: Any) -> str:
    """Run one of our commands; return its standard output."""
    done = subprocess.run(words_of(name, *words), check=True, capture_output=True, text=True)
    return done.stdout


def peak_of(name: str, *words: Any) -> float:
    """Run one of our commands; return the most memory it held at once, in MB."""
    python, _, *rest = words_of(name, *words)
    done = subprocess.run([python, "-c", PROBE, *rest], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1]) / 1024


def compare(name: str, data: Path, folder: Path, updates: int, more: list[str]) -> dict[str, Any]:
    """Estimate a recipe and train it; return both, and their ratios."""
    words = [
        data, "--config", name, "--max-update", updates, "--save-dir", folder / name,
        "--log-interval", 4, "--log-format", "none", "--cpu", "--num-workers", 0, *more,
    ]  # fmt: skip
    told = json.loads(call("train", *words, "--estimate", "--json"))
    peak = peak_of("train", *words)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    inner = [row for row in map(json.loads, lines) if row["tag"] == "train_inner"]
    seconds = inner[-1]["time"] - inner[0]["time"]
    speed = (inner[-1]["tokens"] - inner[0]["tokens"]) / seconds
    memory = told["memory"]["peak"] / 2**20
    return {
        "memory_MB": round(memory), "peak_MB": round(peak), "memory_ratio": round(memory / peak, 3),
        "tokens_s": round(told["tokens_per_second"]), "run_tokens_s": round(speed),
        "speed_ratio": round(told["tokens_per_second"] / speed, 3),
    }  # fmt: skip


def main() -> None:
    """Measure, print, keep the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=60, help="of each run")
    parser.add_argument("--rounds", type=int, default=2, help="of all models in turn")
    parser.add_argument("--quick", action="store_true", help="one model, small, printed only")
    parser.add_argument("--out", type=Path, default=RESULTS / "estimate.json")
    args = parser.parse_args()
    models, rounds = (MODELS[:1], 1) if args.quick else (MODELS, args.rounds)
    updates, more = (12, QUICK.split()) if args.quick else (args.updates, [])
    os.environ["PYTHONPATH"] = str(ROOT)
    result: dict[str, Any] = {}
    for number in range(rounds):
        for name in models:
            with tempfile.TemporaryDirectory() as folder:
                data = write_data(Path(folder), 300 if args.quick else 16 * updates * 2)
                key = f"{name}, round {number + 1}"
                result[key] = compare(name, data, Path(folder), updates, more)
            print(key, result[key], file=sys.stderr, flush=True)
    publish("estimate", result, None if args.quick else args.out)


if __name__ == "__main__":
    main()

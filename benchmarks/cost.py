"""How cost grows: with tokens, words, length, width, processes, and the size of a corpus.

Usage: python benchmarks/cost.py [AXIS ...] [--rounds N] [--quick] [--out FILE]

An axis changes one number of `fairseq-train` (2 layers of 256, 8,001 words, 32 rows of 128) and
leaves the others: `length` keeps 4,096 tokens a batch, `processes` the batch of each. All sizes of
an axis run as processes of their own and take turns, as in `step.py`. `corpus` is text of several
sizes: `fairseq-preprocess` with two workers, and `fairseq-train` until it has taken one step.

An exponent is log(cost ratio) / log(size ratio) against the row above: 1 means in proportion, 0
that it does not matter. Memory is the sum over processes of their proportional share (PSS), at its
most, looked at after each turn or fifty times a second. One thread a process. Records of axes are
merged into --out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.record import RESULTS, commit, machine, publish  # noqa: E402
from benchmarks.rounds import interval, ratios, spread  # noqa: E402
from benchmarks.step import (  # noqa: E402
    LENGTH,
    ROWS,
    Case,
    Contestant,
    end_when_terminated,
    environment,
    train_command,
    write_data,
)

BASE = Case("masked", 8001, 0.1, 1)
TOKENS = ROWS * LENGTH
# axis -> sizes; what a size changes is said in `words_of`
AXES: dict[str, tuple[int, ...]] = {
    "tokens": (1024, 2048, 4096, 8192),
    "words": (2001, 8001, 32001, 128001),
    "length": (64, 128, 256, 512),
    "width": (128, 256, 512),
    "processes": (1, 2),
    "corpus": (10, 100, 1000),  # MB of text
}
QUICK = {name: (sizes[0], sizes[-1]) for name, sizes in AXES.items()} | {"corpus": (1, 2)}


def words_of(axis: str, size: int, folder: Path) -> list[str]:
    """Return the arguments of `fairseq-train` at one size of an axis."""
    vocabulary = size if axis == "words" else BASE.vocabulary
    data = folder / f"bin{vocabulary}"
    if not data.is_dir():
        write_data(folder, vocabulary)
    changed: dict[str, list[Any]] = {
        "tokens": ["--batch-size", size // LENGTH],
        "words": [],
        "length": ["--tokens-per-sample", size, "--batch-size", TOKENS // size],
        "width": ["--encoder-embed-dim", size, "--encoder-ffn-embed-dim", 4 * size],
        "processes": ["--distributed-world-size", size],
    }
    command = train_command(Case(BASE.family, vocabulary, BASE.dropout, 1), data)
    return [*command, "--encoder-layers", "2", *map(str, changed[axis])]


def memory_of(group: int) -> float:
    """Return how many MB the processes of a group hold: pages they share are counted once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # processes end
            # behind the name, which may hold spaces: state, parent, group
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def steps(axis: str, sizes: Sequence[int], folder: Path, rounds: int) -> dict[str, Any]:
    """Train at all sizes in turn; return milliseconds of the clock a step, and memory."""
    module = [sys.executable, "-m", "fairseq_cli.train"]
    running = {
        size: Contestant(
            str(size), [*module, *words_of(axis, size, folder)], environment(1), BASE.steps
        )
        for size in sizes
    }
    times: dict[int, list[float]] = {size: [] for size in sizes}
    peaks = dict.fromkeys(sizes, 0.0)
    try:
        for turn in range(-2, rounds):  # starting, and the first steps, are not counted
            for size, each in running.items():
                _, clock = each.turn()
                peaks[size] = max(peaks[size], memory_of(each.process.pid))
                if turn >= 0:
                    times[size].append(clock)
    finally:
        for each in running.values():
            each.end()
    return table("ms", times, {size: [peak] for size, peak in peaks.items()})


def watched(command: Sequence[object]) -> tuple[float, float]:
    """Run a command; return its seconds and the most memory its processes held together, in MB."""
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(
        list(map(str, command)), env=environment(1), stdout=-3, stderr=-3, start_new_session=True
    )
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return time.perf_counter() - started, peak


def corpus(sizes: Sequence[int], folder: Path, rounds: int) -> dict[str, Any]:
    """Binarize text of several sizes, and train one step on it; return seconds and memory."""
    vocabulary = BASE.vocabulary
    write_data(folder, vocabulary)
    lines = (folder / "train.txt").read_bytes()
    spent: dict[str, dict[int, list[tuple[float, float]]]] = {"preprocess": {}, "first step": {}}
    texts = {size: folder / f"text{size}" for size in sizes}
    for size, text in texts.items():
        with text.open("wb") as file:
            for _ in range(max(1, round(size * 1e6 / len(lines)))):
                file.write(lines)
    for _ in range(rounds):
        for size, text in texts.items():
            target = folder / f"corpus{size}"
            shutil.rmtree(target, ignore_errors=True)
            preprocess = [
                sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", "--trainpref",
                text, "--srcdict", folder / "known.txt", "--destdir", target, "--workers", "2",
            ]  # fmt: skip
            train = [
                sys.executable, "-m", "fairseq_cli.train", *train_command(BASE, target),
                "--encoder-layers", "2", "--max-update", "1",
            ]  # fmt: skip
            for name, command in (("preprocess", preprocess), ("first step", train)):
                spent[name].setdefault(size, []).append(watched(command))
    return {
        f"corpus, MB: {name}": table(
            "seconds",
            {size: [seconds for seconds, _ in runs] for size, runs in by_size.items()},
            {size: [peak for _, peak in runs] for size, runs in by_size.items()},
        )
        for name, by_size in spent.items()
    }


def table(
    unit: str, times: dict[int, list[float]], peaks: dict[int, list[float]]
) -> dict[str, dict[str, Any]]:
    """Return a row for each size: cost, memory, and how they grew since the row above."""
    rows: dict[str, dict[str, Any]] = {}
    before: int | None = None
    for size, taken in times.items():
        figure = spread(taken, 3 if unit == "seconds" else 1)
        peak = statistics.median(peaks[size])
        grown: dict[str, Any] = {"exponent": None, "interval": None, "exponent of memory": None}
        if before is not None:
            step = math.log(size / before)
            powers = [math.log(ratio) / step for ratio in ratios(taken, times[before])]
            of_memory = math.log(peak / statistics.median(peaks[before])) / step
            grown = {
                "exponent": round(statistics.median(powers), 2),
                "interval": interval(powers, 2),
                "exponent of memory": round(of_memory, 2),
            }
        rows[f"{size:,}"] = {unit: figure, "MB": round(peak), **grown}
        before = size
    return rows


def main() -> None:
    """Measure the axes one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "axes", nargs="*", choices=[[], *AXES], metavar="AXIS", help=", ".join(AXES)
    )
    parser.add_argument("--rounds", type=int, default=10, help="turns of each size (10)")
    parser.add_argument("--quick", action="store_true", help="a turn of two sizes, not written")
    parser.add_argument("--out", type=Path, default=RESULTS / "cost.json", help="record to add to")
    args = parser.parse_args()
    end_when_terminated()
    sizes, rounds = (QUICK, 1) if args.quick else (AXES, args.rounds)
    result: dict[str, Any] = {}
    if args.out.is_file() and not args.quick:
        result = json.loads(args.out.read_text(encoding="utf-8"))["result"]
    where = machine()
    for axis in args.axes or AXES:
        print(axis, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as name:
            if axis == "corpus":
                result.update(corpus(sizes[axis], Path(name), rounds))
            else:
                result[axis] = steps(axis, sizes[axis], Path(name), rounds)
        # axes are merged, and may be of several commits
        result.setdefault("commits", {})[axis] = (commit() or "")[:12]
    publish("cost", result, None if args.quick else args.out, where)


if __name__ == "__main__":
    main()

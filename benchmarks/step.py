"""`fairseq-train` end to end beside its peers and beside the products a step cannot do without.

Usage: python benchmarks/step.py [--only TEXT ...] [--rounds N] [--quick] [--peers PYTHON]
       [--original PYTHON] [--against NAME=CHECKOUT ...] [--out FILE]

Every contestant is a process of its own: the command `fairseq-train` as anybody would call it, or a
loop of `step_peers.py`. All are started and then stopped; in a round each is let go for a few steps
in turn, until it has printed a line. So they are interleaved, and nothing of the command is left
out: data, masking, schedule, figures. Peers get their batches ready-made, except for the original
fairseq, whose command does the same on the same files. Milliseconds of processor
time and of the clock are noted; ratios are of the same round, an interval excludes the two extremes
of ten rounds (97.9 %), and "ahead" or "behind" is said only where it excludes 1.

Cases are FAMILY/V8001|V50265/d0.1|d0/1t|2t; --only takes parts of these names, all of which, split
at commas, must match, as in --only masked,V8001 causal,d0,1t. Records are merged into --out: the
table can be measured in slices.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.record import RESULTS, commit, machine, peers  # noqa: E402
from benchmarks.rounds import interval, quartiles, ratios  # noqa: E402

OUT = RESULTS / "step.json"
ROWS, LENGTH, LAYERS, WIDTH, INNER, HEADS = 32, 128, 4, 256, 1024, 4
ENDLESS = 1_000_000
WARM = 4  # turns before the first that counts: starting, and until memory that is kept is enough
KEPT = "gathering + sdpa, freed memory kept"  # as `fairseq-train` keeps it
TRANSFORMERS = ("transformers", "gathering + sdpa", KEPT, "gathering + eager")
ORIGINAL = "the original fairseq"
FLOORS = ("floor", "faster floor")
HERE = (*FLOORS, "step alone")  # need no peers
FAMILIES: dict[str, tuple[str, ...]] = {
    "masked": (*TRANSFORMERS, "plain PyTorch"),
    "clap-alibi": (),
    "causal": ("transformers + sdpa", "transformers + eager", "plain PyTorch"),
    "headless": (),
}
ORIGINALS = ("masked", "causal")  # families that the original fairseq has


@dataclass(frozen=True)
class Case:
    """What is trained: a family of FAMILIES, V, the probability of dropout, threads."""

    family: str
    vocabulary: int
    dropout: float
    threads: int

    @property
    def name(self) -> str:
        """Its name in records."""
        return f"{self.family}/V{self.vocabulary}/d{self.dropout:g}/{self.threads}t"

    @property
    def steps(self) -> int:
        """How many a turn has: one is enough where each projects 4,096 tokens to 50,265 words."""
        return 1 if self.family == "causal" and self.vocabulary > 10_000 else 2


def cases() -> Iterator[Case]:
    """Yield all of the table."""
    for threads in (1, 2):
        for family in FAMILIES:
            for vocabulary in (8001, 50265):
                for dropout in (0.1, 0.0):
                    yield Case(family, vocabulary, dropout, threads)


def train_command(case: Case, data: Path) -> list[str]:
    """Return the arguments of `fairseq-train` for a case."""
    causal = case.family == "causal"
    side = "decoder" if causal else "encoder"
    words = [
        str(data), "--task", "language_modeling" if causal else "masked_lm",
        "--arch", "transformer_lm_gpt" if causal else "roberta",
        f"--{side}-layers", LAYERS, f"--{side}-embed-dim", WIDTH, f"--{side}-ffn-embed-dim", INNER,
        f"--{side}-attention-heads", HEADS, "--dropout", case.dropout,
        "--attention-dropout", case.dropout, "--tokens-per-sample", LENGTH, "--batch-size", ROWS,
        "--optimizer", "adam", "--lr", 1e-4, "--lr-scheduler", "fixed", "--max-update", ENDLESS,
        "--log-interval", case.steps, "--log-format", "json", "--no-save", "--disable-validation",
        "--num-workers", 0, "--device", "cpu", "--seed", 1, "--sample-break-mode", "none",
    ]  # fmt: skip
    if case.family == "causal":
        words += ["--criterion", "cross_entropy", "--share-decoder-input-output-embed"]
    elif case.family == "headless":
        words += ["--criterion", "contrastive_weight_tying", "--head", "none"]
    else:
        words += ["--criterion", "masked_lm"]
    if case.family == "clap-alibi":
        words += ["--head", "clap", "--position", "alibi", "--mask-embedding", "zero"]
    return [str(word) for word in words]


def original_command(case: Case, data: Path) -> list[str]:
    """Return the same arguments as the original spells them."""
    words = train_command(case, data)
    at = words.index("--device")
    return [*words[:at], "--cpu", *words[at + 2 :]]


def write_data(folder: Path, vocabulary: int) -> Path:
    """Binarize 1.2 million words by Zipf's law; the dictionary has ``vocabulary`` rows with <mask>.

    Returns:
        the folder of binary files.
    """
    words = vocabulary - 5
    drawn = np.random.default_rng(0).choice(words, size=(9600, 127), p=zipf(words))
    text, known, few = folder / "train.txt", folder / "known.txt", folder / "valid.txt"
    text.write_text("\n".join(" ".join(f"w{x}" for x in row) for row in drawn) + "\n")
    few.write_text("w0\n")  # the original wants to see it though it does not validate
    known.write_text("".join(f"w{x} 1\n" for x in range(words)))
    target = folder / f"bin{vocabulary}"
    command = [
        sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", "--trainpref", text,
        "--validpref", few, "--srcdict", known, "--destdir", target,
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, stdout=-3, stderr=-3, env=environment(1))
    return target


def environment(threads: int, checkout: Path = ROOT) -> dict[str, str]:
    """Return the environment of a contestant, which may keep its byte code as an installed one."""
    kept = {name: value for name, value in os.environ.items() if "BYTECODE" not in name}
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(checkout),
        "PYTHONSAFEPATH": "1",  # or -m would look into the folder one is in before that checkout
        "PYTHONUNBUFFERED": "1",
    }


class Contestant:
    """A process that prints a line every few steps and is stopped between its turns.

    Args:
        name: in records.
        command: of the process.
        env: its environment.
        steps: from one line to the next.
    """

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str], steps: int) -> None:
        self.name, self.said, self.steps = name, [""], steps
        self.turns: queue.Queue[tuple[float, float] | None] = queue.Queue()
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=tempfile.gettempdir(),  # no place of a fairseq that -m would find first
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what it starts belongs to its group, and stops with it
        )
        self.clock = (~self.process.pid << 3) | 2  # of a process's time, see clock_getcpuclockid(3)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if '"train_inner"' in line or '"ups"' in line or line.startswith("turn"):
                with contextlib.suppress(OSError):
                    self.turns.put((time.perf_counter(), time.clock_gettime(self.clock)))
            else:
                self.said = [*self.said[-20:], line]
        self.turns.put(None)

    def turn(self) -> tuple[float, float]:
        """Let the process go until its next line; return ms a step, processor's and clock's."""
        cpu, wall = time.clock_gettime(self.clock), time.perf_counter()
        os.killpg(self.process.pid, signal.SIGCONT)
        line = self.turns.get(timeout=300)
        if line is None:
            raise RuntimeError(f"{self.name} has ended:\n{''.join(self.said)}")
        os.killpg(self.process.pid, signal.SIGSTOP)
        while not self.turns.empty():  # a line that was under way; its step is not counted
            self.turns.get()
        return 1000 * (line[1] - cpu) / self.steps, 1000 * (line[0] - wall) / self.steps

    def end(self) -> None:
        """Kill the process, and those it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def end_when_terminated() -> None:
    """Let SIGTERM end this process as Ctrl-C does: contestants that are stopped would stay."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def contestants(case: Case, data: Path, args: argparse.Namespace) -> Iterator[Contestant]:
    """Start everything that a case compares, each when the next is asked for: ours first."""
    ours = [sys.executable, "-m", "fairseq_cli.train", *train_command(case, data)]
    yield Contestant("fairseq-train", ours, environment(case.threads), case.steps)
    described = json.dumps({**vars(case), "data": str(data), "train": train_command(case, data)})
    peers = str(ROOT / "benchmarks" / "step_peers.py")
    for name in (*HERE, *FAMILIES[case.family]):
        here = name in HERE or args.peers is None
        python = sys.executable if here else args.peers
        command = [python, peers, name, described]
        yield Contestant(name, command, environment(case.threads), case.steps)
    if args.original and case.family in ORIGINALS:
        command = [args.original, "-m", "fairseq_cli.train", *original_command(case, data)]
        alone = environment(case.threads)
        del alone["PYTHONPATH"]  # where this code is found
        yield Contestant(ORIGINAL, command, alone, case.steps)
    for other in args.against:
        name, _, checkout = other.partition("=")
        away = environment(case.threads, Path(checkout).resolve())
        yield Contestant(name, ours, away, case.steps)


def measure(case: Case, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds of a case and sum them up."""
    running: list[Contestant] = []
    load = os.getloadavg()[0]
    try:
        for each in contestants(case, data, args):  # one starts when those before it stand still
            running.append(each)
            for _ in range(WARM):
                each.turn()
        times: dict[str, list[tuple[float, float]]] = {each.name: [] for each in running}
        for number in range(args.rounds):
            order = running[number % len(running) :] + running[: number % len(running)]
            for each in order:
                times[each.name].append(each.turn())
    finally:
        for each in running:
            each.end()
    return {"load": round(load, 2), "rounds": args.rounds, **summary(case, times)}


def summary(case: Case, times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Return medians and quartiles, the share of the floor, and ratios to the others."""
    which = 0 if case.threads == 1 else 1  # several threads: only the clock tells
    chosen = {name: [turn[which] for turn in turns] for name, turns in times.items()}
    ours = chosen["fairseq-train"]
    result: dict[str, Any] = {
        "ms": {name: quartiles(values, 1) for name, values in chosen.items()},
        "ms_clock": {name: quartiles([t[1] for t in turns], 1) for name, turns in times.items()},
        "share_of_gemm_floor": quartiles(ratios(chosen["floor"], ours), 3)[1],
        "quartiles_of_share": quartiles(ratios(chosen["floor"], ours), 3)[::2],
        "share_of_faster_floor": quartiles(ratios(chosen["faster floor"], ours), 3),
        "floor_GFLOP_s": round(gemm_flops(case) / statistics.median(chosen["floor"]) / 1e6, 1),
        "beside": {},
    }
    for name, values in chosen.items():
        if name not in ("fairseq-train", *FLOORS):
            result["beside"][name] = verdict(ratios(values, ours))
    return result


def verdict(values: Sequence[float]) -> dict[str, Any]:
    """Return the median ratio, an interval for it, and who is ahead: nobody of a few rounds."""
    around, said = interval(values), "cannot be told"
    if around is not None and around[0] > 1:
        said = "fairseq-train is ahead"
    elif around is not None and around[1] < 1:
        said = "fairseq-train is behind"
    return {"ratio": round(statistics.median(values), 3), "interval": around, "so": said}


def zipf(words: int) -> np.ndarray:
    """Return the probability of each word of the text that is trained on."""
    weights = 1 / (np.arange(words) + 2.7)
    return weights / weights.sum()


def products(case: Case) -> list[tuple[int, int, int, int]]:
    """Return (batch, m, k, n) of all products of a forward pass; training has three for each.

    Causal attention is counted as half of the heads; a contrastive head has a column for each
    different word that is predicted: sum of 1 - (1 - p)^N over the words, on average.
    """
    tokens = ROWS * LENGTH
    predicted = tokens if case.family == "causal" else round(0.15 * tokens)
    maps, size = ROWS * HEADS, WIDTH // HEADS
    maps //= 2 if case.family == "causal" else 1
    layer = [
        (1, tokens, WIDTH, 3 * WIDTH), (maps, LENGTH, size, LENGTH), (maps, LENGTH, LENGTH, size),
        (1, tokens, WIDTH, WIDTH), (1, tokens, WIDTH, INNER), (1, tokens, INNER, WIDTH),
    ]  # fmt: skip
    columns = case.vocabulary
    if case.family == "headless":
        columns = round(float((1 - (1 - zipf(case.vocabulary - 5)) ** predicted).sum()))
    head = [(1, predicted, WIDTH, columns)]
    if case.family == "masked":
        head.append((1, predicted, WIDTH, WIDTH))
    return LAYERS * layer + head


def gemm_flops(case: Case) -> float:
    """Return the operations of all products of a step."""
    return float(sum(6 * b * m * k * n for b, m, k, n in products(case)))


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    """Return the cases that ``--only`` names, all of them without."""
    chosen = [
        case
        for case in cases()
        if not args.only
        or any(all(p in case.name.split("/") for p in one.split(",")) for one in args.only)
    ]
    return chosen[:1] if args.quick and not args.only else chosen


def interpreter(text: str) -> str:
    """Return the path of an interpreter, which is started in other folders, too."""
    found = shutil.which(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no program {text}")
    return os.path.abspath(found)  # links stay: a virtual environment is one


def main() -> None:
    """Measure the chosen cases one after the other; each is written when it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="cases to measure")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contestant")
    parser.add_argument("--quick", action="store_true", help="two rounds of one case, unwritten")
    path = {"type": interpreter, "metavar": "PYTHON"}
    parser.add_argument("--peers", **path, help="interpreter that has transformers")
    parser.add_argument("--original", **path, help="one that has the original fairseq")
    parser.add_argument("--against", nargs="*", default=[], metavar="NAME=CHECKOUT")
    parser.add_argument("--out", type=Path, default=OUT, help="record to add to")
    args = parser.parse_args()
    if not (chosen := chosen_cases(args)):
        parser.error(f"no case is named {' or '.join(args.only)}; the first is {cases()[0].name}")
    if args.quick:
        args.rounds = 2
    end_when_terminated()
    record: dict[str, Any] = {"benchmark": "step", "command": "python benchmarks/step.py"}
    if args.out.exists() and not args.quick:
        record = json.loads(args.out.read_text(encoding="utf-8"))
    record["machine"], record["peers"] = machine(), peers(args.peers or sys.executable)
    if args.original:
        its = peers(args.original, ("fairseq",))
        if not its:
            parser.error(f"--original {args.original}: no fairseq is installed there")
        record["peers"][ORIGINAL] = its["fairseq"]
    record["commit"] = (commit() or "")[:7]
    results = record.setdefault("result", {})
    with tempfile.TemporaryDirectory() as folder:
        data: dict[int, Path] = {}
        for case in chosen:
            if case.vocabulary not in data:
                data[case.vocabulary] = write_data(Path(folder), case.vocabulary)
            # slices may be of several commits
            figures = measure(case, data[case.vocabulary], args)
            results[case.name] = {"commit": record["commit"], **figures}
            print(case.name, json.dumps(results[case.name], indent=1), flush=True)
            if not args.quick:
                args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

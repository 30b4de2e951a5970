"""What every study needs: runs that are cached, resumed and shared out, tables and figures.

A run is a command line of ``fairseq-train``. Its folder is named after the digest of that line, so
that a study which is stopped goes on where it was, and a changed setting trains anew. Runs use one
thread each and go on side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fairseq.files.io import sha256_of
from fairseq.report.runs import load_runs, summarize, trained_seconds, trained_tokens

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.record import command, commit, machine

BIN = Path(sys.executable).parent
SEEDS = (1, 2, 3)
Choice = TypeVar("Choice", bound=Hashable)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: the variant.
        seed: of the run.
        words: what follows ``fairseq-train``, without seed and folders.
        files: flags among the words whose files count by what they hold, wherever they lie.
    """

    name: str
    seed: int
    words: tuple[str, ...]
    files: tuple[str, ...] = ()

    def folder(self, out: Path) -> Path:
        """Return its folder: the name, and the digest of everything that matters.

        A folder that is named after the paths of ``files``, as all were once, is that run, too:
        neither the path nor the file in it has changed since it was made.
        """
        older = self._named(out, self.words)
        if not self.files or older.is_dir():
            return older
        words = [
            sha256_of(word) if flag in self.files else word
            for flag, word in zip(("", *self.words), self.words, strict=False)
        ]
        return self._named(out, words)

    def _named(self, out: Path, words: Sequence[str]) -> Path:
        digest = hashlib.sha256(json.dumps([words, self.seed]).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.-]+", "-", self.name)
        return out / f"{name}-{self.seed}-{digest}"


def call(words: Sequence[object], log: Path) -> str:
    """Run a command of the project with one thread; return its standard output.

    Raises:
        RuntimeError: if it fails, with the end of its log.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    program, *rest = map(str, words)
    with open(log, "a", encoding="utf-8") as errors:
        done = subprocess.run(
            [str(BIN / program), *rest], env=environment, stdout=subprocess.PIPE, stderr=errors,
            text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        end = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        raise RuntimeError(f"{shlex.join([program, *rest])} failed:\n{end}")
    return done.stdout


def curve(folder: Path, tag: str = "valid") -> list[dict[str, float]]:
    """Return what a run logged under ``tag``, in the order of its updates."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["update"]: row for row in map(json.loads, lines) if row["tag"] == tag}
    return [rows[update] for update in sorted(rows)]


def train(run: Run, data: Path | None, out: Path, measure: Callable[[Path], dict[str, Any]]) -> Any:
    """Train (or go on) and measure; what is done already is read back. Return the result."""
    folder = run.folder(out)
    return {**once(folder / "result.json", lambda: _train(run, data, folder)),
            **once(folder / "measured.json", lambda: measure(folder))}  # fmt: skip


def once(kept: Path, make: Callable[[], dict[str, Any]]) -> Any:
    """Return what the file holds; make it if it is not there."""
    if not kept.is_file():
        made = json.dumps(make())
        unfinished = kept.with_suffix(".tmp")
        unfinished.write_text(made, encoding="utf-8")
        unfinished.replace(kept)
    return json.loads(kept.read_text(encoding="utf-8"))


def _train(run: Run, data: Path | None, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    words = [*([data] if data else []), *run.words, "--seed", run.seed, "--save-dir", folder]
    call(["fairseq-train", *words], folder / "train.log")
    keys = ("update", "loss", "accuracy")
    (logged,) = load_runs([folder])
    return {
        "name": run.name,
        "seed": run.seed,
        "words": list(run.words),
        "seconds": round(trained_seconds(logged) or 0.0, 1),
        "tokens": trained_tokens(logged),
        "flops": summarize(logged)["flops"],
        "curve": [{key: row[key] for key in keys if key in row} for row in curve(folder)],
    }


def run_all(
    runs: Sequence[Run],
    data: Path | None,
    out: Path,
    measure: Callable[[Path], dict[str, Any]] = lambda folder: {},
    jobs: int = 2,
) -> list[Any]:
    """Do all runs, ``jobs`` at a time, and return their results in the given order.

    ``data`` is None for tasks that need no folder.
    """
    began = time.monotonic()
    results: dict[Run, Any] = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(train, run, data, out, measure): run for run in runs}
        for done in as_completed(futures):
            run = futures[done]
            results[run] = done.result()
            left = (time.monotonic() - began) / len(results) * (len(runs) - len(results))
            print(
                f"{len(results)}/{len(runs)} {run.name} seed {run.seed}: "
                f"{results[run]['curve'][-1]['loss']:.3f} bits, {left / 60:.0f} min to go",
                file=sys.stderr,
                flush=True,
            )
    return [results[run] for run in runs]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return ``mean ± standard deviation`` of the seeds."""
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def by_name(results: Sequence[Any]) -> dict[str, list[Any]]:
    """Group results by variant, in the order of their first appearance."""
    groups: dict[str, list[Any]] = {}
    for result in results:
        groups.setdefault(result["name"], []).append(result)
    return groups


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def tables(
    results: Path,
    makers: Mapping[str, Callable[[dict[str, Any]], str]],
    facts: Callable[[dict[str, Any]], str],
) -> str:
    """Return the tables of all parts whose results are there, each with its line of facts."""
    parts = []
    for name, make in makers.items():
        path = results / f"{name}.json"
        if path.is_file():
            parts += [make(read(path)), facts(read(path))]
    return "\n".join(parts)


def read(path: Path) -> Any:
    """Return a record of results."""
    return json.loads(path.read_text(encoding="utf-8"))


def spent(record: dict[str, Any]) -> str:
    """Return how long the runs of a record took, and where."""
    seconds, where = sorted(result["seconds"] for result in record["results"]), record["machine"]
    return (
        f"{seconds[0]:.0f} to {seconds[-1]:.0f} s a run (median {statistics.median(seconds):.0f}), "
        f"torch {where['torch']}, {where['cpu']}"
    )


def seeds_of_all() -> str:
    """Return the seeds as text."""
    return ", ".join(map(str, SEEDS))


def arguments(
    parser: argparse.ArgumentParser, show: Callable[[], str], needed: Sequence[str] = ("text",)
) -> argparse.Namespace:
    """Parse the command line of a study; print its tables and stop if that is asked for.

    Args:
        parser: with the flags that are its own.
        show: makes the tables from the results.
        needed: flags without which, and without ``--out``, nothing can be run.
    """
    parser.add_argument("--out", type=Path, help="folder for the runs")
    parser.add_argument("--tables", "--table", action="store_true", help="print the tables alone")
    args = parser.parse_args()
    if args.tables:
        print(show(), end="")
        raise SystemExit
    if not all(getattr(args, name.replace("-", "_")) for name in (*needed, "out")):
        parser.error(f"give {', '.join(f'--{name}' for name in (*needed, 'out'))}, or --tables")
    return args


def draw(results: Sequence[Any], path: Path, title: str, skip: int = 0) -> None:
    """Draw validation perplexity against updates: mean of the seeds, and their range as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = by_name(results)
    many = len(groups) > 10  # more than the usual colours: others, and the legend beside the curves
    figure, axes = pyplot.subplots(figsize=(9 if many else 7, 4.5), constrained_layout=True)
    axes.set_prop_cycle(color=pyplot.colormaps["tab20" if many else "tab10"].colors)
    for name, group in groups.items():
        first = min(skip, len(group[0]["curve"]) - 1)  # of a short try something is shown, too
        updates = [point["update"] for point in group[0]["curve"]][first:]
        rows = [[2 ** point["loss"] for point in result["curve"]][first:] for result in group]
        columns = list(zip(*rows, strict=True))
        (line,) = axes.plot(updates, [statistics.mean(c) for c in columns], label=name)
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axes.fill_between(updates, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="updates", ylabel="validation perplexity", yscale="log", title=title)
    axes.legend(**({"loc": "center left", "bbox_to_anchor": (1, 0.5)} if many else {}))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def record(results: Sequence[Any], path: Path, out: Path, **more: Any) -> None:
    """Write the results (and ``more``) with the machine, the versions, the commit and the command.

    The folder of the runs, ``out``, is called ``runs`` in the record, wherever it was.
    """
    content = {"command": command(), "commit": commit(), "machine": machine(), **more,
               "results": list(results)}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1).replace(json.dumps(str(out))[1:-1], "runs")
    path.write_text(text + "\n", encoding="utf-8")


def unigram_bits(out: Path, subset: str, ends: bool) -> float:
    """Return the bits a token of a subset that word frequencies alone need, one added to each.

    Args:
        out: what :func:`prepare` wrote.
        subset: its name.
        ends: ends of lines are tokens, too.
    """

    def tokens(split: str) -> Iterator[str]:
        for line in (out / f"{split}.bpe").read_text(encoding="utf-8").splitlines():
            yield from [*line.split(), "\n"] if ends else line.split()

    counts = Counter(tokens("train"))
    total = sum(counts.values()) + len(counts)
    return -statistics.mean(math.log2((counts[token] + 1) / total) for token in tokens(subset))


def prepare(sources: Sequence[Path], out: Path, vocabulary: int) -> Path:
    """Train a byte-level BPE on the training texts of all folders, and binarize, once.

    Training texts become one split; valid, valid1, ... and test, test1, ... are those of the
    folders in their order, so that every source has its own figure.

    Returns:
        the data folder; ``sources.json`` beside it holds the SHA-256 of every text.
    """
    data, tokenizer = out / "data-bin", out / "tokenizer.json"
    if (data / "manifest.json").is_file():
        return data
    out.mkdir(parents=True, exist_ok=True)
    log = out / "prepare.log"
    texts = {"train": [out / "train.txt"]}
    texts["train"][0].write_bytes(b"".join((one / "train.txt").read_bytes() for one in sources))
    for split in ("valid", "test"):
        texts[split] = [one / f"{split}.txt" for one in sources]
    digests = {
        f"{one.name}/{split}.txt": sha256_of(one / f"{split}.txt")
        for one in sources
        for split in ("train", "valid", "test")
    }
    (out / "sources.json").write_text(json.dumps(digests, indent=1), encoding="utf-8")
    encoded = {
        split: [out / f"{split}{number or ''}.bpe" for number in range(len(paths))]
        for split, paths in texts.items()
    }
    call(
        ["fairseq-bpe", "train", "--inputs", *texts["train"], "--vocab-size", vocabulary,
         "--output", tokenizer], log,
    )  # fmt: skip
    call(
        ["fairseq-bpe", "encode", "--bpe", "byte_level", "--tokenizer-file", tokenizer,
         "--inputs", *sum(texts.values(), []), "--outputs", *sum(encoded.values(), []),
         "--keep-empty"], log,
    )  # fmt: skip
    prefixes = [(f"--{split}pref", ",".join(map(str, paths))) for split, paths in encoded.items()]
    call(
        ["fairseq-preprocess", "--only-source", *sum(prefixes, ()), "--destdir", data,
         "--workers", 2], log,
    )  # fmt: skip
    return data


def tune(
    run_at: Callable[[Choice], Run],
    choices: Sequence[Choice],
    train_all: Callable[[Sequence[Run]], Sequence[Any]],
    widest: int = 3,
) -> tuple[Choice, dict[Choice, float]]:
    """Find the choice, such as a learning rate, with the lowest final validation loss.

    Args:
        run_at: the (short) run of a choice.
        choices: those to begin with.
        train_all: trains runs and returns their results.
        widest: how often the best at an edge is followed by twice or half of it; 0 for choices
            that are no numbers.

    Returns:
        the best, and the loss of all that were tried; infinite for a run that came to no number.
    """
    losses: dict[Any, float] = {}

    def attempt(new: Sequence[Any]) -> None:
        for choice, result in zip(new, train_all([run_at(one) for one in new]), strict=True):
            loss = float(result["curve"][-1]["loss"])
            losses[choice] = loss if math.isfinite(loss) else math.inf

    attempt(choices)
    for _ in range(widest):
        best = min(losses, key=losses.__getitem__)
        if best not in (min(losses), max(losses)):
            break
        attempt([best / 2 if best == min(losses) else best * 2])
    return min(losses, key=losses.__getitem__), losses

"""Equal loss, other minima: steps, size and algorithm on a language whose truth is known.

Usage: python examples/implicit_bias/study.py --out RUNS
       python examples/implicit_bias/study.py --tables

Finished runs are kept in RUNS: the same command goes on where it was stopped. ``--tables`` prints
the tables of the README from the results.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import studies
import verdicts

from fairseq.files.io import sha256_of

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
GRAMMAR = "--seed 1 --levels 2 --width 3 --roots 3 --binary 4 --vocab 9 --emit 6"
TASKS = ("A", "C")
SENTENCES = {"learn": 2000, "test": 4000}
COMMON = (
    "--task pcfg_masked_lm --criterion masked_lm_truth --arch roberta --encoder-layers 2 "
    "--encoder-normalize-before --dropout 0 --attention-dropout 0 --tokens-per-sample 10 "
    "--optimizer adam --adam-betas (0.9,0.98) --batch-size 64 --valid-sentences 4000 "
    "--batch-size-valid 500 --no-epoch-checkpoints --num-workers 0 --device cpu --log-format none "
    "--log-interval 500 --lr 0.004 --end-learning-rate 0.0005 --lr-scheduler polynomial_decay "
    "--warmup-updates 100"
)
# the rate falls until the first of these updates, and stays
STAGES = (3000, 5000, 7000)
# arm -> width, updates, seeds, flags
ARMS = {
    "base": (32, STAGES, (1, 2, 3, 4, 5), ""),
    "soft targets": (32, STAGES[:1], (1, 2, 3), "--soft-targets"),
    "small": (16, STAGES[1:2], (1, 2, 3), ""),
    "large": (48, STAGES[:1], (1, 2, 3), ""),
}
SATURATED = 0.01
BIN = SATURATED / 2
"""Nats of KL: models count up to the first, and are compared within bins of the second."""
CURVATURE = "--method hutchinson --residual --probes 100 --batch-size 64 --params all --seed 7"
BLOCKS = ("embedding", "attention", "ffn", "ln", "bias", "head")
Point = dict[str, Any]


# -- runs ------------------------------------------------------------------------------------------


def prepare(out: Path) -> Path:
    """Draw the grammar and the labelled sentences, once; return the folder."""
    data, log = out / "language", out / "language.log"
    if not (data / "done").is_file():
        data.mkdir(parents=True, exist_ok=True)
        rules = data / "g.rules"
        studies.call(["fairseq-pcfg", "grammar", *GRAMMAR.split(), "--out", rules], log)
        studies.call(["fairseq-pcfg", "sample", rules, data, "--num", 1000, "--valid", 0,
                      "--test", 0], log)  # fmt: skip
        for task in TASKS:
            for seed, name in ((1, "learn"), (2, "test")):
                folder = data / f"{task}-{name}"
                studies.call(
                    ["fairseq-pcfg", "downstream", rules, folder, "--task", task, "--seed", seed,
                     "--num", SENTENCES[name], "--valid", 1000, "--min-len", 2,
                     "--drop-unparsable"], log,
                )  # fmt: skip
        for name in ("learn", "test"):
            for split in ("train", "valid"):
                text = data / f"A-{name}" / f"{split}.input0"
                studies.call(["fairseq-pcfg", "score", rules, text, "--out",
                              data / f"{name}-{split}.npz"], log)  # fmt: skip
        (data / "done").touch()
    return data


def runs(data: Path) -> list[studies.Run]:
    """Return all runs, first seeds first."""
    chosen = []
    for arm, (width, stages, seeds, flags) in ARMS.items():
        for seed in seeds:
            words = (
                f"{COMMON} --encoder-embed-dim {width} --encoder-ffn-embed-dim {4 * width} "
                f"--encoder-attention-heads {width // 16} --total-num-update {STAGES[0]} "
                f"--max-update {stages[-1]} --validate-interval-updates {STAGES[0]} "
                f"--save-at-updates {','.join(map(str, stages))} {flags}"
            ).split()
            words = ["--grammar", str(data / "g.rules"), *words]
            chosen.append(studies.Run(arm, seed, (*words,), files=("--grammar",)))
    return sorted(chosen, key=lambda run: run.seed)


def measure(data: Path, folder: Path) -> dict[str, Any]:
    """Return the points of a run: of each checkpoint its KL, traces and probes."""
    log = folder / "measure.log"
    paths = sorted(folder.glob("checkpoint_update*.pt"), key=_updates)
    at = {row["update"]: row for row in studies.curve(folder)}
    points = []
    for path in paths:
        row = at[_updates(path)]
        words = ["fairseq-hessian", path, data, *CURVATURE.split(), "--json", "--log-format",
                 "none", "--device", "cpu"]  # fmt: skip
        flat = json.loads(studies.call(words, log).splitlines()[-1])
        points.append({
            "updates": _updates(path),
            **{key: row[key] for key in ("kl_macro", "kl_macro_se", "ce_macro", "optimum_macro")},
            **{key: flat[key] for key in ("trace", "se", "trace_ggn", "residual", "residual_se")},
            "convention": flat["convention"],
            "blocks": {name: block["trace"] for name, block in flat["blocks"].items()},
        })  # fmt: skip
    baselines: dict[str, Any] = {}
    for task in TASKS:
        rows = _probe(data, task, paths, log)
        for point, path in zip(points, paths, strict=True):
            point[f"accuracy_{task}"] = 100 * rows.pop(str(path))
        baselines[task] = {name: 100 * share for name, share in rows.items()}
    return {"points": points, "baselines": baselines}


def _updates(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint_update"))


def _probe(data: Path, task: str, paths: Sequence[Path], log: Path) -> dict[str, float]:
    learn, test = data / f"{task}-learn", data / f"{task}-test"
    words: list[object] = ["fairseq-probe", *paths, "--train", learn / "train.csv", "--valid",
                           learn / "valid.csv", "--test", test / "train.csv", "--dict-dir", data,
                           "--device", "cpu", "--json"]  # fmt: skip
    if task == "A":  # no sentence is left out there, so the scores of the texts fit
        words += ["--lookup", *(data / f"{name}.npz" for name in
                                ("learn-train", "learn-valid", "test-train"))]  # fmt: skip
    rows = json.loads(studies.call(words, log).splitlines()[-1])
    return {row["features"]: row["accuracy"] for row in rows}


# -- what follows ----------------------------------------------------------------------------------


def ranks(values: Sequence[float]) -> np.ndarray:
    """Return ranks from 0; equal values share the mean of theirs."""
    array = np.asarray(values, dtype=float)
    below = (array[None] < array[:, None]).sum(axis=1)
    return below + ((array[None] == array[:, None]).sum(axis=1) - 1) / 2


def within_bins(points: Sequence[Point], x: str, y: str) -> float:
    """Return Spearman's correlation of x and y within bins of equal KL; NaN if none has three.

    Ranks are taken bin by bin, centred, and correlated over all of them.
    """
    bins: dict[int, list[Point]] = {}
    for point in points:
        if point["kl_macro"] < SATURATED:
            bins.setdefault(max(0, int(point["kl_macro"] / BIN)), []).append(point)
    pairs = []
    for members in bins.values():
        if len(members) > 2:
            sides = [ranks([point[name] for point in members]) / len(members) for name in (x, y)]
            pairs.append(np.stack([side - side.mean() for side in sides]))
    if not pairs:
        return float("nan")
    a, b = np.concatenate(pairs, axis=1)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def interval(
    results: Sequence[Any], x: str, y: str, draws: int = 2000
) -> tuple[float, float, float]:
    """Return the correlation within bins, and its 95 % interval by a bootstrap over runs.

    A run is drawn with all of its checkpoints, within its arm.
    """
    rng = np.random.default_rng(0)
    groups = list(studies.by_name(results).values())

    def points(chosen: Sequence[Any]) -> list[Point]:
        return [point for result in chosen for point in result["points"]]

    values = []
    for _ in range(draws):
        chosen = [group[i] for group in groups for i in rng.integers(len(group), size=len(group))]
        values.append(within_bins(points(chosen), x, y))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return within_bins(points(results), x, y), float(low), float(high)


def print_points(record: Any) -> str:
    """Return the table of arms and updates, mean and deviation of the seeds."""
    groups: dict[tuple[str, int], list[Point]] = {}
    for result in record["results"]:
        for point in result["points"]:
            groups.setdefault((result["name"], point["updates"]), []).append(point)
    rows = [
        [arm, updates, studies.spread([p["kl_macro"] for p in members], 4),
         sum(p["kl_macro"] < SATURATED for p in members),
         *(studies.spread([p[key] for p in members], 2) for key in ("trace", "residual")),
         *(studies.spread([p[f"accuracy_{task}"] for p in members], 1) for task in TASKS)]
        for (arm, updates), members in groups.items()
    ]  # fmt: skip
    header = ["arm", "updates", "KL (nats)", f"runs with KL < {SATURATED}", "Tr H", "Tr H - Tr G"]
    return studies.table([*header, *(f"probe {task}, %" for task in TASKS)], rows)


def print_blocks(record: Any) -> str:
    """Return the table of traces by block."""
    groups: dict[tuple[str, int], list[Point]] = {}
    for result in record["results"]:
        for point in result["points"]:
            groups.setdefault((result["name"], point["updates"]), []).append(point["blocks"])
    rows = [
        [
            arm,
            updates,
            *(studies.spread([traces[block] for traces in blocks], 2) for block in BLOCKS),
        ]
        for (arm, updates), blocks in groups.items()
    ]
    return studies.table(["arm", "updates", *BLOCKS], rows)


def print_baselines(record: Any) -> str:
    """Return the table of what probes have to be better than."""
    rows = []
    for task in TASKS:
        shares = [
            result["baselines"][task] for result in record["results"] if result["name"] == "base"
        ]
        for name in shares[0]:
            rows.append([task, name, studies.spread([part[name] for part in shares], 1)])
    return studies.table(["task", "features", "accuracy, %"], rows)


def print_correlations(record: Any) -> str:
    """Return the table of correlations within bins of equal KL."""
    rows = []
    for task in TASKS:
        for arms in (list(ARMS), ["base"]):
            chosen = [result for result in record["results"] if result["name"] in arms]
            points = [point for result in chosen for point in result["points"]]
            number = sum(point["kl_macro"] < SATURATED for point in points)
            for x in ("trace", "kl_macro", "updates"):
                value, low, high = interval(chosen, x, f"accuracy_{task}")
                name = "all" if len(arms) > 1 else arms[0]
                rows.append([task, name, x, number, f"{value:.2f} ({low:.2f} to {high:.2f})"])
    return studies.table(["task", "arms", "against", "points", "Spearman"], rows)


def by_seed(record: Any, arm: str, updates: int, key: str) -> dict[int, float]:
    """Return a figure of every seed of an arm."""
    return {
        result["seed"]: point[key]
        for result in record["results"]
        for point in result["points"]
        if (result["name"], point["updates"]) == (arm, updates)
    }


def print_claims(record: Any) -> str:
    """Return what the intervals say of each claim: differences are paired by seed."""
    steps, soft, large = ("base", 7000), ("soft targets", 3000), ("large", 3000)
    begun, small = ("base", 3000), ("small", 5000)
    comparisons = [
        *((f"probe {task} is better after {what}", worse, better, f"accuracy_{task}")
          for task in TASKS
          for what, worse, better in (
              ("7,000 updates than after 3,000", begun, steps),
              ("3,000 updates at width 48 than at 32", begun, large),
              ("5,000 updates at width 32 than at 16", small, ("base", 5000)),
              ("true distributions as labels than after words", begun, soft))),
        *((f"{name} is lower after 7,000 updates than after 3,000", steps, begun, key)
          for name, key in (("Tr H", "trace"), ("KL", "kl_macro"))),
        ("Tr H is lower after true distributions as labels than after words", soft, begun, "trace"),
    ]  # fmt: skip
    rows = []
    for claim, lower, higher, key in comparisons:
        first, second = by_seed(record, *lower, key), by_seed(record, *higher, key)
        seeds = sorted(set(first) & set(second))
        said = verdicts.paired([first[seed] for seed in seeds], [second[seed] for seed in seeds])
        rows.append([claim, len(seeds), said, verdicts.verdict(said)])
    for task in TASKS:
        whole = verdicts.Interval(*interval(record["results"], "trace", f"accuracy_{task}"))
        claim = f"at equal KL, the lower Tr H the better probe {task} (Spearman below 0)"
        rows.append([claim, "", whole, verdicts.verdict(whole)])
    return studies.table(["claim", "seeds", "difference, or correlation", "verdict"], rows)


def print_all(record: Any) -> str:
    """Return all tables."""
    conventions = {p["convention"] for result in record["results"] for p in result["points"]}
    parts = [print_points, print_blocks, print_baselines, print_correlations, print_claims]
    tables = "\n".join(make(record) for make in parts)
    facts = f"{len(record['results'])} runs, {studies.spent(record)}."
    return f"{tables}\n{facts}\n\nTraces: {'; '.join(sorted(conventions))}.\n"


def draw(results: Sequence[Any], path: Path) -> None:
    """Draw accuracy and trace against updates, against width, and against each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    task = TASKS[0]
    base = [point for r in results if r["name"] == "base" for point in r["points"]]
    _axis(panels[0], base, [point["updates"] for point in base], "updates", task)
    sizes = [(ARMS[r["name"]][0], r["points"][0]) for r in results if r["name"] != "soft targets"]
    _axis(panels[1], [p for _, p in sizes], [width for width, _ in sizes], "width", task)
    for name, group in studies.by_name(results).items():
        points = [p for result in group for p in result["points"] if p["kl_macro"] < SATURATED]
        panels[2].scatter(
            [p["trace"] for p in points], [p[f"accuracy_{task}"] for p in points], label=name
        )
    panels[2].set(xlabel=f"Tr H, KL < {SATURATED}", ylabel=f"probe {task}, %", xscale="log")
    panels[2].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _axis(axes: Any, points: Sequence[Point], at: Sequence[float], label: str, task: str) -> None:
    axes.scatter(at, [p[f"accuracy_{task}"] for p in points], color="C0")
    axes.set(xlabel=label)
    axes.set_ylabel(f"probe {task}, %", color="C0")
    other = axes.twinx()
    other.scatter(at, [p["trace"] for p in points], color="C1", marker="x")
    other.set_ylabel("Tr H", color="C1")


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each (1)")
    kept = RESULTS / "study.json"
    args = studies.arguments(parser, lambda: print_all(studies.read(kept)) + "\n", ())
    data = prepare(args.out.resolve())
    results: list[Any] = []
    every = runs(data)
    for first in range(0, len(every), args.jobs):
        some = every[first : first + args.jobs]
        results += studies.run_all(
            some, None, args.out, functools.partial(measure, data), args.jobs
        )
        digest = sha256_of(data / "g.rules")
        out = args.out.resolve()
        studies.record(results, kept, out, grammar=GRAMMAR, grammar_sha256=digest)
        draw(results, RESULTS / "implicit_bias.png")


if __name__ == "__main__":
    main()

"""The growth study: a small model becomes a larger one, in every way that there is.

Usage: python examples/growth/study.py --text FOLDER ... --out RUNS [--arms scratch,stack,...|all]
       python examples/growth/study.py --tables

A FOLDER holds train.txt, valid.txt and test.txt; losses are those of the first folder's valid.txt.
Finished runs are kept in RUNS: the same command goes on where it was stopped, and one with further
arms runs those alone. ``--decoder`` grows causal models, ``--larger`` takes the larger pair of
sizes. ``--tables`` prints the tables of the README from the results.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import comparison
import floors
import studies
import verdicts

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
UPDATES, DONOR_UPDATES, LEARNING_UPDATES = 600, 1000, 100
SIZES = {"small": (2, 64), "large": (4, 128)}
LARGER_SIZES = {"small": (4, 128), "large": (8, 256)}
VOCABULARY = 512
COMMON = (
    "--dropout 0 --attention-dropout 0 --position alibi --tokens-per-sample 64 "
    "--sample-break-mode none --batch-size 16 --optimizer adam --adam-betas (0.9,0.98) "
    "--adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0 --lr-scheduler polynomial_decay "
    "--no-epoch-checkpoints --num-workers 0 --device cpu --max-valid-steps 16 --log-interval 10 "
    "--log-format none --ignore-unused-valid-subsets"
)
# kind -> the architecture, its task, and how its flags begin
ENCODER = ("roberta", "--task masked_lm --criterion masked_lm", "--encoder")
DECODER = ("transformer_lm", "--task language_modeling --criterion cross_entropy", "--decoder")
KINDS = {"encoder": ENCODER, "decoder": DECODER}
TIED = "--share-decoder-input-output-embed"
# name of a record -> what was grown
NAMES = {
    f"{kind}{suffix}": f"{kind}, " + " to ".join(f"{layers}L/{d}" for layers, d in pair.values())
    for kind in KINDS
    for suffix, pair in (("", SIZES), ("_larger", LARGER_SIZES))
}
GRID = {"--lr": ("0.001", "0.003")}
# a best rate at the edge is followed by twice or half of it; between encoders' two little moves
WIDEST = {"encoder": 0, "decoder": 2}
LEARNING = "--lr 0.002 --warmup-updates 0"
# name -> flags; DONOR is the small model, OPERATOR what LIGO learned
METHODS = ("copy", "stack", "gstack", "interpolate", "net2net", "fpi", "aki")
ARMS = {
    "scratch": "",
    **{name: f"--grow-from DONOR --grow-method {name}" for name in METHODS},
    # heads keep their distances, which makes it exact
    "hyperclone": "--grow-from DONOR --grow-method hyperclone --alibi-slopes SLOPES",
    "random": "--grow-from DONOR --grow-method random",
    "ligo-0": "--grow-from OPERATOR",
    "ligo-100": "--grow-from OPERATOR",
    "ligo-100, width fixed": "--grow-from OPERATOR",
    "ligo-100, depth fixed": "--grow-from OPERATOR",
}
# what learning an operator changes
OPERATORS = {
    "ligo-0": "--lr 0 --max-update 1",
    "ligo-100": "",
    "ligo-100, width fixed": "--ligo-tune depth",
    "ligo-100, depth fixed": "--ligo-tune width",
}
# at twice the depth gstack and fpi make what stack does: one of them stands for all
DEFAULT = ";".join(arm for arm in ARMS if arm not in ("gstack", "fpi"))


RIVALS = ("ligo-0", "stack", "fpi", "aki", "hyperclone", "random")


@dataclass(frozen=True)
class Study:
    """The runs of a pair of models.

    Attributes:
        kind: ``encoder`` or ``decoder``.
        sizes: layers and width of the small and the large model.
        data: the binarized texts.
        out: folder of the runs.
        scale: all lengths are divided by it.
    """

    kind: str
    sizes: dict[str, tuple[int, int]]
    data: Path
    out: Path
    scale: int

    def model(self, which: str, prefix: str = "") -> str:
        """Return the flags of a model, its task and what all runs share."""
        (arch, task, side), (layers, width) = KINDS[self.kind], self.sizes[which]
        flags = (
            f"--arch {prefix}{arch} {task} {side}-layers {layers} {side}-embed-dim {width} "
            f"{side}-ffn-embed-dim {4 * width} {side}-attention-heads {width // 32} "
            f"{side}-normalize-before {COMMON}"
        )
        if self.kind == "decoder":
            flags += f" {side}-input-dim {width} {side}-output-dim {width} {TIED}"
        return flags

    def slopes(self) -> str:
        """Return ALiBi's slopes of the small model's heads, once for each of their copies."""
        small, large = (self.sizes[which][1] // 32 for which in ("small", "large"))
        once = [str(2.0 ** (-8 * (head + 1) / small)) for head in range(small)]
        return ",".join(once * (large // small))

    def schedule(self, flags: Any, updates: int, choice: dict[str, str]) -> tuple[str, ...]:
        """Return the words of a run of the large model."""
        updates //= self.scale
        timing = f"--max-update {updates} --validate-interval-updates {max(10, updates // 20)}"
        rate = f"--lr {choice['--lr']} --warmup-updates {updates // 10}"
        slopes = (self.slopes() if word == "SLOPES" else word for word in flags)
        return (*f"{self.model('large')} {timing} {rate}".split(), *slopes)

    def donor(self, seed: int) -> studies.Run:
        """Return the run of the small model."""
        updates = DONOR_UPDATES // self.scale
        words = (
            f"{self.model('small')} --max-update {updates} --lr 0.003 "
            f"--warmup-updates {updates // 10} --validate-interval-updates {updates}"
        )
        return studies.Run("donor", seed, tuple(words.split()))

    def operator(self, arm: str, source: Path, seed: int) -> studies.Run:
        """Return the run that learns an operator from a small model."""
        updates = LEARNING_UPDATES // self.scale
        words = (
            f"{self.model('large', 'ligo_')} --max-update {updates} {LEARNING} "
            f"--validate-interval-updates {updates} --ligo-source {source} {OPERATORS[arm]}"
        )
        return studies.Run(f"operator-{arm}", seed, tuple(words.split()))

    def forming(self) -> float:
        """Return the operations of forming all weights once, forward: products of matrices."""
        (l1, d1), (l2, d2) = self.sizes["small"], self.sizes["large"]
        shapes = [((d1, d1), (d2, d2))] * 4
        shapes += [((4 * d1, d1), (4 * d2, d2)), ((d1, 4 * d1), (d2, 4 * d2))]
        depth = sum(2 * l1 * l2 * out * into for (out, into), _ in shapes)
        width = sum(
            l2 * (2 * o1 * i1 * (i2 - i1) + 2 * (o2 - o1) * o1 * i2)
            for (o1, i1), (o2, i2) in shapes
        )
        return depth + width + 2 * VOCABULARY * d1 * (d2 - d1)

    def trained(self, run: studies.Run) -> Any:
        """Train (or read back) a run; its FLOPs are its own."""
        return studies.train(
            run, self.data, self.out, lambda folder: {"flops": comparison.flops_of(folder)}
        )

    def begun(self, arm: str, seed: int) -> tuple[list[str], dict[str, tuple[float, float]]]:
        """Train what an arm begins with; return its flags, and FLOPs and seconds of that."""
        flags, before = ARMS[arm], {"donor": (0.0, 0.0), "operator": (0.0, 0.0)}
        if flags:
            run = self.donor(seed)
            flags, before["donor"] = self._first(run, "DONOR", flags)
            if "OPERATOR" in flags:
                run = self.operator(arm, run.folder(self.out) / "checkpoint_last.pt", seed)
                flags, cost = self._first(run, "OPERATOR", flags)
                # forward, and twice as much backward, in every update
                cost = cost[0] + LEARNING_UPDATES // self.scale * 3 * self.forming(), cost[1]
                before["operator"] = (0.0, 0.0) if arm == "ligo-0" else cost
        return flags.split(), before

    def _first(self, run: studies.Run, word: str, flags: str) -> tuple[str, tuple[float, float]]:
        """Train one of these; return the flags with its file's name, and its FLOPs and seconds."""
        done = self.trained(run)
        named = flags.replace(word, str(run.folder(self.out) / "checkpoint_last.pt"))
        return named, (done["flops"], done["seconds"])

    def one(self, arm: str, seed: int, choice: dict[str, str]) -> dict[str, Any]:
        """Train an arm with what it needs before; return its curve and all costs."""
        flags, before = self.begun(arm, seed)
        run = studies.Run(arm, seed, self.schedule(flags, UPDATES, choice))
        return {**self.trained(run), "before": before}

    def floors(self) -> dict[str, float]:
        """Return the bits a token that counts of words need, on the validations of the runs."""
        if self.kind == "decoder":
            return floors.text_bits(self.out / "train.bpe", self.out / "valid.bpe")
        checkpoint = self.donor(studies.SEEDS[0]).folder(self.out) / "checkpoint_last.pt"
        (bits,) = floors.masked_bits(checkpoint, self.data, ["valid"], studies.SEEDS[0]).values()
        return {name: bits[name] for name in ("unigram", "bidirectional bigram")}

    def tune(self, arm: str) -> tuple[dict[str, str], list[Any]]:
        """Choose the rate of an arm."""
        flags, _ = self.begun(arm, studies.SEEDS[0])
        return comparison.tuned(
            arm, GRID, lambda choice: self.schedule(flags, UPDATES, choice),
            lambda runs: [self.trained(run) for run in runs], WIDEST[self.kind],
        )  # fmt: skip


def chosen(text: str) -> list[str]:
    """Return scratch and the arms that a list names, separated by semicolons if one has a comma.

    Raises:
        SystemExit: for an arm that does not exist.
    """
    if text == "all":
        return list(ARMS)
    names = [text] if text in ARMS else text.split(";" if ";" in text else ",")
    arms = list(dict.fromkeys(["scratch", *(name.strip() for name in names)]))
    for arm in arms:
        if arm not in ARMS:
            raise SystemExit(f"there is no arm '{arm}': choose of {'; '.join(ARMS)}; or all")
    return arms


# -- what came out ---------------------------------------------------------------------------------


def saved(result: dict[str, Any], base: dict[str, Any], charge: tuple[str, ...], what: int) -> Any:
    """Return the share of scratch's cost that an arm saved on the way to scratch's final loss.

    Args:
        result: of the arm.
        base: of scratch, of the same seed.
        charge: which earlier runs count: ``donor``, ``operator``.
        what: 0 for FLOPs, 1 for seconds.

    Returns:
        a share, negative where the arm cost more; None where the loss was not reached.
    """
    update = comparison.reached(result["curve"], base["curve"][-1]["loss"])
    if update is None:
        return None
    key = ("flops", "seconds")[what]
    cost = result[key] * update / result["curve"][-1]["update"]
    cost += sum(result["before"][name][what] for name in charge)
    return 1 - cost / base[key]


def cell(group: list[Any], base: list[Any], charge: tuple[str, ...], what: int) -> str:
    """Return mean and interval of what was saved, in per cent; say who did not get there."""
    shares = [saved(one, other, charge, what) for one, other in zip(group, base, strict=True)]
    there = [100 * share for share in shares if share is not None]
    if len(there) < len(shares):
        return f"reached by {len(there)} of {len(shares)}"
    return verdicts.interval(there).shown(0, " %")


def table(record: dict[str, Any]) -> str:
    """Return the table."""
    groups = studies.by_name(record["results"])
    base = groups["scratch"]
    rows = []
    for name, group in groups.items():
        choice = " / ".join(record["choices"][name].values())
        cells = ["", "", "", ""]
        if name != "scratch":
            free, charged = ("operator",), ("donor", "operator")
            cells = [cell(group, base, charge, what) for what in (0, 1) for charge in
                     (free, charged)]  # fmt: skip
        rows.append([name, choice, studies.spread(comparison.finals(group), 3), *cells])
    for name, bits in record["floors"].items():
        rows.append([f"{name}, counted", "", f"{bits:.3f}", "", "", "", ""])
    header = ["arm", "rate", "final loss, bits", "FLOPs saved, donor free",
              "FLOPs saved, donor charged", "seconds saved, donor free",
              "seconds saved, donor charged"]  # fmt: skip
    return studies.table(header, rows)


def verdict(record: dict[str, Any]) -> str:
    """Return what the intervals say of "44.7 % FLOPs saved", and of learning the operator."""
    groups = studies.by_name(record["results"])
    base, lines = groups["scratch"], []
    group = groups.get("ligo-100")
    if group is None:
        return ""
    for title, charge in (("free", ("operator",)), ("charged", ("donor", "operator"))):
        shares = [saved(one, other, charge, 0) for one, other in zip(group, base, strict=True)]
        if None in shares:
            lines.append(f"Donor {title}: not every seed of ligo-100 reached scratch's loss.")
            continue
        share = verdicts.interval([100 * one for one in shares])
        word = verdicts.verdict(share, 44.7, ("below", "above", "compatible with"))
        lines.append(
            f"Donor {title}: ligo-100 saves {share.shown(0, ' %')} of scratch's FLOPs, {word} the "
            "paper's 44.7 %."
        )
    others = [arm for arm in ARMS if arm not in (*RIVALS, "scratch", "ligo-100")]
    for rival in (*RIVALS, *others):
        if rival in groups:
            difference = comparison.paired(group, groups[rival])
            words = ("better than", "worse than", "not told from")
            word = verdicts.verdict(difference, words=words)
            lines.append(
                f"At equal updates ligo-100 is {word} {rival}: {difference.shown(3)} bits."
            )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def facts(record: dict[str, Any]) -> str:
    """Return a line on what the runs were and took."""
    results = record["results"]
    return (
        f"{len(results)} runs of {results[0]['curve'][-1]['update']} updates, "
        f"{results[0]['tokens']:,} tokens each, seeds {studies.seeds_of_all()}; "
        + comparison.cost(record, ARMS)
    )


def page(results: Path = RESULTS) -> str:
    """Return the table of every pair that was run, and what follows from it."""
    parts = []
    for name in NAMES:
        if (results / f"{name}.json").is_file():
            record = studies.read(results / f"{name}.json")
            parts += [f"**{NAMES[name]}**\n", *(part(record) for part in (table, facts, verdict))]
    return "\n".join(parts)


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, nargs="+", help="folders with train.txt, valid.txt, "
                        "test.txt")  # fmt: skip
    parser.add_argument("--arms", default=DEFAULT, help=f"all, or of {'; '.join(ARMS)}")
    parser.add_argument("--smoke", action="store_true", help="a fiftieth of the updates, two seeds")
    parser.add_argument("--decoder", action="store_true", help="causal models")
    parser.add_argument("--larger", action="store_true", help="4L/128 to 8L/256")
    args = studies.arguments(parser, page)
    kind, out = "decoder" if args.decoder else "encoder", args.out.resolve()
    data = studies.prepare(args.text, out, VOCABULARY)
    scale, seeds = (50, studies.SEEDS[:2]) if args.smoke else (1, studies.SEEDS)
    study = Study(kind, LARGER_SIZES if args.larger else SIZES, data, out, scale)
    choices, tried, results = {}, {}, []
    for arm in (arms := chosen(args.arms)):
        choices[arm], tried[arm] = study.tune(arm)
        print(f"{arm}: {choices[arm]}", file=sys.stderr, flush=True)
    for seed in seeds:
        for arm in arms:
            results.append(study.one(arm, seed, choices[arm]))
            loss = results[-1]["curve"][-1]["loss"]
            print(f"{arm} seed {seed}: {loss:.3f}", file=sys.stderr, flush=True)
    name = f"{kind}_larger" if args.larger else kind
    record = (out / "results" if args.smoke else RESULTS) / f"{name}.json"
    more = {"choices": choices, "tried": tried, "floors": study.floors()}
    studies.record(results, record, out, **more)
    studies.draw(results, record.with_suffix(".png"), f"Growth: {NAMES[name]}")
    print(page(record.parent), end="", flush=True)


if __name__ == "__main__":
    main()

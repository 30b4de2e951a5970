"""The growth study: a small encoder becomes a larger one, in every way that there is.

Usage: python examples/growth/study.py --text FOLDER --out RUNS [--arms scratch,stack,...|all]
       python examples/growth/study.py --tables

FOLDER holds train.txt, valid.txt and test.txt. Finished runs are kept in RUNS: the same command
goes on where it was stopped, and one with further arms runs those alone. ``--larger`` takes the
larger pair of models. ``--tables`` prints the table of the README from the results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import comparison
import studies
import verdicts

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results" / "encoder.json"
UPDATES, DONOR_UPDATES, LEARNING_UPDATES = 250, 400, 100
SIZES = {"small": (2, 64), "large": (4, 128)}
LARGER_SIZES = {"small": (4, 128), "large": (8, 256)}
VOCABULARY = 512
COMMON = (
    "--task masked_lm --criterion masked_lm --dropout 0 --attention-dropout 0 "
    "--encoder-normalize-before --position alibi --tokens-per-sample 64 "
    "--sample-break-mode none --batch-size 16 --optimizer adam --adam-betas (0.9,0.98) "
    "--adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0 --lr-scheduler polynomial_decay "
    "--no-epoch-checkpoints --num-workers 0 --device cpu --max-valid-steps 16 --log-interval 10 "
    "--log-format none"
)
GRID = {"--lr": ("0.001", "0.003"), "--warmup-updates": ("0", "10 %")}
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
DEFAULT = "scratch,stack,aki,hyperclone,random,ligo-0,ligo-100"


RIVALS = ("ligo-0", "stack", "fpi", "aki", "hyperclone", "random")


def sizes(which: str) -> str:
    """Return the flags of a model's sizes."""
    layers, width = SIZES[which]
    return (
        f"--encoder-layers {layers} --encoder-embed-dim {width} "
        f"--encoder-ffn-embed-dim {4 * width} --encoder-attention-heads {width // 32}"
    )


def slopes() -> str:
    """Return ALiBi's slopes of the small model's heads, once for each of their copies."""
    small, large = (SIZES[which][1] // 32 for which in ("small", "large"))
    own = [str(2.0 ** (-8 * (head + 1) / small)) for head in range(small)]
    return ",".join(own * (large // small))


def chosen(text: str) -> list[str]:
    """Return the arms that a list names; names with a comma are separated by semicolons.

    Raises:
        SystemExit: for an arm that does not exist.
    """
    if text in (*ARMS, "all"):
        return [text] if text != "all" else list(ARMS)
    arms = [arm.strip() for arm in text.split(";" if ";" in text else ",")]
    for arm in arms:
        if arm not in ARMS:
            raise SystemExit(f"there is no arm '{arm}': choose of {'; '.join(ARMS)}; or all")
    return arms


def schedule(flags: Any, updates: int, choice: dict[str, str]) -> tuple[str, ...]:
    """Return the words of a run of the large model."""
    warm = updates // 10 if choice["--warmup-updates"].endswith("%") else 0
    timing = f"--max-update {updates} --validate-interval-updates {max(25, updates // 10)}"
    rate = f"--lr {choice['--lr']} --warmup-updates {warm}"
    head = f"--arch roberta {sizes('large')} {COMMON} {timing} {rate}"
    return (*head.split(), *(slopes() if word == "SLOPES" else word for word in flags))


def donor(seed: int, updates: int) -> studies.Run:
    """Return the run of the small model."""
    words = (
        f"--arch roberta {sizes('small')} {COMMON} --max-update {updates} --lr 0.003 "
        f"--warmup-updates {updates // 10} --validate-interval-updates {updates}"
    )
    return studies.Run("donor", seed, tuple(words.split()))


def operator(arm: str, source: Path, seed: int, updates: int) -> studies.Run:
    """Return the run that learns an operator from a small model."""
    words = (
        f"--arch ligo_roberta {sizes('large')} {COMMON} --max-update {updates} {LEARNING} "
        f"--validate-interval-updates {updates} --ligo-source {source} {OPERATORS[arm]}"
    )
    return studies.Run(f"operator-{arm}", seed, tuple(words.split()))


def forming(vocabulary: int) -> float:
    """Return the operations of forming all weights once, forward: products of matrices alone."""
    (l1, d1), (l2, d2) = SIZES["small"], SIZES["large"]
    shapes = [((d1, d1), (d2, d2))] * 4
    shapes += [((4 * d1, d1), (4 * d2, d2)), ((d1, 4 * d1), (d2, 4 * d2))]
    depth = sum(2 * l1 * l2 * out * into for (out, into), _ in shapes)
    width = sum(
        l2 * (2 * o1 * i1 * (i2 - i1) + 2 * (o2 - o1) * o1 * i2) for (o1, i1), (o2, i2) in shapes
    )
    return depth + width + 2 * vocabulary * d1 * (d2 - d1)


def trained(run: studies.Run, data: Path, out: Path) -> Any:
    """Train (or read back) a run; its FLOPs are its own."""
    return studies.train(run, data, out, lambda folder: {"flops": comparison.flops_of(folder)})


def begun(
    arm: str, seed: int, data: Path, out: Path, scale: int
) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """Train what an arm begins with; return its flags, and FLOPs and seconds of that."""
    flags, before = ARMS[arm], {"donor": (0.0, 0.0), "operator": (0.0, 0.0)}
    if flags:
        run = donor(seed, DONOR_UPDATES // scale)
        flags, before["donor"] = _first(run, "DONOR", flags, data, out)
        if "OPERATOR" in flags:
            source = run.folder(out) / "checkpoint_last.pt"
            run = operator(arm, source, seed, LEARNING_UPDATES // scale)
            flags, cost = _first(run, "OPERATOR", flags, data, out)
            # forward, and twice as much backward, in every update
            cost = cost[0] + LEARNING_UPDATES // scale * 3 * forming(VOCABULARY), cost[1]
            before["operator"] = (0.0, 0.0) if arm == "ligo-0" else cost
    return flags.split(), before


def _first(
    run: studies.Run, word: str, flags: str, data: Path, out: Path
) -> tuple[str, tuple[float, float]]:
    """Train one of these; return the flags with its file's name, and its FLOPs and seconds."""
    done = trained(run, data, out)
    named = flags.replace(word, str(run.folder(out) / "checkpoint_last.pt"))
    return named, (done["flops"], done["seconds"])


def one(
    arm: str, seed: int, choice: dict[str, str], data: Path, out: Path, scale: int
) -> dict[str, Any]:
    """Train an arm with what it needs before; return its curve and all costs."""
    flags, before = begun(arm, seed, data, out, scale)
    run = studies.Run(arm, seed, schedule(flags, UPDATES // scale, choice))
    return {**trained(run, data, out), "before": before}


def tune(arm: str, data: Path, out: Path, scale: int) -> tuple[dict[str, str], list[Any]]:
    """Choose rate and warm-up of an arm on a tenth of its updates, on the first seed."""
    flags, _ = begun(arm, studies.SEEDS[0], data, out, scale)
    updates = max(4, UPDATES // scale // 10)
    return comparison.tuned(
        arm, GRID, lambda choice: schedule(flags, updates, choice),
        lambda runs: [studies.train(run, data, out, lambda folder: {}) for run in runs],
    )  # fmt: skip


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
    header = ["arm", "rate / warm-up", "final loss, bits", "FLOPs saved, donor free",
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


def page(path: Path = RECORD) -> str:
    """Return the table and what follows from it."""
    record = studies.read(path)
    return "\n".join(part(record) for part in (table, facts, verdict))


def record_of(larger: bool) -> Path:
    """Return the record of a pair of sizes, and take those sizes."""
    if not larger:
        return RECORD
    SIZES.update(LARGER_SIZES)
    return RECORD.with_name("encoder_larger.json")


def main() -> None:
    """Run the study, or print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, help="folder with train.txt, valid.txt, test.txt")
    parser.add_argument("--arms", default=DEFAULT, help=f"all, or of {'; '.join(ARMS)}")
    parser.add_argument("--smoke", action="store_true", help="a fiftieth of the updates, two seeds")
    parser.add_argument("--larger", action="store_true", help="4L/128 to 8L/256")
    args = studies.arguments(parser, lambda: page(record_of("--larger" in sys.argv)))
    record, arms, out = record_of(args.larger), chosen(args.arms), args.out.resolve()
    data = studies.prepare([args.text], out, VOCABULARY)
    scale, seeds = (50, studies.SEEDS[:2]) if args.smoke else (1, studies.SEEDS)
    choices, tried = {}, {}
    for arm in arms:
        choices[arm], tried[arm] = tune(arm, data, out, scale)
        print(f"{arm}: {choices[arm]}", file=sys.stderr, flush=True)
    if args.smoke:
        record = out / "results" / record.name
    results = []
    for seed in seeds:
        for arm in arms:
            results.append(one(arm, seed, choices[arm], data, out, scale))
            loss = results[-1]["curve"][-1]["loss"]
            print(f"{arm} seed {seed}: {loss:.3f}", file=sys.stderr, flush=True)
    studies.record(results, record, out, choices=choices, tried=tried)
    title = " to ".join(f"{layers}L/{width}" for layers, width in SIZES.values())
    studies.draw(results, record.with_suffix(".png"), f"Growth: {title}")
    print(page(record), end="", flush=True)


if __name__ == "__main__":
    main()

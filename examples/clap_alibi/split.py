"""Which half does it: ALiBi, the CLAP head with a zero mask, or both, at rates tuned for each.

Usage: python examples/clap_alibi/split.py --text FOLDER FOLDER --out RUNS [--tokens 10000000]
           [--arms "baseline;alibi"]
       python examples/clap_alibi/split.py --tables

Each FOLDER is a source with train.txt, valid.txt and test.txt. Every arm's learning rate is chosen
on a tenth of the budget, with a seed of its own; three fresh seeds then train on all of it.
Finished runs are kept in RUNS: the same command goes on where it was stopped, and one with further
arms runs those alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import studies
from floors import masked_bits
from verdicts import Interval, paired, verdict

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "split.json"
LENGTH = 64
BATCH = 16
REDRAWS = (1, 2, 3, 4, 5)
TUNING_SEED = 100
RATES = (0.001, 0.002, 0.004)
COMMON = (
    "--task masked_lm --criterion masked_lm --arch roberta --encoder-layers 2 "
    "--encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 "
    f"--dropout 0 --attention-dropout 0 --tokens-per-sample {LENGTH} --sample-break-mode none "
    f"--batch-size {BATCH} --optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6 "
    "--weight-decay 0.01 --weight-decay-mode matrices --clip-norm 1.0 "
    "--lr-scheduler polynomial_decay --no-epoch-checkpoints --keep-interval-updates 1 "
    "--num-workers 0 --device cpu --ignore-unused-valid-subsets --max-valid-steps 64 "
    "--log-interval 50 --log-format none"
)
ARMS = {
    "baseline": "",
    "alibi": "--position alibi",
    "zero mask": "--mask-embedding zero",
    "zero-clap": "--head clap --mask-embedding zero",
    "zero-clap + alibi": "--head clap --mask-embedding zero --position alibi",
}
SUBSETS = {"valid": "valid,valid1", "test": "test,test1"}


def run(name: str, seed: int, rate: float, tokens: int, validations: int = 20) -> studies.Run:
    """Return the run of an arm."""
    updates = max(10, tokens // (BATCH * LENGTH))
    every = max(1, updates // validations)
    budget = (
        f"--lr {rate:g} --warmup-updates {updates // 10} --max-update {updates} "
        f"--total-num-update {updates} --validate-interval-updates {every} "
        f"--save-interval-updates {max(1, updates // 4)}"
    )
    return studies.Run(name, seed, (*COMMON.split(), *budget.split(), *ARMS[name].split()))


def measure(folder: Path) -> dict[str, Any]:
    """Return bits a predicted token on all of the text: by mask seed, block length, subset."""
    printed: dict[str, Any] = {}
    longer = (LENGTH, 2 * LENGTH, 4 * LENGTH)
    for seed in REDRAWS:
        words = ["fairseq-validate", folder.parent / "data-bin", "--path",
                 folder / "checkpoint_last.pt", "--valid-subset", ",".join(SUBSETS.values()),
                 "--seed", seed, "--max-valid-steps", 1_000_000, "--json",
                 "--at-lengths", *(longer if seed in studies.SEEDS else (LENGTH,)),
                 ]  # fmt: skip
        out = json.loads(studies.call(words, folder / "valid.log").splitlines()[-1])
        printed[str(seed)] = {
            length: subsets if "refused" in subsets else
            {name: {key: stats[key] for key in ("loss", "sample_size") if key in stats}
             for name, stats in subsets.items()}
            for length, subsets in out.items()
        }  # fmt: skip
    return {"bits": printed}


def bits(result: dict[str, Any], subset: str, seed: int = REDRAWS[0], length: int = LENGTH) -> Any:
    """Return the bits a predicted token of a run, None where the model refuses the length."""
    by_subset = result["bits"][str(seed)][str(length)]
    return None if "refused" in by_subset else by_subset[subset]["loss"]


def tables(record: dict[str, Any]) -> str:
    """Return the figures of all arms and floors, the differences, and what follows from them."""
    groups = studies.by_name(record["results"])
    every = [name for names in SUBSETS.values() for name in names.split(",")]
    rows: list[list[object]] = []
    for name, group in groups.items():
        cells = [studies.spread([bits(one, subset) for one in group], 3) for subset in every]
        redraws = [statistics.stdev([bits(one, "test", seed) for seed in REDRAWS]) for one in group]
        rows.append([name, record["tuned"][name]["rate"], *cells, f"{max(redraws):.3f}"])
    for name in ("bidirectional bigram", "unigram"):
        rows.append([name, "", *(f"{record['floors'][s][name]:.3f}" for s in every), ""])
    header = ["arm", "rate", *every, "largest deviation of five redraws, test"]
    return "\n".join([studies.table(header, rows), _claims(record, groups)])


# The second is the first without one thing, or without two: what that changes.
PAIRS = (
    ("alibi", "baseline"), ("zero mask", "baseline"), ("zero-clap", "zero mask"),
    ("zero-clap + alibi", "zero-clap"), ("zero-clap + alibi", "alibi"),
    ("zero-clap + alibi", "baseline"),
)  # fmt: skip
SHARE = 0.75  # of its epochs, which the fork says that its method needs


def _claims(record: dict[str, Any], groups: dict[str, list[Any]]) -> str:
    """Return each claim with the interval it follows from."""
    rows: list[list[object]] = []
    subsets = [name for names in SUBSETS.values() for name in names.split(",")]
    for subset in subsets:
        for name, other in PAIRS:
            if name not in groups or other not in groups:
                continue
            pair = ([bits(one, subset) for one in groups[group]] for group in (name, other))
            rows.append(_row(f"{name} is below {other} on {subset}", paired(*pair)))
        for name, group in groups.items():
            counted = [record["floors"][subset]["bidirectional bigram"]] * len(group)
            difference = paired([bits(one, subset) for one in group], counted)
            rows.append(_row(f"{name} is below the bidirectional bigram on {subset}", difference))
    rows += _longer_rows(groups, subsets)
    for name, group in groups.items():
        shares = share_of_budget(group, groups["baseline"])
        claim = f"{name} is where the baseline ends before {SHARE:g} of its updates"
        if None in shares:
            rows.append([claim, "some seed never is", "does not hold"])
        else:
            rows.append(_row(claim, paired([x or 0.0 for x in shares], [SHARE] * len(shares))))
    header = ["claim", "difference (bits; of updates: share), 95 % interval", "verdict"]
    return studies.table(header, rows)


def _row(claim: str, difference: Interval) -> list[object]:
    return [claim, difference, verdict(difference)]


def _longer_rows(groups: dict[str, list[Any]], subsets: list[str]) -> list[list[object]]:
    """Return what longer blocks do; each seed has masks of its own, so the interval knows them."""
    rows: list[list[object]] = []
    for name, group in groups.items():
        for length in (2 * LENGTH, 4 * LENGTH):
            if bits(group[0], subsets[0], length=length) is None:
                rows.append([f"{name} in blocks of {length}", "refused", ""])
                continue
            for subset in subsets:
                at = [
                    [
                        bits(one, subset, seed, size)
                        for one, seed in zip(group, REDRAWS, strict=False)
                    ]
                    for size in (length, LENGTH)
                ]
                rows.append(
                    _row(f"{name} is better in blocks of {length} on {subset}", paired(*at))
                )
    return rows


def share_of_budget(group: list[Any], base: list[Any]) -> list[float | None]:
    """Return, by seed, the share of all updates after which a run is where ``base`` ends.

    Both are validated with the masks of their seed. None: it never is.
    """
    shares: list[float | None] = []
    for one, other in zip(group, base, strict=True):
        end = other["curve"][-1]
        reached = (p["update"] / end["update"] for p in one["curve"] if p["loss"] <= end["loss"])
        shares.append(next(reached, None))
    return shares


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, nargs="+", help="folders, one for each source")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of each run (10 million)")
    parser.add_argument("--result", type=Path, default=RESULT, help="the record to write")
    parser.add_argument("--arms", default=";".join(ARMS), help=f"of {'; '.join(ARMS)}")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (2)")
    args = studies.arguments(parser, lambda: tables(studies.read(RESULT)))
    chosen = list(dict.fromkeys(["baseline", *map(str.strip, args.arms.split(";"))]))
    for name in chosen:
        if name not in ARMS:
            parser.error(f"there is no arm '{name}': choose of {'; '.join(ARMS)}")
    data = studies.prepare(args.text, args.out, 8000)
    tuned: dict[str, Any] = {}
    for name in chosen:
        rate, losses = studies.tune(
            lambda rate, name=name: run(name, TUNING_SEED, rate, args.tokens // 10, 1),
            RATES,
            lambda runs: studies.run_all(runs, data, args.out, jobs=args.jobs),
        )
        tuned[name] = {"rate": rate, "bits": {f"{key:g}": loss for key, loss in losses.items()}}
    # Seeds outermost: whatever is cut off, every arm has as many seeds as every other.
    runs = [
        run(name, seed, tuned[name]["rate"], args.tokens)
        for seed in studies.SEEDS
        for name in chosen
    ]
    done = studies.run_all(runs, data, args.out, measure, args.jobs)
    sources = studies.read(args.out / "sources.json")
    checkpoint = runs[0].folder(args.out) / "checkpoint_last.pt"
    floors = masked_bits(checkpoint, data, ",".join(SUBSETS.values()).split(","), REDRAWS[0])
    studies.record(done, args.result, args.out, tuned=tuned, sources=sources, floors=floors)
    print(tables(studies.read(args.result)), end="")


if __name__ == "__main__":
    main()

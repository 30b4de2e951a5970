"""The CLAP and ALiBi study: five encoders, then one change at a time.

Usage: python examples/clap_alibi/study.py --text FOLDER --out RUNS
       python examples/clap_alibi/study.py --tables

FOLDER holds train.txt, valid.txt and test.txt. Finished runs are kept in RUNS: the same command
goes on where it was stopped. ``--tables`` prints the tables of the README from the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import studies

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LENGTH = 64
LENGTHS = (LENGTH, 2 * LENGTH, 4 * LENGTH)
COMMON = (
    "--task masked_lm --criterion masked_lm --arch roberta --encoder-layers 2 "
    "--encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 "
    f"--dropout 0 --attention-dropout 0 --tokens-per-sample {LENGTH} --sample-break-mode none "
    "--batch-size 16 --optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6 "
    "--weight-decay 0.01 --weight-decay-mode matrices --clip-norm 1.0 --lr 0.002 "
    "--lr-scheduler polynomial_decay --no-epoch-checkpoints "
    "--save-interval-updates 500 --keep-interval-updates 1 --num-workers 0 --device cpu "
    "--max-valid-steps 16 --log-interval 50 --log-format none"
)
BUDGET = "--warmup-updates 70 --max-update 700 --validate-interval-updates 100"
SMOKE = "--warmup-updates 1 --max-update 3 --validate-interval-updates 1"

ZERO_CLAP = "--head clap --position alibi --mask-embedding zero"
MAIN = {
    "baseline": "",
    "learned-clap": "--head clap",
    "alibi": "--position alibi",
    "zero-clap": ZERO_CLAP,
    "sinusoidal": "--position sinusoidal",
}
ABLATIONS = {
    "zero-clap": ZERO_CLAP,
    "dropout 0.1": f"{ZERO_CLAP} --dropout 0.1 --attention-dropout 0.1",
    "no embedding layer norm": f"{ZERO_CLAP} --no-layernorm-embedding",
    "no normalisation": f"{ZERO_CLAP} --no-clap-normalize",
    "hidden normalised": f"{ZERO_CLAP} --clap-normalize-hidden --clap-initial-beta 10",
    "embeddings scaled": f"{ZERO_CLAP} --no-layernorm-embedding --scale-embedding",
    "learned mask": "--head clap --position alibi",
    "asymmetric ALiBi": "--head clap --position alibi-asymmetric --mask-embedding zero",
    "decay on everything": f"{ZERO_CLAP} --weight-decay-mode all",
    "beta0 10": f"{ZERO_CLAP} --clap-initial-beta 10",
}


def runs(variants: dict[str, str], smoke: bool) -> list[studies.Run]:
    """Return the runs of all variants and seeds."""
    words = f"{COMMON} {SMOKE if smoke else BUDGET}".split()
    return [
        studies.Run(name, seed, (*words, *flags.split()))
        for name, flags in variants.items()
        for seed in studies.SEEDS[: 1 if smoke else None]
    ]


def at_lengths(folder: Path) -> dict[str, Any]:
    """Return the losses of a run on all of valid and test, in blocks of one to four lengths.

    The masks are the same for all runs: what differs between seeds is then the training. With
    their own masks the same weights differ by 0.2 bits on a few thousand predictions.
    """
    words = ["fairseq-validate", folder.parent / "data-bin", "--path",
             folder / "checkpoint_last.pt", "--valid-subset", "valid,test", "--seed", 1,
             "--max-valid-steps", 1_000_000, "--at-lengths", *LENGTHS, "--json"]  # fmt: skip
    printed = json.loads(studies.call(words, folder / "valid.log").splitlines()[-1])
    return {
        "loss_at_length": {
            length: subsets["refused"] if "refused" in subsets else
            {subset: stats["loss"] for subset, stats in subsets.items()}
            for length, subsets in printed.items()
        }
    }  # fmt: skip


def perplexities(group: list[Any], subset: str, length: int = LENGTH) -> list[float]:
    """Return the final perplexity of each seed; none if the model refuses the length."""
    losses = [result["loss_at_length"][str(length)] for result in group]
    return [2 ** loss[subset] for loss in losses if isinstance(loss, dict)]


def reached(group: list[Any], base: list[Any]) -> str:
    """Return the mean update at which the seeds were as good as the same seeds of ``base``."""
    firsts = [
        next((p["update"] for p in one["curve"] if p["loss"] <= other["curve"][-1]["loss"]), None)
        for one, other in zip(group, base, strict=True)
    ]
    return "not" if None in firsts else studies.spread([first or 0 for first in firsts], 0)


def main_table(record: dict[str, Any]) -> str:
    """Return the final perplexities, at longer blocks too, and who caught up with the baseline."""
    groups = studies.by_name(record["results"])
    rows = []
    for name, group in groups.items():
        cells = [perplexities(group, subset) for subset in ("valid", "test")]
        cells += [perplexities(group, "test", length) for length in LENGTHS[1:]]
        shown = [studies.spread(values, 1) if values else "refused" for values in cells]
        rows.append([name, *shown, reached(group, groups["baseline"])])
    reference = [f"{2 ** record['unigram'][subset]:.1f}" for subset in ("valid", "test")]
    rows.append(["word frequencies", *reference, "", "", ""])
    longer = [f"test, T={length}" for length in LENGTHS[1:]]
    header = ["variant", "valid", "test", *longer, "as good as the baseline's end at update"]
    return studies.table(header, rows)


def ablation_table(record: dict[str, Any]) -> str:
    """Return the perplexity of each change, and how far it is from the same seeds without it."""
    groups = studies.by_name(record["results"])
    base = perplexities(groups["zero-clap"], "test")
    rows = []
    for name, group in groups.items():
        values = perplexities(group, "test")
        changes = [100 * (new / old - 1) for new, old in zip(values, base, strict=True)]
        change = "" if name == "zero-clap" else f"{studies.spread(changes, 1)} %"
        shown = studies.spread(perplexities(group, "valid"), 1)
        rows.append([name, shown, studies.spread(values, 1), change])
    return studies.table(["zero-clap with", "valid", "test", "change, seed by seed"], rows)


def cost(record: dict[str, Any]) -> str:
    """Return a line on what the runs were and took."""
    results = record["results"]
    return (
        f"{len(results)} runs, seeds {studies.seeds_of_all()}; "
        f"{results[0]['curve'][-1]['update']} updates and {results[0]['tokens']:,} tokens each; "
        f"{studies.spent(record)}.\n"
    )


TABLES = {"main": main_table, "ablations": ablation_table}


def tables() -> str:
    """Return the tables of all parts whose results are there."""
    return studies.tables(RESULTS, TABLES, cost)


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, help="folder with train.txt, valid.txt, test.txt")
    parser.add_argument("--only", choices=list(TABLES), help="one part (default: both)")
    parser.add_argument("--smoke", action="store_true", help="three updates a run, one seed")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (2)")
    args = studies.arguments(parser, tables)
    data = studies.prepare([args.text], args.out, 8000)
    results = args.out / "results" if args.smoke else RESULTS
    for part, variants in (("main", MAIN), ("ablations", ABLATIONS)):
        if args.only not in (None, part):
            continue
        done = studies.run_all(runs(variants, args.smoke), data, args.out, at_lengths, args.jobs)
        path = results / f"{part}.json"
        bits = {
            subset: studies.unigram_bits(args.out, subset, ends=False)
            for subset in ("valid", "test")
        }
        studies.record(done, path, args.out, unigram=bits)
        studies.draw(done, results / f"{part}.png", f"CLAP and ALiBi: {part}", skip=1)
        print(TABLES[part](studies.read(path)), flush=True)


if __name__ == "__main__":
    main()

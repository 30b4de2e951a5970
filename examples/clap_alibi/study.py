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
    """Evaluate a run on blocks of one, two and four times the trained length."""
    losses = {}
    for length in LENGTHS:
        state = folder / f"valid-{length}.json"
        words = ["fairseq-validate", folder.parent / "data-bin", "--path",
                 folder / "checkpoint_last.pt", "--tokens-per-sample", length,
                 "--batch-size", 2048 // length, "--max-valid-steps", 16, "--json"]  # fmt: skip
        try:
            printed = studies.call(words, folder / "valid.log")
        except RuntimeError as refused:
            state.write_text(str(refused), encoding="utf-8")
            continue  # learned positions end where their table ends
        losses[str(length)] = json.loads(printed.splitlines()[-1])["valid"]["loss"]
    return {"loss_at_length": losses}


def perplexities(group: list[Any], point: int = -1) -> list[float]:
    """Return the validation perplexity of each seed at one point of its curve."""
    return [2 ** result["curve"][point]["loss"] for result in group]


def main_table(results: list[Any]) -> str:
    """Return perplexity at half time, at the end, and at longer blocks."""
    rows = []
    for name, group in studies.by_name(results).items():
        longer = []
        for length in LENGTHS:
            losses = [result["loss_at_length"].get(str(length)) for result in group]
            known = [2**loss for loss in losses if loss is not None]
            longer.append(studies.spread(known, 1) if known else "refused")
        half = studies.spread(perplexities(group, len(group[0]["curve"]) // 2 - 1), 1)
        rows.append([name, half, studies.spread(perplexities(group), 1), *longer])
    header = ["variant", "half time", "end", *(f"after, T={length}" for length in LENGTHS)]
    return studies.table(header, rows)


def ablation_table(results: list[Any]) -> str:
    """Return the perplexity of each change, and by how much it changed, seed by seed."""
    groups = studies.by_name(results)
    base = perplexities(groups["zero-clap"])
    rows = []
    for name, group in groups.items():
        values = perplexities(group)
        changes = [100 * (value / other - 1) for value, other in zip(values, base, strict=True)]
        rows.append([name, studies.spread(values, 1), f"{studies.spread(changes, 1)} %"])
    return studies.table(["zero-clap with", "perplexity", "change, seed by seed"], rows)


TABLES = {"main": main_table, "ablations": ablation_table}


def tables() -> str:
    """Return the tables of all parts whose results are there."""
    parts = []
    for name, make in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts.append(make(json.loads(path.read_text(encoding="utf-8"))["results"]))
    return "\n".join(parts)


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, help="folder with train.txt, valid.txt, test.txt")
    parser.add_argument("--out", type=Path, help="folder for the runs")
    parser.add_argument("--only", choices=list(TABLES), help="one part (default: both)")
    parser.add_argument("--smoke", action="store_true", help="three updates a run, one seed")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--tables", action="store_true", help="print the tables and stop")
    args = parser.parse_args()
    if args.tables:
        print(tables(), end="")
        return
    if args.text is None or args.out is None:
        parser.error("give --text and --out, or --tables")
    data = studies.prepare(args.text, args.out, 8000)
    results = args.out / "results" if args.smoke else RESULTS
    for part, variants in (("main", MAIN), ("ablations", ABLATIONS)):
        if args.only not in (None, part):
            continue
        measure = at_lengths if part == "main" else lambda folder: {}
        done = studies.run_all(runs(variants, args.smoke), data, args.out, measure, args.jobs)
        words = " ".join(["python", "examples/clap_alibi/study.py", *sys.argv[1:]])
        studies.record(done, results / f"{part}.json", words)
        studies.draw(done, results / f"{part}.png", f"CLAP and ALiBi: {part}", skip=1)
        print(TABLES[part](done), flush=True)


if __name__ == "__main__":
    main()

"""The distillation study: half of a teacher's layers, with and without its advice.

Usage: python examples/distillation/study.py --text FOLDER ... --out RUNS [--arms "extracted: LM"]
       python examples/distillation/study.py --tables

A FOLDER holds train.txt, valid.txt and test.txt. The teacher reads all of them once, students the
beginning of the first; losses are those of the first folder's valid.txt. Finished runs are kept in
RUNS: the same command goes on where it was stopped. ``--tables`` prints the table of the README.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import comparison
import floors
import studies
import verdicts

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results" / "decoder.json"
VOCABULARY = 512
TEACHER_UPDATES, UPDATES = 7300, 300
LINES = 10_000  # what students read, in lines of the first text: once, "LM, longer" included
TEACHER = "--decoder-layers 4 --batch-size 32"
STUDENT = "--decoder-layers 2 --batch-size 16"
COMMON = (
    "--task language_modeling --arch transformer_lm_gpt --decoder-embed-dim 128 "
    "--decoder-input-dim 128 --decoder-output-dim 128 --decoder-ffn-embed-dim 512 "
    "--decoder-attention-heads 4 --dropout 0 --attention-dropout 0 --tokens-per-sample 64 "
    "--sample-break-mode none --optimizer adam --adam-betas (0.9,0.98) "
    "--adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0 --lr-scheduler polynomial_decay "
    "--no-epoch-checkpoints --num-workers 0 --device cpu --max-valid-steps 32 --log-interval 10 "
    "--log-format none --max-epoch 1 --ignore-unused-valid-subsets"
)
GRID = {"--lr": ("0.001", "0.003")}
# every objective weighs its parts so that likelihood and advice count alike
LIVE = "--teacher-path TEACHER --alpha-clm 0.5 --distillation-temperature 2"
STORED = "--teacher-cache CACHE --alpha-clm 0.5 --alpha-ce 0.5 --distillation-temperature 2"
OBJECTIVES = {
    "LM": "--criterion cross_entropy",
    "CE": f"--criterion distillation {LIVE} --alpha-ce 0.5",
    "CE + cos": f"--criterion distillation {LIVE} --alpha-ce 0.5 --alpha-cos 0.5",
    "reverse KL": f"--criterion distillation {LIVE} --alpha-ce 0.5 --divergence reverse",
    "PKD": f"--criterion distillation {LIVE} --alpha-ce 0.5 --pkd-weight 0.5",
    "MiniLM": f"--criterion distillation {LIVE} --alpha-ce 0 --minilm-attention-weight 0.5 "
    "--minilm-value-weight 0.5",
    "cached top-k": f"--criterion distillation {STORED}",
    "cached sampled": f"--criterion distillation {STORED}",
}
STARTS = {
    "random": "",
    "extracted": "--grow-from TEACHER --grow-method extract --grow-layers 0,2",
}
# "LM, longer" trains on likelihood alone until it has cost what "CE + cos" does
LONGER = "LM, longer"
# compared besides "CE + cos" and likelihood alone
OTHERS = (
    ("CE + cos", "CE"), ("PKD", "CE"), ("reverse KL", "CE"), ("cached sampled", "CE"),
    ("cached sampled", "cached top-k"), ("MiniLM", "LM"),
)  # fmt: skip
ARMS = {
    f"{start}: {objective}": (start, objective)
    for start in STARTS
    for objective in (*OBJECTIVES, LONGER)
}


def schedule(flags: Any, updates: int, choice: dict[str, str]) -> tuple[str, ...]:
    """Return the words of a run of a student."""
    timing = f"--max-update {updates} --warmup-updates {max(1, updates // 10)}"
    head = f"{COMMON} {STUDENT} {timing} --lr {choice['--lr']} --validate-interval-updates "
    return (*f"{head}{max(25, updates // 12)}".split(), *flags)


def teacher(updates: int) -> studies.Run:
    """Return the run of the teacher."""
    words = (
        f"{COMMON} {TEACHER} --criterion cross_entropy --max-update {updates} --lr 0.002 "
        f"--warmup-updates {updates // 10} --validate-interval-updates {updates}"
    )
    return studies.Run("teacher", 1, tuple(words.split()))


def portion(out: Path, lines: int) -> Path:
    """Binarize the beginning of the training text with the same dictionary; return the folder."""
    folder, text = out / "students-bin", out / "students.bpe"
    if not (folder / "manifest.json").is_file():
        with open(out / "train.bpe", encoding="utf-8") as train:
            text.write_text("".join(itertools.islice(train, lines)), encoding="utf-8")
        words = ["--trainpref", text, "--validpref", out / "valid.bpe",
                 "--srcdict", out / "data-bin" / "dict.txt", "--destdir", folder]  # fmt: skip
        studies.call(["fairseq-preprocess", "--only-source", *words], out / "prepare.log")
    return folder


def cache(path: Path, kind: str, data: Path, out: Path) -> Path:
    """Store what the teacher says of the training and validation text; return the folder."""
    folder = out / f"cache-{kind}-{path.parent.name}"
    if not folder.is_dir():
        words = [data, "--path", path, "--valid-subset", "train,valid", "--write-teacher-cache",
                 folder, "--cache-method", kind, "--top-k", 16, "--cache-temperatures", 2,
                 "--max-valid-steps", 1_000_000]  # fmt: skip
        studies.call(["fairseq-validate", *words], out / "cache.log")
    return folder


def flags_of(arm: str, path: Path, data: Path, out: Path) -> list[str]:
    """Return what an arm adds to the command."""
    start, objective = ARMS[arm]
    flags = f"{STARTS[start]} {OBJECTIVES['LM' if objective == LONGER else objective]}"
    if "CACHE" in flags:
        kind = "topk" if objective == "cached top-k" else "sample"
        flags = flags.replace("CACHE", str(cache(path, kind, data, out)))
    return flags.replace("TEACHER", str(path)).split()


def measure(folder: Path) -> dict[str, Any]:
    """Return the operations of a run, and its own likelihoods: ``loss`` is the objective's."""
    points = studies.curve(folder)
    kept = [
        {"update": point["update"], "loss": point.get("nll_loss", point["loss"])}
        for point in points
    ]
    return {"flops": comparison.flops_of(folder), "curve": kept}


def all_runs(arms: list[str], data: Path, out: Path, scale: int, seeds: Any) -> dict[str, Any]:
    """Train the teacher, choose the rate of each arm with the first seed, and train all arms."""
    first = teacher(TEACHER_UPDATES // scale)
    done = studies.train(first, data, out, measure)
    data = portion(out, LINES)
    path = first.folder(out) / "checkpoint_last.pt"
    updates, choices, tried = max(4, UPDATES // scale), dict[str, Any](), dict[str, Any]()
    arms = sorted(arms, key=lambda arm: LONGER in arm)  # whose rate and length come from others
    for arm in arms:
        if LONGER in arm:
            choices[arm], tried[arm] = choices[f"{ARMS[arm][0]}: LM"], []
            continue
        flags = flags_of(arm, path, data, out)
        choices[arm], tried[arm] = comparison.tuned(
            arm, GRID,
            lambda choice, flags=flags: schedule(flags, updates, choice),
            lambda runs: [studies.train(run, data, out, measure) for run in runs],
        )  # fmt: skip
    results = []
    for seed in seeds:
        costs: dict[str, float] = {}
        for arm in arms:
            start, objective = ARMS[arm]
            length = updates
            if objective == LONGER:
                length = round(updates * costs[f"{start}: CE + cos"] / costs[f"{start}: LM"])
            words = schedule(flags_of(arm, path, data, out), length, choices[arm])
            result = studies.train(studies.Run(arm, seed, words), data, out, measure)
            costs[arm] = result["flops"]
            results.append(result)
            print(f"{arm} seed {seed}: {result['curve'][-1]['loss']:.3f}", file=sys.stderr,
                  flush=True)  # fmt: skip
    counted = {
        f"{name} of what {whose} read": bits
        for whose, text in (("students", "students.bpe"), ("the teacher", "train.bpe"))
        for name, bits in floors.text_bits(out / text, out / "valid.bpe").items()
    }
    return {"results": results, "choices": choices, "tried": tried, "teacher": done,
            "floors": counted}  # fmt: skip


# -- what came out ---------------------------------------------------------------------------------


def table(record: dict[str, Any]) -> str:
    """Return final likelihoods, and what every run cost in units of the LM arm of its start."""
    groups, rows = studies.by_name(record["results"]), []
    for name, group in groups.items():
        base = groups[f"{ARMS[name][0]}: LM"]
        cost = group[0]["flops"] / base[0]["flops"]
        against = "" if group is base else comparison.paired(group, base).shown(3)
        updates = group[0]["curve"][-1]["update"]
        rate, loss = record["choices"][name]["--lr"], studies.spread(comparison.finals(group), 3)
        rows.append([name, rate, updates, f"{cost:.2f}", loss, against])
    end = record["teacher"]["curve"][-1]
    rows.append(["the teacher", "0.002", end["update"], "", f"{end['loss']:.3f}", ""])
    for name, bits in record["floors"].items():
        rows.append([f"{name}, counted", "", "", "", f"{bits:.3f}", ""])
    header = ["student", "rate", "updates", "FLOPs, LM = 1", "NLL, bits a token",
              "change from LM, equal updates"]  # fmt: skip
    return studies.table(header, rows)


def verdict(record: dict[str, Any]) -> str:
    """Return whether "CE + cos" beats "extract and train on", and what tells other arms apart."""
    groups, lines = studies.by_name(record["results"]), []

    def compare(one: str, other: str, when: str, called: str = "") -> None:
        new, old = groups.get(one), groups.get(other)
        if new and old:
            difference = comparison.paired(new, old)
            word = verdicts.verdict(difference, words=("beats", "loses to", "is not told from"))
            start, name = one.split(": ")
            called = called or f'"{other.split(": ")[1]}"'
            lines.append(
                f'- {start} start, {when}: "{name}" {word} {called}, {difference.shown(3)} bits.'
            )

    for start in STARTS:
        for rival, when in (("LM", "equal updates"), (LONGER, "equal FLOPs")):
            when += " (the teacher's forward included)"
            compare(f"{start}: CE + cos", f"{start}: {rival}", when, "likelihood alone")
        for one, other in OTHERS:
            compare(f"{start}: {one}", f"{start}: {other}", "equal updates")
    return "\n".join(lines) + "\n"


def facts(record: dict[str, Any]) -> str:
    """Return a line on what the runs were and took."""
    results = record["results"]
    return (
        f"{len(results)} runs of {results[0]['tokens']:,} tokens (LM, longer: more), seeds "
        f"{studies.seeds_of_all()}; teacher of {record['teacher']['tokens']:,} tokens; "
        + comparison.cost(record, ARMS)
    )


def page(path: Path = RECORD) -> str:
    """Return the table and what follows from it."""
    record = studies.read(path)
    return "\n".join(part(record) for part in (table, facts, verdict))


def main() -> None:
    """Run the study, or print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, nargs="+", help="folders with train.txt, valid.txt, "
                        "test.txt")  # fmt: skip
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM",
                        help="; ".join(ARMS))  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="a fiftieth of the updates, two seeds")
    args = studies.arguments(parser, page)
    out = args.out.resolve()
    data = studies.prepare(args.text, out, VOCABULARY)
    scale, seeds = (50, studies.SEEDS[:2]) if args.smoke else (1, studies.SEEDS)
    more = all_runs(args.arms, data, out, scale, seeds)
    record = out / "results" / RECORD.name if args.smoke else RECORD
    results = more.pop("results")
    studies.record(results, record, out, **more)
    studies.draw(results, record.with_suffix(".png"), "Distillation: 4 layers to 2", skip=2)
    print(page(record), end="", flush=True)


if __name__ == "__main__":
    main()

"""Whether a command became slower: this checkout's and another's run in turn.

Usage: python benchmarks/against.py CHECKOUT --text FILE [--rounds N] [--only TEXT ...] [--quick]

Every command is a process of its own, as a user starts it, with the packages of one checkout or the
other; who begins changes with the round. Ratios are of the same round, processor time of the
process and its workers (of two workers: the clock's); the interval is that of the median by the
sign test. A row is "slower" only where the whole interval lies above 1.03. Commands that the other
checkout does not have are said to be missing; `--only` adds to the record. `step.py --against` does
the same for large steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.record import RESULTS, commit, machine, publish  # noqa: E402
from benchmarks.rounds import interval, ratios  # noqa: E402
from benchmarks.run import repeated  # noqa: E402
from benchmarks.step import environment  # noqa: E402

LIMIT = 1.03  # of what may be noise
TRAINED = (
    "--tokens-per-sample 64 --batch-size 16 --optimizer adam --lr 0.001 --lr-scheduler fixed "
    "--log-format none --device cpu --num-workers 0 --disable-validation --no-epoch-checkpoints"
)
ENCODER = (
    "--arch roberta --encoder-layers 2 --encoder-embed-dim 64 --encoder-ffn-embed-dim 256 "
    "--encoder-attention-heads 2 --task masked_lm"
)
DECODER = (
    "--arch transformer_lm --decoder-layers 2 --decoder-embed-dim 64 --decoder-ffn-embed-dim 256 "
    "--decoder-attention-heads 2 --task language_modeling --criterion cross_entropy "
    "--share-decoder-input-output-embed --decoder-input-dim 64 --decoder-output-dim 64"
)
# name -> words after python; {place}: a file or folder of the benchmark
COMMANDS = {
    "import": "-c import\ttorch,fairseq",
    "fairseq-train --help": "-m fairseq_cli.train --help",
    "fairseq-preprocess, 1 worker": "-m fairseq_cli.preprocess --only-source --trainpref {text} "
    "--destdir {new} --workers 1",
    "fairseq-preprocess, 2 workers": "-m fairseq_cli.preprocess --only-source --trainpref {text} "
    "--destdir {new} --workers 2",
    "fairseq-bpe encode": "-m fairseq_cli.bpe encode --bpe gpt2 --gpt2-encoder-json "
    "{bpe}/encoder.json --gpt2-vocab-bpe {bpe}/vocab.bpe --inputs {short} --outputs {new} "
    "--keep-empty",
    "fairseq-train, masked": f"-m fairseq_cli.train {{data}} {ENCODER} --criterion masked_lm "
    f"{TRAINED} --max-update {{updates}} --save-dir {{masked}}",
    "fairseq-train, CLAP and ALiBi": f"-m fairseq_cli.train {{data}} {ENCODER} --criterion "
    f"masked_lm --head clap --position alibi {TRAINED} --max-update {{updates}} --save-dir {{new}}",
    "fairseq-train, headless": f"-m fairseq_cli.train {{data}} {ENCODER} --criterion "
    f"contrastive_weight_tying --head none {TRAINED} --max-update {{updates}} --save-dir {{new}}",
    "fairseq-train, causal": f"-m fairseq_cli.train {{data}} {DECODER} {TRAINED} --max-update "
    "{updates} --save-dir {causal}",
    "fairseq-validate": "-m fairseq_cli.validate {data} --path {masked}/checkpoint_last.pt "
    "--valid-subset train --max-valid-steps {steps} --batch-size 16 --device cpu --num-workers 0",
    "fairseq-eval-lm": "-m fairseq_cli.eval_lm {data} --path {causal}/checkpoint_last.pt "
    "--gen-subset valid --batch-size 16 --device cpu --num-workers 0",
}


def words(line: str, places: dict[str, str]) -> list[str]:
    """Return the words of a command, with the places' own names; a tab stands for a space."""
    return [word.replace("\t", " ").format(**places) for word in line.split(" ")]


def spent(command: list[str], checkout: Path) -> tuple[float, float] | None:
    """Return seconds of the processor and of the clock; None where the command has failed."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], env=environment(1, checkout), stdout=-3, stderr=-3
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    clock = time.perf_counter() - started
    return None if process.returncode else (used.ru_utime + used.ru_stime, clock)


def remove(place: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def turns(
    name: str, checkouts: dict[str, Path], folder: Path, shared: dict[str, str], rounds: int
) -> dict[str, list[float]] | None:
    """Return seconds of each checkout by round, the first not counted; None where one fails."""
    taken: dict[str, list[float]] = {side: [] for side in checkouts}
    which = 1 if "2 workers" in name else 0
    for turn in range(rounds + 1):
        for side in list(checkouts)[:: -1 if turn % 2 else 1]:
            # each side has its own models; they go, or the next turn would go on with the run
            own = {kind: str(folder / side / kind) for kind in ("masked", "causal")}
            places = {**shared, **own, "new": str(folder / side / "new")}
            for kind, place in own.items():
                if f"--save-dir {{{kind}}}" in COMMANDS[name]:
                    remove(Path(place))
            figures = spent(words(COMMANDS[name], places), checkouts[side])
            remove(Path(places["new"]))
            if figures is None:
                return None
            if turn:
                taken[side].append(figures[which])
    return taken


def judged(taken: dict[str, list[float]] | None) -> dict[str, Any]:
    """Return medians in seconds, the ratio here / there with its interval, and what it says."""
    if taken is None:
        return {"here": None, "there": None, "ratio": None, "interval": None, "so": "missing"}
    here, there = taken.values()
    quotients = ratios(here, there)
    around, said = interval(quotients), "cannot be told"
    if around is not None and around[0] > LIMIT:
        said = "slower"
    elif around is not None and around[1] <= LIMIT:
        said = "faster" if around[1] < 1 else "not slower"
    return {
        "here": round(statistics.median(here), 3),
        "there": round(statistics.median(there), 3),
        "ratio": round(statistics.median(quotients), 3),
        "interval": around and "{}-{}".format(*around),
        "so": said,
    }


def prepared(folder: Path, text: Path, quick: bool) -> dict[str, str]:
    """Write the texts and the binarized ones; return the places by name."""
    places = {"bpe": str(text.resolve().parent.parent / "gpt2_bpe"), "data": str(folder / "data")}
    for name, size in (("text", 1 if quick else 27), ("short", 0.1 if quick else 5)):
        places[name] = str(folder / name)
        repeated(text, size, folder / name)
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)[: 500 if quick else None]
    (folder / "train").write_text("".join(lines), encoding="utf-8")
    (folder / "valid").write_text("".join(lines[:2000]), encoding="utf-8")
    line = (
        f"-m fairseq_cli.preprocess --only-source --nwordssrc 8000 --trainpref {folder}/train "
        f"--validpref {folder}/valid --destdir {folder}/data"
    )  # fmt: skip
    subprocess.run([sys.executable, *line.split()], check=True, env=environment(1), stdout=-3)
    return {**places, "updates": "4" if quick else "100", "steps": "4" if quick else "200"}


def measure(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every command's name and its row."""
    checkouts = {"here": ROOT, "there": args.checkout.resolve()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shared = prepared(folder, args.text, args.quick)
        for name in chosen(args.only):
            yield name, judged(turns(name, checkouts, folder, shared, args.rounds))


def chosen(only: list[str]) -> list[str]:
    """Return the names with one of these parts, and what trains the models that they evaluate."""
    names = [name for name in COMMANDS if not only or any(part in name for part in only)]
    read = [kind for kind in ("masked", "causal") for name in names
            if f"--path {{{kind}}}" in COMMANDS[name]]  # fmt: skip
    saves = [f"--save-dir {{{kind}}}" for kind in read]
    return [
        name for name, line in COMMANDS.items() if name in names or any(s in line for s in saves)
    ]


def main() -> None:
    """Measure; print the record and keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT", help="root of the other one")
    parser.add_argument("--text", type=Path, required=True, help="English text")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (10)")
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="parts of names")
    parser.add_argument("--quick", action="store_true", help="small; nothing is written")
    args = parser.parse_args()
    if not (args.checkout / "fairseq_cli").is_dir():
        parser.error(f"{args.checkout} is no checkout of this project: it has no fairseq_cli")
    file = None if args.quick else RESULTS / "against.json"
    where, rows = machine(), {}
    if args.only and file is not None and file.is_file():
        rows = json.loads(file.read_text(encoding="utf-8"))["result"]["commands"]
    for name, row in measure(args):
        print(f"{name}: {row}", file=sys.stderr, flush=True)
        # a row of its own commit and rounds: `--only` leaves the others as they were
        rows[name] = {**row, "rounds": args.rounds, "commit": (commit() or "")[:12]}
    publish("against", {"there": commit(args.checkout), "commands": rows}, file, where)


if __name__ == "__main__":
    main()

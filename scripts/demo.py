"""The demo: from the documentation on this machine to a model that fills masks, in minutes.

Every stage leaves its result in the output folder and is skipped if it is there; an interrupted
training goes on from its last checkpoint.

Usage: python scripts/demo.py [OUTPUT_FOLDER]
       python scripts/demo.py --plan      only say what will be installed and done, and how long
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = ROOT / "examples" / "demo" / "sentences.txt"
VOCABULARY = 6000
UPDATES = 1000
# step -> seconds on two cores, with packages that are on the machine already
STEPS = {
    "install": 45, "collect text": 11, "learn pieces": 2, "encode": 1, "binarize": 1,
    "train": 247, "evaluate": 5, "fill masks": 2, "report": 2,
}  # fmt: skip
SIZES = """\
  .venv/   torch, numpy, matplotlib and what they need: 50 packages, 1.1 GB with a CPU-only torch
           (192 MB of the download). The torch that PyPI has for Linux brings CUDA, several GB more:
           PIP_EXTRA_INDEX_URL names an index without it, see "Installing elsewhere" in README.md
  demo/    text, data, checkpoints and the report: 50 MB
Nothing else on this machine is changed; deleting both folders undoes it."""
MODEL = (
    "--arch roberta_tiny --head clap --position alibi --mask-embedding zero --scale-embedding "
    "--no-layernorm-embedding --dropout 0 --attention-dropout 0"
).split()  # fmt: skip
TRAINING = (
    "--task masked_lm --criterion masked_lm --sample-break-mode none --tokens-per-sample 64 "
    "--mask-prob 0.25 --batch-size 32 --optimizer adam --adam-betas (0.9,0.98) "
    "--adam-eps 1e-6 --weight-decay 0.01 "
    "--clip-norm 1.0 --lr 0.002 --lr-scheduler polynomial_decay --warmup-updates 100 "
    f"--max-update {UPDATES} --save-interval-updates 200 "
    "--keep-interval-updates 1 --no-epoch-checkpoints --log-interval 25"
).split()


class Progress:
    """Says which step begins, and how long it and all that follow may take.

    Args:
        seconds: what each step is expected to take, in their order.
    """

    def __init__(self, seconds: dict[str, int]) -> None:
        self._seconds, self._names = seconds, list(seconds)
        self._expected = self._taken = 0.0  # of the steps that were done here
        self._name, self._began = "", 0.0

    def begin(self, name: str) -> None:
        """Print what begins; the time that is left is scaled by what was slower or faster."""
        self._end()
        self._name, self._began = name, time.monotonic()
        place = self._names.index(name)
        pace = self._taken / self._expected if self._expected else 1.0
        left = pace * sum(self._seconds[one] for one in self._names[place:])
        print(f"\n{self._at(name)} (about {_clock(left)} to go)", flush=True)

    def skip(self, *names: str) -> None:
        """Say that steps are done already."""
        self._end()
        for name in names:
            print(f"\n{self._at(name)}: done already", flush=True)

    def _end(self) -> None:
        if self._name:
            self._taken += time.monotonic() - self._began
            self._expected += self._seconds[self._name]
            self._name = ""

    def _at(self, name: str) -> str:
        return f"[{self._names.index(name) + 1}/{len(self._names)}] {name}"


def _clock(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def plan(installed: bool) -> str:
    """Return what the demo does, how long, and what it puts on the disk."""
    parts = list(STEPS.items())[installed:]
    steps = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in parts)
    total = _clock(sum(seconds for _, seconds in parts))
    first = "" if installed else f"It installs and writes\n{SIZES}\n\n[1/{len(STEPS)}] install"
    return f"The demo, about {total} minutes on two cores: {steps}.\n{first}".rstrip()


def next_commands(run: Path) -> list[str]:
    """Return what to type next: ask the model, then the three commands for a text of one's own."""
    program = ".venv/bin/"
    text = "Return the <mask> of the array."
    return [
        f"{program}fairseq-generate --path {shlex.quote(str(run))}/checkpoint_best.pt "
        f"--text {shlex.quote(text)}",
        f"{program}fairseq-bpe train --inputs train.txt --vocab-size 8000 --output tokenizer.json",
        "make data TRAIN=train.txt VALID=valid.txt TOKENIZER=tokenizer.json DATA=data-bin",
        "make train DATA=data-bin TOKENIZER=tokenizer.json RUN=runs/mine",
    ]


def command(*words: object) -> None:
    """Show a command of the project and run it; end the demo if it fails."""
    name, *rest = map(str, words)
    print(f"\n$ {shlex.join([name, *rest])}", flush=True)
    call(Path(sys.executable).with_name(name), *rest)


def call(*words: object) -> None:
    """Run a program to its end; end the demo with its status if it fails or is interrupted.

    A Ctrl-C reaches the program, too: it may have a state to save, so it is waited for.
    """
    process = subprocess.Popen(list(map(str, words)))
    status = None
    while status is None:
        with contextlib.suppress(KeyboardInterrupt):
            status = process.wait()
    if status:
        print("\nthe demo ended early; the same command goes on from here", file=sys.stderr)
        raise SystemExit(status if status > 0 else 128 - status)


def prepare(folder: Path, progress: Progress) -> None:
    """Build the corpus, the byte-level BPE and the binary data."""
    corpus, bpe, data = folder / "corpus", folder / "tokenizer.json", folder / "data-bin"
    if (corpus / "train.txt").is_file():
        progress.skip("collect text")
    else:
        progress.begin("collect text")
        print("the documentation of Python, torch and numpy ...", flush=True)
        script = ROOT / "scripts" / "demo_corpus.py"
        call(sys.executable, script, corpus)
    if bpe.is_file():
        progress.skip("learn pieces")
    else:
        progress.begin("learn pieces")
        command(
            "fairseq-bpe", "train", "--inputs", corpus / "train.txt",
            "--vocab-size", VOCABULARY, "--output", bpe,
        )  # fmt: skip
    splits = ("train", "valid", "test")
    encoded = [folder / f"{split}.bpe" for split in splits]
    if all(path.is_file() for path in encoded):
        progress.skip("encode")
    else:
        progress.begin("encode")
        command(
            "fairseq-bpe", "encode", "--bpe", "byte_level", "--tokenizer-file", bpe,
            "--inputs", *(corpus / f"{split}.txt" for split in splits),
            "--outputs", *encoded, "--keep-empty",
        )  # fmt: skip
    if (data / "test.idx").is_file():
        progress.skip("binarize")
    else:
        progress.begin("binarize")
        for stale in data.glob("*"):
            stale.unlink()
        command(
            "fairseq-preprocess", "--only-source", "--trainpref", encoded[0],
            "--validpref", encoded[1], "--testpref", encoded[2],
            "--destdir", data, "--workers", 2,
        )  # fmt: skip


def train(folder: Path, progress: Progress) -> Path:
    """Train (or go on training) and evaluate; return the run folder."""
    run = folder / "run"
    if (run / "done").is_file():
        progress.skip("train")
    else:
        progress.begin("train")
        command(
            "fairseq-train", folder / "data-bin", *TRAINING, *MODEL,
            "--bpe", "byte_level", "--byte-level-tokenizer", folder / "tokenizer.json",
            "--save-dir", run,
        )  # fmt: skip
        (run / "done").touch()
    progress.begin("evaluate")
    command(
        "fairseq-validate", folder / "data-bin", "--path", run / "checkpoint_best.pt",
        "--valid-subset", "valid,test", "--log-format", "simple",
    )  # fmt: skip
    return run


def fill(folder: Path, run: Path) -> list[tuple[str, list[tuple[str, float, str]], list[str]]]:
    """Fill the masks of the demo sentences and print the guesses."""
    from fairseq.models.roberta import RobertaModel

    roberta = RobertaModel.from_pretrained(
        str(run),
        "checkpoint_best.pt",
        str(folder / "data-bin"),
        byte_level_tokenizer=str(folder / "tokenizer.json"),
    )
    results = []
    for line in SENTENCES.read_text(encoding="utf-8").splitlines():
        sentence, _, accepted = line.partition("\t")
        guesses = roberta.fill_mask(sentence, topk=5)
        words = accepted.split()
        hit = any(word.strip() in words for _, _, word in guesses)
        print(f"\n{sentence}    {'accepted' if hit else 'none of ' + ', '.join(words)}")
        print("   " + "   ".join(f"{word.strip()} {share:.2f}" for _, share, word in guesses))
        results.append((sentence, guesses, words))
    return results


def read_arguments(argv: Sequence[str] | None = None) -> Path:
    """Return the output folder that the command line names."""
    about = (__doc__ or "").split("\nUsage")[0]
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="demo", help="for everything (default: demo)")
    parser.add_argument("--plan", action="store_true", help="say what will be done, and stop")
    args = parser.parse_args(argv)
    if args.plan:
        print(plan((ROOT / ".venv" / ".installed").is_file()))
        raise SystemExit(0)
    return Path(args.folder).resolve()


def main(folder: Path) -> None:
    """Run all stages and print the outcome."""
    from fairseq.report import FillMaskExample, write_report

    started = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(STEPS)
    prepare(folder, progress)
    run = train(folder, progress)
    progress.begin("fill masks")
    results = fill(folder, run)
    progress.begin("report")
    examples = [FillMaskExample(text, guesses, tuple(words)) for text, guesses, words in results]
    page = write_report([run], folder / "report", title="fairseq demo", examples=examples)
    hits = sum(
        any(word.strip() in words for _, _, word in guesses) for _, guesses, words in results
    )
    summary = {"accepted": hits, "sentences": len(results), "seconds": round(time.time() - started)}
    (folder / "summary.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(f"\n{hits} of {len(results)} sentences have an accepted word among the first five.")
    print(f"Report: {page}")
    ask, *own = next_commands(run)
    print(f"\nAsk it something else:\n  {ask}")
    print("The same on your own text, train.txt and valid.txt, one sentence or paragraph a line:")
    print("\n".join(f"  {line}" for line in own))


if __name__ == "__main__":
    try:
        main(read_arguments())
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None

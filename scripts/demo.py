"""The demo: from the documentation on this machine to a model that fills masks, in minutes.

Every stage leaves its result in the output folder and is skipped if it is there; an interrupted
training goes on from its last checkpoint.

Usage: python scripts/demo.py [OUTPUT_FOLDER]
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


def prepare(folder: Path) -> None:
    """Build the corpus, the byte-level BPE and the binary data."""
    corpus, bpe, data = folder / "corpus", folder / "tokenizer.json", folder / "data-bin"
    if not (corpus / "train.txt").is_file():
        print("\ncollecting the documentation of Python, torch and numpy ...", flush=True)
        script = ROOT / "scripts" / "demo_corpus.py"
        call(sys.executable, script, corpus)
    if not bpe.is_file():
        command(
            "fairseq-bpe", "train", "--inputs", corpus / "train.txt",
            "--vocab-size", VOCABULARY, "--output", bpe,
        )  # fmt: skip
    splits = ("train", "valid", "test")
    encoded = [folder / f"{split}.bpe" for split in splits]
    if not all(path.is_file() for path in encoded):
        command(
            "fairseq-bpe", "encode", "--bpe", "byte_level", "--tokenizer-file", bpe,
            "--inputs", *(corpus / f"{split}.txt" for split in splits),
            "--outputs", *encoded, "--keep-empty",
        )  # fmt: skip
    if not (data / "test.idx").is_file():
        for stale in data.glob("*"):
            stale.unlink()
        command(
            "fairseq-preprocess", "--only-source", "--trainpref", encoded[0],
            "--validpref", encoded[1], "--testpref", encoded[2],
            "--destdir", data, "--workers", 2,
        )  # fmt: skip


def train(folder: Path) -> Path:
    """Train (or go on training) and evaluate; return the run folder."""
    run = folder / "run"
    if not (run / "done").is_file():
        command(
            "fairseq-train", folder / "data-bin", *TRAINING, *MODEL,
            "--bpe", "byte_level", "--byte-level-tokenizer", folder / "tokenizer.json",
            "--save-dir", run,
        )  # fmt: skip
        (run / "done").touch()
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
    return Path(parser.parse_args(argv).folder).resolve()


def main(folder: Path) -> None:
    """Run all stages and print the outcome."""
    from fairseq.report import FillMaskExample, write_report

    started = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    run = train(folder)
    results = fill(folder, run)
    examples = [FillMaskExample(text, guesses, tuple(words)) for text, guesses, words in results]
    page = write_report([run], folder / "report", title="fairseq demo", examples=examples)
    hits = sum(
        any(word.strip() in words for _, _, word in guesses) for _, guesses, words in results
    )
    summary = {"accepted": hits, "sentences": len(results), "seconds": round(time.time() - started)}
    (folder / "summary.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(f"\n{hits} of {len(results)} sentences have an accepted word among the first five.")
    print(f"Report: {page}")
    print(
        "\nThe same on your own text (train.txt and valid.txt, one sentence or paragraph a line):\n"
        "  .venv/bin/fairseq-bpe train --inputs train.txt --vocab-size 8000 "
        "--output tokenizer.json\n"
        "  make data TRAIN=train.txt VALID=valid.txt TOKENIZER=tokenizer.json DATA=data-bin\n"
        "  make train DATA=data-bin TOKENIZER=tokenizer.json RUN=runs/mine"
    )


if __name__ == "__main__":
    try:
        main(read_arguments())
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None

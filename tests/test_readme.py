"""The README's commands for one's own text run, and the Makefile's are the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import README, ROOT, command_lines, own_text, run_command, section, small_text

from fairseq.criterions.masked_lm import MaskedLmLoss


def test_the_five_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt", lines=120)
    text = section(README, "Five commands")
    install, commands = re.findall(r"```bash\n(.*?)```", text, re.S)
    assert [words[0] for words in command_lines(install)] == ["python3", ".", "pip"]
    assert MaskedLmLoss.loss_unit in text  # as the log and the report say it
    typed = command_lines(commands)
    assert len(typed) == 5
    for words in typed:
        run_command(words)
    assert capsys.readouterr().out.count(" input.") > 4  # the sentence with each of the best words


def test_the_readme_from_text_to_filled_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt", lines=120)
    pieces, _, training, use, *_ = own_text()
    for words in [*pieces, *training, *use]:
        run_command(words)
    (example,) = re.findall(r"```python\n(.*?)```", section(README, "Your own text"), re.S)
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(example, names)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert names["features"].shape[0] == 1
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_readme_with_words_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq.models.roberta import RobertaModel

    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, *(f"wiki.{split}.tokens" for split in ("train", "valid", "test")))
    _, words, training, use, *_ = own_text()
    (train,) = training
    start = train.index("--bpe")
    assert train[start + 2] == "--byte-level-tokenizer"
    for command in [*words, train[:start] + train[start + 4 :], use[1]]:
        run_command(command)
    roberta = RobertaModel.from_pretrained("runs/mine", "checkpoint_best.pt", "data-bin")
    assert len(roberta.fill_mask("the <mask> of a list", topk=3)) == 3


def test_causal_language_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt", lines=120)
    part = section(README, "Causal language models, with a head or without")
    first, headless = re.findall(r"```bash\n(.*?)```", part, re.S)
    for words in [*own_text()[0], *command_lines(first)]:
        run_command(words)
    capsys.readouterr()
    (example,) = re.findall(r"```python\n(.*?)```", part, re.S)
    exec(example, {})
    said = capsys.readouterr().out.splitlines()
    assert len(said) > 1 and said[-2] and said[-1].startswith("tensor(")
    for words in command_lines(headless):
        run_command(words)
    assert "Perplexity" in capsys.readouterr().out
    assert (tmp_path / "runs/headless-tuned/checkpoint_last.pt").is_file()


def made(target: str, *settings: str) -> list[list[str]]:
    """Return the commands of ours that a target of the Makefile would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--no-print-directory", "-n", target, "BIN=.", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = command_lines(done.stdout)
    return [[words[0].removeprefix("./"), *words[1:]] for words in lines if "fairseq-" in words[0]]


def test_make_data_and_make_train_are_the_readmes_commands() -> None:
    pieces, words, training, use, *_, short = own_text()
    targets = [line[1:] for line in short if line[0] == "make"]
    assert [target[0] for target in targets] == ["data", "train"]
    encode, binarize = made(*targets[0])
    assert encode[:5] == [*pieces[2][:4], "--tokenizer-file"]
    assert encode[6:] == [
        *("--keep-empty", "--inputs", "train.txt", "valid.txt"),
        *("--outputs", "train.txt.bpe", "valid.txt.bpe"),
    ]
    expected = [word.replace(".bpe", ".txt.bpe") for word in pieces[3]]
    assert binarize[:-1] == expected[:-1] and binarize[-1] in expected[-1]
    (plain,) = made(*targets[0], "TOKENIZER=", "TRAIN=wiki.train.tokens", "VALID=wiki.valid.tokens")
    assert plain == [word for word in words[0] if "test" not in word]
    train, validate, _ = made(*targets[1])
    tokenizer = {"data-bin/tokenizer.json": "tokenizer.json"}
    assert train == [tokenizer.get(word, word) for word in training[0]]
    assert validate == use[1]


def test_the_readme_trains_the_demos_model() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import demo
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    (train,) = own_text()[2]
    spelled = " ".join(train).replace("(0.9, 0.98)", "(0.9,0.98)")
    assert " ".join(demo.MODEL) in spelled
    # longer blocks, fewer of them; the break mode is the default
    unlike = {"--tokens-per-sample", "--batch-size", "--sample-break-mode", "--max-update"}
    flags = re.findall(r"(--[\w-]+) (\S+)", " ".join(demo.TRAINING))
    assert [
        f"{name} {value}"
        for name, value in flags
        if name not in unlike and f"{name} {value}" not in spelled
    ] == []

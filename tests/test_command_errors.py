"""What goes wrong outside of the code ends a command with one line and leaves nothing half-made."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.tiny_roberta import tiny
from safetensors.torch import load_file
from tiny_run import SMALL, config, make_corpus, train

from fairseq.checkpoint.layout import check_layout
from fairseq.errors import CheckpointError, ConfigError
from fairseq.export.model_files import read_weights, sound_folder
from fairseq_cli import average, bpe, export, preprocess, report, validate
from fairseq_cli import train as train_command
from fairseq_cli.entry import run_command

Main = Callable[[Sequence[str] | None], Any]


def fails(main: Main, argv: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; return its one line of error."""
    with pytest.raises(SystemExit) as ended:
        run_command(lambda _: main([str(word) for word in argv]))
    assert ended.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for two updates; return the run folder."""
    folder = tmp_path_factory.mktemp("trained")
    make_corpus(folder / "data")
    train(config(folder / "data", folder / "run", **{**SMALL, "max_update": 2}))
    return folder / "run"


ERRORS: list[tuple[Exception, str]] = [
    (OSError(errno.ENOSPC, "No space left on device", "x.pt"), "x.pt: No space left .* make room"),
    (FileExistsError(errno.EEXIST, "File exists", "out"), "out: .* file where a folder is needed"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "y"), "y: .* folder where a file is needed"),
    (PermissionError(errno.EACCES, "Permission denied", "z"), "z: .* check its permissions"),
    (OSError("plain"), "plain"),
    (MemoryError(), "not enough memory .none was left"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "not enough memory"),
]


@pytest.mark.parametrize(("error", "expected"), ERRORS)
def test_one_line(
    error: Exception,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main(argv: Sequence[str] | None) -> None:
        raise error

    assert re.search(expected, fails(main, [], capsys))
    monkeypatch.setenv("FAIRSEQ_DEBUG", "1")
    with pytest.raises(type(error)):
        run_command(main)


def test_faults_of_the_code_keep_their_traceback() -> None:
    def main(argv: Sequence[str] | None) -> None:
        raise RuntimeError("a shape that does not fit")

    with pytest.raises(RuntimeError, match="does not fit"):
        run_command(main)


def commands(run: Path, text: Path, out: Path) -> dict[str, tuple[Main, list[object]]]:
    """Return every command that writes a file, with arguments that are right."""
    tokenizer, last = text.with_name("tokenizer.json"), run / "checkpoint_last.pt"
    return {
        "bpe train": (bpe.main, ["train", "--inputs", text, "--vocab-size", 300, "--output", out]),
        "bpe encode": (
            bpe.main,
            ["encode", "--bpe", "byte_level", "--tokenizer-file", tokenizer, "--workers", 1]
            + ["--inputs", text, "--outputs", out],
        ),
        "preprocess": (
            preprocess.run,
            ["--only-source", "--trainpref", text, "--destdir", out],
        ),
        "average": (average.main, ["--inputs", last, "--output", out]),
        "export": (export.main, [last, "--to", "safetensors", "--out", out]),
        "report": (report.main, [run, "--output", out]),
    }


NAMES = ["bpe train", "bpe encode", "preprocess", "average", "export", "report"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text("the cat\nthe dog\n" * 9)
    words = ["train", "--inputs", tmp_path / "text", "--vocab-size", 300, "--output"]
    assert bpe.main([str(word) for word in [*words, tmp_path / "tokenizer.json"]]) == 0
    return tmp_path / "text"


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(
    name: str,
    run: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    main, argv = commands(run, text, tmp_path / "out")[name]
    message = fails(main, argv, capsys)
    assert "No space left on device" in message and str(tmp_path / "out") in message
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    pictures = [file for file in left if file.endswith(".png")]
    assert {*left} - {*pictures} <= {"text", "tokenizer.json", "preprocess.log"}


def test_a_disk_that_fills_up_with_scratch_files(
    run: Path, text: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*unused: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    main, argv = commands(run, text, tmp_path / "out")["preprocess"]
    assert f"{tmp_path / 'out'}: No space left on device" in fails(main, argv, capsys)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preprocess.log"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_made(
    name: str, run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    main, argv = commands(run, text, tmp_path / "file" / "out")[name]
    assert "file" in fails(main, argv, capsys)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_where_a_file_is_needed(text: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    words = ["train", "--inputs", text, "--vocab-size", 300, "--output", tmp_path / "out"]
    message = fails(bpe.main, words, capsys)
    assert message.startswith(f"error: {tmp_path / 'out'}: Is a directory; there is a folder")


def test_the_device_is_what_this_command_names(
    run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint was trained with ``--cpu``, which contradicts no flag of another command."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [run.parent / "data", "--path", run / "checkpoint_last.pt", "--device", "cuda"]
    assert "--device cuda: no GPU is usable here" in fails(validate.run, words, capsys)


def test_a_run_that_kept_none_of_the_best(run: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--inputs", run, "--num-best-checkpoints", 2, "--output", tmp_path / "mean.pt"]
    assert "--keep-best-checkpoints" in fails(average.main, words, capsys)


def test_names_that_are_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fairseq-train", "data", "--save-dir", "caf\udce9"])
    assert r"b'caf\xe9' is not UTF-8: rename it" in fails(train_command.run, [], capsys)
    monkeypatch.setattr(sys, "argv", ["fairseq-report", "caf\u00e9"])
    assert "caf\u00e9" in fails(report.main, ["caf\u00e9"], capsys)


def test_missing_output_folders_are_made(run: Path, tmp_path: Path) -> None:
    last = str(run / "checkpoint_last.pt")
    weights = tmp_path / "new" / "folder" / "w.safetensors"
    assert export.main([last, "--to", "safetensors", "--out", str(weights)]) == 0
    assert load_file(weights) and [*weights.parent.iterdir()] == [weights]
    assert average.main(["--inputs", last, "--output", str(tmp_path / "b/mean.pt")]) == 0
    assert (tmp_path / "b/mean.pt").is_file()


def test_averaging_a_folder_needs_a_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(average.main, ["--inputs", run, "--output", "x.pt"], capsys)
    assert "--num-epoch-checkpoints" in said
    argv = ["--inputs", run / "checkpoint_last.pt", "--output", "x.pt"]
    said = fails(average.main, [*argv, "--num-epoch-checkpoints", 1], capsys)
    assert "is not a run folder" in said


GARBAGE: dict[str, Any] = {
    "a list": [1, 2],
    "no model": {"optimizer_history": []},
    "text for a tensor": {"model": {"a": "b"}},
    "numbers as names": {"model": {1: torch.zeros(1)}},
    "history of numbers": {"model": {}, "optimizer_history": [3]},
    "history is text": {"model": {}, "optimizer_history": "x"},
    "extra is a list": {"model": {}, "extra_state": [1]},
    "epoch is text": {"model": {}, "extra_state": {"epoch": "x"}},
    "position is a number": {"model": {}, "extra_state": {"train_iterator": 3}},
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_in_checkpoints(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    torch.save(GARBAGE[name], path)
    with pytest.raises(CheckpointError):
        check_layout(GARBAGE[name])
    fails(average.main, ["--inputs", path, "--output", tmp_path / "out.pt"], capsys)
    fails(validate.run, [tmp_path, "--path", path, "--cpu"], capsys)
    fails(export.main, [path, "--to", "safetensors", "--out", tmp_path / "out"], capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


BROKEN: dict[str, dict[str, bytes]] = {
    "cut weights": {"model.safetensors": b"\x20\x00\x00\x00\x00\x00\x00\x00{"},
    "an index without files": {"model.safetensors.index.json": b"{}"},
    "an index that is no JSON": {"model.safetensors.index.json": b"{"},
    "an index of a list": {"model.safetensors.index.json": b"[1]"},
    "empty weights": {"pytorch_model.bin": b""},
    "no weights": {},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_of_hugging_face(name: str, tmp_path: Path) -> None:
    for file, content in BROKEN[name].items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught, sound_folder(tmp_path):
        read_weights(tmp_path)
    assert "fairseq.errors" in type(caught.value).__module__


@pytest.mark.parametrize("name", ["a.b", "", "."])
def test_names_of_heads(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        tiny().register_classification_head(name, num_classes=2)


def test_standard_output_on_a_full_disk(text: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    words = ["encode", "--bpe", "byte_level", "--inputs", str(text)]
    words += ["--tokenizer-file", str(text.with_name("tokenizer.json"))]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "fairseq_cli.bpe",
                *words,
            ],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: No space left on device")

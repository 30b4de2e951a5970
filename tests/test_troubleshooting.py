"""docs/troubleshooting.md quotes what the commands say: each cause is executed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from fairseq.training.run_folder import RunFolder
from tests import tiny_run
from tests.documents import ROOT, small_text, text_of

PAGE = ROOT / "docs" / "troubleshooting.md"
FLAGS = {**tiny_run.SMALL, "max_update": 3, "total_num_update": 3}
Say = Callable[..., str]


def quoted() -> dict[str, str]:
    """Return the message of each section."""
    return dict(re.findall(r"^## (.*?)\n\n```text\n(.*?)```", text_of(PAGE), re.S | re.M))


@pytest.fixture
def say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Say:
    """Run a command in a folder with data and a finished run; return all that it says."""
    monkeypatch.chdir(tmp_path)
    tiny_run.make_corpus(tmp_path / "data-bin")
    tiny_run.train(tiny_run.config(Path("data-bin"), Path("runs/mine"), max_update=3))

    def run(command: str, *words: str) -> str:
        capsys.readouterr()
        caplog.clear()
        caplog.set_level("INFO")
        monkeypatch.setattr(sys, "argv", [f"fairseq-{command}", *words])
        with contextlib.suppress(SystemExit):
            import_module(f"fairseq_cli.{command}").cli_main()
        return capsys.readouterr().err + "\n" + caplog.text

    return run


def words(**more: object) -> list[str]:
    """Return the command line of the finished run, with changes."""
    line = ["data-bin", "--save-dir", "runs/mine", "--max-update", "3"]
    for name, value in {**FLAGS, **more}.items():
        value = value[0] if isinstance(value, list) else value
        line += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return line


def lacking(say: Say) -> str:
    return say("train", "data-bin")


def unknown_flag(say: Say) -> str:
    return say("train", *words(), "--encoder-layer", "2")


def no_data(say: Say) -> str:
    return say("train", "data-bim", *words()[1:])


def other_model(say: Say) -> str:
    return say("train", *words(encoder_layers=3))


def other_dictionary(say: Say) -> str:
    small_text(Path(), "other.txt")
    texts = "--trainpref other.txt --validpref other.txt --destdir other-bin"
    say("preprocess", "--only-source", *texts.split())
    return say("validate", "other-bin", "--path", "runs/mine/checkpoint_best.pt", "--cpu")


def _hold(folder: str, held: multiprocessing.synchronize.Event, done: object) -> None:
    with RunFolder(folder):
        held.set()
        done.wait(60)  # type: ignore[attr-defined]


def another_run(say: Say) -> str:
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=("runs/mine", held, done))
    other.start()
    assert held.wait(60)
    try:
        return say("train", *words())
    finally:
        done.set()
        other.join()


def complete(say: Say) -> str:
    return say("train", *words())


def not_finite(say: Say) -> str:
    more = {"lr": [1e30], "max_update": 30, "warmup_updates": 0, "save_dir": "runs/nan"}
    return say("train", *words(**more))


def no_memory(say: Say) -> str:
    return say("train", *words(encoder_ffn_embed_dim=10**12, save_dir="runs/large"))


def the_original(say: Say) -> str:
    info = Path("fairseq-0.12.2.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fairseq\nVersion: 0.12.2\n")
    code = "import sys; sys.path.insert(0, '.'); from fairseq_cli import train; train.cli_main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


CAUSES = [
    lacking,
    unknown_flag,
    no_data,
    other_model,
    other_dictionary,
    another_run,
    complete,
    not_finite,
    no_memory,
    the_original,
]


def test_there_are_ten() -> None:
    assert len(quoted()) == len(CAUSES) == 10


@pytest.mark.parametrize("number", range(len(CAUSES)), ids=[cause.__name__ for cause in CAUSES])
def test_the_message_is_what_the_cause_makes_the_command_say(say: Say, number: int) -> None:
    _, message = list(quoted().items())[number]
    said = CAUSES[number](say)
    for line in message.strip().splitlines():
        pattern = ".*".join(map(re.escape, line.split("...")))
        assert re.search(pattern, said), (line, json.dumps(said[-2000:]))
    assert "Traceback" not in said

"""The demo's own words: its help, and commands that can be pasted."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts/demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.read_arguments(["--help"])
    assert ended.value.code == 0 and "folder" in capsys.readouterr().out
    assert demo.read_arguments([]) == Path("demo").resolve()


def test_commands_can_be_pasted(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    monkeypatch.setattr(demo, "call", lambda *words: ran.append(list(map(str, words))))
    demo.command("fairseq-train", Path("my data"), "--adam-betas", "(0.9,0.98)")
    shown = capsys.readouterr().out.strip().removeprefix("$ ")
    assert shlex.split(shown) == ["fairseq-train", *ran[0][1:]]


def test_the_plan_says_what_is_installed(demo: ModuleType, tmp_path: Path) -> None:
    """With an interpreter that has nothing installed, as make calls it."""
    command = [sys.executable, "-I", "-S", str(ROOT / "scripts/demo.py"), "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    total = sum(demo.STEPS.values())
    assert f"about {total // 60}:{total % 60:02d} minutes" in demo.plan(installed=False)
    assert "1.1 GB" in demo.plan(installed=False) and "[1/9] install" in demo.plan(installed=False)
    assert "GB" not in demo.plan(installed=True) and "train 4:07" in demo.plan(installed=True)


def test_progress_follows_the_pace(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(demo.time, "monotonic", lambda: now[0])
    progress = demo.Progress({"a": 10, "b": 20, "c": 70})
    progress.begin("a")
    now[0] = 20.0  # twice as slow as expected
    progress.skip("b")  # tells nothing about the pace
    now[0] = 100.0
    progress.begin("c")
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [
        "[1/3] a (about 1:40 to go)",
        "[2/3] b: done already",
        "[3/3] c (about 2:20 to go)",
    ]


def test_the_next_commands_are_commands(demo: ModuleType, tmp_path: Path) -> None:
    from fairseq.config import options
    from fairseq_cli import bpe, generate

    ask, learn, *makes = map(shlex.split, demo.next_commands(tmp_path / "my run"))
    parser = generate.make_parser()
    options.complete_parser(parser, ask[1:], {"task": "language_modeling"})
    found = parser.parse_args(ask[1:])
    assert found.path == f"{tmp_path}/my run/checkpoint_best.pt" and "<mask>" in found.text[0]
    assert bpe.get_parser().parse_args(learn[1:]).vocab_size == 8000
    makefile = (ROOT / "Makefile").read_text()
    for command in makes:
        assert f"\n{command[1]}: " in makefile
        assert all(f"$({word.split('=')[0]})" in makefile for word in command[2:])

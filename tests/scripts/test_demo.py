"""The demo's own words: its help, and commands that can be pasted."""

from __future__ import annotations

import importlib.util
import shlex
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

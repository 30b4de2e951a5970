"""Ctrl-C in the demo: what it runs saves its state, and no traceback is printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def interrupt(program: str, folder: Path) -> tuple[int, str]:
    """Run Python code in a group of its own, as a terminal does; interrupt the group once."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"},
    )
    deadline = time.monotonic() + 30
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def test_the_demo_waits_for_what_it_runs(tmp_path: Path) -> None:
    child = (
        "import signal,sys,time,pathlib\\n"
        "def save(*unused): time.sleep(1); pathlib.Path('saved').touch(); sys.exit(130)\\n"
        "signal.signal(signal.SIGINT, save); pathlib.Path('ready').touch(); time.sleep(30)"
    )
    status, errors = interrupt(
        f'import demo, sys; demo.call(sys.executable, "-c", "{child}")', tmp_path
    )
    assert status == 130
    assert (tmp_path / "saved").exists()
    assert "goes on from here" in errors and "Traceback" not in errors


def test_the_corpus_is_interrupted_quietly(tmp_path: Path) -> None:
    program = """
        import time
        import demo_corpus
        from pathlib import Path

        def slow(source):
            Path("ready").touch()
            time.sleep(0.1)
            return []

        demo_corpus.documents_of = slow
        from fairseq_cli.entry import run_command
        run_command(lambda argv: demo_corpus.main(["out"]))
    """
    status, errors = interrupt(program, tmp_path)
    assert status == 130
    assert "Traceback" not in errors

"""Fixtures shared by all tests: where the reference data lives, and a single-threaded torch."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# a shell starts what runs in its background deaf to Ctrl-C, and children inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def shared_folder() -> Path:
    """Return the folder of reference data: ``$FAIRSEQ_TEST_DATA``, else ``../shared``."""
    return Path(os.environ.get("FAIRSEQ_TEST_DATA", ROOT.parent / "shared")).resolve()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the originals' outputs; tests that need it are skipped where it is absent."""
    folder = shared_folder()
    if not (folder / "compat").is_dir():
        pytest.skip(f"reference data not found in {folder}; set FAIRSEQ_TEST_DATA to its folder")
    return folder


@pytest.fixture(autouse=True)
def no_handler_left_behind() -> Iterator[None]:
    """Fail a test that leaves a handler on a logger: later tests would see its lines twice."""
    before = named_handlers()
    yield
    left = {name: new for name, new in named_handlers().items() if new - before.get(name, set())}
    for name in left:
        logging.getLogger(name).handlers[:] = []
    assert not left, f"handlers left on loggers: {left}"


def named_handlers() -> dict[str, set[logging.Handler]]:
    """Return the handlers of our loggers: those of modules, and of lines of training."""
    return {
        name: set(logger.handlers)
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.handlers
        # torch and others hand theirs on when they are imported
        if name.split(".")[0].split("_")[0] in ("fairseq", "train", "valid")
    }


FIGURES: dict[str, Any] = {}


@pytest.fixture
def figure() -> Callable[[str, Any], None]:
    """Give a function that notes a figure of a test: printed, and kept with ``--figures``."""

    def note(name: str, value: Any) -> None:
        FIGURES[name] = value
        print(f"{name}: {value}")

    return note


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--figures FILE``."""
    parser.addoption("--figures", help="write the figures that tests note, as a benchmark record")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the figures, with the machine and the result of the tests."""
    path = session.config.getoption("--figures")
    if path:
        from benchmarks.record import machine

        tests = {"failed": session.testsfailed, "run": session.testscollected}
        record = {
            "benchmark": "faults",
            "command": shlex.join(["pytest", *session.config.invocation_params.args]),
            "machine": machine(),
            "result": {"tests": tests, **FIGURES},
        }
        Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

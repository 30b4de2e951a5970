"""Fixtures shared by all tests: where the reference data lives, and a single-threaded torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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

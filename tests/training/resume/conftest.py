"""What the tests of cut runs share: a corpus, and the outcomes of runs that were not cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Recorder, config, digest, make_corpus, train

from tests.training.resume.cut_runs import LAST, Outcome


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Return the outcome of an uninterrupted run with some flags; each is run once."""
    known: dict[str, Outcome] = {}

    def outcome(**flags: Any) -> Outcome:
        key = repr(sorted(flags.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("reference")
            with pytest.MonkeyPatch.context() as patch:
                recorder = Recorder(patch)
                train(config(data, folder, **flags))
            known[key] = Outcome(recorder.losses, digest(folder / LAST))
        return known[key]

    return outcome

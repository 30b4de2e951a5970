"""``--profile``: a trace and a table of updates 10 to 20, and of no other."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from tiny_run import config, content, make_corpus, train

from fairseq.training.profiling import UpdateProfiler


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("data") / "bin")


def test_eleven_updates_are_recorded(corpus, tmp_path):
    train(config(corpus, tmp_path, max_update=24, total_num_update=24, profile=True))
    trace = json.loads((tmp_path / "profile.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{number}" for number in range(9, 20)}  # counted from 0
    assert any("addmm" in name for name in names)
    assert "aten::addmm" in (tmp_path / "profile.txt").read_text()
    assert not list(tmp_path.glob(".profile*"))


def test_the_weights_are_those_without(corpus, tmp_path):
    models = []
    for name in ("a", "b"):
        train(config(corpus, tmp_path / name, profile=name == "a", max_update=12))
        models.append(content(tmp_path / name / "checkpoint_last.pt")["model"])
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])
    assert (tmp_path / "a/profile.txt").is_file()
    assert not (tmp_path / "b/profile.txt").exists()


def test_a_run_that_ends_before(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), UpdateProfiler(str(tmp_path), True) as profiler:
        for _ in range(5):
            profiler.step()
    assert "ended before update 10" in caplog.text and not list(tmp_path.iterdir())


def test_a_folder_that_is_gone(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), UpdateProfiler(str(tmp_path / "no"), True) as profiler:
        for _ in range(25):
            profiler.step()
    assert "cannot be written" in caplog.text

"""Alive, finished, stopped: what a run's lock and last event say; the list of runs; --watch."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from test_report import Page, make_run
from tiny_run import config, fork, make_corpus, run, train, wait

from fairseq.errors import MissingFileError
from fairseq.logging.sinks import read_jsonl
from fairseq.report import load_runs, watch, write_report
from fairseq.report.state import _FLOCK, State, state_of
from fairseq.training.run_folder import RunFolder
from fairseq.training.trainer import Trainer
from fairseq_cli.report import main


def note(folder: Path, event: str, **facts: object) -> None:
    with open(folder / "events.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json.dumps({"event": event, **facts}) + "\n")


def held_elsewhere(folder: Path, seconds: float = 60.0) -> int:
    """Return a process that holds the run folder, once it does."""
    ready = folder / "ready"

    def hold() -> None:
        with RunFolder(str(folder)):
            ready.touch()
            time.sleep(seconds)

    pid = fork(hold)
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return pid


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ((), ""),
        ((("start", None), ("stop", "num_updates: 9 >= max_update: 9")), "finished"),
        ((("start", None), ("stop", "max_epoch: 2")), "finished"),
        ((("start", None), ("stop", "SIGTERM")), "stopped"),
        ((("start", None), ("stop", "error: DataError: x")), "stopped"),
        ((("start", None), ("stop", "max_epoch: 2"), ("start", None)), "stopped"),
        ((("skipped", "spike"),), ""),
    ],
)
def test_the_last_event_tells_how_a_run_ended(events, kind, tmp_path):
    for event, reason in events:
        note(tmp_path, event, reason=reason)
    found = read_jsonl(tmp_path / "events.jsonl") if events else []
    assert state_of(tmp_path, found).kind == kind


def test_a_held_lock_is_a_run_that_is_alive(tmp_path):
    folder = make_run(tmp_path / "run")
    note(folder, "start")
    pid = held_elsewhere(folder)
    try:
        assert load_runs([folder])[0].state == State("alive")
        page = write_report([folder], tmp_path / "out", refresh=7, pictures=False).read_text()
        assert '"refresh":7' in page and '<span class="state alive"' in page
        assert "30 of 30 updates" in page
    finally:
        os.kill(pid, signal.SIGKILL)
    wait(pid)
    state = load_runs([folder])[0].state
    assert state.kind == "stopped" and state.reason.startswith("no reason left")
    page = write_report([folder], tmp_path / "out", refresh=7, pictures=False).read_text()
    assert '"refresh":null' in page


def test_looking_leaves_the_lock_to_its_owner(tmp_path):
    """Closing a file gives up all locks that the process has on it, however often it was opened."""
    folder = make_run(tmp_path / "run")
    with RunFolder(str(folder)):
        assert load_runs([folder])[0].state.kind == "alive"

        def another() -> None:
            RunFolder(str(folder)).__enter__()

        assert run(another) != 0
    assert load_runs([folder])[0].state.kind == ""
    assert run(another) == 0


def test_where_the_system_tells_nothing_of_locks_recent_records_do(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    (folder / ".lock").touch()
    note(folder, "start")
    monkeypatch.setattr("sys.platform", "plan9")
    assert "plan9" not in _FLOCK
    assert load_runs([folder])[0].state.kind == "alive"
    hour_ago = time.time() - 3600
    os.utime(folder / "metrics.jsonl", (hour_ago, hour_ago))
    assert load_runs([folder])[0].state.kind == "stopped"


def test_real_runs_say_how_they_ended(tmp_path):
    data = make_corpus(tmp_path / "data")

    def ended(name: str, **flags: object) -> State:
        train(config(data, tmp_path / name, **flags))
        return load_runs([tmp_path / name])[0].state

    assert ended("updates", max_update=2).reason == "num_updates: 2 >= max_update: 2"
    assert ended("epochs", max_update=0, max_epoch=1) == State("finished", "max_epoch: 1")
    assert ended("epochs", max_update=0, max_epoch=1) == State("finished", "max_epoch: 1")
    rate = {"lr_scheduler": "fixed", "stop_min_lr": 1.0, "warmup_updates": 0}
    assert ended("rate", max_update=0, **rate).reason.endswith("--stop-min-lr")
    seen = []

    def fails(trainer: Trainer, *args: object, **more: object) -> None:
        seen.append(load_runs([tmp_path / "fails"])[0].state.kind if seen else None)
        if len(seen) > 1:
            raise ZeroDivisionError("a bug")
        return original(trainer, *args, **more)

    original = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", fails)
        with pytest.raises(ZeroDivisionError):
            train(config(data, tmp_path / "fails"))
    assert seen[1] == "alive"
    expected = State("stopped", "error: ZeroDivisionError: a bug")
    assert load_runs([tmp_path / "fails"])[0].state == expected


# -- the list --------------------------------------------------------------------------------------


def test_the_list_has_a_line_for_each_run(tmp_path, capsys):
    first = make_run(tmp_path / "runs/first", counted=True)
    note(first, "stop", reason="SIGTERM")
    other = make_run(tmp_path / "runs/a\x1b[31m\nb", losses=(4.0,))
    names = "criterion:\n  _name: distillation\ntask:\n  _name: language_modeling\n"
    (other / "config.yaml").write_text(names)
    empty = tmp_path / "runs/empty"
    empty.mkdir()
    (empty / "metrics.jsonl").touch()
    (tmp_path / "runs/logs").mkdir()
    folders = [str(path) for path in (first, other, empty, tmp_path / "runs/logs")]
    assert main([*folders, "--list"]) == 0
    out = capsys.readouterr()
    lines = [re.split(r"\s{2,}", line) for line in out.out.splitlines()]
    assert lines[0] == [
        "run",
        "updates",
        "tokens",
        "time",
        "valid loss (bits)",
        "of",
        "at update",
        "state",
    ]
    assert lines[1] == [
        "first",
        "30",
        "1,200",
        "0:00:15",
        "5.5000",
        "masked_lm",
        "20",
        "stopped: SIGTERM",
    ]
    objective = "distillation/language_modeling"
    assert lines[2] == [r"a\x1b[31m\nb", "10", "-", "0:00:05", "4.0000", objective, "10", "-"]
    assert lines[3] == ["empty", *["-"] * 7] and len(lines) == 4
    assert out.err == f"no runs: {tmp_path / 'runs/logs'}\n"
    assert not Path("report").exists()
    assert main([str(first), "--list", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"][0]["state"] == "stopped" and "report" not in printed
    with pytest.raises(MissingFileError, match="no metrics.jsonl in .*logs"):
        main([folders[-1], "--list"])


def test_tokens_are_counted_where_no_record_has_them(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    row = {"tag": "train", "epoch": 1, "update": 4, "wpb": 250.0, "loss": 3.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    main([str(folder), "--list"])
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["run", "4", "1,000"]


# -- following -------------------------------------------------------------------------------------


def test_watching_writes_a_page_that_follows_and_one_that_does_not(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    pid, told, pages = held_elsewhere(folder), [], []
    path = tmp_path / "out/report.html"

    def sleep(seconds: float) -> None:
        pages.append(path.read_text() if path.exists() else None)
        if len(pages) == 1:
            make_run(folder)
            note(folder, "start")
        if len(pages) == 2:
            os.utime(path, (0, 0))
        if len(pages) == 3:
            assert path.stat().st_mtime == 0  # nothing new, nothing written
            os.kill(pid, signal.SIGKILL)
            wait(pid)

    monkeypatch.setattr(watch, "sleep", sleep)
    assert watch.watch([folder], tmp_path / "out", 5, told.append) == path
    assert pages[0] is None and '"refresh":5' in pages[1] and len(pages) == 3
    assert '"refresh":null' in path.read_text() and "stopped" in Page(path.read_text()).text
    assert told == ["waiting for the first record", f"{path}: open it; it follows the run. "
                    "Ctrl-C ends this"]  # fmt: skip
    assert (tmp_path / "out/loss.png").exists()


def test_ctrl_c_leaves_a_page_that_does_not_reload(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    pid = held_elsewhere(folder)

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "sleep", sleep)
    path = watch.watch([folder], tmp_path / "out", 5, lambda line: None)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    assert "alive" in Page(path.read_text()).text and '"refresh":null' in path.read_text()


def test_watch_is_checked(tmp_path, capsys):
    for wrong in (["--watch", "0"], ["--watch", "soon"], ["--watch", "--list"]):
        with pytest.raises(SystemExit):
            main([str(tmp_path), *wrong])
    assert "whole number of seconds" in capsys.readouterr().err
    with pytest.raises(MissingFileError, match="run folder not found"):
        main([str(tmp_path / "nowhere"), "--watch"])

"""Checkpoint files: whole or not there, whatever fails and whenever the process dies."""

from __future__ import annotations

import builtins
import errno
import json
import logging
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from tiny_run import faults, run

from fairseq.checkpoint import (
    checkpoint_to_start_from,
    files,
    how_it_goes_on,
    is_better,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    verify_checkpoint_directory,
)
from fairseq.checkpoint.files import (
    checkpoint_paths,
    link_checkpoint,
    load_or_newest_good,
    remove_leftovers,
    write_checkpoint,
)
from fairseq.config.sections import CheckpointConfig, FairseqConfig
from fairseq.data.batches.epochs import EpochBatchIterator
from fairseq.errors import CheckpointError, ConfigError, MissingFileError
from fairseq.files import io
from fairseq.files.safe_load import safe_load
from fairseq.tasks.base import FairseqTask

# -- a trainer that only saves ---------------------------------------------------------------------


class SavingTrainer:
    """Saves a state that says which update it is of."""

    should_save_checkpoint_on_current_rank = True

    def __init__(self, task: Any = None) -> None:
        self.best: float | None = None
        self.updates = 0
        self.task = task or FairseqTask(None)

    def get_num_updates(self) -> int:
        return self.updates

    def save_checkpoint(self, path: str, extra_state: Any, facts: Any) -> None:
        write_checkpoint(state_of(self.updates, extra_state), path, facts)


class Place:
    """Stands somewhere in the data."""

    def __init__(self, epoch: int, at_end: bool) -> None:
        self.epoch, self.at_end = epoch, at_end

    def end_of_epoch(self) -> bool:
        return self.at_end

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch + self.at_end, "iterations_in_epoch": 0}


def state_of(updates: int, extra_state: Any = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(updates)
    return {
        "model": {"w": torch.randn(2000, generator=generator), "v": torch.full((300,), updates)},
        "optimizer_history": [{"num_updates": updates}],
        "extra_state": dict(extra_state or {}),
    }


def settings(folder: Path, **values: Any) -> CheckpointConfig:
    cfg = CheckpointConfig()
    cfg.save_dir = str(folder)
    for name, value in values.items():
        setattr(cfg, name, value)
    return cfg


def save(cfg: Any, trainer: Any, updates: int, epoch: int, end: bool, loss: float | None) -> None:
    trainer.updates = updates
    save_checkpoint(cfg, trainer, Place(epoch, end), loss)


def updates_in(path: str | Path) -> int:
    return int(safe_load(path)["optimizer_history"][-1]["num_updates"])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pt")}


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with open(path, "r+b") as handle:  # in place: hard links of it change, too
        handle.write(data)


# -- what a save does to the file system -----------------------------------------------------------


class Watched:
    """A file whose writes are reported before and after."""

    def __init__(self, handle: Any, report: Callable[[str, str], None]) -> None:
        self._handle, self._report = handle, report

    def write(self, data: Any) -> int:
        self._report("write", self._handle.name)
        written = self._handle.write(data)
        self._report("wrote", self._handle.name)
        return int(written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._handle.close()


def watch(patch: pytest.MonkeyPatch, report: Callable[[str, str], None]) -> None:
    """Report every operation of a save as (operation, path), before and after it happens."""

    def opened(path: Any, mode: str = "r", **kwargs: Any) -> Any:
        if "w" not in mode:
            return builtins.open(path, mode, **kwargs)
        report("open", os.fspath(path))
        handle = builtins.open(path, mode, **kwargs)
        report("opened", os.fspath(path))
        return Watched(handle, report)

    for module in (files, io):
        patch.setattr(module, "open", opened, raising=False)

    def wrap(name: str, path_of: Callable[..., str]) -> None:
        original = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            report(name, path_of(*args))
            result = original(*args, **kwargs)
            report(name + " done", path_of(*args))
            return result

        patch.setattr(os, name, call)

    wrap("fsync", lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
    wrap("replace", lambda source, target: f"{source} -> {target}")
    wrap("link", lambda source, target: f"{source} -> {target}")
    wrap("unlink", lambda path: os.fspath(path))


RICH = {"keep_interval_updates": 1, "keep_best_checkpoints": 2, "save_interval_updates": 10}


def three_saves(cfg: Any) -> None:
    """Save two good checkpoints; a third, better than both, is up to the test."""
    trainer = SavingTrainer()
    save(cfg, trainer, 10, 1, False, 3.0)
    save(cfg, trainer, 20, 1, False, 2.5)


def third_save(cfg: Any) -> None:
    trainer = SavingTrainer()
    trainer.best = 2.5
    save(cfg, trainer, 30, 1, False, 2.0)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Any, Path]:
    """A folder with two saves, to be copied before it is hurt."""
    cfg = settings(tmp_path / "good", **RICH)
    verify_checkpoint_directory(cfg.save_dir)
    three_saves(cfg)
    return cfg, tmp_path / "good"


def copies(folder: Path) -> Iterator[Path]:
    """Yield fresh copies of a folder, hard links kept."""
    for number in range(10_000):
        copy = folder.with_name(f"copy{number}")
        copy.mkdir()
        inodes: dict[int, Path] = {}
        for path in folder.iterdir():
            inode = path.stat().st_ino
            if inode in inodes:
                os.link(inodes[inode], copy / path.name)
            else:
                shutil.copy2(path, copy / path.name)
                inodes[inode] = copy / path.name
        yield copy
        shutil.rmtree(copy)


@pytest.mark.parametrize("every", faults(7, 1))
def test_a_process_that_dies_at_any_point_leaves_only_good_files(
    every: int, prepared: tuple[Any, Path], figure: Callable[[str, Any], None]
) -> None:
    _, folder = prepared
    points, recovered = 0, 0
    for copy in copies(folder):
        cfg = settings(copy, **RICH)

        def die_at_point(cfg: Any = cfg, last: int = points) -> None:
            seen = 0

            def report(operation: str, path: str) -> None:
                nonlocal seen
                if seen == last:
                    os._exit(9)
                seen += 1

            with pytest.MonkeyPatch.context() as patch:
                watch(patch, report)
                third_save(cfg)

        finished = run(die_at_point) == 0
        for path in sorted(copy.glob("*.pt")):
            assert updates_in(path) in (10, 20, 30), (points, path)
        path, state = load_or_newest_good(str(copy / "checkpoint_last.pt"))
        assert path.endswith("checkpoint_last.pt")
        assert state["optimizer_history"][-1]["num_updates"] in (20, 30)
        remove_leftovers(str(copy))
        assert leftovers(copy) == []
        third_save(cfg)  # the relaunched run saves again
        assert updates_in(copy / "checkpoint_last.pt") == 30
        recovered += 1
        if finished:
            break
        points += every
    figure("points of death in a save, all recovered", recovered - 1)
    assert points >= 40


@pytest.mark.parametrize("every", faults(4, 1))
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_error_at_any_point_keeps_the_previous_checkpoint(
    error: int, every: int, prepared: tuple[Any, Path], figure: Callable[[str, Any], None]
) -> None:
    _, folder = prepared
    points = tried = refused = 0
    for copy in copies(folder):
        cfg = settings(copy, **RICH)
        seen = 0

        def report(operation: str, path: str, last: int = points) -> None:
            nonlocal seen
            if operation in ("open", "write", "fsync", "replace", "link"):
                seen += 1
                if seen == last + 1:
                    raise OSError(error, os.strerror(error), path)

        with pytest.MonkeyPatch.context() as patch:
            watch(patch, report)
            try:
                third_save(cfg)
            except CheckpointError as failure:
                refused += 1
                assert os.strerror(error) in str(failure)
                assert ("disk full" in str(failure)) == (error == errno.ENOSPC)
        assert leftovers(copy) == []
        for path in copy.glob("*.pt"):
            assert updates_in(path) in (10, 20, 30), (points, path)
        assert updates_in(copy / "checkpoint_last.pt") in (20, 30)
        if seen <= points:
            break
        points, tried = points + every, tried + 1
    name = errno.errorcode[error]
    figure(f"{name} injected, previous checkpoint intact", tried)
    assert tried >= 20 and refused >= 10


def test_a_full_disk_is_reported_and_nothing_is_lost(prepared: tuple[Any, Path]) -> None:
    cfg, folder = prepared

    def fill(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(CheckpointError, match=r"File too large.*disk full"):
            third_save(cfg)

    before = names(folder)
    for limit in (2_000, 5_000, 9_000):
        assert run(lambda limit=limit: fill(limit)) == 0  # type: ignore[misc]
        assert names(folder) == before
        assert leftovers(folder) == []
        assert updates_in(folder / "checkpoint_last.pt") == 20


def test_a_failure_says_what_is_there(
    prepared: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A link that fails comes after a new file is there; so does a folder that cannot be synced."""
    _, folder = prepared
    cfg = settings(folder, **{**RICH, "no_epoch_checkpoints": False})

    def no_space(*unused: Any, **also: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("fairseq.checkpoint.files._link", no_space)
        with pytest.raises(CheckpointError, match="It is as it was; (.*) holds the new state") as e:
            third_save(cfg)
    written = re.search(r"; (\S+) holds the new state", str(e.value))
    assert written is not None and updates_in(Path(written[1])) == 30
    assert updates_in(folder / "checkpoint_last.pt") == 20
    with monkeypatch.context() as patch:
        patch.setattr("fairseq.checkpoint.files.fsync_directory", no_space)
        third_save(cfg)
    assert "its folder cannot be synced" in caplog.text
    assert updates_in(folder / "checkpoint_last.pt") == 30


def test_files_reach_the_disk_before_their_names(prepared: tuple[Any, Path]) -> None:
    cfg, folder = prepared
    trace: list[tuple[str, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, lambda operation, path: trace.append((operation, path)))
        third_save(cfg)
    renames = [(n, path) for n, (operation, path) in enumerate(trace) if operation == "replace"]
    assert len(renames) >= 6
    last_sync_of_folder = max(n for n, row in enumerate(trace) if row == ("fsync", str(folder)))
    for position, path in renames:
        source = path.split(" -> ")[0]
        writes = [n for n, row in enumerate(trace[:position]) if row == ("write", source)]
        syncs = [n for n, row in enumerate(trace[:position]) if row == ("fsync done", source)]
        linked = any(
            operation == "link done" and target.endswith(f"-> {source}")
            for operation, target in trace[:position]
        )
        assert linked or (syncs and syncs[-1] > writes[-1]), path
        assert position < last_sync_of_folder
    deletions = [n for n, (op, path) in enumerate(trace) if op == "unlink" and "tmp-" not in path]
    assert deletions and min(deletions) > max(n for n, _ in renames)


# -- names -----------------------------------------------------------------------------------------


def test_other_names_are_hard_links(tmp_path: Path) -> None:
    cfg = settings(tmp_path, **RICH)
    three_saves(cfg)
    inodes = {(tmp_path / f"checkpoint_{name}.pt").stat().st_ino for name in ("last", "best")}
    assert inodes == {(tmp_path / "checkpoint_1_20.pt").stat().st_ino}
    facts = json.loads((tmp_path / "checkpoint_last.pt.json").read_text())
    assert facts["num_updates"] == 20 and facts["val_loss"] == 2.5
    assert facts["sha256"] == io.sha256_of(tmp_path / "checkpoint_last.pt")
    assert facts["size"] == (tmp_path / "checkpoint_last.pt").stat().st_size


def test_names_are_copies_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    three_saves(settings(tmp_path, **RICH))
    assert updates_in(tmp_path / "checkpoint_last.pt") == 20
    last, interval = (tmp_path / f"checkpoint_{name}.pt" for name in ("last", "1_20"))
    assert last.stat().st_ino != interval.stat().st_ino
    assert last.read_bytes() == interval.read_bytes()
    assert leftovers(tmp_path) == []


def test_linking_a_name_to_itself_leaves_nothing_behind(tmp_path: Path) -> None:
    write_checkpoint(state_of(1), str(tmp_path / "a.pt"), {})
    for _ in range(2):
        link_checkpoint(str(tmp_path / "a.pt"), str(tmp_path / "b.pt"))
    assert leftovers(tmp_path) == []
    assert updates_in(tmp_path / "b.pt") == 1


MIDDLE, END = False, True
# settings, [(updates, epoch, end of epoch, validation loss)], files there afterwards
RETENTION: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]], set[str]]] = {
    "every epoch, best and last": (
        {},
        [(10, 1, END, 3.0), (20, 2, END, 4.0)],
        {"checkpoint1.pt", "checkpoint2.pt", "checkpoint_best.pt", "checkpoint_last.pt"},
    ),
    "every second epoch": (
        {"save_interval": 2},
        [(10, 1, END, None), (20, 2, END, None)],
        {"checkpoint2.pt", "checkpoint_last.pt"},
    ),
    "an interval that ends an epoch is named after the epoch": (
        {"save_interval_updates": 10},
        [(10, 1, END, None), (15, 2, MIDDLE, None)],
        {"checkpoint1.pt", "checkpoint_last.pt"},
    ),
    "newest intervals": (
        {"save_interval_updates": 10, "keep_interval_updates": 2},
        [(10 * n, 1, MIDDLE, None) for n in range(1, 12)],
        {"checkpoint_1_100.pt", "checkpoint_1_110.pt", "checkpoint_last.pt"},
    ),
    "intervals stay until the next one in the middle of an epoch": (
        {"save_interval_updates": 10, "keep_interval_updates": 1, "no_epoch_checkpoints": True},
        [(10, 1, MIDDLE, None), (20, 1, END, None)],
        {"checkpoint_1_10.pt", "checkpoint_last.pt"},
    ),
    "intervals of a pattern are never deleted": (
        {
            "save_interval_updates": 10,
            "keep_interval_updates": 1,
            "keep_interval_updates_pattern": 30,
        },
        [(10 * n, 1, MIDDLE, None) for n in range(1, 8)],
        {"checkpoint_1_30.pt", "checkpoint_1_60.pt", "checkpoint_1_70.pt", "checkpoint_last.pt"},
    ),
    "newest epochs, in the order of numbers": (
        {"keep_last_epochs": 2},
        [(n, n, END, None) for n in range(1, 12)],
        {"checkpoint10.pt", "checkpoint11.pt", "checkpoint_last.pt"},
    ),
    "only best": (
        {"no_epoch_checkpoints": True, "no_last_checkpoints": True},
        [(10, 1, END, 3.0), (20, 2, END, 4.0)],
        {"checkpoint_best.pt"},
    ),
    "no name at all": (
        {"no_epoch_checkpoints": True, "no_last_checkpoints": True},
        [(10, 1, END, None)],
        set(),
    ),
    "nothing is saved": ({"no_save": True}, [(10, 1, END, 3.0)], set()),
    "with a suffix": (
        {"checkpoint_suffix": "-shard0"},
        [(10, 1, END, 3.0)],
        {"checkpoint1-shard0.pt", "checkpoint_best-shard0.pt", "checkpoint_last-shard0.pt"},
    ),
}


@pytest.mark.parametrize("rule", RETENTION)
def test_which_files_are_kept(rule: str, tmp_path: Path) -> None:
    values, saves, expected = RETENTION[rule]
    cfg, trainer = settings(tmp_path, **values), SavingTrainer()
    for arguments in saves:
        save(cfg, trainer, *arguments)
    assert names(tmp_path) == expected
    side_files = {path.name.removesuffix(".json") for path in tmp_path.glob("*.json")}
    assert side_files == expected


@pytest.mark.parametrize("maximize", [False, True])
def test_the_best_ones_are_kept(maximize: bool, tmp_path: Path) -> None:
    cfg = settings(
        tmp_path,
        keep_best_checkpoints=2,
        no_epoch_checkpoints=True,
        best_checkpoint_metric="accuracy",
        maximize_best_checkpoint_metric=maximize,
    )
    trainer = SavingTrainer()
    for number, value in enumerate([5.0, 3.0, 4.0, 10.0, 2.0, float("nan"), 6.0], start=1):
        save(cfg, trainer, number, number, END, value)
    kept = sorted(
        float(name.split("_")[-1].removesuffix(".pt")[:-1])
        for name in names(tmp_path)
        if name.startswith("checkpoint.best_accuracy_")
    )
    assert kept == ([6.0, 10.0] if maximize else [2.0, 3.0])
    assert updates_in(tmp_path / "checkpoint_best.pt") == (4 if maximize else 5)
    assert trainer.best == (10.0 if maximize else 2.0)


def test_ties_replace_the_best_and_nan_never_does(tmp_path: Path) -> None:
    cfg, trainer = settings(tmp_path), SavingTrainer()
    for number, value in enumerate([float("nan"), 3.0, 3.0, float("inf"), float("nan")], start=1):
        save(cfg, trainer, number, number, END, value)
    assert updates_in(tmp_path / "checkpoint_best.pt") == 3
    assert not is_better(float("nan"), None, maximize=True)
    assert is_better(1.0, None, maximize=True)


def test_a_run_that_ends_is_saved_even_without_a_name(tmp_path: Path) -> None:
    cfg, trainer = settings(tmp_path, no_last_checkpoints=True), SavingTrainer()
    trainer.updates = 17
    assert save_checkpoint(cfg, trainer, Place(2, MIDDLE), None) is None
    path = save_checkpoint(cfg, trainer, Place(2, MIDDLE), None, always=True)
    assert path == str(tmp_path / "checkpoint_2_17.pt") and updates_in(path) == 17


def test_a_metric_of_any_number_type_is_saved_as_a_number(tmp_path: Path) -> None:
    trainer = SavingTrainer()
    save(settings(tmp_path), trainer, 1, 1, END, torch.tensor(2.5))
    assert type(safe_load(tmp_path / "checkpoint_last.pt")["extra_state"]["val_loss"]) is float
    assert type(trainer.best) is float


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    write_checkpoint(state_of(1), str(tmp_path / "a.pt"), {})
    with pytest.raises(CheckpointError, match=r"task_state holds a pathlib\.\w*Path"):
        write_checkpoint({**state_of(2), "task_state": Path("x")}, str(tmp_path / "a.pt"), {})
    assert updates_in(tmp_path / "a.pt") == 1
    assert leftovers(tmp_path) == []


def test_checkpoints_are_listed_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint2.pt", "checkpoint10.pt", "checkpoint_1_5.pt", "checkpoint3.pt.json"):
        (tmp_path / name).touch()
    found = checkpoint_paths(str(tmp_path))
    assert [os.path.basename(path) for path in found] == ["checkpoint10.pt", "checkpoint2.pt"]
    pairs = checkpoint_paths(str(tmp_path), r"checkpoint_\d+_(\d+)\.pt", keep_match=True)
    assert pairs == [(str(tmp_path / "checkpoint_1_5.pt"), "5")]
    assert checkpoint_paths(str(tmp_path / "missing")) == []


# -- what a run starts from ------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A folder with checkpoints of updates 10, 20, ... 50, the last one being checkpoint_last."""
    cfg, trainer = settings(tmp_path, save_interval_updates=10), SavingTrainer()
    for number in range(1, 6):
        save(cfg, trainer, 10 * number, 1, MIDDLE, 5.0 - number if number < 3 else 9.0)
    return tmp_path


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_damaged_last_checkpoint_is_replaced_by_the_newest_good_one(
    several: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_a_bit(several / "checkpoint_last.pt")  # and checkpoint_1_50.pt, which is the same file
    path, state = load_newest(str(several / "checkpoint_last.pt"))
    assert os.path.basename(path) == "checkpoint_1_40.pt"
    assert state["optimizer_history"][-1]["num_updates"] == 40
    named = [line for line in warnings_of(caplog) if "Going on from" in line]
    assert len(named) == 1
    assert "checkpoint_last.pt" in named[0] and "checkpoint_1_40.pt" in named[0]


def test_what_replaces_a_damaged_checkpoint_is_of_the_same_run(several: Path) -> None:
    others = "_avg3", "_last_s2", "10_s2", ".best_ppl_1.2340_s2"
    for step, name in enumerate(others, 60):
        facts = {"num_updates": step}
        write_checkpoint(state_of(step), str(several / f"checkpoint{name}.pt"), facts)
    for suffix, expected in (
        ("", "checkpoint_1_40.pt"),
        ("_s2", "checkpoint.best_ppl_1.2340_s2.pt"),
    ):
        flip_a_bit(several / f"checkpoint_last{suffix}.pt")
        path, _ = load_newest(str(several / f"checkpoint_last{suffix}.pt"))
        assert os.path.basename(path) == expected


def test_weights_alone_replace_a_damaged_checkpoint_only_where_nothing_else_can(
    several: Path,
) -> None:
    flip_a_bit(several / "checkpoint_last.pt")
    path = str(several / "checkpoint_1_20.pt")
    write_checkpoint({**state_of(20), "last_optimizer_state": {}}, path, {"num_updates": 20})
    assert load_newest(str(several / "checkpoint_last.pt"))[0] == path
    flip_a_bit(several / "checkpoint_1_20.pt")
    path, _ = load_newest(str(several / "checkpoint_last.pt"))
    assert os.path.basename(path) == "checkpoint_1_40.pt"


@pytest.mark.parametrize("harm", ["missing", "empty", "other file's", "lies", "not JSON"])
def test_side_files_are_advisory(
    harm: str, several: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in several.glob("*.json"):
        if harm == "missing":
            path.unlink()
        elif harm == "other file's":
            path.write_text((several / "checkpoint_1_10.pt.json").read_text())
        else:
            lies = json.dumps({"num_updates": 99, "size": 1, "sha256": ""})
            path.write_text({"empty": "", "lies": lies, "not JSON": "{"}[harm])
    assert load_newest(str(several / "checkpoint_last.pt"))[1]["optimizer_history"]
    assert warnings_of(caplog) == []
    flip_a_bit(several / "checkpoint_last.pt")
    path, _ = load_newest(str(several / "checkpoint_last.pt"))
    assert os.path.basename(path) == "checkpoint_1_40.pt"
    assert any("missing or stale" in line for line in warnings_of(caplog))


def test_a_file_that_the_user_named_is_not_replaced(several: Path) -> None:
    flip_a_bit(several / "checkpoint_1_20.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint_1_20\.pt"):
        load_newest(str(several / "checkpoint_1_20.pt"))


def test_never_silently_from_scratch(several: Path) -> None:
    for path in several.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="No other readable checkpoint"):
        load_newest(str(several / "checkpoint_last.pt"))


def test_which_file_a_run_starts_from(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    write_checkpoint(state_of(7), str(other), {})
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    last = str(run_folder / "checkpoint_last.pt")

    def start(**values: Any) -> tuple[str, set[str]]:
        path, resets = checkpoint_to_start_from(settings(run_folder, **values))
        return path, {name for name, on in resets.items() if on}

    everything = {"reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader"}
    assert start() == (last, set())
    assert start(restore_file=str(other)) == (str(other), set())
    assert start(continue_once=str(other)) == (str(other), set())
    assert start(finetune_from_model=str(other)) == (str(other), everything)
    for flag in ("restore_file", "continue_once", "finetune_from_model"):
        with pytest.raises(MissingFileError, match=flag.replace("_", "-")):
            start(**{flag: str(tmp_path / "missing.pt")})
    write_checkpoint(state_of(1), last, {})
    assert start(continue_once=str(other)) == (last, set())
    assert start(finetune_from_model=str(other)) == (last, set())
    assert start(restore_file=str(other)) == (str(other), set())


@pytest.mark.parametrize("part", ["optimizer", "lr_scheduler", "meters", "dataloader"])
def test_weights_of_another_run_and_a_reset_exclude_each_other(tmp_path: Path, part: str) -> None:
    cfg = settings(tmp_path, finetune_from_model="a.pt", **{f"reset_{part}": True})
    with pytest.raises(ConfigError, match=f"--finetune-from-model can not be .*reset.{part}"):
        load_checkpoint(cfg, MagicMock())


def loading_trainer(**attributes: Any) -> MagicMock:
    """Return a trainer that notes what it is told, with updates to count and settings to read."""
    return MagicMock(cfg=FairseqConfig(), get_num_updates=lambda: 6, **attributes)


def position_after(extra_state: dict[str, Any] | None, cfg: Any) -> tuple[int, int, Any]:
    """Load a checkpoint of the original's layout; return epoch, position and the first item."""
    numbers = torch.arange(150)
    iterator = EpochBatchIterator(
        dataset=numbers, collate_fn=torch.stack, batch_sampler=[[n] for n in range(150)]
    )
    trainer = MagicMock()
    trainer.load_checkpoint.return_value = extra_state
    trainer.get_train_iterator.return_value = iterator
    _, iterator = load_checkpoint(cfg, trainer)
    batches = iterator.next_epoch_itr(shuffle=False)
    return iterator.epoch, iterator.iterations_in_epoch, int(next(batches))


def test_where_a_run_goes_on(tmp_path: Path) -> None:
    def state(epoch: int, read: int) -> dict[str, Any]:
        return {
            "train_iterator": {"epoch": epoch, "iterations_in_epoch": read, "shuffle": False},
        }

    cfg = settings(tmp_path)
    assert position_after(None, cfg) == (1, 0, 0)
    assert position_after(state(2, 50), cfg) == (2, 50, 50)
    assert position_after(state(2, 150), cfg) == (3, 0, 0)
    assert position_after(state(2, 50), settings(tmp_path, reset_dataloader=True)) == (1, 0, 0)
    assert position_after({"val_loss": 1.0}, cfg) == (1, 0, 0)


def test_the_schedule_hears_of_the_epoch_that_just_ended(tmp_path: Path) -> None:
    def steps(epoch: int, read: int, **values: Any) -> list[tuple[Any, ...]]:
        trainer = loading_trainer(progress={})
        trainer.load_checkpoint.return_value = {
            "train_iterator": {"epoch": epoch, "iterations_in_epoch": read},
            "val_loss": 2.5,
        }
        load_checkpoint(settings(tmp_path, **values), trainer)
        return [call.args for call in trainer.lr_step.call_args_list]

    assert steps(3, 0) == [(2, 2.5)]
    assert steps(3, 7) == []
    assert steps(1, 0) == []
    assert steps(3, 0, reset_lr_scheduler=True) == [(3,)]
    assert steps(3, 0, reset_dataloader=True) != [(2, 2.5)]


class Counting(FairseqTask):
    """A task that keeps a number in the checkpoint."""

    def __init__(self, seen: int) -> None:
        super().__init__(None)
        self.seen = seen

    def get_checkpoint_dict(self) -> dict[str, Any]:
        return {"Counting": {"seen": self.seen}}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_what_a_task_keeps_is_saved_and_given_back(tmp_path: Path) -> None:
    cfg, other = settings(tmp_path), Counting(0)
    save(cfg, SavingTrainer(Counting(7)), 1, 1, END, None)
    trainer = loading_trainer(task=other)
    trainer.load_checkpoint.return_value = safe_load(tmp_path / "checkpoint_last.pt")["extra_state"]
    load_checkpoint(cfg, trainer)
    assert other.seen == 7
    trainer.load_checkpoint.return_value = None
    load_checkpoint(cfg, trainer)
    assert other.seen == 7


def test_a_suffix_changes_the_name_only(tmp_path: Path) -> None:
    folder = tmp_path / "a.pt"
    folder.mkdir()
    write_checkpoint(state_of(1), str(folder / "x-shard1.pt"), {})
    cfg = settings(tmp_path, restore_file=str(folder / "x.pt"), checkpoint_suffix="-shard1")
    assert checkpoint_to_start_from(cfg)[0] == str(folder / "x-shard1.pt")


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="--save-dir"):
        verify_checkpoint_directory(str(tmp_path / "file" / "run"))


def test_leftovers_of_a_crash_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    for name in (".checkpoint_last.pt.tmp-123", ".a.json.tmp-9", ".lock", "x.tmp-1", "m.jsonl"):
        (tmp_path / name).touch()
    remove_leftovers(str(tmp_path))
    assert set(os.listdir(tmp_path)) == {".lock", "x.tmp-1", "m.jsonl"}
    remove_leftovers(str(tmp_path / "missing"))


def test_what_cannot_be_written_is_untouched_and_what_is_there_is_not_called_unwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "checkpoint_last.pt"
    write_checkpoint(state_of(10), str(path), {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(CheckpointError, match="from before are untouched"):
            write_checkpoint(state_of(20), str(path), {})
    assert updates_in(path) == 10
    monkeypatch.setattr(files, "fsync_directory", fail)
    write_checkpoint(state_of(30), str(path), {})
    assert updates_in(path) == 30 and "its folder cannot be synced" in caplog.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "the same command goes on"),
        ({"restore_file": "a.pt"}, "the same command without --restore-file goes on"),
        (
            {"restore_file": "a.pt", "reset_optimizer": True},
            "the same command without --restore-file, --reset-optimizer goes on",
        ),
        ({"no_last_checkpoints": True}, "--restore-file new.pt goes on"),
        (
            {"no_last_checkpoints": True, "restore_file": "a.pt", "reset_meters": True},
            "--restore-file new.pt without --reset-meters goes on",
        ),
        ({"no_save": True}, "nothing is saved"),
        (
            {"no_save_optimizer_state": True},
            "the same command begins with its weights at update 0: there is no optimizer state",
        ),
    ],
)
def test_how_a_run_that_ends_goes_on(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    assert said in how_it_goes_on(settings(tmp_path, **values), 17, "new.pt")

from __future__ import annotations

import json
import logging
import math
import sys
import types

import numpy as np
import pytest
import torch

from fairseq.logging import sinks
from fairseq.logging.meters import AverageMeter, StopwatchMeter
from fairseq.logging.sinks import (
    GuardedSink,
    JsonlSink,
    TensorBoardSink,
    close_sinks,
    open_sinks,
    read_jsonl,
)


@pytest.fixture(autouse=True)
def no_open_sinks():
    yield
    close_sinks()


def test_jsonl_holds_plain_numbers(tmp_path):
    path = tmp_path / "new folder" / "metrics.jsonl"
    meter, watch = AverageMeter(), StopwatchMeter()
    meter.update(3, 2)
    watch.sum = 7.5
    sink = JsonlSink(path)
    stats = {
        "loss": torch.tensor(2.5),
        "ppl": np.float64(5.66),
        "num_updates": 7,
        "meter": meter,
        "watch": watch,
        "empty": AverageMeter(),
        "list": [],
        "text": "x",
        "nan": math.nan,
        "update": "never over the header",
    }
    sink.log(stats, tag="valid", epoch=2)
    sink.log({"loss": 1}, tag="train", step=9)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert list(first)[:4] == ["tag", "epoch", "update", "time"]
    assert first.pop("time") > 1.7e9
    assert first == {
        "tag": "valid",
        "epoch": 2,
        "update": 7,
        "loss": 2.5,
        "ppl": 5.66,
        "num_updates": 7,
        "meter": 3.0,
        "watch": 7.5,
        "nan": None,
    }
    assert (second["epoch"], second["update"]) == (None, 9)


@pytest.mark.parametrize("length", [10, 5000])
def test_a_torn_last_line_is_removed_on_resume(tmp_path, length):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log({"loss": 1}, tag="train", step=1)
    sink.close()
    with path.open("a") as handle:
        handle.write('{"tag": "train", "loss": "' + "é" * length)
    assert len(read_jsonl(path)) == 1
    resumed = JsonlSink(path)
    resumed.log({"loss": 2}, tag="train", step=2)
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_whole_last_line_without_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"tag": "train", "update": 1}')
    JsonlSink(path).log({}, tag="train", step=2)
    assert [record["update"] for record in read_jsonl(path)] == [1, 2]


def test_reading_skips_what_is_no_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[1]\n{"b": \n\xff\xfe\n{"c": 2}\n{"d"')
    assert read_jsonl(path) == [{"a": 1}, {"c": 2}]


def test_sinks_are_opened_once_for_each_destination(tmp_path):
    path = tmp_path / "metrics.jsonl"
    (first,) = open_sinks(jsonl_path=path)
    (second,) = open_sinks(jsonl_path=path)
    other, _ = open_sinks(jsonl_path=tmp_path / "other.jsonl", tensorboard_logdir=tmp_path / "tb")
    assert first is second and other is not first
    assert open_sinks() == []
    first.log({"loss": 1}, tag="train", step=1)
    close_sinks()
    assert not first.is_on
    assert open_sinks(jsonl_path=path)[0] is not first
    assert len(read_jsonl(path)) == 1


def test_a_failing_sink_warns_once_and_is_switched_off(caplog):
    class Broken:
        calls = 0

        def log(self, *args, **kwargs):
            Broken.calls += 1
            raise ConnectionError("unreachable")

    sink = GuardedSink("tracker", Broken)
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            sink.log({"loss": 1}, tag="train", step=step)
        sink.update_config({})
        sink.close()
    assert Broken.calls == 1 and not sink.is_on
    assert [record.getMessage() for record in caplog.records] == [
        "tracker is switched off, training goes on: ConnectionError: unreachable"
    ]


def test_an_interruption_is_not_swallowed():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedSink("tracker", interrupted).log({})


def test_unwritable_places_do_not_stop_training(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for sink in open_sinks(
        jsonl_path=tmp_path / "file" / "metrics.jsonl", tensorboard_logdir=tmp_path / "file" / "tb"
    ):
        sink.log({"loss": 1}, tag="train", step=1)
        sink.log({"loss": 1}, tag="train", step=2)
        assert not sink.is_on
    assert len(caplog.records) == 2


def test_a_missing_package_is_named_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (sink,) = open_sinks(wandb_project="project")
    sink.update_config({"lr": 1})
    sink.log({"loss": 1}, tag="train", step=1)
    assert len(caplog.records) == 1 and "wandb" in caplog.text


def test_tensorboard_folders_and_values(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.log({"loss": 2.5, "num_updates": 3}, tag="train_inner", step=3)
    sink.log({"loss": 2.25, "name": "x", "num_updates": 5}, tag="valid")
    sink.log({"loss": 2.0, "num_updates": 9}, tag="valid")
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_inner", "valid"]
    assert scalars(tmp_path / "train_inner") == [("loss", 3, 2.5)]
    assert scalars(tmp_path / "valid") == [("loss", 5, 2.25), ("loss", 9, 2.0)]


def scalars(folder):
    """The (tag, step, value) of every scalar in the only event file of a folder."""
    from tensorboardX.event_file_writer import event_pb2

    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:  # a TFRecord: length (8 bytes), checksum (4), event, checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found += [
            (value.tag, event.step, value.simple_value)
            for value in event.summary.value
            if value.HasField("simple_value")
        ]
    return found


def test_wandb_gets_prefixed_figures(monkeypatch):
    calls = []

    class FakeRun:
        config = types.SimpleNamespace(update=lambda config, **_: calls.append(config))

        def log(self, stats, step):
            calls.append((stats, step))

        def finish(self):
            calls.append("finished")

    fake = types.SimpleNamespace(init=lambda **kwargs: calls.append(kwargs) or FakeRun())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (sink,) = open_sinks(wandb_project="project", wandb_run_name="run")
    sink.update_config({"lr": 1})
    sink.log({"loss": torch.tensor(2.5), "text": "x"}, tag="valid", step=4)
    close_sinks()
    assert calls == [
        {"project": "project", "name": "run"},
        {"lr": 1},
        ({"valid/loss": 2.5}, 4),
        "finished",
    ]


def test_what_a_run_repeats_after_falling_back_is_set_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonlSink(path, done=0)
    for step in (10, 20, 30, 40):
        first.log({"loss": step}, tag="train_inner", step=step)
        first.log({"loss": step}, tag="valid", step=step)
    first.close()
    again = JsonlSink(path, done=25)  # the checkpoint of update 25 was the newest good one
    again.log({"loss": 31}, tag="train_inner", step=30)
    again.close()
    told = [(r["tag"], r["update"], r["loss"]) for r in read_jsonl(path)]
    assert told == [
        *((tag, step, step) for step in (10, 20) for tag in ("train_inner", "valid")),
        ("train_inner", 30, 31),
    ]
    aside = read_jsonl(f"{path}.superseded")
    assert [(r["tag"], r["update"]) for r in aside] == [
        (tag, step) for step in (30, 40) for tag in ("train_inner", "valid")
    ]


def test_tensorboard_hides_what_is_repeated(tmp_path):
    from tensorboardX.event_file_writer import event_pb2

    sink = TensorBoardSink(tmp_path, done=25)
    sink.log({"loss": 2.0}, tag="valid", step=30)
    sink.close()
    (path,) = (tmp_path / "valid").iterdir()
    data, starts = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        starts += [event.step] if event.session_log.status == 1 else []
        data = data[16 + length :]
    assert starts == [26]


def test_wandb_goes_on_in_the_same_run(monkeypatch, tmp_path):
    asked = []

    def init(**settings):
        asked.append(settings)
        known = settings.get("id") or f"new{len(asked)}"
        return types.SimpleNamespace(id=known, log=lambda *a, **k: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_RUN_GROUP", "seeds")
    for project in ("p", "p", "other"):
        (sink,) = open_sinks(
            wandb_project=project, wandb_run_name="run", wandb_folder=tmp_path / "run"
        )
        sink.log({"loss": 1}, tag="train", step=1)
        assert sink.is_on
        close_sinks()
    assert [settings.get("id") for settings in asked] == [None, "new1", None]
    assert all(s["resume"] == "allow" and s["group"] == "seeds" for s in asked)


def test_to_number_of_other_things():
    assert [sinks.to_number(value) for value in ("x", None, [], torch.ones(2))] == [None] * 4

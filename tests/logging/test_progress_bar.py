from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from fairseq.config.sections import CommonConfig
from fairseq.errors import ConfigError
from fairseq.logging import progress_bar as module
from fairseq.logging.console import ConsoleHandler
from fairseq.logging.meters import AverageMeter, StopwatchMeter
from fairseq.logging.progress_bar import (
    JsonProgressBar,
    RichProgressBar,
    SimpleProgressBar,
    format_stat,
    progress_bar,
    progress_of,
    setup_logging,
)
from fairseq.logging.sinks import close_sinks, read_jsonl

BATCHES_PER_EPOCH = 57  # of the logged runs


@pytest.fixture(autouse=True)
def no_open_sinks():
    yield
    close_sinks()


@contextlib.contextmanager
def bare_root_logger():
    """Without the handlers of the test runner, which are put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


class Resumed:
    """An iterable whose first ``n`` items were consumed by an earlier run."""

    def __init__(self, size, n):
        self.size, self.n = size, n

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(range(self.n, self.size))


def figures(fields, prefix=""):
    """The figures of a logged line, as the numbers they must have been printed from."""
    skipped = ("logger", "epoch", "update")
    pairs = ((k.removeprefix(prefix), v) for k, v in fields.items() if k not in skipped)
    return {key: float(value) for key, value in pairs}


@pytest.mark.parametrize("name", ["fb_log50", "fb_log50_nodrop"])
def test_lines_of_the_original_are_printed_again(shared, caplog, name):
    lines = (shared / f"compat/train_log/{name}.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in lines]
    middle = iter([fields for fields in expected if fields["logger"] == "train_inner"])
    bar = progress_bar(range(BATCHES_PER_EPOCH), log_format="json", log_interval=1, epoch=1)
    with caplog.at_level(logging.INFO):
        for index in bar:
            fields = next(middle, None)
            if fields is None:
                break
            assert int(fields["num_updates"]) == index + 1
            bar.log(figures(fields), tag="train_inner", step=index + 1)
        for fields in expected[50:]:
            tag = fields["logger"]
            bar.print(figures(fields, f"{tag}_"), tag=tag, step=50)
    printed = [(record.name, record.getMessage()) for record in caplog.records]
    texts = [(fields.pop("logger"), json.dumps(fields)) for fields in expected]
    assert len(printed) == 52 and printed == texts


def test_resumed_epoch_counts_the_consumed_batches(shared, caplog):
    path = shared / "compat/checkpoints/fb_resume25/resumed_26_to_50.jsonl"
    first = path.read_text().splitlines()[0]
    fields = json.loads(first)
    bar = progress_bar(Resumed(BATCHES_PER_EPOCH, 25), "json", log_interval=1, epoch=1)
    with caplog.at_level(logging.INFO):
        next(iter(bar))
        bar.log(figures(fields), tag="train_inner", step=26)
    # readers of log records parse msg itself
    assert [record.getMessage() for record in caplog.records] == [first]
    assert [record.msg for record in caplog.records] == [first]


def test_validate_lines_have_neither_epoch_nor_update(shared, caplog):
    text = (shared / "compat/checkpoints/baseline/validate.txt").read_text()
    line = next(line for line in text.splitlines() if line.startswith("{"))
    bar = progress_bar(range(3), "json", prefix="valid on 'valid' subset")
    with caplog.at_level(logging.INFO):
        bar.print(figures(json.loads(line), "valid_"), tag="valid", step=3)
    assert [(r.name, r.getMessage()) for r in caplog.records] == [("valid", line)]


def test_whole_lines_have_the_original_layout(shared):
    text = (shared / "compat/train_log/fb_log50.raw_tail.log").read_text()
    handler = ConsoleHandler()
    lines = [line for line in text.splitlines() if " | " in line]
    assert len(lines) > 30
    for line in lines:
        stamp, level, name, message = line.split(" | ", 3)
        record = logging.LogRecord(
            name, logging.getLevelName(level), "", 0, message.replace("%", "%%"), (), None
        )
        record.created = time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S"))
        assert handler.format(record) == line


STATS = {"loss": 4.652, "ppl": 25.13, "wps": 0, "lr": 1e-05, "num_updates": 5}


def test_simple_lines(caplog):
    bar = progress_bar(range(6), "simple", log_interval=5, epoch=1)
    valid = progress_bar(range(2), "simple", epoch=1, prefix="valid on 'valid' subset")
    with caplog.at_level(logging.INFO):
        for index in bar:
            bar.log(STATS, tag="train_inner", step=index + 1)
        bar.print({"loss": 4.651, "ppl": 25.13}, tag="train", step=6)
        valid.print({"loss": 4.7}, tag="valid", step=6)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        (
            "train_inner",
            "epoch 001:      5 / 6 loss=4.652, ppl=25.13, wps=0, lr=1e-05, num_updates=5",
        ),
        ("train", "epoch 001 | loss 4.651 | ppl 25.13"),
        ("valid", "epoch 001 | valid on 'valid' subset | loss 4.7"),
    ]


def test_figures_are_printed_with_six_digits():
    meter, watch = AverageMeter(), StopwatchMeter()
    meter.update(1.23456)
    watch.sum = 7.6
    shown = [12345678, 1234.5678, 0, 1e-5, torch.tensor(0.5), "text", None, meter, watch, True]
    expected = ["1.23457e+07", "1234.57", "0", "1e-05", "0.5", "text", None, "1.235", "8", "1"]
    assert [format_stat(stat) for stat in shown] == expected
    assert format_stat(float("nan")) == "nan"


@pytest.mark.parametrize("interval", [None, 0])
def test_no_interval_shows_nothing(caplog, interval):
    bar = progress_bar(range(3), "json", log_interval=interval, epoch=1)
    with caplog.at_level(logging.INFO):
        for _ in bar:
            bar.log(STATS, tag="train_inner", step=10)
    assert not caplog.records


def test_unsized_iterables_and_early_lines(caplog):
    bar = progress_bar(iter("ab"), "json", log_interval=1, epoch=2)
    with caplog.at_level(logging.INFO):
        bar.log({"loss": 1}, step=3)
        bar.print({"loss": 1})
        assert list(bar) == ["a", "b"]
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("train", '{"epoch": 2, "loss": "1"}'),
        ("train", '{"epoch": 2, "loss": "1"}'),
    ]


def test_none_is_silent_and_sinks_get_everything(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    bar = progress_bar(range(3), "none", log_interval=100, epoch=4, jsonl_path=path)
    with caplog.at_level(logging.INFO), bar:
        for index in bar:
            bar.log(STATS, tag="train_inner", step=index + 1)
        bar.print(STATS, tag="train")
    assert not caplog.records
    records = read_jsonl(path)
    assert [(r["tag"], r["epoch"], r["update"]) for r in records] == [
        ("train_inner", 4, 1),
        ("train_inner", 4, 2),
        ("train_inner", 4, 3),
        ("train", 4, 5),  # no step given: num_updates
    ]
    assert {key: records[0][key] for key in STATS} == STATS


def test_log_file_gets_the_lines(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("an interrupted li")
    for epoch in (1, 2):
        progress_bar((), "simple", log_file=path, epoch=epoch).print({"loss": 2.5}, tag="train")
    assert path.read_text().splitlines() == [
        "an interrupted li",
        "epoch 001 | loss 2.5",
        "epoch 002 | loss 2.5",
    ]


def test_update_config_reaches_the_sinks():
    class Recorder:
        config = None

        def update_config(self, config):
            self.config = config

    recorder = Recorder()
    SimpleProgressBar((), sinks=[recorder]).update_config({"lr": 1})
    assert recorder.config == {"lr": 1}


@pytest.mark.parametrize(
    ("name", "on_terminal", "expected"),
    [
        ("json", True, JsonProgressBar),
        ("rich", False, SimpleProgressBar),
        ("tqdm", True, RichProgressBar),
        (None, True, RichProgressBar),
    ],
)
def test_choice_of_format(monkeypatch, name, on_terminal, expected):
    monkeypatch.setattr("sys.stderr", Terminal() if on_terminal else io.StringIO())
    assert type(progress_bar((), log_format=name)) is expected


@pytest.mark.parametrize(
    ("settings", "more", "kind", "interval"),
    [
        ({}, {}, "Rich", 100),
        ({"no_progress_bar": True, "log_interval": 7}, {}, "Simple", 7),
        ({"no_progress_bar": True, "log_format": "json"}, {}, "Json", 100),
        ({"log_format": "json"}, {"log_format": "none", "epoch": 3}, "Noop", 100),
    ],
)
def test_settings_choose_the_bar(monkeypatch, settings, more, kind, interval):
    monkeypatch.setattr("sys.stderr", Terminal())
    bar = progress_of(CommonConfig(**settings), range(3), "here", **more)
    assert type(bar).__name__ == f"{kind}ProgressBar"
    assert bar.log_interval == interval and list(bar) == [0, 1, 2]
    assert bar.prefix == ("epoch 003 | here" if more else "here")


def test_unknown_format_is_named():
    with pytest.raises(ConfigError, match="did you mean 'simple'"):
        progress_bar((), log_format="simpel")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def plain(terminal):
    """What was written, without the escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_rich_shows_the_whole_run_on_stderr(monkeypatch, capsys, caplog):
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr("sys.stderr", terminal)
    bar = progress_bar(
        Resumed(10, 4), epoch=3, num_updates=24, total_updates=1000, log_interval=100
    )
    with caplog.at_level(logging.INFO):
        for _ in bar:
            bar.log({"loss": 5.25, "ppl": 38.1, "lr": 1e-4, "wps": 123456, "wall": 3700}, step=7)
            bar._display.refresh()
        bar.print({"loss": 5.3}, tag="train")
    shown = plain(terminal)
    for text in ("epoch 003", "24/1,000", "29/1,000", "loss 5.25", "ppl 38.1", "lr 0.0001"):
        assert text in shown
    assert "123k tok/s" in shown and "1:01:40" in shown  # the time of the run, from "wall"
    assert capsys.readouterr().out == ""
    assert [record.getMessage() for record in caplog.records] == ["epoch 003 | loss 5.3"]


def test_a_validation_inside_of_training_has_the_live_line_to_itself(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    train, valid = (RichProgressBar(range(3), prefix=name) for name in ("[train]", "valid"))
    for index in train:
        if index == 1:
            for _ in valid:
                assert not train._display.live.is_started and valid._display.live.is_started
            assert train._display.live.is_started
    assert RichProgressBar._live == []


def test_leaving_a_loop_takes_the_live_line_away(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with RichProgressBar(range(3)) as bar:
        for _ in bar:
            break
    assert bar._display is None and RichProgressBar._live == []


def test_setup_logging_respects_existing_handlers_and_the_level(monkeypatch, capsys):
    monkeypatch.setenv("LOGLEVEL", "warning")
    with bare_root_logger():
        setup_logging()
        setup_logging()
        logging.getLogger("fairseq.trainer").info("hidden")
        logging.getLogger("fairseq.trainer").warning("100%")
        stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        line = stamp + r" \| WARNING \| fairseq.trainer \| 100%\n"
        assert re.fullmatch(line, capsys.readouterr().out)
        setup_logging(level="INFO", stream="stderr", force=True)
        logging.getLogger("train").info("{}")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith(" | INFO | train | {}\n")


def test_unknown_level_is_named():
    with bare_root_logger(), pytest.raises(ConfigError, match="did you mean 'DEBUG'"):
        setup_logging("DEBIG")


CHATTY = """
import sys
from fairseq.logging.progress_bar import progress_bar, setup_logging
setup_logging()
bar = progress_bar(range(2000), "json", log_interval=1, epoch=1)
for index in bar:
    bar.log({"loss": index}, tag="train_inner", step=index + 1)
print("done", file=sys.stderr)
"""


def test_a_reader_that_goes_away_does_not_stop_the_run():
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", CHATTY], stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    assert b"train_inner" in os.read(read_end, 100)
    os.close(read_end)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "done\n")


def test_a_closed_stdout_does_not_stop_the_run():
    command = [sys.executable, "-c", CHATTY]
    code = "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_a_closed_stream_object_does_not_stop_the_run(monkeypatch, capsys):
    closed = io.StringIO()
    closed.close()
    with bare_root_logger():
        setup_logging()
        monkeypatch.setattr("sys.stdout", closed)
        logging.getLogger("train").info("nobody reads this")
    assert capsys.readouterr().err == ""  # logging would have printed a traceback


def test_formats_are_those_of_the_flag():
    assert module.LOG_FORMATS == ("json", "none", "rich", "simple", "tqdm")

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser

import pytest

from fairseq.errors import DataError, FairseqError, MissingFileError
from fairseq.logging.sinks import JsonlSink
from fairseq.report import FillMaskExample, charts, load_runs, summarize, write_report
from fairseq.report.charts import MAX_POINTS, PANELS, _tick, draw, thinned
from fairseq.report.runs import config_differences, trained_seconds, trained_tokens

PNG = b"\x89PNG\r\n\x1a\n"


def make_run(folder, losses=(7.0, 5.5, 6.0), lr=0.002, counted=False):
    """A run folder with one validation every ten updates."""
    sink = JsonlSink(folder / "metrics.jsonl")
    for epoch, loss in enumerate(losses, start=1):
        for update in range(10 * epoch - 9, 10 * epoch + 1):
            speed = 0 if update == 1 else 100 + update
            stats = {"loss": loss - 0.5, "ppl": 2.0**loss, "lr": lr, "gnorm": 1.0, "wps": speed}
            stats |= {"wall": update / 2, **({"tokens": 40 * update} if counted else {})}
            stats |= {"flops": 1e9 * update, "flops_electra": 8e8 * update} if counted else {}
            sink.log(stats, tag="train_inner", step=update, epoch=epoch)
        sink.log({"loss": loss, "ppl": 2.0**loss}, tag="valid", step=10 * epoch, epoch=epoch)
    sink.close()
    (folder / "config.yaml").write_text(
        f"task:\n  _name: masked_lm\noptimization:\n  lr: [{lr}]\n  max_update: 30\n"
    )
    (folder / "command.txt").write_text("fairseq-train --arch '<b>roberta</b>'")
    (folder / "versions.json").write_text('{"torch": "2.13", "parameters": 1234567}')
    return folder


class Page(HTMLParser):
    """Collects the attributes and the text of a page, and checks that its tags are balanced."""

    VOID = ("meta", "source", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.attributes, self.text, self.open, self.rows = [], "", [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th", "code"):
            self.rows[-1][-1] += data


def test_one_page_about_several_runs(tmp_path):
    first = make_run(tmp_path / "runs" / "first")
    second = make_run(tmp_path / "runs" / "second", losses=(7.0, 5.0), lr=0.001)
    example = FillMaskExample("a <mask> & b", [("", 0.5, " <cat>"), ("", 0.25, "dog")], ["Dog"])
    path = write_report([first, second], tmp_path / "out", "A < B", examples=[example])
    page = Page(path.read_text())
    assert path == tmp_path / "out" / "report.html"
    assert "A < B" in page.text and "fairseq-train --arch '<b>roberta</b>'" in page.text
    assert page.rows[0] == [
        *("Run", "Valid loss (bits)", "Perplexity", "At update", "Train loss"),
        *("Updates", "Time", "Tokens/s", "Parameters"),
    ]
    assert page.rows[1][:5] == ["first", "5.500", "45.25", "20", "5.500"]
    assert page.rows[1][5:] == ["30", "0:00:15", "116", "1.2 M"]
    assert page.rows[2][:2] == ["second", "5.000"]
    assert page.rows[-1] == ["optimization.lr", "[0.002]", "[0.001]"]
    assert all(word in page.text for word in ("<cat>", "50.0%", "dog ✓", "25.0%"))
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "href")]
    assert "url(" not in path.read_text() and "@import" not in path.read_text()
    for panel in PANELS:
        assert (tmp_path / "out" / f"{panel.name}.png").read_bytes().startswith(PNG)
    assert not [name for name in (tmp_path / "out").iterdir() if name.name.startswith(".")]


def test_summary_of_a_run(tmp_path):
    (run,) = load_runs([make_run(tmp_path / "run")])
    assert summarize(run) == {
        "name": "run",
        "folder": str(tmp_path / "run"),
        "valid_subset": "valid",
        "objective": "masked_lm",
        "best_valid_loss": 5.5,
        "best_valid_ppl": 2**5.5,
        "best_at_update": 20,
        "best_valid_accuracy": None,
        "last_train_loss": 5.5,
        "updates": 30,
        "wall_seconds": 15.0,
        "tokens_per_second": 116,  # the middle of 102..130; the 0 of the first record is left out
        "parameters": 1234567,
        "tokens": None,
        "flops": None,
        "flops_electra": None,
        "state": None,
        "ended_by": None,
    }


def test_costs_stand_beside_the_results(tmp_path):
    run = make_run(tmp_path / "run", counted=True)
    page = Page(write_report([run], tmp_path / "out").read_text())
    assert page.rows[0][-2:] == ["Tokens", "FLOPs"]
    assert page.rows[1][-2:] == ["1,200", "3e+10"]


def test_losses_of_different_objectives_are_not_compared(tmp_path):
    """A column says what each is of, and the best one is marked among its like."""
    runs = [make_run(tmp_path / f"run{n}", losses=(n,)) for n in (5, 4, 2)]
    with open(runs[2] / "config.yaml", "a") as handle:
        handle.write("criterion:\n  _name: contrastive_weight_tying\n")
    text = write_report(runs, tmp_path / "out", pictures=False).read_text()
    column = [row[1:3] for row in Page(text).rows[:4]]
    assert column == [
        ["Objective", "Valid loss (bits)"],
        ["masked_lm", "5.000"],
        ["masked_lm", "4.000"],
        ["contrastive_weight_tying/masked_lm", "2.000"],
    ]
    assert "<td class=best>4.000" in text and "<td class=best>2.000" not in text
    alike = write_report(runs[:2], tmp_path / "out", pictures=False).read_text()
    assert Page(alike).rows[0][1] == "Valid loss (bits)"


def test_updates_lie_on_other_axes(tmp_path):
    (run,) = load_runs([make_run(tmp_path / "run", counted=True)])
    assert run.along("updates", [3, 8]) == [3, 8]
    assert run.along("tokens", [0.5, 1, 7.25, 30, 99]) == [20, 40, 290, 1200, 1200]
    assert run.along("flops", [2]) == [2e9] and run.along("time", [12]) == [6 / 3600]
    (poor,) = load_runs([make_run(tmp_path / "poor")])
    assert poor.along("flops", [2]) == []
    # the clock of a process starts anew with it
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for update, wall in ((10, 3600), (20, 7200), (30, 1800), (40, 3600)):
        sink.log({"loss": 1.0, "wall": wall}, tag="train_inner", step=update)
    sink.close()
    (cut,) = load_runs([tmp_path])
    assert cut.along("time", [5, 20, 30, 35]) == [0.5, 2, 2.5, 2.75]


@pytest.mark.parametrize("axis", ["updates", "tokens", "time", "flops"])
def test_curves_are_drawn_against_any_axis(tmp_path, axis):
    runs = load_runs([make_run(tmp_path / name, counted=name == "a") for name in "ab"])
    drawn = [bool(charts._curves(PANELS[0], run, axis)) for run in runs]
    assert drawn == [True, axis in ("updates", "time")]


def test_a_run_of_which_little_is_known(tmp_path):
    JsonlSink(tmp_path / "metrics.jsonl").log({"loss": 3.0}, tag="train", step=5)
    page = Page(write_report([tmp_path], tmp_path / "out").read_text())
    assert page.rows == [["Run", "Train loss", "Updates"], [tmp_path.name, "3.000", "5"]]
    assert [p.name for p in (tmp_path / "out").glob("*.png")] == ["loss.png"]


def test_repeated_updates_overwrite_and_nonsense_is_skipped(tmp_path):
    lines = [
        {"tag": "valid", "update": 10, "loss": 5.0},
        {"tag": "valid", "update": 20, "loss": 4.0},
        {"tag": "valid", "update": 30, "loss": 3.0},
        {"tag": "valid", "update": 20, "loss": 4.5},  # went back to the checkpoint of update 10
        {"tag": "valid", "update": 40, "loss": None},
        {"tag": "valid", "update": 50, "loss": "7"},
        {"tag": None, "update": 60, "loss": 1.0},
        {"tag": "valid", "loss": 1.0},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"tag": "valid", "update": 70, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    (run,) = load_runs([tmp_path])
    assert run.series("valid", "loss") == ([10, 20], [5.0, 4.5])
    assert summarize(run)["updates"] == 50


def test_missing_and_empty_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "PANELS", PANELS[:1])
    with pytest.raises(MissingFileError, match="run folder not found: .*nowhere"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(MissingFileError, match="no metrics.jsonl in"):
        load_runs([tmp_path])
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n')
    with pytest.raises(MissingFileError, match="has begun, its first record comes after"):
        load_runs([tmp_path])
    with pytest.raises(DataError, match="no run folder"):
        load_runs([])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no records yet in .*empty"):
        write_report([tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    both = [make_run(tmp_path / "full"), tmp_path / "empty"]
    page = Page(write_report(both, tmp_path / "out").read_text())
    assert "empty has no records yet" in page.text
    assert page.rows[2] == ["empty", *["–"] * 8]


def test_damaged_side_files_become_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "PANELS", PANELS[:1])
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [1\nb: !!python/object/apply:os.getcwd []")
    (run / "versions.json").write_text("[1]")
    page = Page(write_report([run], tmp_path / "out").read_text())
    assert "config.yaml cannot be read" in page.text
    assert "versions.json is not a mapping" in page.text


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [make_run(tmp_path / parent / "run") for parent in ("a", "b")]
    assert [run.name for run in load_runs(paths)] == ["a/run", "b/run"]
    assert [run.name for run in load_runs([paths[0]] * 2)] == ["run (1)", "run (2)"]


def test_differences_of_settings(tmp_path):
    runs = load_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b"), make_run(tmp_path / "c")])
    assert config_differences(runs) == []
    (tmp_path / "c" / "config.yaml").write_text("task: {_name: other}\noptimization: {lr: [0.002]}")
    runs = load_runs([tmp_path / "a", tmp_path / "c"])
    assert config_differences(runs) == [
        ("optimization.max_update", [30, None]),
        ("task._name", ["masked_lm", "other"]),
    ]


def test_long_curves_are_means_of_equal_spans():
    updates, values = thinned(list(range(6000)), [float(x % 10) for x in range(6000)])
    assert len(values) == MAX_POINTS and values == [4.5] * MAX_POINTS
    assert (updates[0], updates[-1]) == (4.5, 5994.5)
    assert thinned([1], [2.0]) == ([1], [2.0])


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "0"), (1500, "1.5k"), (2e6, "2M"), (0.0005, "5e-4"), (0.25, "0.25"), (12, "12")],
)
def test_axis_labels(value, label):
    assert _tick(value) == label


def test_many_runs_have_distinct_lines(tmp_path):
    runs = load_runs([make_run(tmp_path / f"run{i}", losses=(5.0 + i,)) for i in range(8)])
    assert draw(PANELS[0], runs).startswith(PNG)


def test_without_matplotlib_the_page_is_written_and_the_pictures_are_missed(
    tmp_path, monkeypatch, caplog
):
    run = make_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FairseqError, match=r"\[plot\]"):
        write_report([run], tmp_path / "out", pictures=True)
    assert "5.500" in write_report([run], tmp_path / "other").read_text()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["report.html"]
    assert "no PNG files were written" in caplog.text and "[plot]" in caplog.text


def test_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("fairseq_cli.entry")
    from fairseq_cli.report import main

    monkeypatch.setattr(charts, "PANELS", PANELS[:1])
    run = make_run(tmp_path / "run")
    out = tmp_path / "out"
    assert main([str(run), "--output", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    assert main([str(run), "--output", str(out), "--title", "T", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(out / "report.html")
    assert printed["runs"][0]["best_valid_loss"] == 5.5
    assert main([str(run), "--output", str(out), "--x", "time"]) == 0
    assert '"axis":"time"' in (out / "report.html").read_text()
    with pytest.raises(MissingFileError):
        main([str(tmp_path / "nowhere"), "--output", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and "examples:" in capsys.readouterr().out


def logged(folder, *rows):
    """A run folder whose metrics are ``(tag, epoch, update, time, figures)``."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("tag", "epoch", "update", "time")
    records = [{**dict(zip(keys, row, strict=False)), **row[4]} for row in rows]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def test_time_is_added_up_over_restarts(tmp_path):
    def inner(update, time, wall):
        return "train_inner", 1, update, time, {"wall": wall, "wpb": 1.0}

    folder = logged(tmp_path / "a", inner(1, 105, 5), inner(2, 110, 10), inner(3, 203, 3))
    assert trained_seconds(*load_runs([folder])) == 13
    # from the checkpoint at update 1: update 2 was done twice, and counts once
    folder = logged(
        tmp_path / "b", inner(1, 105, 5), inner(2, 110, 10), inner(2, 203, 3), inner(3, 206, 6)
    )
    assert trained_seconds(*load_runs([folder])) == 11
    # the second process logs later than the first ended: only its start tells them apart
    folder = logged(tmp_path / "c", inner(1, 103, 3), inner(2, 209, 9))
    assert trained_seconds(*load_runs([folder])) == 9
    (folder / "events.jsonl").write_text('{"event": "start", "time": 200}\n')
    assert trained_seconds(*load_runs([folder])) == 12
    assert summarize(*load_runs([folder]))["wall_seconds"] == 12


def test_tokens_are_counted(tmp_path):
    folder = logged(
        tmp_path / "a",
        ("train_inner", 1, 2, 0, {"wpb": 10.0}),
        ("train", 1, 3, 0, {"wpb": 9.0}),
        ("train_inner", 2, 4, 0, {"wpb": 6.0}),
        ("train", 2, 4, 0, {"wpb": 8.0}),  # stopped in the second epoch, which goes on
        ("train", 2, 6, 0, {"wpb": 7.0}),
        ("train_inner", 3, 8, 0, {"wpb": 5.0}),
    )
    assert trained_tokens(*load_runs([folder])) == 3 * 9 + 3 * 7 + 2 * 5


def test_the_figures_of_a_real_run_that_was_stopped(tmp_path):
    """Time as its checkpoint has it, tokens as the data have them, losses with all their digits."""
    import os
    import signal
    import time

    from tiny_run import config, content, make_corpus, train

    from fairseq.logging.sinks import read_jsonl
    from fairseq.training.trainer import Trainer

    data, save_dir = make_corpus(tmp_path / "data"), tmp_path / "run"
    counted, take = [], Trainer.train_step

    def train_step(trainer, samples, raise_oom=False):
        counted.append(sum(int(sample["ntokens"]) for sample in samples))
        if trainer.get_num_updates() == 3 and len(counted) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(trainer, samples, raise_oom)

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(SystemExit):
            train(config(data, save_dir))
        train(config(data, save_dir))
    elapsed = time.monotonic() - began
    assert len(counted) == 9
    (loaded,) = load_runs([save_dir])
    assert trained_tokens(loaded) == sum(counted)
    state = content(save_dir / "checkpoint_last.pt")
    assert len(loaded.starts) == 2
    # the last records of both processes come after their checkpoints
    saved = state["extra_state"]["previous_training_time"]
    assert 0 < saved <= trained_seconds(loaded) + 1e-2 <= elapsed + 2e-2
    rows = [row for row in read_jsonl(save_dir / "metrics.jsonl") if row["tag"] == "valid"]
    assert round(rows[-1]["loss"], 3) != rows[-1]["loss"]
    assert rows[-1]["ppl"] == pytest.approx(2 ** rows[-1]["loss"], rel=1e-9)


def test_a_rounded_figure_is_shown_and_the_exact_one_is_kept():
    import copy

    from fairseq.logging import metrics
    from fairseq.logging.progress_bar import format_stat
    from fairseq.logging.sinks import to_number

    with metrics.aggregate(new_root=True) as aggregated:
        metrics.log_scalar("loss", 1 / 3, round=3)
    shown = aggregated.get_smoothed_values()["loss"]
    assert (shown, format_stat(shown), to_number(shown)) == (0.333, "0.333", 1 / 3)
    assert type(copy.deepcopy(shown)) is type(shown * 1) is float

"""Reports about run folders that hold nonsense: what can be read is shown, the rest is named."""

from __future__ import annotations

import json
import warnings

import pytest
from test_report import Page, make_run

from fairseq.report import write_report
from fairseq.report.charts import PANELS, draw
from fairseq.report.runs import load_runs, summarize

NONSENSE = {
    "huge integer": '{"tag": "valid", "update": 40, "loss": 1' + "0" * 400 + "}",
    "very huge integer": '{"tag": "valid", "update": 40, "loss": 1' + "0" * 9000 + "}",
    "huge float": '{"tag": "valid", "update": 40, "loss": 1e308, "ppl": 1e308}',
    "tiny": '{"tag": "valid", "update": 40, "loss": -1e308, "ppl": -1}',
    "huge update": '{"tag": "valid", "update": 1' + "0" * 400 + ', "loss": 1}',
    "deep": "[" * 100_000,
    "deep figure": '{"tag": "valid", "update": 40, "loss": ' + "[" * 100_000 + "}",
    "time": '{"tag": "valid", "update": 40, "loss": 5.0, "time": 1e29}',
    "time before": '{"tag": "valid", "update": 40, "loss": 5.0, "time": -1e29}',
    "time as text": '{"tag": "valid", "update": 40, "loss": 5.0, "time": "now"}',
    "no time": '{"tag": "valid", "update": 40, "loss": NaN, "time": NaN}',
    "wall": '{"tag": "train", "update": 40, "loss": 5.0, "wall": 1e29}',
    "tag": '{"tag": "$\\\\frac{$", "update": 40, "loss": 5.0}',
    "half a pair": '{"tag": "\\ud800", "update": 40, "loss": 5.0}',
    "bytes": "\x00\x01\x02",
    "torn": '{"tag": "valid", "upda',
}
SKIPPED = ("very huge integer", "huge update", "deep", "deep figure", "bytes", "torn")


@pytest.mark.parametrize("kind", NONSENSE)
def test_one_bad_line_among_good_ones(kind, tmp_path):
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    good = path.read_text().splitlines()
    path.write_text("\n".join([*good[:-1], NONSENSE[kind], good[-1]]) + "\n")
    (run,) = load_runs([tmp_path / "run"])
    assert summarize(run)["best_valid_loss"] == 5.5
    noted = [note for note in run.notes if f"line {len(good)} skipped" in note]
    assert len(noted) == (kind in SKIPPED)
    page = Page(write_report([tmp_path / "run"], tmp_path / "out").read_text())
    assert "5.500" in page.text and (not noted or noted[0] in page.text)


def test_absurd_time_at_the_end(tmp_path):
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "run")
    with open(tmp_path / "run/metrics.jsonl", "a") as handle:
        handle.write('{"tag": "valid", "update": 50, "loss": 5.0, "time": 1e29}\n')
    assert "1 run" in write_report([tmp_path / "run"], tmp_path / "out").read_text()


@pytest.mark.parametrize("name", ["$x^{", r"$\frac{a}{$", "_hidden", "a$b$c", "50%", "new\nline"])
def test_names_are_written_as_they_are(name, tmp_path):
    pytest.importorskip("matplotlib")
    runs = load_runs([make_run(tmp_path / name), make_run(tmp_path / "plain", losses=(6.0, 5.0))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(PANELS[0], runs, wide=True)


def test_side_files_of_nonsense(tmp_path):
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "run")
    versions = {"torch": "\ud800", "parameters": 10**400, "python": "$x$"}
    (tmp_path / "run/versions.json").write_text(json.dumps(versions))
    (tmp_path / "run/command.txt").write_bytes(b"\xff\xfe fairseq-train")
    page = write_report([tmp_path / "run"], tmp_path / "out").read_text()
    assert "5.500" in page and "Parameters" not in page
    (tmp_path / "run/versions.json").write_text("[" * 100_000)
    assert (
        "versions.json cannot be read"
        in write_report([tmp_path / "run"], tmp_path / "out").read_text()
    )

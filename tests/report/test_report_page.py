"""What the page's script draws, and that nothing in a run can end the script or leave the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import Page, make_run

from fairseq.report import load_runs, write_report
from fairseq.report.charts import MAX_POINTS, PANELS
from fairseq.report.curves import page_data
from fairseq.report.samples import SHOWN

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\u2028'
SCRIPT = Path(__file__).parents[2] / "fairseq" / "report" / "plot.js"
# a folder's name has no slash
NAME = HOSTILE.replace("/", "|")


def data_of(path: Path) -> dict:
    """Return what stands in the page for its script."""
    found = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text()
    )
    assert len(found) == 1
    return json.loads(found[0])


def add(folder: Path, **record: object) -> None:
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json.dumps(record) + "\n")


def test_the_page_holds_the_figures_of_the_runs(tmp_path):
    runs = [make_run(tmp_path / "a", counted=True), make_run(tmp_path / "b", losses=(4.0,))]
    data = data_of(write_report(runs, tmp_path / "out", axis="tokens", pictures=False))
    assert data["axis"] == "tokens" and data["refresh"] is None and data["more"] == []
    assert [panel["key"] for panel in data["panels"]] == [panel.key for panel in PANELS]
    first, second = data["runs"]
    assert (first["name"], second["name"]) == ("a", "b") and first["colour"] != second["colour"]
    curves = {(curve["key"], curve["tag"]): curve for curve in first["curves"]}
    assert curves["loss", "valid"]["y"] == [7.0, 5.5, 6.0] and curves["loss", "valid"]["valid"]
    grid = first["grids"][curves["loss", "valid"]["grid"]]
    assert grid["updates"] == [10, 20, 30] and grid["tokens"] == [400, 800, 1200]
    assert grid["flops"] == [1e10, 2e10, 3e10]
    assert grid["time"] == pytest.approx([5 / 3600, 10 / 3600, 15 / 3600], rel=1e-5)
    assert curves["loss", "training"]["y"] == [6.5] * 10 + [5.0] * 10 + [5.5] * 10
    speed = curves["wps", "training"]  # without the first one, when the clock had just started
    assert speed["y"] == [100 + update for update in range(2, 31)]
    assert first["grids"][speed["grid"]]["updates"] == list(range(2, 31))
    assert [set(grid) for grid in second["grids"]] == [{"updates", "time"}] * 3


def test_figures_without_a_panel_can_be_chosen_and_long_ones_are_thinned(tmp_path):
    folder = make_run(tmp_path / "run")
    add(folder, tag="valid", update=40, loss=5.0, accuracy=33.0, wps=0.0)
    for update in range(41, 41 + 2 * MAX_POINTS):
        add(folder, tag="train_inner", update=update, loss=5.0, clip=1.0)
    data = page_data(load_runs([folder]), "updates")
    assert data["more"] == ["accuracy", "clip"]
    curves = {(c["key"], c["tag"]): c for c in data["runs"][0]["curves"]}
    assert len(curves["loss", "training"]["y"]) == MAX_POINTS
    assert ("wps", "valid") not in curves  # the speed panel is about training


def test_nothing_in_a_run_ends_the_script(tmp_path):
    folder = make_run(tmp_path / NAME)
    other = make_run(tmp_path / "other")
    add(folder, tag=HOSTILE, update=31, loss=5.0, **{HOSTILE: 1.0})
    said = {"prompt": HOSTILE, "fills": [[HOSTILE, 0.5]]}
    more = {"prompt": "b", "continuation": HOSTILE}
    (folder / "samples.jsonl").write_text(json.dumps({"update": 30, "samples": [said, more]}))
    (folder / "events.jsonl").write_text(
        json.dumps({"event": "stop", "reason": f"error: {HOSTILE}"}) + "\n"
    )
    path = write_report([folder, other], tmp_path / "out", title=HOSTILE, pictures=False)
    text = path.read_text()
    assert text.count("<script") == text.count("</script") == 2 and "<img" not in text
    data = data_of(path)
    assert data["runs"][0]["name"] == NAME and HOSTILE in data["more"]
    assert HOSTILE in {curve["tag"] for curve in data["runs"][0]["curves"]}
    names = [name for name, _ in Page(text).attributes]
    assert not [name for name in names if name in ("src", "srcset", "href", "onerror")]


def test_only_the_script_of_the_page_may_run_and_nothing_is_fetched(tmp_path):
    text = write_report([make_run(tmp_path / "run")], tmp_path / "out", pictures=False).read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
    }
    for word in ("fetch(", "XMLHttpRequest", "import(", "WebSocket", "innerHTML", "eval("):
        assert word not in script


def samples(folder: Path, *updates: int, prompt: str = "a <mask>") -> None:
    with open(folder / "samples.jsonl", "a") as handle:
        for update in updates:
            fills = [[" <cat>", 0.5], ["dog", 0.25]]
            row = {"update": update, "samples": [{"prompt": prompt, "fills": fills}]}
            handle.write(json.dumps(row) + "\n")


def test_samples_are_shown_by_prompt(tmp_path):
    folder = make_run(tmp_path / "run")
    samples(folder, 10, 20, 30, 20, 30)  # went back to update 10
    path = write_report([folder], tmp_path / "out", pictures=False)
    rows = [row for row in Page(path.read_text()).rows if len(row) == 2]
    assert rows[0] == ["Update", "Output"]
    assert [row[0] for row in rows[1:4]] == ["10", "20", "30"]
    assert "&lt;cat&gt; <span class=muted>50.0%</span>" in path.read_text()
    samples(folder, *range(40, 2000, 10))
    rows = Page(write_report([folder], tmp_path / "out", pictures=False).read_text()).rows
    shown = [row[0] for row in rows if len(row) == 2][1:]
    assert len(shown) == SHOWN and (shown[0], shown[-1]) == ("10", "1,990")
    other = make_run(tmp_path / "other")
    samples(other, 10, 20)
    both = write_report([folder, other], tmp_path / "out", pictures=False).read_text()
    rows = [row for row in Page(both).rows if len(row) == 3]
    assert [row[:2] for row in rows[:3]] == [["Run", "Update"], ["run", "1,990"], ["other", "20"]]


@pytest.mark.parametrize(
    "line",
    [
        '{"update": 10}', '{"update": "x", "samples": []}', '{"update": 10, "samples": [1, null]}',
        '{"update": 10, "samples": [{}]}', '{"update": 10, "samples": [{"fills": [1, [2]]}]}',
        '{"update": 10, "samples": [{"prompt": 5, "fills": [["a", "b"], [{}, NaN]]}]}', "[", "\x00",
    ],
)  # fmt: skip
def test_samples_of_nonsense_do_no_harm(tmp_path, line):
    folder = make_run(tmp_path / "run")
    (folder / "samples.jsonl").write_text(line + "\n")
    samples(folder, 20)
    assert "50.0%" in write_report([folder], tmp_path / "out", pictures=False).read_text()


# -- the script itself -----------------------------------------------------------------------------


def in_node(expressions: list[str]) -> list:
    """Return what expressions over the script's functions give."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    values = ",".join(expressions)
    code = f"const p = require({json.dumps(str(SCRIPT))}); console.log(JSON.stringify([{values}]))"
    return json.loads(subprocess.run([node, "-e", code], capture_output=True, check=True).stdout)


def test_ticks_are_round_and_within():
    found = in_node(
        ["p.ticks(0, 10, 5)", "p.ticks(0.13, 0.9, 5)", "p.ticks(-3, 1234567, 6)",
         "p.ticks(2, 2, 5)",
         "p.logTicks(3, 3000)", "p.logTicks(1e-6, 1)", "p.logTicks(9, 11)"]
    )  # fmt: skip
    assert found[0] == [0, 2, 4, 6, 8, 10] and found[1] == [0.2, 0.4, 0.6, 0.8]
    assert found[2] == [0, 500000, 1000000] and found[3] == [2]
    assert found[4] == [5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    assert found[5] == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]
    assert all(9 <= tick <= 11 for tick in found[6]) and len(found[6]) >= 2


def test_labels_are_those_of_the_pictures():
    labels = {
        0: "0", 1500: "1.5k", 2e6: "2M", 0.0005: "5e-4", 0.25: "0.25", 12: "12", 3e14: "300T",
        1e30: "1e30", -1500: "-1.5k", 0.00012345: "1.23e-4", 1000: "1k",
    }  # fmt: skip
    assert in_node([f"p.short({value!r})" for value in labels]) == list(labels.values())


def test_smoothing_is_the_exponential_mean_over_its_own_weights():
    values, weight = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0], 0.7
    (found,) = in_node([f"p.smooth({values}, {weight})"])
    for i, mean in enumerate(found):
        weights = [weight ** (i - j) for j in range(i + 1)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert mean == pytest.approx(expected)
    assert in_node(["p.smooth([2, 2, 2], 0.99)"])[0] == pytest.approx([2, 2, 2])


def test_places_on_the_axes():
    found = in_node(
        ["p.scale(0, 10, 100, 200, false)(5)", "p.scale(1, 100, 0, 2, true)(10)",
         "p.nearest([1, 5, 9], 6)", "p.nearest([1, 5, 9], 100)", "p.nearest([1], 3)",
         "p.extent([[3, -1], [7]], false)", "p.extent([[0, -1, 2], [8]], true)",
         "p.extent([], true)",
         "p.pathOf([1, 2, 3, 4], [1, 0, 10, 100],"
         " p.scale(1, 4, 0, 3), p.scale(1, 100, 0, 2, true))"]
    )  # fmt: skip
    assert found[:2] == [150, pytest.approx(1)]
    assert found[2:5] == [1, 2, 0]
    assert found[5:8] == [[-1, 7], [2, 8], None]
    # 0 has no logarithm: the line is interrupted there
    assert found[8] == "M0.0 0.0M2.0 1.0L3.0 2.0"


def drawn(path: Path, choices: str = "") -> tuple[str, str]:
    """Return the page as a browser has it after its script ran, and what that said."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no browser")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [browser, *flags, "--virtual-time-budget=3000", f"file://{path}{choices}"],
        capture_output=True,
        timeout=120,
    )
    return done.stdout.decode(), done.stderr.decode("utf-8", "replace")


def test_a_browser_draws_it_and_says_nothing(tmp_path):
    runs = [make_run(tmp_path / name, counted=True) for name in (NAME, "plain")]
    path = write_report(runs, tmp_path / "out", pictures=False)
    page, said = drawn(path, "#smooth=0.9&logx=1&hide=1&x=flops")
    assert "CONSOLE" not in said, said
    assert page.count('<svg class="plot"') == len(PANELS)
    assert page.count('aria-pressed="true"') == page.count('aria-pressed="false"') == 1
    # of the run that is not hidden: raw and smoothed training curves of five panels (the rate,
    # which is set, has no smoothed one), validation curves of two
    assert len(re.findall(r'<path d="M[^"]*" stroke="#', page.split('id="curves"')[1])) == 11
    assert 'aria-label="loss against FLOPs"' in page and "<img" not in page

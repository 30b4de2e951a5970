"""The study: its machinery on tiny data, and a README that says what its results say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "examples/clap_alibi"
sys.path[:0] = [str(ROOT / "examples"), str(STUDY)]

import studies  # noqa: E402
import study  # noqa: E402


def test_the_readme_holds_the_printed_tables() -> None:
    printed = study.tables()
    readme = (STUDY / "README.md").read_text(encoding="utf-8")
    assert printed.count("| zero-clap |") == 2
    for table in printed.split("\n\n"):
        assert table.strip() in readme
    for part in study.TABLES:
        results = json.loads((STUDY / f"results/{part}.json").read_text())["results"]
        assert {result["seed"] for result in results} == set(studies.SEEDS)
        assert (STUDY / f"results/{part}.png").is_file()


def test_every_variant_changes_one_thing() -> None:
    runs = study.runs({**study.MAIN, **study.ABLATIONS}, smoke=False)
    assert len({run.words for run in runs}) == 14  # zero-clap is in both parts
    assert len({run.folder(Path("x")) for run in runs}) == 14 * len(studies.SEEDS)


def test_a_run_is_cached_and_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def call(words: list[object], log: Path) -> str:
        calls.append(words)
        folder = Path(str(words[-1]))
        rows = [{"tag": "valid", "update": n, "loss": 9 - n} for n in (1, 2)]
        rows.append({"tag": "train_inner", "update": 2, "wpb": 10.0})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ""

    monkeypatch.setattr(studies, "call", call)
    runs = [studies.Run(name, seed, ("--lr", "1")) for name in "ab" for seed in (1, 2)]
    for _ in range(2):
        results = studies.run_all(runs, tmp_path / "data", tmp_path, lambda folder: {"extra": 1})
    assert len(calls) == 4
    assert [(r["name"], r["seed"], r["tokens"], r["extra"]) for r in results] == [
        (run.name, run.seed, 20, 1) for run in runs
    ]
    assert results[0]["curve"] == [{"update": 1, "loss": 8}, {"update": 2, "loss": 7}]
    assert studies.spread([1.0, 3.0]) == "2.00 ± 1.41"
    studies.draw(results, tmp_path / "a.png", "t")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_command_that_fails_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-folder"):
        studies.call(["fairseq-train", "no-such-folder", "--task", "masked_lm"], tmp_path / "log")


def test_tables_are_printed() -> None:
    done = subprocess.run(
        [sys.executable, str(STUDY / "study.py"), "--tables"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == study.tables()

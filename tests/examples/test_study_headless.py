"""The headless study: its runs are what it says, its README says what its results say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "examples/headless"
sys.path.insert(0, str(ROOT / "examples"))

import studies  # noqa: E402


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("headless_study", STUDY / "study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_the_printed_tables(study: Any) -> None:
    printed = study.tables()
    readme = (STUDY / "README.md").read_text(encoding="utf-8")
    for table in filter(None, printed.split("\n\n")):
        assert table.strip() in readme
    for part in study.TABLES:
        record = json.loads((STUDY / f"results/{part}.json").read_text(encoding="utf-8"))
        assert {result["seed"] for result in record["results"]} == set(studies.SEEDS)
        assert record["command"].startswith("python examples/headless/study.py")


def test_the_readme_quotes_the_claims(study: Any) -> None:
    readme = (STUDY / "README.md").read_text(encoding="utf-8")
    for claim in study.CLAIMS:
        assert claim in readme


def test_the_runs_are_what_their_names_say(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[studies.Run] = []

    def train(runs: Any) -> list[Any]:
        asked.extend(runs)
        return [{"name": run.name, "seed": run.seed} for run in runs]

    monkeypatch.setattr(study, "with_bias", lambda folder: folder / "with-bias.pt")
    study.decoder_part(train, tmp_path, 2.5, studies.SEEDS)
    study.rates_part(train, studies.SEEDS)
    study.sweep_part(train, studies.SEEDS)
    study.encoder_part(train, 1.3, studies.SEEDS)
    assert len({run.folder(tmp_path) for run in asked}) == len(asked)

    def setting(run: studies.Run, flag: str) -> str:
        return run.words[len(run.words) - 1 - run.words[::-1].index(flag) + 1]

    by_name = {run.name: run for run in asked}
    updates = {name: int(setting(run, "--max-update")) for name, run in by_name.items()}
    tenth, whole = study.TENTH, study.DECODER_UPDATES
    tuned = "headless, nine tenths + fine-tuning"
    assert updates["vanilla"] in (whole, study.ENCODER_UPDATES)
    assert updates["headless, nine tenths"] + updates[tuned] == whole
    assert updates[tuned] == updates["headless, longer + fine-tuning"] == tenth
    for rate in study.RATES:
        vanilla, headless = (by_name[f"{name}, lr {rate}"] for name in ("vanilla", "headless"))
        assert setting(vanilla, "--lr") == setting(headless, "--lr") == rate
    source = setting(by_name["vanilla, from frequencies"], "--finetune-from-model")
    assert setting(by_name["untrained"], "--lr") == "1e-9"
    assert Path(source).parent == by_name["untrained"].folder(tmp_path)
    rows = {
        name: int(setting(by_name[name], "--batch-size"))
        * int(setting(by_name[name], "--update-freq"))
        for name in study.SWEEP
    }
    assert set(rows.values()) == {64}
    tails = {run.seed: run for run in asked if run.name == tuned}
    heads = {run.seed: run for run in asked if run.name == "headless, nine tenths"}
    for seed in studies.SEEDS:
        source = Path(setting(tails[seed], "--finetune-from-model"))
        assert source.parent == heads[seed].folder(tmp_path)


def test_last_words_are_words(study: Any, tmp_path: Path) -> None:
    text = "One two three four five six seven eight.\nToo short.\n\n"
    text += 'He said : " one two three four five six . "\n'
    (tmp_path / "test.txt").write_text(text, encoding="utf-8")
    path = study.last_words(tmp_path, tmp_path)
    found = [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
    assert found == [
        "One two three four five six seven eight",
        'He said : " one two three four five six',
    ]


def test_time_is_shared_fairly(study: Any) -> None:
    assert study.in_fives(101.2) == 100 and study.in_fives(1) == 5
    words = study.words_of("--x 1", 70, "--batch-size 2")
    assert words == (
        *("--x", "1", "--batch-size", "2", "--max-update", "70"),
        *("--warmup-updates", "7", "--validate-interval-updates", "10"),
    )

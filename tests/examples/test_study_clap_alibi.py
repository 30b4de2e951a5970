"""The study: its machinery on tiny data, and a README that says what its results say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "examples/clap_alibi"
sys.path[:0] = [str(ROOT / "examples"), str(STUDY)]

import studies  # noqa: E402
import study  # noqa: E402


def test_the_readme_holds_the_printed_tables() -> None:
    printed = study.tables()
    readme = (STUDY / "README.md").read_text(encoding="utf-8")
    assert printed.count("| zero-clap |") == 2
    for table in filter(None, printed.split("\n\n")):
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


def test_a_study_from_text_to_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "the cat sees a dog near an old house by the sea".split()
    lines = [" ".join(words[(i * j) % 12] for j in range(1, 9)) + "\n" for i in range(400)]
    for split, part in (("train", lines), ("valid", lines[::4]), ("test", lines[1::4])):
        (tmp_path / f"{split}.txt").write_text("".join(part))
    monkeypatch.setattr(study, "MAIN", {name: study.MAIN[name] for name in ("baseline", "alibi")})
    flags = ["--text", tmp_path, "--out", tmp_path / "out", "--only", "main", "--smoke"]
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, flags)])
    study.main()
    found = json.loads((tmp_path / "out/results/main.json").read_text())
    baseline, alibi = found["results"]
    assert [point["update"] for point in alibi["curve"]] == [1, 2, 3]
    assert set(alibi["loss_at_length"]) == {"64", "128", "256"}
    assert set(alibi["loss_at_length"]["256"]) == {"valid", "test"}
    assert "positions" in baseline["loss_at_length"]["128"]
    assert 1 < found["unigram"]["test"] < 6
    rows = study.main_table(found).splitlines()
    assert rows[2].count("refused") == 2 and "refused" not in rows[3]
    assert (tmp_path / "out/results/main.png").is_file()


def test_a_measure_that_fails_leaves_the_training(tmp_path: Path) -> None:
    run = studies.Run("a", 1, ())
    folder = run.folder(tmp_path)
    folder.mkdir()
    (folder / "result.json").write_text('{"name": "a"}')

    def broken(folder: Path) -> dict[str, object]:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        studies.train(run, tmp_path, tmp_path, broken)
    assert studies.train(run, tmp_path, tmp_path, lambda folder: {"b": 2}) == {"name": "a", "b": 2}
    assert studies.train(run, tmp_path, tmp_path, broken) == {"name": "a", "b": 2}


def test_perplexity_changes_are_paired_by_seed() -> None:
    def result(name: str, seed: int, bits: float) -> dict[str, object]:
        return {"name": name, "seed": seed, "loss_at_length": {"64": {"valid": bits, "test": bits}}}

    losses = {"zero-clap": (1.0, 2.0, 3.0), "twice": (2.0, 3.0, 4.0)}
    found = [result(name, i, bits) for name, row in losses.items() for i, bits in enumerate(row)]
    assert study.ablation_table({"results": found}).splitlines()[-1].endswith("| 100.0 ± 0.0 % |")

"""The benchmark page says what the committed records say, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent / "benchmarks"


def program(name: str) -> Any:
    """Return a program of the folder as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_printed_from_the_records() -> None:
    table = program("table")
    assert (ROOT / "README.md").read_text(encoding="utf-8") == table.page()


def test_records_name_machine_command_and_versions() -> None:
    records = sorted((ROOT / "results").glob("*.json"))
    assert records
    for path in records:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert {"benchmark", "command", "machine", "result"} <= set(record)
        assert {"cpu", "cores", "torch", "date", "load"} <= set(record["machine"])


def test_an_estimate_is_what_the_run_takes_in_memory() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "estimate.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (figures,) = json.loads(done.stdout)["result"].values()
    assert 0.85 < figures["memory_ratio"] < 1.15 and figures["peak_MB"] > 200
    assert figures["tokens_s"] > 0 and figures["run_tokens_s"] > 0


def test_the_benchmark_of_heads_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "heads.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    losses, steps = json.loads(done.stdout)["result"].values()
    assert set(losses) == {"encoder V=32k", "decoder V=32k"} and set(steps) == {"V=32k"}
    for row in losses.values():
        assert row["CWT, distinct"]["ms"]["median"] < row["CE, every token"]["ms"]["median"]


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no.txt"
    command = [sys.executable, ROOT / "run.py", "masking", "--quick", "--text", missing]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and f"{missing}: no such text; 'make demo/corpus" in done.stderr


def test_cost_grows_with_what_is_trained_on() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cost.py"), "tokens", "processes", "corpus", "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout)["result"]
    tokens, processes = result["tokens"], result["processes"]
    assert list(tokens) == ["1,024", "8,192"] and tokens["8,192"]["exponent"] > 0.3
    assert processes["2"]["MB"] > 1.3 * processes["1"]["MB"]  # those of both, not of the first
    rows = result["corpus, MB: preprocess"]
    assert list(rows) == ["1", "2"] and all(row["seconds"]["median"] > 0 for row in rows.values())


def test_an_exponent_is_the_slope_between_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    seconds = {10: [2.0] * 10, 40: [8.0] * 10, 80: [32.0] * 10}
    rows = program("cost").table("seconds", seconds, {10: [50.0], 40: [100.0], 80: [100.0]})
    assert [row["exponent"] for row in rows.values()] == [None, 1.0, 2.0]
    assert [row["exponent of memory"] for row in rows.values()] == [None, 0.5, 0.0]
    assert rows["80"]["interval"] == [2.0, 2.0] and rows["80"]["seconds"]["median"] == 32.0


def test_the_benchmark_of_operations_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "ops.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    *_, products, attention, losses, contrast, update = json.loads(done.stdout)["result"].values()
    for part in (products, attention, losses, contrast, update):
        assert all(figure["median"] > 0 for row in part.values() for figure in row.values())
    assert all(set(row) >= {"rows, dropout", "sdpa"} for row in attention.values())
    assert all(set(row) == {"floor", "chunked", "reference", "PyTorch"} for row in losses.values())
    assert {*next(iter(contrast.values()))} == {"distinct", "the paper's form"}


def test_the_benchmark_of_distillation_runs() -> None:
    """All forms give the same loss and gradient, or the program says so and fails."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "distillation.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout)["result"]
    rows = result["V=2k, 64 tokens"]
    assert set(rows) == {
        "whole logits", "torch.func by chunks", "liger-kernel", "linear_distillation",
    }  # fmt: skip
    assert all((row["ms"] is None) == bool(row["note"]) for row in rows.values())


def test_the_benchmark_of_padding_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "unpadded.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    ratios = json.loads(done.stdout)["result"]["padding"]["50 %"]
    assert set(ratios) == {"evaluation", "training"}
    assert all(float(text.split()[0]) > 1 for text in ratios.values())


def test_commands_of_two_checkouts_take_turns(tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("".join(f"a line of words {i % 7}\n" for i in range(400)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "against.py"), str(ROOT.parent), "--text", str(text),
         "--quick", "--rounds", "1", "--only", "fairseq-train --help", "encode"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = json.loads(done.stdout)["result"]["commands"]
    assert 0 < rows["fairseq-train --help"]["here"] < 5
    assert 0.2 < rows["fairseq-train --help"]["ratio"] < 5
    # the files of that tokenizer are not beside this text, so the command fails
    assert rows["fairseq-bpe encode"]["so"] == "missing"


def test_an_evaluation_brings_the_training_of_its_model() -> None:
    chosen = program("against").chosen
    assert chosen(["validate"]) == ["fairseq-train, masked", "fairseq-validate"]
    assert chosen(["eval-lm", "help"])[1:] == ["fairseq-train, causal", "fairseq-eval-lm"]
    assert len(chosen([])) == len(program("against").COMMANDS)


def test_slower_is_said_only_of_a_whole_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    judged = program("against").judged
    base = [1.0] * 10
    for here, said in (
        ([1.2] * 10, "slower"),
        ([1.2] * 8 + [1.0] * 2, "cannot be told"),  # the interval leaves one out at each end
        ([1.02] * 10, "not slower"),
        ([0.5] * 10, "faster"),
        ([1.2] * 5, "slower of five"),
    ):
        row = judged({"here": here, "there": base[: len(here)]})
        assert row["so"] == ("cannot be told" if len(here) < 6 else said)


def test_the_benchmark_of_grammars_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "pcfg.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout)["result"]
    assert (result["symbols"], result["words"]) == (50, 200)
    assert result["sample_s"] > result["single_mask_s"] > 0


def test_the_comparison_of_muon_extends_its_rates_and_pairs_its_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = program("muon")
    best = {"AdamW": 0.004, "Muon": 0.03}

    def compared(differences: list[float]) -> Any:
        def train(runs: list[Any]) -> list[Any]:
            results = []
            for run in runs:
                loss = abs(float(run.words[-1]) - best[run.name])
                if run.seed:
                    loss = differences[run.seed - 1] if run.name == "Muon" else 0.0
                results.append({"curve": [{"loss": loss}]})
            return results

        return module.compare((), train)

    result = compared([1.0, 2.0, 3.0])
    assert [float(rate) for rate in result["AdamW"]["bits by rate, seed 0"]] == list(module.RATES)
    rates = [float(rate) for rate in result["Muon"]["bits by rate, seed 0"]]
    assert rates == [0.002, 0.004, 0.008, 0.016, 0.032, 0.064]
    assert result["Muon"]["best rate"] == 0.032
    # 4.303 standard errors (1 / sqrt 3) on either side
    assert result["Muon minus AdamW, bits"] == {
        "mean": 2.0,
        "interval_95": [-0.4843, 4.4843],
        "so": "cannot be told",
    }
    for differences, verdict in (
        ([-1.0, -1.1, -0.9], "Muon is better"),
        ([1.0, 1.1, 0.9], "AdamW is better"),
    ):
        assert compared(differences)["Muon minus AdamW, bits"]["so"] == verdict

"""The benchmark page says what the committed records say, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "benchmarks"


def test_page_is_printed_from_the_records() -> None:
    spec = importlib.util.spec_from_file_location("table", ROOT / "table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert (ROOT / "README.md").read_text(encoding="utf-8") == table.page()


def test_records_name_machine_command_and_versions() -> None:
    records = sorted((ROOT / "results").glob("*.json"))
    assert records
    for path in records:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert {"benchmark", "command", "machine", "result"} <= set(record)
        assert {"cpu", "cores", "torch", "date", "load"} <= set(record["machine"])


def test_the_benchmark_of_heads_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "heads.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    losses, steps = json.loads(done.stdout)["result"].values()
    assert set(losses) == {"encoder V=32k", "decoder V=32k"} and set(steps) == {"V=32k"}
    for row in losses.values():
        assert row["CWT, distinct"]["ms"] < row["CE, every token"]["ms"]


def test_the_benchmark_of_distillation_runs() -> None:
    """All forms give the same loss, or the program says so and fails."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "distillation.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout)["result"]
    assert set(result["V=2k, 64 tokens"]) == {
        "whole logits", "autograd by chunks", "linear_distillation",
    }  # fmt: skip


def test_the_benchmark_of_grammars_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "pcfg.py"), "--quick"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout)["result"]
    assert (result["symbols"], result["words"]) == (50, 200)
    assert result["sample_s"] > result["single_mask_s"] > 0

"""The check of a CUDA machine says so, and nothing else, where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command", [["scripts/gpu_check.sh"], [sys.executable, "benchmarks/gpu.py"]]
)
def test_without_a_gpu_nothing_is_measured(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    given = [str(output)] if len(command) == 1 else ["--output", str(output)]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *given], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and not output.exists()
    assert "CUDA GPU" in done.stderr and "Traceback" not in done.stderr

"""Records of what was measured: the figures with the command, commit, machine and versions."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEERS = (
    "torch", "transformers", "liger-kernel", "cut-cross-entropy", "triton", "flash-attn", "xformers"
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    import os

    import numpy
    import torch

    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def command() -> str:
    """Return the command line of this process, as it is typed in the root of the project."""
    program = Path(sys.argv[0]).resolve()
    name = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program.name
    return " ".join(["python", str(name), *sys.argv[1:]])


def commit(checkout: Path = ROOT) -> str | None:
    """Return the commit that is measured; None outside of a repository."""
    asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def peers(python: str = sys.executable, names: Sequence[str] = PEERS) -> dict[str, str]:
    """Return the versions of the packages to compare with that an interpreter has."""
    ask = (
        "import importlib.metadata as m, json, sys\nfound = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [python, "-c", ask, *names],
        check=True,
        capture_output=True,
        text=True,
        cwd=tempfile.gettempdir(),  # what the interpreter has, not this folder
    ).stdout
    found: dict[str, str] = json.loads(done)
    return found


def publish(
    name: str,
    result: dict[str, Any],
    file: Path | None = None,
    where: dict[str, Any] | None = None,
) -> None:
    """Print the record of a benchmark and, if a file is named, write it.

    Args:
        name: of the benchmark.
        result: its figures.
        file: the file.
        where: what :func:`machine` said before the benchmark put its load on it.
    """
    record = {
        "benchmark": name,
        "command": command(),
        "commit": commit(),
        "peers": peers(),
        "machine": where or machine(),
        "result": result,
    }
    text = json.dumps(record, indent=1)
    print(text, flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")

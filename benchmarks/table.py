"""Print benchmarks/README.md from the records in benchmarks/results.

Usage: python benchmarks/table.py > benchmarks/README.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
ORDER = ("startup", "masking", "preprocess", "bpe", "training", "heads", "minilm", "faults")
HEAD = """# Benchmarks

`make bench` measures again (all of it takes about ten minutes); `python benchmarks/run.py NAME`
measures one. Each record in [results](results) names its command, machine, date and versions.
What is compared with another program runs in the same process, interleaved. "Times original" is
against 1.3 MB/s (preprocess) and 1.4 MB/s (BPE), which the original fairseq reached on another
two-core machine. `ratio` is tokens a second against a plain `transformers.RobertaForMaskedLM` loop
with the same dropout and fused AdamW; `ratio_to_gathering` against such a loop that projects the
masked positions only. The machine below was shared while it was measured: see `load`.
This page is printed by `benchmarks/table.py`.
"""


def rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return a nested record as flat (name, figure) pairs."""
    flat: list[tuple[str, Any]] = []
    for name, value in result.items():
        if isinstance(value, dict):
            flat += rows(value, f"{prefix}{name}: ")
        else:
            flat.append((prefix + name, value))
    return flat


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for name in ORDER:
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        machine = record["machine"]
        parts.append(
            f"## {name}\n\n`{record['command']}`, {machine['cpu']}, {machine['cores']} cores, "
            f"load {machine['load']:.1f}, torch {machine['torch']}, {machine['date']}\n\n"
            "| figure | value |\n|---|---|\n"
            + "".join(f"| {key} | {value} |\n" for key, value in rows(record["result"]))
        )
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")

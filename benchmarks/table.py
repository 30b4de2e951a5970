"""Print benchmarks/README.md from the records in benchmarks/results.

Usage: python benchmarks/table.py > benchmarks/README.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
ORDER = (
    "startup",
    "masking",
    "preprocess",
    "bpe",
    "against",
    "step",
    "step_intel",
    "cost",
    "ops",
    "training",
    "estimate",
    "heads",
    "distillation",
    "growth",
    "minilm",
    "muon",
    "unpadded",
    "pcfg",
    "faults",
)
HEAD = """# Benchmarks

`make bench` measures again, most of it in ten rounds; `python benchmarks/run.py NAME`
measures one; `cost.py`, `estimate.py`, `heads.py`, `minilm.py`, `muon.py`, `ops.py`,
`pcfg.py` and `unpadded.py` are programs of their own; `against.py CHECKOUT` runs the commands
of this code and of another checkout's in turn. A figure of several rounds is their median, with the
quartiles. Each record in [results](results) names its command, machine, date and versions. What is
compared with another program runs in the same process, interleaved. "Times original" is against
1.3 MB/s (preprocess) and 1.4 MB/s (BPE), which the original fairseq reached on another two-core
machine.
`ratio` is tokens a second against a plain `transformers.RobertaForMaskedLM` loop with the same
dropout and fused AdamW;
`ratio_to_gathering` against such a loop that projects the masked positions only. In `heads`, CE is
cross-entropy over V words and CWT contrastive weight tying; an encoder predicts 15 % of the tokens,
a decoder all; MB is what a loss needs at its peak beyond its operands; "N x N" is this
project's plain reference, which builds more than the loss as its paper writes it, "distinct" the
way here, with equal values. `distillation` compares forms of T^2 KL between two
projections, forward and backward, with equal values. `growth` is a step that learns a growth
operator beside one that trains the large model itself, and processor time and peak memory of
`fairseq-grow` from 6 layers of 384 to 12 of 768 by each method (`extract`, `pool`: the other way).
In `step`, the floor is the products of a step by `torch.matmul`, the faster floor those by the
library that a step takes, which is oneDNN for some on some processors; a share of the former may
exceed 1.
In `cost`, an exponent is that of the growth since the row above: 1 is in proportion, 0 not at all;
memory is the sum over the processes of a run.
In `against`, figures are seconds of each command here and in the other checkout, and their ratio
with its interval; more than 1.03 with all of the interval is "slower".
In `estimate`, ratios are what `fairseq-train --estimate` said over what the run took.
In `unpadded`, ratios are how many times longer padded rows take; "fine-tuning" is `fairseq-train`.
In `pcfg`, figures are sentences per second of
processor time of one core: drawn, drawn and written as text, all conditionals of one hidden word,
best parses. The machine below was shared while it was measured:
see `load`.
This page is printed by `benchmarks/table.py`.
"""


def is_spread(value: Any) -> bool:
    """Whether a figure is one of several rounds."""
    return isinstance(value, dict) and set(value) == {"median", "quartiles"}


def shown(spread: dict[str, Any]) -> str:
    """Return the median, and the quartiles in brackets."""
    return "{} ({}-{})".format(spread["median"], *spread["quartiles"])


def rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return a nested record as flat (name, figure) pairs."""
    flat: list[tuple[str, Any]] = []
    for name, value in result.items():
        if is_spread(value):
            flat.append((prefix + name, shown(value)))
        elif isinstance(value, dict):
            flat += rows(value, f"{prefix}{name}: ")
        else:
            flat.append((prefix + name, value))
    return flat


def is_grid(part: Any) -> bool:
    """Whether a part of a record has rows that share their columns."""
    if not isinstance(part, dict) or not all(isinstance(row, dict) for row in part.values()):
        return False
    return len(part) > 1 and len({tuple(row) for row in part.values()}) == 1


def grid(name: str, part: dict[str, dict[str, Any]]) -> str:
    """Return a table with the rows and columns of the record; a cell may hold several figures."""

    def cell(value: Any) -> str:
        if not isinstance(value, dict):
            return "" if value is None else str(value)
        if is_spread(value):
            return shown(value)
        return ", ".join(
            f"{shown(figure) if is_spread(figure) else format(figure, ',')} {unit.split('_')[-1]}"
            for unit, figure in value.items()
        )

    columns = list(next(iter(part.values())))
    lines = [[name, *columns], ["---"] * (1 + len(columns))]
    lines += [[key, *(cell(row[column]) for column in columns)] for key, row in part.items()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def steps(result: dict[str, Any]) -> str:
    """Return a row for each case of `step.py`; a peer that was not there leaves its cell empty."""
    peers = list(dict.fromkeys(name for case in result.values() for name in case["beside"]))
    columns = ["case", "ms", "share of the floor", "of the faster floor", "rounds", "load", *peers]
    lines = [columns, ["---"] * len(columns)]
    for name, case in result.items():
        low, high = case["quartiles_of_share"]
        line = [
            name,
            case["ms"]["fairseq-train"][1],
            f"{case['share_of_gemm_floor']} ({low}-{high})",
        ]
        faster = case.get("share_of_faster_floor")
        line.append(f"{faster[1]} ({faster[0]}-{faster[2]})" if faster else "")
        line += [case["rounds"], case["load"]]
        for peer in peers:
            beside = case["beside"].get(peer)
            line.append(f"{beside['ratio']} {beside['interval'] or ''}" if beside else "")
        lines.append([str(cell) for cell in line])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def tables(result: dict[str, Any]) -> str:
    """Return the figures of a record: a grid for each part that is one, a list for the others."""
    grids = {name: part for name, part in result.items() if is_grid(part)}
    flat = rows({name: value for name, value in result.items() if name not in grids})
    lines = "".join(f"| {key} | {value} |\n" for key, value in flat)
    listed = ["| figure | value |\n|---|---|\n" + lines] if flat else []
    return "\n".join(listed + [grid(name, part) for name, part in grids.items()])


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
            + (steps if name.startswith("step") else tables)(record["result"])
        )
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")

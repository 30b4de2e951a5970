"""What layers without padding save (--unpadded): by the share of padding, and in fine-tuning.

Usage: python benchmarks/unpadded.py [--glue FOLDER] [--rounds N] [--quick]

First an encoder alone (4 layers of 256, 16 rows of 128 tokens), one thread: processor time with
padded rows over that without, in turns, for several shares of padding; evaluation, and forward and
backward with dropout. That decides where `auto` begins. Then, with --glue (CoLA/train.tsv and so
on), `fairseq-train` itself, fine-tuning on batches of 32 sentences in a drawn order, words for
tokens: two processes that see the same batches and take turns of two updates.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.record import RESULTS, machine  # noqa: E402
from benchmarks.rounds import quartiles, ratios  # noqa: E402
from benchmarks.step import Contestant, environment  # noqa: E402

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
TASKS = ("CoLA", "SST-2", "MRPC")
ROWS, LENGTH, LAYERS, WIDTH, HEADS = 16, 128, 4, 256, 4
MODES = ("off", "on")  # padded first


# -- the encoder alone -----------------------------------------------------------------------------


def batch(share: float, rows: int, length: int) -> Any:
    """Return random tokens, one row of which is full; the others share the padding."""
    import torch

    tokens_BT = torch.randint(4, 1000, (rows, length), generator=torch.Generator().manual_seed(0))
    pads = round(share * rows * length)
    for row in range(1, rows):
        here = pads * row // (rows - 1) - pads * (row - 1) // (rows - 1)
        tokens_BT[row, length - here :] = 1
    return tokens_BT


def encoder_runs(training: bool) -> dict[str, Callable[[Any], None]]:
    """Return what runs a batch through the encoder, for each mode; the weights are the same."""
    import torch

    from fairseq.modules.transformer_encoder import EncoderShape, TransformerEncoder
    from fairseq.modules.transformer_layer import LayerShape

    layer = LayerShape(WIDTH, 4 * WIDTH, HEADS)
    torch.manual_seed(0)
    shape = EncoderShape(1000, 1, LENGTH, LAYERS, layer)
    model = TransformerEncoder(shape).train(training)

    def run(mode: str, tokens_BT: Any) -> None:
        model.shape = dataclasses.replace(shape, unpadded=mode)
        with torch.set_grad_enabled(training):
            x_BTC, _ = model(tokens_BT)
        if training:
            x_BTC.sum().backward()

    return {mode: lambda tokens, mode=mode: run(mode, tokens) for mode in MODES}


def by_share(rounds: int, shares: tuple[float, ...], rows: int) -> dict[str, Any]:
    """Return, for each share of padding, how many times longer padded rows take."""
    table: dict[str, dict[str, Any]] = {}
    for share in shares:
        tokens_BT, line = batch(share, rows, LENGTH), {}
        for name, training in (("evaluation", False), ("training", True)):
            runs = encoder_runs(training)
            spent: dict[str, list[float]] = {mode: [] for mode in MODES}
            for turn in range(rounds + 1):
                for mode in MODES[:: 1 if turn % 2 else -1]:
                    began = time.process_time()
                    runs[mode](tokens_BT)
                    if turn:  # the first one allocates
                        spent[mode].append(time.process_time() - began)
            low, middle, high = quartiles(ratios(spent["off"], spent["on"]), 2)
            line[name] = f"{middle} ({low}-{high})"
        table[f"{100 * share:g} %"] = line
        print(f"{100 * share:g} % padding: {line}", file=sys.stderr, flush=True)
    return table


# -- fine-tuning -----------------------------------------------------------------------------------


def write_task(name: str, glue: Path, folder: Path) -> Path:
    """Binarize the training sentences of a task, words for tokens; return the folder."""
    from fairseq.evaluation.glue.tasks import find_task, read_examples

    task = find_task(name)
    content = read_examples(task, glue / name / "train.tsv")
    target = folder / name
    columns = {f"input{i}": column for i, column in enumerate(content.columns)}
    columns["label"] = content.labels
    known: list[str] = []
    for part, lines in columns.items():
        text = folder / f"{name}.{part}"
        text.write_text("".join(f"{' '.join(line.split())}\n" for line in lines))
        same = known if part == "input1" else []
        subprocess.run(
            [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", "--trainpref", text,
             "--destdir", target / part, *same],
            check=True, stdout=-3, stderr=-3, env=environment(1),
        )  # fmt: skip
        known = ["--srcdict", str(target / "input0" / "dict.txt")]
    return target


def train_command(data: Path, mode: str) -> list[str]:
    """Return the command that fine-tunes a new model."""
    words = [
        sys.executable, "-m", "fairseq_cli.train", data, "--task", "sentence_prediction",
        "--criterion", "sentence_prediction", "--num-classes", 2, "--arch", "roberta",
        "--encoder-layers", LAYERS, "--encoder-embed-dim", WIDTH, "--encoder-ffn-embed-dim",
        4 * WIDTH, "--encoder-attention-heads", HEADS, "--init-token", 0, "--separator-token", 2,
        "--batch-size", 32, "--optimizer", "adam", "--lr", 1e-5, "--lr-scheduler", "fixed",
        "--max-update", 1_000_000, "--log-interval", 2, "--log-format", "json", "--no-save",
        "--disable-validation", "--num-workers", 0, "--device", "cpu", "--seed", 1,
        "--unpadded", mode,
    ]  # fmt: skip
    return [str(word) for word in words]


def fine_tuning(data: Path, rounds: int) -> dict[str, Any]:
    """Return milliseconds an update of both, and their ratio, round by round."""
    running: dict[str, Contestant] = {}
    times: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    try:
        for mode in MODES:
            running[mode] = Contestant(mode, train_command(data, mode), environment(1))
        for each in running.values():
            each.turn(), each.turn()  # starting, and the first updates
        for number in range(rounds):
            for mode in MODES[:: 1 if number % 2 else -1]:
                times[mode].append(running[mode].turn())
    finally:
        for each in running.values():
            each.end()
    padded, unpadded = ([turn[0] for turn in times[mode]] for mode in MODES)
    low, middle, high = quartiles(ratios(padded, unpadded), 2)
    return {
        "padded, ms": round(statistics.median(padded), 1),
        "unpadded, ms": round(statistics.median(unpadded), 1),
        "ratio": f"{middle} ({low}-{high})",
    }


def main() -> None:
    """Measure, print the record and keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--glue", type=Path, help="folder with CoLA/train.tsv, ...")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each")
    parser.add_argument("--quick", action="store_true", help="a small problem; nothing is kept")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    shares, rows, rounds = (SHARES, ROWS, args.rounds) if not args.quick else ((0.5,), 2, 2)
    result: dict[str, Any] = {"threads": 1, "padding": by_share(rounds, shares, rows)}
    if args.glue is not None:
        with tempfile.TemporaryDirectory() as folder:
            result["fine-tuning"] = {
                name: fine_tuning(write_task(name, args.glue, Path(folder)), rounds)
                for name in TASKS[: 1 if args.quick else None]
            }
    record = {
        "benchmark": "unpadded",
        "command": " ".join(["python", "benchmarks/unpadded.py", *sys.argv[1:]]),
        "machine": machine(),
        "result": result,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if not args.quick:
        (RESULTS / "unpadded.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What benchmarks of single steps share: peak memory, turns, a training step, the command line."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.record import RESULTS, publish  # noqa: E402

Run = Callable[[], None]


def peaks(makes: Sequence[Callable[[], Run]], device: str) -> list[float]:
    """Return how many MB running each once needs beyond its operands.

    On a CPU call it before this process computes: children are forked, and torch's threads do not
    survive a fork.
    """
    return [(_on_gpu if device == "cuda" else _in_a_child)(make) for make in makes]


def _in_a_child(make: Callable[[], Run]) -> float:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run = make()
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
        run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        os.write(write, json.dumps(peak - before).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return float(json.loads(text))


def _on_gpu(make: Callable[[], Run]) -> float:
    run = make()
    run()
    return peak_on_gpu(run)


def peak_on_gpu(run: Callable[[], object]) -> float:
    """Return how many MB running once needs beyond what is there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def milliseconds(runs: Sequence[Run], rounds: int, device: str) -> list[float]:
    """Return the median time of each function in ms; they take turns, the first not counted."""
    return [statistics.median(taken) for taken in times(runs, rounds, device)]


def times(runs: Sequence[Run], rounds: int, device: str) -> list[list[float]]:
    """Return the times of all turns in ms; the functions take turns, the first is not counted."""
    all_taken: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 1):
        for run, taken in zip(runs, all_taken, strict=True):
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                taken.append(1000 * (time.perf_counter() - started))
    return all_taken


def training_step(
    settings: dict[str, Any], vocabulary: int, device: str, sample: dict[str, Any]
) -> Run:
    """Return a function that takes one step of AdamW.

    Args:
        settings: of model, task and criterion, flat.
        vocabulary: V.
        device: where the model goes.
        sample: the batch, which is there.
    """
    from fairseq.config.components import make_config
    from fairseq.criterions import build_criterion
    from fairseq.data.storage.dictionary import Dictionary
    from fairseq.models import build_model

    dictionary = Dictionary()
    for word in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(str(word))
    config = make_config({"data": "none", **settings})
    task = SimpleNamespace(
        cfg=config.task, source_dictionary=dictionary, target_dictionary=dictionary, mask_idx=4
    )
    torch.manual_seed(0)
    model = build_model(config.model, task).to(device).train()
    criterion = build_criterion(config.criterion, task)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        loss, size, _ = criterion(model, sample)
        (loss / size).backward()
        optimizer.step()

    return run


def main(
    name: str, doc: str, measure: Callable[..., dict[str, Any]], sizes: Sequence[int],
    small: Sequence[int],
) -> None:  # fmt: skip
    """Measure with one thread, print the record and keep it.

    Args:
        name: of the benchmark.
        doc: for ``--help``.
        measure: takes the sizes and the device; returns figures.
        sizes: of the problem.
        small: those of ``--quick``.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="a small problem; nothing is kept")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures = measure(*(small if quick else sizes), device)
    file = RESULTS / f"{name}{'_gpu' if device == 'cuda' else ''}.json"
    publish(name, {"device": device, "threads": 1, **figures}, None if quick else file)

"""Speed, measured: each benchmark prints a JSON record; all records go to benchmarks/results.

Usage: python benchmarks/run.py [NAME ...] [--text FILE] [--quick]

Whatever is compared runs in the same process (or the same series of processes), interleaved, in ten
rounds; records keep the median and the quartiles. ``--text`` is any English text; without it the
demo's corpus is used. ``--quick`` takes two rounds and smaller files and keeps nothing.
"""

from __future__ import annotations

import argparse
import shutil
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
from benchmarks.record import RESULTS, machine, publish  # noqa: E402
from benchmarks.rounds import spread  # noqa: E402

BIN = Path(sys.executable).parent
ORIGINAL = {"preprocess_MB_s": 1.3, "bpe_MB_s": 1.4}  # the original, on two cores of this kind


def rounds_of(quick: bool) -> int:
    """Return how often everything is measured."""
    return 2 if quick else 10


def repeated(text: Path, megabytes: float, target: Path) -> float:
    """Write ``text`` repeated to about ``megabytes``; return the exact size in MB."""
    content = text.read_bytes()
    times = max(1, round(megabytes * 1e6 / len(content)))
    with open(target, "wb") as handle:
        for _ in range(times):
            handle.write(content)
    return len(content) * times / 1e6


def peak_of(command: list[str]) -> tuple[float, float]:
    """Return wall-clock seconds and peak memory in MB of one command, measured by itself."""
    probe = (
        "import resource, subprocess, sys, time; t = time.perf_counter(); "
        "subprocess.run(sys.argv[1:], check=True, stdout=-3, stderr=-3); "
        "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    out = subprocess.run(
        [sys.executable, "-c", probe, *command], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(out[0]), float(out[1]) / 1024


def rates(megabytes: float, seconds: list[float], original: float) -> dict[str, Any]:
    """Return MB/s of all rounds, and how many times the original's rate their median is."""
    reached = spread([megabytes / taken for taken in seconds], 1)
    return {"MB_s": reached, "times_original": round(reached["median"] / original, 1)}


def preprocess(text: Path, quick: bool) -> dict[str, Any]:
    """Dictionary and binarization of 27 and 270 MB with one and two workers, start-up included."""
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "text", Path(folder) / "out"
        for size in (27,) if quick else (27, 270):
            exact = repeated(text, size, source)
            runs: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            for turn in range(2 * rounds_of(quick)):
                workers = turn % 2 + 1
                command = [
                    str(BIN / "fairseq-preprocess"), "--only-source", "--trainpref", str(source),
                    "--destdir", str(target), "--workers", str(workers),
                ]  # fmt: skip
                runs[workers].append(peak_of(command))
                shutil.rmtree(target)
            seconds = {workers: [taken for taken, _ in run] for workers, run in runs.items()}
            for workers, run in runs.items():
                record[f"{size}MB_{workers}w"] = {
                    **rates(exact, seconds[workers], ORIGINAL["preprocess_MB_s"]),
                    "peak_MB": round(statistics.median(peak for _, peak in run)),
                }
            gain = statistics.median(seconds[1]) / statistics.median(seconds[2])
            record[f"{size}MB_gain_of_second_worker"] = round(gain, 2)
    return record


def bpe(text: Path, quick: bool) -> dict[str, Any]:
    """GPT-2 encoding of 10 MB, start-up included (needs the GPT-2 files beside the text)."""
    files = text.resolve().parent.parent / "gpt2_bpe"
    if not (files / "encoder.json").is_file():
        return {"skipped": f"no encoder.json in {files}"}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "text"
        exact = repeated(text, 1 if quick else 10, source)
        for turn in range(2 * rounds_of(quick)):
            workers = turn % 2 + 1
            command = [
                str(BIN / "fairseq-bpe"), "encode", "--bpe", "gpt2",
                "--gpt2-encoder-json", str(files / "encoder.json"),
                "--gpt2-vocab-bpe", str(files / "vocab.bpe"), "--inputs", str(source),
                "--outputs", str(Path(folder) / "out"), "--keep-empty", "--workers", str(workers),
            ]  # fmt: skip
            seconds[workers].append(peak_of(command)[0])
    return {f"{n}w": rates(exact, taken, ORIGINAL["bpe_MB_s"]) for n, taken in seconds.items()}


def startup(text: Path, quick: bool) -> dict[str, Any]:
    """Seconds to import and to show help."""
    commands = {
        "import_torch_s": [sys.executable, "-c", "import torch"],
        "import_torch_and_fairseq_s": [sys.executable, "-c", "import torch, fairseq"],
        "train_help_s": [str(BIN / "fairseq-train"), "--help"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds_of(quick)):
        for name, command in commands.items():
            taken[name].append(peak_of(command)[0])
    torch_s, both_s, help_s = taken.values()
    over = [both - torch for both, torch in zip(both_s, torch_s, strict=True)]
    return {
        "import_torch_s": spread(torch_s, 3),
        "import_fairseq_over_torch_s": spread(over, 3),
        "train_help_s": spread(help_s, 3),
    }


def masking(text: Path, quick: bool) -> dict[str, Any]:
    """Samples of 128 tokens masked and collated per second, one thread."""
    import numpy as np

    from fairseq.data.masking import MaskSpec
    from fairseq.data.masking.dataset import MaskedLMDataset

    rng = np.random.default_rng(0)
    blocks = rng.integers(4, 50000, size=(4096, 128))
    blocks[:, 0], blocks[:, -1] = 0, 2
    spec = MaskSpec(vocab_size=50265, pad=1, mask=50264, specials=(0, 2), never_drawn=(3,))
    dataset = MaskedLMDataset(blocks, spec, sizes=np.full(4096, 128), pad=1, seed=1)
    reached = []
    for epoch in range(1, rounds_of(quick) + 1):
        dataset.set_epoch(epoch)
        started = time.perf_counter()
        for start in range(0, 4096, 32):
            dataset.collater([dataset[i] for i in range(start, start + 32)])
        reached.append(4096 / (time.perf_counter() - started))
    return {"samples_s": spread(reached, 0)}


def _our_step(case: Any) -> Callable[[], object]:
    """Return a step of our model and loss on the batches of the peers."""
    import types

    from benchmarks import step_peers
    from fairseq.models.roberta.model import RobertaConfig, RobertaEncoder, RobertaModel
    from fairseq.modules.predictions import predict

    config = RobertaConfig(
        encoder_layers=4,
        encoder_embed_dim=256,
        encoder_ffn_embed_dim=1024,
        encoder_attention_heads=4,
        max_positions=128,
    )
    words = {"__len__": lambda self: case.vocabulary, "pad": lambda self: 1}
    model = RobertaModel(config, RobertaEncoder(config, type("Vocabulary", (), words)()))

    def loss(batch: types.SimpleNamespace) -> Any:
        target_N = batch.target.reshape(-1)[batch.places]
        sample = {"net_input": {"src_tokens": batch.tokens}, "target": batch.target}
        predictions = predict(model, sample, batch.places, masked_tokens=True)
        return predictions.losses(target_N).mean()

    return step_peers.loop(model, case, loss)


def training(text: Path, quick: bool) -> dict[str, Any]:
    """4 layers of 256, 32 x 128 tokens: ours against loops around transformers, interleaved."""
    import torch

    record: dict[str, Any] = {"threads": torch.get_num_threads()}
    for vocabulary in (8001, 50265):
        for name, bf16 in (("fp32", False), ("bf16", True)):
            record[f"V{vocabulary}_{name}"] = _compare(vocabulary, bf16, rounds_of(quick))
    return record


def _compare(vocabulary: int, bf16: bool, rounds: int) -> dict[str, Any]:
    import torch

    from benchmarks.step import LENGTH, ROWS, Case
    from benchmarks.step_peers import transformers_masked
    from benchmarks.timing import milliseconds

    torch.manual_seed(0)
    case = Case("masked", vocabulary, 0.1, torch.get_num_threads())
    steps = {
        "ours": _our_step(case),
        "transformers": transformers_masked(case, False, "sdpa"),
        "transformers_gathering": transformers_masked(case, True, "sdpa"),
    }
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)
    taken = milliseconds([autocast(step) for step in steps.values()], rounds, "cpu")
    median = dict(zip(steps, taken, strict=True))
    return {
        **{f"{name}_tokens_s": round(1000 * ROWS * LENGTH / ms) for name, ms in median.items()},
        "ratio": round(median["transformers"] / median["ours"], 2),
        "ratio_to_gathering": round(median["transformers_gathering"] / median["ours"], 2),
    }


BENCHMARKS = {f.__name__: f for f in (startup, masking, preprocess, bpe, training)}


def main() -> None:
    """Run the named benchmarks (all if none) and write their records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="default: all")
    default = ROOT / "demo" / "corpus" / "train.txt"
    parser.add_argument("--text", type=Path, default=default, help="English text")
    parser.add_argument(
        "--quick", action="store_true", help="two rounds, smaller files; nothing is written"
    )
    args = parser.parse_args()
    if not args.text.is_file():
        parser.error(
            f"{args.text}: no such text; 'make demo/corpus/train.txt' builds it, or --text"
        )
    for name in args.names or BENCHMARKS:
        where, result = machine(), BENCHMARKS[name](args.text, args.quick)
        kept = not args.quick and "skipped" not in result  # what was measured before stays
        publish(name, result, RESULTS / f"{name}.json" if kept else None, where)


if __name__ == "__main__":
    main()

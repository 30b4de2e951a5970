"""What growth costs: each method of fairseq-grow, and a step that learns an operator.

Usage: python benchmarks/growth.py [--quick]

A RoBERTa of 2 layers of 128 learns to be one of 4 layers of 256, V = 8,192, 2,048 tokens a step,
with AdamW and one thread. The other step trains the large model itself. The two take turns, and the
median counts; peak memory is what a process needs for one step beyond the models as they were
built.

Methods read a checkpoint with random weights, compare logits where they can, and write another one:
from 6 pre-norm layers of 384 to 12 of 768 (extract, pool: the other way), V = 8,192. Each runs in a
process of its own; `cpu_s` is its processor time, `peak_MB` what it needs beyond what it had
imported.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from timing import Run, main, milliseconds, peaks, training_step

from fairseq.config.components import make_config
from fairseq.data.storage.dictionary import Dictionary
from fairseq.export.model_files import write_model
from fairseq.growth.files import Opened, grow_file, target_of
from fairseq.growth.methods import GROWTH, Options
from fairseq.models import build_model

FORMS = ("the large model", "its operator", "its operator, one matrix for all layers")
PAD = 1  # of every dictionary


def settings(layers: int, width: int, length: int, **more: Any) -> dict[str, Any]:
    """Return the settings of an encoder."""
    return {
        "task": "masked_lm", "criterion": "masked_lm", "arch": "roberta",
        "encoder_layers": layers, "encoder_embed_dim": width, "encoder_ffn_embed_dim": 4 * width,
        "encoder_attention_heads": width // 32, "dropout": 0.0, "attention_dropout": 0.0,
        "tokens_per_sample": length, "max_positions": length, **more,
    }  # fmt: skip


def step_of(form: str, vocabulary: int, rows: int, length: int, device: str) -> Run:
    """Return a function that takes one training step of a form."""
    more: dict[str, Any] = {}
    if form != FORMS[0]:
        more = learner(settings(2, 128, length))
        more |= {"ligo_share": "global"} if form == FORMS[2] else {}
    tokens_BT = torch.randint(5, vocabulary, (rows, length), device=device)
    predicted_N = torch.arange(0, tokens_BT.numel(), 7, device=device)
    target_BT = torch.full_like(tokens_BT, PAD)
    target_BT.view(-1)[predicted_N] = tokens_BT.view(-1)[predicted_N]
    sample = {
        "net_input": {"src_tokens": tokens_BT}, "target": target_BT, "nsentences": rows,
        "predicted_positions": predicted_N, "ntokens": tokens_BT.numel(),
    }  # fmt: skip
    return training_step(settings(4, 256, length, **more), vocabulary, device, sample)


def learner(small: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that make a model the operator which grows it from a smaller one."""
    known = vars(make_config(small).model).items()
    told = {name: value for name, value in known if not name.startswith("_")}
    recalled = json.dumps({**told, "_name": "roberta"})
    return {"arch": "ligo_roberta", "ligo_source_config": recalled}


def write_source(folder: Path, source: dict[str, Any]) -> None:
    """Write a checkpoint with random weights."""
    config = make_config({**source, "data": str(folder)})
    words = Dictionary.load(folder / "dict.txt")
    words.add_symbol("<mask>")
    task = SimpleNamespace(cfg=config.task, source_dictionary=words, target_dictionary=words)
    state = build_model(config.model, task).state_dict()
    write_model(folder / "source.pt", state, config, {})


def grow(folder: Path, name: str, sizes: dict[str, Any]) -> None:
    """Do what the command does, and note how long it took."""
    started = time.process_time()
    opened = Opened(folder / "source.pt", folder)
    layers = [*range(0, opened.config.model.encoder_layers, 2)] if name == "extract" else None
    target = target_of(opened.source, sizes, None, options := Options(layers), None)
    method = None if name == "ligo" else name
    grow_file(opened, folder / "grown.pt", method, target, options, force=True)
    (folder / "took").write_text(str(time.process_time() - started))


def costs(vocabulary: int, small: tuple[int, int], large: tuple[int, int]) -> dict[str, Any]:
    """Return processor time and peak memory of every method; models are (layers, width)."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [f"{word} 1" for word in range(vocabulary)]
        (folder / "dict.txt").write_text("\n".join(lines))
        pair = [settings(*size, 128, encoder_normalize_before=True) for size in (small, large)]
        for method in sorted(GROWTH):
            source, target = pair[::-1] if method in ("extract", "pool") else pair
            first = {**target, **learner(source)} if method == "ligo" else source
            sizes = {
                k: v for k, v in target.items() if k.startswith("encoder_") and "norm" not in k
            }
            wanted = {} if method in ("ligo", "extract") else sizes
            # written by another process, whose memory does not count
            peaks([lambda: functools.partial(write_source, folder, first)], "cpu")  # noqa: B023
            (peak,) = peaks([lambda: functools.partial(grow, folder, method, wanted)], "cpu")  # noqa: B023
            found[method] = {
                "cpu_s": round(float((folder / "took").read_text()), 1), "peak_MB": round(peak),
            }  # fmt: skip
    return found


def measure(
    vocabulary: int, rows: int, length: int, rounds: int, layers: int, width: int, device: str
) -> dict[str, Any]:
    """Return what methods cost, and time and memory of steps, also in units of the plain one's."""
    methods = costs(vocabulary, (layers, width), (2 * layers, 2 * width))
    makes = [functools.partial(step_of, form, vocabulary, rows, length, device) for form in FORMS]
    needed = peaks(makes, device)
    taken = milliseconds([make() for make in makes], rounds, device)
    steps = {
        form: {
            "ms": round(ms, 1),
            "peak_MB": round(megabytes),
            "time_of_plain": round(ms / taken[0], 2),
            "memory_of_plain": round(megabytes / needed[0], 2),
        }
        for form, ms, megabytes in zip(FORMS, taken, needed, strict=True)
    }
    return {"steps": steps, "methods": methods}


if __name__ == "__main__":
    main("growth", __doc__, measure, (8_192, 16, 128, 7, 6, 384), (500, 2, 16, 1, 2, 32))

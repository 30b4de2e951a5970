"""What learning a growth operator costs: time and peak memory of its step, against the plain one.

Usage: python benchmarks/growth.py [--quick]

A RoBERTa of 2 layers of 128 learns to be one of 4 layers of 256, V = 8,192, 2,048 tokens a step,
with AdamW and one thread. The other step trains the large model itself. The two take turns, and the
median counts; peak memory is what a process needs for one step beyond the models as they were
built.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
FORMS = ("the large model", "its operator", "its operator, one matrix for all layers")


def settings(layers: int, width: int, length: int, **more: Any) -> dict[str, Any]:
    """Return the settings of an encoder."""
    return {
        "task": "masked_lm", "criterion": "masked_lm", "arch": "roberta", "data": "none",
        "encoder_layers": layers, "encoder_embed_dim": width, "encoder_ffn_embed_dim": 4 * width,
        "encoder_attention_heads": width // 32, "dropout": 0.0, "attention_dropout": 0.0,
        "tokens_per_sample": length, "max_positions": length, **more,
    }  # fmt: skip


def step_of(form: str, vocabulary: int, rows: int, length: int, device: str) -> Callable[[], None]:
    """Return a function that takes one training step of a form."""
    import torch

    from fairseq.config.components import make_config
    from fairseq.criterions import build_criterion
    from fairseq.data.storage.dictionary import Dictionary
    from fairseq.models import build_model

    dictionary = Dictionary()
    for word in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(str(word))
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, mask_idx=4)
    small = make_config(settings(2, 128, length))
    more: dict[str, Any] = {}
    if form != FORMS[0]:
        known = json.dumps({f: v for f, v in vars(small.model).items() if not f.startswith("_")})
        more = {"arch": "ligo_roberta", "ligo_source_config": known}
        more |= {"ligo_share": "global"} if form == FORMS[2] else {}
    config = make_config(settings(4, 256, length, **more))
    task.cfg = config.task
    torch.manual_seed(0)
    model = build_model(config.model, task).to(device).train()
    criterion = build_criterion(config.criterion, task)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    tokens_BT = torch.randint(5, vocabulary, (rows, length), device=device)
    predicted_N = torch.arange(0, tokens_BT.numel(), 7, device=device)
    target_BT = torch.full_like(tokens_BT, dictionary.pad())
    target_BT.view(-1)[predicted_N] = tokens_BT.view(-1)[predicted_N]
    sample = {
        "net_input": {"src_tokens": tokens_BT}, "target": target_BT, "nsentences": rows,
        "predicted_positions": predicted_N, "ntokens": tokens_BT.numel(),
    }  # fmt: skip

    def run() -> None:
        optimizer.zero_grad()
        loss, size, _ = criterion(model, sample)
        (loss / size).backward()
        optimizer.step()

    return run


def measure(vocabulary: int, rows: int, length: int, rounds: int, device: str) -> dict[str, Any]:
    """Return time and peak memory of every form, and of the plain one's, what they are."""
    from heads import milliseconds, peak_in_a_child, peak_on_gpu

    makes = [functools.partial(step_of, form, vocabulary, rows, length, device) for form in FORMS]
    peak = peak_on_gpu if device == "cuda" else peak_in_a_child
    peaks = [peak(make) for make in makes]
    taken = milliseconds([make() for make in makes], rounds, device)
    return {
        form: {
            "ms": round(ms, 1),
            "peak_MB": round(megabytes),
            "time_of_plain": round(ms / taken[0], 2),
            "memory_of_plain": round(megabytes / peaks[0], 2),
        }
        for form, ms, megabytes in zip(FORMS, taken, peaks, strict=True)
    }


def main() -> None:
    """Measure, print the record and keep it."""
    import torch
    from run import RESULTS, machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small problem; nothing is kept")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vocabulary, rows, length, rounds = (500, 2, 16, 1) if quick else (8_192, 16, 128, 7)
    record = {
        "benchmark": "growth",
        "command": " ".join(["python", "benchmarks/growth.py", *sys.argv[1:]]),
        "machine": machine(),
        "result": {"device": device, "threads": 1,
                   "steps": measure(vocabulary, rows, length, rounds, device)},
    }  # fmt: skip
    text = json.dumps(record, indent=1)
    print(text)
    if not quick:
        name = "growth.json" if device == "cpu" else "growth_gpu.json"
        (RESULTS / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

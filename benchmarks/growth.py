"""What learning a growth operator costs: time and peak memory of its step, against the plain one.

Usage: python benchmarks/growth.py [--quick]

A RoBERTa of 2 layers of 128 learns to be one of 4 layers of 256, V = 8,192, 2,048 tokens a step,
with AdamW and one thread. The other step trains the large model itself. The two take turns, and the
median counts; peak memory is what a process needs for one step beyond the models as they were
built.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from timing import Run, main, milliseconds, peaks, training_step

from fairseq.config.components import make_config

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
        small = vars(make_config(settings(2, 128, length)).model)
        known = json.dumps({name: v for name, v in small.items() if not name.startswith("_")})
        more = {"arch": "ligo_roberta", "ligo_source_config": known}
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


def measure(vocabulary: int, rows: int, length: int, rounds: int, device: str) -> dict[str, Any]:
    """Return time and peak memory of every form, and of the plain one's, what they are."""
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
    return {"steps": steps}


if __name__ == "__main__":
    main("growth", __doc__, measure, (8_192, 16, 128, 7), (500, 2, 16, 1))

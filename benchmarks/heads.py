"""What a vocabulary costs: time and memory of losses, and training steps with and without a head.

Usage: python benchmarks/heads.py [--quick]

The table has the losses alone, forward and backward, for an encoder (15 % of the tokens are
predicted) and a decoder (all are): cross-entropy with logits at every token, cross-entropy at the
predicted ones in chunks, and contrastive weight tying with the matrix of N x N or with distinct
tokens. Words are drawn by Zipf's law. Steps are whole ones of a decoder of 4 layers of 256, with
AdamW. What is compared takes turns, ten of each. Peak memory is what a loss needs beyond its
operands.
"""

from __future__ import annotations

import argparse
import functools
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import RESULTS, Run, peaks, publish, times, training_step

from benchmarks.record import machine
from benchmarks.rounds import ratios, spread
from benchmarks.step import zipf
from fairseq.ops.contrastive_weight_tying import contrastive_weight_tying
from fairseq.ops.linear_cross_entropy import linear_cross_entropy

VOCABULARIES = (32_000, 50_000, 128_000, 256_000)
WIDTH = 256
LOSSES = ("CE, every token", "CE, predicted", "CWT, N x N", "CWT, distinct")


def words_by_zipf(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Return int64 ids from 4 on, drawn by Zipf's law."""
    words, rng = vocabulary - 4, np.random.default_rng(seed)
    return torch.from_numpy(4 + rng.choice(words, size=rows, p=zipf(words)))


def loss_of(name: str, tokens: int, predicted: int, vocabulary: int, device: str) -> Run:
    """Return a function that runs a loss forward and backward once."""
    torch.manual_seed(0)
    rows = tokens if name == "CE, every token" else predicted
    hidden_NC = torch.randn(rows, WIDTH, device=device, requires_grad=True)
    table_VC = torch.randn(vocabulary, WIDTH, device=device).mul_(WIDTH**-0.5).requires_grad_()
    target_N = words_by_zipf(rows, vocabulary, 0).to(device)
    labels_N = target_N.where(torch.arange(rows, device=device) < predicted, -100)

    def run() -> None:
        if name == "CE, every token":
            loss = F.cross_entropy(hidden_NC @ table_VC.T, labels_N, reduction="sum")
        elif name == "CE, predicted":
            loss = linear_cross_entropy(
                hidden_NC, table_VC, target_N, backend="chunked"
            ).loss_N.sum()
        else:
            backend = "distinct" if name == "CWT, distinct" else "reference"
            loss = contrastive_weight_tying(
                hidden_NC, table_VC, target_N, backend=backend
            ).loss_N.sum()
        loss.backward()
        hidden_NC.grad = table_VC.grad = None

    return run


def losses(device: str, tokens: int, rounds: int, vocabularies: tuple[int, ...]) -> dict[str, Any]:
    """Return time and peak memory of every loss."""
    prepared: dict[str, Any] = {}
    for kind, predicted in (("encoder", round(0.15 * tokens)), ("decoder", tokens)):
        for vocabulary in vocabularies:
            makes = [
                functools.partial(loss_of, name, tokens, predicted, vocabulary, device)
                for name in LOSSES
            ]
            prepared[f"{kind} V={vocabulary // 1000}k"] = peaks(makes, device), makes
    table: dict[str, Any] = {}
    for row, (needed, makes) in prepared.items():
        taken = times([make() for make in makes], rounds, device)
        table[row] = {
            name: {"ms": spread(turns, 1), "peak_MB": round(megabytes)}
            for name, turns, megabytes in zip(LOSSES, taken, needed, strict=True)
        }
        print(row, table[row], file=sys.stderr, flush=True)
    return table


def step_of(headless: bool, vocabulary: int, batch: int, length: int, device: str) -> Run:
    """Return a function that takes one training step of a decoder."""
    settings = {
        "task": "language_modeling", "arch": "transformer_lm_gpt", "decoder_layers": 4,
        "decoder_embed_dim": WIDTH, "decoder_ffn_embed_dim": 4 * WIDTH,
        "decoder_attention_heads": 4, "dropout": 0.0, "attention_dropout": 0.0,
        "tokens_per_sample": length, "share_decoder_input_output_embed": True,
        "criterion": "contrastive_weight_tying" if headless else "cross_entropy",
    }  # fmt: skip
    stream = words_by_zipf(batch * length + 1, vocabulary, 1).to(device)
    tokens = batch * length
    sample = {
        "net_input": {"src_tokens": stream[:-1].view(batch, length)},
        "target": stream[1:].view(batch, length),
        "predicted_positions": torch.arange(tokens, device=device),
        "ntokens": tokens,
        "nsentences": batch,
    }
    return training_step(settings, vocabulary, device, sample)


def steps(device: str, batch: int, rounds: int, vocabularies: tuple[int, ...]) -> dict[str, Any]:
    """Return tokens a second of whole steps, vanilla and headless, and their ratio."""
    length, table = 128, {}
    for vocabulary in vocabularies:
        runs = [step_of(headless, vocabulary, batch, length, device) for headless in (False, True)]
        vanilla, headless = times(runs, rounds, device)
        table[f"V={vocabulary // 1000}k"] = {
            "vanilla_tokens_s": spread([batch * length / ms * 1000 for ms in vanilla], 0),
            "headless_tokens_s": spread([batch * length / ms * 1000 for ms in headless], 0),
            "ratio": spread(ratios(vanilla, headless), 2),
        }
        print(f"V={vocabulary}", table[f"V={vocabulary // 1000}k"], file=sys.stderr, flush=True)
    return table


def main() -> None:
    """Measure, print the record and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    before = machine()
    on_gpu = args.device == "cuda"
    vocabularies = VOCABULARIES[:1] if args.quick else VOCABULARIES
    tokens = 16384 if on_gpu else 256 if args.quick else 4096
    rounds = 1 if args.quick else 20 if on_gpu else 10
    result = {
        f"losses, {tokens} tokens of width {WIDTH}, fp32": losses(
            args.device, tokens, rounds, vocabularies
        ),
        "steps, 4 layers of 256": steps(
            args.device, 2 if args.quick else tokens // 256, rounds, vocabularies
        ),
    }
    file = RESULTS / ("heads_gpu.json" if on_gpu else "heads.json")
    publish("heads", result, None if args.quick else file, before)


if __name__ == "__main__":
    main()

"""Speed on one CUDA GPU: the loss, attention and whole steps, each beside its peers and its limit.

Usage: python benchmarks/gpu.py [--seconds 180] [--output FILE.json] [--rounds 10] [--small]

Everything is bf16. What is compared takes turns; medians and quartiles are of all rounds. The
limit is measured in the same run: the machine's GEMM rate at the shapes of the row, and at a large
square for MFU. A row that does not fit the time that is left, or lacks a package, is named in
``left_out``. FLOP counts: 6 N V C for a loss (8 for distillation: the teacher's product, too),
4 B H T^2 D forward and 2.5 times that backward for attention (half if causal), 6 per parameter of
the matrices and token for a model, plus 12 L T C of attention (half if causal), plus the predicted
share of 6 V C.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import commit, machine, publish
from timing import peak_on_gpu
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BF16 = torch.bfloat16
PEERS = ("triton", "flash-attn", "xformers", "cut-cross-entropy", "liger-kernel", "transformers")
Run = Callable[[], object]
Row = dict[str, Any]


def this_machine() -> Row:
    """Return what the figures depend on."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        **machine(),
        "capability": torch.cuda.get_device_capability(),
        "commit": commit(),
        "peers": {package: version(package) for package in PEERS},
    }


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, Row]:
    """Return median and quartiles in ms of each function; they take turns, two not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            if turn >= 2:
                times[name].append(start.elapsed_time(end))
    return {
        name: {"ms": statistics.median(t), "quartiles": statistics.quantiles(t, n=4)[::2]}
        for name, t in times.items()
    }


def gemm(m: int, k: int, n: int) -> Run:
    """Return a function that multiplies (m, k) by (k, n) matrices in bf16."""
    left, right = (torch.randn(shape, device="cuda").to(BF16) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, device="cuda", dtype=BF16)
    return lambda: torch.mm(left, right, out=out)


def compare(runs: Mapping[str, Run], flop: float, rounds: int, floor: Mapping[str, Run]) -> Row:
    """Return a row: every function's time, rate, share of the floor, and peak memory."""
    usable, left_out = {}, {}
    for name, run in runs.items():
        try:
            run()
            usable[name] = run
        except (ValueError, RuntimeError, ImportError) as error:  # missing, refused, or no memory
            left_out[name] = str(error).splitlines()[0][:200]
    figures = interleaved({**usable, **floor}, rounds)
    least = sum(figures.pop(name)["ms"] for name in floor)
    for name, figure in figures.items():
        figure["TFLOP_s"] = flop / figure["ms"] / 1e9
        figure["peak_MB"] = peak_on_gpu(usable[name])
        if floor:
            figure["share_of_gemm_floor"] = least / figure["ms"]
    return {"results": figures, "gemm_floor_ms": least or None, "left_out": left_out}


# -- the rows --------------------------------------------------------------------------------------


def a_loss(n: int, classes: int, channels: int, rounds: int, kind: str = "head") -> Row:
    """Return the row of a loss, forward and backward: the plain head, CLAP's, or CWT's."""
    from fairseq.ops.contrastive_weight_tying import contrastive_weight_tying
    from fairseq.ops.linear_cross_entropy import linear_cross_entropy

    hidden_NC = torch.randn(n, channels, device="cuda").to(BF16).requires_grad_()
    weight_VC = torch.randn(classes, channels, device="cuda").mul_(0.02).to(BF16).requires_grad_()
    target_N = torch.randint(classes, (n,), device="cuda")

    def backward(loss_N: Tensor) -> None:
        torch.autograd.grad(loss_N.sum(), [hidden_NC, weight_VC])

    def with_backend(backend: str) -> Run:
        def run() -> None:
            weight = F.normalize(weight_VC, dim=-1) if kind == "clap" else weight_VC
            backward(linear_cross_entropy(hidden_NC, weight, target_N, backend=backend).loss_N)

        return run

    def scaled() -> None:
        from fairseq.ops.triton.linear_cross_entropy import LinearCrossEntropyFunction

        scale_V = 1 / weight_VC.float().norm(dim=-1)
        arguments = (hidden_NC, weight_VC, None, scale_V, target_N, -100, False, False, 2670)
        backward(LinearCrossEntropyFunction.apply(*arguments)[0])

    def torch_alone() -> None:
        weight = F.normalize(weight_VC, dim=-1) if kind == "clap" else weight_VC
        logits_NV = F.linear(hidden_NC, weight)
        backward(F.cross_entropy(logits_NV.float(), target_N, reduction="none"))

    floor = {
        "logits": gemm(n, channels, classes),
        "to hidden": gemm(n, classes, channels),
        "to weight": gemm(classes, n, channels),
    }
    runs: dict[str, Run] = {"plain PyTorch": torch_alone}
    if kind == "cwt":
        runs = {
            way: lambda way=way: backward(
                contrastive_weight_tying(hidden_NC, weight_VC, target_N, backend=way).loss_N
            )
            for way in ("distinct", "reference")
        }
    else:
        backends = ("auto", "chunked", "triton", "torch", "cce", "liger")
        runs |= {backend: with_backend(backend) for backend in backends}
    if kind == "clap":
        runs["triton, scaled"] = scaled
    return compare(runs, 6.0 * n * classes * channels, rounds, floor if kind != "cwt" else {})


def a_distillation(n: int, classes: int, channels: int, rounds: int) -> Row:
    """Return the row of distillation (forward divergence and likelihood), forward and backward."""
    from fairseq.modules.heads import Projection
    from fairseq.ops.linear_distillation import linear_distillation

    def side() -> Projection:
        hidden_NC, weight_VC = (torch.randn(k, channels, device="cuda") for k in (n, classes))
        return Projection(hidden_NC.to(BF16), weight_VC.mul_(0.02).to(BF16), None)

    student, teacher = side(), side()
    leaves = [part.requires_grad_() for part in student[:2]]
    target_N = torch.randint(classes, (n,), device="cuda")

    def with_backend(backend: str) -> Run:
        def run() -> None:
            result = linear_distillation(
                student, teacher, target_N, temperature=2.0, alpha_lm=1.0, backend=backend
            )
            torch.autograd.grad(result.loss, leaves)

        return run

    def plain() -> None:
        s_NV, t_NV = (F.linear(*part[:2]).float() for part in (student, teacher))
        log_q_NV, p_NV = (s_NV / 2).log_softmax(-1), (t_NV / 2).softmax(-1)
        divergence = 4 * F.kl_div(log_q_NV, p_NV, reduction="sum")
        loss = divergence + F.cross_entropy(s_NV, target_N, reduction="sum")
        torch.autograd.grad(loss, leaves)

    floor = {
        "logits": gemm(n, channels, classes),
        "logits of the teacher": gemm(n, channels, classes),
        "to hidden": gemm(n, classes, channels),
        "to weight": gemm(classes, n, channels),
    }
    runs = {backend: with_backend(backend) for backend in ("auto", "chunked", "triton")}
    runs = {"plain PyTorch": plain, **runs}
    return compare(runs, 8.0 * n * classes * channels, rounds, floor)


def an_attention(batch: int, length: int, causal: bool, rounds: int) -> Row:
    """Return the row of ALiBi's attention, forward and backward, beside attention without it."""
    from fairseq.modules.positions import alibi_slopes
    from fairseq.ops.attention import attention
    from fairseq.ops.attention_context import Alibi, AttentionContext

    heads, channels = 12, 64
    shape = (batch, heads, length, channels)
    inputs = [torch.randn(shape, device="cuda").to(BF16).requires_grad_() for _ in range(3)]
    upstream = torch.randn(shape, device="cuda").to(BF16)

    def with_backend(backend: str, alibi: bool) -> Run:
        context = AttentionContext(Alibi(alibi_slopes(heads)) if alibi else None, causal=causal)

        def run() -> None:
            torch.autograd.grad(attention(*inputs, context, backend=backend), inputs, upstream)

        return run

    runs = {
        f"{backend}{', no bias' * (not alibi)}": with_backend(backend, alibi)
        for alibi in (True, False)
        for backend in ("auto", "sdpa", "flex", "flash", "xformers")
        if alibi or backend != "auto"
    }
    flop = 3.5 * 4 * batch * heads * length**2 * channels / (2 if causal else 1)
    return compare(runs, flop, rounds, {})


def a_step(kind: str, length: int, rows: int, rounds: int, layers: int = 12) -> Row:
    """Return the row of a training step of RoBERTa-base or GPT-2, ours and plain PyTorch's."""
    heads, width, classes = 12, 768, 50_265
    decoder = kind.startswith("gpt2")
    ours, predicted = our_step(kind, length, rows, layers, classes)
    tokens = rows * length
    matrices = 12 * layers * width**2
    per_token = 6 * matrices + 12 * layers * length * width / (2 if decoder else 1)
    flop = tokens * per_token + 6.0 * predicted * classes * width
    runs = {"ours": ours, "plain PyTorch": plain_step(decoder, length, rows, layers, predicted)}
    row = compare(runs, flop, rounds, {})
    for figure in row["results"].values():
        figure["tokens_s"] = 1000 * tokens / figure["ms"]
    return row | {"FLOP": flop, "heads": heads}


def our_step(kind: str, length: int, rows: int, layers: int, classes: int) -> tuple[Run, int]:
    """Return a step of our model (forward, backward, fused AdamW), and how much it predicts."""
    from fairseq.data.storage.dictionary import Dictionary
    from fairseq.models.roberta import RobertaConfig, RobertaModel
    from fairseq.models.transformer_lm import (
        TransformerLanguageModel,
        TransformerLanguageModelConfig,
    )
    from fairseq.ops.linear_cross_entropy import linear_cross_entropy

    dictionary = Dictionary()
    for word in range(classes - 4):
        dictionary.add_symbol(f"w{word}")
    task = argparse.Namespace(
        cfg=argparse.Namespace(tokens_per_sample=length),
        source_dictionary=dictionary,
        target_dictionary=dictionary,
        max_positions=lambda: length,
    )
    quiet = {"dropout": 0.0, "attention_dropout": 0.0}
    position = "alibi" if "alibi" in kind else "learned"
    model: torch.nn.Module
    if kind.startswith("gpt2"):
        sizes = {"decoder_embed_dim": 768, "decoder_ffn_embed_dim": 3072}
        sizes |= {"decoder_layers": layers, "decoder_attention_heads": 12}
        sizes |= {"decoder_input_dim": 768, "decoder_output_dim": 768, "tokens_per_sample": length}
        sizes |= {"max_target_positions": length}
        shared = {"share_decoder_input_output_embed": True, "position": position}
        lm = TransformerLanguageModelConfig(**sizes, **shared, **quiet, activation_fn="gelu")
        model = TransformerLanguageModel.build_model(lm, task)
    else:
        bert = RobertaConfig(
            encoder_layers=layers, max_positions=length, position=position, **quiet
        )
        model = RobertaModel.build_model(bert, task)
    model = model.cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens_BT = torch.randint(4, classes, (rows, length), device="cuda")
    count = rows * length if kind.startswith("gpt2") else round(0.15 * rows * length)
    places_N = torch.arange(count, device="cuda") * (rows * length // count)
    target_N = torch.randint(4, classes, (count,), device="cuda")

    def run() -> None:
        with torch.autocast("cuda", BF16):
            operands, _ = model(tokens_BT, predicted_positions=places_N)
            hidden_NC, weight_VC, bias_V = operands
            loss_N = linear_cross_entropy(hidden_NC, weight_VC, target_N, bias_V=bias_V).loss_N
        (loss_N.sum() / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run, count


def plain_step(decoder: bool, length: int, rows: int, layers: int, predicted: int) -> Run:
    """Return the step of a stock PyTorch Transformer of the same size, with a gathered head."""
    width, classes = 768, 50_265
    layer = torch.nn.TransformerEncoderLayer(
        width, 12, 4 * width, 0.0, "gelu", batch_first=True, norm_first=decoder
    )
    stack = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).cuda().train()
    table = torch.nn.Embedding(classes, width).cuda()
    parameters = [*stack.parameters(), *table.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    tokens_BT = torch.randint(4, classes, (rows, length), device="cuda")
    places_N = torch.arange(predicted, device="cuda") * (rows * length // predicted)
    target_N = torch.randint(4, classes, (predicted,), device="cuda")
    future = torch.nn.Transformer.generate_square_subsequent_mask(length, device="cuda")

    def run() -> None:
        with torch.autocast("cuda", BF16):
            mask = future if decoder else None
            x_BTC = stack(table(tokens_BT), mask=mask, is_causal=decoder)
            hidden_NC = x_BTC.flatten(0, 1)[places_N]
            loss = F.cross_entropy(F.linear(hidden_NC, table.weight).float(), target_N)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def rows(rounds: int, small: bool) -> dict[str, Callable[[], Row]]:
    """Return all rows, the most important ones first."""
    if small:  # to try the script itself
        return {
            "loss": lambda: a_loss(64, 1000, 64, rounds),
            "clap": lambda: a_loss(64, 1000, 64, rounds, "clap"),
            "cwt": lambda: a_loss(64, 1000, 64, rounds, "cwt"),
            "distillation": lambda: a_distillation(64, 1000, 64, rounds),
            "alibi": lambda: an_attention(2, 64, False, rounds),
            "roberta": lambda: a_step("roberta alibi", 64, 2, rounds, 1),
            "gpt2": lambda: a_step("gpt2", 64, 2, rounds, 1),
        }
    return {
        "MLM head N=4915": lambda: a_loss(4915, 50_265, 768, rounds),
        "CLM head N=32768": lambda: a_loss(32_768, 50_265, 768, rounds),
        "CLAP head N=4915": lambda: a_loss(4915, 50_265, 768, rounds, "clap"),
        "ALiBi attention T=512": lambda: an_attention(64, 512, False, rounds),
        "causal ALiBi attention T=1024": lambda: an_attention(32, 1024, True, rounds),
        "RoBERTa-base MLM T=512": lambda: a_step("roberta", 512, 64, rounds),
        "RoBERTa-base ALiBi MLM T=512": lambda: a_step("roberta alibi", 512, 64, rounds),
        "GPT-2 124M T=1024": lambda: a_step("gpt2", 1024, 16, rounds),
        "distillation N=4915": lambda: a_distillation(4915, 50_265, 768, rounds),
        "CWT N=32768": lambda: a_loss(32_768, 50_265, 768, rounds, "cwt"),
    }


def main() -> None:
    """Measure what the time allows and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180, help="begin no row after this long")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--output", type=Path, help="write the JSON here, too")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA GPU", file=sys.stderr)
        sys.exit(2)
    began = time.monotonic()
    square = interleaved({"gemm": gemm(8192, 8192, 8192)}, args.rounds)["gemm"]["ms"]
    peak = 2 * 8192**3 / square / 1e9
    result: Row = {"gemm_TFLOP_s": peak, "rows": {}, "left_out": []}
    failed = False
    for name, measure in rows(args.rounds, args.small).items():
        if time.monotonic() - began > args.seconds:
            result["left_out"].append(name)
            continue
        try:
            result["rows"][name] = row = measure()
        except RuntimeError as error:  # no memory, say: the other rows are still worth having
            result["left_out"].append(f"{name}: {str(error).splitlines()[0]}")
            failed = True
            continue
        torch.cuda.empty_cache()
        for way, figure in row["results"].items():
            figure["mfu"] = figure["TFLOP_s"] / peak
            print(f"{name:32} {way:16} {figure['ms']:9.3f} ms  MFU {figure['mfu']:.2f}", flush=True)
        for way, why in row["left_out"].items():
            print(f"{name:32} {way:16} left out: {why}", flush=True)
    publish("gpu", result, args.output, this_machine())
    sys.exit(failed)


if __name__ == "__main__":
    main()

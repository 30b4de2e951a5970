"""What `step.py` compares with: one process each, a line every few steps.

Usage: python benchmarks/step_peers.py NAME CASE (as `step.py` calls it)

`floor` multiplies what a step multiplies, into buffers that exist, `faster floor` by oneDNN where
that is preferred (`fairseq/ops/linear.py`); `step alone` is our model and
criterion in a loop of its own; the others are loops around transformers and PyTorch. All have fused
AdamW, and eight batches that were made before.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.step import (  # noqa: E402
    HEADS,
    INNER,
    KEPT,
    LAYERS,
    LENGTH,
    ROWS,
    WIDTH,
    Case,
    products,
    zipf,
)

Step = Callable[[], object]


def floor(case: Case, described: dict[str, Any]) -> Step:
    """Return all products of a step, forward and both gradients, into preallocated buffers."""
    operands = []
    for batch, m, k, n in products(case):
        shape = (batch,) if batch > 1 else ()
        sizes = ((m, k), (n, k), (m, n))
        # inputs and their gradient; weights as nn.Linear keeps them and theirs; outputs
        x, w, y = (torch.randn(*shape, *size) for size in sizes)
        operands.append((x, w, y, torch.empty_like(x), torch.empty_like(w), torch.empty_like(y)))

    def step() -> None:
        for x, w, y, dx, dw, out in operands:
            torch.matmul(x, w.mT, out=out)
            torch.matmul(y, w, out=dx)
            torch.matmul(y.mT, x, out=dw)

    return step


def faster_floor(case: Case, described: dict[str, Any]) -> Step:
    """Return the same products, each by whichever of torch's libraries our step would take."""
    from fairseq.ops.linear import product

    operands = []
    for batch, m, k, n in products(case):
        shape = (batch,) if batch > 1 else ()
        x, w, y = (torch.randn(*shape, *size) for size in ((m, k), (n, k), (m, n)))
        multiply = torch.matmul if batch > 1 else product
        operands.append((multiply, x, w, y, torch.empty_like(w)))

    def step() -> None:
        for multiply, x, w, y, dw in operands:
            multiply(x, w.mT)
            multiply(y, w)
            torch.matmul(y.mT, x, out=dw)

    return step


def batches(case: Case) -> list[SimpleNamespace]:
    """Return eight batches: tokens, targets, and which places are predicted."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.from_numpy(zipf(case.vocabulary - 5))
    made = []
    for _ in range(8):
        drawn = torch.multinomial(weights, ROWS * (LENGTH + 1), True, generator=generator) + 4
        stream = drawn.view(ROWS, LENGTH + 1)
        tokens, following = stream[:, :-1].contiguous(), stream[:, 1:].contiguous()
        if case.family == "causal":
            made.append(SimpleNamespace(tokens=tokens, target=following, places=None))
            continue
        hidden = torch.rand(ROWS, LENGTH, generator=generator) < 0.15
        shown = tokens.masked_fill(hidden, case.vocabulary - 1)
        places = hidden.flatten().nonzero()[:, 0]
        made.append(
            SimpleNamespace(tokens=shown, target=tokens.masked_fill(~hidden, -100), places=places)
        )
    return made


def loop(model: nn.Module, case: Case, loss: Callable[[Any], Tensor]) -> Step:
    """Return a training step with fused AdamW on the next batch."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)
    feed = itertools.cycle(batches(case))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(next(feed)).backward()
        optimizer.step()

    return step


def transformers_masked(case: Case, gathers: bool, attention: str) -> Step:
    """Return a step of transformers' RoBERTa, with the head at all places or the predicted."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=case.vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        pad_token_id=1,
        hidden_dropout_prob=case.dropout,
        attention_probs_dropout_prob=case.dropout,
        attn_implementation=attention,
    )
    model = RobertaForMaskedLM(config)

    def loss(batch: Any) -> Tensor:
        if not gathers:
            return model(input_ids=batch.tokens, labels=batch.target).loss
        hidden = model.roberta(input_ids=batch.tokens)[0].flatten(0, 1)[batch.places]
        return F.cross_entropy(model.lm_head(hidden), batch.target.flatten()[batch.places])

    return loop(model, case, loss)


def transformers_causal(case: Case, attention: str) -> Step:
    """Return a step of transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=case.vocabulary,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=INNER,
        n_positions=LENGTH,
        resid_pdrop=case.dropout,
        embd_pdrop=case.dropout,
        attn_pdrop=case.dropout,
        attn_implementation=attention,
    )
    model = GPT2LMHeadModel(config)

    def loss(batch: Any) -> Tensor:
        logits = model(input_ids=batch.tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), batch.target.flatten())

    return loop(model, case, loss)


class Plain(nn.Module):
    """PyTorch's own layers between an embedding table and the same table."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.causal = case.family == "causal"
        self.table = nn.Embedding(case.vocabulary, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        nn.init.normal_(self.table.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, INNER, case.dropout, "gelu", batch_first=True, norm_first=self.causal
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.dense = nn.Identity() if self.causal else nn.Linear(WIDTH, WIDTH)

    def forward(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch."""
        x_BTC = self.table(batch.tokens) + self.places.weight
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH) if self.causal else None
        x_NC, target_N = self.layers(x_BTC, mask, is_causal=self.causal).flatten(0, 1), batch.target
        if batch.places is not None:
            x_NC, target_N = x_NC[batch.places], target_N.flatten()[batch.places]
        return F.cross_entropy(self.dense(x_NC) @ self.table.weight.T, target_N.flatten())


def plain_pytorch(case: Case) -> Step:
    """Return a step of PyTorch's own layers."""
    model = Plain(case)
    return loop(model, case, model)


def alone(case: Case, described: dict[str, Any]) -> Step:
    """Return a step of our model and criterion without the trainer."""
    from fairseq import tasks
    from fairseq.config.options import get_training_parser, parse_config

    config = parse_config(get_training_parser(), described["train"])
    task = tasks.setup_task(config.task)
    model, criterion = task.build_model(config.model), task.build_criterion(config.criterion)
    task.load_dataset("train")
    dataset = task.dataset("train")
    ready = [
        dataset.collater([dataset[row] for row in range(first, first + ROWS)])
        for first in range(0, 8 * ROWS, ROWS)
    ]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)
    feed = itertools.cycle(ready)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss, size, _ = criterion(model, next(feed))
        (loss / size).backward()
        optimizer.step()

    return step


CONTESTANTS: dict[str, Callable[[Case, dict[str, Any]], Step]] = {
    "floor": floor,
    "faster floor": faster_floor,
    "step alone": alone,
    "transformers": lambda case, _: transformers_masked(case, False, "sdpa"),
    "gathering + sdpa": lambda case, _: transformers_masked(case, True, "sdpa"),
    KEPT: lambda case, _: transformers_masked(case, True, "sdpa"),
    "gathering + eager": lambda case, _: transformers_masked(case, True, "eager"),
    "transformers + sdpa": lambda case, _: transformers_causal(case, "sdpa"),
    "transformers + eager": lambda case, _: transformers_causal(case, "eager"),
    "plain PyTorch": lambda case, _: plain_pytorch(case),
}


def main() -> None:
    """Step for ever; print a line every few steps."""
    name, described = sys.argv[1], json.loads(sys.argv[2])
    case = Case(*(described[key] for key in ("family", "vocabulary", "dropout", "threads")))
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    if name == KEPT:
        from fairseq.training.allocator import keep_freed_memory

        keep_freed_memory()
    step = CONTESTANTS[name](case, described)
    for number in itertools.count(1):
        step()
        if number % case.steps == 0:
            print("turn", number, flush=True)


if __name__ == "__main__":
    main()

"""Headless training: global negatives, refused pairs, a run of an encoder without a head."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fairseq import evaluation
from fairseq.criterions.contrastive_weight_tying import (
    ContrastiveWeightTyingConfig,
    ContrastiveWeightTyingCriterion,
)
from fairseq.data.dictionary import Dictionary
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import ConfigError
from fairseq_cli import preprocess, train
from tests.tiny_run import fork, wait

PAD = 1


class Features(nn.Module):
    """Gives prepared hidden states, row by row of the tokens, and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Parameter(torch.randn(6, 5, 8, dtype=torch.float64))
        self.table = nn.Parameter(torch.randn(20, 8, dtype=torch.float64))

    def forward(self, src_tokens: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return self.hidden[src_tokens[:, 0]], None

    def embedding_table(self) -> torch.Tensor:
        return self.table


def sample(rows: list[int]) -> dict[str, Any]:
    torch.manual_seed(1)
    target = torch.randint(4, 9, (6, 5)).masked_fill(torch.rand(6, 5) < 0.3, PAD)
    return {
        "net_input": {"src_tokens": torch.tensor(rows)[:, None].expand(-1, 5)},
        "target": target[rows],
        "ntokens": 5 * len(rows),
        "nsentences": len(rows),
    }


def criterion(**knobs: Any) -> ContrastiveWeightTyingCriterion:
    task = type("Task", (), {"target_dictionary": Dictionary()})()
    return ContrastiveWeightTyingCriterion(ContrastiveWeightTyingConfig(**knobs), task)


def loss_of(parts: list[list[int]], **knobs: Any) -> tuple[float, torch.Tensor]:
    """Return the loss of one update in some micro-batches, and the gradient of the table."""
    model, loss = Features(), criterion(**knobs)
    samples = [sample(rows) for rows in parts]
    loss.prepare_update(samples)
    total = torch.stack([loss(model, part)[0] for part in samples]).sum()
    total.backward()
    assert model.table.grad is not None
    return float(total), model.table.grad


@pytest.mark.parametrize("duplicates", ["count", "once"])
def test_micro_batches_with_global_negatives_are_one_batch(duplicates: str) -> None:
    knobs = {"negatives": "global", "duplicates": duplicates}
    whole, grad = loss_of([[0, 1, 2, 3, 4, 5]], **knobs)
    split, split_grad = loss_of([[0, 1], [2, 3, 4, 5]], **knobs)
    assert math.isclose(whole, split, abs_tol=1e-10)
    assert torch.allclose(grad, split_grad, atol=1e-10)
    local, _ = loss_of([[0, 1], [2, 3, 4, 5]], duplicates=duplicates)
    assert abs(local - whole) > 0.1


def test_processes_with_global_negatives_are_one_batch(tmp_path: Path) -> None:
    port = distributed_utils.free_port()

    def work(rank: int) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank
        )
        loss, grad = loss_of([[0, 1, 2], [3]] if rank == 0 else [[4, 5]], negatives="global")
        (tmp_path / str(rank)).write_text(json.dumps([loss, grad.tolist()]))

    children = [fork(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    whole, grad = loss_of([[0, 1, 2, 3, 4, 5]], negatives="global")
    assert math.isclose(found[0][0] + found[1][0], whole, abs_tol=1e-9)
    both = torch.tensor(found[0][1], dtype=torch.float64) + torch.tensor(found[1][1]).double()
    assert torch.allclose(both, grad, atol=1e-6)


def test_extra_negatives_make_it_harder() -> None:
    model = Features()
    plain = criterion()(model, sample([0, 1, 2]))
    harder = criterion(extra_negatives=50)(model, sample([0, 1, 2]))
    assert float(harder[0]) > float(plain[0])
    assert harder[2]["negatives"] > plain[2]["negatives"]


def test_a_model_without_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="no method embedding_table"):
        criterion()(nn.Linear(1, 1), sample([0]))


FLAGS = (
    "--task masked_lm --criterion contrastive_weight_tying --arch roberta_tiny --encoder-layers 2 "
    "--encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2 --cpu "
    "--tokens-per-sample 12 --optimizer adam --lr 0.005 --batch-size 4 --max-epoch 40 "
    "--sample-break-mode eos --dropout 0 "
    "--num-workers 0 --log-format none --no-epoch-checkpoints"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    words = "the cat sees a dog near an old house".split()
    lines = [" ".join(words[(i + j) % 9] for j in range(8)) for i in range(40)]
    for name, part in (("train", lines), ("valid", lines[::3])):
        (folder / name).write_text("".join(f"{line}\n" for line in part))
    flags = ["--trainpref", str(folder / "train"), "--validpref", str(folder / "valid")]
    assert preprocess.run(["--only-source", *flags, "--destdir", str(folder / "bin")]) == 0
    return folder / "bin"


@pytest.mark.parametrize(("position", "negatives"), [("learned", "global"), ("alibi", "local")])
def test_an_encoder_trains_without_a_head(
    data: Path, tmp_path: Path, position: str, negatives: str
) -> None:
    flags = ["--head", "none", "--position", position, "--negatives", negatives]
    assert train.run([str(data), "--save-dir", str(tmp_path), *FLAGS, *flags]) == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    valid = [row for row in map(json.loads, lines) if row["tag"] == "valid"]
    # a symmetric bias cannot tell before from after, which is what these sentences are about
    expected = 0.3 if position == "learned" else 0.05
    inner = [row["loss"] for row in map(json.loads, lines) if row["tag"] == "train"]
    assert inner[-1] < inner[0] - expected
    assert 1 < valid[-1]["negatives"] <= 10 and valid[-1]["ppl"] > 1
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)["model"]
    assert not [key for key in state if "lm_head" in key]
    stats = evaluation.validate({"path": str(tmp_path / "checkpoint_last.pt")})["valid"]
    assert math.isclose(float(stats["loss"]), valid[-1]["loss"], abs_tol=2e-3)


def test_a_head_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ConfigError, SystemExit)) as stop:
        train.run([str(data), "--save-dir", str(tmp_path), *FLAGS])
    assert "--head none" in str(stop.value) + capsys.readouterr().err

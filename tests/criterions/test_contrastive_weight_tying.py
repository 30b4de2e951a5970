"""Headless training: global negatives, refused pairs, a run of an encoder without a head."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fairseq import evaluation
from fairseq.criterions.contrastive_weight_tying import (
    ContrastiveWeightTyingConfig,
    ContrastiveWeightTyingCriterion,
)
from fairseq.data.storage.dictionary import Dictionary
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import CheckpointError, ConfigError
from fairseq.logging import metrics
from fairseq.modules.heads import Projection
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

    def forward(self, src_tokens: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        hidden_BTC = self.hidden[src_tokens[:, 0]]
        return hidden_BTC, {"inner_states": [hidden_BTC.transpose(0, 1)]}

    def embedding_table(self) -> torch.Tensor:
        return self.table

    def projection(self, hidden_NC: torch.Tensor) -> Projection:
        return Projection(hidden_NC, self.table[:12], None)


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
    return float(total.detach()), model.table.grad


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
    assert harder[0].item() > plain[0].item()
    assert harder[2]["negatives"] > plain[2]["negatives"]
    validated = criterion(extra_negatives=50)(model.eval(), sample([0, 1, 2]))
    assert validated[0].item() == plain[0].item()  # no draw decides which epoch was best


def test_both_losses_at_once() -> None:
    model, batch = Features(), sample([0, 1, 2])
    both, size, log = criterion(contrastive_weight=0.3, vocabulary_weight=0.7)(model, batch)
    alone = criterion()(model, batch)[0]
    kept = batch["target"].flatten() != PAD
    logits_NV = model.hidden[:3].flatten(0, 1)[kept] @ model.table[:12].T
    usual = F.cross_entropy(logits_NV, batch["target"].flatten()[kept], reduction="sum")
    assert math.isclose(both.item(), 0.3 * alone.item() + 0.7 * usual.item(), abs_tol=1e-9)
    assert size == int(kept.sum())
    assert math.isclose(float(log["vocabulary_loss"]), usual.item(), abs_tol=1e-9)
    assert math.isclose(float(log["contrastive_loss"]), alone.item(), abs_tol=1e-9)


def test_the_map_begins_as_the_identity_and_learns() -> None:
    model, batch = Features(), sample([0, 1, 2])
    mapped = criterion(contrastive_projection=True, contrastive_width=8).double()
    loss = mapped(model, batch)[0]
    assert math.isclose(loss.item(), criterion()(model, batch)[0].item(), abs_tol=1e-9)
    loss.backward()
    assert mapped.projection is not None and mapped.projection.weight.grad is not None
    torch.nn.init.normal_(mapped.projection.weight)
    by_hand = Features()
    by_hand.hidden = nn.Parameter(model.hidden @ mapped.projection.weight.T)
    assert math.isclose(
        mapped(model, batch)[0].item(), criterion()(by_hand, batch)[0].item(), abs_tol=1e-9
    )


@pytest.mark.parametrize("knobs", [{}, {"contrastive_normalize": True}, {"temp": 0.5}], ids=str)
def test_the_perplexity_of_the_table(knobs: dict[str, Any]) -> None:
    temperature = knobs.get("temp", 1.0)
    normalize = knobs.get("contrastive_normalize", False)
    own = criterion(contrastive_temperature=temperature, contrastive_normalize=normalize)
    model, batch = Features().eval(), sample([0, 1, 2])
    log = own(model, batch)[2]
    kept = batch["target"].flatten() != PAD
    hidden, table = model.hidden[:3].flatten(0, 1)[kept], model.table
    if normalize:
        hidden, table = F.normalize(hidden, dim=-1), F.normalize(table, dim=-1)
    expected = F.cross_entropy(
        hidden @ table.T / temperature, batch["target"].flatten()[kept], reduction="sum"
    )
    assert math.isclose(float(log["vocabulary_loss"]), expected.item(), rel_tol=1e-5)


def test_anisotropy_is_the_mean_cosine_of_all_pairs() -> None:
    model, batch = Features().eval(), sample([0, 1, 2])
    batch["net_input"]["src_tokens"] = batch["net_input"]["src_tokens"].clone()
    batch["net_input"]["src_tokens"][1, 3:] = PAD
    batch["net_input"]["src_tokens"][0, 0] = 3
    kept = batch["net_input"]["src_tokens"] != PAD
    log = criterion()(model, batch)[2]
    states = F.normalize(model.hidden.detach()[batch["net_input"]["src_tokens"][:, 0]][kept], dim=1)
    cosines = states @ states.T
    pairs = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    with metrics.aggregate(new_root=True) as found:
        ContrastiveWeightTyingCriterion.reduce_metrics([log, log])
    values = found.get_smoothed_values()
    assert values["avg_cosine_l0"] == pytest.approx(float(pairs.mean()), abs=1e-3)
    assert criterion(valid_anisotropy=False)(model, batch)[2].get("cosine_places") is None


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


@pytest.mark.parametrize(
    "flags", ["--negatives local", "--negatives global", "--contrastive-projection"]
)
def test_batches_without_a_masked_token_are_trained_through(
    data: Path, tmp_path: Path, flags: str
) -> None:
    rare = ["--sample-break-mode", "eos", "--batch-size", "1", "--mask-prob", "0.001"]
    words = [*FLAGS, "--head", "none", *rare, *flags.split(), "--max-update", "12"]
    assert train.run([str(data), "--save-dir", str(tmp_path), *words]) == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(row.get("loss", 0)) for row in map(json.loads, lines))
    assert torch.load(tmp_path / "checkpoint_last.pt")["model"]


@pytest.mark.parametrize("flags", ["", "--contrastive-projection", "--vocabulary-weight 0.5"])
def test_a_decoder_trains(data: Path, tmp_path: Path, flags: str) -> None:
    decoder = (
        " ".join(FLAGS).replace("encoder", "decoder").replace("masked_lm", "language_modeling")
    )
    words = decoder.replace("roberta_tiny", "transformer_lm_gpt2_tiny").split() + flags.split()
    assert train.run([str(data), "--save-dir", str(tmp_path), "--max-epoch", "12", *words]) == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    valid = [row for row in map(json.loads, lines) if row["tag"] == "valid"]
    assert valid[-1]["loss"] < valid[0]["loss"] - 0.3 and valid[-1]["ppl"] < valid[0]["ppl"]
    assert {"avg_cosine_l0", "avg_cosine_l1", "avg_cosine_l2", "negatives"} <= set(valid[-1])
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)["model"]
    assert any("output_projection" in key for key in state) == ("vocabulary" in flags)
    stats = evaluation.validate({"path": str(tmp_path / "checkpoint_last.pt")})["valid"]
    for name in ("loss", "vocabulary_loss"):
        assert math.isclose(float(stats[name]), valid[-1][name], abs_tol=2e-3)


def test_a_projection_that_the_file_lacks_is_not_made_up(data: Path, tmp_path: Path) -> None:
    words = [str(data), "--save-dir", str(tmp_path), "--max-update", "1", *FLAGS]
    assert train.run(words) == 0
    given = {"path": str(tmp_path / "checkpoint_last.pt"), "contrastive_projection": True}
    with pytest.raises(CheckpointError, match="holds no parameters of ContrastiveWeightTying"):
        evaluation.validate(given)


@pytest.mark.parametrize(
    "knobs",
    [
        {"contrastive_temperature": 0.0},
        {"vocabulary_weight": -1.0},
        {"contrastive_weight": 0.0},
        {"extra_negatives": -5},
    ],
    ids=str,
)
def test_senseless_numbers_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(knobs)).replace("_", "-")):
        criterion(**knobs)

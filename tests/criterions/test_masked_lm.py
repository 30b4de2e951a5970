"""The masked-LM loss: only what is predicted counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from fairseq.criterions import build_criterion
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.distributed.wrap import ModuleProxyWrapper
from fairseq.logging import metrics
from fairseq.models.roberta import RobertaConfig, RobertaModel

from .fake_models import PAD, TASK, PluginModel, V, a_batch

TARGETS = [[PAD, 5, PAD, 9], [6, PAD, PAD, PAD]]


def roberta(head: str = "roberta") -> RobertaModel:
    torch.manual_seed(1)
    config = RobertaConfig(
        encoder_layers=1, encoder_embed_dim=8, encoder_ffn_embed_dim=8, encoder_attention_heads=2,
        head=head, clap_initial_beta=5.0,
    )  # fmt: skip
    return RobertaModel.build_model(config, TASK).eval()


def a_criterion(backend: str = "auto") -> MaskedLmLoss:
    criterion = build_criterion(MaskedLmConfig(_name="masked_lm", loss_backend=backend), TASK)
    assert isinstance(criterion, MaskedLmLoss) and criterion.padding_idx == PAD
    return criterion


@pytest.mark.parametrize("shipped", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
@pytest.mark.parametrize("head", ["roberta", "clap"])
def test_loss_and_gradient_of_all_logits(head: str, backend: str, shipped: bool) -> None:
    model, batch = roberta(head), a_batch(TARGETS, shipped)
    loss, sample_size, log = a_criterion(backend)(model, batch)
    logits_BTV = model(batch["net_input"]["src_tokens"])[0]
    expected = F.cross_entropy(
        logits_BTV.flatten(0, 1), batch["target"].flatten(), ignore_index=PAD, reduction="sum"
    )
    torch.testing.assert_close(loss, expected)
    assert (sample_size, log["sample_size"], log["ntokens"], log["nsentences"]) == (3, 3, 8, 2)
    assert log["loss"] == loss and not log["loss"].requires_grad
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    for gradient, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_nothing_to_predict_is_no_loss(backend: str) -> None:
    model, batch = roberta(), a_batch([[PAD] * 4])
    loss, sample_size, _ = a_criterion(backend)(model, batch)
    assert loss == 0 and sample_size == 0
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and not any(g.any() for g in grads)


def test_losses_one_by_one() -> None:
    model, batch = roberta(), a_batch(TARGETS)
    (total, *_), (each_N, *_) = (a_criterion()(model, batch, reduce=r) for r in (True, False))
    assert each_N.shape == (3,)
    torch.testing.assert_close(each_N.sum(), total)


def test_a_plugin_model_is_asked_for_logits_at_the_masks() -> None:
    model, batch = PluginModel(knows_masks=True), a_batch(TARGETS)
    loss, sample_size, _ = a_criterion()(model, batch)
    rows_NV = model.table.weight[batch["net_input"]["src_tokens"][batch["target"] != PAD]]
    assert rows_NV.shape == (3, V) and sample_size == 3
    expected = F.cross_entropy(rows_NV, torch.tensor([5, 9, 6]), reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("head", ["roberta", "clap"])
@pytest.mark.parametrize("find_unused", [False, True])
def test_a_wrapped_model_uses_all_parameters_in_its_forward_pass(
    head: str, find_unused: bool
) -> None:
    """Otherwise DDP would take the head for unused, and then meet its gradients after all."""
    model, batch = roberta(head), a_batch(TARGETS)
    ddp = DistributedDataParallel(model, find_unused_parameters=find_unused)
    for _ in range(2):
        model.zero_grad()
        loss, *_ = a_criterion()(ModuleProxyWrapper(ddp), batch)
        loss.backward()
    ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    a_criterion()(model, batch)[0].backward()
    for gradient, parameter in zip(ours, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad)


def test_figures_are_bits_per_predicted_token() -> None:
    logs = [
        {"loss": torch.tensor(6.0), "sample_size": 2, "ntokens": 9, "nsentences": 1},
        {"loss": torch.tensor(1.5), "sample_size": 1, "ntokens": 9, "nsentences": 1},
    ]
    with metrics.aggregate(new_root=True) as values:
        MaskedLmLoss.reduce_metrics(logs)
    stats = values.get_smoothed_values()
    bits = 7.5 / 3 / math.log(2)
    assert stats["loss"] == pytest.approx(bits, abs=5e-4)
    assert stats["ppl"] == pytest.approx(2**bits, abs=0.01)
    assert MaskedLmLoss.logging_outputs_can_be_summed()
    with metrics.aggregate(new_root=True) as values:
        MaskedLmLoss.reduce_metrics([])
    assert values.get_smoothed_values()["loss"] == 0

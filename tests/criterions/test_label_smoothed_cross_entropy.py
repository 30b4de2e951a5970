"""Label smoothing against the definition, with and without the project's projection.

Shapes: N predicted positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    label_smoothed_nll_loss,
)
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.modules.heads import Projection

from .fake_models import PAD, TASK, PluginModel, V, a_batch

TARGETS = [[5, 6, PAD, 4], [7, PAD, PAD, 10]]


class Projecting(PluginModel):
    """The same model, with the projection that models of the house have."""

    def forward(self, src_tokens: Any, predicted_positions: Any = None, **kwargs: Any) -> Any:
        one_hot = F.one_hot(src_tokens, V).float().flatten(0, 1)[predicted_positions]
        return Projection(one_hot, self.table.weight.t(), None), None

    def projection(self, hidden: Any) -> Any: ...


def models() -> list[Any]:
    torch.manual_seed(0)
    plain, projecting = PluginModel(False), Projecting(False)
    projecting.load_state_dict(plain.state_dict())
    return [plain, projecting]


def expected(model: Any, sample: Any, eps: float, prefix: int = 0) -> torch.Tensor:
    """Return the cross-entropy against the smoothed distribution itself, by torch."""
    logits_BTV = model.table(sample["net_input"]["src_tokens"])[:, prefix:]
    target_BT = sample["target"][:, prefix:]
    smooth_BTV = torch.full((*target_BT.shape, V), eps / (V - 1))
    smooth_BTV.scatter_(2, target_BT[..., None], 1 - eps)
    loss_BT = -(smooth_BTV * logits_BTV.log_softmax(-1)).sum(-1)
    return loss_BT[target_BT != PAD]


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("which", [0, 1])
def test_equals_cross_entropy_with_smoothed_targets(eps: float, prefix: int, which: int) -> None:
    model, sample = models()[which], a_batch(TARGETS)
    criterion = LabelSmoothedCrossEntropyCriterion(TASK, False, eps, prefix, True)
    loss, size, log = criterion(model, sample)
    torch.testing.assert_close(loss, expected(model, sample, eps, prefix).sum())
    torch.testing.assert_close(log["nll_loss"], expected(model, sample, 0.0, prefix).sum())
    each, _, _ = criterion(model, sample, reduce=False)
    torch.testing.assert_close(each.sum(), loss)
    assert size == sample["ntokens"]
    best = model.table(sample["net_input"]["src_tokens"]).argmax(-1)
    counts = (sample["target"] != PAD)[:, prefix:]
    right = (best == sample["target"])[:, prefix:] & counts
    assert (int(log["n_correct"]), log["total"]) == (int(right.sum()), int(counts.sum()))


def test_without_smoothing_it_is_the_cross_entropy() -> None:
    for model in models():
        sample = a_batch(TARGETS)
        plain, _, _ = CrossEntropyCriterion(TASK)(model, sample)
        smoothed, _, _ = LabelSmoothedCrossEntropyCriterion(TASK, False, 0.0)(model, sample)
        torch.testing.assert_close(plain, smoothed)


def test_metrics() -> None:
    logs = [
        {"loss": 4.0, "nll_loss": 2.0, "ntokens": 2, "sample_size": 2, "n_correct": 1, "total": 2},
        {"loss": 8.0, "nll_loss": 6.0, "ntokens": 2, "sample_size": 2, "n_correct": 0, "total": 2},
    ]
    with metrics.aggregate(new_root=True) as found:
        LabelSmoothedCrossEntropyCriterion.reduce_metrics(logs)
    values = found.get_smoothed_values()
    assert values["loss"] == pytest.approx(3 / 0.6931, abs=1e-3)
    assert values["nll_loss"] == pytest.approx(2 / 0.6931, abs=1e-3)
    assert float(values["ppl"]) == pytest.approx(7.39, abs=0.01)
    assert values["accuracy"] == 25.0


def test_a_smoothing_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="--label-smoothing"):
        LabelSmoothedCrossEntropyCriterion(TASK, False, 1.0)


@pytest.mark.parametrize("trailing", [False, True])
def test_the_function_that_plug_ins_call(trailing: bool) -> None:
    torch.manual_seed(0)
    log_p_NV = torch.randn(5, V).log_softmax(-1)
    target_N = torch.tensor([4, PAD, 7, 5, PAD])
    smooth_NV = torch.full((5, V), 0.2 / (V - 1)).scatter_(1, target_N[:, None], 0.8)
    expected_N = -(smooth_NV * log_p_NV).sum(-1)
    given = target_N[:, None] if trailing else target_N
    loss_N, nll_N = label_smoothed_nll_loss(log_p_NV, given, 0.2, reduce=False)
    torch.testing.assert_close(loss_N, expected_N)
    torch.testing.assert_close(nll_N, F.nll_loss(log_p_NV, target_N, reduction="none"))
    loss, nll = label_smoothed_nll_loss(log_p_NV, given, 0.2, ignore_index=PAD)
    torch.testing.assert_close(loss, expected_N[target_N != PAD].sum())
    torch.testing.assert_close(
        nll, F.nll_loss(log_p_NV, target_N, ignore_index=PAD, reduction="sum")
    )
    # an index that is no word, as many pad with
    far_N = torch.where(target_N == PAD, -100, target_N)
    assert label_smoothed_nll_loss(log_p_NV, far_N, 0.2, ignore_index=-100)[0].equal(loss)

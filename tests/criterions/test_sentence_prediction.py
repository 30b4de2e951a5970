"""Sentence prediction: the reports against textbook formulas, over batches and processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fairseq.criterions import sentence_prediction as criterion_module
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.logging.meters import exact
from tests.tiny_run import fork, wait

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30)
numbers = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=30)


def confusion(rows: list[tuple[int, int]], classes: int = 2) -> np.ndarray:
    table = np.zeros((classes, classes))
    for target, predicted in rows:
        table[target, predicted] += 1
    return table


@given(pairs)
def test_mcc_and_f1_of_two_classes(rows: list[tuple[int, int]]) -> None:
    table = confusion(rows)
    (tn, fp), (fn, tp) = table
    under = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = (tp * tn - fp * fn) / math.sqrt(under) if under else 0.0
    assert math.isclose(criterion_module.mcc(table), expected, abs_tol=1e-12)
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert math.isclose(criterion_module.f1(table), f1, abs_tol=1e-12)


@given(numbers)
def test_correlations(rows: list[tuple[int, int]]) -> None:
    x, y = np.array(rows, float).T
    for values in (x, y):
        ranked = [
            sum(v < u for v in values) + (sum(v == u for v in values) - 1) / 2 for u in values
        ]
        assert criterion_module.ranks(values).tolist() == ranked
    if x.std() and y.std():
        assert math.isclose(criterion_module.pearson(x, y), np.corrcoef(x, y)[0, 1], abs_tol=1e-9)
    else:
        assert criterion_module.pearson(x, y) == 0


class Heads(nn.Module):
    """Gives prepared scores for the tokens it is asked about."""

    def __init__(self, scores_NK: torch.Tensor) -> None:
        super().__init__()
        self.scores_NK = scores_NK
        self.classification_heads = {"sentence_classification_head": None}

    def forward(self, src_tokens: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return self.scores_NK[src_tokens[:, 0]], None


def criterion(classes: int, **settings: Any) -> SentencePredictionCriterion:
    task = type("Task", (), {"cfg": type("Cfg", (), {"num_classes": classes})()})()
    return SentencePredictionCriterion(SentencePredictionConfig(**settings), task)


def sample(rows: range, targets: torch.Tensor) -> dict[str, Any]:
    tokens = torch.tensor(list(rows))[:, None]
    return {"net_input": {"src_tokens": tokens}, "target": targets[tokens], "ntokens": 5}


def logged(logs: list[dict[str, Any]]) -> dict[str, Any]:
    with metrics.aggregate(new_root=True) as aggregated:
        for log in logs:  # as in validation: one call a batch
            SentencePredictionCriterion.reduce_metrics([log])
    return dict(aggregated.get_smoothed_values())


@pytest.mark.parametrize("classes", [2, 3])
def test_reports_are_those_of_all_batches_together(classes: int) -> None:
    torch.manual_seed(3)
    scores, targets = torch.randn(23, classes), torch.randint(classes, (23,))
    model = Heads(scores).eval()
    loss = criterion(classes, report_mcc=True, report_acc_and_f1=classes == 2)
    logs = [
        loss(model, sample(part, targets))[2] for part in (range(5), range(5, 20), range(20, 23))
    ]
    found = logged(logs)
    predicted = scores.argmax(1)
    table = confusion(list(zip(targets.tolist(), predicted.tolist(), strict=True)), classes)
    assert found["mcc"] == round(100 * criterion_module.mcc(table), 1)
    # what decides which checkpoint is best is not what a console shows
    assert math.isclose(exact(found["mcc"]), 100 * criterion_module.mcc(table), abs_tol=1e-9)
    assert exact(found["mcc"]) != found["mcc"]
    assert math.isclose(
        found["accuracy"], 100 * (predicted == targets).float().mean(), abs_tol=0.06
    )
    if classes == 2:
        f1 = 100 * criterion_module.f1(table)
        assert found["f1"] == round(f1, 1)
        assert math.isclose(found["acc_and_f1"], (found["accuracy"] + f1) / 2, abs_tol=0.11)
    nats = -scores.log_softmax(1)[range(23), targets].mean().item()
    assert math.isclose(found["loss"], nats / math.log(2), abs_tol=6e-4)


def test_a_regression() -> None:
    torch.manual_seed(4)
    scores, targets = torch.randn(20, 1), torch.rand(20)
    loss = criterion(1, regression_target=True, report_pearson_and_spearman=True)
    model = Heads(scores).eval()
    logs = [loss(model, sample(part, targets))[2] for part in (range(8), range(8, 20))]
    found = logged(logs)
    x, y = scores[:, 0].double().numpy(), targets.double().numpy()
    assert math.isclose(found["pearson"], 100 * np.corrcoef(x, y)[0, 1], abs_tol=0.06)
    order = [np.argsort(np.argsort(v)) for v in (x, y)]
    assert math.isclose(found["spearman"], 100 * np.corrcoef(*order)[0, 1], abs_tol=0.06)
    assert math.isclose(found["loss"], ((x - y) ** 2).mean() / math.log(2), abs_tol=6e-4)


def test_a_regression_of_several_numbers_counts_each() -> None:
    scores, targets = torch.randn(6, 2, requires_grad=True), torch.rand(6, 2)
    loss = criterion(2, regression_target=True)
    batch = sample(range(6), targets)
    batch["target"] = targets
    total, size, log = loss(Heads(scores), batch)
    assert size == log["sample_size"] == 12
    total.backward()
    torch.testing.assert_close(total.detach(), ((scores - targets) ** 2).sum().detach())
    torch.testing.assert_close(scores.grad, (2 * (scores - targets)).detach())
    each, _, _ = loss(Heads(scores), batch, reduce=False)
    torch.testing.assert_close(each.view(6, 2), (scores - targets) ** 2)


def test_f1_of_more_than_two_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="about two classes, but --num-classes is 3"):
        criterion(3, report_acc_and_f1=True)


def test_what_is_missing_is_named() -> None:
    model = Heads(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="head 'other', which the model does not have"):
        criterion(2, classification_head_name="other")(model, sample(range(2), torch.zeros(2)))
    with pytest.raises(ConfigError, match="no label/SPLIT.bin"):
        criterion(2)(model, {"net_input": {}})
    with pytest.raises(ConfigError, match="no label/SPLIT.label"):
        criterion(1, regression_target=True)(model, {"net_input": {}})


def test_rows_of_all_processes_are_joined(tmp_path: Path) -> None:
    port = distributed_utils.free_port()

    def work(rank: int) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=3, rank=rank
        )
        rows = None if rank == 1 else torch.arange(4.0 + 2 * rank).view(-1, 2) + 10 * rank
        joined = distributed_utils.concat_over_processes(rows, torch.device("cpu"))
        (tmp_path / str(rank)).write_text(json.dumps(joined.tolist()))

    children = [fork(lambda rank=rank: work(rank)) for rank in range(3)]
    assert [wait(child) for child in children] == [0, 0, 0]
    expected = [[0, 1], [2, 3], [20, 21], [22, 23], [24, 25], [26, 27]]
    for rank in range(3):
        assert json.loads((tmp_path / str(rank)).read_text()) == expected

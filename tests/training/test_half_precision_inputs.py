"""``--bf16`` and ``--fp16`` cast what goes into the model, and nothing else of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import config, make_corpus, train

from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.tasks.precision import inputs_as

HALF = torch.bfloat16


def test_labels_and_log_probabilities_keep_their_digits() -> None:
    tenth = torch.tensor([0.1])
    sample = {
        "id": torch.tensor([1]),
        "net_input": {"src_tokens": torch.tensor([[4]]), "features": tenth},
        "net_input1": {"features": [tenth]},
        "target": tenth,
        "teacher": {"log_probs": tenth},
    }
    cast = inputs_as(sample, HALF)
    assert cast["net_input"]["features"].dtype == HALF
    assert cast["net_input1"]["features"][0].dtype == HALF
    assert cast["net_input"]["src_tokens"].dtype == torch.int64
    assert cast["target"] is tenth and cast["teacher"]["log_probs"] is tenth
    assert sample["net_input"]["features"] is tenth  # the dataset's batch is not changed


def test_without_the_usual_key_only_the_target_is_spared() -> None:
    tenth = torch.tensor([0.1])
    cast = inputs_as({"features": tenth, "target": tenth}, HALF)
    assert (cast["features"].dtype, cast["target"].dtype) == (HALF, torch.float32)
    assert inputs_as([tenth], HALF)[0].dtype == HALF


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_criterion_gets_exact_labels(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq.data.masking.dataset import MaskedLMDataset

    collater, forward, seen = MaskedLMDataset.collater, MaskedLmLoss.forward, []

    def with_labels(dataset: Any, items: Any) -> Any:
        batch = collater(dataset, items)
        batch["gold"] = torch.full((len(items),), 0.1)
        return batch

    def looking(criterion: Any, model: Any, sample: Any, reduce: bool = True) -> Any:
        seen.append(sample["gold"])
        return forward(criterion, model, sample, reduce)

    monkeypatch.setattr(MaskedLMDataset, "collater", with_labels)
    monkeypatch.setattr(MaskedLmLoss, "forward", looking)
    train(config(make_corpus(tmp_path / "data"), tmp_path / "run", max_update=1, **{kind: True}))
    assert len(seen) > 1
    assert all(torch.equal(gold, torch.full_like(gold, 0.1)) for gold in seen)
    assert all(gold.dtype == torch.float32 for gold in seen)

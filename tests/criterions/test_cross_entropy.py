"""Cross-entropy over all targets, and how criterions are put together."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.criterions import CRITERION_REGISTRY, build_criterion, register_criterion
from fairseq.criterions.base import FairseqCriterion, LegacyFairseqCriterion
from fairseq.criterions.cross_entropy import (
    CrossEntropyConfig,
    CrossEntropyCriterion,
    CrossEntropyCriterionConfig,
)
from fairseq.errors import RegistryError
from fairseq.logging import metrics
from fairseq.models.roberta import RobertaConfig, RobertaModel

from .fake_models import PAD, TASK, PluginModel, a_batch

TARGETS = [[4, 5, 6, 9], [6, 7, PAD, PAD]]


@pytest.mark.parametrize("kind", ["roberta", "plugin"])
@pytest.mark.parametrize("sentence_avg", [False, True])
def test_loss_of_every_target(kind: str, sentence_avg: bool) -> None:
    torch.manual_seed(0)
    config = RobertaConfig(
        encoder_layers=1, encoder_embed_dim=8, encoder_ffn_embed_dim=8, encoder_attention_heads=2
    )
    model: Any = (
        RobertaModel.build_model(config, TASK).eval()
        if kind == "roberta"
        else PluginModel(knows_masks=False)
    )
    batch = a_batch(TARGETS, ship_positions=False)
    criterion = build_criterion(
        CrossEntropyConfig(_name="cross_entropy", sentence_avg=sentence_avg), TASK
    )
    loss, sample_size, log = criterion(model, batch)
    logits_NV = model(**batch["net_input"])[0].flatten(0, 1)
    expected_N = F.cross_entropy(
        logits_NV, batch["target"].flatten(), ignore_index=PAD, reduction="none"
    )
    torch.testing.assert_close(loss, expected_N.sum())
    assert sample_size == log["sample_size"] == (2 if sentence_avg else 8)
    each_N, *_ = criterion(model, batch, reduce=False)
    torch.testing.assert_close(each_N, expected_N[batch["target"].flatten() != PAD])


def test_a_plugin_model_decides_on_targets_and_probabilities() -> None:
    class Model(PluginModel):
        def get_targets(self, sample: dict[str, Any], net_output: Any) -> Tensor:
            return sample["target"].flip(-1)

        def get_normalized_probs(
            self, net_output: Any, log_probs: bool, sample: Any = None
        ) -> Tensor:
            assert log_probs
            return net_output[0] * 0 - 2.0

    batch = a_batch(TARGETS)
    criterion = build_criterion("cross_entropy", TASK)
    loss, *_ = criterion(Model(knows_masks=False), batch)
    assert loss == 2.0 * 6


def figures(logs: list[dict[str, Any]]) -> dict[str, Any]:
    with metrics.aggregate(new_root=True) as values:
        CrossEntropyCriterion.reduce_metrics(logs)
    return dict(values.get_smoothed_values())


def test_figures() -> None:
    log = {"loss": torch.tensor(6.0), "sample_size": 8, "ntokens": 8}
    stats = figures([log, log])
    assert set(stats) == {"loss", "ppl"}
    assert stats["loss"] == pytest.approx(12 / 16 / math.log(2), abs=5e-4)
    stats = figures([{**log, "sample_size": 2}])
    assert stats["loss"] == pytest.approx(6 / 2 / math.log(2), abs=5e-4)
    assert stats["nll_loss"] == pytest.approx(6 / 8 / math.log(2), abs=5e-4)
    assert stats["ppl"] == pytest.approx(math.exp(6 / 8), abs=0.01)


def test_settings_used_alone_have_their_defaults() -> None:
    criterion = build_criterion("cross_entropy", TASK)
    assert criterion.sentence_avg is False and criterion.backend == "auto"


@pytest.fixture
def registered() -> Any:
    """Names that a test may register; they are forgotten afterwards."""
    yield
    for name in [name for name in CRITERION_REGISTRY if name.startswith("test_")]:
        del CRITERION_REGISTRY[name]


def test_arguments_are_filled_by_name(registered: Any) -> None:
    @register_criterion("test_named")
    class Named(FairseqCriterion):
        def __init__(self, task: Any, sharpness: float, depth: int = 3) -> None:
            super().__init__(task)
            self.sharpness, self.depth = sharpness, depth

    built = build_criterion(SimpleNamespace(_name="test_named", sharpness=0.5), TASK)
    assert (built.sharpness, built.depth, built.padding_idx) == (0.5, 3, PAD)
    with pytest.raises(NotImplementedError, match="Named.*'sharpness'"):
        build_criterion(SimpleNamespace(_name="test_named"), TASK)
    with pytest.raises(NotImplementedError):
        built(None, {})

    @register_criterion("test_starred")
    class Starred(FairseqCriterion):
        def __init__(self, task: Any, **kwargs: Any) -> None:
            super().__init__(task)

    with pytest.raises(NotImplementedError, match="kwargs"):
        build_criterion(SimpleNamespace(_name="test_starred"), TASK)

    @register_criterion("test_legacy")
    class Legacy(LegacyFairseqCriterion):
        pass

    assert build_criterion(SimpleNamespace(criterion="test_legacy", a=1), TASK).args.a == 1


def test_registering_refuses_what_is_no_criterion(registered: Any) -> None:
    with pytest.raises(RegistryError, match="must extend FairseqCriterion"):
        register_criterion("test_none")(type("NoCriterion", (), {}))
    register_criterion("test_twice")(type("Once", (FairseqCriterion,), {}))
    with pytest.raises(RegistryError, match="duplicate criterion"):
        register_criterion("test_twice")(type("Twice", (FairseqCriterion,), {}))


def test_without_a_dictionary_minus_hundred_is_ignored() -> None:
    criterion = FairseqCriterion(SimpleNamespace())
    assert criterion.padding_idx == -100 and not criterion.logging_outputs_can_be_summed()
    with metrics.aggregate(new_root=True) as values:
        criterion.reduce_metrics([])
    assert values.get_smoothed_values() == {"loss": 0}


def test_a_loss_of_a_plug_in_is_asked(registered: Any) -> None:
    """``compute_loss`` sees the model's output; without an override both ways agree."""
    from tests.models.tiny_lm import DICTIONARY, tiny_lm

    class Doubled(CrossEntropyCriterion):
        def compute_loss(
            self, model: Any, net_output: Any, sample: Any, reduce: bool = True
        ) -> Any:
            loss, _ = super().compute_loss(model, net_output, sample, reduce)
            return 2 * loss, loss

    model = tiny_lm().eval()
    target_BT = torch.randint(4, len(DICTIONARY), (2, 5))
    target_BT[0, -1] = DICTIONARY.pad()
    sample = {"net_input": {"src_tokens": target_BT}, "target": target_BT, "ntokens": 9}
    task = SimpleNamespace(target_dictionary=DICTIONARY)
    for reduce in (True, False):
        ours, size, log = CrossEntropyCriterion(task)(model, sample, reduce)
        theirs, same_size, doubled_log = Doubled(task)(model, sample, reduce)
        torch.testing.assert_close(theirs, 2 * ours)
        torch.testing.assert_close(doubled_log["loss"], 2 * log["loss"])
        assert size == same_size == 9 and ours.numel() == (1 if reduce else 9)
    assert CrossEntropyCriterionConfig is CrossEntropyConfig

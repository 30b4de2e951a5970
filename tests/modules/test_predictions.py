"""What a model predicts is the same however it is asked, and whoever wrote the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fairseq
from fairseq.modules.predictions import asks_hidden, from_output, predict, tells_projection
from tests.criterions.fake_models import PluginModel
from tests.models.tiny_lm import tiny_lm
from tests.models.tiny_roberta import tiny

TOKENS = torch.tensor([[5, 6, 7, 8, 4], [9, 5, 6, 7, 8]])
POSITIONS_N = torch.tensor([1, 3, 4, 8])
TARGET_N = torch.tensor([6, 10, 4, 9])


def plug_in_decoder() -> Any:
    """Return a model whose logits no single product gives."""
    model = tiny_lm()

    class Cubed(type(model.decoder)):  # type: ignore[misc]
        def output_layer(self, features: Tensor, **unused: Any) -> Tensor:
            return super().output_layer(features) ** 3

    model.decoder.__class__ = Cubed
    return model


def plug_in_encoder() -> Any:
    model = tiny()
    head = model.encoder.lm_head

    class Doubled(type(head)):  # type: ignore[misc]
        def forward(self, features: Tensor, masked_tokens: Tensor | None = None) -> Tensor:
            return 2 * super().forward(features, masked_tokens)

    head.__class__ = Doubled
    return model


MODELS: dict[str, tuple[Callable[[], Any], bool, bool]] = {
    # how to make it, tells its projection, is asked for masked tokens
    "decoder": (tiny_lm, True, False),
    "clap head": (lambda: tiny_lm(head="clap"), True, False),
    "adaptive softmax": (
        lambda: tiny_lm(adaptive_softmax_cutoff="5,8", adaptive_softmax_factor=2),
        True,
        False,
    ),
    "encoder": (tiny, True, True),
    "decoder of a plug-in": (plug_in_decoder, False, False),
    "encoder of a plug-in": (plug_in_encoder, False, True),
    "a model that ignores masks": (lambda: PluginModel(knows_masks=False), False, False),
    "a model that knows masks": (lambda: PluginModel(knows_masks=True), False, True),
}


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_what_the_whole_output_says(name: str) -> None:
    make, tells, masked = MODELS[name]
    model = make()
    unmasked = {"masked_tokens": None} if isinstance(model, PluginModel) and masked else {}
    sample: Any = {"net_input": {"src_tokens": TOKENS}, "target": TOKENS}
    with torch.no_grad():
        p_BTV = model.get_normalized_probs(model(TOKENS, **unmasked), log_probs=False)
        expected_NV = p_BTV.flatten(0, 1)[POSITIONS_N].double().log().float()
        assert tells_projection(model) == tells
        said = [predict(model, sample, POSITIONS_N, masked_tokens=masked)]
        if not unmasked:
            output, *rest = model(TOKENS, **asks_hidden(model))
            said.append(from_output(model, output.flatten(0, 1)[POSITIONS_N], tuple(rest)))
    for predictions in said:
        assert predictions.log_probs().dtype == torch.float32
        torch.testing.assert_close(predictions.log_probs(), expected_NV, rtol=0, atol=2e-6)
        again_NV = predictions.logits().log_softmax(-1)
        torch.testing.assert_close(again_NV, expected_NV, rtol=0, atol=2e-6)
        loss_N = -expected_NV[range(4), TARGET_N]
        torch.testing.assert_close(predictions.losses(TARGET_N), loss_N, rtol=0, atol=2e-6)
        some = slice(1, 3)
        torch.testing.assert_close(
            predictions.rows(some).losses(TARGET_N[some]), loss_N[some], rtol=0, atol=2e-6
        )


def test_a_model_of_a_plug_in_sees_the_targets_of_the_rows_it_explains() -> None:
    model, seen = plug_in_decoder(), []
    usual = model.get_normalized_probs

    def spy(net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        seen.append(sample["target"].tolist())
        return usual(net_output, log_probs, sample)

    model.get_normalized_probs = spy
    predictions = predict(model, {"net_input": {"src_tokens": TOKENS}}, POSITIONS_N)
    predictions.rows(slice(2, 4)).losses(TARGET_N[2:])
    assert seen == [[[4, 9]]]


def test_nobody_else_asks_whether_there_is_a_projection() -> None:
    root = Path(fairseq.__file__).parent
    asks = re.compile(r"""attr\([^()]*,\s*["']projection["']""")
    files = [path for path in root.rglob("*.py") if asks.search(path.read_text())]
    found = {str(path.relative_to(root)) for path in files}
    assert found == {"modules/predictions.py"}

"""Vocabulary heads that a plug-in writes, with tensors under names of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_lm import tiny_lm
from tiny_roberta import TINY, TOKENS, V, a_task
from torch import Tensor, nn

from fairseq.models.roberta import RobertaConfig, RobertaEncoder, RobertaModel
from fairseq.modules.heads import Projection, RobertaLMHead, VocabularyHead


class Wrapping(VocabularyHead):
    """Another head and a temperature; ``weight`` is the other head's alone."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.temperature = inner, nn.Parameter(torch.tensor(2.0))

    def projection(self, hidden_NC: Tensor) -> Projection:
        hidden_NC, weight_VC, bias_V = self.inner.projection(hidden_NC)
        return Projection(hidden_NC / self.temperature, weight_VC, bias_V)


class Naming(Wrapping):
    """The table under the usual name, but not as a parameter."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        table: Tensor = self.inner.weight
        return table


class OfTheOriginal(nn.Module):
    """As plug-ins of the original write one: it makes logits itself."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.out = nn.Linear(inner.weight.shape[1], inner.weight.shape[0])

    def forward(self, features: Tensor, masked_tokens: Tensor | None = None) -> Tensor:
        chosen = features if masked_tokens is None else features[masked_tokens]
        logits: Tensor = self.out(chosen)
        return logits


HEADS = (Wrapping, Naming, OfTheOriginal)


def with_head(kind: type[nn.Module], **settings: Any) -> RobertaModel:
    class Encoder(RobertaEncoder):
        def build_lm_head(self, *sizes: Any) -> nn.Module:
            return kind(super().build_lm_head(*sizes))

    class Model(RobertaModel):
        encoder_class = Encoder

    return Model.build_model(RobertaConfig(**{**TINY, **settings}), a_task()).eval()


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_what_was_saved_is_loaded(kind: type[nn.Module], untied: bool) -> None:
    saved, other = (with_head(kind, untie_weights_roberta=untied) for _ in range(2))
    before, _ = other(TOKENS)
    other.load_state_dict(saved.state_dict())
    expected, _ = saved(TOKENS)
    assert not torch.equal(before, expected)
    assert torch.equal(other(TOKENS)[0], expected)


class WithItsOwn(Wrapping):
    """RoBERTa's head, made by the plug-in itself."""

    def __init__(self, inner: Any) -> None:
        width, words = inner.dense.in_features, len(inner.bias)
        super().__init__(RobertaLMHead(width, words, "gelu", inner.weight))


@pytest.mark.parametrize("kind", [OfTheOriginal, WithItsOwn])
def test_layers_of_a_head_start_as_bert_s(kind: type[nn.Module]) -> None:
    model = with_head(kind)
    layers = [layer for layer in model.encoder.lm_head.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 1
    for layer in layers:
        assert not layer.bias.any() and 0.015 < layer.weight.std() < 0.025


def test_a_head_that_projects_nothing_says_so() -> None:
    class Empty(VocabularyHead):
        """Nothing."""

    with pytest.raises(NotImplementedError, match=r"Empty needs a method projection\(hidden_NC\)"):
        Empty()(torch.zeros(1, 2, 4))


@pytest.mark.parametrize("kind", HEADS)
def test_the_cost_is_known_or_unknown(kind: type[nn.Module]) -> None:
    flops = with_head(kind).flops(2, 6, 12)
    assert (flops is None) == (kind is not Naming)


def test_a_decoder_whose_head_has_no_table_of_its_own() -> None:
    saved, other = tiny_lm(), tiny_lm()
    for model in (saved, other):
        model.decoder.output_projection = Wrapping(model.decoder.output_projection)
    with torch.no_grad():
        saved.decoder.embed_tokens.weight.mul_(3)
        saved.decoder.output_projection.temperature.mul_(3)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other(TOKENS)[0], saved(TOKENS)[0])
    assert saved(TOKENS)[0].shape[-1] == V

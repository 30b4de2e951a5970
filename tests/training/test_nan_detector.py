"""The module that breaks a step is named; nothing is said of models that work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, make_corpus, train
from torch import Tensor, nn

from fairseq.training.nan_detector import NanDetector
from fairseq.training.trainer import Trainer
from tests.models.tiny_lm import POSITIONS, tiny_lm
from tests.models.tiny_roberta import TOKENS, tiny

FC1 = "encoder.sentence_encoder.layers.1.fc1"


class TooSteep(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


class Bad(nn.Module):
    """A layer behind the identity."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(TooSteep.apply(x))


def watch(model: nn.Module, **directions: bool) -> NanDetector:
    with NanDetector(model, **directions) as detector:
        model(TOKENS)[0].float().pow(2).sum().backward()
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    return detector


@pytest.mark.parametrize("knobs", [{}, {"position": "alibi"}, {"checkpoint_activations": True}])
def test_a_good_encoder(knobs: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert watch(tiny(**knobs).train()).found == {} and not caplog.messages


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.filterwarnings("error")
def test_a_good_decoder_whose_masks_are_infinite(position: str) -> None:
    assert watch(tiny_lm(**POSITIONS[position]).train()).found == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_forward_pass(value: float, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    weight = model.get_submodule(FC1).weight
    assert isinstance(weight, nn.Parameter)
    nn.init.constant_(weight, value)
    assert watch(model, backward=False).found == {"forward": FC1}
    assert caplog.messages == [f"not finite in the forward pass: {FC1} (from finite values)"]
    assert watch(model, forward=False).found.keys() == {"backward"}


def test_the_backward_pass(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    layer = model.encoder.sentence_encoder.layers[1]
    layer.fc1 = Bad(layer.fc1)
    assert watch(model).found == {"backward": FC1}
    first, second = caplog.messages
    assert first == f"not finite in the backward pass: {FC1} (from finite values)"
    assert second.startswith("gradients are not finite: encoder.") and " and " in second


def test_a_run_names_what_broke_its_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three updates in a row: the module is told once, and the run goes on."""
    data = make_corpus(tmp_path / "data")

    def run(name: str, breaks: bool) -> dict[int, str]:
        with monkeypatch.context() as patch:

            def before(trainer: Trainer, calls: int) -> None:
                layer = trainer.get_model().get_submodule(FC1.removesuffix(".fc1"))
                if breaks and calls == 2:
                    layer.fc1 = Bad(layer.fc1)
                elif breaks and calls == 5:
                    layer.fc1 = layer.fc1.layer

            recorder = Recorder(patch, before)
            train(config(data, tmp_path / name, max_update=5 if breaks else 2))
            return recorder.losses

    expected = run("whole", breaks=False)
    with caplog.at_level("WARNING"):
        losses = run("broken", breaks=True)
    assert [losses[1], losses[2]] == [expected[1], expected[2]] and len(losses) == 5
    told = [text for text in caplog.messages if text.startswith("not finite in the backward pass")]
    assert told == [f"not finite in the backward pass: {FC1} (from finite values)"]
    assert sum("the weights stay as they are" in text for text in caplog.messages) == 3


def test_a_norm_beyond_fp32_of_finite_gradients_ends_a_run_with_a_loss_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_corpus(tmp_path / "data")

    def before(trainer: Trainer, calls: int) -> None:
        if calls == 2:
            trainer.get_model().encoder.sentence_encoder.embed_tokens.weight.register_hook(
                lambda gradient_VC: torch.full_like(gradient_VC, 1e25)
            )

    Recorder(monkeypatch, before)
    amp = {"amp": True, "amp_dtype": "fp16"}
    with pytest.raises(FloatingPointError, match="not finite in 10 updates in a row"):
        train(config(data, tmp_path / "run", max_update=9, max_epoch=9, **amp))

"""Products, gradients and blocks against autograd, explicit matrices and reference numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError
from fairseq.evaluation.hessian.curvature import Curvature, gradient
from fairseq.evaluation.hessian.estimators import whole_matrix
from fairseq.evaluation.hessian.objective import Objective, Prediction
from fairseq.evaluation.hessian.parameters import ParameterSet, block_of
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.model import RobertaEncoder, RobertaModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.models.transformer_lm.config import TransformerLanguageModelConfig
from fairseq.ops import linear_cross_entropy as projected
from tests.references._pcfg_hessian import Reference, check


class SmallTask:
    """What models and criterions ask of a task."""

    def __init__(self, words: int = 4) -> None:
        self.source_dictionary = self.target_dictionary = self.dictionary = Dictionary()
        for number in range(words):
            self.dictionary.add_symbol(f"w{number}")
        self.cfg = MaskedLmConfig()


def masked_lm(words: int = 4, **settings: Any) -> tuple[Objective, dict[str, Any]]:
    task = SmallTask(words)
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "encoder_embed_dim": 4, "encoder_ffn_embed_dim": 4}
    config = RobertaConfig(encoder_attention_heads=2, max_positions=5, **{**sizes, **settings})
    model = RobertaModel(config, RobertaEncoder(config, task.dictionary)).double()
    scale(model)
    ids_BT = torch.tensor([[0, 4, 5, 6, 2], [0, 7, 4, 2, 1]])
    target_BT = torch.tensor([[1, 4, 1, 7, 1], [1, 6, 1, 1, 1]])
    sample = {"net_input": {"src_tokens": ids_BT}, "target": target_BT, "ntokens": 9}
    return Objective(model, MaskedLmLoss(MaskedLmConfig(), task)), {**sample, "nsentences": 2}


def causal_lm(**settings: Any) -> tuple[Objective, dict[str, Any]]:
    task = SmallTask()
    torch.manual_seed(0)
    config = TransformerLanguageModelConfig(
        decoder_layers=1, decoder_embed_dim=4, decoder_ffn_embed_dim=4, decoder_attention_heads=2,
        decoder_input_dim=4, decoder_output_dim=4, max_target_positions=5, **settings,
    )  # fmt: skip
    model = TransformerLanguageModel.build_model(config, task).double()
    scale(model)
    ids_BT = torch.tensor([[2, 4, 5, 6], [2, 7, 4, 1]])
    target_BT = torch.tensor([[4, 5, 6, 2], [7, 4, 2, 1]])
    sample = {"net_input": {"src_tokens": ids_BT}, "target": target_BT, "ntokens": 7}
    return Objective(model, CrossEntropyCriterion(task)), {**sample, "nsentences": 2}


def scale(model: nn.Module) -> None:
    """Take the weights away from the flat place where they begin."""
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)


def flat_function(
    objective: Objective, parameters: ParameterSet, of: Callable[[], Tensor]
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return ``of()`` as a function of the flat parameters, and those."""
    model, start_P = objective.model, parameters.flatten(parameters.tensors).detach()
    sizes = [tensor.numel() for tensor in parameters.tensors]

    def function(flat_P: Tensor) -> Tensor:
        parts = flat_P.split(sizes)
        state = {
            name: part.view_as(tensor)
            for name, part, tensor in zip(parameters.names, parts, parameters.tensors, strict=True)
        }
        return functional_call(_Calls(model, of), {f"model.{n}": v for n, v in state.items()})

    return function, start_P


class _Calls(nn.Module):
    def __init__(self, model: nn.Module, of: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.of = model, of

    def forward(self) -> Tensor:
        return self.of()


def logits_of(objective: Objective, sample: dict[str, Any]) -> Tensor:
    return torch.cat([logits_RV for _, logits_RV in objective.prediction(sample).chunks()])


MODELS = {
    "masked": masked_lm,
    "causal": lambda: causal_lm(share_decoder_input_output_embed=True),
    "rotary, untied": lambda: causal_lm(position="rotary", head_bias=True),
    "clap": lambda: causal_lm(head="clap"),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_the_hessian_is_autograds(name: str) -> None:
    objective, sample = MODELS[name]()
    parameters = ParameterSet(objective.model)
    function, start_P = flat_function(objective, parameters, lambda: objective.loss(sample)[0])
    curvature = Curvature(objective, parameters, [sample])
    found_PP = whole_matrix(curvature.products, start_P)
    # not torch.func.hessian: with layer norms it is wrong, and not symmetric, in torch 2.13
    assert torch.allclose(found_PP, hessian(function, start_P), atol=1e-10)
    unit_P = torch.zeros_like(start_P)
    unit_P[3] = 1
    assert torch.allclose(curvature.product(unit_P), found_PP[3], atol=1e-12)


@pytest.mark.parametrize("name", list(MODELS))
def test_gauss_newton_is_the_explicit_product_and_the_expected_fisher(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fairseq.evaluation.hessian.objective.CHUNK_ELEMENTS", 16
    )  # two targets a chunk
    objective, sample = MODELS[name]()
    parameters = ParameterSet(objective.model)
    function, start_P = flat_function(objective, parameters, lambda: logits_of(objective, sample))
    jacobian_NVP, p_NV = jacobian(function, start_P), function(start_P).softmax(-1)
    middle_NVV = torch.diag_embed(p_NV) - p_NV[:, :, None] * p_NV[:, None]
    wanted_PP = torch.einsum("nvp,nvw,nwq->pq", jacobian_NVP, middle_NVV, jacobian_NVP) / len(p_NV)
    curvature = Curvature(objective, parameters, [sample], "ggn")
    found_PP = whole_matrix(curvature.products, start_P)
    assert torch.allclose(found_PP, wanted_PP, atol=1e-10)
    assert abs(curvature.loss - float(objective.loss(sample)[0].detach())) < 1e-12
    expected_P = torch.zeros_like(start_P)
    prediction = objective.prediction(sample)
    for label in range(p_NV.shape[1]):
        losses_N = prediction.losses(torch.full_like(prediction.target_N, label))
        for row, loss in enumerate(losses_N):
            slope_P = parameters.flatten(gradient([loss], parameters.tensors))
            expected_P += p_NV[row, label] / len(p_NV) * slope_P.square()
    assert torch.allclose(found_PP.diagonal(), expected_P, atol=1e-10)


def test_sampled_fisher_agrees_with_its_expectation_and_data_labels_with_a_loop() -> None:
    objective, sample = masked_lm()
    parameters = ParameterSet(objective.model)
    exact = whole_matrix(
        Curvature(objective, parameters, [sample], "ggn").products,
        torch.zeros(parameters.size).double(),
    )
    draws = [
        float(
            Curvature(objective, parameters, [sample], labels="model", seed=seed)
            .squared_gradients()
            .sum()
        )
        for seed in range(200)
    ]
    values = torch.tensor(draws)
    assert abs(float(values.mean() - exact.trace())) < 4 * float(values.std()) / 200**0.5
    fisher = Curvature(objective, parameters, [sample])
    found_P = fisher.squared_gradients()
    prediction = objective.prediction(sample)
    wanted_P = torch.zeros_like(found_P)
    for one in prediction.losses(prediction.target_N):
        wanted_P += parameters.flatten(gradient([one], parameters.tensors)).square() / 3
    assert torch.allclose(found_P, wanted_P)
    assert abs(fisher.loss - float(objective.loss(sample)[0].detach())) < 1e-12


def test_labels_of_the_model_stay_and_batches_count_by_their_targets() -> None:
    objective, sample = masked_lm()
    parameters = ParameterSet(objective.model)
    vector_P = torch.randn(parameters.size, generator=torch.Generator().manual_seed(0)).double()
    drawn = Curvature(objective, parameters, [sample], labels="model", seed=3)
    assert torch.equal(drawn.product(vector_P), drawn.product(vector_P))
    other = Curvature(objective, parameters, [sample], labels="model", seed=4)
    assert not torch.equal(drawn.product(vector_P), other.product(vector_P))
    rows = [
        {key: value[row : row + 1] for key, value in (("target", sample["target"]),)}
        | {"net_input": {"src_tokens": sample["net_input"]["src_tokens"][row : row + 1]}}
        | {"ntokens": 4, "nsentences": 1}
        for row in range(2)
    ]
    for matrix in ("hessian", "ggn"):
        whole = Curvature(objective, parameters, [sample], matrix).product(vector_P)
        parts = Curvature(objective, parameters, rows, matrix).product(vector_P)
        assert torch.allclose(whole, parts, atol=1e-12)


def test_a_batch_without_targets_counts_for_nothing() -> None:
    """Few words may be masked in so few sentences: none, by chance."""
    objective, sample = masked_lm()
    parameters = ParameterSet(objective.model)
    vector_P = torch.randn(parameters.size, generator=torch.Generator().manual_seed(0)).double()
    without = {**sample, "target": torch.ones_like(sample["target"])}

    def computed(samples: list[Any], matrix: str, labels: str) -> tuple[Tensor, float]:
        fisher = matrix == "fisher"
        curvature = Curvature(
            objective, parameters, samples, "hessian" if fisher else matrix, labels
        )
        result = curvature.squared_gradients() if fisher else curvature.product(vector_P)
        return result, curvature.loss

    for matrix, labels in itertools.product(("hessian", "ggn", "fisher"), ("data", "model")):
        found_P, loss = computed([sample, without], matrix, labels)
        wanted_P, wanted_loss = computed([sample], matrix, labels)
        assert torch.equal(found_P, wanted_P) and loss == wanted_loss, (matrix, labels)
        nothing_P, loss = computed([without], matrix, labels)
        assert not nothing_P.any() and loss == 0, (matrix, labels)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, (tuple, list)) else [result]
        sizes = [part.numel() for part in parts if isinstance(part, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_gauss_newton_of_a_large_vocabulary_never_holds_all_logits() -> None:
    """V = 50,000 and 400 targets: more logits than there may be in memory at once."""
    generator = torch.Generator().manual_seed(0)
    hidden_NC, weight_VC = (torch.randn(rows, 2, generator=generator) for rows in (400, 50_000))
    target_N = torch.zeros(400, dtype=torch.int64)
    prediction = Prediction(target_N, hidden_NC, weight_VC, torch.zeros(50_000))
    tangents = [torch.randn(part.shape, generator=generator) for part in prediction.tensors()]
    with Largest() as largest:
        found = prediction.curvature_product(tangents)
        prediction.mean_loss()
    assert largest.elements <= 1 << 24
    rows = slice(330, 340)  # their part of the result does not depend on other targets
    part = Prediction(target_N[rows], hidden_NC[rows], weight_VC, torch.zeros(50_000))
    wanted = part.curvature_product([tangents[0][rows], *tangents[1:]])[0] * 10 / 400
    assert torch.allclose(found[0][rows], wanted, atol=1e-7, rtol=1e-4)


def test_gauss_newton_of_a_model_holds_no_logits_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, both backward passes and the loss: 40 targets of 508 words, 5 rows at once."""
    monkeypatch.setattr("fairseq.evaluation.hessian.objective.CHUNK_ELEMENTS", 5 * 508)
    objective, _ = masked_lm(words=504)
    ids_BT = torch.arange(4, 44).view(8, 5)
    sample = {"net_input": {"src_tokens": ids_BT}, "target": ids_BT, "ntokens": 40}
    parameters = ParameterSet(objective.model)
    vector_P = torch.ones(parameters.size).double()
    with Largest() as largest:
        Curvature(objective, parameters, [sample], "ggn").product(vector_P)
    assert parameters.size <= largest.elements < 40 * 508 / 4


def test_the_chunked_loss_and_the_fused_attention_are_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the projection is so large that the loss would be computed in chunks."""
    objective, sample = masked_lm()
    parameters = ParameterSet(objective.model)
    vector_P = torch.ones(parameters.size).double()
    wanted_P = Curvature(objective, parameters, [sample]).product(vector_P)
    monkeypatch.setattr(projected, "SMALL_PROBLEM", 0)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("fused attention")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    assert torch.equal(Curvature(objective, parameters, [sample]).product(vector_P), wanted_P)


def test_dropout_is_refused() -> None:
    objective, sample = masked_lm()
    objective.model.train()
    with pytest.raises(ConfigError, match="training mode"):
        objective.loss(sample)


def test_unknown_names_are_refused() -> None:
    objective, _ = masked_lm()
    with pytest.raises(ConfigError, match="not a regular expression"):
        ParameterSet(objective.model, "layers.(")
    with pytest.raises(ConfigError, match="fits no parameter; names look like encoder"):
        ParameterSet(objective.model, "decoder")


def test_choices_of_parameters_and_their_blocks() -> None:
    objective, sample = masked_lm()
    model = objective.model
    model.register_classification_head("sentence", num_classes=2)
    model.eval()
    paper = set(ParameterSet(model, "paper").names)
    everything = ParameterSet(model)
    assert set(everything.names) - paper == {
        "encoder.lm_head.bias",
        "classification_heads.sentence.dense.weight",
        "classification_heads.sentence.dense.bias",
    }
    assert sum(name.endswith("embed_tokens.weight") for name in everything.names) == 1
    assert not any("lm_head.weight" in name for name in everything.names)  # tied
    assert {block_of(name) for name in everything.names} == {
        "embedding", "ln", "head", "bias", "attention", "ffn",
    }  # fmt: skip
    for name, block in (
        ("encoder.lm_head.bias", "head"), ("encoder.lm_head.dense.bias", "bias"),
        ("encoder.lm_head.layer_norm.weight", "ln"), ("encoder.lm_head.weight", "embedding"),
        ("decoder.layers.0.self_attn.q_proj.bias", "bias"), ("decoder.layers.0.fc1.weight", "ffn"),
        ("decoder.layers.0.self_attn_layer_norm.bias", "ln"), ("decoder.other", "other"),
    ):  # fmt: skip
        assert block_of(name) == block
    numbers_P = torch.arange(everything.size).double()
    assert sum(everything.by_block(numbers_P).values()) == float(numbers_P.sum())
    some = ParameterSet(model, r"layers\.0\.fc1")
    assert some.size == 20 and not model.encoder.lm_head.bias.requires_grad
    vector_P = torch.ones(20).double()
    for matrix in ("hessian", "ggn"):
        whole = Curvature(objective, ParameterSet(model), [sample], matrix)
        places = torch.cat([
            torch.full((tensor.numel(),), name in some.names)
            for name, tensor in zip(everything.names, everything.tensors, strict=True)
        ])  # fmt: skip
        embedded_P = torch.zeros(everything.size).double().masked_fill(places, 1.0)
        wanted_P = whole.product(embedded_P)[places]
        part = Curvature(objective, ParameterSet(model, r"layers\.0\.fc1"), [sample], matrix)
        assert torch.allclose(part.product(vector_P), wanted_P, atol=1e-12)


def test_key_biases_have_no_curvature_without_rotary_positions() -> None:
    objective, sample = masked_lm()
    parameters = ParameterSet(objective.model, r"k_proj\.bias")
    found_PP = whole_matrix(
        Curvature(objective, parameters, [sample]).products, torch.zeros(4).double()
    )
    assert found_PP.abs().max() < 1e-15


def test_a_layer_of_zeros_has_curvature_in_its_two_output_biases_alone() -> None:
    """Pre-norm, as a model is when layers that change nothing are put on it."""
    objective, sample = masked_lm(encoder_layers=2, encoder_normalize_before=True)
    layer = objective.model.encoder.sentence_encoder.layers[1]
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    parameters = ParameterSet(objective.model, r"layers\.1\.")
    start_P = torch.zeros(parameters.size).double()
    for matrix in ("hessian", "ggn"):
        found_PP = whole_matrix(
            Curvature(objective, parameters, [sample], matrix).products, start_P
        )
        traces = parameters.by_name(found_PP.diagonal())
        alive = {name.partition("layers.1.")[2] for name, value in traces.items() if value != 0}
        assert alive == {"self_attn.out_proj.bias", "fc2.bias"}


def test_traces_of_the_reference_folder(shared: Path) -> None:
    """Also those of the same function two and three times as wide."""
    assert check(shared / "compat" / "pcfg") > 250


def test_curvlinops_says_the_same() -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x_NC, y_N = torch.randn(6, 3).double(), torch.randint(0, 4, (6,))
    objective, parameters = Reference(model), ParameterSet(model)
    sample, vectors_KP = {"x": x_NC, "target": y_N}, torch.randn(3, parameters.size).double()
    kinds = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}
    for matrix, kind in kinds.items():
        loss = nn.CrossEntropyLoss(reduction="mean")
        other = getattr(curvlinops, kind)(model, loss, list(model.parameters()), [(x_NC, y_N)])
        wanted = (other @ vectors_KP.t()).t()
        found = Curvature(objective, parameters, [sample], matrix).products(vectors_KP)
        assert torch.allclose(found, wanted, atol=1e-10)

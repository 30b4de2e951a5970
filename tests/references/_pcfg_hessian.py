"""Compares the curvature measured here with a folder of references (traces, by parameter, widened).

The layout is that of ``hessian.json``, ``mlp.npz`` and ``transformer.npz``, and of
``hessian_softmax_regression.json``, here or in the folder ``a``. The transformer is run as the
project's own RoBERTa. Shapes: N targets, C channels, V classes, P parameters, B batch, T time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.data.storage.dictionary import Dictionary
from fairseq.evaluation.hessian.curvature import Curvature, gradient
from fairseq.evaluation.hessian.estimators import whole_matrix
from fairseq.evaluation.hessian.objective import Objective, Prediction, Sample
from fairseq.evaluation.hessian.parameters import ParameterSet
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.model import RobertaEncoder, RobertaModel

TOLERANCE = 1e-6
Arrays = Mapping[str, np.ndarray]

# parameter of the reference -> of RoBERTa; {} stands for weight or bias
NAMES = {
    "tok": "embed_tokens.weight",
    "pos": "embed_positions.weight",
    "emb_ln": "layernorm_embedding",
    "ln1": "layers.0.self_attn_layer_norm",
    "ln2": "layers.0.final_layer_norm",
    "fin_ln": "layer_norm",
    "q": "layers.0.self_attn.q_proj",
    "k": "layers.0.self_attn.k_proj",
    "v": "layers.0.self_attn.v_proj",
    "o": "layers.0.self_attn.out_proj",
    "f1": "layers.0.fc1",
    "f2": "layers.0.fc2",
    "head": "lm_head.dense",
    "head_ln": "lm_head.layer_norm",
    "out": "lm_head",
}


def roberta_name(name: str) -> str:
    """Return the name of a parameter in RoBERTa; ``x0.`` is the layer above the first."""
    extra = re.match(r"x(\d+)\.", name)
    part, _, kind = name[extra.end() if extra else 0 :].partition(".")
    own = NAMES[part].replace("layers.0", f"layers.{1 + int(extra[1]) if extra else 0}")
    own += {"": "", "w": ".weight", "b": ".bias"}[kind]
    return "encoder." + (own if own.startswith("lm_head") else f"sentence_encoder.{own}")


class MeanLoss(nn.Module):
    """The least that an objective asks of a criterion: sum of cross-entropies, hard or soft."""

    padding_idx = 1

    def forward(self, model: nn.Module, sample: Sample) -> tuple[Tensor, int, dict[str, Any]]:
        prediction = predict(model, sample)
        parts = [logits_RV for _, logits_RV in prediction.chunks()]
        target = sample.get("soft", prediction.target_N)
        return F.cross_entropy(torch.cat(parts), target, reduction="sum"), len(target), {}


def predict(model: nn.Module, sample: Sample) -> Prediction:
    """Return what an objective predicts."""
    if isinstance(model, RobertaModel):
        operands = model(**sample["net_input"], predicted_positions=sample["predicted_positions"])
        target_N = sample["target"].reshape(-1)[sample["predicted_positions"]]
        return Prediction(target_N, *operands[0])
    return Prediction(sample["target"], model(sample["x"]))


class Reference(Objective):
    """An objective of a model that need not be one of the project's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, MeanLoss())  # type: ignore[arg-type]

    def prediction(self, sample: Sample) -> Prediction:
        return predict(self.model, sample)


def mlp(arrays: Arrays) -> nn.Module:
    """Return tanh(x w1^T + b1) w2^T + b2."""
    (inner, inputs), classes = arrays["w1"].shape, len(arrays["b2"])
    model = nn.Sequential(nn.Linear(inputs, inner), nn.Tanh(), nn.Linear(inner, classes)).double()
    names = ("w1", "b1", "w2", "b2")
    for name, parameter in zip(names, model.parameters(), strict=True):
        parameter.data = torch.from_numpy(arrays[name])
    return model


def swapped(array: np.ndarray) -> Tensor:
    """Return rows with the first two changed over: the reference's pad is 0, RoBERTa's is 1."""
    return torch.from_numpy(np.concatenate([array[1::-1], array[2:]]))


def roberta(arrays: Arrays, heads: int, eps: float = 1e-12, extra: int = 0) -> RobertaModel:
    """Return the reference transformer as a RoBERTa in fp64, with ``extra`` layers of zeros."""
    parameters = {key[2:]: value for key, value in arrays.items() if key.startswith("P.")}
    dictionary = Dictionary()
    for number in range(len(parameters["tok"]) - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    config = RobertaConfig(
        encoder_layers=1 + extra,
        encoder_embed_dim=parameters["tok"].shape[1],
        encoder_ffn_embed_dim=len(parameters["f1.b"]),
        encoder_attention_heads=heads,
        encoder_normalize_before=True,
        layernorm_embedding=True,
        layer_norm_eps=eps,
        position_offset=0,
        max_positions=len(parameters["pos"]),
        dropout=0.0,
        attention_dropout=0.0,
    )
    model = RobertaModel(config, RobertaEncoder(config, dictionary)).double()
    state = model.state_dict()
    for name, tensor in state.items():
        if ".layers." in name:
            tensor.zero_()
    for name, value in parameters.items():
        words = name in ("tok", "out.b")
        state[roberta_name(name)].copy_(swapped(value) if words else torch.from_numpy(value))
    return model


def heads_of(arrays: Arrays) -> int:
    """Return the number of heads with which the stored logits come out."""
    width, sample = arrays["P.tok"].shape[1], masked_batch(arrays)
    gaps = {}
    for heads in (heads for heads in range(1, width + 1) if width % heads == 0):
        with torch.no_grad():
            chunks = predict(roberta(arrays, heads), sample).chunks()
            logits_NV = torch.cat([logits for _, logits in chunks])
        wanted_NV = swapped(arrays["logits"].T).T[sample["order_N"]]
        gaps[heads] = float((logits_NV - wanted_NV).abs().max())
    return min(gaps, key=lambda heads: gaps[heads])


def masked_batch(arrays: Arrays) -> Sample:
    """Return the reference's batch in the form of a masked-LM task."""
    ids_BT, rows_N2 = (torch.from_numpy(arrays[name]) for name in ("ids", "rows"))
    target_N = torch.from_numpy(arrays["tgt"])
    ids_BT, target_N = (torch.where(ids < 2, 1 - ids, ids) for ids in (ids_BT, target_N))
    positions_N = rows_N2[:, 0] * ids_BT.shape[1] + rows_N2[:, 1]
    target_BT = torch.full_like(ids_BT, 1)
    target_BT.view(-1)[positions_N] = target_N
    ordered = positions_N.sort()
    return {
        "net_input": {"src_tokens": ids_BT},
        "target": target_BT,
        "predicted_positions": ordered.values,
        "order_N": ordered.indices,
        "nsentences": len(ids_BT),
    }


def widened(arrays: Arrays, factor: int, scaled: bool = True) -> dict[str, np.ndarray]:
    """Return the parameters of the same function, ``factor`` times as wide.

    Tables are tiled along their channels and divided by the factor if ``scaled``, otherwise the
    last layer norm is; matrices are tiled both ways and divided, the bias of the vocabulary kept,
    everything else is tiled.
    """
    wide = {}
    for key, value in arrays.items():
        if key in ("P.tok", "P.pos"):
            wide[key] = np.tile(value, (1, factor)) / (factor if scaled else 1)
        elif key == "P.out.b" or not key.startswith("P."):
            wide[key] = value
        elif value.ndim == 2:
            wide[key] = np.tile(value, (factor, factor)) / factor
        else:
            divided = not scaled and key.startswith("P.head_ln.")
            wide[key] = np.tile(value, factor) / (factor if divided else 1)
    return wide


class Comparison:
    """Counts what agrees and remembers what does not."""

    def __init__(self) -> None:
        self.compared, self.wrong = 0, list[str]()

    def close(self, name: str, found: float, wanted: float, scale: float | None = None) -> None:
        """Compare relative to the size of the reference, or to ``scale``."""
        self.compared += 1
        size = max(abs(wanted), scale or 0.0, 1e-12)
        if not abs(found - wanted) <= TOLERANCE * size:
            self.wrong.append(f"{name}: {found!r}, the reference says {wanted!r}")


def compare_case(
    comparison: Comparison, name: str, model: nn.Module, sample: Sample, wanted: Mapping[str, Any]
) -> None:
    """Compare loss, exact traces, empirical Fisher, norm, eigenvalues and variances of probes."""
    objective, parameters = Reference(model), ParameterSet(model)
    like_P = torch.zeros(parameters.size, dtype=torch.float64)
    found: dict[str, float] = {"n_params": parameters.size}
    hessian = Curvature(objective, parameters, [sample])
    hessian_PP = whole_matrix(hessian.products, like_P)
    gauss_newton = Curvature(objective, parameters, [sample], "ggn")
    gauss_newton_PP = whole_matrix(gauss_newton.products, like_P)
    diagonal_P, values_P = hessian_PP.diagonal(), torch.linalg.eigvalsh(hessian_PP)
    slope_P = parameters.flatten(gradient([objective.loss(sample)[0]], parameters.tensors))
    frobenius, on_diagonal = float(hessian_PP.square().sum()), float(diagonal_P.square().sum())
    found |= {
        "loss": hessian.loss,
        "trace": float(diagonal_P.sum()),
        "trace_ggn": float(gauss_newton_PP.trace()),
        "trace_fisher_model_labels": float(gauss_newton_PP.trace()),
        "frobenius_sq": frobenius,
        "diag_sq": on_diagonal,
        "hutchinson_var_gaussian": 2 * frobenius,
        "hutchinson_var_rademacher": 2 * (frobenius - on_diagonal),
        "eig_min": float(values_P[0]),
        "eig_max": float(values_P[-1]),
        "grad_norm": float(slope_P.norm()),
    }
    if wanted.get("trace_empirical_fisher") is not None:
        found["trace_empirical_fisher"] = float(hessian.squared_gradients().sum())
    for key, value in found.items():
        if wanted.get(key) is not None:
            scale = float(values_P.abs().max()) if key in ("eig_min", "grad_norm") else None
            comparison.close(f"{name} {key}", value, wanted[key], scale)
    by_name = parameters.by_name(diagonal_P)
    for place, (key, value) in enumerate(wanted.get("trace_by_param", {}).items()):
        own = roberta_name(key) if isinstance(model, RobertaModel) else parameters.names[place]
        comparison.close(f"{name} {key}", by_name[own], value, abs(wanted["trace"]))


def compare_mlp(comparison: Comparison, arrays: Arrays, wanted: Mapping[str, Any]) -> None:
    """Compare the two-layer network: hard labels, and its own probabilities as labels."""
    model = mlp(arrays)
    sample = {"x": torch.from_numpy(arrays["x"]), "target": torch.from_numpy(arrays["y"])}
    compare_both(comparison, "mlp", model, sample, wanted)


def compare_both(
    comparison: Comparison, name: str, model: nn.Module, sample: Sample, wanted: Mapping[str, Any]
) -> None:
    """Compare a model with its labels, and with its own probabilities in their place."""
    if name in wanted:
        compare_case(comparison, name, model, sample, wanted[name])
    if (key := f"{name}_soft_targets_at_optimum") in wanted:
        with torch.no_grad():
            logits_NV = torch.cat([part for _, part in predict(model, sample).chunks()])
        compare_case(comparison, key, model, {**sample, "soft": logits_NV.softmax(-1)}, wanted[key])


def compare_transformer(comparison: Comparison, arrays: Arrays, wanted: Mapping[str, Any]) -> None:
    """Compare the transformer: as it is, widened, deepened, and the Fisher of its parameters."""
    heads, sample = heads_of(arrays), masked_batch(arrays)
    compare_both(comparison, "transformer", roberta(arrays, heads), sample, wanted)
    for key, case in wanted.items():
        changed = re.fullmatch(r"transformer_(widen|deepen)(\d+)", key)
        if changed is not None and "trace" in case:
            number = int(changed[2])
            times, extra = (number, 0) if changed[1] == "widen" else (1, number)
            model = roberta(widened(arrays, times), heads * times, extra=extra)
            compare_case(comparison, key, model, sample, case)
    for key, case in wanted.get("fisher_by_param", {}).items():
        named = re.fullmatch(r"base|widen(\d+)(_unscaled_embeddings)?", key)
        if named is None:
            comparison.wrong.append(f"fisher_by_param: nothing is known of {key}")
            continue
        factor = int(named[1] or 1)
        model = roberta(widened(arrays, factor, not named[2]), heads * factor)
        compare_fisher(comparison, key, model, sample, case)


def compare_hessians(comparison: Comparison, folder: Path) -> None:
    """Compare ``hessian.json`` with what stands in ``mlp.npz`` and ``transformer.npz``."""
    wanted = json.loads((folder / "hessian.json").read_text(encoding="utf-8"))
    known = {"mlp": compare_mlp, "transformer": compare_transformer}
    for name, compare in known.items():
        if (folder / f"{name}.npz").exists():
            with np.load(folder / f"{name}.npz") as file:
                compare(comparison, dict(file), wanted)


def compare_fisher(
    comparison: Comparison, name: str, model: nn.Module, sample: Sample, wanted: Mapping[str, float]
) -> None:
    """Compare the exact Fisher trace of every parameter: every label, by its probability."""
    prediction, parameters = predict(model, sample), ParameterSet(model)
    (_, logits_NV), total_P = next(prediction.chunks()), torch.zeros(parameters.size).double()
    for label in range(logits_NV.shape[1]):
        losses_N = prediction.losses(torch.full_like(prediction.target_N, label))
        for loss in losses_N:
            slope_P = parameters.flatten(gradient([loss], parameters.tensors))
            total_P += (-loss).exp().detach() / len(losses_N) * slope_P.square()
    by_name = parameters.by_name(total_P)
    for key, value in wanted.items():
        comparison.close(f"{name} {key}", by_name[roberta_name(key)], value, 1e-9)


def compare_softmax_regression(comparison: Comparison, path: Path) -> None:
    """Compare a linear softmax model with its closed form and one given probe."""
    wanted = json.loads(path.read_text(encoding="utf-8"))
    x_NC, weight_VC, bias_V = (
        torch.tensor(wanted[key], dtype=torch.float64) for key in ("x", "W", "b")
    )
    model = nn.Linear(x_NC.shape[1], len(bias_V)).double()
    model.weight.data, model.bias.data = weight_VC, bias_V
    sample = {"x": x_NC, "target": torch.tensor(wanted["y"])}
    compare_case(comparison, "softmax regression", model, sample, wanted)
    by_class = torch.tensor(wanted["probe_gaussian"], dtype=torch.float64).view(len(bias_V), -1)
    for key, probe in (("vHv_gaussian", by_class), ("vHv_rademacher_sign", by_class.sign())):
        vector_P = torch.cat([probe[:, :-1].reshape(-1), probe[:, -1]])
        curvature = Curvature(Reference(model), ParameterSet(model), [sample])
        found = float(vector_P @ curvature.product(vector_P))
        comparison.close(f"softmax regression {key}", found, wanted[key])


def check(folder: str | Path) -> int:
    """Compare every Hessian reference below a folder; return how many numbers were compared.

    Raises:
        AssertionError: listing what differs by more than 1e-6 of the reference.
    """
    folder, comparison = Path(folder), Comparison()
    if (folder / "hessian.json").exists():
        compare_hessians(comparison, folder)
    for path in sorted(folder.rglob("hessian_softmax_regression.json")):
        compare_softmax_regression(comparison, path)
    assert not comparison.wrong, "\n".join(comparison.wrong)
    return comparison.compared

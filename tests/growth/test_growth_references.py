"""Growth against reference outputs: LiGO and its gradients, bert2BERT, maps of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fairseq.growth import layers
from fairseq.growth.ligo import apply_operator
from fairseq.growth.methods import GROWTH, Options
from fairseq.growth.sizes import Pair, resized
from fairseq.growth.tensors import join, split
from fairseq.models.roberta import RobertaConfig, RobertaEncoder, RobertaModel


def test_the_checker_accepts_the_references_and_nothing_else(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.references import ligo

    folder = shared / "compat" / "ligo" / "b"
    assert ligo.check(folder) == 0
    assert "fpi_8to12.npz" in capsys.readouterr().out
    for path in folder.glob("*.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    wrong = dict(np.load(tmp_path / "fpi_8to12.npz"))
    wrong["layers.0.fc1.bias"] = wrong["layers.0.fc1.bias"] + 1e-5
    np.savez(tmp_path / "fpi_8to12.npz", **wrong)
    assert ligo.check(tmp_path) == 1
    assert "fpi_8to12.npz: 1.0e-05 DIFFERS" in capsys.readouterr().out
    (tmp_path / "fpi_8to12.npz").unlink()
    np.savez(tmp_path / "mystery.npz", x=wrong["layers.0.fc1.bias"])
    assert ligo.check(tmp_path) == 1
    assert "mystery.npz: not understood" in capsys.readouterr().out


SHORT = {
    **{f"emb.{a}": f"embed_{b}" for a, b in (("word", "tokens"), ("pos", "positions"))},
    "emb.type": "token_type",
    "emb.ln": "layernorm_embedding",
    "head.dense": "lm_head.dense",
    "head.ln": "lm_head.layer_norm",
    "head.out": "lm_head",
    **{z: f"self_attn.{z}_proj" for z in "qkv"},
    **{"o": "self_attn.out_proj", "f1": "fc1", "f2": "fc2"},
    **{"ln1": "self_attn_layer_norm", "ln2": "final_layer_norm"},
}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under RoBERTa's names; the references have short ones."""
    result = {}
    for name, x in state.items():
        key, _, part = name.rpartition(".") if name[-2:] in (".w", ".b") else (name, "", "w")
        layer, _, inner = key.partition(".")
        stem = f"layers.{layer[1:]}." if layer[0] == "l" and layer[1:].isdigit() else ""
        full = f"{stem}{SHORT[inner if stem else key]}.{'weight' if part == 'w' else 'bias'}"
        prefix = "encoder." if full.startswith("lm_head") else "encoder.sentence_encoder."
        result[prefix + full] = x
    return result


def group(file: Any, name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {
        k.removeprefix(prefix): torch.from_numpy(file[k])
        for k in file.files
        if k.startswith(prefix)
    }


def pair_of(layers_: tuple[int, int], **settings: Any) -> Pair:
    small = RobertaConfig(
        encoder_layers=layers_[0], encoder_embed_dim=8, encoder_ffn_embed_dim=16,
        encoder_attention_heads=2, max_positions=10, **settings,
    )  # fmt: skip
    return Pair(small, resized(small, layers=layers_[1], width=12))


def operator_name(key: str) -> tuple[str, int | None]:
    """Return our name of a number of the references' operator, and its row if it is one."""
    kind, *rest = key.split(".")
    if kind == "S":
        axis = {"e": "emb", "c": "cls", "f": "ffn"}.get(rest[0], rest[0])
        return ".".join(["width", axis, *rest[1:]]), None
    layer, module, part = rest
    return f"depth.{SHORT[module]}.{'weight' if part == 'w' else 'bias'}", int(layer)


def operator_of(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    operator: dict[str, Tensor] = {}
    for key, x in numbers.items():
        name, row = operator_name(key)
        if row is None:
            operator[name] = x
        else:
            operator.setdefault(name, torch.zeros(4, 2).double())[row] = x
    return operator


@pytest.mark.parametrize("tied", [False, True])
def test_an_operator(shared: Path, tied: bool) -> None:
    name = "ligo_fairseq_roberta_tied" if tied else "ligo_bert_2L8d_4L12d"
    file = np.load(shared / "compat" / "ligo" / f"{name}.npz")
    pair = pair_of((2, 4), untie_weights_roberta=not tied)
    small, wanted = group(file, "small"), group(file, "grown")
    if not tied:
        small, wanted = renamed(small), renamed(wanted)
    operator = operator_of(group(file, "op"))
    after = GROWTH["ligo"](small, *pair, Options(operator=operator))
    assert set(wanted) <= set(after)
    for key, x in wanted.items():
        torch.testing.assert_close(after[key], x, rtol=0, atol=1e-12)


def test_residuals_are_added(shared: Path) -> None:
    folder = shared / "compat" / "ligo"
    file, other = (
        np.load(folder / "ligo_bert_2L8d_4L12d.npz"),
        np.load(folder / "ligo_residual.npz"),
    )
    extra = {f"residual.{k}": x for k, x in renamed(group(other, "residual")).items()}
    operator = {**operator_of(group(file, "op")), **extra}
    pair = pair_of((2, 4), untie_weights_roberta=True)
    after = GROWTH["ligo"](renamed(group(file, "small")), *pair, Options(operator=operator))
    (name,) = {key.partition("/")[0] for key in other.files} - {"residual"}
    for key, x in renamed(group(other, name)).items():
        torch.testing.assert_close(after[key], x, rtol=0, atol=1e-12)


def test_gradients_of_an_operator(shared: Path) -> None:
    """The gradient of the loss with respect to every number of the operator."""
    file = np.load(shared / "compat" / "ligo" / "ligo_bert_2L8d_4L12d.npz")
    bert = {
        "segments": 2,
        "position_offset": 0,
        "layer_norm_eps": 1e-12,
        "untie_weights_roberta": True,
    }
    pair = pair_of((2, 4), **bert)
    operator = {n: x.requires_grad_() for n, x in operator_of(group(file, "op")).items()}
    small = {
        n.replace("token_type", "embed_segments"): x
        for n, x in renamed(group(file, "small")).items()
    }

    class Rows:
        def __len__(self) -> int:
            return 13

        def pad(self) -> int:
            return 0

    model = RobertaModel(pair.target, RobertaEncoder(pair.target, Rows())).double().eval()
    weights = join(apply_operator(split(small), operator, pair))
    ids, labels = torch.from_numpy(file["ids"]), torch.from_numpy(file["labels"])
    logits, _ = torch.func.functional_call(model, weights, (ids,))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert abs(float(loss.detach()) - float(file["grown_loss"])) < 1e-12
    loss.backward()
    for key, wanted in group(file, "grad").items():
        name, row = operator_name(key)
        found = operator[name].grad if row is None else operator[name].grad[row]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8, msg=key)


@pytest.mark.parametrize("method", ["fpi", "aki"])
def test_bert2bert(shared: Path, method: str) -> None:
    file = np.load(shared / "compat" / "ligo" / "bert2bert_fpi_aki_8_12.npz")
    maps = {
        f"g_{n}.{layer}": torch.from_numpy(file[f"g_{n}"])
        for n in ("head", "ffn")
        for layer in (0, 1)
    }
    maps["g_emb"] = torch.from_numpy(file["g_emb"])
    small, wanted = renamed(group(file, "small")), renamed(group(file, method))
    after = GROWTH[method](small, *pair_of((2, 2), untie_weights_roberta=True), Options(maps=maps))
    for key, x in wanted.items():
        torch.testing.assert_close(after[key], x, rtol=0, atol=1e-12, msg=key)


def test_depth_maps(shared: Path) -> None:
    file = np.load(shared / "compat" / "ligo" / "depth_maps.npz")
    kinds = {
        "stack": layers.stack_map,
        "interpolate": layers.interpolate_map,
        "bert2bert_stack": layers.bert2bert_map,
    }
    seen = 0
    for key in file.files:
        kind, small, large = key.rsplit("_", 2)
        if kind in kinds:  # the original's interlacing, l // 2, names layers that are not there
            assert kinds[kind](int(small), int(large)) == file[key].tolist(), key
            seen += 1
    assert seen == 12

"""Reference outputs of growth: a ``.npz`` a case, ``NAME_io.npz`` with tokens and logits beside it.

Names are those of RoBERTa's state dict without its prefixes. The number of heads is that for which
the small model reproduces its logits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.growth import layers
from fairseq.growth.ligo import _matrix
from fairseq.growth.ligo_init import depth_weights
from fairseq.growth.maps import Average, Matrix, Select
from fairseq.growth.methods import GROWTH, Options
from fairseq.growth.tensors import widen_tensor
from fairseq.models.roberta import RobertaConfig, RobertaModel

TOLERANCE = 1e-6
Arrays = dict[str, Tensor]
# helpers of the cases, not cases
INPUTS = r"small(_io)?|ligo_operator|net2net_maps|.*_io|.*_maps(?<!depth_maps)"


class NotUnderstood(Exception):
    """A file that this checker knows no rule for."""


def read(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}


def prefixed(state: Arrays) -> Arrays:
    return {
        ("encoder." if name.startswith("lm_head") else "encoder.sentence_encoder.") + name: x
        for name, x in state.items()
    }


def bare(name: str) -> str:
    return name.removeprefix("encoder.").removeprefix("sentence_encoder.")


def config_of(state: Arrays, head_dim: int, **settings: Any) -> RobertaConfig:
    """Return the configuration of a model from its tensors."""
    width = state["embed_tokens.weight"].shape[1]
    if width % head_dim:
        raise NotUnderstood(f"width {width} with heads of {head_dim} channels")
    return RobertaConfig(
        encoder_layers=1 + max(int(n.split(".")[1]) for n in state if n.startswith("layers.")),
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=state["layers.0.fc1.weight"].shape[0],
        encoder_attention_heads=width // head_dim,
        max_positions=state["embed_positions.weight"].shape[0] - 2,
        attention_backend="reference",
        **settings,
    )


def outputs(config: RobertaConfig, state: Arrays, tokens: Tensor) -> tuple[Tensor, ...]:
    """Return logits (B, T, V) of the package's model in fp64, and hidden states (B, T, C).

    The last are those after the last layer, which a pre-norm model normalises once more.
    """

    class Rows:
        def __len__(self) -> int:
            return len(state["embed_tokens.weight"])

        def pad(self) -> int:
            return 1

    task = SimpleNamespace(cfg=SimpleNamespace(), source_dictionary=Rows(), max_positions=None)
    fits = len(state.get("lm_head.dense.weight", ())) == config.encoder_embed_dim
    config = dataclasses.replace(config, head="roberta" if fits else "none")
    model = RobertaModel.build_model(config, task).double().eval()
    known = model.state_dict()
    model.load_state_dict({name: x for name, x in prefixed(state).items() if name in known})
    with torch.no_grad():
        hidden, more = model(tokens.long(), features_only=True, return_all_hiddens=True)
        logits = model(tokens.long())[0] if fits else narrow_head(state, hidden)
    return logits, hidden, more["inner_states"][-1].transpose(0, 1)


def narrow_head(state: Arrays, hidden: Tensor) -> Tensor:
    """Return the logits of a head that did not grow with the hidden states, if there is a head."""
    part = {name.removeprefix("lm_head."): x for name, x in state.items()}
    if "dense.weight" not in part:
        return hidden.new_empty(0)
    hidden = hidden[..., : part["dense.weight"].shape[1]]
    inner = F.gelu(F.linear(hidden, part["dense.weight"], part["dense.bias"]))
    norm = part["layer_norm.weight"], part["layer_norm.bias"]
    return F.linear(F.layer_norm(inner, norm[0].shape, *norm), part["weight"], part["bias"])


def pre_norm(config: RobertaConfig) -> RobertaConfig:
    return dataclasses.replace(config, encoder_normalize_before=True, layernorm_embedding=False)


class Folder:
    """The inputs that all cases share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.small = read(path / "small.npz")
        self.head_dim = self._head_dim()
        self.config = config_of(self.small, self.head_dim)

    def _head_dim(self) -> int:
        width = self.small["embed_tokens.weight"].shape[1]
        io = read(self.path / "small_io.npz")
        gaps = {
            dim: float(
                (
                    outputs(config_of(self.small, dim), self.small, io["tokens"])[0]
                    - io["logits_postln"]
                )
                .abs()
                .max()
            )
            for dim in range(1, width + 1)
            if width % dim == 0
        }
        best = min(gaps, key=lambda dim: gaps[dim])
        if gaps[best] > TOLERANCE:
            raise NotUnderstood(f"the small model's logits differ by {gaps[best]:.1e}")
        return best

    def maps(self, name: str) -> Arrays:
        own = self.path / f"{name}_maps.npz"
        return read(own if own.is_file() else self.path / "net2net_maps.npz")

    def grow(self, method: str, wanted: Arrays, untied: bool = False, **options: Any) -> Arrays:
        source = dataclasses.replace(self.config, untie_weights_roberta=untied)
        target = config_of(wanted, self.head_dim, untie_weights_roberta=untied)
        grown = GROWTH[method](prefixed(self.small), source, target, Options(**options))
        return {bare(name): x for name, x in grown.items()}


def difference(wanted: Arrays, grown: Arrays) -> float:
    """Return the largest difference over all tensors of the reference."""
    lacking = sorted(set(wanted) - set(grown))
    if lacking:
        raise NotUnderstood(f"tensors {lacking[:3]}")
    for name, x in wanted.items():
        if x.shape != grown[name].shape:
            raise NotUnderstood(f"{name} of shape {tuple(x.shape)}, not {tuple(grown[name].shape)}")
    return max(float((x - grown[name]).abs().max()) for name, x in wanted.items())


def io_difference(folder: Folder, name: str, state: Arrays, untied: bool = False) -> float:
    """Return the largest difference of logits and hidden states recorded beside a case."""
    path = folder.path / f"{name}_io.npz"
    if not path.is_file():
        return 0.0
    io = read(path)
    width, old = state["embed_tokens.weight"].shape[1], folder.config.encoder_embed_dim
    base = config_of(state, folder.head_dim, untie_weights_roberta=untied)
    worst, stated = 0.0, [float(x) for key, x in io.items() if "eps" in key]
    for key, wanted in io.items():
        if key == "tokens" or "eps" in key:
            continue
        if wanted.dim() != 3 or not wanted.is_floating_point():
            raise NotUnderstood(f"{path.name}: {key}")
        config = pre_norm(base) if "preln" in key or "preln" in name else base
        eps = [1e-5, 1e-5 * old / width, *stated]
        tried = [dataclasses.replace(config, layer_norm_eps=value) for value in eps]
        last = wanted.shape[-1]
        logits = "logits" in key or last == len(state["embed_tokens.weight"])
        found = [x for c in tried for x in outputs(c, state, io["tokens"])[: 1 if logits else None]]
        gaps = [float((x[..., :last] - wanted).abs().max()) for x in found if x.dim() == 3]
        worst = max(worst, min(gaps))
    return worst


def operator_of(folder: Folder) -> Arrays:
    renamed = {}
    for name, x in read(folder.path / "ligo_operator.npz").items():
        kind, _, rest = name.partition(".")
        if kind not in ("C", "w"):
            raise NotUnderstood(f"ligo_operator.npz: {name}")
        renamed[{"C": "width.", "w": "depth."}[kind] + rest] = x
    return renamed


def ligo(folder: Folder, name: str, wanted: Arrays) -> float:
    untied = "untied" in name
    grown = folder.grow("ligo", wanted, untied, operator=operator_of(folder))
    return max(difference(wanted, grown), io_difference(folder, name, grown, untied))


def grown_by(method: str, **options: Any) -> Callable[[Folder, str, Arrays], float]:
    def case(folder: Folder, name: str, wanted: Arrays) -> float:
        maps = folder.maps(name) if method in ("fpi", "aki") else None
        grown = folder.grow(method, wanted, maps=maps, **options)
        return max(difference(wanted, grown), io_difference(folder, name, grown))

    return case


def average(folder: Folder, name: str, wanted: Arrays) -> float:
    """Compare what the rule determines, then the function that the reference computes.

    Readers' columns for new channels see zeros and may hold anything. New heads and inner channels
    are copies with shares, or anything with outputs of zero; the logits or hidden states tell.
    """
    emb = Average(folder.config.encoder_embed_dim, wanted["embed_tokens.weight"].shape[1])
    worst = io_difference(folder, name, wanted)
    recorded = (folder.path / f"{name}_io.npz").is_file()
    for key, x in folder.small.items():
        if key.startswith(("lm_head.", "layernorm_embedding.")) or key not in wanted:
            continue
        local = re.sub(r"^layers\.\d+\.", "", key)
        grown = widen_tensor(local, x, lambda axis, *_: emb if axis == "emb" else None)
        reads = re.fullmatch(r"self_attn\.[qkv]_proj\.weight|fc1\.weight", local) is not None
        corner = tuple(slice(size) for size in (x.shape if reads else grown.shape))
        gap = float((wanted[key][corner] - grown[corner]).abs().max())
        if re.fullmatch(r"self_attn\.out_proj\.weight|fc2\.weight", local) and recorded:
            means = emb.write(wanted[key][: emb.inputs], 0)
            gap = float((wanted[key] - means).abs().max())
        worst = max(worst, gap)
    return worst


def depth_maps(folder: Folder, name: str, wanted: Arrays) -> float:
    kinds = {
        "stackbert": layers.stack_map,
        "interpolation": layers.interpolate_map,
        "interlace": layers.interlace_map,
        "bert2bert": layers.bert2bert_map,
    }
    worst = 0.0
    for key, x in wanted.items():
        mslt = re.fullmatch(r"mslt_top\d+_of(\d+)_to(\d+)", key)
        other = re.match(r"([a-z0-9]+?)_(\d+)to(\d+)", key)
        if mslt is not None:
            found = layers.mslt_map(int(mslt[1]), int(mslt[2]))
        elif other is not None and other[1] in kinds:
            found = kinds[other[1]](int(other[2]), int(other[3]))
        else:
            raise NotUnderstood(f"depth_maps.npz: {key}")
        worst = max(worst, float((x - torch.tensor(found)).abs().max()))
    return worst


def depth_init(folder: Folder, name: str, wanted: Arrays) -> float:
    worst = 0.0
    for key, x in wanted.items():
        if key in ("noise", "uniform"):
            continue
        kind = re.sub(r"_\d+to\d+$", "", key).replace("stackbert", "stack")
        drawn = wanted["noise" if "noisy" in kind else "uniform"][: len(x)]
        worst = max(worst, float((depth_weights(kind, drawn, 1.0) - x).abs().max()))
    return worst


def net2net_pair(folder: Folder, name: str, wanted: Arrays) -> float:
    chosen = Select(wanted["g"].long(), len(wanted["W1"]))
    gaps = {
        "W1_new": chosen.write(wanted["W1"], 0),
        "W2_new": chosen.read(wanted["W2"], 1),
        "y": (wanted["x"] @ wanted["W1_new"].T).relu() @ wanted["W2_new"].T,
    }
    return max(float((wanted[key] - x).abs().max()) for key, x in gaps.items())


def pinv_linear(folder: Folder, name: str, wanted: Arrays) -> float:
    inner, outer = (
        _matrix(wanted[key][wanted[key].shape[1] :], "pinv") for key in ("B_in", "B_out")
    )
    for key in ("B_in", "B_out"):
        columns = wanted[key].shape[1]
        if not torch.equal(wanted[key][:columns], torch.eye(columns).double()):
            raise NotUnderstood(f"{key} does not begin with the identity")
    assert isinstance(inner, Matrix)
    return float((inner.read(outer.write(wanted["W"], 0), 1) - wanted["W_new"]).abs().max())


CASES: dict[str, Callable[[Folder, str, Arrays], float]] = {
    r"ligo_grown_(un)?tied": ligo,
    r"stackbert_.*": grown_by("stack"),
    r"interpolation_.*": grown_by("interpolate"),
    r"fpi_.*": grown_by("fpi"),
    r"aki_.*": grown_by("aki", norms="above"),
    r"exact_postln_.*": grown_by("fpi"),
    r"exact_preln_avg.*": average,
    r"depth_maps": depth_maps,
    r"depth_init": depth_init,
    r"net2net_pair": net2net_pair,
    r"pinv_linear": pinv_linear,
}


def check(folder: Path) -> int:
    """Print the largest difference of every case; return 1 if one is too large or unknown."""
    status = 0
    try:
        inputs = Folder(folder)
    except (NotUnderstood, OSError, KeyError) as error:
        print(f"small.npz: not understood: {error}")
        return 1
    for path in sorted(folder.glob("*")):
        if path.suffix == ".md" or (path.suffix == ".npz" and re.fullmatch(INPUTS, path.stem)):
            continue
        case = next((run for key, run in CASES.items() if re.fullmatch(key, path.stem)), None)
        try:
            if case is None or path.suffix != ".npz":
                raise NotUnderstood("no rule for this name")
            gap = case(inputs, path.stem, read(path))
        except (NotUnderstood, OSError, KeyError, ValueError, RuntimeError) as error:
            print(f"{path.name}: not understood: {error}")
            status = 1
            continue
        print(f"{path.name}: {gap:.1e}{'' if gap <= TOLERANCE else ' DIFFERS'}")
        status = status if gap <= TOLERANCE else 1
    return status

"""Teachers of other programs: checkpoints of the original, folders of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from teacher_runs import load, shown, student
from tiny_run import config, make_corpus, train

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.mark.parametrize("name, family", [("fb_lm", "causal"), ("fb_baseline", "masked")])
def test_checkpoints_of_the_original_teach(
    name: str, family: str, shared: Path, tmp_path: Path
) -> None:
    """One command: their dictionary is found by --teacher-overrides; half the depth and width."""
    folder = shared / "compat" / "checkpoints"
    corpus = folder / "data-bin"
    flags = student(
        family, folder / name / "model.pt", teacher_overrides=f"{{'data': {str(corpus)!r}}}",
        tokens_per_sample=64, max_positions=64, max_update=2, disable_validation=True,
        minilm_relation_heads=4,
    )  # fmt: skip
    flags.pop("max_positions") if family == "causal" else None
    train(config(corpus, tmp_path, **flags))
    assert shown(tmp_path, "train_inner")["loss_ce"] > 0
    import numpy as np

    golden = np.load(folder / name / "golden.npz")
    tokens_BT = torch.from_numpy(golden["tokens"]).long()
    if name == "fb_lm":
        tokens_BT = tokens_BT.clamp(max=1503)
    teacher = load(corpus, flags)
    net_input = {"src_tokens": tokens_BT}
    operands, extra = teacher.outputs(net_input, torch.arange(tokens_BT.numel()))
    kept_BT = tokens_BT.ne(1)
    wanted_BTV = torch.from_numpy(golden["logits"])
    got_BTV = operands.logits().unflatten(0, tokens_BT.shape)
    torch.testing.assert_close(got_BTV[kept_BT], wanted_BTV[kept_BT], atol=1e-4, rtol=1e-4)
    wanted_BTC = torch.from_numpy(golden["features"])
    torch.testing.assert_close(
        extra["features"][kept_BT], wanted_BTC[kept_BT], atol=1e-4, rtol=1e-4
    )


def gpt2_folder(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Write a GPT-2 of two layers, its words separated by blanks; return its weights."""
    folder.mkdir()
    width, rows = 32, len(words)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (rows, width), "wpe.weight": (20, width)}
    for n in range(2):
        shapes |= {
            f"h.{n}.attn.c_attn.weight": (width, 3 * width),
            f"h.{n}.attn.c_attn.bias": (3 * width,),
            f"h.{n}.attn.c_proj.weight": (width, width), f"h.{n}.attn.c_proj.bias": (width,),
            f"h.{n}.mlp.c_fc.weight": (width, 4 * width), f"h.{n}.mlp.c_fc.bias": (4 * width,),
            f"h.{n}.mlp.c_proj.weight": (4 * width, width), f"h.{n}.mlp.c_proj.bias": (width,),
        }  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    state = {name: torch.randn(*shape, generator=draw) * 0.2 for name, shape in shapes.items()}
    for norm in ("h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "ln_f"):
        state[f"{norm}.weight"] = 1 + 0.1 * torch.randn(width, generator=draw)
        state[f"{norm}.bias"] = 0.1 * torch.randn(width, generator=draw)
    save_file({f"transformer.{name}": value for name, value in state.items()},
              str(folder / "model.safetensors"))  # fmt: skip
    told = {"model_type": "gpt2", "n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 20,
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))
    split = {
        "model": {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)},
                  "unk_token": "<unk>"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(split))
    return state


def gpt2(state: dict[str, torch.Tensor], tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits of a GPT-2 with two heads, written out."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    length = tokens_BT.shape[1]
    x = state["wte.weight"][tokens_BT] + state["wpe.weight"][:length]
    for n in range(2):
        parts = linear(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
        scores = (q @ k.mT / 4).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"h.{n}.attn.c_proj")
        inner = linear(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc")
        x = x + linear(F.gelu(inner, approximate="tanh"), f"h.{n}.mlp.c_proj")
    return norm(x, "ln_f") @ state.get("head", state["wte.weight"]).T


def opt_folder(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Write an OPT of two layers over :func:`gpt2_folder`'s tokenizer; return its weights."""
    gpt2_folder(folder, words)
    width = 32
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (len(words), width)}
    shapes |= {"embed_positions.weight": (22, width)}  # the first position has row 2
    for n in range(2):
        for name, outputs, inputs in (
            *((f"self_attn.{part}_proj", width, width) for part in ("q", "k", "v", "out")),
            ("fc1", 48, width), ("fc2", width, 48),
        ):  # fmt: skip
            shapes |= {f"layers.{n}.{name}.weight": (outputs, inputs)}
            shapes |= {f"layers.{n}.{name}.bias": (outputs,)}
    norms = [f"layers.{n}.{k}_layer_norm" for n in range(2) for k in ("self_attn", "final")]
    for norm in (*norms, "final_layer_norm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    draw = torch.Generator().manual_seed(0)
    state = {name: torch.randn(*shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    save_file({f"model.decoder.{name}": value for name, value in state.items()},
              str(folder / "model.safetensors"))  # fmt: skip
    told = {"model_type": "opt", "hidden_size": width, "num_hidden_layers": 2, "ffn_dim": 48,
            "num_attention_heads": 2, "max_position_embeddings": 20, "bos_token_id": 0,
            "eos_token_id": 2, "pad_token_id": 1, "word_embed_proj_dim": width}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))
    return state


def opt(state: dict[str, torch.Tensor], tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits of an OPT with two heads, written out; no pads."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    length = tokens_BT.shape[1]
    x = state["embed_tokens.weight"][tokens_BT] + state["embed_positions.weight"][2 : 2 + length]
    for n in range(2):
        inner = norm(x, f"layers.{n}.self_attn_layer_norm")
        q, k, v = (
            linear(inner, f"layers.{n}.self_attn.{part}_proj")
            .unflatten(-1, (2, -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        scores = (q @ k.mT / 4).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"layers.{n}.self_attn.out_proj")
        inner = linear(norm(x, f"layers.{n}.final_layer_norm"), f"layers.{n}.fc1").relu()
        x = x + linear(inner, f"layers.{n}.fc2")
    return norm(x, "final_layer_norm") @ state["embed_tokens.weight"].T


def untied_folder(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Write a GPT-2 whose head is a table of its own; return its weights."""
    state = gpt2_folder(folder, words)
    head_VC = torch.randn(len(words), 32, generator=torch.Generator().manual_seed(7)) * 0.2
    weights = {f"transformer.{name}": value for name, value in state.items()}
    save_file({**weights, "lm_head.weight": head_VC}, str(folder / "model.safetensors"))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "tie_word_embeddings": False}))
    return {**state, "head": head_VC}


FOLDERS: dict[str, Any] = {
    "gpt2": (gpt2_folder, gpt2), "opt": (opt_folder, opt), "untied head": (untied_folder, gpt2),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_hugging_face_teaches(kind: str, data: Path, tmp_path: Path) -> None:
    words = Dictionary.load(data / "dict.txt").symbols
    write, logits_of = FOLDERS[kind]
    state = write(tmp_path / "folder", words)
    flags = student("causal", tmp_path / "folder", max_update=3)
    train(config(data, tmp_path / "run", **flags))
    assert shown(tmp_path / "run", "valid")["loss_ce"] > 0
    tokens_BT = torch.randint(4, len(words), (2, 9))
    operands, _ = load(data, flags).outputs({"src_tokens": tokens_BT}, torch.arange(18))
    wanted_NV = logits_of(state, tokens_BT).flatten(0, 1)
    torch.testing.assert_close(operands.logits(), wanted_NV, atol=1e-4, rtol=1e-4)


# -- encoders without a head -----------------------------------------------------------------------


def bert_folder(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Write a BERT of two layers without a head, as sentence encoders are; return its weights."""
    folder.mkdir()
    width, rows = 32, len(words)
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (size, width)
        for name, size in (("word", rows), ("position", 20), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm"]
    for n in range(2):
        layer = f"encoder.layer.{n}."
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
        for name, outputs, inputs in (
            *((f"attention.self.{kind}", width, width) for kind in ("query", "key", "value")),
            ("attention.output.dense", width, width),
            ("intermediate.dense", 64, width), ("output.dense", width, 64),
        ):  # fmt: skip
            shapes |= {
                f"{layer}{name}.weight": (outputs, inputs),
                f"{layer}{name}.bias": (outputs,),
            }
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    draw = torch.Generator().manual_seed(0)
    state = {name: torch.randn(*shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    save_file(state, str(folder / "model.safetensors"))
    told = {"model_type": "bert", "hidden_size": width, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return state


def bert(state: dict[str, torch.Tensor], tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the hidden states of a BERT with two heads, written out."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], *parts, eps=1e-12)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    tables = [
        state[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type")
    ]
    summed = tables[0][tokens_BT] + tables[1][: tokens_BT.shape[1]] + tables[2][0]
    x = norm(summed, "embeddings.LayerNorm")
    for n in range(2):
        layer = f"encoder.layer.{n}."
        q, k, v = (
            linear(x, f"{layer}attention.self.{kind}").unflatten(-1, (2, -1)).transpose(1, 2)
            for kind in ("query", "key", "value")
        )
        attended = ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"{layer}attention.output.dense")
        x = norm(x, f"{layer}attention.output.LayerNorm")
        inner = F.gelu(linear(x, f"{layer}intermediate.dense"))
        x = norm(x + linear(inner, f"{layer}output.dense"), f"{layer}output.LayerNorm")
    return x


def test_an_encoder_without_a_head_teaches_hidden_states_and_relations(tmp_path: Path) -> None:
    words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(60)), "[MASK]"]
    state = bert_folder(tmp_path / "bert", words)
    corpus = make_corpus(tmp_path / "data")
    roles = {"bos": "[CLS]", "pad": "[PAD]", "eos": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    Dictionary.foreign(words, **roles).save(corpus / "dict.txt")
    flags = student("masked", tmp_path / "bert", max_update=3, alpha_ce=0.0, alpha_mse=0.0,
                    encoder_embed_dim=16, minilm_relation_heads=4)  # fmt: skip
    train(config(corpus, tmp_path / "run", **flags))
    valid = shown(tmp_path / "run", "valid")
    assert min(valid[f"loss_{name}"] for name in ("cos", "pkd", "attention", "value")) > 0
    tokens_BT = torch.randint(4, 64, (2, 9))
    features_BTC, _ = load(corpus, flags).outputs({"src_tokens": tokens_BT}, None)
    torch.testing.assert_close(features_BTC, bert(state, tokens_BT), atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="hidden states only"):
        load(corpus, {**flags, "alpha_ce": 1.0})


@pytest.mark.parametrize("described", ['{"model_type": "bert"', "[1]", '{"model_type": []}'])
def test_a_damaged_folder_is_an_error_that_names_it(
    described: str, data: Path, tmp_path: Path
) -> None:
    """Not the traceback of whatever failed first: cut JSON, a list, a family that is no name."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text(described)
    save_file({"wte.weight": torch.zeros(4, 2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=str(folder)):
        load(data, student("causal", folder))

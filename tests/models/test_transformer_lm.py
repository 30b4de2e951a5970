"""TransformerLanguageModel: the original's numbers and names, causality, tokens one by one.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_lm import EOS, PAD, POSITIONS, TINY, V, a_task, tiny_lm

from fairseq.catalog import ARCHITECTURES
from fairseq.config.registries import ARCH_CONFIG_REGISTRY
from fairseq.errors import ConfigError
from fairseq.hub.load import load_model_ensemble_and_task
from fairseq.models import transformer_lm
from fairseq.models.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)

TOKENS = torch.tensor([[EOS, 5, 6, 7, 8, 4], [EOS, 9, 4, 11, 12, 5]])

# -- the original's numbers and names --------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_lm(shared: Path) -> Any:
    folder = shared / "compat" / "checkpoints"
    overrides = {"data": str(folder / "data-bin")}
    models, _, _ = load_model_ensemble_and_task([str(folder / "fb_lm" / "model.pt")], overrides)
    return models[0].eval()


def test_outputs_equal_the_original(shared: Path, golden_lm: Any) -> None:
    golden = np.load(shared / "compat" / "checkpoints" / "fb_lm" / "golden.npz")
    tokens_BT = torch.from_numpy(golden["tokens"])
    kept_BT = tokens_BT != 1
    with torch.no_grad():
        logits, extra = golden_lm(tokens_BT)
        features, _ = golden_lm.extract_features(tokens_BT)
        log_p = golden_lm.get_normalized_probs((logits, extra), log_probs=True)
    for ours, key in ((logits, "logits"), (features, "features"), (log_p, "log_probs")):
        np.testing.assert_allclose(ours[kept_BT], golden[key][kept_BT], rtol=0, atol=1e-5)


def test_names_and_shapes_are_the_original_s(shared: Path, golden_lm: Any) -> None:
    path = shared / "compat" / "checkpoints" / "fb_lm" / "structure.json"
    expected = json.loads(path.read_text("utf-8"))["model"]
    ours = {name: [list(t.shape), str(t.dtype)] for name, t in golden_lm.state_dict().items()}
    assert list(ours) == list(expected)
    assert ours == {name: list(entry)[:2] for name, entry in expected.items()}


def test_architectures_are_functions_beside_the_model() -> None:
    for arch, (model, target) in ARCHITECTURES.items():
        if model == "transformer_lm":
            name = target.partition(":")[2]
            assert getattr(transformer_lm, name) is ARCH_CONFIG_REGISTRY[arch]
    args = Namespace(decoder_layers=3)
    transformer_lm.base_gpt3_architecture(args)
    assert (args.decoder_layers, args.dropout, args.decoder_learned_pos) == (3, 0.0, True)
    assert args.decoder_normalize_before and args.decoder_input_dim == 512


@pytest.mark.parametrize(
    "arch, layers, width, heads, inner",
    [
        ("transformer_lm", 6, 512, 8, 2048),
        ("transformer_lm_big", 12, 1024, 16, 4096),
        ("transformer_lm_wiki103", 16, 1024, 8, 4096),
        ("transformer_lm_gbw", 12, 512, 16, 4096),
        ("transformer_lm_gpt", 12, 768, 12, 3072),
        ("transformer_lm_gpt2_tiny", 2, 64, 1, 64),
        ("transformer_lm_gpt2_small", 24, 1024, 16, 4096),
        ("transformer_lm_gpt2_big_wide", 24, 2048, 32, 8192),
        ("transformer_lm_gpt3_small", 12, 768, 12, 3072),
        ("transformer_lm_gpt3_175", 96, 12288, 96, 49152),
    ],
)
def test_architectures(arch: str, layers: int, width: int, heads: int, inner: int) -> None:
    assert ARCHITECTURES[arch][0] == "transformer_lm"
    config = TransformerLanguageModelConfig()
    settings: Any = type("Settings", (), {})()
    ARCH_CONFIG_REGISTRY[arch](settings)
    for name, value in vars(settings).items():
        setattr(config, name, value)
    sizes = (config.decoder_layers, config.decoder_embed_dim, config.decoder_attention_heads)
    assert (*sizes, config.decoder_ffn_embed_dim) == (layers, width, heads, inner)
    assert config.decoder_input_dim == config.decoder_output_dim == width
    assert config.decoder_normalize_before == (arch != "transformer_lm")


def test_files_of_before_2020_load() -> None:
    model = tiny_lm(position="sinusoidal", decoder_normalize_before=True)
    state = dict(model.state_dict())
    old: dict[str, Any] = {"decoder.embed_positions._float_tensor": torch.zeros(1)}
    for name, tensor in state.items():
        if ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        if ".self_attn.q_proj." in name:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            old[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif name == "decoder.output_projection.weight":
            old["decoder.embed_out"] = tensor
        else:
            new = name.replace(".self_attn_layer_norm.", ".layer_norms.0.")
            old[new.replace(".final_layer_norm.", ".layer_norms.1.")] = tensor
    other = tiny_lm(position="sinusoidal", decoder_normalize_before=True, dropout=0.3)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(old)
    assert torch.equal(model(TOKENS)[0], other(TOKENS)[0])


# -- what a causal language model promises ---------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"decoder_normalize_before": True},
    "parallel": {"decoder_normalize_before": True, "parallel_residual": True},
    "NormFormer": {
        "decoder_normalize_before": True,
        "scale_attn": True,
        "scale_fc": True,
        "scale_heads": True,
        "scale_resids": True,
    },
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_token_at_a_time_equals_all_at_once(position: str, shape: str) -> None:
    model = tiny_lm(**POSITIONS[position], **SHAPES[shape])
    with torch.no_grad():
        whole = model(TOKENS)[0]
        state: dict[Any, Any] = {}
        steps = [
            model(TOKENS[:, : end + 1], incremental_state=state)[0]
            for end in range(TOKENS.shape[1])
        ]
        # and in pieces: a prompt of three tokens, then the rest at once
        state = {}
        pieces = [model(TOKENS[:, :end], incremental_state=state)[0] for end in (3, 6)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("position", POSITIONS)
def test_the_future_and_the_padding_change_nothing(position: str) -> None:
    model = tiny_lm(**POSITIONS[position])
    changed = TOKENS.clone()
    changed[:, 4:] = torch.tensor([[9, 10], [6, PAD]])
    with torch.no_grad():
        whole, other = model(TOKENS)[0], model(changed)[0]
        padded = F.pad(TOKENS, (2, 0), value=PAD)
        left = model(padded)[0][:, 2:]
    torch.testing.assert_close(other[:, :4], whole[:, :4], rtol=0, atol=1e-6)
    assert not torch.allclose(other[:, 4:], whole[:, 4:])
    torch.testing.assert_close(left, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("position", ["alibi", "rotary"])
def test_scores_depend_on_distance_alone(position: str) -> None:
    """Without its own position a token looks the same wherever the text begins."""
    model = tiny_lm(position=position, decoder_layers=1)
    with torch.no_grad():
        near = model(torch.tensor([[5, 6]]))[0][0, 1]
        far = model(torch.tensor([[7, 5, 6]]))[0][0, 2]
        hidden = model(torch.tensor([[PAD, 5, 6]]))[0][0, 2]
    torch.testing.assert_close(hidden, near, rtol=0, atol=1e-6)
    assert not torch.allclose(far, near)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"share_decoder_input_output_embed": True},
        {"head": "clap"},
        {"head": "clap", "clap_normalize_hidden": True},
        {"head": "clap", "clap_normalize": False},
    ],
    ids=str,
)
def test_projection_equals_the_logits(settings: dict[str, Any]) -> None:
    model = tiny_lm(**settings)
    positions_N = torch.tensor([1, 4, 10])
    with torch.no_grad():
        operands, _ = model(TOKENS, predicted_positions=positions_N)
        logits_NV = model(TOKENS)[0].flatten(0, 1)[positions_N]
    torch.testing.assert_close(operands.logits(), logits_NV)


def test_recomputed_layers_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        model = tiny_lm(checkpoint_activations=recompute, dropout=0.0).train()
        model(TOKENS)[0].logsumexp(-1).sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_headless_model_says_so() -> None:
    model = tiny_lm(head="none")
    hidden, _ = model(TOKENS, features_only=True)
    assert hidden.shape == (2, 6, TINY["decoder_embed_dim"])
    assert not any("output_projection" in name for name in model.state_dict())
    with pytest.raises(ConfigError, match="no vocabulary head"):
        model(TOKENS)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"parallel_residual": True}, "--decoder-normalize-before"),
        ({"head": "clap", "decoder_input_dim": 4}, "--decoder-input-dim"),
        ({"share_decoder_input_output_embed": True, "decoder_input_dim": 4}, "equal to"),
        ({"adaptive_input": True}, "--adaptive-input-cutoff"),
        ({"tie_adaptive_proj": True}, "--tie-adaptive-weights"),
        ({"tie_adaptive_weights": True}, "--adaptive-softmax-cutoff"),
        ({"adaptive_softmax_cutoff": "5,3"}, "ascending"),
        ({"adaptive_softmax_cutoff": "400"}, "400"),
        ({"adaptive_softmax_cutoff": "6,8,10"}, "no channel"),
        ({"position": "rotary", "rotary_fraction": 0.1}, "--rotary-fraction"),
        ({"head": "none", "adaptive_softmax_cutoff": "5"}, "exclude each other"),
    ],
    ids=str,
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_lm(**settings)


def test_too_long_a_text_is_refused_where_positions_end() -> None:
    long = torch.full((1, 13), 5)
    with pytest.raises(ValueError, match="13 tokens"):
        tiny_lm(position="learned")(long)
    assert tiny_lm(position="alibi")(long)[0].shape == (1, 13, V)


def test_positions_fall_back_to_the_sample_length() -> None:
    config = TransformerLanguageModelConfig(**{**TINY, "tokens_per_sample": 7})
    model = TransformerLanguageModel.build_model(config, a_task())
    assert model.max_positions() == model.config.max_target_positions == 7
    assert config.max_target_positions is None  # what was given is left as it was

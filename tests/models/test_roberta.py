"""RobertaModel: the originals' numbers, names, sizes and old files.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compat_checkpoints import DETERMINISTIC, load, load_classifier
from tiny_roberta import DICTIONARY, PAD, TINY, TOKENS, V, a_task, tiny
from torch import Tensor

from fairseq.catalog import ARCHITECTURES
from fairseq.config.registries import ARCH_CONFIG_REGISTRY
from fairseq.errors import ConfigError, DataError
from fairseq.models import build_model
from fairseq.models.base import count_parameters
from fairseq.models.roberta import RobertaConfig, RobertaModel

# -- the originals' numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DETERMINISTIC, "fb_sentpred"])
def test_outputs_equal_the_originals(shared: Path, name: str) -> None:
    hub = load_classifier(shared) if name == "fb_sentpred" else load(shared, name)
    golden = np.load(shared / "compat" / "checkpoints" / name / "golden.npz")
    tokens_BT = torch.from_numpy(golden["tokens"])
    if hub.model.config.mask_embedding == "zero":
        assert tokens_BT.max() == hub.task.mask_idx == len(hub.task.source_dictionary)
    kept_BT = tokens_BT != 1
    with torch.no_grad():
        logits, extra = hub.model(tokens_BT, return_all_hiddens=True)
        features, _ = hub.model(tokens_BT, features_only=True)
        masked, _ = hub.model(tokens_BT, masked_tokens=tokens_BT == hub.task.mask_idx)

    def same(ours: Tensor, key: str) -> None:
        np.testing.assert_allclose(ours[kept_BT], golden[key][kept_BT], rtol=0, atol=1e-5)

    same(logits, "logits")
    same(features, "features")
    np.testing.assert_allclose(masked, golden["masked_logits"], rtol=0, atol=1e-5)
    assert len(extra["inner_states"]) == 3
    for i, inner_TBC in enumerate(extra["inner_states"]):
        expected_BTC = golden[f"inner{i}_TBC"].transpose(1, 0, 2)[kept_BT]
        np.testing.assert_allclose(inner_TBC.transpose(0, 1)[kept_BT], expected_BTC, atol=1e-5)


@pytest.mark.parametrize("name", [*DETERMINISTIC, "fb_sentpred", "zero_clap_self_masking"])
def test_names_and_shapes_come_in_the_originals_order(shared: Path, name: str) -> None:
    hub = load_classifier(shared) if name == "fb_sentpred" else load(shared, name)
    path = shared / "compat" / "checkpoints" / name / "structure.json"
    expected = json.loads(path.read_text("utf-8"))["model"]
    ours = {key: [list(t.shape), str(t.dtype)] for key, t in hub.model.state_dict().items()}
    assert list(ours.items()) == list(expected.items())


PARAMETERS = {  # knobs: (base parameters, large parameters, base tensors, large tensors)
    "baseline": ({}, 50265, 125_876_313, 356_983_897, 203, 395),
    "alibi": ({"position": "alibi"}, 50265, 124_301_913, 354_884_697, 202, 394),
    "sinusoidal": ({"position": "sinusoidal"}, 50265, 124_301_913, 354_884_697, 202, 394),
    "learned-clap": (
        {"head": "clap", "layernorm_embedding": False},
        *(50265, 125_232_385, 355_879_937, 197, 389),
    ),
    "zero-clap": (
        {
            "head": "clap",
            "layernorm_embedding": False,
            "position": "alibi-asymmetric",
            "mask_embedding": "zero",
        },
        *(50262, 123_655_681, 353_777_665, 196, 388),
    ),
}


class SizedDictionary(SimpleNamespace):
    """A dictionary of which only the size matters."""

    def __len__(self) -> int:
        return self.size

    def pad(self) -> int:
        return PAD


def on_no_device(arch: str, size: int, **settings: Any) -> RobertaModel:
    """Build a model of full size without memory."""
    args = Namespace(arch=arch, **settings)
    with torch.device("meta"):
        return build_model(args, a_task(SizedDictionary(size=size)))


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters_of_the_published_variants(variant: str) -> None:
    settings, size, *expected = PARAMETERS[variant]
    models = [
        on_no_device(arch, size, max_positions=2048, **settings)
        for arch in ("roberta", "roberta_large")
    ]
    tensors = [len(model.state_dict()) for model in models]
    assert [count_parameters(model) for model in models] + tensors == expected


def test_parameters_of_roberta_base_and_large() -> None:
    base, large = (
        on_no_device(arch, 50265, max_positions=512) for arch in ("roberta_base", "roberta_large")
    )
    assert count_parameters(base) == 124_696_665
    assert count_parameters(large) == 355_411_033
    with torch.device("meta"):
        large.register_classification_head("two", num_classes=2)
    assert count_parameters(large) == 355_411_033 + 1_051_650


ROBERTAS = [name for name, (model, _) in ARCHITECTURES.items() if model == "roberta"]


@pytest.mark.parametrize("arch", ROBERTAS)
def test_architectures_leave_alone_what_is_stated(arch: str) -> None:
    args = Namespace(encoder_layers=1, encoder_embed_dim=24, encoder_attention_heads=3)
    ARCH_CONFIG_REGISTRY[arch](args)
    assert (args.encoder_layers, args.encoder_embed_dim) == (1, 24)
    assert args.encoder_ffn_embed_dim >= 768
    prenorm = arch == "roberta_prenorm"
    assert getattr(args, "encoder_normalize_before", False) is prenorm
    assert getattr(args, "layernorm_embedding", True) is not prenorm


# -- initialisation --------------------------------------------------------------------------------


def test_initialisation() -> None:
    wide = {"encoder_embed_dim": 64, "encoder_ffn_embed_dim": 96, "encoder_attention_heads": 2}
    for untied in (False, True):
        model = tiny(**wide, untie_weights_roberta=untied)
        model.register_classification_head("head", 2)
        head = model.encoder.lm_head
        table = model.encoder.sentence_encoder.embed_tokens.weight
        assert (head.weight is table) is not untied
        assert not head.bias.any() and not head.dense.bias.any() and not table[PAD].any()
        assert float(head.dense.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert float(table[4:].detach().std()) == pytest.approx(0.02, rel=0.1)
        if untied:  # torch's own for Linear: uniform up to 1/sqrt(C)
            assert float(head.weight.detach().std()) == pytest.approx((3 * 64) ** -0.5, rel=0.1)
        classifier: Any = model.classification_heads["head"]
        assert classifier.dense.bias.any() and classifier.out_proj.bias.any()
    clap = tiny(head="clap", clap_initial_beta=7.0)
    assert (
        clap.encoder.lm_head.beta == 7
        and clap.encoder.sentence_encoder.embed_tokens.weight[PAD].any()
    )


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stated, per_sample, limit, expected",
    [(10, 20, 30, 10), (None, 20, 30, 20), (None, None, 30, 30), (None, None, None, 512)],
)
def test_max_positions_fall_back_to_the_task(
    stated: int | None, per_sample: int | None, limit: int | None, expected: int
) -> None:
    config = RobertaConfig(**{**TINY, "max_positions": stated})
    model = RobertaModel.build_model(config, a_task(DICTIONARY, per_sample, limit))
    assert model.max_positions() == model.config.max_positions == expected
    assert config.max_positions == stated  # what was given is left as it was
    positions: Any = model.encoder.sentence_encoder.embed_positions
    assert positions.weight.shape == (expected + PAD + 1, 8)
    longest = torch.full((1, expected), 7)
    assert model(longest)[0].shape == (1, expected, V)
    with pytest.raises(DataError, match=f"{expected + 1} tokens exceeds the {expected} learned"):
        model(torch.full((1, expected + 1), 7))


@pytest.mark.parametrize("position", ["sinusoidal", "alibi", "alibi-asymmetric", "none"])
def test_without_learned_positions_any_length_goes(position: str) -> None:
    model = tiny(position=position)
    assert model.max_positions() >= 100_000
    assert model(torch.full((1, 200), 7))[0].shape == (1, 200, V)


OLD_SETTINGS = Namespace(
    arch="roberta",
    **{**TINY, "max_positions": None},
    contrastive_pretraining=True,
    initial_beta=3.0,
    l2norm_embedding=False,
    zero_masking=True,
    encoder_alibi=True,
    encoder_alibi_asymmetrical=True,
    no_token_positional_embeddings=True,
    no_scale_embedding=False,
    layernorm_embedding=False,
)


@pytest.mark.parametrize("kind", ["Namespace", "DictConfig"])
def test_old_settings_of_any_kind_are_understood(kind: str) -> None:
    args: Any = OLD_SETTINGS
    if kind == "DictConfig":
        omegaconf = pytest.importorskip("omegaconf")
        args = omegaconf.OmegaConf.create(vars(OLD_SETTINGS))
    config = RobertaModel.build_model(args, a_task()).config
    stated = {
        "head": "clap",
        "clap_initial_beta": 3.0,
        "clap_normalize": False,
        "mask_embedding": "zero",
        "position": "alibi-asymmetric",
        "scale_embedding": True,
        "layernorm_embedding": False,
        "encoder_layers": 3,
    }
    assert {key: getattr(config, key) for key in stated} == stated


# -- forward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["roberta", "clap"])
def test_the_ways_to_ask_for_logits_agree(head: str) -> None:
    model = tiny(head=head)
    logits_BTV, extra = model(TOKENS, src_lengths=torch.tensor([6, 4]), src_id=torch.arange(2))
    assert extra["inner_states"] is None and extra["features"].shape[:2] == TOKENS.shape
    features_BTC, _ = model(TOKENS, features_only=True)
    torch.testing.assert_close(model.encoder.output_layer(features_BTC), logits_BTV)
    masked_BT = torch.zeros_like(TOKENS, dtype=torch.bool)
    masked_BT[0, 3] = masked_BT[1, 1] = True
    expected_NV = logits_BTV[masked_BT]
    torch.testing.assert_close(model(TOKENS, masked_tokens=masked_BT)[0], expected_NV)
    projection, _ = model(TOKENS, predicted_positions=torch.tensor([3, 7]))
    torch.testing.assert_close(projection.logits(), expected_NV)
    torch.testing.assert_close(model.projection(features_BTC[masked_BT]).logits(), expected_NV)
    assert model.supported_targets == {"self"}
    probabilities = model.get_normalized_probs((logits_BTV, None), log_probs=False)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 6))
    log_p = model.get_normalized_probs((logits_BTV, None), log_probs=True)
    torch.testing.assert_close(log_p.exp(), probabilities)


def test_noised_embeddings_can_be_given() -> None:
    model = tiny()
    rows_BTC = model.encoder.sentence_encoder.embed_tokens(TOKENS)
    plain = model(TOKENS)[0]
    assert model(TOKENS, token_embeddings=rows_BTC)[0].equal(plain)
    assert not model(TOKENS, token_embeddings=rows_BTC * 1.5)[0].equal(plain)


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    model = tiny()
    together, _ = model(TOKENS)
    alone, _ = model(TOKENS[1:, :4])
    torch.testing.assert_close(alone[0], together[1, :4], rtol=1e-5, atol=1e-6)


def test_tied_weights_are_one_parameter_with_one_gradient() -> None:
    tied, untied = tiny(), tiny(untie_weights_roberta=True)
    assert count_parameters(untied) == count_parameters(tied) + V * 8
    table = tied.encoder.sentence_encoder.embed_tokens.weight
    assert tied.encoder.lm_head.weight is table
    tied(TOKENS)[0].logsumexp(-1).sum().backward()
    assert table.grad is not None and table.grad[12].any()  # an output only
    untied(TOKENS)[0].logsumexp(-1).sum().backward()
    table = untied.encoder.sentence_encoder.embed_tokens.weight
    assert table.grad is not None and not table.grad[12].any()


def test_a_model_without_vocabulary_head_says_so() -> None:
    model = tiny(head="none")
    assert model(TOKENS, features_only=True)[0].shape == (2, 6, 8)
    assert not [key for key in model.state_dict() if "lm_head" in key]
    with pytest.raises(ConfigError, match="no vocabulary head"):
        model(TOKENS)
    with pytest.raises(ConfigError, match="no vocabulary head"):
        model(TOKENS, predicted_positions=torch.tensor([3]))
    model.load_state_dict(tiny().state_dict())  # the head of the file is left out

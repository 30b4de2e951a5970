"""Old names, both ways, row by row."""

from __future__ import annotations

import pytest
import torch

from fairseq.checkpoint.tensor_names import upgrade_roberta_state
from fairseq.config.build import plain
from fairseq.config.upgrade import FORK_ONLY, OLD_NAMES, ROWS, downgrade, upgrade_args
from fairseq.errors import ConfigError
from fairseq.models.roberta import RobertaConfig

OFF = {"no_token_positional_embeddings": True}
# section, old names, what they become; the first name of each is the row under test
READ = [
    ("model", {"encoder_learned_pos": True}, {}),
    ("model", {"encoder_learned_pos": False}, {"position": "sinusoidal"}),
    ("model", {"encoder_learned_pos": False, **OFF}, {"position": "none"}),
    ("model", {"no_token_positional_embeddings": False}, {}),
    ("model", {"no_token_positional_embeddings": True}, {"position": "none"}),
    ("model", {"encoder_alibi": False}, {}),
    ("model", {"encoder_alibi": True, **OFF}, {"position": "alibi"}),
    (
        "model",
        {"encoder_alibi": True, "encoder_alibi_asymmetrical": True, **OFF},
        {"position": "alibi-asymmetric"},
    ),
    (
        "model",
        {"encoder_alibi": True, "encoder_learned_pos": False, **OFF},
        {"position": "alibi"},
    ),
    ("model", {"encoder_alibi_asymmetrical": True}, {}),
    ("model", {"decoder_alibi": True}, {"position": "alibi"}),
    ("model", {"contrastive_pretraining": False}, {}),
    ("model", {"contrastive_pretraining": True}, {"head": "clap"}),
    ("model", {"initial_beta": 1.0}, {}),
    ("model", {"initial_beta": 3.0}, {"clap_initial_beta": 3.0}),
    ("model", {"l2norm_embedding": True}, {}),
    ("model", {"l2norm_embedding": False}, {"clap_normalize": False}),
    ("model", {"zero_masking": False}, {}),
    ("model", {"zero_masking": True}, {"mask_embedding": "zero"}),
    ("model", {"no_scale_embedding": True}, {"scale_embedding": False}),
    ("model", {"no_scale_embedding": False}, {"scale_embedding": True}),
    ("model", {"mask_prob": 0.0}, {}),
    ("model", {"mask_prob": 0.15}, {}),
    ("model", {"max_source_positions": 512}, {}),
    ("model", {"adaptive_input": False}, {}),
    ("task", {"omit_mask_and_pad": False}, {}),
    ("task", {"omit_mask_and_pad": True}, {"omit_mask": True}),
    ("task", {"omit_unk": True}, {}),
    ("optimization", {"min_lr": 1e-9}, {"stop_min_lr": 1e-9}),
    ("common_eval", {"remove_bpe": "subword_nmt"}, {"post_process": "subword_nmt"}),
]
# settings of RoBERTa in new names, old names that a checkpoint gets; None: it gets none
WRITE = [
    ({}, {"encoder_learned_pos": True}),
    ({"position": "sinusoidal"}, {"encoder_learned_pos": False}),
    ({}, {"no_token_positional_embeddings": False}),
    ({"position": "none"}, {"no_token_positional_embeddings": True}),
    ({"position": "alibi"}, {"no_token_positional_embeddings": True}),
    ({}, {"encoder_alibi": None}),
    ({"position": "alibi"}, {"encoder_alibi": True}),
    ({"position": "alibi"}, {"encoder_alibi_asymmetrical": None}),
    ({"position": "alibi-asymmetric"}, {"encoder_alibi_asymmetrical": True}),
    ({}, {"contrastive_pretraining": None}),
    ({"head": "clap"}, {"contrastive_pretraining": True}),
    ({}, {"initial_beta": None}),
    ({"clap_initial_beta": 2.0}, {"initial_beta": 2.0}),
    ({}, {"l2norm_embedding": None}),
    ({"clap_normalize": False}, {"l2norm_embedding": False}),
    ({}, {"zero_masking": None}),
    ({"mask_embedding": "zero"}, {"zero_masking": True}),
    ({}, {"no_scale_embedding": True}),
    ({"scale_embedding": True}, {"no_scale_embedding": False}),
    ({}, {"mask_prob": None}),
    ({"max_positions": 64}, {"max_source_positions": 64}),
    ({}, {"adaptive_input": False}),
]


@pytest.mark.parametrize(("section", "old", "new"), READ)
def test_reading(section, old, new):
    assert upgrade_args({**old, "kept": 1}, section) == {**new, "kept": 1}


@pytest.mark.parametrize(("settings", "old"), WRITE)
def test_writing(settings, old):
    written = downgrade(plain(RobertaConfig(**settings)), "model")
    for name, value in old.items():
        assert written.get(name) == value
        assert (name in written) is (value is not None)


def test_every_row_is_tested_both_ways():
    assert {row.old for row in ROWS} == {next(iter(old)) for _, old, _ in READ} == OLD_NAMES
    written = {next(iter(old)) for _, old in WRITE}
    assert {row.old for row in ROWS if row.write is not None} <= written
    assert {row.old for row in ROWS if row.flag} <= FORK_ONLY | {"omit_mask_and_pad", "omit_unk"}


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "alibi", "alibi-asymmetric", "none"])
@pytest.mark.parametrize("clap", [False, True])
def test_writing_then_reading_gives_the_same_model(position, clap):
    config = RobertaConfig(position=position, max_positions=64)
    if clap:
        config.head, config.clap_initial_beta, config.clap_normalize = "clap", 2.0, False
        config.mask_embedding, config.scale_embedding = "zero", True
    new = plain(config)
    old = downgrade(new, "model")
    known = ("position", "head", "clap_initial_beta", "clap_normalize", "mask_embedding")
    read = upgrade_args(old, "model")
    for name in (*known, "scale_embedding"):
        assert read.get(name, getattr(RobertaConfig(), name)) == new[name], name


def test_a_plain_checkpoint_has_no_key_of_the_fork():
    assert not FORK_ONLY & set(downgrade(plain(RobertaConfig()), "model"))


def test_an_old_name_wins_over_the_default_of_a_new_one_beside_it():
    flat = {**plain(RobertaConfig()), **OFF, "encoder_alibi": True}
    assert upgrade_args(flat, "model")["position"] == "alibi"
    both = {"no_scale_embedding": True, "scale_embedding": True}
    assert upgrade_args(both, "model") == {"scale_embedding": True}


def test_alibi_on_top_of_position_embeddings_is_refused():
    with pytest.raises(ConfigError, match="adds ALiBi to position embeddings"):
        upgrade_args({"encoder_alibi": True}, "model")


def test_self_masking_is_named(caplog):
    upgrade_args({"mask_prob": 0.15, "zero_masking": True}, "model")
    assert "self-masking" in caplog.text


def test_flat_settings_mean_the_task_and_the_scheduler():
    flat = {"mask_prob": 0.3, "min_lr": 1e-5, "zero_masking": True}
    assert upgrade_args(flat, "model", flat=True)["mask_prob"] == 0.3
    assert upgrade_args(flat, "optimization", flat=True) == flat


def test_names_that_a_model_uses_itself_are_not_old():
    own = {"adaptive_input": True, "no_scale_embedding": True}
    assert upgrade_args(own, "model", fields=["adaptive_input", "no_scale_embedding"]) == own


def test_tensor_names():
    joint = torch.arange(18.0).reshape(9, 2)
    state = {
        "decoder.sentence_encoder.emb_layer_norm.weight": 1,
        "encoder.sentence_encoder.layers.0.layer_norms.0.bias": 2,
        "encoder.sentence_encoder.layers.0.layer_norms.1.bias": 3,
        "encoder.sentence_encoder.layers.0.self_attn.in_proj_weight": joint,
        "encoder.sentence_encoder.layers.0.self_attn.in_proj_bias": torch.arange(9.0),
        "encoder.clap_head.beta": 4,
        "encoder.sentence_encoder.embed_positions._float_tensor": 5,
        "encoder.regression_head.0.weight": 6,
        "encoder.lm_head.bias": 7,
        "classification_heads.decoder.dense.bias": 8,
    }
    upgrade_roberta_state(state)
    attention = "encoder.sentence_encoder.layers.0.self_attn."
    for rows, name in zip(joint.chunk(3), ("q_proj", "k_proj", "v_proj"), strict=True):
        assert torch.equal(state.pop(f"{attention}{name}.weight"), rows)
        state.pop(f"{attention}{name}.bias")
    assert state == {
        "encoder.sentence_encoder.layernorm_embedding.weight": 1,
        "encoder.sentence_encoder.layers.0.self_attn_layer_norm.bias": 2,
        "encoder.sentence_encoder.layers.0.final_layer_norm.bias": 3,
        "encoder.lm_head.beta": 4,
        "encoder.lm_head.bias": 7,
        "classification_heads.decoder.dense.bias": 8,
    }

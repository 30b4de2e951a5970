"""Recipes of published students: both readers agree, and the numbers are the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.config import options
from fairseq.config.components import as_config
from fairseq.export.decoder_in import our_settings
from fairseq.export.encoder_in import encoder_settings
from fairseq.export.encoder_names import ENCODER, HEAD
from fairseq.growth.methods import GROWTH, Options, settings_reason
from fairseq.growth.sizes import Pair
from fairseq_cli.hydra_train import compose

FOLDER = Path(__file__).resolve().parents[2] / "examples/distillation/config"
# name -> weights of CE, LM and cosine; rate; beta 2; rows of 8 processes an update; tokens a row
PUBLISHED = {
    "distilgpt2": ((5.0, 2.0, 1.0), 2.5e-4, "(0.9,0.999)", 4096, 1024),
    "distilbert": ((5.0, 2.0, 1.0), 5e-4, "(0.9,0.98)", 2000, 512),
    "distilroberta": ((5.0, 2.0, 1.0), 5e-4, "(0.9,0.98)", 2000, 512),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_students(name: str) -> None:
    weights, rate, betas, rows, tokens = PUBLISHED[name]
    words = ["task.data=bin", "criterion.teacher_path=teacher", "checkpoint.grow_from=teacher.pt"]
    config = as_config(compose(str(FOLDER), name, words), strict=True)
    parser = options.get_training_parser(argv=())
    parser.add_argument("--config")
    flags = ["--teacher-path", "teacher", "--grow-from", "teacher.pt"]
    again = options.parse_config(
        parser, ["bin", "--config", str(FOLDER / f"{name}.yaml"), *flags]
    ).thawed()
    again.generation.no_seed_provided = config.generation.no_seed_provided
    assert config == again
    cfg, masked = config.criterion, name != "distilgpt2"
    lm = cfg.alpha_mlm if masked else cfg.alpha_clm
    assert (cfg.alpha_ce, lm, cfg.alpha_cos) == weights
    assert cfg.distillation_temperature == 2.0 and cfg.alpha_mse == 0
    assert config.optimization.lr == [rate] and config.optimizer.adam_betas == betas
    (frequency,) = config.optimization.update_freq
    assert 8 * (config.dataset.batch_size or 0) * frequency == rows
    assert config.task.tokens_per_sample == tokens
    assert config.checkpoint.grow_layers == [0, 2, 4, 7, 9, 11]
    assert config.lr_scheduler.warmup_updates * 20 == config.optimization.max_update
    assert not masked or config.task.mask_smoothing == 0.7
    side = "encoder" if masked else "decoder"
    assert config.model[f"{side}_layers"] == 6 and config.model[f"{side}_embed_dim"] == 768


GPT2 = {
    "model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_inner": None,
    "n_positions": 1024, "activation_function": "gelu_new", "resid_pdrop": 0.1, "attn_pdrop": 0.1,
    "embd_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "vocab_size": 50257,
}  # fmt: skip
BERT = {
    "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "hidden_act": "gelu",
    "num_attention_heads": 12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
ROBERTA = {**BERT, "layer_norm_eps": 1e-5, "pad_token_id": 1}


def teacher_of(name: str) -> Any:
    """Return the settings that an import gives the published teacher of a recipe."""
    if name == "distilgpt2":
        flat = {**our_settings(GPT2), "share_decoder_input_output_embed": True}
        return options.make_config(flat).model
    bert = name == "distilbert"
    described = {**BERT, "layer_norm_eps": 1e-12} if bert else ROBERTA
    shapes = {f"{ENCODER}embed_positions.weight": 512 if bert else 514, f"{HEAD}dense.weight": 768}
    if bert:
        shapes[f"{ENCODER}embed_segments.weight"] = 2
    state = {name: torch.empty(rows, 768, device="meta") for name, rows in shapes.items()}
    flat = encoder_settings(described, "bert" if bert else "roberta", state)
    return options.make_config(flat).model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_student_takes_the_layers_of_its_imported_teacher(name: str) -> None:
    words = ["task.data=bin", "criterion.teacher_path=teacher", "checkpoint.grow_from=teacher.pt"]
    config = as_config(compose(str(FOLDER), name, words), strict=True)
    pair = Pair(teacher_of(name), config.model)
    reason = GROWTH["extract"].check(*pair, Options(layers=config.checkpoint.grow_layers))
    assert reason is not None and "run one after the other" in reason
    assert settings_reason(pair) is None  # nothing else differs

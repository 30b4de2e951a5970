"""The causal model's knobs together: head x positions x criterion, each trains and comes back.

So does the encoder with contrastive weight tying. What makes no sense is refused with the reason.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_knobs import data as data
from tiny_lm import POSITIONS

from fairseq import tasks
from fairseq.checkpoint.layout import OURS, original_cfg, our_record
from fairseq.config.components import make_config
from fairseq.errors import ConfigError
from fairseq.hub.load import load_model_ensemble_and_task

Knobs = dict[str, Any]
HEADS: dict[str, Knobs] = {
    "own": {"head": "vocabulary"},
    "tied": {"head": "vocabulary", "share_decoder_input_output_embed": True},
    "clap": {"head": "clap"},
    "clap of directions": {"head": "clap", "clap_normalize_hidden": True},
    "none": {"head": "none"},
    "adaptive": {"adaptive_softmax_cutoff": "6,10", "adaptive_softmax_factor": 2.0},
    "adaptive and tied": {
        "adaptive_input": True,
        "adaptive_input_cutoff": "6,10",
        "adaptive_softmax_cutoff": "6,10",
        "adaptive_input_factor": 2.0,
        "adaptive_softmax_factor": 2.0,
        "tie_adaptive_weights": True,
    },
}
CRITERIONS: dict[str, Knobs] = {
    "cross_entropy": {"criterion": "cross_entropy"},
    "smoothed": {"criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1},
    "adaptive_loss": {"criterion": "adaptive_loss"},
    "headless": {"criterion": "contrastive_weight_tying", "negatives": "global"},
    "joint": {
        "criterion": "contrastive_weight_tying",
        "vocabulary_weight": 0.5,
        "contrastive_projection": True,
    },
}
SHAPES: tuple[Knobs, ...] = (
    {},
    {"decoder_normalize_before": True, "scale_fc": True, "scale_heads": True},
    {"decoder_normalize_before": True, "parallel_residual": True},
)
# (criterion, heads it can train)
FITS = {
    "cross_entropy": {"own", "tied", "clap", "clap of directions"},
    "smoothed": {"own", "tied", "clap", "clap of directions"},
    "adaptive_loss": {"adaptive", "adaptive and tied"},
    "headless": {"own", "tied", "none"},
    "joint": {"own", "tied", "clap", "clap of directions"},
}
DECODER: Knobs = {
    "arch": "transformer_lm",
    "task": "language_modeling",
    "decoder_layers": 2,
    "decoder_embed_dim": 8,
    "decoder_input_dim": 8,
    "decoder_output_dim": 8,
    "decoder_ffn_embed_dim": 8,
    "decoder_attention_heads": 2,
    "max_target_positions": 12,
}
ENCODER: Knobs = {
    "arch": "roberta",
    "task": "masked_lm",
    "mask_prob": 0.4,
    "max_positions": 12,
    "encoder_layers": 2,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 8,
    "encoder_attention_heads": 2,
    "attention_dropout": 0.0,
}
COMMON: Knobs = {"tokens_per_sample": 12, "sample_break_mode": "eos", "dropout": 0.0}


def train_and_reload(data: Path, knobs: Knobs, path: Path) -> None:
    """Train some updates, save a checkpoint as the original lays it out, load it, compare.

    With negatives drawn at random the loss need not fall so soon.
    """
    config = make_config({**COMMON, **knobs, "data": str(data)})
    torch.manual_seed(0)
    task = tasks.setup_task(config.task)
    model = task.build_model(config.model)
    criterion = task.build_criterion(config.criterion)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        criterion.prepare_update([batch])
        loss, sample_size, _ = criterion(model, batch)
        (loss / sample_size).backward()
        losses.append(loss.item())
        if len(losses) <= 5:
            optimizer.step()
    assert np.isfinite(losses).all() and losses[-1] != losses[0], losses
    assert losses[-1] < losses[0] or knobs.get("extra_negatives"), losses
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert not idle, f"never used: {idle}"

    state = {"args": None, "cfg": original_cfg(config), "model": model.state_dict()}
    torch.save({**state, "extra_state": {OURS: our_record(config, {})}}, path)
    (loaded,), its_config, _ = load_model_ensemble_and_task([str(path)])
    tokens_BT = batch["net_input"]["src_tokens"]
    with torch.no_grad():
        hidden = [m.eval()(tokens_BT, features_only=True)[0] for m in (model, loaded)]
    assert hidden[0].isfinite().all() and hidden[0].equal(hidden[1])
    assert (getattr(its_config.model, "head", None) == "none") == (
        knobs["criterion"] == "contrastive_weight_tying" and "vocabulary_weight" not in knobs
    )


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("head", HEADS)
def test_decoders(head: str, position: str, data: Path, tmp_path: Path) -> None:
    shapes = itertools.cycle(SHAPES)
    for _ in range(list(POSITIONS).index(position)):
        next(shapes)  # over all positions each criterion meets each shape
    for (name, criterion), shape in zip(CRITERIONS.items(), shapes, strict=False):
        packed = name in ("smoothed", "joint", "adaptive_loss")  # each criterion, each head
        rows = {"document_mask": True, "sample_break_mode": "none"} if packed else {}
        knobs = {**DECODER, **HEADS[head], **POSITIONS[position], **criterion, **shape, **rows}
        if head in FITS[name]:
            train_and_reload(data, knobs, tmp_path / "model.pt")
        else:
            with pytest.raises(ConfigError):
                train_and_reload(data, knobs, tmp_path / "model.pt")


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "alibi", "alibi-asymmetric", "none"])
@pytest.mark.parametrize("mask_embedding", ["learned", "zero"])
@pytest.mark.parametrize("duplicates", ["count", "once"])
def test_headless_encoders(
    position: str, mask_embedding: str, duplicates: str, data: Path, tmp_path: Path
) -> None:
    for symmetric, normalize, extra in ((0, 0, 0), (1, 0, 5), (0, 1, 5), (1, 1, 0)):
        knobs = {
            **ENCODER,
            "criterion": "contrastive_weight_tying",
            "position": position,
            "mask_embedding": mask_embedding,
            "duplicates": duplicates,
            "contrastive_symmetric": bool(symmetric),
            "contrastive_normalize": bool(normalize),
            "extra_negatives": extra,
        }
        train_and_reload(data, knobs, tmp_path / "model.pt")


@pytest.mark.parametrize("head", ["roberta", "clap"])
def test_joint_encoders(head: str, data: Path, tmp_path: Path) -> None:
    train_and_reload(data, {**ENCODER, "head": head, **CRITERIONS["joint"]}, tmp_path / "model.pt")


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({**ENCODER, "head": "clap", **CRITERIONS["headless"]}, "--head clap"),
        ({**ENCODER, "head": "none", **CRITERIONS["joint"]}, "--vocabulary-weight"),
        ({**DECODER, "head": "none", **CRITERIONS["cross_entropy"]}, "--head is none"),
        ({**DECODER, **HEADS["adaptive"], **CRITERIONS["headless"]}, "adaptive-softmax"),
    ],
    ids=["clap", "joint", "none", "adaptive"],
)
def test_the_reason_is_told(knobs: Knobs, message: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({**COMMON, **knobs, "data": str(data)})

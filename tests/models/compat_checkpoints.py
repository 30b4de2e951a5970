"""The originals' tiny checkpoints, loaded once per test session."""

from __future__ import annotations

import functools
from pathlib import Path

from fairseq.files.safe_load import safe_load
from fairseq.models.roberta import RobertaHubInterface, RobertaModel

# those whose forward pass is deterministic; zero_clap_self_masking masks itself at random
DETERMINISTIC = (
    "fb_init",
    "fb_baseline",
    "baseline",
    "learned_clap",
    "alibi_asymmetrical",
    "alibi_symmetrical",
    "clap_alibi",
    "zero_clap",
)


@functools.cache
def load(shared: Path, name: str) -> RobertaHubInterface:
    """Return a checkpoint as users get it; shared between tests, so leave it as it is."""
    folder, gpt2 = shared / "compat" / "checkpoints", shared / "data" / "gpt2_bpe"
    return RobertaModel.from_pretrained(
        str(folder / name),
        "model.pt",
        str(folder / "data-bin"),
        gpt2_encoder_json=str(gpt2 / "encoder.json"),
        gpt2_vocab_bpe=str(gpt2 / "vocab.bpe"),
    ).eval()


@functools.cache
def load_classifier(shared: Path) -> RobertaHubInterface:
    """Return the fine-tuned model with its head ``cls2``, under the masked-LM task."""
    plain = load(shared, "fb_baseline")
    config = type(plain.model.config)(**vars(plain.model.config))
    config.load_checkpoint_heads = True
    model = RobertaModel.build_model(config, plain.task)
    path = shared / "compat" / "checkpoints" / "fb_sentpred" / "model.pt"
    model.load_state_dict(safe_load(str(path))["model"])
    return RobertaHubInterface(plain.cfg, plain.task, model).eval()

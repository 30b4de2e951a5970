"""Files of the original whose settings say what its models, or ours, do without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import DECODER, config, content, make_corpus, train

from fairseq.errors import CheckpointError, UnsupportedError
from fairseq.hub.load import load_model_ensemble

SCALES = ("scale_fc", "scale_attn", "scale_heads", "scale_resids")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("scales")
    data = make_corpus(folder / "data")
    train(config(data, folder / "run", max_update=1, **DECODER))
    return data, folder / "run" / "checkpoint_last.pt"


def load(state: dict[str, Any], folder: Path, data: Path) -> Any:
    """Load a checkpoint as a file of the original, which has no record of ours."""
    state["extra_state"].pop("fairseq_lm", None)
    torch.save(state, folder / "foreign.pt")
    return load_model_ensemble([str(folder / "foreign.pt")], arg_overrides={"data": str(data)})


def test_scales_without_tensors_are_off(
    run: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, path = run
    state = content(path)
    state["cfg"]["model"] |= dict.fromkeys(SCALES, True)
    (model,), cfg = load(state, tmp_path, data)
    (plain,), _ = load_model_ensemble([str(path)], arg_overrides={"data": str(data)})
    tokens_BT = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(model.eval()(tokens_BT)[0], plain.eval()(tokens_BT)[0])
    assert not any(getattr(cfg.model, name) for name in SCALES)
    assert "holds no tensors of" in caplog.text


def test_scales_of_one_layer_that_are_gone_are_damage(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    data, _ = run
    train(config(data, tmp_path / "run", max_update=1, **DECODER, scale_fc=True))
    state = content(tmp_path / "run" / "checkpoint_last.pt")
    del state["model"]["decoder.layers.1.ffn_layernorm.weight"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.ffn_layernorm\.weight"):
        load(state, tmp_path, data)


def test_a_text_encoder_that_is_not_there_is_named(
    run: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, path = run
    state = content(path)
    state["cfg"] |= {"bpe": {"_name": "hf_byte_bpe"}, "tokenizer": {"_name": "moses"}}
    load(state, tmp_path, data)
    assert "'hf_byte_bpe' is not known here: unless bpe= names another" in caplog.text
    assert "'moses' is not known here: text is left as it is" in caplog.text


def test_embeddings_of_characters_are_named(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, path = run
    state = content(path)
    state["cfg"]["model"]["character_embeddings"] = True
    with pytest.raises(UnsupportedError, match="words made of characters"):
        load(state, tmp_path, data)

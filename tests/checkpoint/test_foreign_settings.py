"""Files of the original whose settings say what its models, or ours, do without."""

from __future__ import annotations

from pathlib import Path

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


def test_scales_without_tensors_are_off(
    run: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, path = run
    state = content(path)
    state["extra_state"].pop("fairseq_lm")
    state["cfg"]["model"] |= dict.fromkeys(SCALES, True)
    torch.save(state, tmp_path / "foreign.pt")
    overrides = {"data": str(data)}
    (model,), cfg = load_model_ensemble([str(tmp_path / "foreign.pt")], arg_overrides=overrides)
    (plain,), _ = load_model_ensemble([str(path)], arg_overrides=overrides)
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
    state["extra_state"].pop("fairseq_lm")
    del state["model"]["decoder.layers.1.ffn_layernorm.weight"]
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match=r"layers\.1\.ffn_layernorm\.weight"):
        load_model_ensemble([str(tmp_path / "cut.pt")], arg_overrides={"data": str(data)})


def test_a_text_encoder_that_is_not_there_is_named(
    run: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, path = run
    state = content(path)
    state["extra_state"].pop("fairseq_lm")
    state["cfg"] |= {"bpe": {"_name": "hf_byte_bpe"}, "tokenizer": {"_name": "moses"}}
    torch.save(state, tmp_path / "foreign.pt")
    load_model_ensemble([str(tmp_path / "foreign.pt")], arg_overrides={"data": str(data)})
    assert "'hf_byte_bpe' is not known here: unless bpe= names another" in caplog.text
    assert "'moses' is not known here: text is left as it is" in caplog.text


def test_embeddings_of_characters_are_named(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, path = run
    state = content(path)
    state["cfg"]["model"]["character_embeddings"] = True
    torch.save(state, tmp_path / "foreign.pt")
    with pytest.raises(UnsupportedError, match="words made of characters"):
        load_model_ensemble([str(tmp_path / "foreign.pt")], arg_overrides={"data": str(data)})

"""A vocabulary head out of the input embeddings: exactly ``hidden E^T``, with a bias if asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq import checkpoint
from fairseq.config import options
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from fairseq.export import original_and_safetensors
from fairseq.export.add_head import add_head, unigram_bias
from fairseq.export.model_files import write_model
from fairseq.files.safe_load import safe_load
from fairseq.models.roberta import RobertaModel
from fairseq.models.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)
from fairseq.modules.heads import LinearHead
from fairseq.tasks.dictionaries import dictionary_record
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from fairseq_cli import export

LM: dict[str, Any] = {
    "arch": "transformer_lm", "task": "language_modeling", "decoder_layers": 2,
    "decoder_embed_dim": 32, "decoder_input_dim": 32, "decoder_output_dim": 32,
    "decoder_ffn_embed_dim": 48, "decoder_attention_heads": 4, "tokens_per_sample": 30,
}  # fmt: skip
LINES = 6
MLM: dict[str, Any] = {
    "arch": "roberta", "task": "masked_lm", "encoder_layers": 2, "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4, "tokens_per_sample": 30,
    "max_positions": 30,
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [f"w{n} {n * n}\n" for n in range(14)] + ["madeupword0000 0\n"]
    (folder / "dict.txt").write_text("".join(lines))
    write_lines(folder, LINES)
    return folder


def write_lines(folder: Path, count: int) -> None:
    builder = make_builder(str(folder / "train.bin"), "mmap", 19)
    for _ in range(count):
        builder.add_item(torch.tensor([5, 2]))
    builder.finalize(str(folder / "train.idx"))


def headless(data: Path, path: Path, base: dict[str, Any], **knobs: Any) -> Path:
    config = options.make_config(
        {"data": str(data), "criterion": "contrastive_weight_tying", "head": "none", **base,
         **knobs}
    )  # fmt: skip
    torch.manual_seed(4)
    model: Any
    if base is LM:
        task: Any = LanguageModelingTask.setup_task(LanguageModelingConfig(data=str(data)))
        model = TransformerLanguageModel.build_model(config.model, task)
    else:
        task = MaskedLMTask.setup_task(MaskedLMConfig(data=str(data)))
        model = RobertaModel.build_model(config.model, task)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    write_model(path, model.state_dict(), config, {}, dictionary_record(task))
    return path


def load(path: Path, data: Path) -> Any:
    models, _, _ = checkpoint.load_model_ensemble_and_task([str(path)], {"data": str(data)})
    return models[0].eval()


@pytest.mark.parametrize("mode", ["tied", "copy"])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_decoder(mode: str, bias: bool, data: Path, tmp_path: Path) -> None:
    source = headless(data, tmp_path / "a.pt", LM)
    result = add_head(source, tmp_path / "b.pt", mode, data, log_unigram_bias=bias)
    assert result == {"model": "transformer_lm", "head": mode, "bias": bias}
    before, after = load(source, data), load(tmp_path / "b.pt", data)
    tokens_BT = torch.randint(4, 18, (3, 11))
    hidden_BTC = before.extract_features(tokens_BT)[0]
    expected = hidden_BTC @ before.decoder.embed_tokens.weight.T
    if bias:
        counts = [1, 1, 1 + LINES, 1, *(n * n for n in range(14)), 0]
        total = sum(counts) + len(counts)
        expected = expected + torch.tensor([math.log((n + 1) / total) for n in counts])
    assert torch.allclose(after(tokens_BT)[0], expected, rtol=0, atol=0 if not bias else 1e-6)
    head = after.decoder.output_projection
    assert (head.weight is after.decoder.embed_tokens.weight) == (mode == "tied")
    assert (head.bias is not None) == bias and after.config.head_bias == bias
    assert torch.equal(after.extract_features(tokens_BT)[0], hidden_BTC)


def test_counts_of_other_words_are_refused(data: Path, tmp_path: Path) -> None:
    source = headless(data, tmp_path / "a.pt", LM)
    other = Dictionary.load(str(data / "dict.txt"))
    other.symbols[4:6] = other.symbols[5], other.symbols[4]
    other.save(str(data / "dict.txt"))
    with pytest.raises(CheckpointError, match="not the one that .* was trained with"):
        add_head(source, tmp_path / "b.pt", "copy", data, log_unigram_bias=True)
    assert not (tmp_path / "b.pt").exists()


@torch.inference_mode()
def test_encoder(data: Path, tmp_path: Path) -> None:
    source = headless(data, tmp_path / "a.pt", MLM)
    add_head(source, tmp_path / "b.pt", "tied")
    before, after = load(source, data), load(tmp_path / "b.pt", data)
    tokens_BT = torch.randint(4, 18, (3, 11))
    tokens_BT[1, 7:] = 1
    hidden_BTC = before(tokens_BT, features_only=True)[0]
    assert torch.equal(after(tokens_BT, features_only=True)[0], hidden_BTC)
    table_VC = before.encoder.sentence_encoder.embed_tokens.weight
    assert torch.equal(after(tokens_BT)[0], hidden_BTC @ table_VC.T)
    assert after.config.head == "clap" and float(after.encoder.lm_head.beta) == 1
    for mode, bias in (("copy", False), ("tied", True)):
        with pytest.raises(UnsupportedError, match="tied and has no bias"):
            add_head(source, tmp_path / "c.pt", mode, data, bias)
    assert not (tmp_path / "c.pt").exists()


def test_the_ends_of_lines_are_counted_in_all_shards(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = tmp_path / "shard"
    shard.mkdir()
    source = headless(data, tmp_path / "a.pt", LM)
    both = Path(f"{data}:{shard}")
    with pytest.raises(DataError, match="shard has no train.bin"):
        add_head(source, tmp_path / "b.pt", "tied", both, log_unigram_bias=True)
    assert not (tmp_path / "b.pt").exists()
    write_lines(shard, 100)
    add_head(source, tmp_path / "b.pt", "tied", both, log_unigram_bias=True)
    recorded = headless(both, tmp_path / "c.pt", LM)
    add_head(recorded, tmp_path / "d.pt", "tied", log_unigram_bias=True)
    for name in ("b.pt", "d.pt"):
        bias_V = safe_load(str(tmp_path / name))["model"]["decoder.output_projection.bias"]
        # (1 + 106) + 1 against 1 + 1
        assert float(bias_V[2] - bias_V[0]) == pytest.approx(math.log(108 / 2))
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_fewer_outputs_than_embeddings_are_refused(data: Path, tmp_path: Path) -> None:
    source = headless(data, tmp_path / "a.pt", LM, output_dictionary_size=12)
    with pytest.raises(UnsupportedError, match="--output-dictionary-size"):
        add_head(source, tmp_path / "b.pt", "copy", data)
    assert not (tmp_path / "b.pt").exists()


def test_the_bias_is_trained(data: Path, tmp_path: Path) -> None:
    source = headless(data, tmp_path / "a.pt", LM)
    add_head(source, tmp_path / "b.pt", "tied", data, log_unigram_bias=True)
    model = load(tmp_path / "b.pt", data).train()
    tokens_BT = torch.randint(4, 18, (2, 9))
    operands, _ = model(tokens_BT, predicted_positions=torch.tensor([0, 5, 17]))
    assert torch.equal(operands.bias_V, model.decoder.output_projection.bias)
    operands.logits().logsumexp(-1).sum().backward()
    gradient_V = model.decoder.output_projection.bias.grad
    assert float(gradient_V.sum()) == pytest.approx(3, abs=1e-4)  # one softmax a position


def test_a_linear_head_with_bias() -> None:
    head = LinearHead(6, 9, None, bias=True)
    assert head.state_dict().keys() == {"weight", "bias"} and not bool(head.bias.any())
    assert LinearHead(6, 9).state_dict().keys() == {"weight"}
    with torch.no_grad():
        head.bias.copy_(torch.arange(9.0))
    hidden_BTC = torch.randn(2, 3, 6)
    expected = hidden_BTC @ head.weight.T + torch.arange(9.0)
    assert torch.allclose(head(hidden_BTC), expected, atol=1e-6)


@torch.inference_mode()
def test_what_the_training_multiplied_goes_into_a_copy(data: Path, tmp_path: Path) -> None:
    source = headless(
        data, tmp_path / "a.pt", LM, contrastive_projection=True, contrastive_temperature=0.5
    )
    state = safe_load(source)
    map_CC = torch.eye(32) + 0.1 * torch.randn(32, 32)
    state["criterion"] = {"projection.weight": map_CC}
    torch.save(state, source)
    add_head(source, tmp_path / "b.pt", "copy")
    before, after = load(source, data), load(tmp_path / "b.pt", data)
    tokens_BT = torch.randint(4, 18, (3, 11))
    mapped_BTC = before.extract_features(tokens_BT)[0] @ map_CC.T
    expected = mapped_BTC @ before.decoder.embed_tokens.weight.T / 0.5
    assert torch.allclose(after(tokens_BT)[0], expected, atol=1e-4, rtol=1e-5)
    with pytest.raises(UnsupportedError, match="use --add-head copy"):
        add_head(source, tmp_path / "c.pt", "tied")
    other = headless(data, tmp_path / "n.pt", LM, contrastive_normalize=True)
    with pytest.raises(UnsupportedError, match="compares directions"):
        add_head(other, tmp_path / "c.pt", "copy")


@pytest.mark.parametrize(
    "knobs", [{"head": "clap"}, {"head": "none"}, {"adaptive_softmax_cutoff": "8"}]
)
def test_where_a_bias_has_no_place(knobs: dict[str, Any]) -> None:
    config = TransformerLanguageModelConfig(head_bias=True, **knobs)
    with pytest.raises(ConfigError, match="--head-bias needs --head vocabulary"):
        config.settled(None)


def test_bad_input_is_named(data: Path, tmp_path: Path) -> None:
    source = headless(data, tmp_path / "a.pt", LM)
    add_head(source, tmp_path / "b.pt", "tied")
    with pytest.raises(DataError, match="--force"):
        add_head(source, tmp_path / "b.pt", "tied")
    with pytest.raises(UnsupportedError, match="only models with --head none"):
        add_head(tmp_path / "b.pt", tmp_path / "c.pt", "tied")
    narrow = headless(data, tmp_path / "n.pt", LM, decoder_input_dim=16)
    with pytest.raises(UnsupportedError, match="width 16 do not fit"):
        add_head(narrow, tmp_path / "c.pt", "tied")
    with pytest.raises(DataError, match="holds no counts"):
        unigram_bias(Dictionary.foreign(["a", "b"], bos="a", pad="a", eos="a", unk="b"), 2)
    dictionary = Dictionary.load(str(data / "dict.txt"))
    with pytest.raises(CheckpointError, match="19 entries, the embedding table 7 rows"):
        unigram_bias(dictionary, 7)
    assert float(unigram_bias(dictionary, 18).exp().sum()) == pytest.approx(1)
    assert not (tmp_path / "c.pt").exists()


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = headless(data, tmp_path / "a.pt", LM)
    out = tmp_path / "b.pt"
    command = [str(source), "--add-head", "copy", "--out", str(out), "--data", str(data)]
    assert export.main([*command, "--log-unigram-bias", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bias"] is True
    record = safe_load(out)["extra_state"]["fairseq_lm"]["config"]
    assert record["model"]["head_bias"] is True and record["criterion"]["_name"] == "cross_entropy"
    with pytest.raises(SystemExit):
        export.main([str(source), "--to", "fairseq", "--out", "x", "--log-unigram-bias"])
    with pytest.raises(UnsupportedError, match="no head_bias True"):
        original_and_safetensors.to_fairseq(out, tmp_path / "c.pt")
    assert export.main([*command, "--force"]) == 0
    assert "dropped" in original_and_safetensors.to_fairseq(out, tmp_path / "c.pt")

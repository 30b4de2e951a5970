"""Interchange: what leaves and comes back computes the same, and what differs is not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.checkpoint.files import write_checkpoint
from fairseq.checkpoint.layout import OURS, config_of, original_cfg, our_record
from fairseq.config import options
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError, DataError, UnsupportedError
from fairseq.export import encoder_out, encoder_tokenizer, original_and_safetensors
from fairseq.export.encoder_in import from_huggingface
from fairseq.export.encoder_names import ENCODER, FAMILIES, to_ours, to_theirs
from fairseq.files.safe_load import safe_load
from fairseq.models.roberta import RobertaModel
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from fairseq_cli import bpe, export

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")

TEXT = [f"The {a} {b} sees {n} red houses, doesn't it?" for n in range(9) for a in ("old", "new")
        for b in ("cat", "dog")]  # fmt: skip
SIZE = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "max_positions": 40,
    "tokens_per_sample": 40,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "sinusoidal": {"position": "sinusoidal"},
    "alibi": {"position": "alibi"},
    "asymmetric": {"position": "alibi-asymmetric"},
    "learned-clap": {"head": "clap", "layernorm_embedding": False},
    "zero-clap": {
        "head": "clap", "position": "alibi-asymmetric", "mask_embedding": "zero",
        "layernorm_embedding": False, "scale_embedding": True,
    },
    "untied": {"untie_weights_roberta": True},
    "pre-norm": {"encoder_normalize_before": True, "activation_fn": "relu"},
    "hidden normalised": {"head": "clap", "clap_normalize_hidden": True},
    "headless": {"head": "none"},
    "headless alibi": {"head": "none", "position": "alibi"},
    "no positions": {"position": "none"},
}  # fmt: skip
NATIVE = {"baseline", "untied", "headless"}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json and dict.txt, which lacks some pieces."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "text").write_text("\n".join(TEXT))
    train = ["train", "--inputs", str(folder / "text"), "--vocab-size", "330"]
    assert bpe.main([*train, "--output", str(folder / "tokenizer.json")]) == 0
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    dictionary = Dictionary()
    for number in sorted(set(ids.values()) - {ids["\u0120red"]})[20:]:
        dictionary.add_symbol(str(number), 1)
    dictionary.pad_to_multiple_(8)
    dictionary.save(folder / "dict.txt")
    return folder


def checkpoint_of(words: Path, path: Path, **knobs: Any) -> Path:
    """Write a random model as a checkpoint."""
    settings = {
        "task": "masked_lm", "arch": "roberta", "data": str(words), "bpe": "byte_level",
        "criterion": "sentence_prediction" if knobs.get("head") == "none" else "masked_lm",
        "byte_level_tokenizer": str(words / "tokenizer.json"), **SIZE, **knobs,
    }  # fmt: skip
    config = options.make_config(settings)
    torch.manual_seed(1)
    cfg = MaskedLMConfig(data=str(words), omit_mask=knobs.get("mask_embedding") == "zero")
    model = RobertaModel.build_model(config.model, MaskedLMTask(cfg))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    write_checkpoint(
        {
            "args": None, "cfg": original_cfg(config), "model": model.state_dict(),
            "criterion": None, "optimizer_history": [], "task_state": {},
            "extra_state": {OURS: our_record(config, {})}, "last_optimizer_state": None,
        },
        str(path), {},
    )  # fmt: skip
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_to_hugging_face(variant: str, words: Path, tmp_path: Path) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt", **VARIANTS[variant])
    result = encoder_out.to_huggingface(source, tmp_path / "out", words)
    assert result["max_abs_difference"] <= 2e-5 and result["sentences"] == 100
    assert result["remote_code"] == (variant not in NATIVE)
    auto = "AutoModel" if "headless" in variant else "AutoModelForMaskedLM"
    loaded = getattr(transformers, auto).from_pretrained(
        str(tmp_path / "out"), trust_remote_code=result["remote_code"]
    )
    hub = encoder_out.load_ours(source, words)
    masked = hub._ids(f"<s> {hub._split(TEXT[0])} <mask> {hub._split(' houses')} </s>")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    ids = torch.tensor(tokenizer(f"{TEXT[0]} <mask> houses")["input_ids"])
    known = max(len(hub.task.source_dictionary) - 1, hub._mask())
    assert ids.eq(3).any() and (ids > known).any()  # bytes and pieces the dictionary lacks
    assert ids.masked_fill(ids > known, 3).tolist() == masked.tolist()
    with torch.inference_mode():
        expected = hub.model(masked[None], features_only=auto == "AutoModel")[0]
        output = loaded.eval()(masked[None])
    found = output.last_hidden_state if auto == "AutoModel" else output.logits
    assert float((found[..., : expected.shape[-1]] - expected).abs().max()) <= 1e-5
    assert expected.std() > 0.1
    assert "fairseq-lm" in (tmp_path / "out/README.md").read_text()
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert len(modes) > 3 and len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("variant", ["baseline", "headless", "untied"])
def test_there_and_back(variant: str, words: Path, tmp_path: Path) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt", **VARIANTS[variant])
    encoder_out.to_huggingface(source, tmp_path / "out", words)
    result = from_huggingface(tmp_path / "out", tmp_path / "back")
    assert result["max_abs_difference"] <= 1e-5
    hub, back = encoder_out.load_ours(source, words), encoder_out.load_ours(
        tmp_path / "back/model.pt", None
    )  # fmt: skip
    tokens = hub.encode(TEXT[3])
    named = back.encode(TEXT[3])  # the pieces that read as unknown have rows of their own now
    known = len(hub.task.source_dictionary)
    assert torch.equal(named.masked_fill(named >= known, 3), tokens)
    ours, again = hub.extract_features(tokens), back.extract_features(named)
    assert torch.allclose(ours, again, atol=1e-5)
    recorded = config_of(safe_load(tmp_path / "back/model.pt"))
    assert recorded.bpe.byte_level_tokenizer == str(tmp_path / "back/tokenizer.json")
    assert recorded.task.data == str(tmp_path / "back")


def bert_folder(folder: Path, kind: str) -> Path:
    folder.mkdir()
    symbols = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrst"]
    symbols += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"] + ["the", "##ion", ",", "."]
    (folder / "vocab.txt").write_text("".join(f"{s}\n" for s in symbols))
    torch.manual_seed(2)
    if kind == "bert":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 48}  # fmt: skip
        config = transformers.BertConfig(
            vocab_size=len(symbols), max_position_embeddings=60, **shape
        )
        model = transformers.BertForMaskedLM(config)
    else:
        shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        config = transformers.DistilBertConfig(
            vocab_size=len(symbols), max_position_embeddings=60, **shape
        )
        model = transformers.DistilBertForMaskedLM(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(str(folder))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_bert_comes_and_goes(kind: str, tmp_path: Path) -> None:
    source = bert_folder(tmp_path / "theirs", kind)
    result = from_huggingface(source, tmp_path / "ours")
    assert result == {**result, "model_type": kind, "head": "roberta"}
    assert result["max_abs_difference"] <= 1e-5
    hub = encoder_out.load_ours(tmp_path / "ours/model.pt", None)
    recorded = config_of(safe_load(tmp_path / "ours/model.pt")).bpe
    assert recorded.wordpiece_vocab == str(tmp_path / "ours/vocab.txt")
    dictionary = hub.task.source_dictionary
    roles = [dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk(), hub._mask()]
    assert roles == [3, 0, 4, 2, 5]
    assert hub.encode("the cat.").tolist()[0] == 3
    again = encoder_out.to_huggingface(tmp_path / "ours/model.pt", tmp_path / "again")
    assert not again["remote_code"] and again["max_abs_difference"] <= 1e-5
    ids = hub.encode_masked("the <mask>.").tolist()
    assert [ids[0], ids[-1]] == [3, 4] and 2 not in ids and hub._mask() in ids
    assert len(hub.fill_mask("the <mask> .", topk=3)) == 3
    filled = [hub.fill_first("the <mask>.", dictionary.index(piece))[0] for piece in ("a", "##a")]
    assert filled == ["the a.", "thea."]


def test_a_difference_is_found_and_nothing_is_written(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt")
    real = encoder_out._native

    def slightly_wrong(*args: Any) -> Any:
        model = real(*args)
        with torch.no_grad():
            model.roberta.encoder.layer[1].output.dense.bias[0] += 1e-2
        return model

    monkeypatch.setattr(encoder_out, "_native", slightly_wrong)
    with pytest.raises(CheckpointError, match="differs by"):
        encoder_out.to_huggingface(source, tmp_path / "out", words)
    monkeypatch.undo()
    real_pieces = encoder_tokenizer._pieces
    monkeypatch.setattr(
        encoder_tokenizer, "_pieces", lambda bpe: (real_pieces(bpe)[0], real_pieces(bpe)[1][:5])
    )
    with pytest.raises(CheckpointError, match="tokenizer of Hugging Face splits"):
        encoder_out.to_huggingface(source, tmp_path / "out", words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.pt.json"]


def test_bad_input_is_named(words: Path, tmp_path: Path) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt")
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="--force"):
        encoder_out.to_huggingface(source, tmp_path / "there", words)
    (tmp_path / "there/config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UnsupportedError, match="'t5' cannot be imported"):
        from_huggingface(tmp_path / "there", tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="config.json"):
        from_huggingface(tmp_path / "nothing", tmp_path / "x")
    folder = bert_folder(tmp_path / "theirs", "bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="pytorch_model"):
        from_huggingface(folder, tmp_path / "x")
    with pytest.raises(CheckpointError, match="no weights of bert"):
        to_ours({"bert.embeddings.word_embeddings.weight": torch.zeros(3, 4)}, FAMILIES["bert"])
    with pytest.raises(CheckpointError, match="no place for"):
        to_theirs({f"{ENCODER}layer_norm.weight": torch.zeros(3)}, FAMILIES["bert"], 1)
    assert not (tmp_path / "x").exists() and not (tmp_path / ".x.unfinished").exists()


def test_the_originals_checkpoints(shared: Path, tmp_path: Path) -> None:
    folder = shared / "compat/checkpoints"
    files = {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"}
    settings = {name: str(shared / "data/gpt2_bpe" / file) for name, file in files.items()}
    for name, remote in (("fb_baseline", False), ("zero_clap", True), ("alibi_symmetrical", True)):
        result = encoder_out.to_huggingface(
            folder / name / "model.pt", tmp_path / name, folder / "data-bin", **settings
        )
        assert result["remote_code"] == remote and result["max_abs_difference"] <= 1e-5


def test_weights_alone_and_the_command(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    source = checkpoint_of(words, tmp_path / "a.pt", head="clap")
    out = tmp_path / "a.safetensors"
    assert export.main([str(source), "--to", "safetensors", "--out", str(out), "--json"]) == 0
    weights = safe_load(source)["model"]
    found = load_file(str(out))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert json.loads(capsys.readouterr().out)["tensors"] == len(weights)


def test_what_the_original_would_refuse_is_dropped(words: Path, tmp_path: Path) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt", pooling="mean", freeze_encoder=True)
    result = original_and_safetensors.to_fairseq(source, tmp_path / "b.pt")
    state = safe_load(tmp_path / "b.pt")
    assert "fairseq_lm" in result["dropped"] and OURS not in state["extra_state"]
    assert not {"pooling", "freeze_encoder", "head", "position"} & state["cfg"]["model"].keys()
    assert "omit_mask" not in state["cfg"]["task"]
    back = encoder_out.load_ours(tmp_path / "b.pt", words)
    tokens = back.encode(TEXT[1])
    ours = encoder_out.load_ours(source, words)
    assert torch.equal(back.model(tokens[None])[0], ours.model(tokens[None])[0])
    for knobs in ({"head": "clap"}, {"position": "alibi"}, {"mask_embedding": "zero"}):
        other = checkpoint_of(words, tmp_path / "c.pt", **knobs)
        with pytest.raises(UnsupportedError, match="the original fairseq cannot load"):
            original_and_safetensors.to_fairseq(other, tmp_path / "d.pt")
    assert not (tmp_path / "d.pt").exists()

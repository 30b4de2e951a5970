"""Tokenizers come and go whole: what they do to text is kept, or named in an error."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export_heads import SHAPE, word_pieces

from fairseq.config import options
from fairseq.data.encoders import BPE_DATACLASS_REGISTRY, BPE_REGISTRY
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import UnsupportedError
from fairseq.export.compare import ODD_TEXTS
from fairseq.export.encoder_in import from_huggingface
from fairseq.export.encoder_out import load_ours, to_huggingface
from fairseq.export.model_files import write_model
from fairseq.models.roberta import RobertaModel
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")

LINES = [f"The {a} {b} sees {n} red houses, doesn't it?" for n in range(9)
         for a in ("old", "new") for b in ("cat", "dog")]  # fmt: skip
BODY = {"hidden_size": 32, "intermediate_size": 48, **SHAPE}


def same_ids(ours: Any, folder: Path, unknown: int = 3) -> None:
    """Check that a folder's tokenizer gives our ids on all odd texts."""
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    last = max(len(ours.task.source_dictionary) - 1, ours._mask())
    for text in [*ODD_TEXTS, *LINES[:3]]:
        ids = [unknown if i > last else i for i in theirs(text)["input_ids"]]
        assert ids == ours.encode(text).tolist(), text


def test_there_are_sixty_odd_texts() -> None:
    assert len(set(ODD_TEXTS)) == len(ODD_TEXTS) == 60


# -- in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"lowercase": True, "strip_accents": False},
        {"lowercase": False, "strip_accents": True},
        {"lowercase": False},
        {"lowercase": True, "handle_chinese_chars": False},
    ],
)
def test_bert_keeps_accents_case_and_characters(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = word_pieces(tmp_path / "theirs", **settings)
    config = transformers.BertConfig(vocab_size=rows, max_position_embeddings=200, **BODY)
    transformers.BertForMaskedLM(config).save_pretrained(str(tmp_path / "theirs"))
    from_huggingface(tmp_path / "theirs", tmp_path / "ours", LINES[:2])
    same_ids(load_ours(tmp_path / "ours/model.pt", None), tmp_path / "theirs")
    to_huggingface(tmp_path / "ours/model.pt", tmp_path / "again", None, LINES[:2])
    same_ids(load_ours(tmp_path / "ours/model.pt", None), tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": "Lowercase"}, "normalizer.type is 'Lowercase'"),
        ({"pre_tokenizer": "Whitespace"}, "pre_tokenizer.type is 'Whitespace'"),
        ({"added": "<|user|>"}, r"finds '<\|user\|>' in text"),
    ],
)
def test_what_word_pieces_cannot_do_is_named(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    import tokenizers

    rows = word_pieces(tmp_path / "theirs") + 1
    fast = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "theirs"))
    if "added" in change:
        fast.add_tokens([change["added"]])
    for part in {"normalizer", "pre_tokenizer"} & change.keys():
        made = getattr(getattr(tokenizers, f"{part}s"), change[part])()
        setattr(fast.backend_tokenizer, part, made)
    fast.save_pretrained(str(tmp_path / "theirs"))
    config = transformers.BertConfig(vocab_size=rows, max_position_embeddings=200, **BODY)
    transformers.BertForMaskedLM(config).save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(UnsupportedError, match=message):
        from_huggingface(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def roberta(folder: Path, normalizer: Any = None, added: Sequence[str] = (), **more: Any) -> Any:
    """Write a random RoBERTa of theirs with a byte-level tokenizer; return the model."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    if normalizer is not None:
        built.normalizer = normalizer
    built.train_from_iterator(LINES, BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    ))  # fmt: skip
    built.add_tokens(list(added))
    built.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    built.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
    fast.save_pretrained(str(folder))
    config = transformers.RobertaConfig(
        vocab_size=len(fast), max_position_embeddings=300, type_vocab_size=1, **{**BODY, **more}
    )
    torch.manual_seed(0)
    model = transformers.RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(str(folder))
    return model


def test_robertas_normalizer_and_added_tokens_are_kept(tmp_path: Path) -> None:
    from tokenizers import normalizers

    steps = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    roberta(tmp_path / "theirs", steps, ["<|user|>", "qzq"])
    from_huggingface(tmp_path / "theirs", tmp_path / "ours", ["a <|user|> says qzqzq", "AB"])
    ours = load_ours(tmp_path / "ours/model.pt", None)
    same_ids(ours, tmp_path / "theirs")
    to_huggingface(tmp_path / "ours/model.pt", tmp_path / "again", None, ["a <|user|> says qzq"])
    same_ids(ours, tmp_path / "again")
    for name in ("theirs", "again"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / name))
        assert (tokenizer.cls_token, tokenizer.sep_token) == ("<s>", "</s>")
        for text in ("a <|user|> says qzqzq", "The CAT\uff21"):
            assert tokenizer(text)["input_ids"] == ours.encode(text).tolist()
    assert 300 in ours.encode("a <|user|> says").tolist()


def test_settings_that_compute_something_else_are_supported_or_named(tmp_path: Path) -> None:
    theirs = roberta(tmp_path / "untied", tie_word_embeddings=False)
    assert not torch.equal(theirs.lm_head.decoder.bias, theirs.lm_head.bias)
    assert from_huggingface(tmp_path / "untied", tmp_path / "a")["max_abs_difference"] <= 2e-5
    for name, settings, message in (
        ("gelu_new", {"hidden_act": "gelu_new"}, "hidden_act 'gelu_new': the vocabulary head"),
        ("decoder", {"is_decoder": True}, "is_decoder is true"),
    ):
        roberta(tmp_path / name, **settings)
        with pytest.raises(UnsupportedError, match=message):
            from_huggingface(tmp_path / name, tmp_path / "b")


# -- out -----------------------------------------------------------------------------------------


def checkpoint(folder: Path, settings: dict[str, Any], **knobs: Any) -> Path:
    """Write a random model whose dictionary holds most of the pieces of LINES."""
    encoder = BPE_REGISTRY[settings["bpe"]](
        BPE_DATACLASS_REGISTRY[settings["bpe"]](
            **{name: value for name, value in settings.items() if name != "bpe"}
        )
    )
    pieces = sorted({piece for line in LINES for piece in encoder.encode(line).split()})
    dictionary = Dictionary()
    random.Random(0).shuffle(pieces)
    for piece in pieces[3:]:
        dictionary.add_symbol(piece, 1)
    dictionary.save(folder / "dict.txt")
    config = options.make_config({
        "task": "masked_lm", "arch": "roberta", "data": str(folder),
        "criterion": "sentence_prediction" if knobs.get("head") == "none" else "masked_lm",
        "encoder_layers": 1, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 2, "max_positions": 200, "tokens_per_sample": 200,
        **settings, **knobs,
    })  # fmt: skip
    torch.manual_seed(1)
    omit = knobs.get("mask_embedding") == "zero"
    task = MaskedLMTask.setup_task(MaskedLMConfig(data=str(folder), omit_mask=omit))
    model = RobertaModel.build_model(config.model, task)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    write_model(folder / "model.pt", model.state_dict(), config, {})
    return folder / "model.pt"


@pytest.mark.parametrize(
    "knobs", [{}, {"head": "clap", "mask_embedding": "zero"}, {"segments": 2, "position": "alibi"}]
)
def test_own_dictionaries_of_word_pieces_go(knobs: dict[str, Any], tmp_path: Path) -> None:
    word_pieces(tmp_path / "wp")
    vocabulary = str(tmp_path / "wp/vocab.txt")
    source = checkpoint(tmp_path, {"bpe": "wordpiece", "wordpiece_vocab": vocabulary}, **knobs)
    result = to_huggingface(source, tmp_path / "out", None, LINES[:3])
    assert result["extra_rows"] > 3
    hub = load_ours(source, None)
    same_ids(hub, tmp_path / "out")
    pair_T = hub.encode("the cat", "cat")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    batch = tokenizer("the cat", "cat", return_tensors="pt")
    assert batch["input_ids"][0].equal(pair_T)
    segments = hub._segments_of(pair_T[None])
    assert ("token_type_ids" in batch) == ("segments" in segments)
    assert not segments or batch["token_type_ids"].equal(segments["segments"])


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a unigram model of SentencePiece."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text("\n".join(LINES * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "sp"), vocab_size=34,
        model_type="unigram", minloglevel=2,
    )  # fmt: skip
    return str(folder / "sp.model")


def test_sentencepiece_models_go_and_come_as_xlm_roberta(pieces: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path, {"bpe": "sentencepiece", "sentencepiece_model": pieces})
    to_huggingface(source, tmp_path / "out", None, LINES[:3])
    same_ids(load_ours(source, None), tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(str(tmp_path / "out"))
    model = transformers.RobertaForMaskedLM.from_pretrained(str(tmp_path / "out"))
    for kind in ("XLMRoberta", "Camembert"):
        settings = {k: v for k, v in config.to_dict().items() if k != "model_type"}
        theirs = getattr(transformers, f"{kind}ForMaskedLM")(
            getattr(transformers, f"{kind}Config")(**settings)
        )
        theirs.load_state_dict(
            {k: v for k, v in model.state_dict().items() if k in theirs.state_dict()}, strict=False
        )
        theirs.save_pretrained(str(tmp_path / "out"))
        result = from_huggingface(tmp_path / "out", tmp_path / kind, LINES[:3])
        assert result["max_abs_difference"] <= 2e-5
        same_ids(load_ours(tmp_path / kind / "model.pt", None), tmp_path / "out")

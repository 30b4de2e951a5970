"""Classifiers of sentences go to Hugging Face and come from there with head and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.errors import UnsupportedError
from fairseq.evaluation.glue.tasks import TASKS, read_examples
from fairseq.export.encoder_in import from_huggingface
from fairseq.export.encoder_out import load_ours, to_huggingface
from fairseq_cli import glue
from tests import tiny_run
from tests.evaluation.test_glue import write_task

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")
WORDS = [*"abcdefghijklmnopqrstuvwxyz", "the", "cat"]
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertConfig", {"hidden_size": 32, "intermediate_size": 48, **SHAPE}),
    "DistilBert": ("DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}),
}


def word_pieces(folder: Path, **settings: Any) -> int:
    """Write the tokenizer of a BERT; return how many pieces it has."""
    from tokenizers.implementations import BertWordPieceTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *WORDS, *(f"##{c}" for c in WORDS[:26]), "\u00e9", "\u6211", "."]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    built = BertWordPieceTokenizer(str(folder / "vocab.txt"), **settings)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=built._tokenizer, cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
    ).save_pretrained(str(folder))  # fmt: skip
    return len(words)


def classifier(folder: Path, kind: str, **more: Any) -> Any:
    """Write a random classifier of theirs; return it."""
    config, shape = THEIRS[kind]
    settings = {"vocab_size": word_pieces(folder), "max_position_embeddings": 200, **shape, **more}
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(
        getattr(transformers, config)(**settings)
    ).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("kind", THEIRS)
@torch.inference_mode()
def test_a_classifier_comes_and_goes(kind: str, tmp_path: Path) -> None:
    names = {0: "bad", 1: "so so", 2: "good"}
    label2id = {name: place for place, name in names.items()}
    theirs = classifier(tmp_path / "theirs", kind, id2label=names, label2id=label2id)
    result = from_huggingface(tmp_path / "theirs", tmp_path / "ours", ["the cat."])
    assert (result["head"], result["labels"]) == ("classification", 3)
    hub = load_ours(tmp_path / "ours/model.pt", None)
    tokens_T = hub.encode("the cat .")
    expected = theirs(tokens_T[None]).logits
    assert torch.allclose(
        hub.predict("sentence_classification_head", tokens_T, return_logits=True),
        expected,
        atol=1e-6,
    )
    dictionary = hub.task.label_dictionary
    assert dictionary.symbols[dictionary.nspecial :] == ["bad", "so_so", "good"]
    again = to_huggingface(tmp_path / "ours/model.pt", tmp_path / "again", None, ["the cat."])
    assert again["class"] == f"{kind}ForSequenceClassification" and not again["remote_code"]
    auto = transformers.AutoModelForSequenceClassification
    back = auto.from_pretrained(str(tmp_path / "again")).eval()
    assert back.config.id2label == {0: "bad", 1: "so_so", 2: "good"}
    assert torch.allclose(back(tokens_T[None]).logits, expected, atol=1e-6)
    without = to_huggingface(
        tmp_path / "ours/model.pt", tmp_path / "body", None, ["the cat."], head="none"
    )
    assert without["class"] == f"{kind}Model"


@pytest.mark.parametrize("separator", [None, 3])  # of the training: one [SEP] between, or two
@pytest.mark.parametrize("kind", THEIRS)
@torch.inference_mode()
def test_pairs_are_joined_as_in_training(kind: str, separator: int | None, tmp_path: Path) -> None:
    classifier(tmp_path / "theirs", kind)
    theirs = getattr(transformers, f"{kind}TokenizerFast")(str(tmp_path / "theirs/vocab.txt"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    from_huggingface(tmp_path / "theirs", tmp_path / "ours", ["the cat."])
    trained = {"separator_token": separator}
    hub = load_ours(tmp_path / "ours/model.pt", None, **trained)
    tokens_T = hub.encode("the cat .", "a dog")
    between = "[SEP] [SEP]" if separator else "[SEP]"
    words = [hub.task.source_dictionary[int(token)] for token in tokens_T]
    assert " ".join(words) == f"[CLS] the cat . {between} a d ##o ##g [SEP]"
    expected = hub.predict("sentence_classification_head", tokens_T, return_logits=True)
    to_huggingface(tmp_path / "ours/model.pt", tmp_path / "again", None, ["the cat."], **trained)
    folders = ["again"] if separator else ["again", "theirs"]
    for folder in folders:
        auto = transformers.AutoModelForSequenceClassification
        model = auto.from_pretrained(str(tmp_path / folder)).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / folder))
        batch = tokenizer("the cat .", "a dog", return_tensors="pt")
        assert batch["input_ids"][0].equal(tokens_T)
        assert torch.allclose(model(**batch).logits, expected, atol=1e-6), folder


def test_heads_that_have_no_place_are_named(tmp_path: Path) -> None:
    shape = THEIRS["Bert"][1]
    rows = word_pieces(tmp_path / "theirs")
    config = transformers.BertConfig(vocab_size=rows, max_position_embeddings=200, **shape)
    for kind, name in (("QuestionAnswering", "qa_outputs"), ("TokenClassification", "classifier")):
        getattr(transformers, f"BertFor{kind}")(config).save_pretrained(str(tmp_path / "theirs"))
        with pytest.raises(UnsupportedError, match=f"BertFor{kind} has the head {name}"):
            from_huggingface(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_classifier_of_several_labels_at_once_is_refused(tmp_path: Path) -> None:
    classifier(tmp_path / "theirs", "Bert", problem_type="multi_label_classification")
    with pytest.raises(UnsupportedError, match="several labels for a sentence"):
        from_huggingface(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("variant", ["plain", "zero_clap"])
def test_a_result_of_glue_is_exported(variant: str, tmp_path: Path) -> None:
    zero_clap = {"head": "clap", "position": "alibi-asymmetric", "mask_embedding": "zero"}
    data = tiny_run.make_corpus(tmp_path / "bin")
    flags = {} if variant == "plain" else zero_clap
    tiny_run.train(tiny_run.config(data, tmp_path / "run", max_update=1, **flags))
    name = "MRPC" if variant == "plain" else "RTE"
    write_task(tmp_path / "glue", name)
    pooling = ["--pooling", "mean"] if variant == "zero_clap" else []
    command = [
        str(tmp_path / "run/checkpoint_last.pt"), "--glue-dir", str(tmp_path / "glue"),
        "--tasks", name, "--out", str(tmp_path / "out"), "--export", "hf", "--cpu",
        "--max-epoch", "2", "--lr", "0.01", *pooling,
    ]  # fmt: skip
    assert glue.main(command) == 0
    (run,) = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    remote = {"trust_remote_code": variant == "zero_clap"}
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(run["exported"], **remote).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run["exported"], **remote)
    found = read_examples(TASKS[name], tmp_path / "glue" / name / "dev.tsv")
    assert model.config.id2label == dict(enumerate(TASKS[name].classes))
    right = 0
    for *sentences, label in zip(*found.columns, found.labels, strict=True):
        batch = tokenizer(*sentences, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            logits = model(**batch).logits
        right += model.config.id2label[int(logits.argmax())] == label
    assert right / len(found.labels) == pytest.approx(run["scores"]["best"]["accuracy"])
    assert not list(Path(run["exported"]).parent.glob("*.pt"))

"""Sentence prediction: the original's checkpoint, data layouts, bad input, a whole run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq import evaluation
from fairseq.data import data_utils
from fairseq.data.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.models.roberta.model import RobertaModel
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from fairseq_cli import preprocess, train

WORDS = "red blue green dog cat house tree".split()
SENTENCES = [" ".join(WORDS[(i * k) % 7] for k in range(1, 3 + i % 4)) for i in range(24)]
LABELS = ["yes" if "dog" in line else "no" for line in SENTENCES]


def binarize(text: list[str], folder: Path, *flags: str) -> None:
    """Make ``folder`` from lines: the first two thirds for training, the rest for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(text) * 2 // 3
    for name, lines in (("train", text[:cut]), ("valid", text[cut:])):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    words = ["--trainpref", str(folder / "train.txt"), "--validpref", str(folder / "valid.txt")]
    assert preprocess.run(["--only-source", *words, "--destdir", str(folder), *flags]) == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for sentence prediction with two classes."""
    binarize(SENTENCES, tmp_path / "bin" / "input0")
    binarize(LABELS, tmp_path / "bin" / "label")
    return tmp_path / "bin"


def task_of(data: Path, **settings: Any) -> SentencePredictionTask:
    settings = {"num_classes": 2, "init_token": 0, "separator_token": 2, **settings}
    cfg = SentencePredictionConfig(data=str(data), **settings)
    return SentencePredictionTask.setup_task(cfg)


def batch_of(task: SentencePredictionTask, split: str = "valid") -> dict[str, Any]:
    task.load_dataset(split)
    dataset = task.dataset(split)
    return dataset.collater([dataset[i] for i in range(len(dataset))])


# -- the original's ------------------------------------------------------------------------------


def test_the_original_checkpoint_predicts_equally(shared: Path) -> None:
    folder = shared / "compat/checkpoints/fb_sentpred"
    data = shared / "compat/checkpoints/sentpred-bin"
    gpt2 = shared / "data/gpt2_bpe"
    hub = RobertaModel.from_pretrained(
        str(folder),
        "model.pt",
        data_name_or_path=str(data.resolve()),
        gpt2_encoder_json=str(gpt2 / "encoder.json"),
        gpt2_vocab_bpe=str(gpt2 / "vocab.bpe"),
    ).eval()
    golden = np.load(folder / "golden.npz")["predict_logprobs_first50_valid"]
    lines = data_utils.load_indexed_dataset(str(data / "input0/valid"))
    found = [hub.predict("cls2", torch.cat([torch.tensor([0]), lines[i]]))[0] for i in range(50)]
    np.testing.assert_allclose(torch.stack(found).detach().numpy(), golden, atol=1e-5)


def test_validation_of_the_original_checkpoint(shared: Path) -> None:
    folder = shared / "compat/checkpoints"
    last = (folder / "fb_sentpred/validate.txt").read_text().strip().splitlines()[-1]
    printed = json.loads(last)
    given = {
        "path": str(folder / "fb_sentpred/model.pt"),
        "data": str(folder / "sentpred-bin"),
        "batch_size": 32,
        "valid_subset": "valid",
        "init_token": 0,
    }
    stats = evaluation.validate(given)["valid"]
    assert f"{float(stats['loss']):g}" == printed["valid_loss"]
    assert float(stats["accuracy"]) == float(printed["valid_accuracy"])


# -- data ----------------------------------------------------------------------------------------


def test_a_batch(data: Path) -> None:
    task = task_of(data, no_shuffle=True)
    batch = batch_of(task)
    labels = task.label_dictionary
    cut = len(SENTENCES) * 2 // 3
    assert batch["target"].shape == (8, 1)
    named = [labels[int(i) + labels.nspecial] for i in batch["target"][:, 0]]
    assert named == LABELS[cut:]
    tokens = batch["net_input"]["src_tokens"]
    for row, line in zip(tokens, SENTENCES[cut:], strict=True):
        kept = [int(i) for i in row if i != 1]
        assert kept == [0, *(task.dictionary.index(w) for w in line.split()), 2]
    assert batch["ntokens"] == int((tokens != 1).sum()) and batch["nsentences"] == 8
    assert labels[labels.nspecial] == max(set(LABELS[:cut]), key=LABELS[:cut].count)


def test_pairs_are_joined_by_the_separator(data: Path) -> None:
    binarize(SENTENCES[::-1], data / "input1", "--srcdict", str(data / "input0/dict.txt"))
    batch = batch_of(task_of(data, no_shuffle=True, add_prev_output_tokens=True))
    row = [int(i) for i in batch["net_input"]["src_tokens"][0] if i != 1]
    assert row[0] == 0 and row.count(2) == 3 and row[row.index(2) + 1] == 2
    rolled = [int(i) for i in batch["net_input"]["prev_output_tokens"][0] if i != 1]
    assert rolled == [row[-1], *row[:-1]]


def test_shuffling_is_a_permutation_of_the_seed(data: Path) -> None:
    orders = []
    for seed in (1, 1, 2):
        task = task_of(data, seed=seed)
        task.load_dataset("train")
        orders.append([int(i) for i in task.dataset("train").ordered_indices()])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == np.argsort(np.random.RandomState(1).permutation(16)).tolist()


def test_regression_reads_rows_of_numbers(data: Path) -> None:
    rows = [(i / 7, -i) for i in range(8)]
    (data / "label/valid.label").write_text("".join(f"{a} {b}\n" for a, b in rows))
    batch = batch_of(task_of(data, regression_target=True, no_shuffle=True))
    np.testing.assert_allclose(batch["target"], rows, rtol=1e-6)


# -- bad input -----------------------------------------------------------------------------------


def test_bad_input_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--num-classes is -1"):
        task_of(data, num_classes=-1)
    with pytest.raises(ConfigError, match="has 2 labels"):
        task_of(data, num_classes=1)
    with pytest.raises(DataError, match="Dataset not found: test"):
        task_of(data).load_dataset("test")
    binarize(["maybe"] * 24, tmp_path / "other", "--srcdict", str(data / "label/dict.txt"))
    for name in ("valid.bin", "valid.idx"):
        (data / "label" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(DataError, match="label in line 1 is not in label/dict.txt"):
        task_of(data).load_dataset("valid")
    binarize(LABELS[:9], tmp_path / "short", "--srcdict", str(data / "label/dict.txt"))
    for name in ("valid.bin", "valid.idx"):
        (data / "label" / name).write_bytes((tmp_path / "short" / name).read_bytes())
    with pytest.raises(DataError, match="8 inputs, but 3 labels"):
        task_of(data).load_dataset("valid")
    binarize(["yes no"] * 24, tmp_path / "two", "--srcdict", str(data / "label/dict.txt"))
    for name in ("valid.bin", "valid.idx"):
        (data / "label" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(DataError, match="line 1 does not hold exactly one label"):
        task_of(data).load_dataset("valid")


def test_a_wrong_dictionary_is_named(data: Path) -> None:
    small = Dictionary()
    small.add_symbol("red", 5)
    small.save(str(data / "input0/dict.txt"))
    with pytest.raises(DataError, match="come from different runs"):
        task_of(data).load_dataset("valid")


@pytest.mark.parametrize(
    ("line", "message"),
    [("a", "could not convert"), ("1 2 3", "expected 2"), ("nan 1", "expected 2")],
)
def test_bad_numbers_are_named(data: Path, line: str, message: str) -> None:
    (data / "label/valid.label").write_text(f"1 2\n{line}\n" + "1 2\n" * 6)
    with pytest.raises(DataError, match=f"line 2: {message}"):
        task_of(data, regression_target=True).load_dataset("valid")


# -- from end to end -----------------------------------------------------------------------------

MODEL = (
    "--arch roberta_tiny --encoder-layers 2 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 "
    "--encoder-attention-heads 2 --max-positions 32 --optimizer adam --lr 0.01 --batch-size 4 "
    "--num-workers 0 --cpu --log-format none --dropout 0.1 --no-epoch-checkpoints"
).split()
SENTENCE = "--task sentence_prediction --criterion sentence_prediction --init-token 0".split()


def run_train(data: Path, save: Path, *flags: str) -> None:
    words = [str(data), "--save-dir", str(save), *SENTENCE, *MODEL, *flags]
    assert train.run(words) == 0


@pytest.mark.parametrize("classes", [1, 2])
def test_regressions_train_and_report(data: Path, tmp_path: Path, classes: int) -> None:
    for split, count in (("train", 16), ("valid", 8)):
        rows = (" ".join([str(i / 8)] * classes) for i in range(count))
        (data / f"label/{split}.label").write_text("".join(f"{row}\n" for row in rows))
    flags = ["--regression-target", "--num-classes", str(classes), "--max-update", "3"]
    run_train(data, tmp_path / "out", *flags, "--report-pearson-and-spearman")
    stats = evaluation.validate({"path": str(tmp_path / "out/checkpoint_last.pt")})["valid"]
    assert -100 <= stats["pearson"] <= 100 and -100 <= stats["spearman"] <= 100
    assert math.isclose(
        stats["pearson_and_spearman"], (stats["pearson"] + stats["spearman"]) / 2, abs_tol=0.11
    )


def test_classes_train_score_and_predict(data: Path, tmp_path: Path) -> None:
    flags = ["--num-classes", "2", "--max-epoch", "30", "--report-mcc", "--report-acc-and-f1"]
    flags += ["--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"]
    run_train(data, tmp_path / "out", *flags, "--classification-head-name", "dogs")
    path = tmp_path / "out"
    hub = RobertaModel.from_pretrained(
        str(path), "checkpoint_last.pt", data_name_or_path=str(data), bpe=None
    ).eval()
    batch = batch_of(hub.task)
    logprobs = torch.cat(
        [hub.predict("dogs", row[row != 1]) for row in batch["net_input"]["src_tokens"]]
    )
    assert torch.allclose(logprobs.exp().sum(1), torch.ones(8), atol=1e-5)
    right = 100 * (logprobs.argmax(1) == batch["target"][:, 0]).float().mean().item()
    stats = evaluation.validate({"path": str(path / "checkpoint_last.pt")})["valid"]
    assert math.isclose(float(stats["accuracy"]), right, abs_tol=0.06)
    assert -100 <= stats["mcc"] <= 100 and 0 <= stats["f1"] <= 100


@pytest.mark.parametrize("pooling", ["cls", "mean", "concat"])
def test_probes_train_the_head_only(data: Path, tmp_path: Path, pooling: str) -> None:
    flags = ["--num-classes", "2", "--pooling", pooling]
    run_train(data, tmp_path / "a", *flags, "--max-update", "1")
    run_train(
        data, tmp_path / "b", *flags, "--max-update", "4", "--freeze-encoder",
        "--finetune-from-model", str(tmp_path / "a/checkpoint_last.pt"),
    )  # fmt: skip
    before, after = (
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=False)["model"]
        for name in "ab"
    )
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("classification_heads.") for key in changed)
    width = before["classification_heads.sentence_classification_head.dense.weight"].shape[1]
    assert width == (32 if pooling == "concat" else 16)


def test_two_processes_report_as_one(data: Path, tmp_path: Path) -> None:
    flags = ["--num-classes", "2", "--max-update", "3", "--report-mcc", "--dropout", "0"]
    flags += ["--attention-dropout", "0", "--pooler-dropout", "0", "--clip-norm", "0"]
    run_train(data, tmp_path / "one", *flags, "--batch-size", "4")
    two = ["--distributed-world-size", "2", "--distributed-num-procs", "2"]
    # two processes of two sentences see batches of their own, so only the figures are compared
    run_train(data, tmp_path / "two", *flags, "--batch-size", "2", *two)
    lines = (tmp_path / "two/metrics.jsonl").read_text().splitlines()
    valid = [row for row in map(json.loads, lines) if row["tag"] == "valid"][-1]
    path = str(tmp_path / "two/checkpoint_last.pt")
    stats = evaluation.validate({"path": path, "distributed_world_size": 1})["valid"]
    assert valid["mcc"] == stats["mcc"] and valid["accuracy"] == stats["accuracy"]
    assert math.isclose(valid["loss"], float(stats["loss"]), abs_tol=2e-3)

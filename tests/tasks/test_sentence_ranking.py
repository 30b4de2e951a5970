"""Sentence ranking: the layout of the data, a whole run, bad input, and the loss by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.criterions.sentence_ranking import SentenceRankingConfig as LossConfig
from fairseq.criterions.sentence_ranking import SentenceRankingCriterion
from fairseq.errors import ConfigError, DataError
from fairseq.tasks.sentence_ranking import SentenceRankingConfig, SentenceRankingTask
from fairseq_cli import preprocess, train

WORDS = "red blue green dog cat house tree".split()
NARROW = "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16".split()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions with three options, of which the one that names the tree is right."""
    draw, folder = random.Random(0), tmp_path / "bin"
    for split, count in (("train", 40), ("valid", 8)):
        texts: list[list[str]] = [[] for _ in range(4)]
        labels = []
        for _ in range(count):
            options = [draw.choice(WORDS[:6]) for _ in range(3)]
            labels.append(draw.randrange(3))
            options[labels[-1]] = "tree house cat"
            for lines, line in zip(texts, [draw.choice(WORDS), *options], strict=True):
                lines.append(f"{line}\n")
        for number, lines in enumerate(texts):
            (folder / f"input{number}").mkdir(parents=True, exist_ok=True)
            (folder / f"input{number}" / f"{split}.txt").write_text("".join(lines))
        (folder / "label").mkdir(exist_ok=True)
        (folder / "label" / f"{split}.label").write_text("".join(f"{x}\n" for x in labels))
    (folder / "words.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
    for number in range(4):
        place = folder / f"input{number}"
        flags = [f"--{split}pref={place / split}.txt" for split in ("train", "valid")]
        flags += ["--only-source", "--srcdict", str(folder / "words.txt"), "--destdir", str(place)]
        assert preprocess.run(flags) == 0
    return folder


def task_of(data: Path, **more: Any) -> SentenceRankingTask:
    settings = {"init_token": 0, "separator_token": 2, "num_classes": 3, **more}
    cfg = SentenceRankingConfig(data=str(data), no_shuffle=True, **settings)
    return SentenceRankingTask.setup_task(cfg)


def text(data: Path, number: int, line: int) -> list[str]:
    return (data / f"input{number}" / "valid.txt").read_text().splitlines()[line].split()


def test_every_option_stands_before_its_sentence(data: Path) -> None:
    task = task_of(data)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    batch = dataset.collater([dataset[number] for number in range(8)])
    index = task.dictionary.index
    for number in (1, 2, 3):
        row_T = batch[f"net_input{number}"]["src_tokens"][5]
        option, question = ([index(w) for w in text(data, n, 5)] for n in (number, 0))
        expected = [0, *option, 2, 2, *question, 2]
        assert row_T[row_T != 1].tolist() == expected
    labels = (data / "label" / "valid.label").read_text().split()
    assert batch["target"].tolist() == [int(label) for label in labels]
    assert batch["nsentences"] == 8
    short = task_of(data, max_option_length=2)
    short.load_dataset("valid")
    shortened = short.dataset("valid")
    assert int(np.max(shortened.sizes[0])) == 2 + 1 + 1 + 1
    # the token in front is one of the two
    first_T = shortened.collater([shortened[5]])["net_input1"]["src_tokens"][0]
    assert first_T.tolist()[:3] == [0, index(text(data, 1, 5)[0]), 2]


def test_a_sample_is_as_long_as_its_longest_option(data: Path) -> None:
    task = task_of(data)
    task.load_dataset("valid")
    widest = [max(len(text(data, n, line)) for n in (1, 2, 3)) for line in range(8)]
    # every line has the right option, of three words, in one place or another
    assert set(widest) == {3} and len({len(text(data, 1, line)) for line in range(8)}) > 1
    dataset = task.dataset("valid")
    batches = [dataset.collater([dataset[line]]) for line in range(8)]
    longest = [max(b[f"net_input{n}"]["src_tokens"].shape[1] for n in (1, 2, 3)) for b in batches]
    assert np.asarray(dataset.sizes[0]).tolist() == longest


def test_it_trains(data: Path, tmp_path: Path) -> None:
    flags = "--task sentence_ranking --criterion sentence_ranking --num-classes 3".split()
    flags += "--init-token 0 --separator-token 2 --arch roberta --optimizer adam --lr 0.01".split()
    flags += "--batch-size 8 --max-update 40 --cpu --log-format none --max-positions 32".split()
    flags += ["--encoder-attention-heads", "2", "--num-workers", "0", "--log-interval", "1"]
    out = tmp_path / "run"
    answers = ["--save-predictions", str(tmp_path / "answers.txt")]
    assert train.run([str(data), "--save-dir", str(out), *flags, *NARROW, *answers]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    valid = [row for row in rows if row.get("tag") == "valid"]
    assert float(valid[-1]["accuracy"]) >= 75 > 100 / 3
    assert float(valid[-1]["loss"]) < float(valid[0]["loss"])
    lines = (tmp_path / "answers.txt").read_text().splitlines()
    assert len(lines) == 8 * len(valid) and all(len(line.split("\t")) == 3 for line in lines)


def test_bad_input(data: Path) -> None:
    with pytest.raises(ConfigError, match="--num-classes is -1"):
        task_of(data, num_classes=-1)
    with pytest.raises(FileNotFoundError, match="Dataset not found: valid .*input4"):
        task_of(data, num_classes=4).load_dataset("valid")
    labels = data / "label" / "valid.label"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(["3", *lines[1:]]))
    with pytest.raises(DataError, match=r"line 1: expected 0 to 2, found '3'"):
        task_of(data).load_dataset("valid")
    labels.write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="has 7 lines, but there are 8 sentences"):
        task_of(data).load_dataset("valid")
    labels.unlink()
    task = task_of(data)
    task.load_dataset("valid")
    assert "target" not in task.dataset("valid").defn


def test_the_loss_by_hand() -> None:
    scores_BK = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 1.0]])

    class Scorer(torch.nn.Module):
        classification_heads = {"sentence_classification_head": None}

        def forward(self, column: int, classification_head_name: str) -> tuple[torch.Tensor, None]:
            return scores_BK[:, column : column + 1], None

    task = SimpleNamespace(cfg=SimpleNamespace(num_classes=3))
    criterion = SentenceRankingCriterion(LossConfig(), task)
    sample = {f"net_input{k + 1}": {"column": k} for k in range(3)}
    sample |= {"target": torch.tensor([1, 2]), "ntokens": 9, "id": torch.tensor([0, 1])}
    loss, size, log = criterion(Scorer(), sample)
    expected = scores_BK.logsumexp(1).sum() - scores_BK[0, 1] - scores_BK[1, 2]
    torch.testing.assert_close(loss, expected)
    assert (size, int(log["ncorrect"]), log["nsentences"]) == (2, 1, 2)
    with pytest.raises(ConfigError, match="needs the classification head"):
        criterion(torch.nn.Linear(1, 1), sample)
    with pytest.raises(ConfigError, match="no labels"):
        criterion(Scorer(), {k: v for k, v in sample.items() if k != "target"})

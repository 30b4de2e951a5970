"""A corpus of a causal model: reproducible, and its truth that of all sentences written out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError
from fairseq.hub.corpus import _words
from fairseq.hub.load import load_causal_models
from fairseq_cli import generate, train
from tests import tiny_run

LM = (
    "--task language_modeling --criterion cross_entropy --arch transformer_lm --decoder-layers 1 "
    "--decoder-embed-dim 16 --decoder-input-dim 16 --decoder-output-dim 16 "
    "--decoder-ffn-embed-dim 16 --decoder-attention-heads 2 --tokens-per-sample 16 --optimizer "
    "adam --lr 0.03 --batch-size 4 --max-update 12 --num-workers 0 --device cpu --log-format none"
).split()
LENGTH, WORDS = 3, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("corpus_lm")
    data = str(tiny_run.make_corpus(folder / "data-bin"))
    assert train.run([data, *LM, "--save-dir", str(folder / "run")]) == 0
    return data, str(folder / "run" / "checkpoint_last.pt")


def draw(model: tuple[str, str], out: Path, count: int, *more: str) -> dict[str, bytes]:
    words = [model[0], "--path", model[1], "--device", "cpu", "--corpus", str(count)]
    words += [
        "--corpus-out",
        str(out),
        "--corpus-words",
        str(WORDS),
        "--corpus-length",
        str(LENGTH),
    ]
    assert generate.run([*words, *more]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def sentence_probabilities(model: tuple[str, str], terminals: list[str]) -> dict[Any, float]:
    """Every sentence of these words, one forward pass each, nothing batched or restricted."""
    models, _, task = load_causal_models({"path": model[1], "data": model[0], "device": "cpu"})
    dictionary = task.source_dictionary
    ids = [dictionary.index(word) for word in terminals]
    found = {}
    for length in range(LENGTH + 1):
        for words in itertools.product(range(WORDS), repeat=length):
            p, tokens = 1.0, [dictionary.eos()]
            for place in range(length + 1):
                with torch.no_grad():
                    logits = models[0].eval()(torch.tensor([tokens]))[0][0, -1].double()
                share = torch.softmax(logits[[*ids, dictionary.eos()]], 0)
                if place < length:
                    p *= float(share[words[place]])
                    tokens.append(ids[words[place]])
                elif length < LENGTH:
                    p *= float(share[-1])
            found[words] = p
    return found


def test_the_truth_is_that_of_every_sentence_written_out(
    model: tuple[str, str], tmp_path: Path
) -> None:
    draw(model, tmp_path / "c", 2000, "--corpus-scored", "40")
    lines = (tmp_path / "c/train.txt").read_text().splitlines()
    file = np.load(tmp_path / "c/next.npz")
    terminals = file["terminals"].tolist()
    table = sentence_probabilities(model, terminals)
    assert sum(table.values()) == pytest.approx(1)
    place = {word: number for number, word in enumerate(terminals)}
    sentences = [tuple(place[word] for word in line.split()) for line in lines]
    assert len(sentences) == 2000 and all(1 <= len(words) <= LENGTH for words in sentences)
    for number in range(40):
        own = slice(file["offset"][number], file["offset"][number + 1])
        assert own.stop - own.start == len(sentences[number]) + 1
        assert file["logp"][own].sum() == pytest.approx(np.log(table[sentences[number]]), abs=1e-5)
    masked = np.load(tmp_path / "c/masked.npz")
    row = 0
    for words in sentences[:40]:
        for position in range(len(words)):
            tried = [table[(*words[:position], w, *words[position + 1 :])] for w in range(WORDS)]
            np.testing.assert_allclose(
                np.exp(masked["logq"][row]), np.array(tried) / sum(tried), rtol=1e-4
            )
            row += 1
    assert row == len(masked["logq"])
    # drawn as often as likely, given that there is a word at all
    for words, p in sorted(table.items(), key=lambda item: -item[1])[:6]:
        share = p / (1 - table[()])
        if words:
            assert abs(sentences.count(words) - 2000 * share) < 5 * np.sqrt(2000 * share)


def test_one_seed_gives_the_same_bytes(model: tuple[str, str], tmp_path: Path) -> None:
    first = draw(model, tmp_path / "a", 30, "--corpus-scored", "5", "--seed", "4")
    assert first == draw(model, tmp_path / "b", 30, "--corpus-scored", "5", "--seed", "4")
    assert set(first) == {"train.txt", "dict.txt", "next.npz", "masked.npz"}
    other = draw(model, tmp_path / "c", 30, "--seed", "5")
    assert other["train.txt"] != first["train.txt"]
    longer = draw(model, tmp_path / "d", 300, "--seed", "4")
    assert longer["train.txt"].startswith(first["train.txt"])


def test_a_folder_of_hugging_face_draws_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    from tests.export.test_export_causal import byte_level, their_model

    folder = tmp_path / "gpt2"
    their_model("gpt2", byte_level_size(byte_level, folder)).save_pretrained(folder)
    assert transformers
    words = ["--path", str(folder), "--device", "cpu", "--corpus", "5", "--corpus-words", "6"]
    words += ["--corpus-length", "4", "--corpus-scored", "2", "--corpus-out", str(tmp_path / "c")]
    assert generate.run([str(tmp_path), *words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sentences"] == 5 and record["vocabulary"] == 6
    assert len((tmp_path / "c/train.txt").read_text().splitlines()) == 5


def byte_level_size(write: Any, folder: Path) -> int:
    folder.mkdir()
    size: int = write(folder, {"<|endoftext|>": 7}, 8)
    return size


def test_marks_of_imported_models_are_no_words() -> None:
    pieces = ["<unk>", "the", "</s>", "cat", "<pad>", "<s>", "sees", "madeupword0000"]
    roles = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    assert _words(Dictionary.foreign(pieces, **roles), None) == [1, 3, 6]


def test_what_does_not_fit_is_refused(model: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--corpus-out"):
        generate.run([model[0], "--path", model[1], "--corpus", "3"])
    with pytest.raises(ConfigError, match="the dictionary has"):
        draw(model, tmp_path / "c", 3, "--corpus-words", "999")
    with pytest.raises(ConfigError, match="the model sees 16"):
        draw(model, tmp_path / "c", 3, "--corpus-length", "99")
    assert not (tmp_path / "c").exists()

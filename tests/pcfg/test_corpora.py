"""Samples, score files, labels: laws, bytes, layouts, and the seed's figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from brute import conditionals

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.pcfg.downstream import Labeller
from fairseq.pcfg.grammar import Grammar, read_grammar
from fairseq.pcfg.hdf5 import read_masked_samples
from fairseq.pcfg.random_sources import random_hmm
from fairseq.pcfg.sample import write_samples
from fairseq.pcfg.score import means, score, write_scores
from fairseq.pcfg.source import GrammarSource, load_source, read_sentences
from fairseq.rng import philox
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq_cli import pcfg


def seed_source(shared: Path) -> GrammarSource:
    return GrammarSource(read_grammar(shared / "data" / "pcfg" / "rule_deep_mlm.txt"))


def test_sampled_sentences_follow_the_law(toy: Grammar) -> None:
    source = GrammarSource(toy)
    count = 20_000
    drawn = source.draw(philox(3, "test"), count, 9).split()
    seen = Counter(tuple(words.tolist()) for words in drawn)
    chi = cells = 0.0
    left_over, left_seen = 1.0, count
    for words, times in seen.items():
        p = float(np.exp(source.logprob(np.array([words]))[0]))
        if p * count >= 5:
            chi, cells = chi + (times - p * count) ** 2 / (p * count), cells + 1
            left_over, left_seen = left_over - p, left_seen - times
    chi += (left_seen - left_over * count) ** 2 / max(left_over * count, 1)
    assert abs(chi - cells) < 4 * np.sqrt(2 * cells)  # mean and variance of chi-square


def test_long_sentences_are_left_out_and_grammars_that_never_end_are_survived() -> None:
    rules = [("S", ("S", "S"), 0.7), ("S", ("a",), 0.3)]
    source = GrammarSource(Grammar.from_rules(rules))
    sentences = source.draw(philox(1, "test"), 5000, 4).split()
    law_W = source.grammar.length_law(4)[0]
    counts = np.bincount([len(words) for words in sentences], minlength=5)
    np.testing.assert_allclose(counts, 5000 * law_W, atol=4 * np.sqrt(5000 * 0.3))


def test_corpora_are_the_same_for_any_number_of_processes(toy_file: Path, tmp_path: Path) -> None:
    common = ["--num", "40000", "--valid", "100", "--test", "0", "--seed", "5", "--json"]
    for workers in ("1", "3"):
        assert pcfg.main(["sample", str(toy_file), str(tmp_path / workers), *common,
                          "--workers", workers]) == 0  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == ["dict.txt", "train.txt", "valid.txt"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
    lines = (tmp_path / "1" / "train.txt").read_text().splitlines()
    dictionary = Dictionary.load(str(tmp_path / "1" / "dict.txt"))
    words = Counter(" ".join(lines).split())
    assert len(lines) == 40_000 and len(lines) != len(set(lines))
    assert {w: dictionary.count[dictionary.index(w)] for w in words} == words
    pcfg.main(["sample", str(toy_file), str(tmp_path / "s"), "--num", "5", "--shards", "2",
               "--valid", "0", "--test", "0", "--blank-lines"])  # fmt: skip
    assert pcfg.main(["sample", str(toy_file), str(tmp_path / "b"), *common[4:], "--valid", "3",
                      "--num", "20", "--binarize", str(tmp_path / "bin")]) == 0  # fmt: skip
    assert (tmp_path / "bin" / "dict.txt").is_file()
    assert {p.name for p in (tmp_path / "bin").glob("*.idx")} == {"train.idx", "valid.idx"}
    first = (tmp_path / "s" / "train0.txt").read_text()
    assert first.count("\n\n") == 5 and first != (tmp_path / "s" / "train1.txt").read_text()


def test_shards_are_binarized_as_training_reads_them(
    toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(toy_file), str(tmp_path / "s"), "--num", "9", "--shards", "2", "--json"]
    words += ["--valid", "3", "--test", "0", "--binarize", str(tmp_path / "bin")]
    assert pcfg.main(words) == 0
    data = f"{tmp_path / 'bin0'}:{tmp_path / 'bin1'}"
    assert f'"data": "{data}"' in capsys.readouterr().out
    task = LanguageModelingTask.setup_task(LanguageModelingConfig(data=data))
    task.load_dataset("valid")
    lines = [Path(tmp_path / "s" / f"train{shard}.txt").read_text().split() for shard in (0, 1)]
    for epoch, text in enumerate(lines, start=1):
        task.load_dataset("train", epoch=epoch)
        assert int(task.dataset("train").sizes.sum()) == len(text) + 9


@pytest.mark.parametrize("command", ["sample", "downstream"])
@pytest.mark.parametrize("name", ["dict.txt", "train"])
def test_texts_of_something_else_are_not_replaced(
    name: str, command: str, toy_file: Path, tmp_path: Path
) -> None:
    own = {"sample": "train.txt", "downstream": "train.input0"}[command]
    words = ["--num", "3", "--valid", "0", *(["--test", "0"] if command == "sample" else
             ["--min-len", "1", "--drop-unparsable"])]  # fmt: skip
    for _ in range(2):  # what the command itself wrote is replaced
        assert pcfg.main([command, str(toy_file), str(tmp_path / "own"), *words]) == 0
    other = tmp_path / "other" / (own if name == "train" else name)
    other.parent.mkdir()
    other.write_text("the cat 5\nsat 2\n")
    with pytest.raises(DataError, match="is no text of this source: it holds 'the'"):
        pcfg.main([command, str(toy_file), str(other.parent), *words])
    assert [path.name for path in other.parent.iterdir()] == [other.name]
    assert other.read_text() == "the cat 5\nsat 2\n"


def test_a_killed_run_leaves_no_file_under_a_final_name(toy_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fairseq_cli.pcfg", "sample", str(toy_file),
               str(tmp_path / "out"), "--num", "100000000"]  # fmt: skip
    process = subprocess.Popen(command)
    for _ in range(600):
        if list(tmp_path.glob("out/.train*")):
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    hidden = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(hidden) == 1 and hidden[0].startswith(".train.txt")


def test_hopeless_lengths_are_refused(toy: Grammar, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="raise --max-len"):
        write_samples(GrammarSource(toy), tmp_path, {"train": 10}, longest=1)
    with pytest.raises(ConfigError, match="--max-len"):
        write_samples(GrammarSource(toy), tmp_path, {"train": 10}, longest=0)
    assert not list(tmp_path.glob("*.txt"))


def test_a_score_file_has_the_stated_layout(toy_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("a b\nc c d d\n\n  b   b \na a\n")
    for name in ("1.npz", "2.npz"):
        assert pcfg.main(["score", str(toy_file), str(text), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    grammar = read_grammar(toy_file)
    with np.load(tmp_path / "1.npz") as found:
        assert found["offset"].tolist() == [0, 2, 6, 8, 10] and found["offset"].dtype == np.int64
        assert found["position"].tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 0, 1]
        types = {name: found[name].dtype for name in ("position", "target", "logq", "entropy")}
        assert list(types.values()) == [np.int16, np.int16, np.float32, np.float32]
        assert found["terminals"].tolist() == ["a", "b", "c", "d", "e", "f"]
        assert found["terminals"][found["target"]].tolist() == "a b c c d d b b a a".split()
        assert np.isneginf(found["logp_sentence"]).tolist() == [False, False, False, True]
        for row in range(6):
            sentence = (2, 2, 3, 3) if row >= 2 else (0, 1)
            expected = conditionals(grammar, sentence, int(found["position"][row]))
            np.testing.assert_allclose(np.exp(found["logq"][row]), expected, rtol=1e-6)
            entropy = -(expected * np.log(expected, where=expected > 0, out=expected * 0)).sum()
            assert found["entropy"][row] == pytest.approx(entropy, rel=1e-6, abs=1e-7)
        assert len(str(found["grammar_sha256"])) == 64


def test_score_files_do_not_depend_on_how_much_is_in_memory(
    toy: Grammar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = GrammarSource(toy)
    sentences = source.draw(philox(1, "test"), 50, 9).split()
    for masks in ("single", "random:2"):
        whole = write_scores(tmp_path / "1", source, sentences, masks)
        monkeypatch.setattr("fairseq.pcfg.score.CHUNK", 7 * 4 * 6)
        write_scores(tmp_path / "2", source, sentences, masks)
        monkeypatch.undo()
        with np.load(tmp_path / "1") as one, np.load(tmp_path / "2") as two:
            assert one.files == two.files and one["logq"].shape == (whole.offset[-1], 6)
            for name in set(one.files) - {"terminals", "grammar_sha256"}:
                np.testing.assert_allclose(one[name], two[name], rtol=1e-6)
        assert whole.optimum() == pytest.approx(score(source, sentences, masks).optimum())


def test_texts_that_cannot_be_scored_are_refused(toy_file: Path, tmp_path: Path) -> None:
    source, text = load_source(toy_file), tmp_path / "t.txt"
    text.write_text("a b\na x b\n")
    with pytest.raises(DataError, match=r"t.txt, line 2: 'x' is no word"):
        read_sentences(text, source.terminals)
    text.write_text("\n")
    with pytest.raises(DataError, match="no sentence"):
        read_sentences(text, source.terminals)
    with pytest.raises(ConfigError, match="random:k"):
        score(source, [np.zeros(2, dtype=np.int64)], "double")


@pytest.mark.parametrize("kind", ["grammar", "hmm"])
def test_the_truth_is_calibrated(toy: Grammar, kind: str) -> None:
    mixture = random_hmm(2, states=4, vocab=7, components=3, lengths=(2, 6))
    source = GrammarSource(toy) if kind == "grammar" else mixture
    sentences = source.draw(philox(7, "test"), 4000, 9).split()
    for masks in ("single", "random:2"):
        found = score(source, sentences, masks).optimum()
        for mean in ("macro", "micro"):
            error = 4 * found[f"nll_{mean}_se"]
            assert abs(found[f"optimum_{mean}"] - found[f"nll_{mean}"]) < error


def test_the_optimum_of_the_seed_grammar(shared: Path) -> None:
    source = seed_source(shared)
    sentences = source.draw(philox(1, "test"), 6000, 32).split()
    found = score(source, sentences).optimum()
    assert abs(found["optimum_macro"] - 4.185) < 3 * np.hypot(found["optimum_macro_se"], 0.003)
    error = 3 * found["optimum_micro_se"]
    assert 4.457 - error < found["optimum_micro"] < 4.475 + error


def test_labels_of_the_seed_grammar(shared: Path) -> None:
    source = seed_source(shared)
    drawn = source.draw(philox(2, "test"), 5000, 32).split()
    sentences = [words for words in drawn if len(words) > 4]
    majority = {"A": 0.205, "B": 0.206, "C": 0.137}
    for task, share in majority.items():
        labeller = Labeller(source, task)
        labels = labeller.labels(sentences)
        assert (labels >= 0).all() and len(labeller.names) == (9 if task == "A" else 49)
        assert np.bincount(labels).max() / len(labels) == pytest.approx(share, abs=0.02)
        assert set(labeller.csv_numbers) <= set(range(50))
    prefix = {"B": 4, "C": 2}
    for task, width in prefix.items():  # what follows does not matter
        changed = [np.concatenate([words[:width], words[:0:-1]]) for words in sentences[:50]]
        labeller = Labeller(source, task)
        assert (labeller.labels(changed) == labeller.labels(sentences[:50])).all()
    prior = Labeller(source, "A", "map").labels(sentences)
    assert np.mean(prior != Labeller(source, "A").labels(sentences)) == pytest.approx(
        0.525, abs=0.03
    )


def test_downstream_files(toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["downstream", str(toy_file), "--task", "C", "--num", "300", "--valid", "20",
               "--min-len", "3", "--json"]  # fmt: skip
    with pytest.raises(DataError, match="--drop-unparsable"):
        pcfg.main([*command[:2], str(tmp_path / "x"), *command[2:]])
    for name in ("1", "2"):
        pcfg.main([*command[:2], str(tmp_path / name), *command[2:], "--drop-unparsable"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()
    inputs = (tmp_path / "1" / "train.input0").read_text().splitlines()
    labels = (tmp_path / "1" / "train.label").read_text().splitlines()
    rows = (tmp_path / "1" / "train.csv").read_text().splitlines()
    grammar = read_grammar(toy_file)
    assert rows[0] == "text,label" and len(rows) - 1 == len(inputs) == len(labels) < 300
    for line, label, row in zip(inputs, labels, rows[1:], strict=True):
        assert row == f"{line},{grammar.nonterminals.index(label)}"
    written = len((tmp_path / "1" / "valid.input0").read_text().splitlines())
    assert summary["sizes"] == {"train": len(inputs), "valid": written}
    assert summary["dropped"] == 320 - len(inputs) - written > 0
    names = Dictionary.load(str(tmp_path / "1" / "label.dict.txt"))
    assert names.symbols[names.nspecial :][:6] == ["A", "B", "C", "D", "S1", "S2"]


KILLED = """\
import os, signal, sys
import fairseq.files.io as io
from fairseq_cli import pcfg
left, put = int(sys.argv[1]), io.put_in_place
def put_or_die(handle, path):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    put(handle, path)
io.put_in_place = put_or_die
pcfg.main(sys.argv[2:])
"""


def test_labelled_sentences_of_a_killed_run(toy_file: Path, tmp_path: Path) -> None:
    """Killed before the first file has its name, and in the middle: then the same command works."""
    settings = ["--task", "C", "--num", "300", "--valid", "20", "--min-len", "3",
                "--drop-unparsable", "--seed", "3"]  # fmt: skip

    def command(folder: str) -> list[str]:
        return ["downstream", str(toy_file), str(tmp_path / folder), *settings]

    assert pcfg.main(command("whole")) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(whole) == 8
    for done in (0, 4):
        folder = tmp_path / str(done)
        child = [sys.executable, "-c", KILLED, str(done), *command(str(done))]
        assert subprocess.run(child).returncode == -signal.SIGKILL
        final = [path for path in folder.iterdir() if not path.name.startswith(".")]
        assert len(final) == done and len(list(folder.iterdir())) > done
        assert all(path.read_bytes() == whole[path.name] for path in final)
        assert pcfg.main(command(str(done))) == 0
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_tasks_that_a_grammar_does_not_have() -> None:
    source = GrammarSource(Grammar.from_rules([("S", ("S", "S"), 0.2), ("S", ("a",), 0.8)]))
    with pytest.raises(ConfigError, match="asks for roots"):
        Labeller(source, "A")
    with pytest.raises(ConfigError, match="empty span"):
        Labeller(source, "span:2:2")
    with pytest.raises(ConfigError, match="choose A, B, C"):
        Labeller(source, "D")
    assert Labeller(source, "span:0:2").labels([np.zeros(2, dtype=np.int64)]).tolist() == [0]


def test_errors_of_ratios() -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(1, 9, (2000, 50))
    total = count * 2.0 + rng.normal(size=count.shape)
    found = np.array([means(t, c) for t, c in zip(total, count, strict=True)])
    # the stated errors are the spread of the means
    np.testing.assert_allclose(found[:, 1].mean(), found[:, 0].std(), rtol=0.08)
    np.testing.assert_allclose(found[:, 3].mean(), found[:, 2].std(), rtol=0.08)


def test_hidden_markov_files(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    pcfg.main(["grammar", "--kind", "hmm", "--states", "3", "--vocab", "4", "--components", "2",
               "--lengths", "2", "3", "--out", str(path)])  # fmt: skip
    source = load_source(path)
    every = [
        np.array([[a, b, c][:n]]) for n in (2, 3) for a in range(4) for b in range(4)
        for c in range(4 if n == 3 else 1)
    ]  # fmt: skip
    table = {(*words[0].tolist(),): np.exp(source.logprob(words)[0]) for words in every}
    assert sum(table.values()) == pytest.approx(1)
    q_BNT, _ = source.conditionals(np.array([[1, 2, 3]]))
    for i in range(3):
        words = [[1, 2, 3][:i] + [w] + [1, 2, 3][i + 1 :] for w in range(4)]
        expected = np.array([table[(*w,)] for w in words])
        np.testing.assert_allclose(q_BNT[0, i], expected / expected.sum(), rtol=1e-10)
    path.write_text(path.read_text().replace('"weight": 0.5', '"weight": 0.9', 1))
    with pytest.raises(DataError, match="sum to 1"):
        load_source(path)
    path.write_text("{")
    with pytest.raises(DataError, match="no hidden-Markov model"):
        load_source(path)


def test_flags_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--states does not belong to --kind tree"):
        pcfg.main(["grammar", "--kind", "tree", "--states", "3", "--out", str(tmp_path / "x")])
    assert not list(tmp_path.iterdir())


def test_reference_folders(shared: Path, capsys: pytest.CaptureFixture) -> None:
    from tests.references import pcfg as references

    for file in ("toy_level.json", "toy_rec.json", "a/toyA_3rules.json"):
        assert references.check_file(shared / "compat" / "pcfg" / file), file
    assert "not compared" not in capsys.readouterr().out


def test_a_wrong_reference_is_found(shared: Path, tmp_path: Path) -> None:
    from tests.references import pcfg as references

    folder = shared / "compat" / "pcfg"
    (tmp_path / "toy_rec.rules").write_bytes((folder / "toy_rec.rules").read_bytes())
    record = json.loads((folder / "toy_rec.json").read_text())
    record["masked"][0]["marginals"][0][0] += 1e-6
    (tmp_path / "toy_rec.json").write_text(json.dumps(record))
    assert references.check(tmp_path) == 1
    (tmp_path / "toy_rec.json").write_text('{"what": "this"}')
    assert references.check(tmp_path) == 1


def test_masked_samples_in_hdf5(toy_file: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="reading HDF5 needs h5py")
    vocabulary, path, out = tmp_path / "vocab.txt", tmp_path / "s.hdf5", tmp_path / "o.npz"
    vocabulary.write_text("\n".join(["[PAD]", "x", "[CLS]", "[SEP]", "[MASK]", *"fedcba"]) + "\n")
    with h5py.File(path, "w") as handle:  # a b; c c d d
        handle["input_ids"] = np.array([[2, 4, 9, 3, 0, 0], [2, 8, 4, 5, 4, 3]], dtype="i4")
        handle["masked_lm_positions"] = np.array([[1, 0, 0], [2, 3, 4]], dtype="i4")
        handle["masked_lm_ids"] = np.array([[10, 0, 0], [8, 7, 7]], dtype="i4")
    command = ["score", str(toy_file), str(path), "--vocab-file", str(vocabulary)]
    assert pcfg.main([*command, "--out", str(out)]) == 0
    source = load_source(toy_file)
    with np.load(out) as found:
        assert found["offset"].tolist() == [0, 1, 4]
        assert found["position"].tolist() == [0, 1, 2, 3]
        assert found["terminals"][found["target"]].tolist() == ["a", "c", "d", "d"]
        q_BNT, _ = source.conditionals(np.array([[2, -1, -1, -1]]))
        np.testing.assert_allclose(np.exp(found["logq"][1:]), q_BNT[0, 1:], rtol=1e-6)
        np.testing.assert_allclose(
            found["logp_sentence"][1], source.logprob(np.array([[2, 2, 3, 3]]))[0]
        )
    vocabulary.write_text("[PAD]\nx\n[CLS]\n[SEP]\n[MASK]\nz\nz\nz\nz\nz\nz\n")
    with pytest.raises(DataError, match="sample 0: 'z' is no word"):
        pcfg.main([*command, "--out", str(out)])
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="no HDF5 file"):
        pcfg.main([*command, "--out", str(out)])


def test_masked_samples_are_written_as_they_are_read(toy_file: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="writing HDF5 needs h5py")
    vocabulary, text, out = tmp_path / "vocab.txt", tmp_path / "t.txt", tmp_path / "out"
    special = ["[PAD]", "x", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*special, *"fedcba", "y"]) + "\n")
    source = load_source(toy_file)
    sentences = source.draw(philox(1, "test"), 600, 9).split()
    sentences = [words for words in sentences if len(words)]
    lines = [" ".join(source.terminals[word] for word in words) for words in sentences]
    text.write_text("\n".join(lines) + "\n")
    command = ["mask", str(toy_file), str(text), "--vocab-file", str(vocabulary), "--dup-factor",
               "2", "--max-predictions-per-seq", "2", "--max-seq-length", "12", "--masked-lm-prob",
               "0.4"]  # fmt: skip
    assert pcfg.main([*command, "--out", str(out)]) == 0
    shards = sorted(path.name for path in out.iterdir())
    assert shards == ["train_shard_0.hdf5", "train_shard_1.hdf5"]
    positions, changed = [], Counter()
    for name in shards:
        found, hidden = read_masked_samples(out / name, vocabulary, source.terminals)
        assert [words.tolist() for words in found] == [words.tolist() for words in sentences]
        counts = [min(2, len(words), max(1, round(0.4 * (len(words) + 2)))) for words in found]
        assert [len(part) for part in hidden] == counts
        positions.append(np.concatenate(hidden).tolist())
        with h5py.File(out / name) as handle:
            kinds = {key: (str(value.dtype), value.shape) for key, value in handle.items()}
            ids, places = handle["input_ids"][:], handle["masked_lm_positions"][:]
            now = np.take_along_axis(ids, places, 1)[places > 0]
            was = handle["masked_lm_ids"][:][places > 0]
            changed.update(["mask" if a == 4 else "same" if a == b else "other"
                            for a, b in zip(now.tolist(), was.tolist(), strict=True)])  # fmt: skip
        rows = len(sentences)
        assert kinds == {
            "input_ids": ("int32", (rows, 12)), "input_mask": ("int8", (rows, 12)),
            "segment_ids": ("int8", (rows, 12)), "masked_lm_positions": ("int32", (rows, 2)),
            "masked_lm_ids": ("int32", (rows, 2)),
        }  # fmt: skip
    assert positions[0] != positions[1]
    total = sum(changed.values())
    # a random piece is one of twelve: now and then the mask or the word itself
    for kind, share in (("mask", 0.8 + 0.1 / 12), ("same", 0.1 + 0.1 / 12)):
        assert abs(changed[kind] - share * total) < 4 * np.sqrt(total * share * (1 - share))
    pcfg.main([*command, "--out", str(tmp_path / "again")])
    for name in shards:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(ConfigError, match="--max-seq-length 4"):
        pcfg.main([*command, "--out", str(out), "--max-seq-length", "4"])
    vocabulary.write_text("\n".join(special) + "\n")
    with pytest.raises(DataError, match="has no"):
        pcfg.main([*command, "--out", str(out)])

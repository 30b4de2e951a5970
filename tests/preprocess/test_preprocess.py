"""fairseq-preprocess: byte for byte the original's outputs, whole or not at all."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import (
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
    infer_dataset_impl,
    make_dataset,
)
from fairseq.data.storage.manifest import read_manifest, verify_manifest
from fairseq.errors import ConfigError, DataError, MissingFileError, UnsupportedError
from fairseq.files import io, text_blocks
from fairseq.preprocess import preprocess

ROOT = Path(text_blocks.__file__).resolve().parents[2]
CHILD = {**os.environ, "PYTHONPATH": str(ROOT)}


def config(destdir, **changes) -> SimpleNamespace:
    defaults = {
        "source_lang": None,
        "target_lang": None,
        "trainpref": None,
        "validpref": None,
        "testpref": None,
        "align_suffix": None,
        "destdir": str(destdir),
        "thresholdsrc": 0,
        "thresholdtgt": 0,
        "srcdict": None,
        "tgtdict": None,
        "nwordssrc": -1,
        "nwordstgt": -1,
        "alignfile": None,
        "dataset_impl": "mmap",
        "joined_dictionary": False,
        "only_source": True,
        "padding_factor": 8,
        "workers": 1,
        "dict_only": False,
        "byte_level_tokenizer": None,
    }
    assert changes.keys() <= defaults.keys()
    return SimpleNamespace(**{**defaults, **changes})


THREE = {
    "trainpref": "input/train.txt",
    "validpref": "input/valid.txt",
    "testpref": "input/test.txt",
}
TWO = {"trainpref": "input/valid.txt", "validpref": "input/test.txt", "nwordssrc": 1000}
GOLDEN = {
    "default_w1": THREE,
    "default_w4": {**THREE, "workers": 4},
    "thr3_w1": {**THREE, "thresholdsrc": 3},
    "nwords1000_w1": {**THREE, "nwordssrc": 1000},
    "nwords1000_w4": {**THREE, "nwordssrc": 1000, "workers": 4},
    "nwords1000_pad1_w1": {**THREE, "nwordssrc": 1000, "padding_factor": 1},
    "lazy_w1": {**TWO, "dataset_impl": "lazy"},
    "cached_w4": {**TWO, "dataset_impl": "cached", "workers": 4},
    "raw_w1": {**TWO, "dataset_impl": "raw"},
    "srcdict_w1": {"trainpref": "input/valid.txt", "srcdict": "out/nwords1000_w1/dict.txt"},
    "dictonly": {**THREE, "nwordssrc": 300, "dict_only": True},
    "edge_w1": {"trainpref": "input/edge.txt"},
    "edge_w3": {"trainpref": "input/edge.txt", "workers": 3},
    "pair_w1": {
        "only_source": False,
        "source_lang": "en",
        "target_lang": "xx",
        "trainpref": "input/pair",
        "nwordssrc": 400,
        "nwordstgt": 300,
    },
}
OURS = {"preprocess.log", "manifest.json"}


def golden_digests(shared: Path, name: str) -> dict[str, str]:
    rows = (shared / "compat/preprocess/sha256sums.txt").read_text().splitlines()
    found = [row.split("  ./") for row in rows]
    digests = {p.removeprefix(f"{name}/"): d for d, p in found if p.startswith(f"{name}/")}
    assert digests
    return digests


def digests_in(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name not in OURS
    }


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that even little files are cut and shared out to processes."""
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 1500)


@pytest.fixture
def in_compat(shared, monkeypatch) -> Path:
    monkeypatch.chdir(shared / "compat/preprocess")
    return shared


@pytest.mark.parametrize("name", GOLDEN)
def test_files_are_the_originals(name, in_compat, tmp_path):
    preprocess(config(tmp_path, **GOLDEN[name]))
    assert digests_in(tmp_path) == golden_digests(in_compat, name)
    assert verify_manifest(tmp_path, digests=True) is not None


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_workers_and_blocks_do_not_change_a_byte(workers, in_compat, tmp_path, small_blocks):
    preprocess(config(tmp_path, **{**THREE, "nwordssrc": 1000, "workers": workers}))
    assert digests_in(tmp_path) == golden_digests(in_compat, "nwords1000_w1")


@pytest.mark.parametrize("block", [1, 7, 50])
def test_edge_cases_survive_any_block_size(block, in_compat, tmp_path, monkeypatch):
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", block)
    preprocess(config(tmp_path, trainpref="input/edge.txt"))
    assert digests_in(tmp_path) == golden_digests(in_compat, "edge_w1")


def test_spawned_workers(in_compat, tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(text_blocks.sys, "platform", "darwin")
    preprocess(config(tmp_path, **{**TWO, "dataset_impl": "lazy", "workers": 2}))
    assert digests_in(tmp_path) == golden_digests(in_compat, "lazy_w1")


def test_dictionary_beyond_two_bytes(shared, tmp_path):
    text = tmp_path / "big_vocab.txt"
    words = [f"w{i}" for i in range(70000)]
    text.write_text("".join(" ".join(words[i : i + 35]) + "\n" for i in range(0, 70000, 35)))
    preprocess(config(tmp_path / "out", trainpref=str(text)))
    assert digests_in(tmp_path / "out") == golden_digests(shared, "bigvocab_w1")
    stored = shared / "compat/preprocess/out/bigvocab_w1/train.bin.gz"
    assert (tmp_path / "out/train.bin").read_bytes() == gzip.decompress(stored.read_bytes())


def test_original_files_are_read(in_compat):
    out = in_compat / "compat/preprocess/out"
    dictionary = Dictionary.load(out / "lazy_w1/dict.txt")
    lines = (in_compat / "compat/preprocess/input/valid.txt").read_text().splitlines()
    expected = [
        [dictionary.index(word) for word in line.split()] + [dictionary.eos()] for line in lines
    ]
    same_text = {"lazy_w1/train": "lazy", "cached_w4/train": "cached", "srcdict_w1/train": "mmap"}
    for prefix, impl in [*same_text.items(), ("raw_w1/train.None-None", "raw")]:
        path = out / prefix
        assert infer_dataset_impl(path) == ("cached" if impl == "lazy" else impl)
        own = Dictionary.load(path.parent / "dict.txt")
        dataset = make_dataset(path, impl, fix_lua_indexing=True, dictionary=own)
        assert dataset is not None
        if own == dictionary:
            assert [item.tolist() for item in dataset] == expected
        words = own.string(dataset[0]).split()
        known = [word if word in own else own.unk_word for word in lines[0].split()]
        assert words == known
        assert dataset.sizes.tolist() == [len(item) for item in expected]


def test_log_lines(in_compat, tmp_path):
    args = config(tmp_path, **TWO)
    preprocess(args)
    lines = (tmp_path / "preprocess.log").read_text().splitlines()
    data = MMapIndexedDataset(tmp_path / "train")
    share = 100 * int((data.flat == 3).sum()) / len(data.flat)
    stated = {**TWO, "destdir": str(tmp_path), "only_source": True}
    call = ast.parse(lines[0], mode="eval").body
    assert isinstance(call, ast.Call) and ast.unparse(call.func) == "Namespace"
    told = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert {name: told[name] for name in stated} == stated
    # what nobody stated stands there, too, under the original's names and with its defaults
    defaults = {"workers": 1, "padding_factor": 8, "srcdict": None, "dataset_impl": "mmap"}
    assert {name: told[name] for name in defaults} == defaults and "_name" not in told
    assert lines[1] == "Dictionary: 1000 types"
    assert lines[2] == (
        f"input/valid.txt: {len(data)} sents, {len(data.flat)} tokens, "
        f"{share:.3}% replaced (by <unk>)"
    )
    assert lines[3] == "Dictionary: 1000 types"
    assert lines[-1] == f"Wrote preprocessed data to {tmp_path}"
    (tmp_path / "dict.txt").unlink()
    preprocess(args)
    assert (tmp_path / "preprocess.log").read_text().splitlines() == 2 * lines


def test_manifest_tells_what_is_there(in_compat, tmp_path):
    preprocess(config(tmp_path, **TWO))
    manifest = read_manifest(tmp_path)
    data = MMapIndexedDataset(tmp_path / "train")
    train = manifest.datasets["train"]
    assert (train.impl, train.sentences, train.tokens) == ("mmap", len(data), len(data.flat))
    assert train.max_id == data.flat.max()
    dictionary = hashlib.sha256((tmp_path / "dict.txt").read_bytes()).hexdigest()
    assert train.dictionary_sha256 == dictionary == manifest.files["dict.txt"].sha256
    assert set(manifest.files) == {"dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx"}


def test_second_run_with_the_first_ones_dictionary_extends_the_folder(in_compat, tmp_path):
    preprocess(config(tmp_path, trainpref="input/valid.txt"))
    preprocess(config(tmp_path, testpref="input/test.txt", srcdict=str(tmp_path / "dict.txt")))
    assert set(verify_manifest(tmp_path, digests=True).datasets) == {"train", "test"}


def test_second_run_with_another_dictionary_is_noticed(in_compat, tmp_path):
    preprocess(config(tmp_path, trainpref="input/valid.txt"))
    other = "out/nwords1000_w1/dict.txt"
    preprocess(config(tmp_path, testpref="input/test.txt", srcdict=other))
    with pytest.raises(DataError, match=r"train .*another dict\.txt"):
        verify_manifest(tmp_path)


def test_raw_manifest_counts_like_a_binary_one(in_compat, tmp_path):
    preprocess(config(tmp_path / "raw", **TWO, dataset_impl="raw"))
    preprocess(config(tmp_path / "mmap", **TWO))
    raw = read_manifest(tmp_path / "raw").datasets
    binary = read_manifest(tmp_path / "mmap").datasets
    for split in ("train", "valid"):
        a, b = raw[f"{split}.None-None"], binary[split]
        assert (a.sentences, a.tokens, a.max_id) == (b.sentences, b.tokens, b.max_id)


@pytest.mark.parametrize("impl", ["mmap", "cached", "raw"])
def test_words_of_a_dictionary_without_counts_are_counted(impl, tmp_path):
    """Those of other toolkits come without; those of the original stay as they are."""
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "rare"]
    roles = {"pad": "[PAD]", "unk": "[UNK]", "bos": "[CLS]", "eos": "[SEP]"}
    (tmp_path / "text").write_text("the rare the\nthe new\n")
    (tmp_path / "valid").write_text("rare rare\n")
    Dictionary.foreign(symbols, **roles).save(tmp_path / "theirs.txt")
    texts = {"trainpref": str(tmp_path / "text"), "validpref": str(tmp_path / "valid")}
    given = {"srcdict": str(tmp_path / "theirs.txt"), "dataset_impl": impl}
    preprocess(config(tmp_path / "bin", **texts, **given))
    written = Dictionary.load(str(tmp_path / "bin/dict.txt"))
    assert written.symbols == symbols
    assert written.count == ([0] * 6 if impl == "raw" else [0, 1, 0, 2, 3, 1])
    (tmp_path / "ours.txt").write_text("the 0\nrare 0\n")
    preprocess(
        config(tmp_path / "again", **texts, **{**given, "srcdict": str(tmp_path / "ours.txt")})
    )
    assert (tmp_path / "again/dict.txt").read_text() == "the 0\nrare 0\n"


def test_several_validation_texts_are_numbered(in_compat, tmp_path):
    flags = {"validpref": "input/valid.txt,input/test.txt", "testpref": "input/test.txt"}
    preprocess(config(tmp_path, trainpref="input/valid.txt", **flags))
    names = {path.name for path in tmp_path.glob("*.bin")}
    assert names == {"train.bin", "valid.bin", "valid1.bin", "test.bin"}
    assert (tmp_path / "valid1.bin").read_bytes() == (tmp_path / "test.bin").read_bytes()


@pytest.mark.parametrize(
    ("impl", "name"), [("mmap", "train.en-None.en.bin"), ("raw", "train.en-None.en")]
)
def test_one_language_of_a_pair(in_compat, tmp_path, impl, name):
    flags = {"trainpref": "input/pair", "source_lang": "en", "dataset_impl": impl}
    preprocess(config(tmp_path, **flags, nwordssrc=400))
    golden = in_compat / "compat/preprocess/out/pair_w1"
    assert (tmp_path / "dict.en.txt").read_bytes() == (golden / "dict.en.txt").read_bytes()
    same = golden / "train.en-xx.en.bin" if impl == "mmap" else Path("input/pair.en")
    assert (tmp_path / name).read_bytes() == same.read_bytes()


def test_joined_dictionary(in_compat, tmp_path):
    pair = {**GOLDEN["pair_w1"], "joined_dictionary": True, "nwordssrc": -1}
    preprocess(config(tmp_path, **pair))
    source = Dictionary.load(tmp_path / "dict.en.txt")
    target = Dictionary.load(tmp_path / "dict.xx.txt")
    assert source == target
    inputs = [Path(f"input/pair.{lang}").read_text() for lang in ("en", "xx")]
    for word in inputs[0].split()[:50] + inputs[1].split()[:50]:
        assert source.count[source.index(word)] == sum(t.split().count(word) for t in inputs)


def test_dictionary_is_not_overwritten(in_compat, tmp_path):
    preprocess(config(tmp_path, **TWO))
    with pytest.raises(FileExistsError, match="--srcdict"):
        preprocess(config(tmp_path, **TWO))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"dataset_impl": "huffman"}, UnsupportedError, "huffman"),
        ({"dataset_impl": "fasta"}, UnsupportedError, "fasta"),
        ({"dataset_impl": "mnap"}, ConfigError, "did you mean 'mmap'"),
        ({"align_suffix": "align"}, UnsupportedError, "alignment"),
        ({"alignfile": "a"}, UnsupportedError, "alignment"),
        ({"trainpref": None}, ConfigError, "no text"),
        ({"trainpref": None, "validpref": "input/valid.txt"}, ConfigError, "--trainpref"),
        ({"only_source": False}, ConfigError, "--only-source"),
        (
            {"only_source": False, "source_lang": "a", "target_lang": "a"},
            ConfigError,
            "both a",
        ),
        ({"joined_dictionary": True, "srcdict": "a", "tgtdict": "b"}, ConfigError, "only one"),
        ({"workers": 0}, ConfigError, "--workers"),
        ({"trainpref": "nowhere"}, MissingFileError, r"nowhere\. Check --trainpref\.$"),
        ({"srcdict": "nowhere"}, MissingFileError, "nowhere"),
    ],
)
def test_bad_flags(changes, error, text, in_compat, tmp_path):
    flags = {"trainpref": "input/valid.txt", **changes}
    with pytest.raises(error, match=text):
        preprocess(config(tmp_path / "out", **flags))
    assert not list(tmp_path.glob("out/*.bin")) and not list(tmp_path.glob("out/dict*"))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("impl", ["mmap", "raw"])
def test_text_that_is_not_utf8(workers, impl, tmp_path, small_blocks):
    good = b"plain words only\n" * 2000
    text = tmp_path / "text"
    text.write_bytes(good[:20009] + b"\xe9" + good[20009:])
    flags = {"workers": workers, "dataset_impl": impl}
    with pytest.raises(DataError, match=r"text is not UTF-8.*byte 20009 \(0xe9\)"):
        preprocess(config(tmp_path / "out", trainpref=str(text), **flags))
    assert os.listdir(tmp_path / "out") == ["preprocess.log"]


@pytest.mark.parametrize(("content", "text"), [("", "empty"), (" \n\n", "no words")])
def test_text_without_words(content, text, tmp_path):
    (tmp_path / "text").write_text(content)
    with pytest.raises(DataError, match=text):
        preprocess(config(tmp_path / "out", trainpref=str(tmp_path / "text")))


def test_dictionary_file_with_a_bad_line(in_compat, tmp_path):
    (tmp_path / "dict").write_text("the 5\nof\n")
    flags = {"trainpref": "input/valid.txt", "srcdict": str(tmp_path / "dict")}
    with pytest.raises(DataError, match="line 2"):
        preprocess(config(tmp_path / "out", **flags))


def test_damaged_manifest_is_named_before_the_work(in_compat, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        preprocess(config(tmp_path, **TWO))
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_interrupted_run_leaves_nothing_half_written(in_compat, tmp_path, monkeypatch):
    calls = []

    def interrupted(self, sizes):
        calls.append(len(sizes))
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, sizes)

    real = MMapIndexedDatasetBuilder.add_sizes
    monkeypatch.setattr(MMapIndexedDatasetBuilder, "add_sizes", interrupted)
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 20000)
    with pytest.raises(KeyboardInterrupt):
        preprocess(config(tmp_path, **THREE))
    assert os.listdir(tmp_path) == ["preprocess.log"]
    monkeypatch.undo()
    monkeypatch.chdir(in_compat / "compat/preprocess")
    preprocess(config(tmp_path, **THREE))
    assert digests_in(tmp_path) == golden_digests(in_compat, "default_w1")


def _preprocess_slowly(args: SimpleNamespace) -> None:
    text_blocks.BLOCK_BYTES = 300
    preprocess(args)


def test_killed_run_leaves_nothing_half_written(in_compat, tmp_path):
    context = multiprocessing.get_context("fork")
    args = config(tmp_path, **{**THREE, "workers": 2})
    killed = 0
    for delay in (0.02, 0.06, 0.1, 0.15, 0.2):
        process = context.Process(target=_preprocess_slowly, args=(args,))
        process.start()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        for index in tmp_path.glob("*.idx"):
            assert MMapIndexedDataset(index.with_suffix("")) is not None
        (tmp_path / "dict.txt").unlink(missing_ok=True)
    assert killed > 0
    preprocess(args)
    assert not list(tmp_path.glob(".numbers-*"))
    for temporary in tmp_path.glob(".*"):
        temporary.unlink()
    assert digests_in(tmp_path) == golden_digests(in_compat, "default_w1")


def test_no_torch_is_needed(in_compat, tmp_path):
    code = (
        "import json, sys; from types import SimpleNamespace\n"
        "from fairseq.preprocess import preprocess\n"
        "preprocess(SimpleNamespace(**json.loads(sys.argv[1])))\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    settings = json.dumps(vars(config(tmp_path, **TWO)))
    command = [sys.executable, "-c", code, settings]
    subprocess.run(command, check=True, env=CHILD)
    assert np.fromfile(tmp_path / "train.bin", np.uint16).size


def test_a_second_run_in_the_folder_is_refused(in_compat, tmp_path):
    with open(tmp_path / "preprocess.log", "a") as log:
        assert io.try_lock(log, per_process=True)
        flags = ["--only-source", "--trainpref", THREE["trainpref"], "--destdir", str(tmp_path)]
        command = [sys.executable, "-m", "fairseq_cli.preprocess", *flags]
        second = subprocess.run(command, capture_output=True, text=True, env=CHILD)
    assert second.returncode == 1 and "another fairseq-preprocess is at work" in second.stderr
    assert os.listdir(tmp_path) == ["preprocess.log"]
    preprocess(config(tmp_path, **THREE))  # the lock ended with its holder


@pytest.mark.parametrize("impl", ["mmap", "raw"])
def test_digests_are_of_what_was_written(tmp_path, monkeypatch, impl):
    # a file exchanged at once after it got its name must not be described as if it were ours
    text = tmp_path / "text"
    text.write_text("a b\nc\n")
    place = os.replace

    def exchange(source, target):
        place(source, target)
        if os.path.basename(target).startswith("train"):
            with open(target, "ab") as handle:
                handle.write(b"x")

    monkeypatch.setattr(os, "replace", exchange)
    preprocess(config(tmp_path / "out", trainpref=str(text), dataset_impl=impl))
    with pytest.raises(DataError, match="bytes instead of"):
        verify_manifest(tmp_path / "out")


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path):
    target = tmp_path / "out"
    dead, living = tmp_path / ".out.tmp-1", tmp_path / ".out.tmp-2"
    others = [tmp_path / ".other.tmp-1", tmp_path / ".out.tmp-x"]
    for path in (dead, living, *others):
        path.write_bytes(b"x")
    with open(living, "rb+") as handle:
        assert io.try_lock(handle)
        with io.atomic_write(target) as new:
            assert not dead.exists() and living.exists()
            new.write(b"whole")
    assert target.read_bytes() == b"whole" and all(path.exists() for path in others)

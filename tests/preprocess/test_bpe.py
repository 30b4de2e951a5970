"""Encoding and decoding whole files, training, and the command over them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairseq.data.encoders.byte_level import ByteLevelBPE, ByteLevelBPEConfig
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.wordpiece import Wordpiece, WordpieceConfig
from fairseq.errors import ConfigError, DataError, FairseqError, MissingFileError
from fairseq.files import line_reader, processes
from fairseq.preprocess import encode as bpe_module
from fairseq.preprocess.encode import (
    Summary,
    decode_files,
    encode_files,
    train_byte_level,
)
from fairseq_cli.bpe import main

LINES = ["The first line, with  spaces", "", "  zweite Zeile: größer ", "日本語", "the first line"]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("\n".join(LINES * 3), encoding="utf-8")
    train_byte_level([str(folder / "text.txt")], 300, folder / "tokenizer.json")
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> ByteLevelBPE:
    return ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(tokenizer_file)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_reader, "BLOCK_BYTES", 64)


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_corpus_file_equals_the_original(shared: Path, tmp_path: Path) -> None:
    files = shared / "data" / "gpt2_bpe"
    golden = shared / "compat" / "gpt2_bpe"
    out, back = str(tmp_path / "out.bpe"), str(tmp_path / "back.txt")
    config = GPT2BPEConfig(
        gpt2_encoder_json=str(files / "encoder.json"), gpt2_vocab_bpe=str(files / "vocab.bpe")
    )
    encoder = GPT2BPE(config)
    summary = encode_files(encoder, [str(golden / "corpus_valid.txt")], [out], keep_empty=True)
    expected = (golden / "corpus_valid.bpe").read_bytes()
    assert Path(out).read_bytes() == expected
    assert (summary.lines, summary.tokens) == (339, len(expected.split()))
    decode_files(encoder, [out], [back])
    lines = (golden / "corpus_valid.txt").read_text("utf-8").split("\n")
    assert Path(back).read_text("utf-8").split("\n") == [line.strip() for line in lines]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_change_nothing(
    tmp_path: Path,
    encoder: ByteLevelBPE,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    monkeypatch.setattr(processes, "start_method", lambda: method)
    source = write(tmp_path / "in", *(f"{line} {n}" for n in range(40) for line in LINES))
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    counts = [encode_files(encoder, [source], [out], workers=n) for n, out in ((1, one), (2, two))]
    assert Path(one).read_bytes() == Path(two).read_bytes()
    assert counts[0].lines == counts[1].lines == 200
    assert counts[0].tokens == counts[1].tokens == len(Path(one).read_bytes().split())
    decode_files(encoder, [two], [one], workers=2)
    assert Path(one).read_text("utf-8").split("\n")[2] == "zweite Zeile: größer  0"


def test_errors_of_workers_arrive(
    tmp_path: Path, encoder: ByteLevelBPE, small_blocks: None
) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes(b"some text\n" * 50 + b"\xff\n" + b"some text\n" * 50)
    with pytest.raises(DataError, match=r"in.txt: not UTF-8 at byte 500 \(line 51"):
        encode_files(encoder, [str(source)], [str(tmp_path / "out")], workers=2)
    assert os.listdir(tmp_path) == ["in.txt"]


def test_parallel_lines_are_dropped_together(tmp_path: Path, encoder: ByteLevelBPE) -> None:
    inputs = [
        write(tmp_path / "a", "one", "", "three", "four"),
        write(tmp_path / "b", "1", "2", " \t", "4"),
    ]
    outputs = [str(tmp_path / "a.bpe"), str(tmp_path / "b.bpe")]
    summary = encode_files(encoder, inputs, outputs)
    texts = [Path(name).read_text().split("\n") for name in outputs]
    assert texts == [
        [encoder.encode("one"), encoder.encode("four"), ""],
        [encoder.encode("1"), encoder.encode("4"), ""],
    ]
    assert (summary.lines, summary.written, summary.dropped) == (4, 2, 2)


def test_lines_that_come_to_nothing_are_dropped_as_empty_ones_are(tmp_path: Path) -> None:
    """A zero width space alone has no word pieces; an empty line would part two documents."""
    pytest.importorskip("tokenizers")
    words = write(tmp_path / "vocab", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two")
    encoder = Wordpiece(WordpieceConfig(wordpiece_vocab=words))
    inputs = [
        write(tmp_path / "a", "one", "\u200b", "two", "one"),
        write(tmp_path / "b", "two", "two", "\u200b", "one"),
    ]
    outputs = [str(tmp_path / "a.bpe"), str(tmp_path / "b.bpe")]
    summary = encode_files(encoder, inputs, outputs)
    assert [Path(name).read_text() for name in outputs] == ["one\none\n", "two\none\n"]
    assert (summary.lines, summary.written, summary.dropped, summary.tokens) == (4, 2, 2, 4)
    encode_files(encoder, inputs[:1], outputs[:1], keep_empty=True)
    assert Path(outputs[0]).read_text() == "one\n\ntwo\none\n"


def test_parallel_files_must_be_of_one_length(tmp_path: Path, encoder: ByteLevelBPE) -> None:
    inputs = [write(tmp_path / "a", "one", "two"), write(tmp_path / "b", "1")]
    outputs = [str(tmp_path / "a.bpe"), str(tmp_path / "b.bpe")]
    with pytest.raises(DataError, match="b ends after line 1"):
        encode_files(encoder, inputs, outputs)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_keep_empty_keeps_every_line_of_every_file(tmp_path: Path, encoder: ByteLevelBPE) -> None:
    inputs = [write(tmp_path / "a", "one", "", " ", "two"), write(tmp_path / "b", "")]
    outputs = [str(tmp_path / "a.bpe"), str(tmp_path / "b.bpe")]
    summary = encode_files(encoder, inputs, outputs, keep_empty=True)
    one, two = encoder.encode("one"), encoder.encode("two")
    assert Path(outputs[0]).read_text() == f"{one}\n\n\n{two}\n"
    assert Path(outputs[1]).read_text() == "\n"
    assert summary.tokens == len(one.split()) + len(two.split())
    assert (summary.lines, summary.dropped) == (5, 0)


def test_empty_files_give_empty_files(tmp_path: Path, encoder: ByteLevelBPE) -> None:
    for keep_empty in (False, True):
        out = tmp_path / "out"
        summary = encode_files(encoder, [write(tmp_path / "in")], [str(out)], keep_empty)
        assert out.read_bytes() == b""
        assert summary.lines == 0


def test_jsonl_documents_are_lines(tmp_path: Path, encoder: ByteLevelBPE) -> None:
    source = write(tmp_path / "in.jsonl", '{"body": "two\\nlines"}', "", '{"body": "x"}')
    out, back = str(tmp_path / "out"), str(tmp_path / "back")
    encode_files(encoder, [source], [out], jsonl_field="body")
    assert Path(out).read_text() == f"{encoder.encode(chr(10).join(['two', 'lines']))}\n" + (
        f"{encoder.encode('x')}\n"
    )
    decode_files(encoder, [out], [back])
    assert Path(back).read_text() == "two\nlines\nx\n"


def test_standard_streams(encoder: ByteLevelBPE, monkeypatch: pytest.MonkeyPatch) -> None:
    source = io.BytesIO("größer\n\nx\n".encode())
    target = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=target))
    encode_files(encoder, ["-"], ["-"])
    assert target.getvalue().decode() == f"{encoder.encode('größer')}\n{encoder.encode('x')}\n"


def test_a_failed_run_leaves_the_old_output(tmp_path: Path, encoder: ByteLevelBPE) -> None:
    out = write(tmp_path / "out", "old")
    with pytest.raises(MissingFileError, match="none.txt"):
        encode_files(encoder, [str(tmp_path / "none.txt")], [out])
    assert os.listdir(tmp_path) == ["out"]
    assert Path(out).read_text() == "old\n"


@pytest.mark.parametrize(
    ("inputs", "outputs", "workers", "message"),
    [
        (["a", "b"], ["c"], 1, "2 files and --outputs 1"),
        ([], [], 1, "0 files"),
        (["-", "-"], ["a", "b"], 1, "once only"),
        (["a", "b"], ["c", "./c"], 1, "same name"),
        (["a"], ["b"], 0, "--workers"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    encoder: ByteLevelBPE, inputs: list[str], outputs: list[str], workers: int, message: str
) -> None:
    for keep_empty in (False, True):
        with pytest.raises(ConfigError, match=message):
            encode_files(encoder, inputs, outputs, keep_empty, workers)


class Deadly:
    def encode(self, x: str) -> str:
        os._exit(9)

    decode = encode


def test_a_dead_worker_is_reported(tmp_path: Path, small_blocks: None) -> None:
    source = write(tmp_path / "in", *LINES * 20)
    with pytest.raises(FairseqError, match="a process was killed while converting text"):
        encode_files(Deadly(), [source], [str(tmp_path / "out")], workers=2)
    assert os.listdir(tmp_path) == ["in"]


def test_training_is_repeatable_and_bounded(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    source = write(tmp_path / "in", *LINES * 3)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    sizes = [train_byte_level([source], 270, file) for file in files]
    assert sizes == [270, 270]
    assert files[0].read_bytes() == files[1].read_bytes()
    vocabulary = json.loads(files[0].read_text("utf-8"))["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(270))
    most = train_byte_level([source], 5000, files[1])
    assert 256 < most < 5000
    assert train_byte_level([source], 5000, files[1], min_frequency=100) == 256


def test_training_errors(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    out = tmp_path / "out.json"
    (tmp_path / "bad").write_bytes(b"abc\n\xff\n")
    with pytest.raises(ConfigError, match="256"):
        train_byte_level([str(tmp_path / "bad")], 255, out)
    with pytest.raises(DataError, match="byte 4"):
        train_byte_level([str(tmp_path / "bad")], 300, out)
    with pytest.raises(MissingFileError, match="none"):
        train_byte_level([str(tmp_path / "none")], 300, out)
    assert not out.exists()


def test_command_trains_encodes_and_decodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    source = write(tmp_path / "in.txt", *LINES * 3)
    model, coded, back = (str(tmp_path / name) for name in ("t.json", "out.bpe", "back.txt"))
    options = ["--bpe", "byte_level", "--tokenizer-file", model, "--workers", "1"]
    assert (
        main(["train", "--inputs", source, "--output", model, "--vocab-size", "300", "--json"]) == 0
    )
    trained = json.loads(capsys.readouterr().out)
    assert trained == {"command": "train", "output": model, "vocab_size": trained["vocab_size"]}
    files = ["--inputs", source, "--outputs", coded]
    assert main(["encode", *options, *files, "--keep-empty", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["lines"] == summary["written"] == 15
    assert summary["tokens"] == len(Path(coded).read_text().split())
    assert main(["decode", *options, "--inputs", coded, "--outputs", back]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"15 lines, {summary['tokens']} pieces, 0 lines dropped")
    assert Path(back).read_text("utf-8").split("\n")[:-1] == [line.strip() for line in LINES] * 3


def test_command_encodes_into_word_pieces(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("tokenizers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = write(tmp_path / "vocab.txt", *special, "the", "cat", "##s", ".")
    source, coded, back = (str(tmp_path / name) for name in ("in.txt", "out.bpe", "back.txt"))
    write(Path(source), "The cats.", "", "a CAT")
    for flag in ("--vocab", "--wordpiece-vocab"):
        options = ["--bpe", "wordpiece", flag, vocabulary, "--workers", "1"]
        files = ["--inputs", source, "--outputs", coded]
        assert main(["encode", *options, *files, "--keep-empty"]) == 0
        assert Path(coded).read_text().splitlines() == ["the cat ##s .", "", "[UNK] cat"]
        Path(coded).write_text("the cat ##s\n")
        assert main(["decode", *options, "--inputs", coded, "--outputs", back]) == 0
        assert Path(back).read_text() == "the cats\n"
    capsys.readouterr()
    with pytest.raises(FairseqError, match="--wordpiece-vocab"):
        main(["encode", "--bpe", "wordpiece", *files])
    with pytest.raises(MissingFileError, match=r"absent\.txt"):
        main(["encode", "--bpe", "wordpiece", "--vocab", str(tmp_path / "absent.txt"), *files])


def test_command_says_when_the_text_offers_too_few_pieces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    source = write(tmp_path / "in.txt", "ab")
    main(["train", "--inputs", source, "--output", str(tmp_path / "t.json")])
    assert "256 pieces (the text offers no more; 8,000 were asked for)" in capsys.readouterr().err


def test_command_takes_the_original_scripts_flags(shared: Path, tmp_path: Path) -> None:
    files = shared / "data" / "gpt2_bpe"
    source, out = write(tmp_path / "in", "Hello world!", ""), tmp_path / "out"
    flags = ["--encoder-json", str(files / "encoder.json"), "--vocab-bpe", str(files / "vocab.bpe")]
    main(["encode", *flags, "--inputs", source, "--outputs", str(out), "--keep-empty"])
    assert out.read_text() == "15496 995 0\n\n"


def test_command_refuses_options_that_do_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tokenizer-file belongs to --bpe byte_level"):
        main(["encode", "--tokenizer-file", "x.json"])
    with pytest.raises(ConfigError, match="--json"):
        main(["encode", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main(["encode", "--bpe", "gpt3"])
    assert stopped.value.code == 2


def test_help_imports_no_heavy_library() -> None:
    program = (
        "import sys; from fairseq_cli.bpe import main\n"
        "try: main(['encode', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'numpy', 'tiktoken', 'tokenizers', 'sentencepiece', 'multiprocessing')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.endswith("\n[]\n"), run.stderr
    assert "examples:" in run.stdout


def test_summaries_add_up() -> None:
    total = Summary(lines=1, tokens=2, seconds=0.5)
    total.add(Summary(lines=2, dropped=1, seconds=0.5))
    assert total == Summary(lines=3, tokens=2, dropped=1, seconds=1.0)


def test_long_words_are_cut_for_learning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpe_module, "LONGEST_WORD", 4)
    monkeypatch.setattr(bpe_module, "_TOO_LONG", re.compile(r"(\S{4})(?=\S)"))
    long, short = ["ab abcdabcdabc x", "abcd"], ["ab abcd", "abcd", "abc x", "abcd"]
    outputs = [tmp_path / "long.json", tmp_path / "short.json"]
    for lines, output in zip((long, short), outputs, strict=True):
        train_byte_level([write(tmp_path / "text", *lines)], 300, output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"{tmp_path / 'text'}, line 1"
    ]


def test_nothing_is_learned_from_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_text("\n  \n")
    out = tmp_path / "tokenizer.json"
    words = ["train", "--inputs", str(tmp_path / "empty.txt"), str(tmp_path / "blank.txt")]
    with pytest.raises(DataError, match=r"empty\.txt .*blank\.txt: there is no text to learn"):
        main([*words, "--vocab-size", "300", "--output", str(out)])
    assert not out.exists()

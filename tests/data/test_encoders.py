"""The encoders against the original's output, a plain reference, and the libraries."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.data.encoders import (
    BPE_DATACLASS_REGISTRY,
    BPE_REGISTRY,
    build_bpe,
    build_tokenizer,
    byte_pair,
)
from fairseq.data.encoders.byte_level import ByteLevelBPE, ByteLevelBPEConfig
from fairseq.data.encoders.gpt2_bpe import DEFAULT_ENCODER_JSON, GPT2BPE, GPT2BPEConfig, local_file
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from fairseq.errors import (
    ConfigError,
    DataError,
    MissingFileError,
    RegistryError,
    UnsupportedError,
)
from fairseq.preprocess.encode import train_byte_level

TEXT = """The quick brown fox doesn't jump over 12 lazy dogs; they've jumped over the fox.
Ein schöner Tag: größer, weiter, höher. 日本語のテキストも少し。 naïve café, emoji 🙂🙂.
  spaces   at the  start,\tand a tab; the quick brown fox again and again and again.
"""

# Strings that stress the cut into words: white space of every kind, contractions, digits.
TRICKY = st.one_of(
    st.text(),
    st.text(alphabet=" \t\n\r\x0b\x1c\x1f\x85\xa0\u2028\u3000a'slvremtd1.é中"),
    st.text(alphabet="the quickbrownfx "),
)


@pytest.fixture(scope="session")
def gpt2_files(shared: Path) -> dict[str, str]:
    folder = shared / "data" / "gpt2_bpe"
    return {
        "gpt2_encoder_json": str(folder / "encoder.json"),
        "gpt2_vocab_bpe": str(folder / "vocab.bpe"),
    }


@pytest.fixture(scope="session")
def gpt2(gpt2_files: dict[str, str]) -> GPT2BPE:
    return GPT2BPE(GPT2BPEConfig(**gpt2_files))


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(TEXT * 2, encoding="utf-8")
    train_byte_level([str(folder / "text.txt")], 400, folder / "tokenizer.json")
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def byte_level(tokenizer_file: Path) -> ByteLevelBPE:
    return ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(tokenizer_file)))


def reference_pieces(word: bytes, ranks: dict[tuple[bytes, bytes], int]) -> list[bytes]:
    """Join the neighbours that were learned first, until nothing learned is left."""
    pieces = [word[i : i + 1] for i in range(len(word))]
    while len(pieces) > 1:
        rank, place = min(
            (ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(pieces))
        )
        if rank == len(ranks):
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces


def test_gpt2_ids_and_texts_equal_the_original(shared: Path, gpt2: GPT2BPE) -> None:
    samples = json.loads((shared / "compat" / "gpt2_bpe" / "golden_200.json").read_text("utf-8"))
    assert len(samples) == 200
    for sample in samples:
        ids = " ".join(map(str, sample["ids"]))
        assert gpt2.encode(sample["text"]) == ids
        assert gpt2.decode(ids) == sample["decoded"]


def test_tiny_gpt2_equals_a_plain_reference(tmp_path: Path) -> None:
    regex = pytest.importorskip("regex")
    words = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    spelling = {byte: character for character, byte in byte_pair.byte_alphabet().items()}
    space = spelling[ord(" ")]
    merges = ["t h", "th e", f"{space} the", "l l", "a a", "aa a", f"{space} {space}", "a 1"]
    tokens = [*spelling.values(), *(merge.replace(" ", "") for merge in merges)]
    ids = {token: 1000 - number for number, token in enumerate(tokens)}  # ids are no ranks
    (tmp_path / "encoder.json").write_text(json.dumps(ids))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    bpe = GPT2BPE(
        GPT2BPEConfig(
            gpt2_encoder_json=str(tmp_path / "encoder.json"),
            gpt2_vocab_bpe=str(tmp_path / "vocab.bpe"),
        )
    )
    alphabet = byte_pair.byte_alphabet()

    def to_bytes(token: str) -> bytes:
        return bytes(alphabet[character] for character in token)

    ranks = {tuple(map(to_bytes, pair.split(" "))): rank for rank, pair in enumerate(merges)}
    id_of = {to_bytes(token): str(number) for token, number in ids.items()}

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(TRICKY, st.text(alphabet="thela1' ")))
    def check(text: str) -> None:
        expected = [
            id_of[piece]
            for word in words.findall(text)
            for piece in reference_pieces(word.encode(), ranks)
        ]
        assert bpe.encode(text) == " ".join(expected)

    check()


def test_encoding_is_lossless(gpt2: GPT2BPE, byte_level: ByteLevelBPE) -> None:
    @settings(max_examples=300, deadline=None)
    @given(TRICKY)
    def check(text: str) -> None:
        for bpe in (gpt2, byte_level):
            pieces = bpe.encode(text)
            assert pieces == "" or all(piece.isdecimal() for piece in pieces.split(" "))
            assert bpe.decode(pieces) == text

    check()


def test_byte_level_equals_the_library_that_trained_it(
    tokenizer_file: Path, byte_level: ByteLevelBPE
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer.from_file(str(tokenizer_file))

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(TRICKY, st.sampled_from(TEXT.split("\n"))))
    def check(text: str) -> None:
        assert byte_level.encode(text) == " ".join(map(str, library.encode(text).ids))

    check()


def test_pieces_outside_the_vocabulary_stand_for_themselves(gpt2: GPT2BPE) -> None:
    assert gpt2.decode("15496 <mask> 995 <unk>") == "Hello<mask> world<unk>"
    assert gpt2.decode("madeupword0001 99999999 -1 007") == "madeupword000199999999-1007"
    assert gpt2.decode("50256") == "<|endoftext|>"
    assert gpt2.decode("") == ""
    assert gpt2.encode("<|endoftext|>") != "50256"


def test_cut_characters_become_replacement_characters(gpt2: GPT2BPE) -> None:
    pieces = gpt2.encode("🦜").split()
    assert len(pieces) > 1
    assert gpt2.decode(pieces[0]) == "\ufffd"
    assert gpt2.decode(" ".join(pieces)) == "🦜"


def test_lone_surrogates_do_not_crash(gpt2: GPT2BPE) -> None:
    assert gpt2.decode(gpt2.encode("a \ud800 b")) == "a \ufffd b"


def test_beginnings_of_words(gpt2: GPT2BPE) -> None:
    assert gpt2.is_beginning_of_word("995")  # " world"
    assert not gpt2.is_beginning_of_word("15496")  # "Hello"
    assert gpt2.is_beginning_of_word("<mask>")
    assert gpt2.is_beginning_of_word("madeupword0000")


def test_word_cache_is_bounded(byte_level: ByteLevelBPE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_pair, "MAX_CACHED_WORDS", 3)
    bpe = ByteLevelBPE(byte_level.config)
    words = [f"w{number}" for number in range(20)] + ["x" * 100]
    for text in (" ".join(words), " ".join(reversed(words))):
        assert bpe.decode(bpe.encode(text)) == text
        assert len(bpe._cache) <= 3
        assert "x" * 100 not in bpe._cache


def test_pickled_encoders_encode_alike(byte_level: ByteLevelBPE) -> None:
    data = pickle.dumps(byte_level)
    assert len(data) < 1000
    assert pickle.loads(data).encode(TEXT) == byte_level.encode(TEXT)


def test_default_files_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", str(tmp_path))
    digest = hashlib.sha256(DEFAULT_ENCODER_JSON.encode()).hexdigest()
    (tmp_path / f"{digest}.json").write_text("{}")
    (tmp_path / f"{digest}.lock").write_text("")
    with pytest.raises(MissingFileError, match="--gpt2-encoder-json FILE"):
        local_file(DEFAULT_ENCODER_JSON, "--gpt2-encoder-json")
    for name in ("encoder.json", f"{digest}.{'0' * 64}", digest):
        (tmp_path / name).write_text(name)
        assert local_file(DEFAULT_ENCODER_JSON, "--x").read_text() == name


def test_cache_folder_follows_torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_FAIRSEQ_CACHE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "pytorch_fairseq").mkdir()
    (tmp_path / "pytorch_fairseq" / "encoder.json").write_text("{}")
    assert local_file(DEFAULT_ENCODER_JSON, "--x") == tmp_path / "pytorch_fairseq" / "encoder.json"


def test_gpt2_without_files_says_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", str(tmp_path))
    with pytest.raises(MissingFileError, match="nothing is downloaded"):
        build_bpe("gpt2")
    with pytest.raises(MissingFileError, match="no_such"):
        GPT2BPE(GPT2BPEConfig(gpt2_encoder_json=str(tmp_path / "no_such.json")))


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ("{", "", "not valid JSON"),
        ("[1]", "", "token -> number"),
        ('{"a": 1}', "", "has no id"),
        (None, "a b c\n", "line 1: expected two tokens"),
        (None, "#version: 0.2\na b\n", "'ab' has no id"),
    ],
)
def test_damaged_gpt2_files_are_named(
    tmp_path: Path, vocabulary: str | None, merges: str, message: str
) -> None:
    ids = byte_pair.byte_alphabet()
    (tmp_path / "encoder.json").write_text(json.dumps(ids) if vocabulary is None else vocabulary)
    (tmp_path / "vocab.bpe").write_text(merges)
    files = str(tmp_path / "encoder.json"), str(tmp_path / "vocab.bpe")
    with pytest.raises(DataError, match=message) as caught:
        GPT2BPE(GPT2BPEConfig(gpt2_encoder_json=files[0], gpt2_vocab_bpe=files[1]))
    assert str(tmp_path) in str(caught.value)


def test_merges_that_are_not_utf8_are_named(tmp_path: Path, gpt2_files: dict[str, str]) -> None:
    path = tmp_path / "vocab.bpe"
    path.write_bytes(b"a b\n\xff\n")
    with pytest.raises(DataError, match="byte 4"):
        GPT2BPE(GPT2BPEConfig(**{**gpt2_files, "gpt2_vocab_bpe": str(path)}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, UnsupportedError, "pre_tokenizer.type"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
            UnsupportedError,
            "add_prefix_space",
        ),
        ({"model": {"type": "WordPiece"}}, UnsupportedError, "model.type"),
        ({"model": {"type": "BPE", "vocab": {}}}, DataError, "missing"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": ["a"]}}, DataError, "not a pair"),
        ({"model": None}, DataError, "no 'model'"),
    ],
)
def test_other_tokenizers_are_refused(
    tmp_path: Path, tokenizer_file: Path, change: dict, error: type, message: str
) -> None:
    content = json.loads(tokenizer_file.read_text("utf-8")) | change
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(path)))


def test_older_spelling_of_merges_is_read(
    tmp_path: Path, tokenizer_file: Path, byte_level: ByteLevelBPE
) -> None:
    content = json.loads(tokenizer_file.read_text("utf-8"))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    older = ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(path)))
    assert older.encode(TEXT) == byte_level.encode(TEXT)


def test_byte_level_needs_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--byte-level-tokenizer"):
        build_bpe("byte_level")
    with pytest.raises(MissingFileError, match="--byte-level-tokenizer"):
        ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(tmp_path / "none.json")))


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 5),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("sentencepiece") / "spm.model"
    path.write_bytes(model.getvalue())
    return path


def test_sentencepiece_pieces(sentencepiece_file: Path) -> None:
    bpe = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(sentencepiece_file)))
    text = "The quick brown fox doesn't jump."
    pieces = bpe.encode(text).split(" ")
    assert "".join(pieces) == "\u2581" + text.replace(" ", "\u2581")
    assert bpe.decode(" ".join(pieces)) == text
    assert sum(map(bpe.is_beginning_of_word, pieces)) == len(text.split())
    assert bpe.is_beginning_of_word("<unk>")
    assert pickle.loads(pickle.dumps(bpe)).encode(text).split(" ") == pieces


def test_sentencepiece_sampling_varies_and_stays_lossless(sentencepiece_file: Path) -> None:
    bpe = SentencepieceBPE(
        SentencepieceConfig(
            sentencepiece_model=str(sentencepiece_file), sentencepiece_enable_sampling=True
        )
    )
    text = "The quick brown fox again and again."
    draws = {bpe.encode(text) for _ in range(30)}
    assert len(draws) > 1
    assert {bpe.decode(draw) for draw in draws} == {text}


def test_sentencepiece_errors(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    for name, error in (
        (None, ConfigError),
        (tmp_path / "none.model", MissingFileError),
        (tmp_path / "bad.model", DataError),
    ):
        with pytest.raises(error):
            SentencepieceBPE(SentencepieceConfig(sentencepiece_model=name and str(name)))


def test_a_missing_library_is_named(
    byte_level: ByteLevelBPE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match="pip install tiktoken"):
        ByteLevelBPE(byte_level.config)


def test_space_tokenizer() -> None:
    tokenizer = build_tokenizer(Namespace(tokenizer="space"))
    assert tokenizer.encode("a  b\t\nc") == "a b c"
    assert tokenizer.decode("a b") == "a b"


def test_registries(tokenizer_file: Path) -> None:
    assert {"gpt2", "byte_level", "sentencepiece"} <= set(BPE_REGISTRY)
    assert BPE_DATACLASS_REGISTRY["gpt2"] is GPT2BPEConfig
    assert build_bpe(None) is None
    assert build_bpe(Namespace(bpe=None)) is None
    bpe = build_bpe(Namespace(bpe="byte_level", byte_level_tokenizer=str(tokenizer_file)))
    assert isinstance(bpe, ByteLevelBPE)
    with pytest.raises(RegistryError, match="did you mean 'gpt2'"):
        build_bpe("gtp2")


def test_names_are_known_without_the_libraries() -> None:
    program = (
        "import sys; from fairseq.data.encoders import BPE_REGISTRY; assert 'gpt2' in BPE_REGISTRY;"
        "from fairseq.data.encoders import gpt2_bpe, byte_level, sentencepiece_bpe;"
        "print([m for m in ('torch', 'tiktoken', 'tokenizers', 'sentencepiece', 'numpy') "
        "if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", ["of_a_task", None])
def test_a_flat_namespace_names_its_encoder_by_the_flag(name):
    """Its ``_name`` may be that of the component that handed its settings on."""
    flat = Namespace(bpe="bytes_and_more", _name=name, data="bin")
    with pytest.raises(RegistryError, match="bytes_and_more"):
        build_bpe(flat)
    assert build_bpe(Namespace(bpe=None, _name=name)) is None
    assert build_tokenizer(Namespace(tokenizer="space", _name=name)) is not None

"""Tokenizers of Hugging Face: what they do to text is kept, or refused with a way out."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fairseq.data.encoders.byte_level import ByteLevelBPE, ByteLevelBPEConfig
from fairseq.errors import UnsupportedError
from fairseq.preprocess.encode import encode_files

tokenizers = pytest.importorskip("tokenizers")
TEXTS = ["Ein GROSSES Café, ﬁne ½ Ａbc", "naïve ÀÉÎ  two   spaces", "ǅ İstanbul ß", "plain text"]


def build(path: Path, normalizer: Any, **more: Any) -> Any:
    """Train a small byte-level BPE with a normalizer and save it."""
    normal, parts = tokenizers.normalizers, tokenizers.pre_tokenizers
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    if normalizer is not None:
        made.normalizer = normal.Sequence([getattr(normal, name)() for name in normalizer])
    made.pre_tokenizer = parts.ByteLevel(add_prefix_space=more.get("prefix", False))
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(parts.ByteLevel.alphabet()), show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    if more.get("short"):
        made.enable_truncation(3)
        made.enable_padding(length=9)
    made.save(str(path))
    return made


def encoder(path: Path) -> ByteLevelBPE:
    return ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(path)))


@pytest.mark.parametrize(
    "normalizer",
    [None, ["Lowercase"], ["NFKC"], ["NFD", "StripAccents"], ["NFKC", "Lowercase"],
     ["NFKD", "StripAccents", "Lowercase"]],
)  # fmt: skip
@pytest.mark.parametrize("short", [False, True])
def test_what_a_normalizer_does_is_kept(
    tmp_path: Path, normalizer: list[str] | None, short: bool
) -> None:
    path = tmp_path / "t.json"
    theirs = build(path, normalizer, short=short)
    theirs.no_truncation()
    theirs.no_padding()
    mine = encoder(path)
    (tmp_path / "in").write_text("\n".join(TEXTS * 50) + "\n", encoding="utf-8")
    encode_files(mine, [str(tmp_path / "in")], [str(tmp_path / "out")], workers=2)
    lines = (tmp_path / "out").read_text().splitlines()
    for text, line in zip(TEXTS * 50, lines, strict=True):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert line == " ".join(map(str, ids))
        assert mine.decode(line) == theirs.decode(ids)
    if normalizer and "Lowercase" in normalizer:
        assert mine.encode("CAFÉ") == mine.encode("café")


def others(folder: Path) -> dict[str, Path]:
    """Save a tokenizer of every kind that is refused."""
    parts, models = tokenizers.pre_tokenizers, tokenizers.models
    made = {
        "WordPiece": tokenizers.Tokenizer(
            models.WordPiece({"[UNK]": 0, "plain": 1}, unk_token="[UNK]")
        ),
        "Unigram": tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("plain", -1.0)], 0)),
        "BPE": tokenizers.Tokenizer(models.BPE({"plain": 0, "x": 1}, [], byte_fallback=True)),
        "words": tokenizers.Tokenizer(models.BPE({"plain": 0, "x": 1}, [])),
    }
    made["WordPiece"].normalizer = tokenizers.normalizers.BertNormalizer()
    made["WordPiece"].pre_tokenizer = parts.BertPreTokenizer()
    made["words"].pre_tokenizer = parts.Sequence([parts.Digits(), parts.ByteLevel()])
    for name, one in made.items():
        one.save(str(folder / f"{name} it's.json"))
    build(folder / "prefix it's.json", None, prefix=True)
    return {name: folder / f"{name} it's.json" for name in (*made, "prefix")}


WAYS = {
    "WordPiece": "--bpe wordpiece --wordpiece-vocab",
    "Unigram": "--bpe sentencepiece --sentencepiece-model",
}


@pytest.mark.parametrize("name", ["WordPiece", "Unigram", "BPE", "words", "prefix"])
def test_others_are_refused_with_a_way_that_works(tmp_path: Path, name: str) -> None:
    path = others(tmp_path)[name]
    with pytest.raises(UnsupportedError) as caught:
        encoder(path)
    message = str(caught.value)
    assert str(path) in message and "fairseq-bpe train" in message
    assert WAYS.get(name, "Instead, make one") in message
    words = shlex.split("python " + message.partition(": python ")[2].partition(" < ")[0])
    done = subprocess.run(
        [sys.executable, *words[1:]], input="plain text\nplain\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    whole = tokenizers.Tokenizer.from_file(str(path))
    expected = [whole.encode(t, add_special_tokens=False).ids for t in ("plain text", "plain")]
    assert done.stdout.splitlines() == [" ".join(map(str, ids)) for ids in expected]

"""``--bpe wordpiece``: the word pieces of BERT, through the ``tokenizers`` library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fairseq.config.schema import FairseqDataclass, option
from fairseq.data.encoders import register_bpe
from fairseq.errors import ConfigError
from fairseq.files.io import require_file
from fairseq.lazy import require_library


@dataclass
class WordpieceConfig(FairseqDataclass):
    """Settings of word pieces."""

    wordpiece_vocab: str | None = option(None, "vocab.txt of a BERT", new=True, path=True)
    wordpiece_cased: bool = option(False, "keep capital letters and accents", new=True)
    wordpiece_accents: Literal["auto", "keep", "strip"] = option(
        "auto", "what happens to accents; auto: they go with the capital letters", new=True
    )
    wordpiece_chinese: bool = option(
        True, "every Chinese character is a word", positive=True, new=True
    )


@register_bpe("wordpiece", dataclass=WordpieceConfig)
class Wordpiece:
    """Splits text as BERT does: clean-up, lower case (unless cased), punctuation, word pieces.

    Attributes:
        vocabulary: name of the vocabulary file.
        lowercase: whether capitals are lost.

    Raises:
        ConfigError: if no file is named.
        MissingFileError: if it does not exist.
    """

    bare_words = True  # pieces that begin a word hold no blank

    def __init__(self, cfg: WordpieceConfig) -> None:
        if not cfg.wordpiece_vocab:
            raise ConfigError("--bpe wordpiece needs --wordpiece-vocab FILE, BERT's vocab.txt")
        path = require_file(cfg.wordpiece_vocab, "vocabulary", "Check --wordpiece-vocab.")
        require_library("tokenizers", "--bpe wordpiece")
        from tokenizers.implementations import BertWordPieceTokenizer

        self.config = cfg
        self.vocabulary, self.lowercase = str(path), not cfg.wordpiece_cased
        # None lets the library decide: accents go if capitals do
        accents = {"auto": None, "keep": False, "strip": True}[cfg.wordpiece_accents]
        self._engine = BertWordPieceTokenizer(
            self.vocabulary,
            lowercase=self.lowercase,
            strip_accents=accents,
            handle_chinese_chars=cfg.wordpiece_chinese,
        )

    def engine(self) -> Any:
        """Return a tokenizer of the library ``tokenizers`` that does the same, to be changed."""
        from tokenizers import Tokenizer

        # a copy, by way of its text
        return Tokenizer.from_str(self._engine._tokenizer.to_str())

    def tokens(self) -> list[str]:
        """Return the pieces, in the order of their numbers."""
        ids = self._engine.get_vocab(with_added_tokens=False)
        return sorted(ids, key=ids.__getitem__)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings only: a worker reads the file again."""
        return type(self), (self.config,)

    def encode(self, x: str) -> str:
        """Return the pieces of a text, separated by blanks."""
        return " ".join(self._engine.encode(x, add_special_tokens=False).tokens)

    def decode(self, x: str) -> str:
        """Join pieces to words; what cleaning up took away does not come back."""
        words = x.split()
        text = "".join(w[2:] if w.startswith("##") else f" {w}" for w in words)
        return text.removeprefix(" ")

    def is_beginning_of_word(self, x: str) -> bool:
        """Tell whether a piece begins a word."""
        return not x.startswith("##")

"""Dictionaries: symbols to ids and back, with counts, and their text files.

A ``dict.txt`` holds one ``symbol count`` per line. The special symbols are not in it: they come
first when it is loaded. A third field ``#fairseq:overwrite`` lets a line define a symbol anew.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

from fairseq.errors import ConfigError, DataError, did_you_mean
from fairseq.files.io import BYTE_ORDER_MARK, PathLike, atomic_write, require_file
from fairseq.files.text_blocks import Tokenize, tokenize_line
from fairseq.files.word_table import TextNumbers

if TYPE_CHECKING:
    import torch

OVERWRITE = "#fairseq:overwrite"
_BLANKS = {"sentencepiece": "\u2581", "wordpiece": "_", "letter": "|", "_EOW": "_EOW"}
_COUNT = re.compile(r"-?[0-9]{1,18}")
_SHOWN = 80
# Names the special symbols of a dictionary that is not laid out as fairseq's (BERT, GPT-2); one
# symbol may have several roles. ``all`` on the first line says that specials follow further down.
_ROLE = re.compile(r"(?: #fairseq:(?:bos|pad|eos|unk|mask|all))+$", re.MULTILINE)
_FILLER = re.compile(r"madeupword[0-9]{4,}")
# Sizes are rounded up to multiples of at most this.
MOST_FILLERS = 128


def _roles_in(line: str) -> re.Match[str] | None:
    """Find the roles at the end of a line, however long it is."""
    return _ROLE.search(line, max(0, len(line) - 200))


class DuplicateSymbolError(DataError, RuntimeError):
    """A dictionary file defines a symbol twice without saying that it means to."""


class Dictionary:
    """A mapping from symbols to consecutive integers.

    Args:
        bos: symbol that starts a sentence.
        pad: padding symbol.
        eos: symbol that ends a sentence.
        unk: symbol that stands for all unknown ones.
        extra_special_symbols: more symbols that come before the ordinary ones.
        add_special_symbols: off to start empty; the index attributes are then set by the caller.

    Attributes:
        symbols: symbol of each id.
        count: how often each was seen.
        indices: id of each symbol.
        bos_index, pad_index, eos_index, unk_index: ids of the special symbols.
        nspecial: number of leading symbols that files leave out and ``finalize`` leaves in place.
    """

    bos_index: int
    pad_index: int
    eos_index: int
    unk_index: int
    mask_word = "<mask>"

    def __init__(
        self,
        *,
        bos: str = "<s>",
        pad: str = "<pad>",
        eos: str = "</s>",
        unk: str = "<unk>",
        extra_special_symbols: Iterable[str] | None = None,
        add_special_symbols: bool = True,
    ) -> None:
        self.bos_word, self.pad_word, self.eos_word, self.unk_word = bos, pad, eos, unk
        self.symbols: list[str] = []
        self.count: list[int] = []
        self.indices: dict[str, int] = {}
        if add_special_symbols:
            self.bos_index = self.add_symbol(bos)
            self.pad_index = self.add_symbol(pad)
            self.eos_index = self.add_symbol(eos)
            self.unk_index = self.add_symbol(unk)
            for symbol in extra_special_symbols or ():
                self.add_symbol(symbol)
        self.nspecial = len(self.symbols)

    def __eq__(self, other: object) -> bool:
        """Compare ids only, not counts."""
        return isinstance(other, Dictionary) and self.indices == other.indices

    def __getitem__(self, idx: int) -> str:
        """Return the symbol with id ``idx``, the unknown symbol if there is none."""
        return self.symbols[idx] if 0 <= idx < len(self.symbols) else self.unk_word

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, sym: object) -> bool:
        return sym in self.indices

    def index(self, sym: str) -> int:
        """Return the id of ``sym``, that of the unknown symbol if it is not in the dictionary."""
        index = self.indices.get(sym)
        return self.unk_index if index is None else index

    def get_count(self, idx: int) -> int:
        """Return how often the symbol with id ``idx`` was seen."""
        return self.count[idx]

    def is_counted(self) -> bool:
        """Tell whether symbols were counted in a text; those of imported models were not."""
        return any(self.count[self.nspecial :])

    def bos(self) -> int:
        """Return the id of the symbol that starts a sentence."""
        return self.bos_index

    def pad(self) -> int:
        """Return the id of the padding symbol."""
        return self.pad_index

    def eos(self) -> int:
        """Return the id of the symbol that ends a sentence."""
        return self.eos_index

    def unk(self) -> int:
        """Return the id of the unknown symbol."""
        return self.unk_index

    def unk_string(self, escape: bool = False) -> str:
        """Return the unknown symbol, in another pair of angle brackets if ``escape``."""
        return f"<{self.unk_word}>" if escape else self.unk_word

    def add_symbol(self, word: str, n: int = 1, overwrite: bool = False) -> int:
        """Add ``n`` occurrences of ``word`` and return its id.

        Args:
            word: the symbol.
            n: added to its count.
            overwrite: give it a new id, and its old id no way in, if it is known already.
        """
        index = None if overwrite else self.indices.get(word)
        if index is not None:
            self.count[index] += n
            return index
        index = self.indices[word] = len(self.symbols)
        self.symbols.append(word)
        self.count.append(n)
        return index

    def update(self, new_dict: Dictionary) -> None:
        """Add all symbols and counts of another dictionary."""
        for word, index in new_dict.indices.items():
            self.add_symbol(word, new_dict.count[index])

    def finalize(self, threshold: int = -1, nwords: int = -1, padding_factor: int = 8) -> None:
        """Sort the ordinary symbols by falling count (ties: by name) and drop the rare ones.

        Args:
            threshold: least count a symbol needs to stay.
            nwords: greatest number of symbols, the special ones included; no limit if not positive.
            padding_factor: the length becomes a multiple of it by symbols that stand for nothing.
        """
        limit = (nwords if nwords > 0 else len(self)) - self.nspecial
        ranked = sorted(range(self.nspecial, len(self)), key=self.symbols.__getitem__)
        # a stable sort: of equal counts the names keep their order
        ranked.sort(key=self.count.__getitem__, reverse=True)
        kept = [i for i in ranked[: max(limit, 0)] if self.count[i] >= threshold]
        kept = [*range(self.nspecial), *kept]
        self.symbols = [self.symbols[i] for i in kept]
        self.count = [self.count[i] for i in kept]
        self.indices = dict(zip(self.symbols, range(len(kept)), strict=True))
        self.pad_to_multiple_(padding_factor)

    def pad_to_multiple_(self, padding_factor: int) -> None:
        """Add ``madeupword0000`` and so on until the length is a multiple of ``padding_factor``."""
        number = 0
        while padding_factor > 1 and len(self) % padding_factor:
            self.add_symbol(f"madeupword{number:04d}", n=0)
            number += 1

    def is_filler(self, index: int) -> bool:
        """Tell whether a symbol only rounds the size: an unused ``madeupwordNNNN``."""
        return self.count[index] == 0 and _FILLER.fullmatch(self.symbols[index]) is not None

    def resized(self, rows: int, without: Collection[str] = ()) -> Dictionary | None:
        """Return a copy with ``rows`` symbols, made to fit by symbols that stand for nothing.

        Unused ``madeupwordNNNN`` symbols are dropped from the end, or a few are added there.

        Args:
            rows: length of the copy.
            without: symbols, such as ``<mask>``, that are left out if they come last.

        Returns:
            None if a symbol that stands for something would be lost, or if more are missing than
            rounding a size explains.
        """
        fitted = copy.copy(self)
        end = len(self)
        while end > 0 and self.symbols[end - 1] in without:
            end -= 1
        while end > rows and self.is_filler(end - 1):
            end -= 1
        if not end <= rows < end + MOST_FILLERS:
            return None
        fitted.symbols, fitted.count = self.symbols[:end], self.count[:end]
        fitted.indices = {word: index for word, index in self.indices.items() if index < end}
        number = 0
        while len(fitted) < rows:
            if f"madeupword{number:04d}" not in fitted:
                fitted.add_symbol(f"madeupword{number:04d}", n=0)
            number += 1
        return fitted

    def string(
        self,
        tensor: torch.Tensor | Any,
        bpe_symbol: str | None = None,
        escape_unk: bool = False,
        extra_symbols_to_ignore: Collection[int] | None = None,
        unk_string: str | None = None,
        include_eos: bool = False,
        separator: str = " ",
    ) -> str:
        """Turn ids into text, without the symbols that start and end a sentence.

        Args:
            tensor: ids (a tensor, array or list), or a batch of them, which becomes lines.
            bpe_symbol: marks of a subword encoding to undo (see :func:`post_process`).
            escape_unk: write the unknown symbol in another pair of angle brackets.
            extra_symbols_to_ignore: ids to leave out.
            unk_string: text for the unknown symbol.
            include_eos: keep the symbol that ends a sentence.
            separator: goes between symbols.
        """
        ids = tensor.tolist() if hasattr(tensor, "tolist") else list(tensor)
        ids = ids if isinstance(ids, list) else [ids]
        ignored = {*(extra_symbols_to_ignore or ()), getattr(self, "bos_index", None)}
        if not include_eos:
            ignored.add(self.eos_index)
        unknown = self.unk_string(escape_unk) if unk_string is None else unk_string

        def line(row: Sequence[Any]) -> str:
            kept = (int(i) for i in row if int(i) not in ignored)
            text = separator.join(unknown if i == self.unk_index else self[i] for i in kept)
            return post_process(text, bpe_symbol)

        is_batch = bool(ids) and (isinstance(ids[0], list) or getattr(ids[0], "ndim", 0) > 0)
        return "\n".join(line(row) for row in ids) if is_batch else line(ids)

    def encode_line(
        self,
        line: str,
        line_tokenizer: Tokenize = tokenize_line,
        add_if_not_exist: bool = True,
        consumer: Callable[[str, int], Any] | None = None,
        append_eos: bool = True,
        reverse_order: bool = False,
    ) -> torch.Tensor:
        """Return the ids of a line as an IntTensor.

        Args:
            line: its text.
            line_tokenizer: splits it into words.
            add_if_not_exist: add unknown words to the dictionary instead of mapping them.
            consumer: called with each word and its id.
            append_eos: end with the end-of-sentence symbol.
            reverse_order: turn the words around.
        """
        import torch

        words = line_tokenizer(line)
        if reverse_order:
            words = list(reversed(words))
        lookup = self.add_symbol if add_if_not_exist else self.index
        ids = [lookup(word) for word in words]
        if consumer is not None:
            for word, index in zip(words, ids, strict=True):
                consumer(word, index)
        return torch.tensor(ids + [self.eos_index] * append_eos, dtype=torch.int32)

    @classmethod
    def load(cls, f: PathLike | IO[str], add_special_symbols: bool = True) -> Dictionary:
        """Read a dictionary file.

        Args:
            f: its name, or an open text file.
            add_special_symbols: put the special symbols first.

        Raises:
            DataError: naming the line that is not a symbol and a count, or not UTF-8.
            DuplicateSymbolError: if a symbol occurs twice.
            MissingFileError: if there is no such file.
        """
        dictionary = cls(add_special_symbols=add_special_symbols)
        dictionary.add_from_file(f)
        return dictionary

    def add_from_file(self, f: PathLike | IO[str]) -> None:
        """Add the symbols of a dictionary file; arguments and errors are those of :meth:`load`."""
        if isinstance(f, (str, os.PathLike)):
            remedy = "Give the dict.txt that fairseq-preprocess wrote."
            with open(require_file(f, "dictionary", remedy), encoding="utf-8") as handle:
                self._add_lines(handle, os.fspath(f))
        else:
            self._add_lines(f, str(getattr(f, "name", "dictionary")))

    def _add_lines(self, lines: Iterable[str], name: str) -> None:
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if len(self) == self.nspecial == 4 and _roles_in(line):
                    self._start_foreign()
                self._add_entry(line, f"{name}, line {number}")
        except UnicodeDecodeError as error:
            raise DataError(
                f"Incorrect encoding detected in {name} after line {number} ({error.reason}); "
                "please rebuild the dataset, or convert the file to UTF-8."
            ) from error

    def _add_entry(self, line: str, where: str) -> None:
        role = _roles_in(line)
        line = line if role is None else line[: role.start()]
        word, blank, count = line.rstrip().rpartition(" ")
        overwrite = count == OVERWRITE
        if overwrite:
            word, blank, count = word.rpartition(" ")
        if not blank or not _COUNT.fullmatch(count):
            raise DataError(
                f"Incorrect dictionary format, expected '<token> <cnt> [flags]': {where} is "
                f"{line.rstrip()[:_SHOWN]!r}. Is this file a dictionary?"
            )
        if word in self and not overwrite:
            raise DuplicateSymbolError(
                f"Duplicate word found when loading Dictionary: {word[:_SHOWN]!r} ({where}). Put "
                f"{OVERWRITE} after the count if this line shall redefine it, or drop the line."
            )
        index = self.add_symbol(word, n=int(count), overwrite=overwrite)
        if role is not None:
            if self.nspecial:
                raise DataError(
                    f"{where}: special symbols can only be named in a file whose first line names "
                    "one, or says #fairseq:all"
                )
            for name in role[0].replace(" #fairseq:all", "").split(" #fairseq:")[1:]:
                setattr(self, f"{name}_index", index)
                setattr(self, f"{name}_word", word)

    def _start_foreign(self) -> None:
        """Become the dictionary of another toolkit, whose file names its special symbols."""
        self.symbols, self.count, self.indices, self.nspecial = [], [], {}, 0
        for role in ("bos", "pad", "eos", "unk"):
            setattr(self, f"{role}_index", 0)

    @classmethod
    def foreign(cls, symbols: Sequence[str], **roles: str) -> Dictionary:
        """Return a dictionary with the ids of another toolkit.

        Args:
            symbols: the symbol of each id.
            **roles: which of them are ``bos``, ``pad``, ``eos``, ``unk`` and, if any, ``mask``.
        """
        dictionary = cls(add_special_symbols=False)
        for symbol in symbols:
            dictionary.add_symbol(symbol, n=0)
        for role, word in roles.items():
            setattr(dictionary, f"{role}_word", word)
            setattr(dictionary, f"{role}_index", dictionary.indices[word])
        return dictionary

    def save(self, f: PathLike | IO[str]) -> None:
        """Write all but the special symbols to a file (atomically), or to an open text file.

        Raises:
            DataError: if a symbol has a line end in it, which no file could give back.
        """
        if not isinstance(f, (str, os.PathLike)):
            f.write(self._text())
            return
        with atomic_write(f, "w", newline="\n") as handle:
            handle.write(self._text())

    def _text(self) -> str:
        symbols = self.symbols[self.nspecial :]
        lines = [f"{s} {n}\n" for s, n in zip(symbols, self.count[self.nspecial :], strict=True)]
        if not self.nspecial and hasattr(self, "pad_index"):
            for role in ("bos", "pad", "eos", "unk", "mask"):
                index = self.indices.get(getattr(self, f"{role}_word"))
                if index is not None:
                    lines[index] = f"{lines[index][:-1]} #fairseq:{role}\n"
            if lines and _roles_in(lines[0]) is None:
                lines[0] = f"{lines[0][:-1]} #fairseq:all\n"
        if len(self.indices) < len(self.symbols):
            seen = set(self.symbols[: self.nspecial])
            for i, symbol in enumerate(symbols):
                if symbol in seen:
                    lines[i] = f"{lines[i][:-1]} {OVERWRITE}\n"
                seen.add(symbol)
        text = "".join(lines)
        if text.startswith(BYTE_ORDER_MARK):  # of the first symbol: the one before it is dropped
            text = BYTE_ORDER_MARK + text
        if text.count("\n") != len(symbols) or "\r" in text:
            broken = next(symbol for symbol in symbols if "\n" in symbol or "\r" in symbol)
            raise DataError(f"symbol {broken!r} holds a line end and cannot be saved")
        return text

    @staticmethod
    def add_file_to_dictionary(
        filename: PathLike, dict: Dictionary, tokenize: Tokenize, num_workers: int
    ) -> None:
        """Count the words of a text file, and one end of sentence for each of its lines.

        Args:
            filename: the UTF-8 text.
            dict: where they are added, in the order of their names.
            tokenize: splits a line into words.
            num_workers: processes that read.
        """
        dict.add_counted(TextNumbers(filename, tokenize, num_workers))

    def add_counted(self, text: TextNumbers) -> None:
        """Add the words and line ends of a text that was read, in the order of their names."""
        lines, *word_counts = text.counts_W.tolist()
        counts = dict(zip(text.words[1:], word_counts, strict=True))
        counts[self.eos_word] = counts.get(self.eos_word, 0) + lines
        for word in [word for word in self.indices if word in counts]:
            self.add_symbol(word, counts.pop(word))
        added = sorted(counts)
        self.indices.update(zip(added, range(len(self), len(self) + len(added)), strict=True))
        self.symbols += added
        self.count += map(counts.__getitem__, added)


class TruncatedDictionary(Dictionary):
    """The first ``length`` symbols of another dictionary; the rest is unknown."""

    def __init__(self, wrapped_dict: Dictionary, length: int) -> None:
        self.__dict__.update(vars(wrapped_dict))
        self.wrapped_dict = wrapped_dict
        self.length = length
        self.symbols = wrapped_dict.symbols[:length]
        self.count = wrapped_dict.count[:length]
        self.indices = {word: i for word, i in wrapped_dict.indices.items() if i < length}


def post_process(sentence: str, symbol: str | None) -> str:
    """Undo a subword encoding of a sentence of symbols.

    Args:
        sentence: symbols joined by blanks.
        symbol: ``sentencepiece``, ``wordpiece``, ``letter``, ``_EOW``, ``subword_nmt`` (or its mark
            ``"@@ "``); None or ``none`` to leave the sentence alone.

    Raises:
        ConfigError: for any other name.
    """
    if symbol is None or symbol == "none":
        return sentence
    if symbol in _BLANKS:
        return sentence.replace(" ", "").replace(_BLANKS[symbol], " ").strip()
    if symbol in ("subword_nmt", "@@ ", "@@"):
        mark = "@@ " if symbol == "subword_nmt" else symbol
        # the mark of the last piece has no blank behind it otherwise
        return (sentence + " ").replace(mark, "").rstrip()
    raise ConfigError(
        f"unknown subword encoding {symbol!r}{did_you_mean(symbol, _BLANKS)}; "
        f"use {', '.join(_BLANKS)}, subword_nmt or none"
    )

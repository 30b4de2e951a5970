"""Records as texts of ``fairseq-preprocess``: JSON lines, Parquet files, datasets folders.

They become a file of lines first, in blocks, so that the bytes of a dataset depend neither on the
kind of the input nor on the number of processes, and memory does not grow with the corpus.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from fairseq.files.documents import DocumentOptions, choose_options
from fairseq.preprocess.encode import Summary, encode_files


@dataclasses.dataclass(frozen=True)
class Records:
    """An input that holds records.

    Attributes:
        name: the file or folder.
        options: how its documents are found.
    """

    name: str
    options: DocumentOptions

    def write(self, target: str, tokenizer: str | None, workers: int) -> Summary:
        """Write the lines of all documents, an empty line between two of them.

        Args:
            target: the file.
            tokenizer: ``tokenizer.json`` that cuts text into pieces; None keeps words as they are.
            workers: processes; they do not change a byte.

        Raises:
            ConfigError: if a library is missing, or there is no such split.
            DataError: on a damaged file, a column that is not there, or a record without text.
        """
        encoder: Any = Words()
        if tokenizer is not None:
            from fairseq.data.encoders.byte_level import ByteLevelBPE, ByteLevelBPEConfig

            encoder = ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=tokenizer))
        return encode_files(encoder, [self.name], [target], workers=workers, documents=self.options)


class Words:
    """An encoder that leaves words as they are."""

    def encode(self, x: str) -> str:
        """Return ``x``."""
        return x

    decode = encode


def records_of(path: str, text_key: str | None, skip_bad: bool) -> Records | None:
    """Return how an input is read as records, None if it is a file of words.

    Args:
        path: a file or folder, ``PLACE:SPLIT`` for a split or a part of the rows of columns, as
            in ``owt.hf:train(0:0.99)``.
        text_key: key or column of the text; if given, a file of any name holds JSON lines.
        skip_bad: leave records without text out.

    Raises:
        ConfigError: for a split of something that has none.
    """
    place, colon, split = path.partition(":")
    if not colon or os.path.exists(path) or not os.path.exists(place):
        place, split = path, ""
    is_text = text_key is None and choose_options([place]) is None
    options = choose_options([place], text_key, skip_bad and not is_text, split or None)
    return None if options is None else Records(place, options)

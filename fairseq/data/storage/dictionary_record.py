"""Digests of dictionaries in checkpoints: the same ids are to mean the same words.

A table of embeddings fits any dictionary of its size; in another order its rows mean other words,
and no tensor shows it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fairseq.checkpoint.layout import record_of
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError

logger = logging.getLogger(__name__)

RECORD = "dictionaries"


def meaningful_symbols(dictionary: Dictionary) -> list[str]:
    """Return the symbols in the order of their ids, without what each load may add or drop.

    That is ``madeupwordNNNN``, which rounds the size, and ``<mask>`` at the end, which a task adds.
    """
    symbols = [s for i, s in enumerate(dictionary.symbols) if not dictionary.is_filler(i)]
    if symbols and symbols[-1] == dictionary.mask_word:
        symbols.pop()
    return symbols


def digest_of(symbols: Sequence[str]) -> str:
    """Return the SHA-256 of symbols; a line end cannot be part of one."""
    return hashlib.sha256("\n".join(symbols).encode("utf-8", "surrogatepass")).hexdigest()


def compare_with_record(
    path: str, state: Mapping[str, Any], dictionary: Dictionary, part: str = "source"
) -> bool:
    """Compare a dictionary with the one that a checkpoint was trained with.

    Args:
        path: of the checkpoint, for messages.
        state: its content.
        dictionary: that goes to give its ids a meaning.
        part: what it is the dictionary of.

    Returns:
        whether the checkpoint records one; files of other programs do not.

    Raises:
        CheckpointError: if they differ in more than words in place of symbols that round the size.
    """
    kept = record_of(state).get(RECORD)
    record = kept.get(part) if isinstance(kept, Mapping) else None
    if not isinstance(record, Mapping):
        return False
    here, symbols = meaningful_symbols(dictionary), int(record.get("symbols", 0))
    if digest_of(here[:symbols]) != record.get("sha256") or len(here) < symbols:
        raise CheckpointError(
            f"the dictionary of the data ({part}, {len(here)} symbols) is not the one that {path} "
            f"was trained with ({symbols} symbols): the same ids mean other words. Use the data "
            "folder of the training, or binarize the text anew with its dict.txt (--srcdict)"
        )
    if len(here) > symbols:
        logger.warning(
            "the dictionary has %s symbols more than %s was trained with, in place of symbols that "
            "rounded its size: their embeddings are untrained",
            len(here) - symbols,
            path,
        )
    return True

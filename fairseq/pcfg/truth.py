"""The true conditionals of masked batches, in the numbers of a dictionary.

Shape suffixes: B rows, T time, N masked positions, W words of the source, V dictionary entries.
"""

from __future__ import annotations

import numpy as np

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import DataError
from fairseq.pcfg.chart import MASK
from fairseq.pcfg.source import Source, batches

# word numbers begin at 0, and -1 is a hidden word
_FRAME, _FOREIGN = -2, -3


class Truth:
    """What a perfect model would answer.

    Attributes:
        ids_W: int64 (W,), the dictionary's id of each word.

    Raises:
        DataError: if a word is missing in the dictionary.
    """

    def __init__(self, source: Source, dictionary: Dictionary, mask: int) -> None:
        missing = [word for word in source.terminals if word not in dictionary]
        if missing:
            raise DataError(
                f"{len(missing)} words of the grammar, such as '{missing[0]}', are not in the "
                "dictionary: it belongs to other data, or rare words were dropped"
            )
        self.source, self.dictionary = source, dictionary
        self.ids_W = np.array([dictionary.index(word) for word in source.terminals])
        self._word_V = np.full(max(len(dictionary), mask + 1), _FOREIGN)
        self._word_V[self.ids_W] = np.arange(len(self.ids_W))
        self._word_V[[dictionary.bos(), dictionary.eos(), dictionary.pad()]] = _FRAME
        self._word_V[mask] = MASK

    def conditionals(self, tokens_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the distribution at every word of every row, given all words that are shown.

        Args:
            tokens_BT: int64, a row is one sentence, framed by special symbols.

        Returns:
            ``q_BTW`` float64, zero at special symbols, NaN where no word fits; ``logp_B`` of the
            shown words; ``length_B`` int64, words of each row.

        Raises:
            DataError: if a row holds another word, or several sentences.
        """
        word_BT = self._word_V[tokens_BT]
        if (word_BT == _FOREIGN).any():
            stranger = self.dictionary[int(tokens_BT[word_BT == _FOREIGN][0])]
            raise DataError(f"'{stranger}' is no word of the grammar; is it the data's own?")
        is_word_BT = word_BT != _FRAME
        # one run of words a row: it begins once at most
        begins_BT = is_word_BT & ~np.pad(is_word_BT, ((0, 0), (1, 0)))[:, :-1]
        if (begins_BT.sum(axis=1) > 1).any():
            raise DataError(
                "a block holds several sentences, and conditionals are known for one; use "
                "--sample-break-mode eos, with --tokens-per-sample for the longest"
            )
        length_B = is_word_BT.sum(axis=1)
        rows = [word_T[is_word_T] for word_T, is_word_T in zip(word_BT, is_word_BT, strict=True)]
        begin_B = begins_BT.argmax(axis=1)
        q_BTW = np.zeros((*tokens_BT.shape, len(self.ids_W)))
        logp_B = np.zeros(len(rows))
        full = np.flatnonzero(length_B)
        for places, words_BN in batches(self.source, [rows[row] for row in full]):
            row_B = full[places]
            q_BNW, logp_B[row_B] = self.source.conditionals(words_BN)
            columns_BN = begin_B[row_B][:, None] + np.arange(words_BN.shape[1])
            q_BTW[row_B[:, None], columns_BN] = q_BNW
        return q_BTW, logp_B, length_B


def entropies(q_NW: np.ndarray) -> np.ndarray:
    """Return the entropy of each row in nats, float64 (N,)."""
    log_NW = np.log(q_NW, out=np.zeros_like(q_NW), where=q_NW > 0)
    return -np.einsum("nw,nw->n", q_NW, log_NW)

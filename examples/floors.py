"""Floors of language models: counts of words, without a network.

Usage: python examples/floors.py TRAIN TEST

prints the perplexities of bigrams and trigrams; words are what stands between spaces, and every
end of a line is one, too.

Sources: interpolated Kneser-Ney in the form of Chen and Goodman (1999), equations 24 to 27, one
discount an order, D = n1 / (n1 + 2 n2). Probabilities are over all V words of the dictionary; the
lowest order is mixed with 1 / V.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np


def discount(counts_M: np.ndarray) -> float:
    """Return Ney's estimate of what is taken from every count."""
    once, twice = int((counts_M == 1).sum()), int((counts_M == 2).sum())
    return once / (once + 2 * twice) if once + twice else 0.5


class KneserNey:
    """Bigrams and trigrams of one stream of tokens.

    Args:
        tokens_N: int64 ids below ``size``.
        size: V.
    """

    def __init__(self, tokens_N: np.ndarray, size: int) -> None:
        if size**3 >= 2**63:
            raise ValueError(f"a dictionary of {size} words is too large to number its trigrams")
        self.size = size
        self.tokens_N = tokens_N.astype(np.int64)
        self.unigram_V = self._lowest(self.tokens_N[:-1] * size + self.tokens_N[1:])

    def _lowest(self, pairs_N: np.ndarray) -> np.ndarray:
        """Return p(w) from how many words each word follows, (V,) float64."""
        kinds = np.bincount(np.unique(pairs_N) % self.size, minlength=self.size).astype(float)
        taken = discount(kinds[kinds > 0])
        left = taken * (kinds > 0).sum() / kinds.sum()
        return np.maximum(kinds - taken, 0.0) / kinds.sum() + left / self.size

    def _order(self, keys: np.ndarray, counts_M: np.ndarray) -> _Order:
        return _Order(keys, counts_M, self.size)

    def bigram(self, *, highest: bool = True) -> _Order:
        """Return the order of pairs: of counts, or of the kinds of words before them (``highest``
        False), which is what a trigram backs off to."""
        size, tokens = self.size, self.tokens_N
        if highest:
            return self._order(*np.unique(tokens[:-1] * size + tokens[1:], return_counts=True))
        triples = np.unique((tokens[:-2] * size + tokens[1:-1]) * size + tokens[2:])
        return self._order(*np.unique(triples % (size * size), return_counts=True))

    def bigram_probability(self, before_M: np.ndarray, word_M: np.ndarray) -> np.ndarray:
        """Return p(word | before), (M,) float64."""
        return self.bigram().probability(before_M, word_M, self.unigram_V[word_M])

    def trigram_probability(
        self, first_M: np.ndarray, second_M: np.ndarray, word_M: np.ndarray
    ) -> np.ndarray:
        """Return p(word | first second), (M,) float64."""
        size, tokens = self.size, self.tokens_N
        triples = (tokens[:-2] * size + tokens[1:-1]) * size + tokens[2:]
        lower = self.bigram(highest=False).probability(second_M, word_M, self.unigram_V[word_M])
        top = self._order(*np.unique(triples, return_counts=True))
        return top.probability(first_M * size + second_M, word_M, lower)

    def bigram_matrix(self) -> np.ndarray:
        """Return p(w | v) for all pairs, (V, V) float32, rows v."""
        order, size = self.bigram(), self.size
        matrix_VV = (order.left_over(np.arange(size))[:, None] * self.unigram_V).astype(np.float32)
        histories, words = order.keys // size, order.keys % size
        matrix_VV[histories, words] += order.discounted_share()
        return matrix_VV


class _Order:
    """Discounted counts of n-grams, numbered ``history * size + word``, in ascending order."""

    def __init__(self, keys: np.ndarray, counts_M: np.ndarray, size: int) -> None:
        self.keys, self.counts, self.size = keys, counts_M.astype(float), size
        self.taken = discount(counts_M)
        self.histories, where, kinds = np.unique(
            keys // size, return_inverse=True, return_counts=True
        )
        self.totals = np.bincount(where, self.counts)
        self.shares = self.taken * kinds / self.totals
        self.total_of_key = self.totals[where]

    def discounted_share(self) -> np.ndarray:
        """Return max(c - D, 0) / c(history) of every n-gram."""
        return np.maximum(self.counts - self.taken, 0.0) / self.total_of_key

    def left_over(self, history_M: np.ndarray) -> np.ndarray:
        """Return what a history leaves to the lower order; all of it where it was never seen."""
        at = np.minimum(np.searchsorted(self.histories, history_M), len(self.histories) - 1)
        return np.where(self.histories[at] == history_M, self.shares[at], 1.0)

    def probability(
        self, history_M: np.ndarray, word_M: np.ndarray, lower_M: np.ndarray
    ) -> np.ndarray:
        """Return the interpolated probability of words after histories."""
        wanted = history_M * self.size + word_M
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        share = np.where(self.keys[at] == wanted, self.discounted_share()[at], 0.0)
        return share + self.left_over(history_M) * lower_M


def causal_bits(model: KneserNey, tokens_N: np.ndarray) -> dict[str, float]:
    """Return the bits a token that bigram and trigram need from the third token on."""
    first, second, word = tokens_N[:-2], tokens_N[1:-1], tokens_N[2:]
    return {
        "bigram": float(-np.log2(model.bigram_probability(second, word)).mean()),
        "trigram": float(-np.log2(model.trigram_probability(first, second, word)).mean()),
    }


def text_bits(train: Path, test: Path) -> dict[str, float]:
    """Return :func:`causal_bits` of a text, counted in another; every end of a line is a word."""
    ids: dict[str, int] = {}

    def words(path: Path) -> Iterator[int]:
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            for word in (*line.split(), "\n"):
                yield ids.setdefault(word, len(ids))

    counted, judged = (np.fromiter(words(path), np.int64) for path in (train, test))
    return causal_bits(KneserNey(counted, len(ids)), judged)


def bidirectional_bits(
    matrix_VV: np.ndarray,
    unigram_V: np.ndarray,
    left_M: np.ndarray,
    right_M: np.ndarray,
    target_M: np.ndarray,
    hidden: int,
    chunk: int = 256,
) -> np.ndarray:
    """Return the bits of masked tokens under p(w | left) p(right | w), normalised over w.

    Args:
        matrix_VV: p(w | v), rows v.
        unigram_V: p(w), in place of p(w | left) where the left neighbour is hidden.
        left_M: what stands to the left, ``hidden`` where nothing is known.
        right_M: the same to the right; a hidden one says nothing.
        target_M: what is to be predicted.
        hidden: the id that says so.
        chunk: rows worked on at a time, each V wide.
    """
    backward_VV = np.ascontiguousarray(matrix_VV.T)
    bits = np.empty(len(target_M))
    for start in range(0, len(target_M), chunk):
        part = slice(start, start + chunk)
        left, right, target = left_M[part], right_M[part], target_M[part]
        score = np.where((left == hidden)[:, None], unigram_V[None], matrix_VV[left])
        score = np.where((right == hidden)[:, None], score, score * backward_VV[right])
        share = score[np.arange(len(target)), target] / score.sum(1)
        bits[part] = -np.log2(share)
    return bits


def masked_bits(
    checkpoint: Path, data: Path, subsets: Sequence[str], seed: int, steps: int = 1_000_000
) -> dict[str, dict[str, float]]:
    """Return what counts of words reach on the masks of a validation, by subset.

    "unigram" looks at nothing; "bidirectional bigram" at both neighbours as the model sees them,
    and at none that is masked.

    Args:
        checkpoint: of a masked language model, whose settings draw the masks.
        data: the binarized texts.
        subsets: their names.
        seed: of the masks.
        steps: batches of each subset, at most.
    """
    from fairseq.data.data_utils import load_indexed_dataset
    from fairseq.hub.load import load_by_settings
    from fairseq.tasks import validation

    models, config, task = load_by_settings(
        {"path": str(checkpoint), "data": str(data), "seed": seed, "max_valid_steps": steps}
    )  # fmt: skip
    words = task.source_dictionary
    lines = load_indexed_dataset(str(data / "train"), words)
    stream = np.concatenate([np.asarray(lines[number]) for number in range(len(lines))])
    counts = KneserNey(stream, len(words))
    matrix_VV, unknown = counts.bigram_matrix(), words.pad()
    result = {}
    for subset in subsets:
        task.load_dataset(subset, combine=False, epoch=1)
        validation.begin_validation(config, task, models[0], epoch=1)
        left, right, target = [], [], []
        batches = validation.valid_batches(config, task, models[0], subset)
        for sample in batches.next_epoch_itr(shuffle=False):
            seen_BT = sample["net_input"]["src_tokens"].numpy().astype(np.int64)
            seen_BT[seen_BT == task.mask_idx] = unknown
            around_BT = np.pad(seen_BT, ((0, 0), (1, 1)), constant_values=unknown)
            target_BT = sample["target"].numpy()
            rows, columns = np.nonzero(target_BT != words.pad())
            left.append(around_BT[rows, columns])
            right.append(around_BT[rows, columns + 2])
            target.append(target_BT[rows, columns])
        goal = np.concatenate(target)
        bits = bidirectional_bits(
            matrix_VV, counts.unigram_V, np.concatenate(left), np.concatenate(right), goal, unknown
        )
        frequency = (np.bincount(stream, minlength=len(words)) + 1) / (len(stream) + len(words))
        result[subset] = {
            "unigram": float(-np.log2(frequency[goal]).mean()),
            "bidirectional bigram": float(bits.mean()),
            "predicted": len(goal),
        }
    return result


def main() -> None:
    """Print what counts of the words of one file make of another."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python examples/floors.py TRAIN TEST")
    bits = text_bits(Path(sys.argv[1]), Path(sys.argv[2]))
    print(", ".join(f"{name} {2**value:.1f}" for name, value in bits.items()))


if __name__ == "__main__":
    main()

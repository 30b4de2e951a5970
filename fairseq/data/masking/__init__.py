"""Masking for masked language models: which tokens to predict, and what the model sees instead.

:func:`mask_tokens` masks a whole batch at once. What happens to an item is a pure function of
(seed, epoch, item index): batch, padding and workers play no part. Special tokens are never masked
and never drawn as random replacements. The original's generators live in ``mask_replay``.

A *unit* is what gets chosen: a token, or a word with all its tokens when ``word_begin_V`` is given.
The number of chosen units of n is floor(mask_prob * n / mask_multiple_length + U), U uniform in
[0, 1), as in the original; here n counts maskable units only. With ``mask_count`` it is that count.

Shape suffixes: B items, T tokens of the longest item, V ids, W random words, N chosen things.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.rng import raw_words

# Random words of one item: word 0 rounds the number of chosen units, word 1 is spare, then two
# words a token: (choice, span length) and (treatment, replacement), 32 bits each, high bits first.
# An item's words depend on its own positions only, so that padding changes nothing.
_ITEM_WORDS = 2
_LOW_BITS = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_PADDING_WORD = re.compile(r"madeupword\d{4}")


def word_begins(dictionary: Dictionary, bpe: Any) -> np.ndarray:
    """Return for every id whether it begins a word, bool of shape (V,); ``bpe`` tells of pieces."""
    begins = np.ones(len(dictionary), dtype=bool)
    # special symbols and fillers are no pieces, which an encoder could not look up
    for index in range(dictionary.nspecial, len(dictionary)):
        if not dictionary.is_filler(index):
            begins[index] = bpe.is_beginning_of_word(dictionary[index])
    return begins


@dataclass(frozen=True, eq=False)
class MaskSpec:
    """Everything about masking that does not change from batch to batch.

    Attributes:
        vocab_size: size V of the dictionary.
        pad: id that fills the target where nothing is predicted.
        mask: id shown for masked tokens; V itself for models that embed it as zeros.
        specials: ids that ``philox`` never masks (``pad`` and ``mask`` need not be listed).
        never_drawn: further ids that ``philox`` never draws as random replacements.
        n_special: the original never draws ids below this one (replays only).
        mask_prob: share of the maskable units to choose, in (0, 1].
        leave_unmasked_prob: share of the chosen tokens shown unchanged.
        random_token_prob: share of the chosen tokens shown as a random token.
        counts_V: weights for drawing random tokens, such as word counts; None for uniform.
        word_begin_V: true where an id begins a word, to mask whole words; None to mask tokens.
        mask_multiple_length: mean number of consecutive units masked from each chosen one.
        mask_stdev: standard deviation of that number; 0 for always the same.
        mask_count: choose exactly so many tokens of each item (all, where it has fewer) instead of
            a share; 0 for the share.
        weight_V: weights for choosing the tokens to predict, positive; None for equal ones.

    Raises:
        ConfigError: if a probability or length is out of range, or nothing is left to draw.
    """

    vocab_size: int
    pad: int
    mask: int
    specials: tuple[int, ...] = ()
    never_drawn: tuple[int, ...] = ()
    n_special: int = 4
    mask_prob: float = 0.15
    leave_unmasked_prob: float = 0.1
    random_token_prob: float = 0.1
    counts_V: np.ndarray | None = None
    word_begin_V: np.ndarray | None = None
    mask_multiple_length: int = 1
    mask_stdev: float = 0.0
    mask_count: int = 0
    weight_V: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.mask_count < 0:
            raise ConfigError(f"--mask-count must not be negative, not {self.mask_count}")
        runs = self.mask_multiple_length != 1 or self.mask_stdev != 0.0
        if self.mask_count and (runs or self.word_begin_V is not None):
            raise ConfigError(
                "--mask-count counts tokens: drop --mask-whole-words, --mask-multiple-length and "
                "--mask-stdev"
            )
        if not self.mask_count and not 0.0 < self.mask_prob <= 1.0:
            raise ConfigError(f"--mask-prob must be above 0 and at most 1, not {self.mask_prob}")
        for name in ("leave_unmasked_prob", "random_token_prob"):
            if not 0.0 <= (share := getattr(self, name)) <= 1.0:
                raise ConfigError(f"--{name.replace('_', '-')} must be in [0, 1], not {share}")
        # the rest of one is the share that becomes <mask>
        if self.leave_unmasked_prob + self.random_token_prob > 1.0:
            raise ConfigError(
                "--leave-unmasked-prob and --random-token-prob sum to "
                f"{self.leave_unmasked_prob + self.random_token_prob}: lower one, 1 is the most"
            )
        if self.mask_multiple_length < 1 or self.mask_stdev < 0.0:
            raise ConfigError(
                "--mask-multiple-length must be at least 1 and --mask-stdev at least 0, not "
                f"{self.mask_multiple_length} and {self.mask_stdev}"
            )
        if self.random_token_prob > 0.0 and not self.drawable_N.size:
            raise ConfigError(
                "no token of the dictionary may be a random replacement; set --random-token-prob 0"
            )

    @classmethod
    def from_dictionary(
        cls,
        vocab: Dictionary,
        *,
        mask: int,
        pad: int | None = None,
        freq_weighted_replacement: bool = False,
        word_begin_V: np.ndarray | None = None,
        smoothing: float = 0.0,
        **knobs: Any,
    ) -> MaskSpec:
        """Read the special ids from a dictionary.

        ``<unk>`` and extra special symbols may be masked but, like the words that only pad the
        dictionary to a round size (``madeupword0000`` with count 0), are never drawn.

        Args:
            vocab: the dictionary, ``<mask>`` already added if it has one.
            mask: id shown for masked tokens.
            pad: padding id, the dictionary's by default.
            freq_weighted_replacement: draw random tokens by their counts.
            word_begin_V: see the class.
            smoothing: tokens are chosen with the weight ``max(count, 1)^-smoothing``.
            **knobs: the probabilities and span lengths of the class.

        Raises:
            ConfigError: as the class does.
            DataError: if counts are asked for that the dictionary does not have.
        """
        counts = np.asarray(vocab.count, dtype=np.int64)
        ids_V = np.arange(len(counts))
        counted = counts[(ids_V >= vocab.nspecial) & (ids_V != mask)].any()
        if (smoothing or freq_weighted_replacement) and not counted:
            flag = "--mask-smoothing" if smoothing else "--freq-weighted-replacement"
            raise DataError(
                f"{flag} needs to know how often each word occurs, and the dictionary holds no "
                "counts. Those of an imported model's are written where the training text is "
                "binarized with it (fairseq-preprocess --srcdict); or leave the flag out"
            )
        fillers = [
            index
            for index in np.flatnonzero(counts == 0).tolist()
            if _PADDING_WORD.fullmatch(vocab.symbols[index])
        ]
        return cls(
            vocab_size=len(vocab),
            pad=vocab.pad() if pad is None else pad,
            mask=mask,
            # <unk> is not among them: it is text, which may be masked, but makes no random word
            specials=(vocab.bos(), vocab.pad(), vocab.eos()),
            never_drawn=(vocab.unk(), *range(vocab.nspecial), *fillers),
            n_special=vocab.nspecial,
            counts_V=counts if freq_weighted_replacement else None,
            word_begin_V=word_begin_V,
            # fillers have count 0, whose negative power is infinite
            weight_V=np.maximum(counts, 1.0) ** -smoothing if smoothing else None,
            **knobs,
        )

    @functools.cached_property
    def special_V(self) -> np.ndarray:
        """Bool (max(V, mask + 1),): true for ids that are never masked."""
        special_V = np.zeros(max(self.vocab_size, self.mask + 1), dtype=np.bool_)
        special_V[[*self.specials, self.pad, self.mask]] = True
        return special_V

    @functools.cached_property
    def drawable_N(self) -> np.ndarray:
        """Int64 (N,): ids that may be drawn as random replacements."""
        allowed_V = ~self.special_V[: self.vocab_size]
        allowed_V[list(self.never_drawn)] = False
        if self.counts_V is not None:
            allowed_V &= self.counts_V > 0
        return np.flatnonzero(allowed_V)

    @functools.cached_property
    def drawable_cdf_N(self) -> np.ndarray | None:
        """Float64 (N,): cumulative share of each drawable id; None when all are equal."""
        if self.counts_V is None:
            return None
        cumulative_N = np.cumsum(self.counts_V[self.drawable_N], dtype=np.float64)
        return cumulative_N / cumulative_N[-1]

    @functools.cached_property
    def span_cdf_N(self) -> np.ndarray:
        """Float64 (N,): entry i is P(span length <= i), the length a rounded normal, at least 0."""
        scale = self.mask_stdev * math.sqrt(2.0)
        # 8 standard deviations: what lies beyond has a probability below 1e-15
        longest = math.ceil(self.mask_multiple_length + 8 * self.mask_stdev)
        ends = [(i + 0.5 - self.mask_multiple_length) / scale for i in range(longest)]
        return np.array([*((1.0 + math.erf(end)) / 2.0 for end in ends), 1.0])

    @functools.cached_property
    def original_weights_V(self) -> np.ndarray:
        """Float64 (V,): the original's probabilities of random replacements (replays only)."""
        weights_V = np.ones(self.vocab_size) if self.counts_V is None else self.counts_V.copy()
        weights_V[: self.n_special] = 0
        return weights_V / weights_V.sum()


def mask_tokens(
    tokens_BT: np.ndarray,
    lengths_B: np.ndarray,
    indices_B: np.ndarray,
    *,
    spec: MaskSpec,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a batch with the ``philox`` generator.

    Args:
        tokens_BT: int (B, T), right padded; what stands past a row's length is not looked at.
        lengths_B: int (B,): tokens in each row.
        indices_B: int (B,): index of each item in its dataset, the key of its randomness.
        spec: what to mask and how.
        seed: the run's seed.
        epoch: the epoch; another one gives other masks.

    Returns:
        source_BT: the tokens with the chosen ones masked, replaced or left.
        target_BT: the original tokens where one was chosen, ``spec.pad`` elsewhere. Both have the
        shape and dtype of ``tokens_BT``.

    Raises:
        DataError: if a token id lies outside the dictionary.
    """
    width = tokens_BT.shape[1]
    # one word to round the number of units, then two for each place: one chooses, one treats.
    # A place has its words whatever is masked, so that no choice shifts the draws of another
    n_words = _ITEM_WORDS + 2 * width
    words_BW = raw_words(seed, "mask", epoch, indices_N=indices_B, n_words=n_words)
    choice_BT = words_BW[:, _ITEM_WORDS::2]
    positions_T = np.arange(width)
    try:
        maskable_BT = ~spec.special_V[tokens_BT]
    except IndexError:
        raise DataError(
            f"token id {tokens_BT.max()} is outside the dictionary of {spec.vocab_size} symbols; "
            "use the dict.txt that the data were binarized with"
        ) from None
    maskable_BT &= positions_T < lengths_B[:, None]
    begins_BT = _unit_begins(tokens_BT, maskable_BT, spec)
    weight_BT = None
    if spec.weight_V is not None:
        weight_BT = spec.weight_V[np.minimum(tokens_BT, len(spec.weight_V) - 1)]
    chosen_BT = _choose_units(begins_BT, words_BW[:, 0], choice_BT, spec, weight_BT)
    # single tokens, the usual case: nothing to spread
    if spec.word_begin_V is None and spec.mask_multiple_length == 1 and spec.mask_stdev == 0.0:
        masked_BT = chosen_BT
    else:
        masked_BT = maskable_BT & _spread(chosen_BT, begins_BT, choice_BT, spec)

    masked_N = np.flatnonzero(masked_BT)
    rows_N, columns_N = np.divmod(masked_N, max(width, 1))
    treatment_BT = words_BW[:, _ITEM_WORDS + 1 :: 2]
    # taken before the columns move to the words' beginnings: a word has one treatment, but each
    # of its tokens a replacement of its own
    replacement_N = treatment_BT[rows_N, columns_N] & _LOW_BITS
    if spec.word_begin_V is not None:  # one treatment for all tokens of a word
        columns_N = np.maximum.accumulate(begins_BT * positions_T, axis=1)[rows_N, columns_N]
    treatment_N = treatment_BT[rows_N, columns_N] >> _HALF

    source_BT, target_BT = tokens_BT.copy(), np.full_like(tokens_BT, spec.pad)
    originals_N = tokens_BT.reshape(-1)[masked_N]
    target_BT.reshape(-1)[masked_N] = originals_N
    source_BT.reshape(-1)[masked_N] = _shown(originals_N, treatment_N, replacement_N, spec)
    return source_BT, target_BT


def _unit_begins(tokens_BT: np.ndarray, maskable_BT: np.ndarray, spec: MaskSpec) -> np.ndarray:
    """Return bool (B, T): true at the first token of each maskable unit."""
    if spec.word_begin_V is None:
        return maskable_BT
    # No word reaches across a special token; ids past the map (<mask>) are special themselves.
    last = len(spec.word_begin_V) - 1
    begins_BT = spec.word_begin_V.astype(np.bool_)[np.minimum(tokens_BT, last)]
    begins_BT[:, :1] = True
    begins_BT[:, 1:] |= ~maskable_BT[:, :-1]
    return begins_BT & maskable_BT


def _choose_units(
    begins_BT: np.ndarray,
    rounding_B: np.ndarray,
    choice_BT: np.ndarray,
    spec: MaskSpec,
    weight_BT: np.ndarray | None = None,
) -> np.ndarray:
    """Return bool (B, T): true at the first tokens of the chosen units.

    All subsets of a size are equally likely; with weights w it is as if units were drawn one after
    the other, without replacement, with probabilities proportional to w: those with the greatest
    u^(1/w) are taken, u uniform (Efraimidis and Spirakis 2006, algorithm A).
    """
    units_B = begins_BT.sum(axis=1)
    # 53 bits are what a float64 holds: the same uniform on every machine
    uniform_B = (rounding_B >> np.uint64(11)) * 2.0**-53
    expected_B = spec.mask_prob * units_B / spec.mask_multiple_length
    # rounded at random, up with the probability of the fraction: the mean stays mask_prob
    wanted_B = (expected_B + uniform_B).astype(np.int64)
    # the sum can round up to units_B + 1 when every unit is to be chosen
    wanted_B = np.minimum(spec.mask_count or wanted_B, units_B)
    # The wanted_B smallest of distinct random keys; the position in the low bits settles ties.
    positions_T = np.arange(begins_BT.shape[1], dtype=np.uint64)
    order_BT = choice_BT & ~_LOW_BITS
    if weight_BT is not None:
        # -log(u) / w, increasing as u^(1/w) falls; bits of positive floats are ordered as they are
        uniform_BT = ((choice_BT >> _HALF) + 0.5) * 2.0**-32
        order_BT = (-np.log(uniform_BT) / weight_BT).view(np.uint64) & ~_LOW_BITS
    # all ones sort behind every key, so that what begins no unit is never chosen
    key_BT = np.where(begins_BT, order_BT | positions_T, ~np.uint64(0))
    last_B = np.maximum(wanted_B - 1, 0)[:, None]
    threshold_BT = np.sort(key_BT, axis=1)
    if not threshold_BT.size:
        return begins_BT
    threshold_B1 = np.take_along_axis(threshold_BT, last_B, axis=1)
    return (key_BT <= threshold_B1) & (wanted_B > 0)[:, None]


def _spread(
    chosen_BT: np.ndarray, begins_BT: np.ndarray, choice_BT: np.ndarray, spec: MaskSpec
) -> np.ndarray:
    """Return bool (B, T): true for the tokens of the chosen units and of the spans they begin.

    Tokens that belong to no unit may be true as well. A span counts units, so it runs on over
    special tokens and ends with the item.
    """
    order_BT = np.cumsum(begins_BT, axis=1) - 1
    rows_N, columns_N = np.nonzero(chosen_BT)
    first_N = order_BT[rows_N, columns_N]
    lengths_N: np.ndarray | int = spec.mask_multiple_length
    if spec.mask_stdev > 0.0:
        uniform_N = (choice_BT[rows_N, columns_N] & _LOW_BITS) * 2.0**-32
        lengths_N = np.searchsorted(spec.span_cdf_N, uniform_N, side="right")
    # spans may overlap: +1 where one begins, -1 behind its end, and inside is where the sum
    # is positive
    end_N = np.minimum(first_N + lengths_N, begins_BT.shape[1])
    edges = np.zeros((len(begins_BT), begins_BT.shape[1] + 1), dtype=np.int64)  # (B, T + 1)
    np.add.at(edges, (rows_N, first_N), 1)
    np.subtract.at(edges, (rows_N, end_N), 1)
    return np.take_along_axis(np.cumsum(edges, axis=1) > 0, order_BT, axis=1)


def _shown(
    originals_N: np.ndarray, treatment_N: np.ndarray, replacement_N: np.ndarray, spec: MaskSpec
) -> np.ndarray:
    """Return (N,): what the model sees at the chosen tokens, from 32 random bits each for both."""
    left = spec.leave_unmasked_prob
    is_left_N = treatment_N < left * 2.0**32
    is_random_N = (treatment_N < (left + spec.random_token_prob) * 2.0**32) & ~is_left_N
    shown_N = np.where(is_left_N, originals_N, spec.mask)
    drawn_N = replacement_N[is_random_N]
    if drawn_N.size:
        if spec.drawable_cdf_N is None:
            pick_N = (drawn_N * np.uint64(len(spec.drawable_N)) >> _HALF).astype(np.int64)
        else:
            pick_N = np.searchsorted(spec.drawable_cdf_N, drawn_N * 2.0**-32, side="right")
        shown_N[is_random_N] = spec.drawable_N[pick_N]
    return shown_N

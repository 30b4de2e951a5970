"""Inside and outside of batches of sentences, and what follows: exact conditionals of masked words.

The probability Z of the observed words is linear in the emissions e_i[X] = P(X -> x_i) of each
position, and a masked position has e_i[X] = sum_w P(X -> w). So one inside pass and one pass back
(d_i[X] = dZ / de_i[X]) give q_i(w) = sum_X d_i[X] P(X -> w) / sum_w' ... for every position i at
once, each given all the other words: d_i does not depend on the word at i.

Source: Lari and Young 1990 (inside and outside); Eisner 2016 (outside as the gradient of inside).

Shape suffixes: B sentences of one length, N words, X symbols, T terminals, P parents, L left and C
right children, Q = L * C pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fairseq.errors import DataError
from fairseq.pcfg.grammar import Grammar
from fairseq.pcfg.plan import Cell, Plan, Planner

MASK = -1
"""Word number of a hidden word."""

_BATCH_ELEMENTS = 1 << 18  # numbers of one chart kept at once: it should stay in cache
_LARGEST_BATCH = 512
_TINY = 1e-200  # a chart that comes down to this is computed again, rescaled
# Below so many powers of two in all nothing leaves the range of float64 (2 ** -1022): a zero then
# means that there is no parse, not that the sentence is long.
_WIDE = 500
_MOST_RESCALINGS = 5


class Inside:
    """The inside pass of sentences of one length.

    Attributes:
        plan: its cells.
        chart: float64 (rows, B): inside probabilities, ``2 ** exponent_B`` times too large.
        exponent_B: int64.
    """

    def __init__(self, plan: Plan, chart: np.ndarray, exponent_B: np.ndarray) -> None:
        self.plan, self.chart, self.exponent_B = plan, chart, exponent_B

    def cell(self, i: int, j: int) -> tuple[slice, np.ndarray]:
        """Return the places of the symbols kept for the span [i, j), and their rows (X, B)."""
        if (i, j) not in self.plan.at:
            return slice(0, 0), self.chart[:0]
        cell = self.plan.at[i, j]
        return slice(cell.low, cell.high), self.chart[cell.all_rows]


class Chart(Planner):
    """Inside-outside of one grammar."""

    def __init__(self, grammar: Grammar) -> None:
        super().__init__(grammar)
        emission_XT = grammar.emission_XT[self.order_X]
        self.emission_XT = np.ascontiguousarray(emission_XT)
        # one more column: the emission of a hidden word, which MASK = -1 picks
        self._emission = np.concatenate([emission_XT, emission_XT.sum(1, keepdims=True)], axis=1)
        self._closure_UX = grammar.closure_XX[np.ix_(self.order_X, self.order_X)][self.unary_places]

    # -- passes ----------------------------------------------------------------------------------

    def inside(self, words_BN: np.ndarray, whole: bool = False) -> Inside:
        """Run the inside pass.

        Args:
            words_BN: int (B, N), word numbers or ``MASK``.
            whole: also compute what no derivation of the sentence needs.
        """
        plan = self.plan(words_BN.shape[1], whole)
        return Inside(plan, *self.rescaled(words_BN, plan, self._sums))

    def rescaled(
        self,
        words_BN: np.ndarray,
        plan: Plan,
        run: Callable[[Plan, np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a chart, and the exponents of two (B,) by which its sentences are too large.

        Powers of two lose no digit: scaled or not, the results are the same.

        Args:
            words_BN: int (B, N), word numbers or ``MASK``.
            plan: the cells.
            run: makes the chart (rows, B) from emissions (N, X, B).

        Raises:
            DataError: if no scale keeps a sentence in the range of float64.
        """
        emission_NXB = self._emission[:, words_BN.T].transpose(1, 0, 2)
        # the likeliest emission of a word near 1: products of N of them then leave the range later
        exponent_NB = np.frexp(emission_NXB.max(axis=1))[1].astype(np.int64)
        wanted_B = np.zeros(len(words_BN), dtype=np.int64)
        for _ in range(_MOST_RESCALINGS):
            exponent_NB = exponent_NB + wanted_B
            chart = run(plan, np.ldexp(emission_NXB, -exponent_NB[:, None]))
            root_B = chart[plan.root_row]
            wanted_B = _missing_scale(plan, chart, root_B)
            if not wanted_B.any():
                break
        # the scale that was wanted last is on no chart: what is small holds its digits without it
        if not np.isfinite(root_B).all() or (wanted_B.astype(bool) & (root_B == 0)).any():
            raise DataError(
                f"a sentence of {plan.length} words has parts that are so much less likely than "
                "others that float64 cannot hold both: leave it out, or use shorter sentences"
            )
        return chart, exponent_NB.sum(axis=0)

    def _sums(self, plan: Plan, emission_NXB: np.ndarray) -> np.ndarray:
        """Return the inside probabilities."""
        chart = np.zeros((plan.rows, emission_NXB.shape[2]))
        for cell in plan.cells:
            if cell.j - cell.i == 1:
                chart[cell.all_rows] = emission_NXB[cell.i, cell.low : cell.high]
            for block, splits in cell.steps:
                pairs_QB = block.joined(plan, cell, splits, chart, np.add)
                np.matmul(block.weight_PQ, pairs_QB, out=chart[cell.rows(block.parents)])
            if cell.closes:
                closed_U, closure_UX = self._closing(cell)
                chart[closed_U] = closure_UX @ chart[cell.all_rows]
        return chart

    def _closing(self, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a cell that have single-nonterminal rules, and their closure."""
        inner = (self.unary_places >= cell.low) & (self.unary_places < cell.high)
        return cell.base + self.unary_places[inner], self._closure_UX[inner, cell.low : cell.high]

    def outside(self, inside: Inside) -> np.ndarray:
        """Return dZ / d(chart before closure), float64 (rows, B), for the scaled chart."""
        plan, chart = inside.plan, inside.chart
        grad = np.zeros_like(chart)
        grad[plan.root_row] = 1.0
        # cells grow with the width of their span, so this meets parents before children
        for cell in reversed(plan.cells):
            if cell.closes:
                closed_U, closure_UX = self._closing(cell)
                later_UB = grad[closed_U]
                # the closed values took the place of these, which act through the closure alone
                grad[closed_U] = 0.0
                grad[cell.all_rows] += closure_UX.T @ later_UB
            for block, splits in cell.steps:
                grad_PB = grad[cell.rows(block.parents)]
                grad_QB = block.weight_PQ.T @ grad_PB
                for k in splits:
                    left = plan.at[cell.i, k].rows(block.left)
                    right = plan.at[k, cell.j].rows(block.right)
                    block.add_gradients(
                        grad_QB, (chart[left], chart[right]), (grad[left], grad[right])
                    )
        return grad

    # -- questions -------------------------------------------------------------------------------

    def logprob(self, words_BN: np.ndarray) -> np.ndarray:
        """Return log P(words), natural, float64 (B,); -inf for what is no sentence."""
        return self._log_z(self.inside(words_BN))

    def _log_z(self, inside: Inside) -> np.ndarray:
        z_B = inside.chart[inside.plan.root_row]
        with np.errstate(divide="ignore"):
            # scaled by powers of two alone, so that taking the scale away costs no digit
            return np.log(z_B) + inside.exponent_B * np.log(2.0)

    def conditionals(self, words_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distribution of every word given all the other words that are shown.

        Args:
            words_BN: int (B, N), word numbers or ``MASK``; the answer at a position is the same
                whether its own word is shown or hidden.

        Returns:
            ``q_BNT`` float64, NaN where no word fits the others; ``logp_B`` as :meth:`logprob`.
        """
        inside = self.inside(words_BN)
        grad, plan = self.outside(inside), inside.plan
        q_NBT = np.empty((plan.length, len(words_BN), self.emission_XT.shape[1]))
        for i in range(plan.length):
            if (i, i + 1) not in plan.at:
                q_NBT[i] = 0.0
                continue
            cell = plan.at[i, i + 1]
            np.matmul(grad[cell.all_rows].T, self.emission_XT[cell.low : cell.high], out=q_NBT[i])
        with np.errstate(invalid="ignore"):
            # each entry is P(sentence with that word there): Z and every scale cancel
            q_NBT /= q_NBT.sum(axis=-1, keepdims=True)
        return q_NBT.transpose(1, 0, 2), self._log_z(inside)

    def span_marginals(self, inside: Inside, i: int, j: int) -> np.ndarray:
        """Return how often each symbol spans [i, j) in a derivation, float64 (B, X).

        It is the posterior probability, unless symbols can rename themselves in a circle. NaN for
        what is no sentence.
        """
        plan = inside.plan
        grad, z_B = self.outside(inside), inside.chart[plan.root_row]
        inside_XB = np.zeros((len(self.order_X), inside.chart.shape[1]))
        if (i, j) in plan.at:
            cell = plan.at[i, j]
            inside_XB[self.order_X[cell.low : cell.high]] = (
                grad[cell.all_rows] * inside.chart[cell.all_rows]
            )
        with np.errstate(invalid="ignore"):
            return (inside_XB / z_B).T

    def span_inside(self, words_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return P(words | symbol) for every symbol, in two parts as long spans leave float64.

        Returns:
            ``p_BX`` float64 and ``exponent_B`` int64: the probability is ``p * 2 ** exponent``.
        """
        inside = self.inside(words_BN, whole=True)
        places, rows_XB = inside.cell(0, words_BN.shape[1])
        inside_XB = np.zeros((len(self.order_X), len(words_BN)))
        inside_XB[self.order_X[places]] = rows_XB
        return inside_XB.T, inside.exponent_B

    def batch_size(self, length: int) -> int:
        """Return how many sentences of a length are parsed together; memory stays bounded."""
        widest = max((block.weight_PQ.shape[1] for block in self.blocks), default=1)
        rows = max(self.plan(length).rows, widest, length * self.emission_XT.shape[1] // 8)
        return int(np.clip(_BATCH_ELEMENTS // rows, 8, _LARGEST_BATCH))


def _missing_scale(plan: Plan, chart: np.ndarray, root_B: np.ndarray) -> np.ndarray:
    """Return the power of two, int64 (B,), by which a word's emission should still shrink.

    Long sentences leave the range of float64. How fast the largest entry of a cell falls with its
    width, up to the widest cell that still holds digits, says by how much to lift every word.
    """
    wanted_B = np.zeros(len(root_B), dtype=np.int64)
    low_B = (root_B < _TINY) | ~np.isfinite(root_B)
    if not low_B.any():
        return wanted_B
    best_B, width_B = np.ones(len(root_B)), np.ones(len(root_B))
    for cell in plan.cells:
        top_B = chart[cell.all_rows].max(axis=0, initial=0.0)
        fine_B = (top_B > _TINY) & np.isfinite(top_B)
        best_B[fine_B], width_B[fine_B] = top_B[fine_B], cell.j - cell.i
    lift_B = np.rint(np.log2(best_B) / width_B).astype(np.int64)
    # what falls more slowly is zero because it is no sentence
    return np.where(low_B & (np.abs(lift_B) * plan.length > _WIDE), lift_B, 0)

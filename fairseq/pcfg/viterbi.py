"""The best parse of batches of sentences: the chart of ``chart`` with maxima in place of sums.

Nothing is noted on the way up. On the way down a node asks again which rule and split gave its
value: only the nodes of the best trees are asked, cell by cell for all sentences at once. Of equal
parses the one with the earliest split, then the rule listed first, is taken.

Shape suffixes: B sentences of one length, N words, X symbols, P parents, M rules of one symbol, K
splits, D nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairseq.pcfg.chart import Chart
from fairseq.pcfg.grammar import Grammar
from fairseq.pcfg.plan import Block, Cell, Plan


@dataclass(frozen=True)
class Parses:
    """The best trees of a batch, all nodes in one list: by sentence, parents before children.

    Attributes:
        sentence_D, symbol_D, start_D, end_D: int64, the node's sentence, symbol and span.
        logprob_B: float64, log probability of the tree; -inf where there is none (no nodes).
    """

    sentence_D: np.ndarray
    symbol_D: np.ndarray
    start_D: np.ndarray
    end_D: np.ndarray
    logprob_B: np.ndarray


class Viterbi:
    """Best parses under one grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self.chart = Chart(grammar)
        order = self.chart.order_X
        self.best_XX, self._next_XX = _best_chains(grammar.unary_XX[np.ix_(order, order)])

    def _maxima(
        self, words_BN: np.ndarray, whole: bool = False
    ) -> tuple[Plan, np.ndarray, np.ndarray, np.ndarray]:
        """Return the plan, the chart before and after renaming (rows, B), and its exponents."""
        plan = self.chart.plan(words_BN.shape[1], whole)
        before = np.empty(0)

        def run(plan: Plan, emission_NXB: np.ndarray) -> np.ndarray:
            nonlocal before
            before = np.zeros((plan.rows, len(words_BN)))
            # without rules of one symbol the two charts are one
            best = np.zeros_like(before) if len(self.chart.unary_places) else before
            for cell in plan.cells:
                self._fill(plan, cell, emission_NXB, before, best)
            return best

        best, exponent_B = self.chart.rescaled(words_BN, plan, run)
        return plan, before, best, exponent_B

    def _fill(
        self,
        plan: Plan,
        cell: Cell,
        emission_NXB: np.ndarray,
        before: np.ndarray,
        best: np.ndarray,
    ) -> None:
        """Fill one cell of both charts."""
        cell_XB = before[cell.all_rows]
        if cell.j - cell.i == 1:
            cell_XB[:] = emission_NXB[cell.i, cell.low : cell.high]
        for block, splits in cell.steps:
            pairs_QB = block.joined(plan, cell, splits, best, np.maximum)
            target = before[cell.rows(block.parents)]
            for pair_P, prob_P in zip(block.pair_PM.T, block.prob_PM.T, strict=True):
                np.maximum(target, pairs_QB[pair_P] * prob_P[:, None], out=target)
        if best is not before:
            best[cell.all_rows] = cell_XB
        if cell.closes:
            for place in self.chart.unary_places:
                if cell.low <= place < cell.high:
                    chain_X = self.best_XX[place, cell.low : cell.high]
                    best[cell.base + place] = (chain_X[:, None] * cell_XB).max(axis=0)

    def span_best(self, words_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of the best derivation of the words from every symbol.

        Returns:
            ``p_BX`` and ``exponent_B`` as :meth:`fairseq.pcfg.chart.Chart.span_inside`.
        """
        plan, _, best, exponent_B = self._maxima(words_BN, whole=True)
        cell = plan.at.get((0, plan.length))
        prob_XB = np.zeros((len(self.chart.order_X), len(words_BN)))
        if cell is not None:
            prob_XB[self.chart.order_X[cell.low : cell.high]] = best[cell.all_rows]
        return prob_XB.T, exponent_B

    def parse(self, words_BN: np.ndarray) -> Parses:
        """Return the best parses.

        Args:
            words_BN: int (B, N), word numbers.
        """
        plan, before, best, exponent_B = self._maxima(words_BN)
        root, top_B = self.chart.root, best[plan.root_row]
        here = np.flatnonzero(top_B > 0)
        todo = {(0, plan.length): [(here, np.full(len(here), root))]}
        nodes: list[tuple[np.ndarray, np.ndarray, Cell, int]] = []
        for cell in reversed(plan.cells):
            if waiting := todo.pop((cell.i, cell.j), None):
                sentence_D, place_D = (np.concatenate(part) for part in zip(*waiting, strict=True))
                place_D = self._rename(cell, sentence_D, place_D, before, nodes)
                for block, splits in cell.steps:
                    inside_D = (place_D >= block.parents.start) & (place_D < block.parents.stop)
                    children = _split(
                        plan, cell, block, splits, sentence_D[inside_D], place_D[inside_D], best
                    )
                    for span, sentences, places in children:
                        todo.setdefault(span, []).append((sentences, places))
        with np.errstate(divide="ignore"):
            logprob_B = np.log(top_B) + exponent_B * np.log(2.0)
        return self._collect(nodes, logprob_B)

    def _rename(
        self,
        cell: Cell,
        sentence_D: np.ndarray,
        place_D: np.ndarray,
        before: np.ndarray,
        nodes: list[tuple[np.ndarray, np.ndarray, Cell, int]],
    ) -> np.ndarray:
        """Note the nodes of a cell with their chains; return the symbols at the ends of these."""
        aim_D = place_D
        if cell.closes:
            # which end of a chain gave the value is asked again, as for splits
            chains_DX = self.best_XX[place_D, cell.low : cell.high]
            value_DX = before[cell.all_rows][:, sentence_D].T
            aim_D = cell.low + (chains_DX * value_DX).argmax(axis=1)
        ends_D, depth = aim_D, 0
        while True:
            nodes.append((sentence_D, place_D, cell, depth))
            goes_D = place_D != aim_D
            if not goes_D.any():
                return ends_D
            sentence_D, aim_D, depth = sentence_D[goes_D], aim_D[goes_D], depth + 1
            place_D = self._next_XX[place_D[goes_D], aim_D]

    def _collect(
        self, nodes: list[tuple[np.ndarray, np.ndarray, Cell, int]], logprob_B: np.ndarray
    ) -> Parses:
        """Return the noted nodes, sorted."""
        empty = np.zeros(0, dtype=np.int64)
        columns = [
            np.concatenate([empty, *parts])
            for parts in (
                [sentence_D for sentence_D, *_ in nodes],
                [self.chart.order_X[place_D] for _, place_D, *_ in nodes],
                [np.full(len(s), cell.i) for s, _, cell, _ in nodes],
                [np.full(len(s), cell.j) for s, _, cell, _ in nodes],
                [np.full(len(s), depth) for s, _, _, depth in nodes],
            )
        ]
        sentence_D, _, start_D, end_D, depth_D = columns
        # parents before children: the longer span first, then the upper link of a chain
        order = np.lexsort((depth_D, -end_D, start_D, sentence_D))
        sentence_D, symbol_D, start_D, end_D = (column[order] for column in columns[:4])
        return Parses(sentence_D, symbol_D, start_D, end_D, logprob_B)


def _split(
    plan: Plan,
    cell: Cell,
    block: Block,
    splits: list[int],
    sentence_D: np.ndarray,
    place_D: np.ndarray,
    best: np.ndarray,
) -> list[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """Return the children of nodes of one cell and block: spans, sentences, places."""
    if not len(sentence_D):
        return []
    parent_D = place_D - block.parents.start
    pair_DM = block.pair_PM[parent_D]
    left_DM = block.left.start + block.left_Q[pair_DM]
    right_DM = block.right.start + block.right_Q[pair_DM]
    column_D1 = sentence_D[:, None]
    value_KDM = np.stack(
        [
            best[plan.at[cell.i, k].base + left_DM, column_D1]
            * best[plan.at[k, cell.j].base + right_DM, column_D1]
            for k in splits
        ]
    )
    value_DKM = (value_KDM * block.prob_PM[parent_D]).transpose(1, 0, 2)
    # argmax takes the first of equals: the earliest split, then the first rule
    choice_D = value_DKM.reshape(len(sentence_D), -1).argmax(axis=1)
    split_D, rule_D = np.divmod(choice_D, value_DKM.shape[2])
    node_D = np.arange(len(sentence_D))
    left_D, right_D = left_DM[node_D, rule_D], right_DM[node_D, rule_D]
    children = []
    for number in np.unique(split_D).tolist():
        here_D, k = split_D == number, splits[number]
        children.append(((cell.i, k), sentence_D[here_D], left_D[here_D]))
        children.append(((k, cell.j), sentence_D[here_D], right_D[here_D]))
    return children


def _best_chains(unary_XX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best chain between any two symbols: its probability, and its first step.

    Source: Floyd 1962, with products in place of sums.
    """
    count = len(unary_XX)
    best_XX = np.maximum(unary_XX, np.eye(count))
    next_XX = np.broadcast_to(np.arange(count), (count, count)).copy()
    # only what is both reached and left can lie in the middle of a chain
    for middle in np.flatnonzero((unary_XX > 0).any(axis=0) & (unary_XX > 0).any(axis=1)):
        through_XX = best_XX[:, middle, None] * best_XX[middle]
        better_XX = through_XX > best_XX
        best_XX = np.where(better_XX, through_XX, best_XX)
        next_XX = np.where(better_XX, next_XX[:, middle, None], next_XX)
    return best_XX, next_XX


def brackets(parses: Parses, grammar: Grammar, words_BN: np.ndarray) -> list[str]:
    """Return each tree as ``(S (A a) (B b))``; an empty string where there is none."""
    lines = [""] * len(words_BN)
    edges = np.searchsorted(parses.sentence_D, np.arange(len(words_BN) + 1))
    for sentence, (first, last) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        out: list[str] = []
        ends: list[int] = []
        for node in range(first, last):
            while ends and ends[-1] <= parses.start_D[node]:
                ends.pop()
                out[-1] += ")"
            out.append(f"({grammar.nonterminals[parses.symbol_D[node]]}")
            ends.append(int(parses.end_D[node]))
            start = int(parses.start_D[node])
            leaf = node + 1 == last or parses.start_D[node + 1] >= ends[-1]
            if leaf:
                out[-1] += f" {grammar.terminals[words_BN[sentence, start]]}"
        lines[sentence] = " ".join(out) + ")" * len(ends)
    return lines

"""What a chart of one sentence length computes, worked out once: cells, blocks of rules, splits.

Rules are gathered in *blocks*: parents that share children. The levels of a levelled grammar come
out as one block each, a recursive grammar as one block in all. A cell (i, j) then only holds the
symbols that can span it and that some derivation of the whole sentence needs.

Symbols are renumbered so that those of a block lie side by side: a block reads and writes slices.

Shape suffixes: X symbols, R rules, P parents, L left and C right children, Q pairs of these, W
widths, M rules of one symbol.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from fairseq.pcfg.grammar import Grammar

PRUNED_UP_TO = 64
"""Longest sentences for which cells are pruned; the work of pruning grows like that of parsing."""


_SPARSE = 3
"""Blocks in which fewer than one in so many pairs of children occurs list those that do."""


@dataclass(frozen=True)
class Block:
    """Binary rules whose parents and children fill three slices of the symbols.

    Attributes:
        parents, left, right: slices of the renumbered symbols.
        dense: whether the pairs are all L * C, in that order, rather than those that occur.
        left_Q, right_Q: the pairs of children, by their places in the slices.
        weight_PQ: float64 (P, Q), the probability of every pair, zeros included.
        parent_R, left_R, right_R: the rules themselves, renumbered.
        pair_PM, prob_PM: for each parent its rules: number of the pair, probability; padded by 0.
    """

    parents: slice
    left: slice
    right: slice
    dense: bool
    left_Q: np.ndarray
    right_Q: np.ndarray
    weight_PQ: np.ndarray
    parent_R: np.ndarray
    left_R: np.ndarray
    right_R: np.ndarray
    pair_PM: np.ndarray
    prob_PM: np.ndarray

    def products(self, left_LB: np.ndarray, right_CB: np.ndarray) -> np.ndarray:
        """Return the product of every pair, float64 (Q, B)."""
        if self.dense:
            return (left_LB[:, None] * right_CB).reshape(-1, left_LB.shape[1])
        product_QB: np.ndarray = left_LB[self.left_Q]
        product_QB *= right_CB[self.right_Q]
        return product_QB

    def joined(
        self, plan: Plan, cell: Cell, splits: list[int], chart: np.ndarray, join: np.ufunc
    ) -> np.ndarray:
        """Return the products of every pair, joined over the splits of a cell, float64 (Q, B)."""
        whole_QB: np.ndarray | None = None
        for k in splits:
            left_LB = chart[plan.at[cell.i, k].rows(self.left)]
            product_QB = self.products(left_LB, chart[plan.at[k, cell.j].rows(self.right)])
            whole_QB = product_QB if whole_QB is None else join(whole_QB, product_QB, out=whole_QB)
        assert whole_QB is not None
        return whole_QB

    def add_gradients(
        self, grad_QB: np.ndarray, values: tuple[np.ndarray, np.ndarray],
        grads: tuple[np.ndarray, np.ndarray],
    ) -> None:  # fmt: skip
        """Add to ``grads`` (of left, of right children) what gradients of the products give."""
        (left_LB, right_CB), (grad_LB, grad_CB) = values, grads
        if self.dense:
            grad_LCB = grad_QB.reshape(len(left_LB), len(right_CB), -1)
            grad_LB += np.einsum("lcb,cb->lb", grad_LCB, right_CB)
            grad_CB += np.einsum("lcb,lb->cb", grad_LCB, left_LB)
            return
        for target, child_Q, other, other_Q in (
            (grad_LB, self.left_Q, right_CB, self.right_Q),
            (grad_CB, self.right_Q, left_LB, self.left_Q),
        ):
            # sorted by child, so that one reduceat adds up what belongs to each
            order_Q = np.argsort(child_Q, kind="stable")
            places, first = np.unique(child_Q[order_Q], return_index=True)
            product_QB = grad_QB[order_Q]
            product_QB *= other[other_Q[order_Q]]
            target[places] += np.add.reduceat(product_QB, first, axis=0)


@dataclass
class Cell:
    """One span of a plan.

    Attributes:
        i, j: the span [i, j).
        low, high: the symbols it has rows for.
        base: row of the chart that symbol 0 would have.
        steps: blocks and, for each, the split points.
        closes: whether chains of single nonterminals matter here.
    """

    i: int
    j: int
    low: int
    high: int
    base: int = 0
    steps: list[tuple[Block, list[int]]] = field(default_factory=list)
    closes: bool = False

    def rows(self, symbols: slice) -> slice:
        """Return the rows of the chart that hold these symbols."""
        return slice(self.base + symbols.start, self.base + symbols.stop)

    @property
    def all_rows(self) -> slice:
        """Return the rows of the chart that belong to this cell."""
        return slice(self.base + self.low, self.base + self.high)


@dataclass(frozen=True)
class Plan:
    """All cells that matter for one length, by growing width, and the rows they take."""

    length: int
    cells: tuple[Cell, ...]
    at: dict[tuple[int, int], Cell]
    rows: int
    root_row: int


class Planner:
    """Blocks and plans of a grammar.

    Attributes:
        order_X: the symbol at each place; place_X: the place of each symbol.
        blocks: the blocks of rules.
        root: the place of the start symbol.
        unary_places: places of the symbols with single-nonterminal rules.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        component_R = _components(grammar)
        self.order_X = _order(grammar, component_R)
        self.place_X = np.argsort(self.order_X)
        self.root = int(self.place_X[grammar.start])
        parent_R, left_R, right_R = (self.place_X[part] for part in grammar.binary[:3])
        self.blocks = [
            _block(
                parent_R[in_block_R],
                left_R[in_block_R],
                right_R[in_block_R],
                grammar.binary.prob_R[in_block_R],
            )
            for in_block_R in (component_R == name for name in np.unique(component_R))
        ]
        # what a symbol may be renamed to, in places
        self.renames_XX = (grammar.closure_XX > 0)[np.ix_(self.order_X, self.order_X)]
        self.unary_places = np.sort(self.place_X[grammar.unary_parents])
        self._can_XW = np.zeros((len(self.order_X), 1), dtype=bool)

    def can_span(self, longest: int) -> np.ndarray:
        """Return bool (X, at least longest + 1): the widths that a symbol can have."""
        known = self._can_XW.shape[1]
        if longest >= known:
            can_XW = np.zeros((len(self.order_X), longest + 1), dtype=bool)
            can_XW[:, :known] = self._can_XW
            for width in range(known, longest + 1):
                if width == 1:
                    can_XW[:, 1] = self.grammar.emission_XT.sum(axis=1)[self.order_X] > 0
                for b in self.blocks:
                    fits_R = (
                        can_XW[b.left_R, 1:width] & can_XW[b.right_R, width - 1 : 0 : -1]
                    ).any(axis=1)
                    can_XW[b.parent_R[fits_R], width] = True
                can_XW[:, width] = self.renames_XX[:, can_XW[:, width]].any(axis=1)
            self._can_XW = can_XW
        return self._can_XW

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a planner lives as long as its chart
    def plan(self, length: int, whole: bool = False) -> Plan:
        """Return the plan for sentences of one length.

        Args:
            length: words.
            whole: compute every symbol at every span, needed for the sentence or not.
        """
        can_XW = self.can_span(length)
        keep_all = whole or length > PRUNED_UP_TO
        needed = {}
        for i in range(length):
            for j in range(i + 1, length + 1):
                needed[i, j] = can_XW[:, j - i] & keep_all
        needed[0, length][self.root] = True
        at = {(0, length): Cell(0, length, self.root, self.root + 1)}
        for width in range(length, 0, -1):
            for i in range(length - width + 1):
                self._fill(i, i + width, needed, at, can_XW)
        cells = sorted(at.values(), key=lambda cell: (cell.j - cell.i, cell.i))
        rows = 0
        for cell in cells:
            # may be negative: only low to high are rows of the cell
            cell.base = rows - cell.low
            rows += cell.high - cell.low
        return Plan(length, tuple(cells), at, rows, at[0, length].base + self.root)

    def _fill(
        self,
        i: int,
        j: int,
        needed: dict[tuple[int, int], np.ndarray],
        at: dict[tuple[int, int], Cell],
        can_XW: np.ndarray,
    ) -> None:
        """Add the cell (i, j) if it is needed, and mark what it needs below."""
        need_X = needed[i, j] & can_XW[:, j - i]
        if not need_X.any():
            return
        closes = bool(need_X[self.unary_places].any())
        if closes:
            need_X = self.renames_XX[need_X].any(axis=0) & can_XW[:, j - i]
        cell = _reserve(at, i, j, need_X)
        cell.closes = closes
        for block in self.blocks:
            splits = [k for k in range(i + 1, j) if _mark(block, i, k, j, need_X, needed, can_XW)]
            if not splits:
                continue
            cell.steps.append((block, splits))
            # a block computes all its parents at once, wanted or not, and needs rows for them
            _widen(cell, block.parents)
            for k in splits:
                _widen(_reserve(at, i, k, needed[i, k]), block.left)
                _widen(_reserve(at, k, j, needed[k, j]), block.right)


def _mark(
    b: Block,
    i: int,
    k: int,
    j: int,
    need_X: np.ndarray,
    needed: dict[tuple[int, int], np.ndarray],
    can_XW: np.ndarray,
) -> bool:
    """Mark the children that the needed parents of a block have at a split; tell if any."""
    acts_R = need_X[b.parent_R] & can_XW[b.left_R, k - i] & can_XW[b.right_R, j - k]
    needed[i, k][b.left_R[acts_R]] = True
    needed[k, j][b.right_R[acts_R]] = True
    return bool(acts_R.any())


def _reserve(at: dict[tuple[int, int], Cell], i: int, j: int, need_X: np.ndarray) -> Cell:
    """Return the cell (i, j), with rows for the needed symbols."""
    places = np.flatnonzero(need_X)
    hull = slice(int(places[0]), int(places[-1]) + 1)
    cell = at.setdefault((i, j), Cell(i, j, hull.start, hull.stop))
    _widen(cell, hull)
    return cell


def _widen(cell: Cell, symbols: slice) -> None:
    cell.low, cell.high = min(cell.low, symbols.start), max(cell.high, symbols.stop)


def _components(grammar: Grammar) -> np.ndarray:
    """Return for each binary rule the component it is in: parents that share a child are one."""
    count = len(grammar.nonterminals)
    leader = list(range(3 * count))  # parents, symbols as left child, symbols as right child

    def find(node: int) -> int:
        while leader[node] != node:
            # halving paths keeps the trees flat
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    rules = [part.tolist() for part in grammar.binary[:3]]
    for parent, left, right in zip(*rules, strict=True):
        leader[find(count + left)] = find(parent)
        leader[find(2 * count + right)] = find(parent)
    return np.array([find(parent) for parent in rules[0]], dtype=np.int64)


def _order(grammar: Grammar, component_R: np.ndarray) -> np.ndarray:
    """Return the symbols in an order in which those of a block are neighbours."""
    roles = np.full((3, len(grammar.nonterminals)), -1)  # component as parent, left, right child
    for row, symbol_R in zip(roles, grammar.binary[:3], strict=True):
        row[symbol_R] = component_R
    # a symbol has one component in each role, so three keys put all blocks side by side
    return np.lexsort((roles[2], roles[1], roles[0]))


def _block(
    parent_R: np.ndarray, left_R: np.ndarray, right_R: np.ndarray, prob_R: np.ndarray
) -> Block:
    """Return the block of some rules."""
    parents, left, right = (
        slice(int(part.min()), int(part.max()) + 1) for part in (parent_R, left_R, right_R)
    )
    lefts, wide = left.stop - left.start, right.stop - right.start
    pair_R = (left_R - left.start) * wide + right_R - right.start
    used_Q, place_R = np.unique(pair_R, return_inverse=True)
    dense = len(used_Q) * _SPARSE >= lefts * wide
    if dense:
        used_Q, place_R = np.arange(lefts * wide), pair_R
    weight_PQ = np.zeros((parents.stop - parents.start, len(used_Q)))
    weight_PQ[parent_R - parents.start, place_R] = prob_R
    most = int((weight_PQ > 0).sum(axis=1).max())
    # stable, so that rules keep their order: of equal parses the first rule listed wins
    pair_PM = np.argsort(weight_PQ <= 0, axis=1, kind="stable")[:, :most]
    prob_PM = np.take_along_axis(weight_PQ, pair_PM, axis=1)
    left_Q, right_Q = np.divmod(used_Q, wide)
    return Block(
        parents, left, right, dense, left_Q, right_Q, weight_PQ,
        parent_R, left_R, right_R, pair_PM, prob_PM,
    )  # fmt: skip

"""How many floating-point operations a Transformer costs, by two conventions.

Ours counts matrix products only, a multiplication and an addition as two; looking up an embedding
is free; attention is counted whole, whatever masks hide; training costs three forward passes, also
where parts are frozen or recomputed. ELECTRA's counts elementwise work, too, takes looking up an
embedding for a product with a one-hot vector, and training for two forward passes, so that figures
of the two cannot be compared with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from fairseq.modules.transformer_layer import LayerShape

TRAINING = 3  # forward passes: one, and two for the gradients of inputs and of weights
ELECTRA_TRAINING = 2
DROPOUT, NORM, ACTIVATION, SOFTMAX = 4, 5, 8, 5  # ELECTRA's operations an element


@dataclass(frozen=True)
class FlopShape:
    """What the cost of a model depends on.

    Attributes:
        layer: shape of each layer.
        layers: their number.
        vocabulary: V.
        embedding: channels E of the embedding table.
        token_weights: entries of all matrices that every token is multiplied with.
        predicted_weights: of those that every predicted token is multiplied with.
    """

    layer: LayerShape
    layers: int
    vocabulary: int
    embedding: int
    token_weights: int
    predicted_weights: int

    def forward(self, rows: int, length: int, predicted: int) -> int:
        """Return the operations of a forward pass.

        Per token ``2 * weights``; per row and layer ``2 T^2 C`` for the scores and as many for
        the values. Source: Kaplan et al. 2020, table 1.

        Args:
            rows: B.
            length: T, padding included.
            predicted: tokens that are projected on the vocabulary.
        """
        products = rows * length * self.token_weights + predicted * self.predicted_weights
        return 2 * products + 4 * self.layers * rows * length**2 * self.layer.embed_dim

    def electra(self, rows: int, length: int, predicted: int) -> int:
        """Return the operations of a forward pass by ELECTRA's convention; arguments as above.

        It counts the layer norm behind the attention as 5 operations a token, not 5 a channel.

        Source: Clark et al. 2020 (ELECTRA), published counter.
        """
        c, f, e, v = self.layer.embed_dim, self.layer.ffn_dim, self.embedding, self.vocabulary
        attention = 8 * c * c + 4 * c * length + 4 * c  # projections, both products, biases
        attention += (SOFTMAX + DROPOUT + 1) * length * self.layer.heads + (DROPOUT + 1) * c + NORM
        feed_forward = 4 * c * f + (ACTIVATION + 1) * f + (DROPOUT + 2 + NORM) * c
        # one-hot products with V words, T positions and 2 segments, then two sums of the three
        tables = 2 * e * v + 2 * e * (length + 2) + (2 + NORM + DROPOUT) * e
        # embeddings of another width are projected
        if e != c:
            tables += 2 * c * e + c
        output = 0
        if self.predicted_weights:
            output = 2 * e * v + (SOFTMAX + 2) * v
        if self.predicted_weights > e * v:  # a hidden layer before the projection
            output += 2 * c * e + (1 + ACTIVATION + NORM) * e
        tokens = rows * length
        return tokens * (self.layers * (attention + feed_forward) + tables) + predicted * output


def matrix_entries(modules: Iterable[nn.Module | None]) -> int:
    """Return the entries of all weights of linear maps in the modules; None counts nothing."""
    return sum(
        part.weight.numel()
        for module in modules
        if module is not None
        for part in module.modules()
        if isinstance(part, nn.Linear)
    )


def band_entries(
    counts: Sequence[int], cutoff: Sequence[int], entries: Sequence[int], first: int = 0
) -> int:
    """Return the entries a token is multiplied with on average, by its band of the vocabulary.

    Args:
        counts: how often each word occurs; all the same if nobody counted.
        cutoff: where each band ends.
        entries: of each band's matrices, from the band ``first`` on.
        first: bands before it have none.
    """
    total = sum(counts)
    # a dictionary that nobody counted would divide by zero
    counts = counts if total else [1] * len(counts)
    edges = [0, *cutoff]
    shares = [sum(counts[a:b]) / sum(counts) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return round(sum(s * n for s, n in zip(shares[first:], entries, strict=True)))

"""What commands that make text hand out: hypotheses, and the lines that show them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hypothesis:
    """One output.

    Attributes:
        pieces: symbols of the dictionary, joined by spaces.
        text: the same as text.
        score: mean log-probability of the tokens (see the length penalty), in bits.
        positional_scores: log-probability of every token, in bits.
    """

    pieces: str
    text: str
    score: float
    positional_scores: list[float]


@dataclass(frozen=True)
class Continuation:
    """What became of one sentence.

    Attributes:
        number: its number.
        source: pieces of the source.
        target: pieces of the target, None if there is none.
        hypotheses: best first.
        seconds: how long its batch took.
    """

    number: int
    source: str
    target: str | None
    hypotheses: Sequence[Hypothesis]
    seconds: float

    def lines(self, with_time: bool = False) -> Iterator[str]:
        """Yield the lines of the original: S source, W seconds, T target, H, D and P."""
        yield f"S-{self.number}\t{self.source}"
        if with_time:
            yield f"W-{self.number}\t{self.seconds:.3f}\tseconds"
        if self.target is not None:
            yield f"T-{self.number}\t{self.target}"
        for hypothesis in self.hypotheses:
            yield f"H-{self.number}\t{hypothesis.score}\t{hypothesis.pieces}"
            yield f"D-{self.number}\t{hypothesis.score}\t{hypothesis.text}"
            scores = " ".join(f"{x:.4f}" for x in hypothesis.positional_scores)
            yield f"P-{self.number}\t{scores}"

    def readable(self) -> Iterator[str]:
        """Yield the texts alone, with numbers if there are several."""
        for rank, hypothesis in enumerate(self.hypotheses, start=1):
            yield f"{rank}. {hypothesis.text}" if len(self.hypotheses) > 1 else hypothesis.text

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one plain dict for each hypothesis."""
        for rank, hypothesis in enumerate(self.hypotheses):
            yield {
                "id": self.number,
                "rank": rank,
                "source": self.source,
                "target": self.target,
                "hypothesis": hypothesis.pieces,
                "text": hypothesis.text,
                "score": hypothesis.score,
                "positional_scores": hypothesis.positional_scores,
            }


@dataclass(frozen=True)
class Filling(Continuation):
    """What became of a text with masks; ``positional_scores`` are those of the masks alone.

    Attributes:
        text: the text as it was given.
    """

    text: str = ""

    def readable(self) -> Iterator[str]:
        """Yield the text, then each filling with its probability, and an empty line."""
        yield self.text
        for hypothesis in self.hypotheses:
            yield f"  {2 ** sum(hypothesis.positional_scores):.3f}  {hypothesis.text}"
        yield ""


@dataclass
class Tally:
    """How much was generated, or filled."""

    done: str = "generated"
    sentences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def __str__(self) -> str:
        speed = self.tokens / max(self.seconds, 1e-9)
        return (
            f"{self.done} {self.sentences:,} sentence{'' if self.sentences == 1 else 's'} "
            f"({self.tokens:,} tokens, prompts included) in {self.seconds:.1f}s "
            f"({speed:,.1f} tokens/s)"
        )

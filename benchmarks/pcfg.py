"""Speed of the laboratory, on one core: sampling, true conditionals, best parses.

Usage: python benchmarks/pcfg.py [--quick] [--grammar FILE]

Sentences are those of a grammar of 50 symbols and 200 words, up to 16 words (``--grammar`` takes
another). ``single_mask_s``: all conditionals of one hidden word, with their logarithms and
entropies, as ``fairseq-pcfg score`` makes them; ``text_s``: sentences drawn and turned into lines.
``ratio_of_double``: time for twice the sentences over time for them, 2 if linear. Times are of the
processor, so that a shared machine distorts them less; the best of the repeats counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the least processor time of a few runs."""
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times)


def measure(grammar_file: str | None, count: int, repeats: int) -> dict[str, Any]:
    """Return sentences a second of each part."""
    from fairseq.pcfg.draws import Sentences
    from fairseq.pcfg.grammar import read_grammar
    from fairseq.pcfg.random_sources import levelled_grammar
    from fairseq.pcfg.sample import BLOCK, BlockWriter
    from fairseq.pcfg.score import score
    from fairseq.pcfg.source import GrammarSource, batches
    from fairseq.pcfg.viterbi import Viterbi
    from fairseq.rng import philox

    grammar = read_grammar(grammar_file) if grammar_file else levelled_grammar(0)
    source, viterbi = GrammarSource(grammar), Viterbi(grammar)
    blocks = -(-count // BLOCK)

    def draw() -> list[Sentences]:
        return [source.draw(philox(1, "bench", b), BLOCK, 32) for b in range(blocks)]

    writer = BlockWriter(source, 1, 32)
    drawn = Sentences.join(draw()).take(count)
    sentences = drawn.split()

    def parse() -> None:
        for _, words_BN in batches(source, sentences):
            viterbi.parse(words_BN)

    whole = seconds(lambda: score(source, sentences), repeats)
    half = seconds(lambda: score(source, sentences[: count // 2]), repeats)
    drawing = seconds(draw, repeats)
    writing = seconds(lambda: [writer(("bench", b, BLOCK)) for b in range(blocks)], repeats)
    parsing = seconds(parse, repeats)
    tracemalloc.start()
    for _, words_BN in batches(source, sentences):
        source.conditionals(words_BN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "symbols": len(grammar.nonterminals),
        "words": len(grammar.terminals),
        "mean_length": round(len(drawn.words_N) / count, 2),
        "sample_s": round(blocks * BLOCK / drawing),
        "text_s": round(blocks * BLOCK / writing),
        "single_mask_s": round(count / whole),
        "viterbi_s": round(count / parsing),
        "ratio_of_double": round(whole / half, 2),
        "conditionals_peak_MB": round(peak / 1e6),
    }


def main() -> None:
    """Measure, print the record and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few sentences; nothing is written")
    parser.add_argument("--grammar", metavar="FILE", help="rules to use instead")
    args = parser.parse_args()
    from benchmarks.record import RESULTS, machine, publish

    before = machine()
    result = measure(args.grammar, 2_000 if args.quick else 40_000, 1 if args.quick else 3)
    file = None if args.quick or args.grammar else RESULTS / "pcfg.json"
    publish("pcfg", result, file, before)


if __name__ == "__main__":
    main()

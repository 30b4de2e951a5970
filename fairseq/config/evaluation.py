"""The sections of commands that read checkpoints: evaluation, generation, interaction.

Names, types and defaults are the original's, as in :mod:`fairseq.config.sections`.
"""

from __future__ import annotations

from argparse import SUPPRESS
from dataclasses import dataclass

from fairseq.config.schema import FairseqDataclass, option

NEVER_SPLIT = 9223372036854775807  # the original's default for --softmax-batch


@dataclass
class CommonEvalConfig(FairseqDataclass):
    """What evaluation commands share."""

    path: str | None = option(
        None, "checkpoint; several joined with ':' are an ensemble", path=True
    )
    post_process: str | None = option(
        None,
        "join subwords into words before printing",
        argparse_alias="--remove-bpe",
        argparse_const="subword_nmt",
    )
    quiet: bool = option(False, "print only the final scores")
    model_overrides: str = option("{}", "values that replace the checkpoint's, as a dict")
    results_path: str | None = option(None, "folder for the results", inert=True, path=True)


@dataclass
class EvalLMConfig(FairseqDataclass):
    """Evaluation of causal language models."""

    output_word_probs: bool = option(False, "print words with their log-probabilities")
    output_word_stats: bool = option(False, "print statistics per word")
    context_window: int = option(0, "at least N tokens of context for every token", minimum=0)
    softmax_batch: int = option(
        NEVER_SPLIT, "rows of logits computed at once", minimum=1, inert=True
    )


@dataclass
class GenerationConfig(FairseqDataclass):
    """Generation from causal language models."""

    beam: int = option(5, "beam size", minimum=1)
    nbest: int = option(1, "hypotheses to print", minimum=1)
    max_len_a: float = option(
        0.0, "longest output: X * tokens of the prompt + --max-len-b", minimum=0
    )
    max_len_b: int = option(
        200, "longest output: --max-len-a * tokens of the prompt + N", minimum=0
    )
    min_len: int = option(1, "shortest output, in tokens", minimum=0)
    unnormalized: bool = option(False, "compare hypotheses by total, not mean, log-probability")
    lenpen: float = option(
        1.0, "power of the length that scores are divided by; below 1 favours short outputs"
    )
    unkpen: float = option(0.0, "taken off the score of every <unk>")
    prefix_size: int = option(
        0, "give the first N tokens of each line, and continue them", minimum=0
    )
    no_repeat_ngram_size: int = option(
        0, "never repeat n-grams of N tokens (0: no such rule)", minimum=0
    )
    sampling: bool = option(False, "sample instead of searching")
    sampling_topk: int = option(
        -1, "--sampling: among the N most likely words (-1: all)", minimum=1
    )
    sampling_topp: float = option(
        -1.0,
        "--sampling: among the likeliest words that make up probability X (-1: all)",
        above=0,
        maximum=1,
    )
    temperature: float = option(1.0, "softmax temperature", above=0)
    no_seed_provided: bool = option(False, SUPPRESS)  # set by the parser


@dataclass
class InteractiveConfig(FairseqDataclass):
    """Reading sentences from a stream."""

    buffer_size: int = option(
        0, "sentences read before a batch is formed (0 and 1: one at a time)", minimum=0
    )
    input: str = option("-", "file to read; - is standard input", path=True)

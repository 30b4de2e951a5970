"""What a causal LM makes of a text: its loss and perplexity, and every word's probability.

Shapes: B blocks, T tokens, N scored positions, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq import utils
from fairseq.config.sections import FairseqConfig
from fairseq.data.storage.dictionary import Dictionary
from fairseq.decoding.scorer import average_log_probs
from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError, DataError
from fairseq.hub.load import load_causal_models
from fairseq.logging.progress_bar import progress_of
from fairseq.models.base import BaseFairseqModel
from fairseq.modules.predictions import predict
from fairseq.protocols import Sample
from fairseq.tasks.base import FairseqTask

logger = logging.getLogger("fairseq.causal_lm_scores")

DEFAULT_MAX_TOKENS = 36000


def evaluate(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate checkpoints on a subset; several form an ensemble of averaged probabilities.

    Args:
        flat: flat settings: ``path``, ``data``, ``gen_subset`` (``test`` if not given),
            ``context_window``, ``batch_size`` or ``max_tokens``, and whatever else should differ
            from the checkpoint. With a context window W, blocks are W tokens shorter, so that
            block and context fill ``tokens_per_sample``.

    Returns:
        ``loss`` in bits a token, ``perplexity``, ``tokens``, ``seconds``; with
        ``output_word_probs`` or ``output_word_stats`` also ``lines``, what there is to print.

    Raises:
        ConfigError: if no path is given, the model is no causal LM, or the context window leaves
            no room.
        DataError: if there is nothing to evaluate.
    """
    models, config, task = load_causal_models(flat)
    evaluated = config.eval_lm
    task = _with_room(task, evaluated.context_window)
    device = choose_device(config)
    models = [_ready(model, device, bool(flat.get("fp16"))) for model in models]
    subset = config.dataset.gen_subset
    task.load_dataset(subset)
    batches = _batches(models, config, task, subset, flat)
    started = time.perf_counter()
    with batches as progress:
        result = eval_lm(
            models,
            task.source_dictionary,
            progress,
            post_process=config.common_eval.post_process,
            output_word_probs=evaluated.output_word_probs,
            output_word_stats=evaluated.output_word_stats,
            target_dictionary=task.target_dictionary,
            remove_bos_token=getattr(task.cfg, "add_bos_token", False),
            device=device,
        )
    return result | {"seconds": time.perf_counter() - started}


def _with_room(task: FairseqTask, window: int) -> Any:
    """Return a task with shorter blocks, so that a context fits in front of them."""
    if window == 0:
        return task
    if not hasattr(task.cfg, "tokens_per_sample"):
        raise ConfigError("--context-window shortens blocks; this task has no tokens_per_sample")
    length = task.cfg.tokens_per_sample - window
    if window < 0 or length < 1:
        raise ConfigError(
            f"--context-window {window} must be positive and leave room in blocks of "
            f"{task.cfg.tokens_per_sample} tokens (--tokens-per-sample)"
        )
    # a copy, as settings are frozen once they are settled, and plug-ins have constructors of theirs
    shorter = copy.copy(task)
    shorter.cfg = dataclasses.replace(task.cfg, tokens_per_sample=length)
    shorter.datasets = {}
    return shorter


def _ready(model: BaseFairseqModel, device: torch.device, half: bool) -> Any:
    model.prepare_for_inference_(None)
    # CPUs compute half precision slowly, or not at all
    return (model.half() if half and device.type != "cpu" else model).to(device).eval()


def _batches(
    models: Sequence[BaseFairseqModel],
    config: FairseqConfig,
    task: FairseqTask,
    subset: str,
    flat: Mapping[str, Any],
) -> Any:
    data = config.dataset
    max_tokens, batch_size = flat.get("max_tokens"), flat.get("batch_size")
    window = config.eval_lm.context_window
    longest = utils.resolve_max_positions(*(model.max_positions() for model in models))
    batches = task.eval_lm_dataloader(
        dataset=task.dataset(subset),
        max_tokens=max_tokens or DEFAULT_MAX_TOKENS,
        batch_size=batch_size,
        # the context takes its place among the positions of the model
        max_positions=None if longest is None else max(1, longest - window),
        num_shards=max(data.num_shards, 1),
        shard_id=data.shard_id,
        num_workers=data.num_workers,
        data_buffer_size=data.data_buffer_size,
        context_window=window,
    )
    return progress_of(config.common, batches, f"eval on '{subset}' subset")


def eval_lm(
    models: Sequence[BaseFairseqModel],
    source_dictionary: Dictionary,
    batch_iterator: Iterable[Any],
    post_process: str | None = None,
    output_word_probs: bool = False,
    output_word_stats: bool = False,
    target_dictionary: Dictionary | None = None,
    softmax_batch: int = 0,
    remove_bos_token: bool = False,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Score batches.

    Args:
        models: the models; several form an ensemble of averaged probabilities.
        source_dictionary: of the sources.
        batch_iterator: batches with ``net_input`` and ``target``.
        post_process: ``subword_nmt`` joins pieces that end with ``@@`` into words.
        output_word_probs: also return the words of every block with their log-probabilities.
        output_word_stats: also return statistics of every word.
        target_dictionary: of the targets; that of the sources if None.
        softmax_batch: without effect, logits are never kept.
        remove_bos_token: do not score beginning-of-sentence.
        device: where the models are; that of their parameters if None.

    Returns:
        ``loss`` in bits a token, ``perplexity``, ``tokens``, ``lines``.

    Raises:
        DataError: if there is no target.
    """
    dictionary = target_dictionary or source_dictionary
    if device is None:
        device = next(models[0].parameters()).device
    words = _Words(dictionary, post_process, output_word_probs, output_word_stats)
    total, count = 0.0, 0
    for sample in batch_iterator:
        # a share of an evaluation may get an empty batch as filler
        if not sample:
            continue
        sample = utils.move_to_device(sample, device)
        positions_N, target_N = scored_positions(
            sample, dictionary.pad(), dictionary.bos() if remove_bos_token else None
        )
        log_p_N = target_log_probs(models, sample, positions_N, target_N)
        # fp64: sums over a whole corpus lose digits in fp32
        total, count = total - float(log_p_N.double().sum()), count + len(target_N)
        words.add(sample, positions_N, target_N, log_p_N)
    if not count:
        raise DataError(
            "there is nothing to evaluate: no block fits the model, all are empty, or this "
            "--shard-id has none"
        )
    bits = total / count / math.log(2)
    figures = {"loss": bits, "perplexity": 2**bits, "tokens": count}
    return figures | ({"lines": words.lines()} if words.wanted else {})


def scored_positions(sample: Sample, pad: int, bos: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the flat indices and the targets of what is scored, int64 of shape (N,) each."""
    target = sample["target"].reshape(-1)
    scored = target.ne(pad) if bos is None else target.ne(pad) & target.ne(bos)
    positions_N = scored.nonzero()[:, 0]
    return positions_N, target[positions_N]


@torch.inference_mode()
def target_log_probs(
    models: Sequence[BaseFairseqModel], sample: Sample, positions_N: Tensor, target_N: Tensor
) -> Tensor:
    """Return ``log p(target)`` in nats, fp32 of shape (N,): of the mean probability of the models.

    Args:
        models: causal LMs.
        sample: a batch with ``net_input``.
        positions_N: flat indices of what is scored.
        target_N: its targets.
    """
    return average_log_probs(
        [-predict(model, sample, positions_N).losses(target_N) for model in models]
    )


@dataclasses.dataclass
class WordStat:
    """How often a word occurred, and how likely it and the word after it were (nats, summed)."""

    word: str
    is_bpe: bool
    log_prob: float = 0.0
    next_word_prob: float = 0.0
    count: int = 0
    missing_next_words: int = 0

    def add(self, log_prob: float, next_word_prob: float | None) -> None:
        """Count one occurrence; the last word of a block has no next one."""
        self.log_prob += log_prob
        self.count += 1
        if next_word_prob is None:
            self.missing_next_words += 1
        else:
            self.next_word_prob += next_word_prob

    def __str__(self) -> str:
        with_next = self.count - self.missing_next_words
        fields = (self.word, self.count, self.log_prob, self.is_bpe, self.next_word_prob, with_next)
        return "\t".join(map(str, fields))


class _Words:
    """Collects what is printed word by word."""

    def __init__(
        self, dictionary: Dictionary, post_process: str | None, probs: bool, stats: bool
    ) -> None:
        if post_process not in (None, "subword_nmt", "@@ "):
            raise ConfigError(
                f"--post-process {post_process} is not known here: fairseq-eval-lm joins pieces of "
                "subword_nmt (those that end with '@@')"
            )
        self.dictionary, self.joins = dictionary, post_process is not None
        self.probs, self.stats = probs, stats
        self._lines: list[str] = []
        self._stats: dict[str, WordStat] = {}

    @property
    def wanted(self) -> bool:
        return self.probs or self.stats

    def add(self, sample: Sample, positions_N: Tensor, target_N: Tensor, log_p_N: Tensor) -> None:
        """Take in the scores of a batch."""
        if not self.wanted:
            return
        rows_N = positions_N // sample["target"].shape[1]
        ids = sample["id"].tolist()
        for row in rows_N.unique().tolist():
            of_row = rows_N == row
            words = list(self._words(target_N[of_row].tolist(), log_p_N[of_row].tolist()))
            if self.probs:
                shown = "\t".join(f"{word} [{log_p:.6f}]" for word, log_p, _ in words)
                self._lines.append(f"{ids[row]} {shown}")
            following = [log_p for _, log_p, _ in words[1:]] + [None]
            for (word, log_p, pieces), after in zip(words, following, strict=True):
                stat = self._stats.setdefault(word, WordStat(word, pieces > 1))
                stat.add(log_p, after)

    def _words(self, ids: list[int], log_ps: list[float]) -> Iterator[tuple[str, float, int]]:
        """Yield words, their log-probabilities, and of how many pieces they were joined."""
        word, total, pieces = "", 0.0, 0
        for index, log_p in zip(ids, log_ps, strict=True):
            piece = self.dictionary[index]
            # subword_nmt marks every piece of a word but the last
            continues = self.joins and piece.endswith("@@")
            word += piece[:-2] if continues else piece
            total, pieces = total + log_p, pieces + 1
            if not continues:
                yield word, total, pieces
                word, total, pieces = "", 0.0, 0
        # a block may end in the middle of a word
        if pieces:
            yield word, total, pieces

    def lines(self) -> list[str]:
        """Return the blocks with their words, then the statistics, frequent words first."""
        ordered = sorted(self._stats.values(), key=lambda stat: -stat.count)
        return self._lines + ([str(stat) for stat in ordered] if self.stats else [])

"""What a masked LM is worth beyond its loss: pseudo-perplexity, and its loss on longer blocks.

Shapes: T tokens of a block, M masked copies of it, N masked positions of a batch of copies.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq import evaluation
from fairseq.config.sections import FairseqConfig
from fairseq.data.storage.dictionary import Dictionary
from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.hub.load import load_by_settings
from fairseq.logging.progress_bar import progress_of
from fairseq.models.base import BaseFairseqModel
from fairseq.modules.predictions import predict
from fairseq.protocols import Sample
from fairseq.tasks.base import FairseqTask
from fairseq.tasks.validation import valid_subsets
from fairseq.utils import exp_of

logger = logging.getLogger("fairseq.masked_lm_scores")

TOKENS_AT_ONCE = 8192


def pseudo_perplexity(flat: Mapping[str, Any], most: int | None = None) -> dict[str, Any]:
    """Score the blocks of a subset token by token, each masked in turn.

    Source: Salazar et al. 2020 (Masked Language Model Scoring), equations 1 and 3.

    Args:
        flat: settings as for :func:`fairseq.evaluation.validate`; ``sample_break_mode="eos"``
            scores sentence by sentence.
        most: so many blocks of each subset, from its start; None for all.

    Returns:
        by subset: ``pseudo_ppl`` (per token, special ones not counted), ``bits`` per token,
        ``tokens``, ``blocks``. With a ``--bpe`` whose pieces hold the spaces also
        ``pseudo_ppl_word`` (per word between spaces), ``bits_byte`` (per byte of UTF-8),
        ``words``, ``bytes``: the same likelihood shared out among units that models with other
        vocabularies have, too.

    Raises:
        ConfigError: if the checkpoint is no masked LM.
    """
    models, config, task = load_by_settings(flat)
    if not hasattr(task, "unmasked_blocks"):
        raise ConfigError("--pseudo-ppl needs a model trained with --task masked_lm")
    device = choose_device(config)
    model = models[0].to(device).eval()
    encoder = _encoder(task, config)
    results = {}
    for subset in valid_subsets(config):
        blocks = task.unmasked_blocks(subset)
        count = len(blocks) if most is None else min(most, len(blocks))
        whole = [blocks[i] for i in range(count)]
        bar = progress_of(config.common, whole, f"pseudo-perplexity of '{subset}'")
        total, tokens, words, size = 0.0, 0, 0, 0
        with bar as progress:
            for tokens_T in progress:
                loss, scored = pseudo_log_likelihood(model, task, tokens_T.to(device))
                total, tokens = total - loss, tokens + scored
                if encoder is not None:
                    for text in _lines(tokens_T, task.source_dictionary, encoder):
                        words, size = words + len(text.split()), size + len(text.encode())
        if not tokens:
            raise DataError(f"'{subset}' holds no token to score")
        nats = total / tokens
        results[subset] = {
            "pseudo_ppl": exp_of(nats),
            "bits": nats / math.log(2),
            "tokens": tokens,
            "blocks": count,
        }
        if words:
            results[subset] |= {
                # where no spaces are written a whole text is one word
                "pseudo_ppl_word": exp_of(total / words),
                "bits_byte": total / math.log(2) / size,
                "words": words,
                "bytes": size,
            }
    return results


def _lines(tokens_T: Tensor, dictionary: Dictionary, encoder: Any) -> list[str]:
    """Return the text of a block by line: two that are joined would make one word of two."""
    ends = (tokens_T == dictionary.eos()).nonzero()[:, 0] + 1
    return [encoder.decode(dictionary.string(line)) for line in tokens_T.tensor_split(ends)]


def _encoder(task: FairseqTask, config: FairseqConfig) -> Any:
    """Return the subword encoder, None if there is none that gives the text back."""
    try:
        encoder = task.build_bpe(config.bpe)
    except MissingFileError as error:
        logger.warning("nothing is told per word and byte: %s", error)
        return None
    if getattr(encoder, "bare_words", False):
        logger.warning(
            "nothing is told per word and byte: pieces of --bpe %s do not say where spaces were",
            config.bpe._name,
        )
        return None
    return encoder


@torch.inference_mode()
def pseudo_log_likelihood(
    model: BaseFairseqModel, task: FairseqTask, tokens_T: Tensor
) -> tuple[float, int]:
    """Return the sum of ``log p(token | all others)`` in nats, and how many tokens were scored.

    Args:
        model: a masked LM.
        task: its task.
        tokens_T: int64 (T,); pads and the marks of begin and end are not scored.
    """
    dictionary = task.source_dictionary
    special = torch.tensor(
        [dictionary.bos(), dictionary.eos(), dictionary.pad()], device=tokens_T.device
    )
    places = torch.isin(tokens_T, special, invert=True).nonzero()[:, 0]
    documents_1T = task.documents_of(tokens_T[None])
    total = 0.0
    # one copy of the block for each token that is hidden: long blocks are run in fewer copies
    copies = max(1, TOKENS_AT_ONCE // max(1, len(tokens_T)))
    for part_M in places.split(copies) if len(places) else ():
        copies_MT = tokens_T.repeat(len(part_M), 1)
        # copy r hides the token at part_M[r], which lies at r T + part_M[r] of the flat batch
        rows_M = torch.arange(len(part_M), device=tokens_T.device)
        copies_MT[rows_M, part_M] = task.mask_idx
        places_M = rows_M * len(tokens_T) + part_M
        sample: Sample = {"net_input": {"src_tokens": copies_MT}, "target": copies_MT}
        if documents_1T is not None:
            sample["net_input"]["documents"] = documents_1T.expand_as(copies_MT)
        loss_N = predict(model, sample, places_M, masked_tokens=True).losses(tokens_T[part_M])
        # fp64: sums over a whole corpus lose digits in fp32
        total -= float(loss_N.double().sum())
    return total, len(places)


def at_lengths(flat: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Evaluate the same text in blocks of several lengths, about as many tokens a batch each.

    Args:
        flat: settings as for :func:`fairseq.evaluation.validate`.
        lengths: tokens a block.

    Returns:
        by length: the statistics of each subset, or ``{"refused": reason}`` where positions end.
    """
    results: dict[str, dict[str, Any]] = {}
    # eight of the longest blocks a batch, and as many tokens of shorter ones
    tokens = max(lengths) * 8
    for length in lengths:
        settings = {**flat, "tokens_per_sample": length}
        if not flat.get("batch_size") and not flat.get("max_tokens"):
            settings["batch_size"] = max(1, tokens // length)
        try:
            figures: dict[str, Any] = evaluation.validate(settings)
        except (ConfigError, DataError) as refusal:
            # a length beyond the learned positions is a result: this model ends here
            if "positions" not in str(refusal):
                raise
            figures = {"refused": str(refusal)}
        results[str(length)] = figures
    return results

"""Masks filled from the command line: the twin of continuing text, for masked models.

Shapes: B hypotheses, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError, DataError
from fairseq.hub.outputs import Continuation, Filling, Hypothesis, Tally
from fairseq.models.roberta.hub_interface import MASK, RobertaHubInterface
from fairseq.utils import model_eval

logger = logging.getLogger("fairseq.generation")

FILLINGS = 5
"""Fillings that are shown where ``nbest`` does not say how many."""


class MaskFiller:
    """A loaded masked model that fills the masks of texts.

    Args:
        given: flat settings, of which ``nbest`` says how many fillings are kept and shown.
        loaded: models, configuration and task.

    Raises:
        ConfigError: if the model fills no masks, or there are several.
    """

    def __init__(self, flat: Mapping[str, Any], loaded: tuple[list[Any], Any, Any]) -> None:
        models, self.config, task = loaded
        if len(models) > 1:
            raise ConfigError(
                "masks are filled by one model, not by an ensemble: name one with --path"
            )
        hub = type(models[0]).hub_interface(self.config, task, models)
        # tasks with labels have masks, too, but their models predict labels
        masks = getattr(task, "mask_idx", None) is not None
        predicts = masks and not hasattr(task, "label_dictionary")
        if not isinstance(hub, RobertaHubInterface) or not predicts:
            raise ConfigError(
                f"{flat['path']}: a model of --task {self.config.task._name} neither continues "
                "text nor fills masks"
            )
        self.hub = hub
        self.hub.to(choose_device(self.config))
        self.width = int(flat.get("nbest") or FILLINGS)
        self.tally = Tally(done="filled the masks of")

    def continue_lines(self, lines: Iterable[str]) -> Iterator[Continuation]:
        """Fill the masks of texts, one text at a time.

        Raises:
            DataError: if a text is too long for the model.
        """
        for number, line in enumerate(lines):
            yield self._filled(number, line.strip())

    def _filled(self, number: int, text: str) -> Filling:
        started = time.perf_counter()
        tokens_T = self.hub.encode_masked(text)
        limit = self.hub.model.max_positions()
        if len(tokens_T) > limit:
            raise DataError(
                f"a text has {len(tokens_T)} tokens, the model takes {limit}: shorten it"
            )
        masks = (tokens_T == self.hub._mask()).nonzero()[:, 0].tolist()
        if not masks:
            logger.warning("no %s in %r: write it where a word is missing", MASK, text)
        filled = self.fill(tokens_T, masks) if masks else []
        seconds = time.perf_counter() - started
        self.tally.sentences += 1
        self.tally.tokens += len(tokens_T)
        self.tally.seconds += seconds
        hypotheses = [self._hypothesis(text, masks, *one) for one in filled]
        return Filling(number, self._pieces(tokens_T), None, hypotheses, seconds, text)

    def fill(self, tokens_T: Tensor, masks: list[int]) -> list[tuple[Tensor, dict[int, float]]]:
        """Fill masks one after the other, the most certain one first; keep the best hypotheses.

        Args:
            tokens_T: ids.
            masks: positions of the masks.

        Returns:
            ids, and the log-probability in bits of each filled position given those filled
            before; most probable first.
        """
        allowed_V = self.hub.fillable()
        beam: list[tuple[Tensor, dict[int, float]]] = [(tokens_T, {})]
        for _ in masks:
            grown: dict[tuple[int, ...], tuple[Tensor, dict[int, float]]] = {}
            bits_BTV = self._bits(torch.stack([tokens for tokens, _ in beam]), allowed_V)
            for bits_TV, (tokens, scores) in zip(bits_BTV, beam, strict=True):
                open_ = [place for place in masks if place not in scores]
                place = max(open_, key=lambda one: float(bits_TV[one].max()))
                best, indices = bits_TV[place].topk(min(self.width, int(allowed_V.sum())))
                for value, index in zip(best.tolist(), indices.tolist(), strict=True):
                    filled = tokens.clone()
                    filled[place] = index
                    one = (filled, {**scores, place: value})
                    key = (*filled.tolist(),)  # two orders may come to the same text
                    if key not in grown or _total(one) > _total(grown[key]):
                        grown[key] = one
            beam = sorted(grown.values(), key=_total, reverse=True)[: self.width]
        return beam

    @torch.no_grad()
    def _bits(self, tokens_BT: Tensor, allowed_V: Tensor) -> Tensor:
        """Return log-probabilities in bits, (B, T, V) on the CPU; -inf for what fills no mask."""
        model = self.hub.model
        with model_eval(model):
            hidden_BTC, _ = model(tokens_BT.to(self.hub.device), features_only=True)
            logits_NV = model.projection(hidden_BTC.flatten(0, 1)).logits()
        bits_NV = logits_NV.float().log_softmax(-1).cpu() / math.log(2)
        return bits_NV.masked_fill(~allowed_V, -math.inf).unflatten(0, tokens_BT.shape)

    def _hypothesis(
        self, text: str, masks: list[int], tokens_T: Tensor, scores: dict[int, float]
    ) -> Hypothesis:
        for place in masks:
            text, _ = self.hub.fill_first(text, int(tokens_T[place]))
        bits = [scores[place] for place in masks]
        return Hypothesis(self._pieces(tokens_T), text, sum(bits) / len(bits), bits)

    def _pieces(self, tokens_T: Tensor) -> str:
        dictionary, mask = self.hub.task.source_dictionary, self.hub._mask()
        ids = tokens_T[1:-1].tolist()  # without <s> and </s>
        return " ".join(MASK if token == mask else dictionary[token] for token in ids)


def _total(one: tuple[Tensor, dict[int, float]]) -> float:
    return sum(one[1].values())

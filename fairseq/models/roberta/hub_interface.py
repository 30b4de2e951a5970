"""RoBERTa at hand: text in; tokens, features, filled masks and predictions out.

Shapes: B batch, T time, C channels.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.data import encoders
from fairseq.errors import DataError
from fairseq.files.io import BYTE_ORDER_MARK
from fairseq.models.base import BaseFairseqModel
from fairseq.protocols import Settings, Task
from fairseq.utils import check_text, check_token_ids, model_eval

MASK = "<mask>"
SENTENCEPIECE_SPACE = "▁"


class RobertaHubInterface(nn.Module):
    """Wraps a loaded model with its dictionary and text encoder."""

    def __init__(self, cfg: Settings, task: Task, model: BaseFairseqModel) -> None:
        super().__init__()
        self.cfg, self.task, self.model = cfg, task, model
        self.bpe = encoders.build_bpe(getattr(cfg, "bpe", None))
        self.register_buffer("_float_tensor", torch.tensor([0.0]), persistent=False)
        self._float_tensor: Tensor

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return self._float_tensor.device

    # -- text and tokens -------------------------------------------------------------------------

    def encode(self, sentence: str, *addl_sentences: str, no_separator: bool = False) -> Tensor:
        """Return token ids of one sentence or several, int64 of shape (T,).

        One sentence is ``<s> A </s>``, a pair ``<s> A </s> </s> B </s>``, or ``<s> A </s> B </s>``
        with ``no_separator`` and where :meth:`ends_between` says so.
        """
        dictionary = self.task.source_dictionary
        bos, eos = dictionary.bos_word, dictionary.eos_word
        text = f"{bos} {self._split(sentence)} {eos}"
        between = "" if no_separator or self.ends_between() == 1 else f" {eos}"
        for other in addl_sentences:
            text += f"{between} {self._split(other)} {eos}"
        return self._ids(text)

    def ends_between(self) -> int:
        """Return how many ``</s>`` stand between two sentences.

        RoBERTa has two, BERT and DistilBERT one, unless fine-tuned with ``--separator-token``.
        """
        bert = self._segments() > 1 or not self.task.source_dictionary.nspecial
        trained = getattr(getattr(self.task, "cfg", None), "separator_token", None)
        return 1 if bert and trained is None else 2

    def _split(self, text: str) -> str:
        check_text(text)
        text = text.removeprefix(BYTE_ORDER_MARK)
        return text if self.bpe is None else self.bpe.encode(text)

    def _ids(self, pieces: str) -> Tensor:
        """Look pieces up."""
        dictionary, mask = self.task.source_dictionary, self._mask()
        ids = [mask if word == MASK else dictionary.index(word) for word in pieces.split()]
        return torch.tensor(ids, dtype=torch.int64)

    def _segments(self) -> int:
        return getattr(getattr(self.model, "config", None), "segments", 0) or 0

    def _segments_of(self, tokens_BT: Tensor) -> dict[str, Tensor]:
        """Return the model's further input: 1 for what follows the first sentence, else 0."""
        if self._segments() < 2:
            return {}
        ends_BT = tokens_BT.eq(self.task.source_dictionary.eos()).long()
        return {"segments": (ends_BT.cumsum(1) - ends_BT).clamp(max=1)}

    def _mask(self) -> int:
        """Return the id of ``<mask>``, which may lie outside the dictionary."""
        mask = getattr(self.task, "mask_idx", None)
        dictionary = self.task.source_dictionary
        return dictionary.index(dictionary.mask_word) if mask is None else mask

    def decode(self, tokens: Tensor) -> str | list[str]:
        """Return the text of ``tokens`` (T,), a list if they hold several sentences."""
        check_token_ids(tokens, None, (1,))
        dictionary = self.task.source_dictionary
        ids = tokens.tolist()
        if ids and ids[0] == dictionary.bos():
            ids = ids[1:]
        sentences: list[list[int]] = [[]]
        for position, token in enumerate(ids):
            if token != dictionary.eos():
                sentences[-1].append(token)
            elif position + 1 < len(ids) and ids[position + 1] == dictionary.eos():
                sentences.append([])  # </s> </s> separates
        texts = [self._text(sentence) for sentence in sentences]
        return texts[0] if len(texts) == 1 else texts

    def _text(self, ids: list[int]) -> str:
        dictionary, mask = self.task.source_dictionary, self._mask()
        pieces = " ".join(MASK if token == mask else dictionary[token] for token in ids)
        return pieces if self.bpe is None else self.bpe.decode(pieces)

    # -- hidden states ---------------------------------------------------------------------------

    def extract_features(
        self, tokens: Tensor, return_all_hiddens: bool = False
    ) -> Tensor | list[Tensor]:
        """Return hidden states.

        Args:
            tokens: (T,) or (B, T).
            return_all_hiddens: return the embedding output and every layer's output.

        Returns:
            (B, T, C), or a list of layers + 1 such tensors.

        Raises:
            ValueError: if the tokens are more than the model takes, or no ids of its dictionary.
        """
        entries = max(len(self.task.source_dictionary), self._mask() + 1)
        check_token_ids(tokens, entries)
        if tokens.dim() == 1:
            tokens = tokens[None]
        limit = self.model.max_positions()
        if tokens.shape[-1] > limit:
            raise DataError(f"tokens exceeds maximum length: {tokens.shape[-1]} > {limit}")
        tokens = tokens.to(self.device)
        features_BTC, extra = self.model(
            tokens,
            features_only=True,
            return_all_hiddens=return_all_hiddens,
            **self._segments_of(tokens),
        )
        if return_all_hiddens:
            return [hidden_TBC.transpose(0, 1) for hidden_TBC in extra["inner_states"]]
        return features_BTC

    # -- classification --------------------------------------------------------------------------

    def register_classification_head(
        self,
        name: str,
        num_classes: int | None = None,
        embedding_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a classification head; ``embedding_size`` is accepted and ignored."""
        self.model.register_classification_head(name, num_classes=num_classes, **kwargs)

    def predict(self, head: str, tokens: Tensor, return_logits: bool = False) -> Tensor:
        """Return log-probabilities (or logits) of the classes of ``head``, (B, classes)."""
        features_BTC = self.extract_features(tokens)
        rows_BT = tokens.to(self.device).view(len(features_BTC), -1)
        padding_BT = rows_BT.eq(self.task.source_dictionary.pad())
        logits = self.model.classification_head(head)(features_BTC, padding_BT)
        return logits if return_logits else F.log_softmax(logits, dim=-1)

    # -- masks -----------------------------------------------------------------------------------

    def encode_masked(self, masked_input: str) -> Tensor:
        """Return the token ids of a text with ``<mask>``, with both ends, int64 of shape (T,)."""
        check_text(masked_input)
        spans = [self._split(span.rstrip()) for span in masked_input.split(MASK)]
        dictionary = self.task.source_dictionary
        return self._ids(f"{dictionary.bos_word} {f' {MASK} '.join(spans)} {dictionary.eos_word}")

    def fill_mask(self, masked_input: str, topk: int = 5) -> list[tuple[str, float, str]]:
        """Return the ``topk`` best fillings of the one ``<mask>`` in a text.

        ``<s>``, ``</s>``, pads, masks and symbols that only round the dictionary's size are left
        out (the original lets the first two shift the others); the probabilities are over the
        whole vocabulary.

        Returns:
            ``(filled text, probability, predicted token)``, best first.

        Raises:
            AssertionError: unless there is exactly one ``<mask>``.
            DataError: if ``topk`` is no number of fillings, or the text is none.
        """
        check_text(masked_input)
        if not isinstance(topk, Integral) or topk < 0:
            raise DataError(f"topk is how many fillings are wanted, not {topk!r}")
        assert masked_input.count(MASK) == 1, (
            f"Please add one {MASK} token for the input, eg: 'He is a {MASK} guy'"
        )
        tokens_T = self.encode_masked(masked_input)
        position = int((tokens_T == self._mask()).nonzero()[0])
        with torch.no_grad(), model_eval(self.model):
            hidden_BTC, _ = self.model(tokens_T[None].to(self.device), features_only=True)
            logits_V = self.model.projection(hidden_BTC[:, position]).logits()[0]
        probability_V = logits_V.float().softmax(-1)
        allowed_V = self.fillable().to(probability_V.device)
        values, indices = probability_V.masked_fill(~allowed_V, -1).topk(
            min(topk, int(allowed_V.sum()))
        )
        fillings = []
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            text, token = self.fill_first(masked_input, index)
            fillings.append((text, value, token))
        return fillings

    def fillable(self) -> Tensor:
        """Return which ids may fill a mask, bool of shape (V,)."""
        dictionary = self.task.source_dictionary
        specials = {dictionary.bos(), dictionary.pad(), dictionary.eos(), self._mask()}
        return torch.tensor(
            [i not in specials and not dictionary.is_filler(i) for i in range(len(dictionary))]
        )

    def fill_first(self, masked_input: str, index: int) -> tuple[str, str]:
        """Return a text with the token ``index`` in place of its first mask, and that token."""
        piece = self.task.source_dictionary[index]
        if self.bpe is None:
            return masked_input.replace(MASK, piece, 1), piece
        token = self.bpe.decode(piece).replace(SENTENCEPIECE_SPACE, " ")
        if piece.startswith(SENTENCEPIECE_SPACE) and not token.startswith(" "):
            token = " " + token
        before, _, after = masked_input.partition(MASK)
        if getattr(self.bpe, "bare_words", False) and self.bpe.is_beginning_of_word(piece):
            return before + token + after, token  # no piece of it holds the blank before a word
        return before.removesuffix(" ") + token + after, token

"""What an export asks of a model of ours at hand, and of models and tokenizers of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor

from fairseq.config.sections import FairseqConfig
from fairseq.data.encoders import TextEncoder
from fairseq.models.roberta.model import RobertaModel
from fairseq.models.transformer_lm.model import TransformerLanguageModel
from fairseq.protocols import Task

Network = TypeVar("Network", "RobertaModel", "TransformerLanguageModel", covariant=True)


class Loaded(Protocol[Network]):
    """A model with its task and text encoder, as :func:`fairseq.export.encoder_out.load_ours`."""

    cfg: FairseqConfig
    task: Task
    bpe: TextEncoder | None

    @property
    def model(self) -> Network:
        """The network."""

    def encode(self, sentence: str) -> Tensor:
        """Return the ids of a sentence, int64 (T,)."""

    def _split(self, text: str) -> str: ...

    def _mask(self) -> int: ...

    def _segments(self) -> int: ...

    def ends_between(self) -> int:
        """Return how many ``</s>`` stand between two sentences."""


class TheirModel(Protocol):
    """A model of Hugging Face."""

    def __call__(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> Any:
        """Return an output with ``logits`` (B, T, V) or ``last_hidden_state`` (B, T, C)."""

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Take weights over; return the names that are missing and those that are surplus."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write weights and configuration into a folder."""


class TheirTokenizer(Protocol):
    """A tokenizer of Hugging Face; a role that no symbol has is None."""

    bos_token: str | None
    cls_token: str | None
    eos_token: str | None
    mask_token: str | None
    pad_token: str | None
    sep_token: str | None
    unk_token: str | None

    def __call__(self, text: str) -> Mapping[str, list[int]]:
        """Return ``input_ids`` of a text."""

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""

"""SentencePiece encoding, from a trained ``.model`` file."""

from __future__ import annotations

import dataclasses
from typing import Any

from fairseq.config.schema import FairseqDataclass, option
from fairseq.data.encoders import register_bpe
from fairseq.errors import ConfigError, DataError
from fairseq.files.io import require_file
from fairseq.lazy import require_library

WORD_START = "\u2581"
SPECIAL_PIECES = ("<unk>", "<s>", "</s>", "<pad>")
# Smoothing of sampled segmentations when sampling is on and no --sentencepiece-alpha is given.
DEFAULT_ALPHA = 0.1


@dataclasses.dataclass
class SentencepieceConfig(FairseqDataclass):
    """File and sampling of the encoding."""

    sentencepiece_model: str | None = option(
        None, help="path of the SentencePiece .model file", path=True
    )
    sentencepiece_enable_sampling: bool = option(
        False, help="draw one of the segmentations instead of the best (subword regularisation)"
    )
    sentencepiece_alpha: float | None = option(
        None, help="smoothing of the draw: the smaller, the more varied (default 0.1)", minimum=0
    )


@register_bpe("sentencepiece", dataclass=SentencepieceConfig)
class SentencepieceBPE:
    """Pieces of a SentencePiece model; U+2581 stands for the space before a word.

    Raises:
        ConfigError: if no model is named or the package ``sentencepiece`` is missing.
        MissingFileError: if the model file does not exist.
        DataError: if it is no SentencePiece model.
    """

    def __init__(self, cfg: SentencepieceConfig) -> None:
        if not cfg.sentencepiece_model:
            raise ConfigError("--bpe sentencepiece needs --sentencepiece-model FILE")
        path = require_file(cfg.sentencepiece_model, "model", "Check --sentencepiece-model.")
        library = require_library("sentencepiece", "--bpe sentencepiece")
        self.config = cfg
        try:
            self._model = library.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise DataError(f"{path} is no SentencePiece model ({error})") from error
        self._sampling: dict[str, Any] = {}
        if cfg.sentencepiece_enable_sampling:
            alpha = cfg.sentencepiece_alpha
            self._sampling = {
                "enable_sampling": True,
                # draw from all segmentations, not from the best n
                "nbest_size": -1,
                "alpha": DEFAULT_ALPHA if alpha is None else alpha,
            }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config,)

    def encode(self, x: str) -> str:
        """Return the pieces of ``x``, joined by spaces."""
        return " ".join(self._model.encode(x, out_type=str, **self._sampling))

    def decode(self, x: str) -> str:
        """Return the text of the pieces ``x``, without space at its ends."""
        return x.replace(" ", "").replace(WORD_START, " ").strip()

    def is_beginning_of_word(self, x: str) -> bool:
        """Tell whether the piece ``x`` starts a word; special symbols always do."""
        return x in SPECIAL_PIECES or x.startswith(WORD_START)

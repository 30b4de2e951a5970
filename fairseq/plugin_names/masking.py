"""``fairseq.data.encoders.utils``, for plug-ins that mask whole words."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq.data import encoders
from fairseq.data.masking import word_begins
from fairseq.data.storage.dictionary import Dictionary
from fairseq.protocols import Settings


def get_whole_word_mask(args: Settings, dictionary: Dictionary) -> Tensor | None:
    """Return for every id whether it begins a word, uint8 of shape (V,); None without an encoder.

    Args:
        args: settings of the encoder: its configuration, or a Namespace with ``bpe``, its name.
        dictionary: of the data.
    """
    bpe = encoders.build_bpe(args)
    return None if bpe is None else torch.from_numpy(word_begins(dictionary, bpe)).byte()

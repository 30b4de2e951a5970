"""Models as plug-ins write them: they know nothing of this project's projection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.data.storage.dictionary import Dictionary
from fairseq.models.base import BaseFairseqModel

DICTIONARY = Dictionary()
for _word in range(7):
    DICTIONARY.add_symbol(f"w{_word}")
PAD, V = DICTIONARY.pad(), len(DICTIONARY)
TASK = SimpleNamespace(
    target_dictionary=DICTIONARY,
    source_dictionary=DICTIONARY,
    cfg=SimpleNamespace(tokens_per_sample=8),
)


class PluginModel(BaseFairseqModel):
    """Logits from a table, one row per input token.

    Args:
        knows_masks: whether ``masked_tokens`` selects positions.
    """

    def __init__(self, knows_masks: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(V, V)
        self.knows_masks = knows_masks

    def forward(self, src_tokens: Tensor, src_lengths: Any = None, **kwargs: Any) -> Any:
        logits = self.table(src_tokens)
        if not self.knows_masks:
            assert not kwargs, f"unexpected {kwargs.keys()}"
        elif kwargs["masked_tokens"] is not None:
            logits = logits[kwargs["masked_tokens"]]
        return logits, None


def a_batch(targets: list[list[int]], ship_positions: bool = True) -> dict[str, Any]:
    """Return a batch with random tokens; a target of ``PAD`` is not predicted."""
    target_BT = torch.tensor(targets)
    torch.manual_seed(0)
    tokens_BT = torch.randint(4, V, target_BT.shape)
    batch = {
        "id": torch.arange(len(targets)),
        "net_input": {
            "src_tokens": tokens_BT,
            "src_lengths": torch.full((len(targets),), target_BT.shape[1]),
        },
        "target": target_BT,
        "ntokens": tokens_BT.numel(),
        "nsentences": len(targets),
    }
    if ship_positions:
        batch["predicted_positions"] = target_BT.flatten().ne(PAD).nonzero()[:, 0]
    return batch

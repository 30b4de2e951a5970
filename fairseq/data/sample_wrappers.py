"""Datasets that wrap one other dataset whose items are dicts, and change its batches.

Items are never changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fairseq.data.wrappers import BaseWrapperDataset
from fairseq.errors import ConfigError, DataError


class ColorizeDataset(BaseWrapperDataset):
    """Adds a number to every sample of a batch, as ``net_input.colors``."""

    def __init__(self, dataset: Any, color_getter: Callable[[Any, int], int]) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: its items have an ``id``, its batches ``net_input``.
            color_getter: (dataset, id) -> the number.
        """
        super().__init__(dataset)
        self.color_getter = color_getter

    def collater(self, samples: list[Any]) -> Any:
        """Merge items; ``net_input.colors`` is int64 (B,), in the order of ``samples``."""
        batch = super().collater(samples)
        if batch:
            colors = [self.color_getter(self.dataset, sample["id"]) for sample in samples]
            batch["net_input"]["colors"] = torch.tensor(colors, dtype=torch.int64)
        return batch


class TransformEosDataset(BaseWrapperDataset):
    """Adds or removes the end-of-sentence of ``source`` and ``target`` when batches are made.

    Items, ``source`` and ``target`` int (T,) each, and sizes are those of the wrapped dataset.
    """

    def __init__(
        self,
        dataset: Any,
        eos: int,
        append_eos_to_src: bool = False,
        remove_eos_from_src: bool = False,
        append_eos_to_tgt: bool = False,
        remove_eos_from_tgt: bool = False,
        has_target: bool = True,
    ) -> None:
        """Wrap ``dataset``.

        Args:
            dataset: its items are dicts.
            eos: id of end-of-sentence.
            append_eos_to_src: sources have none and get one.
            remove_eos_from_src: sources have one and lose it.
            append_eos_to_tgt: the same for targets.
            remove_eos_from_tgt: the same for targets.
            has_target: whether there are targets.

        Raises:
            ConfigError: if it is to be both added and removed.
        """
        super().__init__(dataset)
        self.eos = eos
        # what is edited, and whether it gets an end-of-sentence or loses it
        self.edits: dict[str, bool] = {}
        for part, append, remove in (
            ("source", append_eos_to_src, remove_eos_from_src),
            ("target", append_eos_to_tgt, remove_eos_from_tgt),
        ):
            if append and remove:
                raise ConfigError(f"{part}: the end-of-sentence cannot be both added and removed")
            if (append or remove) and (has_target or part == "source"):
                self.edits[part] = append

    def collater(self, samples: list[dict[str, Any]]) -> Any:
        """Edit items, then merge them.

        Raises:
            DataError: for a sequence that has an end-of-sentence to be added, or lacks one to be
                removed.
        """
        return super().collater([self._edited(sample) for sample in samples])

    def _edited(self, sample: dict[str, Any]) -> dict[str, Any]:
        sample = dict(sample)
        for part, append in self.edits.items():
            tokens_T = sample[part]
            ends = len(tokens_T) > 0 and int(tokens_T[-1]) == self.eos
            if ends == append:
                raise DataError(
                    f"the {part} of sample {sample.get('id')} {'ends' if ends else 'does not end'} "
                    f"with end-of-sentence ({self.eos}); check how the data was prepared"
                )
            end_1 = tokens_T.new_tensor([self.eos])
            sample[part] = torch.cat([tokens_T, end_1]) if append else tokens_T[:-1]
        return sample

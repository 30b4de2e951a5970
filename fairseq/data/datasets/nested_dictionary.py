"""``NestedDictionaryDataset``: datasets in, one nested dictionary per batch out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch.utils.data
from torch.utils.data.dataloader import default_collate

from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.datasets.concat import ManyDatasets
from fairseq.errors import DataError


class NestedDictionaryDataset(ManyDatasets):
    """Reads the same index from every dataset of a nested dictionary.

    An item is a flat dictionary with keys such as ``net_input.src_tokens``; a batch has the nested
    form of the definition, each leaf collated by its own dataset.
    """

    def __init__(
        self,
        defn: Mapping[str, Any],
        sizes: np.ndarray | Sequence[np.ndarray] | None = None,
    ) -> None:
        """Combine datasets.

        Args:
            defn: names -> datasets, or further dictionaries or lists of them.
            sizes: lengths of all items; several arrays if items have several lengths.

        Raises:
            DataError: if a leaf is no dataset, or datasets have different lengths. Those of
                length 0 (``IdDataset``, ``NumSamplesDataset``) fit any other.
        """
        super().__init__()
        self.defn: OrderedDict[str, Any] = OrderedDict(_flatten(defn, ""))
        self.datasets = list(self.defn.values())
        self.sizes: list[Any] = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
        for name, dataset in self.defn.items():
            if not isinstance(dataset, torch.utils.data.Dataset):
                raise DataError(f"expected a dataset for '{name}', found {type(dataset).__name__}")
        # placeholders have no items of their own: they answer for every index
        lengths = {name: len(dataset) for name, dataset in self.defn.items() if len(dataset)}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the datasets to combine have different lengths: {lengths}")
        self._len = next(iter(lengths.values()), 0)

    def __getitem__(self, index: int) -> OrderedDict[str, Any]:
        return OrderedDict((name, dataset[index]) for name, dataset in self.defn.items())

    def __len__(self) -> int:
        return self._len

    def collater(self, samples: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a nested dictionary of collated leaves; an empty one for no samples."""
        if not samples:
            return {}
        return _unflatten(
            (name, _collate(dataset, [sample[name] for sample in samples]))
            for name, dataset in self.defn.items()
        )

    def num_tokens(self, index: int) -> int:
        """Return the greatest length of an item."""
        return max(int(lengths[index]) for lengths in self.sizes)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return the greatest lengths of many items."""
        return np.max([np.asarray(lengths)[indices] for lengths in self.sizes], axis=0)

    def size(self, index: int) -> int | tuple[int, ...]:
        """Return the length of an item, or a tuple if there are several."""
        lengths = tuple(int(array[index]) for array in self.sizes)
        return lengths[0] if len(lengths) == 1 else lengths


def _flatten(value: object, name: str) -> list[tuple[str, Any]]:
    """Return (dotted name, leaf) pairs; the place in a list is written ``[i]``."""
    if isinstance(value, Mapping):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list):
        children = [(f"[{i}]", child) for i, child in enumerate(value)]
    else:
        return [(name, value)]
    prefix = f"{name}." if name else ""
    return [leaf for key, child in children for leaf in _flatten(child, prefix + key)]


def _unflatten(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Undo :func:`_flatten`."""
    root: dict[str, Any] = {}
    for name, leaf in leaves:
        *folders, last = name.split(".")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return _lists(root)


def _lists(node: object) -> Any:
    """Turn dictionaries whose keys are ``[0]``, ``[1]``... back into lists."""
    if not isinstance(node, dict):
        return node
    children = {key: _lists(child) for key, child in node.items()}
    return list(children.values()) if "[0]" in children else children


def _collate(dataset: FairseqDataset, samples: list[Any]) -> Any:
    """Collate with the dataset's own method, or torch's if it has none."""
    try:
        return dataset.collater(samples)
    # plug-ins may put any dataset of torch into a leaf
    except (AttributeError, NotImplementedError):
        return default_collate(samples)

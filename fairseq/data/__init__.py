"""From binary files to batches; every name is imported on first use."""

from __future__ import annotations

from fairseq.lazy import lazy_names

_NAMES = {
    "batches.epochs": ["EpochBatchIterator"],
    "batches.counting": [
        "BufferedIterator",
        "CountingIterator",
        "GroupedIterator",
        "ShardedIterator",
    ],
    "batches.protocol": ["EpochBatchIterating"],
    "datasets.base": ["FairseqDataset", "FairseqIterableDataset"],
    "datasets.causal_lm": ["MonolingualDataset"],
    "datasets.concat": ["ConcatDataset", "ConcatSentencesDataset"],
    "datasets.context_window": ["LMContextWindowDataset"],
    "datasets.nested_dictionary": ["NestedDictionaryDataset"],
    "datasets.shorten": ["RandomCropDataset", "TruncateDataset", "maybe_shorten_dataset"],
    "datasets.token_blocks": ["TokenBlockDataset"],
    "datasets.wrappers": [
        "AppendTokenDataset",
        "BaseWrapperDataset",
        "IdDataset",
        "ListDataset",
        "NumSamplesDataset",
        "NumelDataset",
        "PadDataset",
        "PrependTokenDataset",
        "RawLabelDataset",
        "RightPadDataset",
        "RollDataset",
        "SortDataset",
        "StripTokenDataset",
    ],
    "masking.dataset": ["MaskedLMDataset"],
    "masking.item_by_item": ["MaskTokensDataset"],
    "storage.dictionary": ["Dictionary", "TruncatedDictionary"],
    "storage.indexed_dataset": [
        "IndexedCachedDataset",
        "IndexedDataset",
        "IndexedRawTextDataset",
        "MMapIndexedDataset",
    ],
}
# modules under the names that plug-ins know them by
_MODULES = ["data_utils", "encoders", "indexed_dataset", "iterators"]
# nothing in the house uses these
_FOR_PLUGINS = [
    "ColorizeDataset",
    "LRUCacheDataset",
    "LeftPadDataset",
    "OffsetTokensDataset",
    "PrependDataset",
    "ReplaceDataset",
    "ResamplingDataset",
    "RightPaddingMaskDataset",
    "SubsampleDataset",
    "TransformEosDataset",
]

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
    | {"StreamingEpochBatchIterator": "fairseq.plugin_names.streaming_iterator"}
    | dict.fromkeys(_FOR_PLUGINS, "fairseq.plugin_names.datasets")
    | {module: f"{__name__}.{module}" for module in _MODULES},
)

"""From binary files to batches; every name is imported on first use."""

from __future__ import annotations

from fairseq.lazy import lazy_names

_NAMES = {
    "concat_dataset": ["ConcatDataset", "ConcatSentencesDataset"],
    "dictionary": ["Dictionary", "TruncatedDictionary"],
    "edit_wrappers": [
        "OffsetTokensDataset",
        "PrependDataset",
        "ReplaceDataset",
        "RollDataset",
        "StripTokenDataset",
    ],
    "epoch_batch_iterating": ["EpochBatchIterating"],
    "fairseq_dataset": ["FairseqDataset", "FairseqIterableDataset"],
    "indexed_dataset": [
        "IndexedCachedDataset",
        "IndexedDataset",
        "IndexedRawTextDataset",
        "MMapIndexedDataset",
    ],
    "iterators": [
        "BufferedIterator",
        "CountingIterator",
        "EpochBatchIterator",
        "GroupedIterator",
        "ShardedIterator",
        "StreamingEpochBatchIterator",
    ],
    "leaf_datasets": [
        "IdDataset",
        "ListDataset",
        "NumSamplesDataset",
        "NumelDataset",
        "RawLabelDataset",
    ],
    "lm_context_window_dataset": ["LMContextWindowDataset"],
    "mask_tokens_dataset": ["MaskTokensDataset"],
    "masked_lm_dataset": ["MaskedLMDataset"],
    "monolingual_dataset": ["MonolingualDataset"],
    "nested_dictionary_dataset": ["NestedDictionaryDataset"],
    "resampling_dataset": ["ResamplingDataset", "SubsampleDataset"],
    "sample_wrappers": ["ColorizeDataset", "TransformEosDataset"],
    "shorten_dataset": ["RandomCropDataset", "TruncateDataset", "maybe_shorten_dataset"],
    "token_block_dataset": ["TokenBlockDataset"],
    "wrappers": [
        "AppendTokenDataset",
        "BaseWrapperDataset",
        "LRUCacheDataset",
        "LeftPadDataset",
        "PadDataset",
        "PrependTokenDataset",
        "RightPadDataset",
        "RightPaddingMaskDataset",
        "SortDataset",
    ],
}
_MODULES = ["data_utils", "encoders", "indexed_dataset", "iterators"]

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
    | {module: f"{__name__}.{module}" for module in _MODULES},
)

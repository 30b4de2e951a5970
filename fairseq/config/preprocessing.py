"""The settings of fairseq-preprocess."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.config.schema import FairseqDataclass, option
from fairseq.config.sections import DatasetImpl


@dataclass
class PreprocessConfig(FairseqDataclass):
    """Text in, dictionary and binary files out."""

    source_lang: str | None = option(None, "source language", argparse_alias="-s")
    target_lang: str | None = option(None, "target language", argparse_alias="-t")
    trainpref: str | None = option(None, "training text (without the language suffix, if any)")
    validpref: str | None = option(None, "validation texts, separated by commas")
    testpref: str | None = option(None, "test texts, separated by commas")
    align_suffix: str | None = option(None, "suffix of an alignment file (not supported)")
    destdir: str = option("data-bin", "folder for the output")
    thresholdtgt: int = option(0, "target words seen less often become <unk>")
    thresholdsrc: int = option(0, "words seen less often become <unk>")
    tgtdict: str | None = option(None, "use this target dictionary")
    srcdict: str | None = option(None, "use this dictionary instead of building one")
    nwordstgt: int = option(-1, "most target words to keep")
    nwordssrc: int = option(-1, "most words to keep, special symbols included")
    alignfile: str | None = option(None, "an alignment file (not supported)")
    dataset_impl: DatasetImpl = option("mmap", "format of the binary files")
    joined_dictionary: bool = option(False, "one dictionary for both languages")
    only_source: bool = option(False, "one language only: what language models need")
    padding_factor: int = option(8, "pad the dictionary to a multiple of this")
    workers: int = option(1, "processes")
    dict_only: bool = option(False, "build the dictionary and stop")

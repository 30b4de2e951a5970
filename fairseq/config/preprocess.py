"""The settings of fairseq-preprocess, which share nothing with those of a training."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.config.schema import MOST_WORKERS, FairseqDataclass, option
from fairseq.config.sections import DatasetImpl


@dataclass
class PreprocessConfig(FairseqDataclass):
    """Text in, dictionary and binary files out."""

    source_lang: str | None = option(None, "source language", argparse_alias="-s")
    target_lang: str | None = option(None, "target language", argparse_alias="-t")
    trainpref: str | None = option(
        None,
        "training text (without the language suffix, if any): a file of words, or records: JSON "
        "lines (.jsonl, .jsonl.gz), a Parquet file, a folder of such or a datasets folder, the "
        "last three also as FOLDER:SPLIT or FOLDER:SPLIT(lo:hi), a fraction of the rows",
        path=True,
    )
    validpref: str | None = option(None, "validation texts, separated by commas", path=True)
    testpref: str | None = option(None, "test texts, separated by commas", path=True)
    align_suffix: str | None = option(None, "suffix of an alignment file (not supported)")
    destdir: str = option("data-bin", "folder for the output", path=True)
    thresholdtgt: int = option(0, "target words seen fewer than N times become <unk>", minimum=0)
    thresholdsrc: int = option(0, "words seen fewer than N times become <unk>", minimum=0)
    tgtdict: str | None = option(None, "use this target dictionary", path=True)
    srcdict: str | None = option(None, "use this dictionary instead of building one", path=True)
    nwordstgt: int = option(-1, "most target words to keep (-1: all)", minimum=-1)
    nwordssrc: int = option(
        -1, "most words to keep, special symbols included (-1: all)", minimum=-1
    )
    alignfile: str | None = option(None, "an alignment file (not supported)")
    dataset_impl: DatasetImpl = option("mmap", "format of the binary files")
    joined_dictionary: bool = option(False, "one dictionary for both languages")
    only_source: bool = option(False, "one language only: what language models need")
    padding_factor: int = option(
        8,
        "fill the dictionary up to a multiple of N with unused entries (0 and 1: do not)",
        minimum=0,
    )
    workers: int = option(1, "processes to use", minimum=1, maximum=MOST_WORKERS)
    byte_level_tokenizer: str | None = option(
        None,
        "tokenizer.json of fairseq-bpe train that made the texts, and cuts records into pieces "
        "now: the dictionary gets all of its pieces, so that no text has an unknown one, and the "
        "file is copied to --destdir",
        new=True,
        path=True,
    )
    text_key: str | None = option(
        None,
        "key of the text in JSON lines, or its column; a.b is b inside a. If given, a file of any "
        'name holds JSON lines ["text"]',
        new=True,
    )
    skip_bad_records: bool = option(
        False, "leave out and count records that are not JSON or have no text", new=True
    )
    dict_only: bool = option(False, "build the dictionary and stop")

"""``fairseq-preprocess``: build dictionaries from text and binarize it.

Each text is split into words once. The dictionary and every dataset appear under their names only
when they are complete, and ``manifest.json`` describes them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, TextIO

import numpy as np

from fairseq.config.preprocess import PreprocessConfig
from fairseq.config.ranges import check_fields
from fairseq.data.encoders.byte_level import read_tokenizer
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import (
    BinaryDataset,
    check_dataset_impl,
    data_file_path,
    index_file_path,
    make_builder,
    make_dataset,
    shift_of,
)
from fairseq.data.storage.manifest import MANIFEST_NAME, DatasetEntry, read_manifest, write_manifest
from fairseq.errors import ConfigError, DataError, FairseqError, UnsupportedError
from fairseq.files.io import (
    atomic_write,
    describe_writes,
    named_in_errors,
    require_file,
    try_lock,
)
from fairseq.preprocess.binarize import (
    FileBinarizer,
    NumberedText,
    VocabularyDatasetBinarizer,
    ids_of,
    scratch_folder,
)
from fairseq.preprocess.records import Records, records_of

logger = logging.getLogger("fairseq_cli.preprocess")

COUNTED_TOGETHER = 1 << 22  # tokens


class OutputExistsError(FairseqError, FileExistsError):
    """A file that would be overwritten and may belong to other data."""


class DictionaryMaker(Protocol):
    """What reads and builds dictionaries: the task of a plug-in, as in the original."""

    def load_dictionary(self, filename: str) -> Dictionary:
        """Read a dictionary file."""

    def build_dictionary(
        self,
        filenames: Sequence[str],
        workers: int,
        threshold: int,
        nwords: int,
        padding_factor: int,
    ) -> Dictionary:
        """Count the words of text files; see ``FairseqTask.build_dictionary``."""


@dataclass(frozen=True)
class Text:
    """A text file and the dataset it becomes.

    Attributes:
        path: the text.
        name: what the user calls it.
        records: how it is read, if it is no file of words.
        lang: its language, None with ``--only-source`` and no ``--source-lang``.
        output: prefix of the dataset inside ``--destdir``.
        dictionary: name of the dictionary file inside ``--destdir``.
        is_train: whether the dictionary is built from it.
    """

    path: str
    name: str
    records: Records | None
    lang: str | None
    output: str
    dictionary: str
    is_train: bool


def preprocess(config: PreprocessConfig, maker: DictionaryMaker | None = None) -> None:
    """Write dictionaries, datasets, ``preprocess.log`` and ``manifest.json`` into ``destdir``.

    Args:
        config: the settings, or a Namespace that has some of them.
        maker: makes the dictionaries in its own way, with other special symbols for example.

    Raises:
        ConfigError: if flags are missing, out of range or contradict each other.
        DataError: if a text is empty or not UTF-8, or a dictionary file is damaged.
        MissingFileError: if a text or dictionary is absent.
        OutputExistsError: if ``destdir`` holds a dictionary that would be overwritten, or another
            ``preprocess`` is at work there.
    """
    given, config = vars(config), PreprocessConfig.from_namespace(config)
    check_fields(config)
    _check_flags(config)
    _check_destination(config)
    texts = [text for text in _texts(config) if text.is_train or not config.dict_only]
    for text in texts:
        _require_text(text)
    os.makedirs(config.destdir, exist_ok=True)
    with (
        _log_file(config.destdir) as log,
        describe_writes() as described,
        named_in_errors(config.destdir),  # scratch files have names that say nothing
        contextlib.ExitStack() as stack,
    ):
        _check_destination(config)  # again, now that nobody else can be at work there
        print(_namespace(given, config), file=log, flush=True)  # too long for a terminal
        texts = _records_to_text(config, texts, stack)
        numbered = {} if maker else _read_train_texts(config, texts, stack)
        dictionaries = _dictionaries(config, texts, numbered, maker)
        # those of imported models know no counts, which masking and heads may ask for
        uncounted = {
            name
            for name, dictionary in dictionaries.items()
            if not maker and not dictionary.nspecial and not dictionary.is_counted()
        }
        entries: dict[str, DatasetEntry] = {}
        if not config.dict_only:
            for text in texts:
                make = _copy_raw if config.dataset_impl == "raw" else _make_dataset
                entries[text.output] = make(
                    config, text, dictionaries[text.dictionary], numbered.pop(text.path, None)
                )
                if text.is_train and text.dictionary in uncounted:
                    _count(dictionaries[text.dictionary], config, text)
        # Last, so that an interrupted run can be started again: it left no dictionary in the way.
        for name, dictionary in dictionaries.items():
            dictionary.save(os.path.join(config.destdir, name))
        _copy_tokenizer(config)
        _write_manifest(config, dictionaries, entries, described)
        logger.info(f"Wrote preprocessed data to {config.destdir}")


def _namespace(given: Mapping[str, object], config: PreprocessConfig) -> Namespace:
    """Return every setting as the original's ``preprocess.log`` has them, for who parses it."""
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    values = {**given, **own}
    return Namespace(**{name: value for name, value in values.items() if name != "_name"})


def _check_flags(config: PreprocessConfig) -> None:
    """Raise unless the flags ask for something that can be done."""
    check_dataset_impl(config.dataset_impl)
    if config.align_suffix or config.alignfile:
        raise UnsupportedError(
            "word alignments (--align-suffix, --alignfile) belong to translation, which is not "
            "supported; drop the flag"
        )
    if not config.only_source and (not config.source_lang or not config.target_lang):
        raise ConfigError(
            "give --only-source for plain text, or both --source-lang and --target-lang for pairs"
        )
    if not config.only_source and config.source_lang == config.target_lang:
        raise ConfigError(f"--source-lang and --target-lang are both {config.source_lang}")
    if config.joined_dictionary and config.srcdict and config.tgtdict:
        raise ConfigError("give --joined-dictionary only one of --srcdict and --tgtdict")
    if not (config.trainpref or config.validpref or config.testpref):
        raise ConfigError("no text: give --trainpref, --validpref or --testpref")
    if not config.trainpref and _is_dictionary_built(config):
        raise ConfigError("--trainpref is needed to build a dictionary; or give one by --srcdict")
    if config.byte_level_tokenizer and max(config.thresholdsrc, config.nwordssrc) > 0:
        raise ConfigError(
            "--byte-level-tokenizer keeps every piece, --thresholdsrc and --nwordssrc drop rare "
            "ones: give one of them"
        )
    if config.byte_level_tokenizer and not config.only_source:
        raise ConfigError("--byte-level-tokenizer needs --only-source")


def _is_dictionary_built(config: PreprocessConfig) -> bool:
    """Tell whether any dictionary is to be built from the training text."""
    if config.joined_dictionary:
        return not (config.srcdict or config.tgtdict)
    return not config.srcdict or not (config.only_source or config.tgtdict)


def _pieces(config: PreprocessConfig) -> list[str]:
    """Return every piece of the byte-level encoding that made the texts, as they have it."""
    path = config.byte_level_tokenizer
    if path is None:
        return []
    remedy = "Check --byte-level-tokenizer."
    vocabulary, _ = read_tokenizer(require_file(path, "tokenizer", remedy))
    return [str(number) for number in sorted(vocabulary.values())]


def _require_pieces(config: PreprocessConfig, words: Iterable[str], place: str) -> None:
    """Raise if words of a text are no pieces of the byte-level encoding, which are numbers."""
    raw = config.byte_level_tokenizer and next((w for w in words if not w.isdecimal()), None)
    if raw:
        raise DataError(
            f"{place} holds {raw!r}, which is no piece of {config.byte_level_tokenizer}: cut the "
            "text first (fairseq-bpe encode --bpe byte_level --tokenizer-file ...), or give "
            "records such as .jsonl, which are cut on the way"
        )


def _languages(config: PreprocessConfig) -> list[str | None]:
    return [config.source_lang] if config.only_source else [config.source_lang, config.target_lang]


def _dictionary_name(lang: str | None) -> str:
    return f"dict.{lang}.txt" if lang else "dict.txt"


def _named_dictionaries(config: PreprocessConfig) -> list[str | None]:
    """Return the dictionary file that the user gave for each language, or None."""
    if config.joined_dictionary:
        return [config.srcdict or config.tgtdict] * 2
    return [config.srcdict, config.tgtdict]


def _check_destination(config: PreprocessConfig) -> None:
    """Raise if a dictionary would be overwritten, or the manifest could not be extended."""
    if os.path.exists(config.destdir) and not os.path.isdir(config.destdir):
        raise OutputExistsError(f"--destdir {config.destdir} is a file; choose another name")
    for lang, named in zip(_languages(config), _named_dictionaries(config), strict=False):
        path = os.path.join(config.destdir, _dictionary_name(lang))
        if not named and os.path.exists(path):
            raise OutputExistsError(
                f"{path} exists. To encode more text with it, give it by --srcdict (or --tgtdict); "
                "to start afresh, delete it or choose another --destdir."
            )
    if os.path.exists(os.path.join(config.destdir, MANIFEST_NAME)):
        read_manifest(config.destdir)


def _require_text(text: Text) -> None:
    """Raise unless there is something to read; folders are looked into when they are read."""
    place = text.records.name if text.records else text.path
    if text.records and os.path.isdir(place):
        return
    flag = f"--{re.split('[0-9.]', text.output)[0]}pref"
    language = f", which names the file without .{text.lang}" if text.lang else ""
    text_file = require_file(place, "text file", f"Check {flag}{language}.")
    if text_file.stat().st_size == 0:
        raise DataError(f"{place} is empty; leave out its flag, or give a text with some lines")


def _records_to_text(
    config: PreprocessConfig, texts: list[Text], stack: contextlib.ExitStack
) -> list[Text]:
    """Write the lines of texts that are records into a folder that is removed at the end."""
    if not any(text.records for text in texts):
        return texts
    folder, of_words = stack.enter_context(scratch_folder(config.destdir)), []
    for text in texts:
        if text.records:
            path = os.path.join(folder, text.output)
            summary = text.records.write(path, config.byte_level_tokenizer, config.workers)
            logger.info(f"{text.name}: {summary.of_records()}, {summary.written:,} lines")
            text = replace(text, path=path)
        of_words.append(text)
    return of_words


def _texts(config: PreprocessConfig) -> list[Text]:
    """List the text files and their datasets, language by language, training text first."""
    texts = []
    for lang in _languages(config):
        inputs = [("train", config.trainpref)] if config.trainpref else []
        for split, flag in (("valid", config.validpref), ("test", config.testpref)):
            for number, prefix in enumerate(flag.split(",") if flag else ()):
                inputs.append((f"{split}{number}" if number else split, prefix))
        for split, prefix in inputs:
            path = f"{prefix}.{lang}" if lang else prefix
            output = split + _output_suffix(config, lang)
            records = records_of(path, config.text_key, config.skip_bad_records)
            dictionary = _dictionary_name(lang)
            texts.append(Text(path, path, records, lang, output, dictionary, split == "train"))
    return texts


def _output_suffix(config: PreprocessConfig, lang: str | None) -> str:
    """Return what follows the name of the split in the name of a dataset."""
    pair = f".{config.source_lang}-{config.target_lang}"
    if lang:
        return f"{pair}.{lang}"
    return pair if config.dataset_impl == "raw" else ""


def _read_train_texts(
    config: PreprocessConfig, texts: list[Text], stack: contextlib.ExitStack
) -> dict[str, NumberedText]:
    """Read the training texts whose dictionary is to be built, by path."""
    named = dict(zip(_languages(config), _named_dictionaries(config), strict=False))
    only_counts = config.dict_only or config.dataset_impl == "raw"
    folder = None if only_counts else config.destdir
    numbered = {}
    for text in texts:
        if text.is_train and not named[text.lang]:
            numbered[text.path] = NumberedText(text.path, folder, config.workers)
            stack.callback(numbered[text.path].close)
    return numbered


def _dictionaries(
    config: PreprocessConfig,
    texts: list[Text],
    numbered: dict[str, NumberedText],
    maker: DictionaryMaker | None,
) -> dict[str, Dictionary]:
    """Load or build the dictionary of each language, by the name of its file."""
    train_path = {text.lang: text.path for text in texts if text.is_train}
    limits = [
        (config.thresholdsrc, config.nwordssrc),
        (config.thresholdtgt, config.nwordstgt),
    ]
    dictionaries = {}
    joined: Dictionary | None = None
    paths = _named_dictionaries(config)
    for lang, path, (threshold, nwords) in zip(_languages(config), paths, limits, strict=False):
        if joined is not None:
            dictionary = joined
        elif path:
            dictionary = maker.load_dictionary(path) if maker else Dictionary.load(path)
            missing = [piece for piece in _pieces(config) if piece not in dictionary]
            if missing:
                raise DataError(
                    f"{path} lacks {len(missing)} pieces of {config.byte_level_tokenizer}, the "
                    f"first is {missing[0]}; give the tokenizer's own dictionary, or drop "
                    "--byte-level-tokenizer to make such pieces <unk>"
                )
        elif maker:
            sources = [*train_path.values()] if config.joined_dictionary else [train_path[lang]]
            dictionary = maker.build_dictionary(
                sources,
                workers=config.workers,
                threshold=threshold,
                nwords=nwords,
                padding_factor=config.padding_factor,
            )
            if all(dictionary.is_filler(n) for n in range(dictionary.nspecial, len(dictionary))):
                raise DataError(f"{', '.join(sources)}: no words, only blank lines")
            for piece in _pieces(config):
                dictionary.add_symbol(piece, n=0)
            dictionary.pad_to_multiple_(config.padding_factor)
        else:
            sources = list(numbered) if config.joined_dictionary else [train_path[lang]]
            dictionary = Dictionary()
            for source in sources:
                _require_pieces(config, numbered[source].words.words[1:], source)
                dictionary.add_counted(numbered[source].words)
            if len(dictionary) == dictionary.nspecial:
                raise DataError(f"{', '.join(sources)}: no words, only blank lines")
            for piece in _pieces(config):
                dictionary.add_symbol(piece, n=0)
            dictionary.finalize(threshold, nwords, config.padding_factor)
        if config.joined_dictionary:
            joined = dictionary
        dictionaries[_dictionary_name(lang)] = dictionary
    return dictionaries


def _make_dataset(
    config: PreprocessConfig, text: Text, dictionary: Dictionary, numbered: NumberedText | None
) -> DatasetEntry:
    """Write the dataset of one text and tell what it holds."""
    language = f"[{text.lang}] " if text.lang else ""
    logger.info(f"{language}Dictionary: {len(dictionary)} types")
    prefix = os.path.join(config.destdir, text.output)
    with make_builder(data_file_path(prefix), config.dataset_impl, len(dictionary)) as builder:
        if numbered is not None:
            summary = numbered.write(dictionary, builder)
            numbered.close()
        else:
            binarizer = VocabularyDatasetBinarizer(dictionary)
            summary = FileBinarizer.binarize(text.path, binarizer, builder, config.workers)
            _require_pieces(config, summary.replaced or (), text.name)
        builder.finalize(index_file_path(prefix))
    logger.info(f"{language}{text.name}: {summary} (by {dictionary.unk_word})")
    return DatasetEntry(
        config.dataset_impl, summary.num_seq, summary.num_tok, builder.max_id, text.dictionary
    )


def _count(dictionary: Dictionary, config: PreprocessConfig, text: Text) -> None:
    """Add the words of a dataset to the counts of the dictionary; ``raw`` ones are text."""
    if config.dataset_impl == "raw":
        return
    prefix = os.path.join(config.destdir, text.output)
    lines = make_dataset(prefix, config.dataset_impl, fix_lua_indexing=True)
    assert isinstance(lines, BinaryDataset)
    count_V, shift = np.array(dictionary.count, dtype=np.int64), shift_of(lines)
    for begin in range(0, len(lines.flat), COUNTED_TOGETHER):
        ids = lines.flat[begin : begin + COUNTED_TOGETHER] - shift
        count_V += np.bincount(ids, minlength=len(count_V))
    dictionary.count = count_V.tolist()


def _copy_raw(
    config: PreprocessConfig, text: Text, dictionary: Dictionary, numbered: NumberedText | None
) -> DatasetEntry:
    """Copy a text as it is and tell what it would hold as a dataset."""
    words = (numbered or NumberedText(text.path, None, config.workers)).words
    with (
        open(text.path, "rb") as source,
        atomic_write(os.path.join(config.destdir, text.output)) as copy,
    ):
        shutil.copyfileobj(source, copy, 1 << 20)
    max_id = max(dictionary.eos_index, int(ids_of(words.words[1:], dictionary).max(initial=-1)))
    sentences, tokens = int(words.counts_W[0]), int(words.counts_W.sum())
    return DatasetEntry("raw", sentences, tokens, max_id, text.dictionary)


def _copy_tokenizer(config: PreprocessConfig) -> None:
    """Put the tokenizer beside the dictionary, where models find it."""
    source = config.byte_level_tokenizer
    target = os.path.join(config.destdir, "tokenizer.json")
    if source and not (os.path.exists(target) and os.path.samefile(source, target)):
        with open(source, "rb") as reader, atomic_write(target) as writer:
            shutil.copyfileobj(reader, writer)


def _write_manifest(
    config: PreprocessConfig,
    dictionaries: dict[str, Dictionary],
    entries: dict[str, DatasetEntry],
    described: dict[str, tuple[int, str]],
) -> None:
    """Add the files of this run to the manifest of ``--destdir``."""
    digests = {name: described[os.path.join(config.destdir, name)][1] for name in dictionaries}
    signed = {
        name: replace(entry, dictionary_sha256=digests[entry.dictionary])
        for name, entry in entries.items()
    }
    files = [file for name, entry in entries.items() for file in entry.file_names(name)]
    write_manifest(config.destdir, [*dictionaries, *files], signed, config.workers, described)


class _LogFile(logging.FileHandler):
    """A log file whose errors, such as a full disk, end the command instead of being printed."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error that is being handled."""
        raise


@contextlib.contextmanager
def _log_file(destdir: str) -> Iterator[TextIO]:
    """Append what is logged meanwhile to ``preprocess.log``, which is locked, and yield it open.

    Raises:
        OutputExistsError: if another process has it locked.
    """
    handler = _LogFile(os.path.join(destdir, "preprocess.log"), encoding="utf-8")
    assert handler.stream is not None
    if not try_lock(handler.stream, per_process=True):
        handler.close()
        raise OutputExistsError(
            f"another fairseq-preprocess is at work in {destdir}; wait for it, or choose another "
            "--destdir"
        )
    level = logger.level
    logger.addHandler(handler)
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    try:
        yield handler.stream
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()

"""From the official files of a task to the folder that the task ``sentence_prediction`` reads.

``input0``, ``input1`` and ``label`` hold ``train``, ``valid`` and perhaps ``valid1``. Examples are
ordered by length, so that batches of neighbours need hardly any padding.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairseq.config.build import plain
from fairseq.config.preprocess import PreprocessConfig
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError, ConfigError, DataError
from fairseq.evaluation.glue.tasks import STS_B_MAXIMUM, Examples, GlueTask, read_examples
from fairseq.export.encoder_out import find_data
from fairseq.files.io import atomic_write, require_checkpoint, require_file, sha256_of
from fairseq.hub.load import from_pretrained
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from fairseq.preprocess.corpus import preprocess

RECORD = "prepared.json"
UNFINISHED = ".fairseq-glue"  # marks a folder of ours until its record is written
# What the files mean; a change makes earlier ones stale.
LAYOUT = 1
MOST_UNKNOWN = 0.5
MASK = "<mask>"


@dataclass(frozen=True)
class Pretrained:
    """What is needed of a checkpoint besides its weights.

    Attributes:
        path: the file.
        digest: its SHA-256.
        model: settings of the model, ``_name`` included.
        encoder: its text encoder, None if its dictionary holds words.
        encoder_settings: the settings of that.
        dictionary: its dictionary, without ``<mask>``.
        ends_between: how many ``</s>`` it has between two sentences.
    """

    path: str
    digest: str
    model: dict[str, Any]
    encoder: Any
    encoder_settings: dict[str, Any]
    dictionary: Dictionary
    ends_between: int


def open_pretrained(path: str, dict_dir: str | None = None, **settings: Any) -> Pretrained:
    """Read a checkpoint's settings, and find its dictionary and text encoder.

    Args:
        path: the file.
        dict_dir: folder with ``dict.txt``; if None, that of the checkpoint, or else the one it was
            trained on.
        **settings: of the text encoder, such as ``bpe`` and ``gpt2_encoder_json``; those that are
            None are looked up in the checkpoint and beside it.

    Raises:
        MissingFileError: if the checkpoint or the dictionary is not there.
        CheckpointError: if they do not belong together, or the model cannot be fine-tuned.
    """
    file = require_checkpoint(path, "Name the file of a pre-trained model.").resolve()
    folder = find_data(file, Path(dict_dir) if dict_dir else None, "--dict-dir")
    require_file(folder / "dict.txt", "dictionary", "Name its folder with --dict-dir.")
    loaded = from_pretrained(str(file.parent), file.name, str(folder.resolve()), **settings)
    model, config = loaded["models"][0], loaded["args"]
    dictionary: Dictionary = loaded["task"].source_dictionary
    if not hasattr(model, "register_classification_head"):
        raise CheckpointError(
            f"{path} is of architecture {config.model._name}, which classifies no sentences; "
            "GLUE needs an encoder such as roberta"
        )
    hub = RobertaHubInterface(config, loaded["task"], model)
    if dictionary.symbols[-1] == MASK:
        # the task puts <mask> back in the last row
        dictionary = dictionary.resized(len(dictionary) - 1, (MASK,)) or dictionary
    architecture = {key: value for key, value in plain(config.model).items() if value is not None}
    return Pretrained(
        path=str(file),
        digest=sha256_of(file),
        model=architecture,
        encoder=hub.bpe,
        encoder_settings=plain(config.bpe) or {},
        dictionary=dictionary,
        ends_between=hub.ends_between(),
    )


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready.

    Attributes:
        folder: where it is.
        digest: of the texts and of what encoded them.
        tokens: tokens of the training split, special ones included.
        examples: examples of the training split.
        train_labels: how often each label (its number) occurs in the training split.
    """

    folder: str
    digest: str
    tokens: int
    examples: int
    train_labels: dict[str, int]


def prepare(
    task: GlueTask, glue_dir: str | Path, pretrained: Pretrained, folder: Path, longest: int
) -> Prepared:
    """Write the folder of a task, unless it is there and still right.

    Args:
        task: which.
        glue_dir: holds one folder with the official files for each task.
        pretrained: encodes the sentences.
        folder: what to write; what an unfinished call left there is removed.
        longest: longer examples lose the end of their (longer) sentence, special tokens counted.

    Raises:
        MissingFileError: if a file of the task is not there.
        DataError: if a file cannot be understood.
        ConfigError: if the folder holds what this did not write.
    """
    splits = {"train": "train", **{f"valid{n or ''}": name for n, name in enumerate(task.valid)}}
    sources = {
        split: require_file(
            Path(glue_dir) / task.name / f"{name}.tsv",
            f"{task.name} file",
            "Check --glue-dir: it holds one folder for each task.",
        )
        for split, name in splits.items()
    }
    digest = _digest([longest, *map(sha256_of, sources.values())], pretrained)
    record = folder / RECORD
    if record.is_file():
        with contextlib.suppress(ValueError, TypeError):  # a damaged record is made anew
            known = Prepared(**json.loads(record.read_text(encoding="utf-8")))
            if known.digest == digest:
                return replace(known, folder=str(folder))
    _make_room(folder)
    contents = {split: read_examples(task, file) for split, file in sources.items()}
    numbers = {split: _label_numbers(task, content) for split, content in contents.items()}
    columns = {split: _encoded(content, pretrained, longest) for split, content in contents.items()}
    texts = folder / "text"
    texts.mkdir(parents=True)
    (folder / UNFINISHED).touch()
    between = pretrained.ends_between
    tokens = [_write(columns[split], numbers[split], texts, split, between) for split in splits][0]
    for place in range(len(task.sentences)):
        _binarize(texts, f"input{place}", pretrained.dictionary, list(splits), folder)
    _finish_labels(task, texts, list(splits), folder)
    shutil.rmtree(texts)
    train = numbers["train"]
    counts = (
        {} if task.is_regression() else {word: train.count(word) for word in sorted(set(train))}
    )
    prepared = Prepared(str(folder), digest, tokens, len(train), counts)
    with atomic_write(record, "w") as handle:
        json.dump(prepared.__dict__, handle, indent=1)
    # last: a folder with the mark is begun anew
    (folder / UNFINISHED).unlink()
    return prepared


def _make_room(folder: Path) -> None:
    """Remove what an earlier call of :func:`prepare` made, and nothing else.

    Raises:
        ConfigError: if the folder is somebody else's.
    """
    if not folder.exists():
        return
    ours = folder.is_dir() and any((folder / name).is_file() for name in (RECORD, UNFINISHED))
    if not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"{folder} was not made by fairseq-glue, which would replace it: choose another "
            "--out, or move it away"
        )
    shutil.rmtree(folder)


def _digest(sources: list[Any], pretrained: Pretrained) -> str:
    settings = {
        # files count by content, so that a folder that was moved is still right
        key: sha256_of(value) if isinstance(value, str) and Path(value).is_file() else value
        for key, value in pretrained.encoder_settings.items()
    }
    parts = [LAYOUT, sources, settings, pretrained.dictionary.symbols]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _label_numbers(task: GlueTask, content: Examples) -> list[str]:
    """Return labels as they are written: places among the classes, or scores from 0 to 1."""
    if task.is_regression():
        # repr gives back the same number when it is read
        return [repr(float(label) / STS_B_MAXIMUM) for label in content.labels]
    places = {name: str(place) for place, name in enumerate(task.classes)}
    return [places[label] for label in content.labels]


def _encoded(content: Examples, pretrained: Pretrained, longest: int) -> list[list[list[str]]]:
    """Return the pieces of every sentence of every example, cut to fit.

    Raises:
        DataError: if the dictionary knows too few of them.
    """
    encode = pretrained.encoder.encode if pretrained.encoder is not None else str
    columns = ([encode(text).split() for text in column] for column in content.columns)
    examples = [list(pieces) for pieces in zip(*columns, strict=True)]
    every = [piece for pieces in examples for column in pieces for piece in column]
    unknown = [piece for piece in every if piece not in pretrained.dictionary]
    if len(unknown) > MOST_UNKNOWN * len(every):
        raise DataError(
            f"{len(unknown):,} of {len(every):,} pieces, such as {unknown[0]!r}, are not in the "
            "checkpoint's dictionary: the text encoder is another one than it was trained with; "
            "name that with --bpe and its files"
        )
    for pieces in examples:
        surplus = _length(pieces, pretrained.ends_between) - longest
        while surplus > 0:
            # piece by piece from whichever is longer, as BERT does
            pieces[max(range(len(pieces)), key=lambda place: len(pieces[place]))].pop()
            surplus -= 1
    return examples


def _length(pieces: list[list[str]], between: int) -> int:
    """Return the tokens of an example: <s> A </s>, or two with ``between`` </s> between them."""
    return sum(map(len, pieces)) + 2 + between * (len(pieces) - 1)


def _write(
    examples: list[list[list[str]]], labels: list[str], texts: Path, split: str, between: int
) -> int:
    """Write the columns of a split, short examples first; return its tokens."""
    lengths = [_length(pieces, between) for pieces in examples]
    # neighbours make up batches: like lengths waste no padding
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for place in range(len(examples[0])):
        lines = "".join(" ".join(examples[number][place]) + "\n" for number in order)
        (texts / f"{split}.input{place}").write_text(lines, encoding="utf-8", newline="\n")
    lines = "".join(f"{labels[number]}\n" for number in order)
    (texts / f"{split}.label").write_text(lines, encoding="utf-8", newline="\n")
    return sum(lengths)


def _finish_labels(task: GlueTask, texts: Path, splits: list[str], folder: Path) -> None:
    """Move scores, or binarize classes, with a dictionary in their order."""
    if not task.is_regression():
        labels = Dictionary()
        for place in range(len(task.classes)):
            labels.add_symbol(str(place))
        _binarize(texts, "label", labels, splits, folder)
        return
    (folder / "label").mkdir()
    for split in splits:
        (texts / f"{split}.label").rename(folder / "label" / f"{split}.label")


def _binarize(
    texts: Path, name: str, dictionary: Dictionary, splits: list[str], folder: Path
) -> None:
    """Binarize one column of all splits with a given dictionary."""
    dictionary_path = texts / f"{name}.dict"
    dictionary.save(dictionary_path)
    files = {split: str(texts / f"{split}.{name}") for split in splits}
    config = PreprocessConfig(
        only_source=True,
        srcdict=str(dictionary_path),
        destdir=str(folder / name),
        trainpref=files["train"],
        validpref=",".join(path for split, path in files.items() if split != "train"),
    )
    with _quiet():
        preprocess(config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what preprocessing says off the console; its log file has it."""
    logger = logging.getLogger("fairseq_cli.preprocess")
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True

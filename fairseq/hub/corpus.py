"""A corpus drawn from a causal language model, with the probabilities it was drawn with.

The model may use some of its words only, and a sentence has a greatest length: then the truth is
known, see :mod:`fairseq.pcfg.language_model`.

Shapes: B sentences, N words, V dictionary, E choices of the next word, S sentences of the corpus.
"""

from __future__ import annotations

import logging
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError, DataError
from fairseq.files.io import atomic_write
from fairseq.hub.load import load_causal_models
from fairseq.models.base import BaseFairseqModel
from fairseq.pcfg.language_model import LanguageModelSource, NextWords, restricted
from fairseq.pcfg.sample import dictionary_of, draw_exactly
from fairseq.pcfg.score import add_arrays, write_scores
from fairseq.pcfg.source import batches
from fairseq.rng import philox

logger = logging.getLogger(__name__)

BLOCK = 256
"""Sentences drawn together; part of what a seed means."""


@dataclass(frozen=True)
class CorpusSettings:
    """What is drawn.

    Attributes:
        sentences: how many.
        folder: where to.
        words: so many of the most frequent words, None for all.
        longest: most words of a sentence.
        scored: sentences whose masked words get their true distribution, by enumeration.
        seed: another one gives other sentences.
    """

    sentences: int
    folder: str
    words: int | None = None
    longest: int = 24
    scored: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in (("sentences", 1), ("longest", 1), ("scored", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"a corpus needs {name} of at least {least}")
        if self.words is not None and self.words < 1:
            raise ConfigError("--corpus-words must be at least 1")


def next_words(model: BaseFairseqModel, begin: int, device: torch.device) -> NextWords:
    """Return the model as a function of ids (B, N): log-probabilities (B, N + 1, V), float64."""

    @torch.inference_mode()
    def ask(ids_BN: np.ndarray) -> np.ndarray:
        first_B1 = np.full((len(ids_BN), 1), begin)
        tokens_BT = torch.from_numpy(np.concatenate([first_B1, ids_BN], axis=1)).to(device)
        logits_BTV = model(tokens_BT)[0]
        return torch.log_softmax(logits_BTV.double(), dim=-1).cpu().numpy()

    return ask


def open_source(flat: Mapping[str, Any], settings: CorpusSettings) -> LanguageModelSource:
    """Return a causal checkpoint, or a folder of Hugging Face, as a source.

    Raises:
        ConfigError: if there are several models, or too few words or positions.
    """
    path = flat.get("path")
    if path and Path(path).is_dir():
        from fairseq.export.encoder_in import from_huggingface

        with tempfile.TemporaryDirectory() as folder:
            from_huggingface(Path(path), Path(folder) / "model")
            file = next((Path(folder) / "model").glob("*.pt"))
            return open_source({**flat, "path": str(file), "data": str(file.parent)}, settings)
    models, config, task = load_causal_models(flat)
    if len(models) != 1:
        raise ConfigError("a corpus is drawn from one model; name one in --path")
    device = choose_device(config)
    model, dictionary = models[0].to(device).eval(), task.source_dictionary
    if settings.longest + 1 > model.max_positions():
        raise ConfigError(
            f"--corpus-length {settings.longest}: the model sees {model.max_positions()} tokens"
        )
    ids = _words(dictionary, settings.words)
    ask = restricted(next_words(model, task.first_token(), device), [*ids, dictionary.eos()])
    return LanguageModelSource([dictionary[number] for number in ids], ask, settings.longest)


def _words(dictionary: Dictionary, count: int | None) -> list[int]:
    """Return the ids of the most frequent words; of equal ones the first."""
    # in dictionaries of imported models marks are anywhere: the end would be a word, too
    marks = {dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()}
    numbers = [
        number
        for number in range(dictionary.nspecial, len(dictionary))
        if number not in marks
        and not dictionary[number].startswith("madeupword")
        and dictionary[number] != dictionary.mask_word
    ]
    numbers.sort(key=lambda number: (-dictionary.count[number], number))
    if count is not None and count > len(numbers):
        raise ConfigError(f"--corpus-words {count}: the dictionary has {len(numbers)} words")
    if count is not None and count < len(numbers) and not dictionary.is_counted():
        logger.warning(
            "--corpus-words %d: nobody counted the words of this dictionary (models of Hugging "
            "Face bring no counts), so that these have the lowest ids, and need not be frequent",
            count,
        )
    return sorted(numbers[:count])


def write_corpus(flat: Mapping[str, Any], settings: CorpusSettings) -> dict[str, Any]:
    """Draw and write ``train.txt``, ``dict.txt`` and ``next.npz``; perhaps ``masked.npz``.

    ``next.npz`` holds, for sentence s, the rows offset[s] to offset[s + 1]: the log probability
    ``logp`` of each word and of the end, natural, float32, and the ``entropy`` of what it was
    chosen from; the end of a longest sentence is certain. ``masked.npz`` is a score file of the
    first sentences, see ``fairseq-pcfg score``.

    Args:
        flat: flat settings, see :func:`fairseq.hub.load.load_by_settings`; ``path`` may be a
            folder of Hugging Face.
        settings: what is drawn.

    Returns:
        what was written: sentences, words, bits a word.
    """
    source = open_source(flat, settings)
    sentences: list[np.ndarray] = []
    for number in range(0, settings.sentences, BLOCK):
        rng = philox(settings.seed, "corpus", number // BLOCK)
        # a whole block: more sentences of the same seed begin with the same ones
        sentences += draw_exactly(source, rng, BLOCK, settings.longest)[0].split()
    sentences = sentences[: settings.sentences]
    if not all(len(words) for words in sentences):
        raise DataError("a sentence has no words")
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts_T = np.bincount(np.concatenate(sentences), minlength=len(source.terminals))
    with atomic_write(folder / "train.txt", "w", newline="\n") as handle:
        handle.writelines(
            " ".join(source.terminals[w] for w in words) + "\n" for words in sentences
        )
    dictionary_of(source.terminals, counts_T).save(folder / "dict.txt")
    total = _write_next(folder / "next.npz", source, sentences)
    if settings.scored:
        write_scores(folder / "masked.npz", source, sentences[: settings.scored])
    words = int(counts_T.sum())
    return {"out": str(folder), "sentences": len(sentences), "words": words, "vocabulary":
            len(source.terminals), "bits_per_word": -total / words / np.log(2)}  # fmt: skip


def _write_next(path: Path, source: LanguageModelSource, sentences: list[np.ndarray]) -> float:
    """Write the probabilities that the sentences were drawn with; return their log, summed."""
    offset = np.concatenate([[0], np.cumsum([len(words) + 1 for words in sentences])])
    logp_M, entropy_M = np.zeros(offset[-1]), np.zeros(offset[-1])
    for indices_B, words_BN in batches(source, sentences):
        length = words_BN.shape[1]
        log_BNE = source.next_words(words_BN)
        end_B1 = np.full((len(words_BN), 1), len(source.terminals))
        chosen = np.concatenate([words_BN, end_B1], axis=1)[:, :, None]
        row_BN = offset[indices_B][:, None] + np.arange(length + 1)
        logp_M[row_BN] = np.take_along_axis(log_BNE, chosen, axis=2)[:, :, 0]
        entropy_M[row_BN] = -(np.exp(log_BNE) * log_BNE).sum(axis=2)
        if length == source.longest:
            logp_M[row_BN[:, -1]] = entropy_M[row_BN[:, -1]] = 0.0
    arrays = {
        "offset": offset,
        "logp": logp_M.astype(np.float32),
        "entropy": entropy_M.astype(np.float32),
        "terminals": np.array(source.terminals),
    }
    with atomic_write(path) as handle, zipfile.ZipFile(handle, "w") as archive:
        add_arrays(archive, arrays)
    return float(logp_M.sum())

"""Features of sentences, computed once: of a frozen encoder, and those it has to be better than.

Shapes: S sentences, T tokens, C channels, L positions, V tokens that occur, D features, Q words.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from fairseq.catalog import PROBE_FEATURES
from fairseq.data.encoders import build_bpe
from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError, DataError, UnsupportedError
from fairseq.export.encoder_out import find_data
from fairseq.files.io import require_checkpoint, require_file
from fairseq.hub.load import from_pretrained
from fairseq.models.base import BaseFairseqModel
from fairseq.modules.heads import pool
from fairseq.rng import derive_seed

# Tokens of a batch, padding included.
TOKENS_AT_ONCE = 8192


class Encoder:
    """A frozen encoder with its dictionary and text encoder.

    Args:
        path: the checkpoint.
        dict_dir: folder with ``dict.txt``; that of the checkpoint or of its data if None.
        device: where it computes, ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        UnsupportedError: if the checkpoint is a decoder.
    """

    def __init__(self, path: str, dict_dir: str | None = None, device: str = "auto") -> None:
        file = require_checkpoint(path, "Name the file of a pre-trained encoder.").resolve()
        folder = find_data(file, Path(dict_dir) if dict_dir else None, "--dict-dir")
        loaded = from_pretrained(str(file.parent), file.name, str(folder.resolve()), device=device)
        self.config, self.task = loaded["args"], loaded["task"]
        self.device = choose_device(self.config)
        self.name, self.bpe = path, build_bpe(self.config.bpe)
        self.use(loaded["models"][0])
        if not hasattr(self.model, "encoder"):
            raise UnsupportedError(f"{path} is a decoder; probes read encoders, such as roberta")

    def use(self, model: BaseFairseqModel) -> None:
        """Take another model of this task."""
        self.model = model.to(self.device).eval().requires_grad_(False)

    def forget(self, seed: int) -> None:
        """Begin again with random weights, a function of the seed."""
        # weights are drawn from torch's global generator, which is put back afterwards
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "random encoder"))
            self.use(self.task.build_model(self.config.model))

    def ids(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the tokens of each sentence, int64 (T,), without ``<s>`` and ``</s>``."""
        dictionary = self.task.source_dictionary
        pieces = texts if self.bpe is None else [self.bpe.encode(text) for text in texts]
        rows = [[dictionary.index(word) for word in text.split()] for text in pieces]
        # <s> and </s> take two
        limit = int(self.model.max_positions()) - 2
        for number, row in enumerate(rows, 1):
            if len(row) > limit:
                raise DataError(
                    f"sentence {number} has {len(row)} tokens; {self.name} takes {limit}"
                )
        return [torch.tensor(row, dtype=torch.int64) for row in rows]

    @torch.inference_mode()
    def features(self, ids: Sequence[Tensor], kind: str, positions: int) -> Tensor:
        """Return features (S, D) in fp32.

        Args:
            ids: tokens of each sentence, without ``<s>`` and ``</s>``.
            kind: ``positions``, the states of all tokens side by side, zero where a sentence has
                ended (D = L C); ``mean`` of the tokens' states, or that of the ``first`` symbol,
                ``<s>`` (D = C). The states of ``<s>`` and ``</s>`` count for nothing else.
            positions: L.

        Raises:
            ConfigError: for an unknown kind, or sentences longer than L.
        """
        if kind not in PROBE_FEATURES:
            raise ConfigError(f"--features {kind}: choose {', '.join(PROBE_FEATURES)}")
        longest = max(len(row) for row in ids)
        if kind == "positions" and longest > positions:
            raise ConfigError(f"--max-positions {positions}: a sentence has {longest} tokens")
        # like lengths together; the first of what is left is the longest of its batch
        order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
        pooled: dict[int, Tensor] = {}
        while len(pooled) < len(order):
            left = order[len(pooled) :]
            some = left[: max(1, TOKENS_AT_ONCE // (len(ids[left[0]]) + 2))]
            rows_SD = self._batch([ids[place] for place in some], kind, positions)
            pooled.update(zip(some, rows_SD.cpu(), strict=True))
        return torch.stack([pooled[place] for place in range(len(ids))])

    def _batch(self, ids: Sequence[Tensor], kind: str, positions: int) -> Tensor:
        dictionary = self.task.source_dictionary
        length_S = torch.tensor([len(row) for row in ids])
        tokens_ST = torch.full((len(ids), int(length_S.max()) + 2), dictionary.pad())
        for row_T, row_ids in zip(tokens_ST, ids, strict=True):
            row_T[0], row_T[1 : len(row_ids) + 1] = dictionary.bos(), row_ids
            row_T[len(row_ids) + 1] = dictionary.eos()
        states_STC, _ = self.model(tokens_ST.to(self.device), features_only=True)
        states_STC = states_STC.float()
        if kind == "first":
            return states_STC[:, 0]
        # <s> is in the first column; </s> of the longest row in the last, of others it is outside
        states_STC = states_STC[:, 1:-1]
        outside_ST = (torch.arange(states_STC.shape[1]) >= length_S[:, None]).to(self.device)
        if kind == "mean":
            return pool(states_STC, "mean", outside_ST)
        all_SLC = states_STC.new_zeros(len(ids), positions, states_STC.shape[2])
        all_SLC[:, : states_STC.shape[1]] = states_STC.masked_fill(outside_ST[..., None], 0)
        return all_SLC.flatten(1)


def one_hot(ids: Sequence[Tensor], known_V: Tensor, positions: int) -> Tensor:
    """Return which token stands where, (S, L V): what can be known without an encoder.

    Args:
        ids: tokens of each sentence.
        known_V: the tokens told apart, rising: those of the training sentences.
        positions: L.
    """
    table_SLV = torch.zeros(len(ids), positions, len(known_V))
    for row_LV, row_T in zip(table_SLV, ids, strict=True):
        row_T = row_T[:positions]
        place_T = torch.searchsorted(known_V, row_T).clamp(max=len(known_V) - 1)
        # searchsorted gives a place for unknown tokens, too
        hit_T = (known_V[place_T] == row_T).nonzero()[:, 0]
        row_LV[hit_T, place_T[hit_T]] = 1
    return table_SLV.flatten(1)


def true_conditionals(path: str, texts: Sequence[str], positions: int) -> Tensor:
    """Return the true distributions of every position given the others, (S, L Q): the lookup table.

    Args:
        path: an ``.npz`` of scores with one mask, see :mod:`fairseq.pcfg.score`.
        texts: S sentences, words apart.
        positions: L.

    Raises:
        DataError: if the file is something else, or of other sentences.
    """
    advice = "Write it with fairseq-pcfg score --masks single."
    require_file(path, "score file", advice)
    names = ("offset", "position", "logq", "target", "terminals")
    try:
        with np.load(path, allow_pickle=False) as file:
            offset, position, logq, target, terminals = (file[name] for name in names)
        scored = [str(word) for word in terminals[target]]
    # what numpy, zip and zlib raise about bytes of another kind, or only a part of them
    except (OSError, EOFError, LookupError, TypeError, ValueError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no score file, or damaged. {advice}") from error
    if len(position) != len(logq) or offset[-1] != len(logq) or position.max() >= positions:
        raise DataError(f"{path}: its arrays do not fit each other, or {positions} positions")
    if len(offset) != len(texts) + 1:
        raise DataError(f"{path} scores {len(offset) - 1} sentences, not these {len(texts)}")
    for number, text in enumerate(texts):
        rows, words = slice(offset[number], offset[number + 1]), text.split()
        if position[rows].tolist() != list(range(len(words))) or scored[rows] != words:
            raise DataError(f"{path} does not score every word of line {number + 1}. {advice}")
    table_SLQ = np.zeros((len(texts), positions, logq.shape[1]), np.float32)
    sentence = np.repeat(np.arange(len(texts)), np.diff(offset))
    table_SLQ[sentence, position] = np.exp(logq)
    return torch.from_numpy(table_SLQ).flatten(1)

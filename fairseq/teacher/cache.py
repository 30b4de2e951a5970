"""What a teacher says of a data set, stored: students then train without running it.

A row (a block of tokens as the model sees it, with its predicted positions) is found by a digest of
itself, so data, order, batching and masks need no bookkeeping: what was not stored is not found.
Two methods:

- ``topk``: the K greatest logits of each position, and the log-sum-exp of all others at every
  temperature named. The loss over these and one bucket is a lower bound of the full divergence.
- ``sample``: K draws from the distribution at every temperature named. The loss is an unbiased
  estimate of the full divergence, and so is its gradient (Anshumann et al. 2025, Sparse Logit
  Sampling).

Files: ``meta.json``; ``index.bin`` (sorted by digest: uint64 digest, int64 first entry, int64
entries); ``ids.bin`` (P, S, K), uint16 or int32; ``values.bin`` (P, S, K), fp32, logits or log p;
``tails.bin`` (P, temperatures), fp32. P predicted positions, S one (topk) or the temperatures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError, ConfigError, MissingFileError
from fairseq.models.base import BaseFairseqModel
from fairseq.modules.heads import Projection
from fairseq.ops.linear_cross_entropy import logit_chunks
from fairseq.ops.linear_distillation import SparseTeacher
from fairseq.protocols import Sample
from fairseq.rng import derive_seed

METHODS = ("topk", "sample")
_ROW = np.dtype([("digest", "<u8"), ("first", "<i8"), ("entries", "<i8")])
VERSION = 1


def digest_of(dictionary: Dictionary) -> str:
    """Return a digest of the symbols, without those that only round the size."""
    words = [w for i, w in enumerate(dictionary.symbols) if not dictionary.is_filler(i)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _row_digests(
    net_input: Mapping[str, Any], positions_N: Tensor, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the digest of each row, uint64 (B,), and its number of positions, (B,)."""
    tokens, positions = net_input["src_tokens"].cpu().numpy(), positions_N.cpu().numpy()
    length = tokens.shape[1]
    counts_B = np.bincount(positions // max(1, length), minlength=len(tokens))
    places = np.split(positions % max(1, length), np.cumsum(counts_B)[:-1])
    # what a token sees; rows of one document are the same with and without --document-mask
    documents = net_input.get("documents")
    numbers = np.zeros_like(tokens) if documents is None else documents.cpu().numpy()
    digests = []
    for row_T, places_n, number_T in zip(tokens, places, numbers, strict=True):
        # how much padding a row has depends on the other rows of its batch
        real_T = row_T != pad
        parts = [row_T[real_T], places_n]
        if len(np.unique(number_T[real_T])) > 1:
            parts.append(number_T[real_T])
        content = b"|".join(part.astype("<i8").tobytes() for part in parts)
        # 64 bits: that any two of a hundred million rows meet has a chance of 3 in 10,000
        digests.append(hashlib.blake2b(content, digest_size=8).digest())
    return np.frombuffer(b"".join(digests), dtype="<u8"), counts_B


class CacheWriter(contextlib.ExitStack):
    """Appends the entries of batches to the files of a folder; sorts the index when it is left."""

    def __init__(self, folder: Path, meta: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.folder, self.meta, self.seed = folder, meta, seed
        self.files = {
            name: self.enter_context(open(folder / f"{name}.bin", "wb"))
            for name in ("ids", "values", "tails")
        }
        self.rows: dict[int, tuple[int, int]] = {}
        self.entries = 0
        self.callback(self._finish)

    @torch.no_grad()
    def add(self, model: BaseFairseqModel, sample: Sample, pad: int) -> None:
        """Store a batch; rows that are there are left out.

        Raises:
            CheckpointError: if the model does not tell its logits.
        """
        from fairseq.criterions.base import predicted_positions

        net_input = sample["net_input"]
        positions_N = predicted_positions(sample, pad)
        digests_B, counts_B = _row_digests(net_input, positions_N, pad)
        operands = model(**net_input, predicted_positions=positions_N)[0]
        if not isinstance(operands, Projection):
            raise CheckpointError(
                f"{self.meta['teacher']} has no table of all logits, of which a cache keeps some: "
                "it can teach hidden states only"
            )
        ends = np.cumsum(counts_B)
        for digest, end, count in zip(digests_B.tolist(), ends, counts_B, strict=True):
            # a later epoch meets the same rows again
            if digest in self.rows or not count:
                continue
            self.rows[digest] = (self.entries, int(count))
            self.entries += int(count)
            hidden_NC = operands.hidden_NC[end - count : end].float()
            bias_V = None if operands.bias_V is None else operands.bias_V.float()
            draw = None if self.meta["method"] == "topk" else torch.Generator(hidden_NC.device)
            if draw is not None:
                # by the row and not by its turn: stored again, in any order, a row is the same
                draw.manual_seed(derive_seed(self.seed, "teacher-cache", digest >> 1))
            # row by row, although a batch has the same logits: they fit a cache, and their bits do
            # not depend on which rows are new
            for _, logits_RV in logit_chunks(hidden_NC, operands.weight_VC.float(), bias_V):
                self._write(logits_RV, draw)

    def _write(self, logits_RV: Tensor, draw: torch.Generator | None) -> None:
        """Append what is kept of logits, which are used up."""
        k, temperatures = self.meta["k"], self.meta["temperatures"]
        if not logits_RV.isfinite().all():
            raise CheckpointError(f"{self.meta['teacher']} gives logits that are not finite")
        if draw is None:
            # logits as they are serve every temperature; only the sum of the others depends on it
            values, ids = logits_RV.topk(k)
            rest_RV = logits_RV.scatter_(1, ids, -math.inf)
            tails = torch.stack([(rest_RV / t).logsumexp(-1) for t in temperatures], 1)
            self.files["tails"].write(tails.float().cpu().numpy().astype("<f4").tobytes())
        else:
            log_p = torch.stack([(logits_RV / t).log_softmax(-1) for t in temperatures], 1)
            ids = torch.multinomial(log_p.exp().flatten(0, 1), k, True, generator=draw)
            ids = ids.unflatten(0, log_p.shape[:2])
            values = log_p.gather(-1, ids)
        self.files["ids"].write(ids.cpu().numpy().astype(_id_type(self.meta)).tobytes())
        self.files["values"].write(values.float().cpu().numpy().astype("<f4").tobytes())

    def _finish(self) -> None:
        self.meta |= {"rows": len(self.rows), "positions": self.entries}
        table = np.array([(d, *place) for d, place in sorted(self.rows.items())], dtype=_ROW)
        (self.folder / "index.bin").write_bytes(table.tobytes())


def _id_type(meta: Mapping[str, Any]) -> str:
    # half the size for vocabularies of GPT-2's kind
    return "<u2" if meta["symbols"] <= 1 << 16 else "<i4"


class TeacherCache:
    """Stored outputs, mapped into memory.

    Args:
        folder: what :func:`fairseq.evaluation.teacher_outputs.write_teacher_cache` made.
        dictionary: of the student's targets.

    Attributes:
        facts: path, SHA-256 of the index and ``meta.json``, and that of the teacher, as checkpoints
            keep them.

    Raises:
        CheckpointError: if the folder is damaged.
        ConfigError: if it was made with another dictionary.
        MissingFileError: if it is missing.
    """

    def __init__(self, folder: str, dictionary: Dictionary) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / "meta.json").is_file():
            raise MissingFileError(f"--teacher-cache not found: {self.folder}")
        try:
            self.meta = meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            if meta["version"] != VERSION or meta["method"] not in METHODS:
                raise ValueError(f"version {meta['version']}, method {meta['method']}")
            words, symbols = str(meta["dictionary"]), int(meta["symbols"])
            teacher = str(meta["teacher_sha256"])
            kept = 1 if meta["method"] == "topk" else len(meta["temperatures"])
            shape = (meta["positions"], kept, meta["k"])
            self.index = np.array(self._map("index", _ROW, (meta["rows"],)))
            ends = self.index["first"] + self.index["entries"]
            if len(ends) and (self.index["first"].min() < 0 or ends.max() > meta["positions"]):
                raise ValueError("index.bin points outside of the other files")
            self.ids = self._map("ids", _id_type(meta), shape)
            self.values = self._map("values", "<f4", shape)
            tails = (meta["positions"], len(meta["temperatures"]))
            self.tails = self._map("tails", "<f4", tails) if meta["method"] == "topk" else None
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{self.folder} is no cache of a teacher, or damaged ({error}); write it anew"
            ) from error
        if words != digest_of(dictionary) or symbols > len(dictionary):
            raise ConfigError(
                f"{self.folder} was made with another dictionary ({symbols} symbols) than "
                f"that of the data ({len(dictionary)})"
            )
        digest = hashlib.sha256(self.index.tobytes() + json.dumps(meta, sort_keys=True).encode())
        self.facts = {
            "path": str(self.folder),
            "sha256": digest.hexdigest(),
            "teacher_sha256": teacher,
        }

    def _map(self, name: str, dtype: str | np.dtype, shape: tuple[int, ...]) -> Any:
        if not shape[0]:
            return np.zeros(shape, dtype)
        path = self.folder / f"{name}.bin"
        if path.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
        return np.memmap(path, dtype=dtype, mode="r", shape=shape)

    def lookup(
        self, net_input: Mapping[str, Any], positions_N: Tensor, pad: int, temperature: float
    ) -> SparseTeacher | None:
        """Return what is stored of these positions, None if a row is not.

        Args:
            net_input: what the model sees: ``src_tokens`` (B, T) and ``documents``, if there are.
            positions_N: flat indices of all predicted positions, ascending.
            pad: the padding id.
            temperature: of the distributions.

        Raises:
            ConfigError: if the cache was not made for this temperature.
        """
        known = self.meta["temperatures"]
        if temperature not in known:
            raise ConfigError(
                f"{self.folder} was made for the temperatures {known}, not for "
                f"--distillation-temperature {temperature}: write it with --cache-temperatures"
            )
        digests_B, counts_B = _row_digests(net_input, positions_N, pad)
        digests_B, counts_B = digests_B[counts_B > 0], counts_B[counts_B > 0]
        places_B = np.searchsorted(self.index["digest"], digests_B)
        if len(places_B) and places_B.max() >= len(self.index):
            return None
        rows = self.index[places_B]
        if (rows["digest"] != digests_B).any() or (rows["entries"] != counts_B).any():
            return None
        # counts on from the first entry of each row
        firsts_N = np.repeat(rows["first"] - (np.cumsum(counts_B) - counts_B), counts_B)
        return self._entries(firsts_N + np.arange(counts_B.sum()), known.index(temperature),
                             temperature, positions_N.device)  # fmt: skip

    def _entries(
        self, entries_N: np.ndarray, number: int, temperature: float, device: torch.device
    ) -> SparseTeacher:
        """Return stored entries as distributions at a temperature."""
        kept = 0 if self.tails is not None else number
        ids_NK = torch.from_numpy(self.ids[entries_N, kept].astype(np.int64)).to(device)
        values_NK = torch.from_numpy(self.values[entries_N, kept].copy()).to(device)
        if self.tails is None:
            # every draw stands for 1/K of the probability, whatever its own was
            return SparseTeacher(ids_NK, values_NK, torch.full_like(values_NK, 1 / self.meta["k"]))
        tail_N = torch.from_numpy(self.tails[entries_N, number].copy()).to(device)
        scaled_NK = values_NK / temperature
        lse_N1 = torch.logaddexp(scaled_NK.logsumexp(-1), tail_N)[:, None]
        log_p_NK = scaled_NK - lse_N1
        return SparseTeacher(ids_NK, log_p_NK, log_p_NK.exp(), tail_N - lse_N1[:, 0])

"""The GPT-2 byte-pair encoding, from its published files ``encoder.json`` and ``vocab.bpe``.

Nothing is downloaded: the files are named by flags, or lie in the cache folder where the original
fairseq keeps what it downloaded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fairseq.config.schema import FairseqDataclass, option
from fairseq.data.encoders import register_bpe
from fairseq.data.encoders.byte_pair import BytePairEncoder, read_json
from fairseq.errors import DataError, MissingFileError
from fairseq.files.archives import cache_folder, cached_name
from fairseq.files.io import require_file

DEFAULT_ENCODER_JSON = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/encoder.json"
DEFAULT_VOCAB_BPE = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/vocab.bpe"


@dataclasses.dataclass
class GPT2BPEConfig(FairseqDataclass):
    """Files of the GPT-2 encoding."""

    gpt2_encoder_json: str = option(
        DEFAULT_ENCODER_JSON,
        help="path of GPT-2's encoder.json (a URL: looked up in the cache)",
        path=True,
    )
    gpt2_vocab_bpe: str = option(
        DEFAULT_VOCAB_BPE,
        help="path of GPT-2's vocab.bpe (a URL: looked up in the cache)",
        path=True,
    )


def local_file(source: str, flag: str) -> Path:
    """Return the local file for a path or a URL; nothing is downloaded.

    A URL is looked up in the cache folder under the SHA-256 of the URL, which the original may
    follow with ``.`` and that of the server's version tag, and under its plain file name.

    Raises:
        MissingFileError: if there is no such file; ``flag`` is the flag that would name it.
    """
    if not source.startswith(("http://", "https://")):
        return require_file(source, "file of the GPT-2 encoding", f"Check {flag}.")
    digest, folder = cached_name(source), cache_folder()
    downloads = [folder / digest, *sorted(folder.glob(f"{digest}.*"))]
    by_name = folder / source.rsplit("/", 1)[-1]
    for path in [*downloads, by_name]:
        # beside a download lie the original's notes (.json) and lock on it
        is_note = path != by_name and path.suffix in (".json", ".lock")
        if path.is_file() and not is_note:
            return path
    raise MissingFileError(
        f"{source} is not in the cache folder {folder}, and nothing is downloaded. Fetch it with a "
        f"tool of your choice and pass its path: {flag} FILE; or put the file into that folder "
        "(another one: set PYTORCH_FAIRSEQ_CACHE)."
    )


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Read a ``vocab.bpe`` file: an optional ``#version`` line, then one pair per line.

    Raises:
        DataError: on a line that is not two tokens, or bytes that are not UTF-8.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        pair = line.rstrip("\r").split(" ")
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2 or not all(pair):
            raise DataError(f"{path}, line {number}: expected two tokens, found {line!r}")
        merges.append((pair[0], pair[1]))
    return merges


@register_bpe("gpt2", dataclass=GPT2BPEConfig)
class GPT2BPE(BytePairEncoder):
    """GPT-2's encoding: decimal ids of ``encoder.json``, joined by spaces.

    Raises:
        MissingFileError: if a file is neither at its path nor in the cache.
        DataError: if the files are damaged or do not belong together.
    """

    def __init__(self, cfg: GPT2BPEConfig) -> None:
        vocabulary = local_file(cfg.gpt2_encoder_json, "--gpt2-encoder-json")
        merges = local_file(cfg.gpt2_vocab_bpe, "--gpt2-vocab-bpe")
        ids = read_json(vocabulary, "vocabulary")
        if not isinstance(ids, dict) or not all(isinstance(number, int) for number in ids.values()):
            raise DataError(f"{vocabulary}: expected one JSON object, token -> number")
        super().__init__(cfg, ids, read_merges(merges), f"{vocabulary} and {merges}")

"""GPT-2's encoding as ids, the way that plug-ins of the original take it: :func:`get_encoder`."""

from __future__ import annotations

from collections.abc import Iterable

from fairseq.data.encoders.byte_pair import byte_alphabet, read_json
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig, local_file
from fairseq.files.io import PathLike


def bytes_to_unicode() -> dict[int, str]:
    """Return the visible characters that stand for the 256 bytes, by byte."""
    return {byte: character for character, byte in byte_alphabet().items()}


class Encoder:
    """Text to ids of ``encoder.json``, and back.

    Args:
        encoder_json_path: that file, or its address: looked up in the cache.
        vocab_bpe_path: ``vocab.bpe``, likewise.
    """

    def __init__(self, encoder_json_path: PathLike, vocab_bpe_path: PathLike) -> None:
        files = str(encoder_json_path), str(vocab_bpe_path)
        self.bpe = GPT2BPE(GPT2BPEConfig(gpt2_encoder_json=files[0], gpt2_vocab_bpe=files[1]))
        path = local_file(files[0], "--gpt2-encoder-json")
        self.encoder: dict[str, int] = read_json(path, "vocabulary")
        self.decoder = {number: token for token, number in self.encoder.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of the pieces of a text."""
        return [int(piece) for piece in self.bpe.encode(text).split()]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids."""
        return self.bpe.decode(" ".join(map(str, tokens)))


def get_encoder(encoder_json_path: PathLike, vocab_bpe_path: PathLike) -> Encoder:
    """Return the encoder of these two files."""
    return Encoder(encoder_json_path, vocab_bpe_path)

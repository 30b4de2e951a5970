"""SentencePiece models as tokenizers of Hugging Face, and back.

Only unigram models: the library ``tokenizers`` splits text with them as SentencePiece does.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.data.encoders.sentencepiece_bpe import WORD_START, SentencepieceBPE
from fairseq.errors import UnsupportedError
from fairseq.files.io import atomic_write

NORMAL, UNKNOWN, CONTROL, UNIGRAM = 1, 2, 3, 1  # numbers of the format
# Symbols that are no pieces are never the best way to split a text.
WORST = -1e4


def _protocol() -> Any:
    """Return the module that reads and writes ``.model`` files.

    Raises:
        UnsupportedError: if protobuf is missing.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except (ImportError, TypeError) as error:
        raise UnsupportedError(
            f"SentencePiece models are exchanged through protobuf, which fails here: {error}"
        ) from error
    return sentencepiece_model_pb2


def _read(bpe: SentencepieceBPE) -> Any:
    """Return the content of an encoder's model.

    Raises:
        UnsupportedError: for what the library ``tokenizers`` does otherwise.
    """
    proto = _protocol().ModelProto()
    proto.ParseFromString(Path(str(bpe.config.sentencepiece_model)).read_bytes())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    odd = {
        "a model that is not unigram": trainer.model_type != UNIGRAM,
        "byte fallback": trainer.byte_fallback,
        "white space after words": trainer.treat_whitespace_as_suffix,
        "blanks that are no U+2581": not normalizer.escape_whitespaces,
        "blanks that are kept": not normalizer.remove_extra_whitespaces,
    }
    if there := [name for name, is_there in odd.items() if is_there]:
        raise UnsupportedError(
            f"{bpe.config.sentencepiece_model}: the tokenizers of Hugging Face have no "
            f"{', no '.join(there)}"
        )
    return proto


def pieces(bpe: SentencepieceBPE) -> list[tuple[str, float]]:
    """Return the pieces of an encoder and their scores, without the control symbols."""
    return [(p.piece, p.score) for p in _read(bpe).pieces if p.type not in (UNKNOWN, CONTROL)]


def tokenizer(bpe: SentencepieceBPE, ids: Mapping[str, int], unknown: str) -> Any:
    """Return an encoder as a tokenizer of the library ``tokenizers``.

    Args:
        bpe: the encoder.
        ids: of its pieces and of other symbols.
        unknown: the symbol of what it cannot split.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    content = _read(bpe)
    scores = dict(pieces(bpe))
    names = {index: symbol for symbol, index in ids.items()}
    table = [(names.get(i, f"<unused{i}>"), 0.0) for i in range(max(names) + 1)]
    table = [(symbol, scores.get(symbol, WORST)) for symbol, _ in table]
    built = Tokenizer(models.Unigram(table, unk_id=ids[unknown], byte_fallback=False))
    steps: list[Any] = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if charsmap := content.normalizer_spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(charsmap))
    built.normalizer = normalizers.Sequence(steps)
    scheme = "always" if content.normalizer_spec.add_dummy_prefix else "never"
    built.pre_tokenizer = pre_tokenizers.Metaspace(WORD_START, prepend_scheme=scheme)
    built.decoder = decoders.Metaspace(WORD_START, prepend_scheme=scheme)
    return built


def write_model(path: Path, content: Mapping[str, Any], special: Sequence[str]) -> None:
    """Write a ``.model`` from the content of a unigram ``tokenizer.json``.

    Args:
        path: the file to write.
        content: of the ``tokenizer.json``.
        special: symbols that are no pieces.

    Raises:
        UnsupportedError: if it is no unigram model, or changes text otherwise than SentencePiece.
    """
    model = content["model"]
    if model.get("type") != "Unigram" or model.get("byte_fallback"):
        raise UnsupportedError(f"a {model.get('type')} model is no unigram model of SentencePiece")
    written = _protocol().ModelProto()
    written.trainer_spec.model_type = UNIGRAM
    written.normalizer_spec.add_dummy_prefix = True
    written.normalizer_spec.remove_extra_whitespaces = True
    written.normalizer_spec.escape_whitespaces = True
    written.normalizer_spec.name = "imported"
    written.normalizer_spec.precompiled_charsmap = _charsmap(content.get("normalizer"))
    for name, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)):
        written.pieces.add(piece=name, score=0.0, type=kind)
    written.trainer_spec.unk_id, written.trainer_spec.bos_id, written.trainer_spec.eos_id = 0, 1, 2
    written.trainer_spec.pad_id = -1
    for piece, score in model["vocab"]:
        if piece not in special:
            written.pieces.add(piece=piece, score=score, type=NORMAL)
    with atomic_write(path) as handle:
        handle.write(written.SerializeToString())


def _charsmap(normalizer: Mapping[str, Any] | None) -> bytes:
    """Return the table of a normalizer; blanks are tidied by SentencePiece in any case."""
    steps = [normalizer] if normalizer and "normalizers" not in normalizer else None
    steps = steps or (normalizer or {}).get("normalizers", [])
    table = b""
    for step in steps:
        if step["type"] == "Precompiled":
            table = base64.b64decode(step["precompiled_charsmap"])
        elif step["type"] not in ("Replace", "Strip"):
            raise UnsupportedError(f"the normalizer {step['type']} is none of SentencePiece")
    return table

"""Tokenizer files of Hugging Face, from a dictionary and its encoder, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.data.encoders.byte_level import read_tokenizer
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import UnsupportedError

MASK = "<mask>"
ROLES = {"bos": "bos_token", "pad": "pad_token", "eos": "eos_token", "unk": "unk_token"}


def _pieces(bpe: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the tokens and merges of a byte-level encoder."""
    from fairseq.data.encoders.byte_level import ByteLevelBPE
    from fairseq.data.encoders.byte_pair import read_json
    from fairseq.data.encoders.gpt2_bpe import GPT2BPE, local_file, read_merges

    if isinstance(bpe, ByteLevelBPE):
        return read_tokenizer(Path(bpe.config.byte_level_tokenizer))
    if isinstance(bpe, GPT2BPE):
        config = bpe.config
        ids = read_json(local_file(config.gpt2_encoder_json, "--gpt2-encoder-json"), "vocabulary")
        return ids, read_merges(local_file(config.gpt2_vocab_bpe, "--gpt2-vocab-bpe"))
    raise UnsupportedError(
        f"no tokenizer files can be written for the encoder {type(bpe).__name__}; byte-level BPE, "
        "GPT-2's BPE, wordpiece and plain words can be exported"
    )


def missing_pieces(bpe: Any, dictionary: Dictionary) -> list[str]:
    """Return the tokens of an encoder that the dictionary lacks, and the model reads as unknown."""
    if bpe is None or hasattr(bpe, "vocabulary"):
        return []
    ids, merges = _pieces(bpe)
    used = {token for pair in merges for token in (*pair, "".join(pair))}
    return [t for t, n in ids.items() if str(n) not in dictionary and (t in used or len(t) == 1)]


def plain_tokenizer(
    bpe: Any, symbols: Mapping[str, int], dictionary: Dictionary, first_free: int
) -> Any:
    """Return a tokenizer of the ``tokenizers`` library that adds no symbols of its own.

    Args:
        bpe: the encoder; None if words are separated by blanks.
        symbols: the ids of symbols and pieces.
        dictionary: tells which pieces of the encoder are not among them.
        first_free: id of the first such piece.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if bpe is None:
        tokenizer = Tokenizer(models.WordLevel(dict(symbols), unk_token=dictionary.unk_word))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return tokenizer
    if hasattr(bpe, "vocabulary"):
        from tokenizers.implementations import BertWordPieceTokenizer

        return BertWordPieceTokenizer(bpe.vocabulary, lowercase=bpe.lowercase)._tokenizer
    ids, merges = _pieces(bpe)
    rest = dict(symbols)
    tokens = {rest.pop(str(n)): t for t, n in ids.items() if str(n) in rest}
    vocabulary = {**rest, **{token: index for index, token in tokens.items()}}
    for place, token in enumerate(missing_pieces(bpe, dictionary)):
        vocabulary[token] = first_free + place
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build_tokenizer(bpe: Any, dictionary: Dictionary, mask: int, first_free: int) -> Any:
    """Return a tokenizer of the ``tokenizers`` library whose ids are those of the dictionary.

    Args:
        bpe: the encoder; None if words are separated by blanks.
        dictionary: the ids of its pieces.
        mask: id of the mask.
        first_free: id of the first token that the dictionary lacks.
    """
    from tokenizers import AddedToken, processors

    mask_word = dictionary.mask_word
    symbols = {**{s: i for i, s in enumerate(dictionary.symbols)}, mask_word: mask}
    tokenizer = plain_tokenizer(bpe, symbols, dictionary, first_free)
    if hasattr(bpe, "vocabulary"):
        return tokenizer
    bos, eos = dictionary.bos_word, dictionary.eos_word
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, dictionary.bos()), (eos, dictionary.eos())],
    )
    tokenizer.add_special_tokens(
        [
            *(getattr(dictionary, f"{role}_word") for role in ROLES),
            AddedToken(mask_word, lstrip=True, normalized=False),
        ]
    )
    return tokenizer


def save_tokenizer(
    folder: Path, bpe: Any, dictionary: Dictionary, mask: int, first_free: int, longest: int
) -> None:
    """Write the tokenizer files into a folder."""
    from transformers import PreTrainedTokenizerFast

    names: dict[str, Any] = {
        theirs: getattr(dictionary, f"{role}_word") for role, theirs in ROLES.items()
    }
    if hasattr(bpe, "vocabulary"):
        names.update(cls_token=names["bos_token"], sep_token=names["eos_token"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(bpe, dictionary, mask, first_free),
        mask_token=dictionary.mask_word,
        model_max_length=longest,
        **names,
    )
    fast.save_pretrained(str(folder))


def read_byte_level(folder: Path, special: Mapping[str, int]) -> tuple[Dictionary, Any]:
    """Read the tokenizer of a RoBERTa folder.

    Args:
        folder: holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.
        special: ids of the special symbols by role.

    Returns:
        the dictionary, and the content of the ``tokenizer.json`` of ``--bpe byte_level`` whose
        piece numbers are the ids themselves.

    Raises:
        MissingFileError: if there are no such files.
        UnsupportedError: if the special symbols do not come first, as fairseq's do.
    """
    vocabulary, merges = read_pieces(folder)
    if [special[role] for role in ("bos", "pad", "eos", "unk")] != [0, 1, 2, 3]:
        raise UnsupportedError(
            f"{folder}: the special symbols have the ids {dict(special)}; RoBERTa's are 0 to 3"
        )
    names = {index: token for token, index in vocabulary.items()}
    dictionary = Dictionary()
    for index in range(4, max(names) + 1):
        token = names.get(index, f"madeupword{index}")
        is_mask = token == MASK
        dictionary.add_symbol(MASK if is_mask else str(index), n=0)
    kept = {t: i for t, i in vocabulary.items() if i > 3 and t != MASK}
    return dictionary, plain_content(kept, merges)


def read_pieces(folder: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Read ids and merges of ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.

    Raises:
        MissingFileError: if there are no such files.
    """
    from fairseq.data.encoders.byte_pair import read_json
    from fairseq.data.encoders.gpt2_bpe import read_merges
    from fairseq.files.io import require_file

    if not (folder / "tokenizer.json").is_file():
        vocabulary = read_json(require_file(folder / "vocab.json", "vocabulary", ""), "vocabulary")
        path = require_file(folder / "merges.txt", "merges", "")
        return vocabulary, [list(merge) for merge in read_merges(path)]
    content = read_json(folder / "tokenizer.json", "tokenizer")
    vocabulary = dict(content["model"]["vocab"])
    merges = content["model"].get("merges", [])
    for added in content.get("added_tokens", ()):
        vocabulary.setdefault(added["content"], added["id"])
    return vocabulary, [m.split(" ") if isinstance(m, str) else list(m) for m in merges]


def plain_content(vocabulary: Mapping[str, int], merges: list[list[str]]) -> Any:
    """Return the content of the ``tokenizer.json`` of ``--bpe byte_level``."""
    content = json.loads(PLAIN)
    content["model"].update(vocab=dict(vocabulary), merges=merges)
    return content


PLAIN = """{
 "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                   "use_regex": true},
 "post_processor": null,
 "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
             "use_regex": true},
 "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
           "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
           "ignore_merges": false, "vocab": {}, "merges": []}
}"""


def read_wordpiece(folder: Path) -> Dictionary:
    """Read ``vocab.txt`` (or ``tokenizer.json``) of a BERT folder as a dictionary with its ids."""
    from fairseq.data.encoders.byte_pair import read_json
    from fairseq.files.io import require_file

    if (folder / "vocab.txt").is_file():
        symbols = (folder / "vocab.txt").read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    else:
        path = require_file(folder / "tokenizer.json", "tokenizer", "BERT's has vocab.txt.")
        vocabulary = read_json(path, "tokenizer")["model"]["vocab"]
        symbols = sorted(vocabulary, key=vocabulary.__getitem__)
    roles = {"bos": "[CLS]", "pad": "[PAD]", "eos": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    if absent := sorted(set(roles.values()) - set(symbols)):
        raise UnsupportedError(f"{folder}: the vocabulary lacks {', '.join(absent)}")
    return Dictionary.foreign(symbols, **roles)

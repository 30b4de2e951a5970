"""Tokenizer files of Hugging Face, from a dictionary and its encoder, and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fairseq.data.encoders import TextEncoder
from fairseq.data.encoders.byte_level import ByteLevelBPE, read_tokenizer
from fairseq.data.encoders.byte_pair import byte_alphabet, read_json
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, local_file, read_merges
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.data.encoders.wordpiece import Wordpiece
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import UnsupportedError
from fairseq.export import sentencepiece_files
from fairseq.export.loaded import Loaded
from fairseq.files.io import require_file
from fairseq.models.roberta.model import RobertaModel

MASK = "<mask>"
WORDPIECE_UNKNOWN = "[UNK]"  # what an encoder of word pieces says of a word it cannot split
ROLES = {"bos": "bos_token", "pad": "pad_token", "eos": "eos_token", "unk": "unk_token"}


def _pieces(bpe: TextEncoder | None) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the tokens and merges of a byte-level encoder."""
    if isinstance(bpe, ByteLevelBPE):
        return read_tokenizer(Path(bpe.config.byte_level_tokenizer))
    if isinstance(bpe, GPT2BPE):
        config = bpe.config
        ids = read_json(local_file(config.gpt2_encoder_json, "--gpt2-encoder-json"), "vocabulary")
        return ids, read_merges(local_file(config.gpt2_vocab_bpe, "--gpt2-vocab-bpe"))
    raise UnsupportedError(
        f"no tokenizer files can be written for the encoder {type(bpe).__name__}; byte-level BPE, "
        "GPT-2's BPE, wordpiece, sentencepiece and plain words can be exported"
    )


def is_foreign(bpe: TextEncoder | None, dictionary: Dictionary) -> bool:
    """Tell a dictionary that is the vocabulary of an imported BERT."""
    return isinstance(bpe, Wordpiece) and not dictionary.nspecial


def missing_pieces(bpe: TextEncoder | None, dictionary: Dictionary) -> list[str]:
    """Return the tokens of an encoder that the dictionary lacks, and the model reads as unknown.

    Bytes that no merge uses are not among them: a tokenizer finds by itself that it has none.
    """
    if bpe is None or is_foreign(bpe, dictionary):
        return []
    if isinstance(bpe, Wordpiece):
        return [token for token in bpe.tokens() if token not in dictionary]
    if isinstance(bpe, SentencepieceBPE):
        return [piece for piece, _ in sentencepiece_files.pieces(bpe) if piece not in dictionary]
    ids, merges = _pieces(bpe)
    used = {token for pair in merges for token in (*pair, "".join(pair))}
    used |= set(getattr(bpe, "added", ()))
    return [token for token, n in ids.items() if str(n) not in dictionary and token in used]


def plain_tokenizer(
    bpe: TextEncoder | None, symbols: Mapping[str, int], dictionary: Dictionary, first_free: int
) -> Any:
    """Return a tokenizer of the ``tokenizers`` library that adds no symbols of its own.

    Args:
        bpe: the encoder; None if words are separated by blanks.
        symbols: the ids of symbols and pieces.
        dictionary: tells which pieces of the encoder are not among them.
        first_free: id of the first such piece.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    unknown = dictionary.unk_word
    if bpe is None:
        tokenizer = Tokenizer(models.WordLevel(dict(symbols), unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return tokenizer
    missing = missing_pieces(bpe, dictionary)
    extra = {token: first_free + place for place, token in enumerate(missing)}
    if isinstance(bpe, Wordpiece):
        if is_foreign(bpe, dictionary):
            return bpe.engine()
        whole = {**symbols, **extra}
        unsplit = WORDPIECE_UNKNOWN if WORDPIECE_UNKNOWN in whole else unknown
        tokenizer = Tokenizer(models.WordPiece(whole, unk_token=unsplit))
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            setattr(tokenizer, part, getattr(bpe.engine(), part))
        return tokenizer
    if isinstance(bpe, SentencepieceBPE):
        return sentencepiece_files.tokenizer(bpe, {**symbols, **extra}, unknown)
    return _byte_level_tokenizer(bpe, dict(symbols), extra, unknown)


def _byte_level_tokenizer(
    bpe: TextEncoder | None, symbols: dict[str, int], extra: Mapping[str, int], unknown: str
) -> Any:
    """Return a byte-level tokenizer; ``extra`` are the ids of pieces that are no symbols."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    ids, merges = _pieces(bpe)
    added = getattr(bpe, "added", {})
    ids = {**ids, **added}
    tokens = {symbols.pop(str(n)): t for t, n in ids.items() if str(n) in symbols}
    vocabulary = {**symbols, **{token: index for index, token in tokens.items()}, **extra}
    lacks = any(byte not in vocabulary for byte in byte_alphabet())
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown if lacks else None)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if added:
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    if isinstance(bpe, ByteLevelBPE) and bpe.normalizes:
        tokenizer.normalizer = bpe.whole().normalizer
    return tokenizer


def build_tokenizer(hub: Loaded[RobertaModel], first_free: int) -> Any:
    """Return a tokenizer of the ``tokenizers`` library that does what an encoder of ours does.

    Its ids are those of the dictionary; ``first_free`` is that of the first token it lacks.
    """
    from tokenizers import AddedToken, processors

    dictionary, mask_word = hub.task.source_dictionary, hub.task.source_dictionary.mask_word
    symbols = {**{s: i for i, s in enumerate(dictionary.symbols)}, mask_word: hub._mask()}
    tokenizer = plain_tokenizer(hub.bpe, symbols, dictionary, first_free)
    bos, eos = dictionary.bos_word, dictionary.eos_word
    # what follows the first end is of the second segment, in a model that has one
    second = int(hub._segments() > 1)
    between = f"{eos}:{second} " * (hub.ends_between() - 1)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {between}$B:{second} {eos}:{second}",
        special_tokens=[(bos, dictionary.bos()), (eos, dictionary.eos())],
    )
    if is_foreign(hub.bpe, dictionary):
        return tokenizer
    tokenizer.add_special_tokens(
        [
            *(getattr(dictionary, f"{role}_word") for role in ROLES),
            AddedToken(mask_word, lstrip=True, normalized=False),
        ]
    )
    return tokenizer


def save_tokenizer(folder: Path, hub: Loaded[RobertaModel], first_free: int) -> None:
    """Write the tokenizer files of an encoder into a folder; see :func:`build_tokenizer`."""
    from transformers import PreTrainedTokenizerFast

    dictionary = hub.task.source_dictionary
    names: dict[str, Any] = {
        their_role: getattr(dictionary, f"{role}_word") for role, their_role in ROLES.items()
    }
    segments = ["token_type_ids"] * (hub._segments() > 1)
    names.update(cls_token=names["bos_token"], sep_token=names["eos_token"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(hub, first_free),
        mask_token=dictionary.mask_word,
        model_max_length=int(hub.model.max_positions()),
        # what the model is given: without its name, segments would be 0 for both sentences
        model_input_names=["input_ids", *segments, "attention_mask"],
        **names,
    )
    fast.save_pretrained(str(folder))


def read_pieces(folder: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Read ids and merges of ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.

    Raises:
        MissingFileError: if there are no such files.
    """
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


def plain_content(
    vocabulary: Mapping[str, int],
    merges: list[list[str]],
    kept: Mapping[str, Any],
    roles: Collection[str],
) -> Any:
    """Return the content of the ``tokenizer.json`` of ``--bpe byte_level``.

    Args:
        vocabulary: token -> id.
        merges: pairs of tokens.
        kept: the normalizer and the tokens found in text before it is cut, as in their file.
        roles: special symbols, which no text can hold.
    """
    content = json.loads(PLAIN)
    added = [token for token in kept.get("added_tokens") or () if token["content"] not in roles]
    pieces = {token: index for token, index in vocabulary.items() if token not in roles}
    pieces.update((token["content"], token["id"]) for token in added)  # so that they keep their ids
    free = max(vocabulary.values(), default=-1) + 1
    lacking = [byte for byte in byte_alphabet() if byte not in pieces]
    pieces.update((byte, free + place) for place, byte in enumerate(lacking))  # read as unknown
    content["model"].update(vocab=pieces, merges=merges)
    content.update(added_tokens=added, normalizer=kept.get("normalizer"))
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

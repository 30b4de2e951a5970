"""How likely models find a continuation, and the last word of a text above all.

Decoders are asked token by token with the true tokens before it. Encoders see the text with masks.

Shapes: R rows of a batch, T tokens, N predicted positions, C channels, V vocabulary.

Source: Paperno et al. 2016 (LAMBADA), section 3; Salazar et al. 2020 (Masked Language Model
Scoring), equation 1; Kauf and Ivanova 2023, section 3 (masks on the rest of the word).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from fairseq import utils
from fairseq.data.encoders import TextEncoder
from fairseq.decoding.scorer import average_log_probs
from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError, DataError
from fairseq.files.documents import DocumentOptions, reader_of
from fairseq.hub.load import from_pretrained
from fairseq.logging.progress_bar import progress_of
from fairseq.models.base import BaseFairseqModel
from fairseq.modules.predictions import asks_hidden, from_output
from fairseq.tasks.base import FairseqTask

# log-probabilities that are in memory together
CHUNK_ELEMENTS = 1 << 25
BATCH_SIZE = 16
REMEDY = "give --last-word a .jsonl file whose every line has a text"
Masks = Literal["each", "rest"]
# (context, continuation): ids that are read, ids that are predicted
Pair = tuple[list[int], list[int]]
Batches = Sequence[list[Any]]


@dataclasses.dataclass
class Score:
    """What a model makes of a continuation.

    Attributes:
        log_prob: sum over its tokens, in nats.
        tokens: how many there are.
        greedy: each of them is the most likely one.
        truncated: the beginning of the context was cut off.
    """

    log_prob: float = 0.0
    tokens: int = 0
    greedy: bool = True
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class _Row:
    """One input of the model: at ``places`` it is to predict ``targets``, for a pair."""

    tokens: list[int]
    places: list[int]
    targets: list[int]
    pair: int


# -- continuations ---------------------------------------------------------------------------------


def is_masked(task: FairseqTask, model: BaseFairseqModel) -> bool:
    """Tell whether a model fills masks; otherwise it predicts the next token.

    Raises:
        ConfigError: if it does neither.
    """
    if getattr(task, "mask_idx", None) is not None:
        return True
    if hasattr(model, "decoder") and not hasattr(model, "encoder"):
        return False
    raise ConfigError(
        f"{type(model).__name__} is neither a causal nor a masked language model: it gives words "
        "no probability"
    )


def front(task: FairseqTask, masked: bool) -> list[int]:
    """Return what contexts at the start of a text begin with; masked LMs get their ends later."""
    return [] if masked else [task.first_token()]


@torch.inference_mode()
def score_continuations(
    models: Sequence[BaseFairseqModel],
    task: FairseqTask,
    pairs: Sequence[Pair],
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    masks: Masks = "each",
    max_length: int | None = None,
    watch: Callable[[Batches], Iterable[Any]] = iter,
) -> list[Score]:
    """Score continuations of contexts; the result does not depend on the batch size.

    A causal LM sees the context and the true tokens before each token. A masked LM sees
    ``<s> context continuation </s>``, once for each token of the continuation: with masks "each"
    this token alone is masked, with "rest" those after it are, too. Rows are padded on the right.

    Args:
        models: several are averaged in probability space.
        task: their task.
        pairs: contexts (not empty for a causal LM, see :func:`front`) and continuations. Contexts
            lose their beginning if both are longer than the model takes.
        batch_size: rows run together.
        device: where the models are.
        masks: what masked LMs do not see.
        max_length: longest row; that of the models if None.
        watch: wraps the list of batches, to show progress.

    Raises:
        DataError: if a continuation alone is longer than the model takes.
    """
    masked = is_masked(task, models[0])
    limit = utils.resolve_max_positions(max_length, *(model.max_positions() for model in models))
    scores: list[Score] = []
    rows: list[_Row] = []
    for number, (context, continuation) in enumerate(pairs):
        # a masked LM also takes <s> and </s>; a causal one never sees the last token it predicts
        room = (10**9 if limit is None else int(limit)) - len(continuation) + (-2 if masked else 1)
        if room < (0 if masked else 1) and continuation:
            raise DataError(
                f"text {number + 1}: what is to be predicted has {len(continuation)} tokens, more "
                f"than the {limit} positions of the model leave room for"
            )
        cut = max(0, len(context) - room)
        scores.append(Score(tokens=len(continuation), truncated=cut > 0))
        if continuation:
            kept = (context[cut:], continuation)
            rows += _masked_rows(task, kept, number, masks) if masked else [_row(kept, number)]
    # like lengths together waste no padding; the longest first, so that memory ends at once or
    # never
    rows.sort(key=lambda row: -len(row.tokens))
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    for batch in watch(batches):
        _score_batch(models, task, batch, scores, device)
    return scores


def _row(pair: Pair, number: int) -> _Row:
    context, continuation = pair
    # the token before predicts the next: the last of the context the first of the continuation
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    return _Row([*context, *continuation[:-1]], list(places), continuation, number)


def _masked_rows(task: FairseqTask, pair: Pair, number: int, masks: Masks) -> Iterator[_Row]:
    dictionary, (context, continuation) = task.source_dictionary, pair
    for place, target in enumerate(continuation):
        hidden = 1 if masks == "each" else len(continuation) - place
        seen = [*continuation[:place], *[task.mask_idx] * hidden, *continuation[place + hidden :]]
        tokens = [dictionary.bos(), *context, *seen, dictionary.eos()]
        yield _Row(tokens, [1 + len(context) + place], [target], number)


def _score_batch(
    models: Sequence[BaseFairseqModel],
    task: FairseqTask,
    batch: list[_Row],
    scores: list[Score],
    device: torch.device | str,
) -> None:
    """Run a batch and add what it says to the scores."""
    length = max(len(row.tokens) for row in batch)
    pad = task.source_dictionary.pad()
    tokens_RT = torch.tensor([row.tokens + [pad] * (length - len(row.tokens)) for row in batch])
    flat = [number * length + place for number, row in enumerate(batch) for place in row.places]
    owners = [row.pair for row in batch for _ in row.places]
    target_N = torch.tensor([target for row in batch for target in row.targets], device=device)
    places_N = torch.tensor(flat, device=device)
    # hidden states at the places alone: logits of all positions would fill the memory
    rows_NC = [
        model(tokens_RT.to(device), **asks_hidden(model))[0].flatten(0, 1).index_select(0, places_N)
        for model in models
    ]
    # log-probabilities are N x V: they are made in parts
    step = max(1, CHUNK_ELEMENTS // len(task.target_dictionary))
    for first in range(0, len(flat), step):
        part = slice(first, first + step)
        log_p_NV = average_log_probs(
            [
                from_output(model, x_NC[part]).log_probs()
                for model, x_NC in zip(models, rows_NC, strict=True)
            ]
        )
        right_N = log_p_NV.argmax(1).eq(target_N[part])
        log_p_N = log_p_NV.gather(1, target_N[part, None])[:, 0].double()
        scored = zip(owners[part], log_p_N.tolist(), right_N.tolist(), strict=True)
        for owner, log_p, right in scored:
            scores[owner].log_prob += log_p
            scores[owner].greedy &= right


# -- the last word ---------------------------------------------------------------------------------


def ids_of(pieces: Iterable[str], task: FairseqTask) -> list[int]:
    """Return the ids of pieces; what the outputs of the task lack is unknown."""
    return [task.target_dictionary.index(piece) for piece in pieces]


def last_word_pair(text: str, bpe: TextEncoder, task: FairseqTask) -> Pair | None:
    """Split a text before its last word, None if it has fewer than two.

    White space counts as one space, as models are trained on single lines. Pieces are those of the
    whole text; should the word's not stand alone there, context and word are encoded apart.
    """
    words = text.split()
    if len(words) < 2:
        return None
    encode: Callable[[str], str] = str if bpe is None else bpe.encode
    context, whole = encode(" ".join(words[:-1])).split(), encode(" ".join(words)).split()
    # the space in front of a word belongs to its first piece: alone it would be split otherwise
    last = whole[len(context) :]
    if whole[: len(context)] != context or not last:
        last = encode(words[-1]).split()
    dictionary = task.source_dictionary
    return [dictionary.index(piece) for piece in context], ids_of(last, task)


def last_word(
    models: Sequence[BaseFairseqModel],
    task: FairseqTask,
    bpe: TextEncoder,
    lines: Iterable[str],
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    watch: Callable[[Batches], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Predict the last word of texts given all before it.

    A word is right if each of its tokens is the most likely one given the true tokens before it,
    which is the same as writing it greedily. A masked LM sees no mark but a mask for the token in
    question and each one after it in the word: it fills from left to right, and is told how many
    tokens the word has. A word that the dictionary lacks is wrong.

    Args:
        models: causal or masked LMs; several are averaged in probability space.
        task: their task.
        bpe: encoder of the text; None if words are the dictionary's.
        lines: texts.
        batch_size: rows run together.
        device: where the models are.
        watch: wraps the list of batches, to show progress.

    Returns:
        ``accuracy`` (0 to 1), ``perplexity`` (exp of the mean over texts of -log p(last word) in
        nats, summed over its tokens), ``texts`` scored, ``tokens`` predicted, ``truncated``: texts
        whose beginning the model has no positions for, ``skipped``: texts of less than two words,
        ``unknown``: texts whose last word holds an unknown piece.

    Raises:
        ConfigError: if the model is no language model.
        DataError: if no text has two words.
    """
    begin = front(task, is_masked(task, models[0]))
    pairs, skipped = [], 0
    for text in lines:
        pair = last_word_pair(text, bpe, task)
        if pair is None:
            skipped += 1
        else:
            pairs.append((begin + pair[0], pair[1]))
    if not pairs:
        raise DataError(f"there is no last word to predict: {skipped} texts of less than two words")
    unk = task.target_dictionary.unk()
    scores = score_continuations(models, task, pairs, batch_size, device, masks="rest", watch=watch)
    known = [unk not in continuation for _, continuation in pairs]
    right = [score.greedy and word for score, word in zip(scores, known, strict=True)]
    nats = -math.fsum(score.log_prob for score in scores) / len(scores)
    return {
        "accuracy": sum(right) / len(right),
        "perplexity": utils.exp_of(nats),
        "texts": len(scores),
        "tokens": sum(score.tokens for score in scores),
        "truncated": sum(score.truncated for score in scores),
        "skipped": skipped,
        "unknown": known.count(False),
    }


# -- checkpoints and files -------------------------------------------------------------------------


def load(flat: Mapping[str, Any]) -> tuple[list[Any], Any, Any, Any, torch.device]:
    """Load ``(models, configuration, task, text encoder or None, device)`` for scoring text.

    Files of the encoder (``tokenizer.json``, ``encoder.json`` ...) are found beside the dictionary
    or the checkpoint, whatever the checkpoint names, unless a flag names others.

    Args:
        flat: flat settings: ``path`` (several are joined with ``:``), ``data`` (the folder of the
            first checkpoint if not given), ``bpe`` (``none`` if the words are the dictionary's),
            and what else should differ from the checkpoint.

    Raises:
        ConfigError: if no path is given.
    """
    if not flat.get("path"):
        raise ConfigError("--path is missing: name the checkpoint to evaluate")
    paths = [os.path.abspath(path) for path in utils.split_paths(flat["path"])]
    folder = os.path.dirname(paths[0])
    data = os.path.abspath(utils.split_paths(flat.get("data") or folder)[0])
    settings = {key: value for key, value in flat.items() if key not in ("path", "data")}
    # texts are scored by one process, however many the checkpoint was trained by
    settings.setdefault("distributed_world_size", 1)
    loaded = from_pretrained(folder, os.pathsep.join(paths), data, **settings)
    config, task = loaded["args"], loaded["task"]
    device = choose_device(config)
    models = [model.to(device).eval() for model in loaded["models"]]
    return models, config, task, task.build_bpe(config.bpe), device


def read_texts(path: str, text_key: str = "text", remedy: str = REMEDY) -> Iterator[str]:
    """Yield the texts of a file of JSON lines, or of a saved datasets folder.

    Args:
        path: the file or folder.
        text_key: key of the text.
        remedy: what a message says is to be done about records without text.

    Raises:
        MissingFileError: if it does not exist.
        DataError: on a record without text.
    """
    reader: Any = reader_of(path, DocumentOptions(text_key, remedy=remedy))
    for block in reader.blocks():
        yield from reader.texts(block).texts


def score_file(flat: Mapping[str, Any], score: Callable[..., Any], items: Any, title: str) -> Any:
    """Load checkpoints and score what was read with :func:`last_word` or its like.

    Args:
        flat: see :func:`load`; ``batch_size`` counts, too.
        score: the function.
        items: what it scores.
        title: of the progress.
    """
    models, config, task, bpe, device = load(flat)

    def watch(batches: Batches) -> Iterator[Any]:
        with progress_of(config.common, batches, title) as progress:
            yield from progress

    batch_size = flat.get("batch_size") or BATCH_SIZE
    return score(models, task, bpe, items, batch_size, device, watch)


def evaluate_last_words(
    flat: Mapping[str, Any], path: str, text_key: str = "text"
) -> dict[str, Any]:
    """Predict the last words of a file of JSON lines; see :func:`score_file`."""
    result: dict[str, Any] = score_file(flat, last_word, read_texts(path, text_key), "last words")
    return result


def describe(result: Mapping[str, Any]) -> str:
    """Return a line for people from what :func:`last_word` found."""
    text = (
        f"last word: accuracy {result['accuracy']:.2%}, perplexity {result['perplexity']:.2f} "
        f"({result['texts']:,} texts, {result['tokens']:,} tokens"
    )
    for name in ("truncated", "skipped", "unknown"):
        text += f", {result[name]:,} {name}" if result[name] else ""
    return text + ")"

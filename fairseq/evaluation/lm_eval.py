"""Our checkpoints in EleutherAI's lm-evaluation-harness, under the name ``fairseq``.

    python -m fairseq.evaluation.lm_eval --model_args path=CHECKPOINT,data=DATA-BIN --tasks TASKS

takes the flags of ``lm_eval run`` (package ``lm-eval``, extra ``[eval]``) and hands them on. The
arithmetic stands in :class:`TextScorer`, which does not need the package.

Source: Salazar et al. 2020 (Masked Language Model Scoring), equation 1, for masked LMs.

Shapes: R rows, S tokens so far, V vocabulary.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.data.encoders import TextEncoder
from fairseq.decoding.reader import Reader
from fairseq.decoding.scorer import average_log_probs
from fairseq.decoding.search import Sampling
from fairseq.errors import ConfigError, install_hint
from fairseq.evaluation.continuations import (
    BATCH_SIZE,
    Masks,
    Pair,
    front,
    ids_of,
    is_masked,
    load,
    score_continuations,
)
from fairseq.lazy import require_library
from fairseq.models.base import BaseFairseqModel
from fairseq.tasks.base import FairseqTask
from fairseq.utils import resolve_max_positions

logger = logging.getLogger("fairseq.lm_eval_adapter")

NAME = "fairseq"
PURPOSE = "the adapter for lm-evaluation-harness"
MAX_GEN_TOKS = 256
# limits above this are no limits: nobody wants a window of a million tokens
UNLIMITED = 100_000
LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens")
USAGE = """usage: python -m fairseq.evaluation.lm_eval [flags of "lm_eval run"]

Runs lm-evaluation-harness with --model fairseq.

examples:
  python -m fairseq.evaluation.lm_eval --model_args path=runs/lm/checkpoint_best.pt,data=data-bin \\
      --tasks lambada_openai,arc_easy --batch_size 16
  python -m fairseq.evaluation.lm_eval --model_args path=runs/mlm/checkpoint_best.pt,data=bin \\
      --tasks blimp --include_path my_tasks       tasks of your own, as YAML files

--model_args: path (several checkpoints, joined with ':', form an ensemble), data (the folder of
dict.txt), max_length, masks (each, rest: what masked LMs do not see), newline (eos, piece), and
any setting of the checkpoint.
"""


class TextScorer:
    """Scores and continues text.

    A line break in a text is end-of-sentence, as in the corpora of fairseq-preprocess, where lines
    follow each other; or it is the encoder's piece, if the dictionary has seen it in a corpus, or
    has seen none, as those of imported models.

    Args:
        models: causal LMs, or masked ones; several are averaged in probability space.
        task: their task.
        bpe: encoder of the text; None if words are the dictionary's.
        device: where the models are.
        batch_size: rows run together.
        max_length: longest row; that of the models, or ``tokens_per_sample``, if None.
        masks: see :func:`fairseq.evaluation.continuations.score_continuations`.
        newline: ``eos``, ``piece``, or ``auto`` for what the dictionary says.

    Raises:
        ConfigError: if the models are no language models, or a setting is unknown.
    """

    def __init__(
        self,
        models: Sequence[BaseFairseqModel],
        task: FairseqTask,
        bpe: TextEncoder,
        device: torch.device | str = "cpu",
        batch_size: int = BATCH_SIZE,
        max_length: int | None = None,
        masks: Masks = "each",
        newline: str = "auto",
    ) -> None:
        if newline not in ("auto", "eos", "piece") or masks not in ("each", "rest"):
            raise ConfigError(
                f"newline={newline} must be auto, eos or piece, masks={masks} each or rest"
            )
        self.models, self.task, self.bpe, self.device = list(models), task, bpe, device
        self.batch_size, self.masks = batch_size, masks
        self.masked = is_masked(task, models[0])
        self.front = front(task, self.masked)
        self.dictionary = task.source_dictionary
        self.max_length = max_length
        limit = resolve_max_positions(max_length, *(model.max_positions() for model in models))
        if limit is None or limit > UNLIMITED:
            limit = getattr(task.cfg, "tokens_per_sample", None) or 1024
        self.window = int(limit)
        self.keeps_newlines = newline == "piece" or (newline == "auto" and self._knows_newlines())

    def _knows_newlines(self) -> bool:
        pieces = self.bpe.encode("\n").split() if self.bpe is not None else []
        dictionary = self.dictionary
        ids = [dictionary.index(piece) for piece in pieces]
        known = bool(ids) and dictionary.unk() not in ids
        # imported dictionaries have no counts: their models read whole documents
        return known and (not dictionary.is_counted() or all(dictionary.count[i] for i in ids))

    # -- text and tokens -------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without marks around it."""
        split = str if self.bpe is None else self.bpe.encode
        if self.keeps_newlines:
            return ids_of(split(text).split(), self.task)
        ids: list[int] = []
        for number, line in enumerate(text.split("\n")):
            ids += [self.dictionary.eos()] if number else []
            ids += ids_of(split(line.strip()).split(), self.task)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        lines: list[list[str]] = [[]]
        for number in ids:
            if number == self.dictionary.eos():
                lines.append([])
            else:
                lines[-1].append(self.dictionary[number])
        join = str if self.bpe is None else self.bpe.decode
        return "\n".join(join(" ".join(line)) for line in lines)

    def pair(self, context: str, continuation: str) -> Pair:
        """Return the ids of a context, with what texts begin with, and of its continuation.

        They are encoded together, the spaces between them with the continuation.
        """
        head = context.rstrip(" ")
        whole, begin = self.encode(context + continuation), self.encode(head)
        last = whole[len(begin) :]
        if whole[: len(begin)] != begin:
            last = self.encode(context[len(head) :] + continuation)
        return self.front + begin, last

    # -- scores ----------------------------------------------------------------------------------

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return ``log p(continuation | context)`` in nats, and whether it is the greedy one.

        Of masked LMs it is the sum of ``log p(token | all other tokens)``.

        Raises:
            DataError: if a continuation is longer than the model takes.
        """
        return self._scores([self.pair(*pair) for pair in pairs])

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """Return ``log p(text)`` in nats; each token is predicted once, in windows if need be."""
        pairs, owners = [], []
        for number, text in enumerate(texts):
            parts = list(self.windows(self.encode(text)))
            pairs += parts
            owners += [number] * len(parts)
        totals = [0.0] * len(texts)
        for owner, (log_p, _) in zip(owners, self._scores(pairs), strict=True):
            totals[owner] += log_p
        return totals

    def windows(self, ids: Sequence[int]) -> Iterator[Pair]:
        """Yield (context, continuation) for a text too long for the model.

        Of a causal LM the last window is as full as the others; a masked LM gets parts that do not
        overlap.
        """
        row = [*self.front, *ids]
        length = self.window - 2 if self.masked else self.window
        for first in range(0, len(ids), length):
            end = min(first + length, len(ids))
            if self.masked:
                yield [], row[first:end]
            else:
                yield row[max(0, end - length) : first + 1], row[first + 1 : end + 1]

    def _scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        scores = score_continuations(
            self.models,
            self.task,
            pairs,
            self.batch_size,
            self.device,
            masks=self.masks,
            max_length=self.max_length,
        )
        unk = self.dictionary.unk()
        facts = {
            "contexts lost their beginning": sum(score.truncated for score in scores),
            "continuations hold unknown pieces": sum(unk in last for _, last in pairs),
        }
        for fact, count in facts.items():
            if count:
                logger.warning("%s of %s %s", f"{count:,}", f"{len(pairs):,}", fact)
        return [(score.log_prob, score.greedy) for score in scores]

    # -- generation ------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Continue contexts until a stop string, an end of text, or enough tokens.

        A text ends with end-of-sentence, or with an empty line where that is a line break.

        Args:
            requests: contexts and settings: ``until``, ``max_gen_toks``, ``do_sample``,
                ``temperature``, ``top_k``, ``top_p``.

        Raises:
            ConfigError: if the models are masked LMs, or there is no room to write.
        """
        if self.masked:
            raise ConfigError("masked language models do not generate: leave these tasks out")
        results = [""] * len(requests)
        groups: dict[str, list[tuple[int, list[int], int]]] = {}
        for place, (context, settings) in enumerate(requests):
            prompt, most = self._room(self.front + self.encode(context), settings)
            groups.setdefault(f"{most} {settings!r}", []).append((place, prompt, most))
        for group in groups.values():
            for first in range(0, len(group), self.batch_size):
                some = group[first : first + self.batch_size]
                settings, most = requests[some[0][0]][1], some[0][2]
                texts = self._generate([prompt for _, prompt, _ in some], settings, most)
                for (place, _, _), text in zip(some, texts, strict=True):
                    results[place] = text
        return results

    def _room(self, prompt: list[int], settings: Mapping[str, Any]) -> tuple[list[int], int]:
        """Return what of a prompt is read, half a window at least, and how much may be written."""
        most = next((int(settings[k]) for k in LENGTH_KEYS if k in settings), MAX_GEN_TOKS)
        if most < 1 or self.window < 2:
            raise ConfigError(f"there is no room to write in: {dict(settings)}, {self.window}")
        prompt = prompt[-max(self.window - most, self.window // 2) :]
        return prompt, min(most, self.window - len(prompt))

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], settings: Mapping[str, Any], most: int
    ) -> list[str]:
        """Continue prompts together, by ``most`` tokens; they are padded on the left."""
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        length, pad = max(map(len, prompts)), self.dictionary.pad()
        rows = [[pad] * (length - len(prompt)) + prompt for prompt in prompts]
        tokens_RS = torch.tensor(rows, device=self.device)
        choose = self._chooser(settings)
        temperature = settings.get("temperature") if settings.get("do_sample") else None
        readers = [Reader(model, float(temperature or 1)) for model in self.models]
        # imported models may begin and end texts with one symbol
        never = sorted({pad, self.dictionary.bos()} - {self.dictionary.eos()})
        texts, done = [""] * len(prompts), [False] * len(prompts)
        new = length
        for step in range(most):
            for reader in readers:
                reader.read(tokens_RS, new)
            log_p_RV = average_log_probs([reader.log_probs(-1, None)[:, 0] for reader in readers])
            log_p_RV[:, never] = -torch.inf
            tokens_RS = torch.cat([tokens_RS, choose(step, log_p_RV)[:, None]], dim=1)
            new = 1
            for row, prompt in enumerate(prompts):
                if not done[row]:
                    written = tokens_RS[row, length:].tolist()
                    texts[row], done[row] = self._written(prompt, written, stops)
            if all(done):
                break
        return texts

    def _written(self, prompt: list[int], written: list[int], stops: list[str]) -> tuple[str, bool]:
        """Return the text that follows a prompt, and whether it is complete."""
        eos = self.dictionary.eos()
        ends = [eos] if self.keeps_newlines else [eos, eos]
        done = written[-len(ends) :] == ends
        written = written[: -len(ends)] if done else written
        context = prompt[len(self.front) :]
        before, whole = self.decode(context), self.decode([*context, *written])
        text = whole[len(before) :] if whole.startswith(before) else self.decode(written)
        places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, done)

    def _chooser(self, settings: Mapping[str, Any]) -> Any:
        """Return what chooses tokens, int64 (R,), from (step, log-probabilities (R, V))."""
        if not settings.get("do_sample") or settings.get("temperature") == 0:
            return lambda step, log_p_RV: log_p_RV.argmax(-1)
        sampling = Sampling(
            self.task.target_dictionary,
            int(settings.get("top_k") or -1),
            float(settings.get("top_p") or -1),
        )

        def draw(step: int, log_p_RV: Tensor) -> Tensor:
            return sampling.step(step, log_p_RV[:, None], None)[1][:, 0]

        return draw


def load_scorer(
    path: str,
    data: str | None = None,
    batch_size: int | str | None = None,
    device: str | None = None,
    **settings: Any,
) -> TextScorer:
    """Load checkpoints for scoring text.

    Args:
        path: checkpoints, joined with ``:``.
        data: folder of the dictionary; that of the first checkpoint if None.
        batch_size: rows run together; ``auto`` is our default.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; the best one if None.
        **settings: ``max_length``, ``masks`` and ``newline`` of :class:`TextScorer`, and settings
            that replace the checkpoint's.
    """
    overrides = {"path": path, "data": data, **settings}
    knobs = {
        name: overrides.pop(name)
        for name in ("max_length", "masks", "newline")
        if name in overrides
    }
    if device is not None:
        kind, _, number = device.partition(":")
        overrides |= {"device": kind, "cpu": kind == "cpu", "device_id": int(number or 0)}
    models, _, task, bpe, chosen = load(overrides)
    # the harness also knows "auto" and "auto:4"
    rows = int(str(batch_size)) if str(batch_size).isdigit() else BATCH_SIZE
    return TextScorer(models, task, bpe, chosen, rows, **knobs)


# -- the harness -----------------------------------------------------------------------------------


@functools.cache
def lm_class() -> type:
    """Return the subclass of ``lm_eval.api.model.LM``, made when it is first asked for.

    Its arguments are those of :func:`load_scorer`.

    Raises:
        ConfigError: if lm-evaluation-harness is not installed.
    """
    base: Any = require_module("lm_eval.api.model").LM

    class FairseqLM(base):
        """Our checkpoints as a model of the harness."""

        def __init__(self, path: str, max_batch_size: int | None = None, **settings: Any) -> None:
            super().__init__()
            self.scorer = load_scorer(path, **settings)
            self._device = self.scorer.device

        def _answer(self, method: str, requests: Sequence[Any], first_only: bool = False) -> Any:
            """Ask the scorer, and let the harness keep the answers."""
            questions = [request.args for request in requests]
            texts = [question[0] for question in questions] if first_only else questions
            answers = getattr(self.scorer, method)(texts)
            for question, answer in zip(questions, answers, strict=True):
                self.cache_hook.add_partial(method, question, answer)
            return answers

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            """See :meth:`TextScorer.loglikelihood`."""
            return self._answer("loglikelihood", requests)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            """See :meth:`TextScorer.loglikelihood_rolling`."""
            return self._answer("loglikelihood_rolling", requests, first_only=True)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            """See :meth:`TextScorer.generate_until`."""
            return self._answer("generate_until", requests)

    return FairseqLM


def require_module(name: str) -> Any:
    """Import a module of lm-evaluation-harness.

    Raises:
        ConfigError: if the package is not installed.
    """
    require_library("lm_eval", f"{PURPOSE} ({install_hint('eval')})")
    return require_library(name, PURPOSE)


def register() -> type:
    """Make ``--model fairseq`` known to the harness of this process; return the class.

    Raises:
        ConfigError: if lm-evaluation-harness is not installed.
    """
    model = lm_class()
    require_module("lm_eval.models")  # its own models are only read into an empty registry
    registry = require_module("lm_eval.api.registry")
    if NAME not in registry.MODEL_REGISTRY:
        registry.register_model(NAME)(model)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the harness with ``--model fairseq``.

    Args:
        argv: flags of ``lm_eval run``, or a sub-command of ``lm_eval`` with its flags;
            ``sys.argv[1:]`` if None.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    register()
    others = words[0] in ("ls", "validate")
    if not others and not any(word.split("=")[0] in ("--model", "-M") for word in words):
        place = 1 if words[0] == "run" else 0
        words[place:place] = ["--model", NAME]
    before, sys.argv = sys.argv, ["lm_eval", *words]
    try:
        require_module("lm_eval.__main__").cli_evaluate()
    finally:
        sys.argv = before
    return 0


if __name__ == "__main__":
    from fairseq.evaluation.lm_eval import main as run  # one copy of this module, not two

    sys.exit(run())

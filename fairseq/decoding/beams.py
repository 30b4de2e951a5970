"""Generating text with causal language models: prompts in, hypotheses out.

All hypotheses of a batch advance in step, and prompts are part of them: a row whose prompt is
longer than the others' is forced on while those already choose. So no row is ever padded, and the
result does not depend on the batch.

Shapes: B sentences, K hypotheses of each (the beam), R = B * K rows, V vocabulary, C candidates,
P tokens of the longest prompt, S tokens so far with the one in front, T = S - 1 without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.config.sections import GenerationConfig
from fairseq.data.storage.dictionary import Dictionary
from fairseq.decoding.reader import Reader
from fairseq.decoding.scorer import SequenceScorer, average_log_probs
from fairseq.decoding.search import BeamSearch, Sampling, Search
from fairseq.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from fairseq.protocols import Sample, Settings

logger = logging.getLogger("fairseq.sequence_generator")

# logits of a prompt that are looked at together
CHUNK_ELEMENTS = 1 << 24
# (number of the sentence, its tokens so far (S,)) -> ids of the tokens that may follow
AllowedTokens = Callable[[int, Tensor], Collection[int]]


@dataclass
class Beams:
    """The hypotheses that go on.

    Attributes:
        rows_B: place of each sentence in the batch.
        tokens_BKS: tokens, with the one in front.
        scores_BKT: log-probability of each token but the first.
        total_BK: their sums, -inf for hypotheses that exist no longer.
    """

    rows_B: Tensor
    tokens_BKS: Tensor
    scores_BKT: Tensor
    total_BK: Tensor


@dataclass
class Prompts:
    """What the outputs begin with, and how long they may be.

    Attributes:
        tokens_BP: padded on the right.
        length_B: tokens of each.
        max_len_B: most tokens of each output, the prompt included.
        ids: numbers of the sentences.
    """

    tokens_BP: Tensor
    length_B: Tensor
    max_len_B: Tensor
    ids: list[int]

    def complete_B(self, eos: int) -> Tensor:
        """Return which prompts end with end-of-sentence, bool (B,)."""
        if self.tokens_BP.shape[1] == 0:
            return torch.zeros_like(self.length_B, dtype=torch.bool)
        last_B1 = self.tokens_BP.gather(1, self.length_B.sub(1).clamp(min=0)[:, None])
        return last_B1[:, 0].eq(eos) & self.length_B.gt(0)

    def next_tokens(self, step: int, rows_B: Tensor, pad: int) -> Tensor:
        """Return what the prompts of these rows say after ``step`` tokens, int64 (B,), or pads."""
        if step >= self.tokens_BP.shape[1]:
            return torch.full_like(rows_B, pad)
        return self.tokens_BP[rows_B, step]


class SequenceGenerator:
    """Continues prompts with the most likely, or with sampled, tokens.

    The score of a hypothesis is the sum of its tokens' log-probabilities (natural logarithm, the
    prompt's and that of the final end-of-sentence included), divided by ``length ** len_penalty``.
    Lengths count the prompt and the final end-of-sentence. As in the original, a sentence is done
    as soon as ``beam_size`` hypotheses have ended.

    Args:
        models: causal language models; several are averaged in probability space.
        tgt_dict: dictionary of the targets.
        beam_size: hypotheses of each sentence.
        max_len_a: outputs have at most ``max_len_a * source length + max_len_b`` tokens, the
            prompt included, the end-of-sentence not; longer prompts are just ended.
        max_len_b: see above.
        max_len: limit of the positions that are used; that of the models if 0.
        min_len: least tokens of an output, counted likewise.
        normalize_scores: divide scores by the length.
        len_penalty: above 1 favours long hypotheses, below 1 short ones.
        unk_penalty: subtracted from the log-probability of the unknown symbol.
        temperature: above 1 makes distributions flat, below 1 sharp.
        match_source_len: refused if True.
        no_repeat_ngram_size: never repeat that many tokens in a row, those of the prompt included.
        search_strategy: how tokens are chosen; beam search if None.
        eos: id that ends an output; the dictionary's if None.
        symbols_to_strip_from_output: further ids that are left out when outputs are printed.
        prefix_allowed_tokens_fn: tells which tokens may follow: called after the prompt with the
            number of the sentence and its tokens so far, the one in front included.

    Raises:
        ConfigError: for a setting that makes no sense, or a model that cannot generate.
    """

    def __init__(
        self,
        models: Sequence[Any],
        tgt_dict: Dictionary,
        beam_size: int = 1,
        max_len_a: float = 0,
        max_len_b: int = 200,
        max_len: int = 0,
        min_len: int = 1,
        normalize_scores: bool = True,
        len_penalty: float = 1.0,
        unk_penalty: float = 0.0,
        temperature: float = 1.0,
        match_source_len: bool = False,
        no_repeat_ngram_size: int = 0,
        search_strategy: Search | None = None,
        eos: int | None = None,
        symbols_to_strip_from_output: Collection[int] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
    ) -> None:
        if match_source_len:
            raise UnsupportedError("--match-source-len belongs to translation, out of scope here")
        if beam_size < 1 or temperature <= 0:
            raise ConfigError(
                f"--beam and --temperature must be positive, not {beam_size} and {temperature}"
            )
        self.models = list(models)
        for model in self.models:
            Reader(model)  # refuses what cannot generate
            model.eval()
        self.pad, self.unk = tgt_dict.pad(), tgt_dict.unk()
        self.eos = tgt_dict.eos() if eos is None else eos
        self.beam_size, self.min_len = beam_size, min_len
        self.max_len_a, self.max_len_b = max_len_a, max_len_b
        limits = [int(model.max_positions()) for model in self.models if model.max_positions()]
        self.max_positions = max_len or min(limits, default=2**31)
        self.normalize_scores, self.len_penalty = normalize_scores, len_penalty
        self.unk_penalty, self.temperature = unk_penalty, temperature
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self.search = BeamSearch(tgt_dict) if search_strategy is None else search_strategy
        self.symbols_to_strip_from_output = {self.eos, *(symbols_to_strip_from_output or ())}
        self.prefix_allowed_tokens_fn = prefix_allowed_tokens_fn

    @torch.no_grad()
    def generate(
        self,
        models: object,
        sample: Sample,
        prefix_tokens: Tensor | None = None,
        constraints: object = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Generate from a batch of prompts.

        Args:
            models: ignored; the models are those given at the start.
            sample: the batch; ``net_input.src_tokens`` int64 (B, T) and, if there, ``id`` count.
            prefix_tokens: the prompts, int64 (B, P), padded on the right; none if None.
                One that ends with end-of-sentence is complete.
            constraints: refused.
            bos_token: goes in front of the prompts; end-of-sentence if None.

        Returns:
            for each sentence at most ``beam_size`` hypotheses, best first: ``tokens`` int64 (T,),
            ``score`` fp32 (), ``positional_scores`` fp32 (T,), empty ``attention``, ``alignment``.

        Raises:
            DataError: if a prompt is too long for the model.
            CheckpointError: if the model's output is not a number.
            ConfigError: if the settings leave no token to continue with.
        """
        if constraints is not None:
            raise UnsupportedError("constrained generation exists in the original only")
        prompts = self._prompts(sample, prefix_tokens)
        readers = [Reader(model, self.temperature) for model in self.models]
        done: list[list[dict[str, Any]]] = [[] for _ in prompts.ids]
        if not done:
            return done
        beams = self._begin(readers, prompts, self.eos if bos_token is None else bos_token)
        while len(beams.rows_B):
            log_p_BKV = self._log_probs(readers, beams, prompts)
            order_R = self._advance(log_p_BKV, beams, prompts, done)
            if len(order_R):
                for reader in readers:
                    reader.reorder(order_R)
                    reader.read(beams.tokens_BKS.flatten(0, 1), 1)
        for place, hypotheses in enumerate(done):
            if not hypotheses:
                raise ConfigError(
                    f"sentence {prompts.ids[place]}: no token is left to continue with; allow more "
                    "(--no-repeat-ngram-size, prefix_allowed_tokens_fn)"
                )
            hypotheses.sort(key=lambda hypothesis: -float(hypothesis["score"]))
        return done

    def forward(
        self,
        sample: Sample,
        prefix_tokens: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Generate from a batch of prompts; see :meth:`generate`."""
        return self.generate(self.models, sample, prefix_tokens, bos_token=bos_token)

    # -- the start -------------------------------------------------------------------------------

    def _prompts(self, sample: Sample, prefix_tokens: Tensor | None) -> Prompts:
        sources_BT = sample["net_input"]["src_tokens"]
        documents_BT = sample["net_input"].get("documents")
        if documents_BT is not None and bool((documents_BT > 0).any()):
            raise ConfigError(
                "a row of several documents cannot be continued; this model was trained with "
                "--document-mask: generate with --sample-break-mode eos or complete_doc"
            )
        if prefix_tokens is None:
            prefix_tokens = sources_BT[:, :0]
        length_B = prefix_tokens.ne(self.pad).sum(1)
        longest = int(length_B.max()) if len(length_B) else 0
        if longest >= self.max_positions:
            raise DataError(
                f"a prompt of {longest} tokens and one in front of it exceed the "
                f"{self.max_positions} positions of the model, or leave none to write at"
            )
        wanted_B = self.max_len_a * sources_BT.ne(self.pad).sum(1) + self.max_len_b
        # one position is taken by the token in front
        max_len_B = wanted_B.long().clamp(max=self.max_positions - 1)
        if bool((max_len_B < self.min_len).any()):
            raise ConfigError(
                f"min_len {self.min_len} is more than max_len {int(max_len_B.min())}; lower "
                "--min-len, or raise --max-len-b"
            )
        if bool((max_len_B < length_B).any()):
            logger.warning("prompts are longer than outputs may be (--max-len-b): nothing is added")
        ids = sample.get("id")
        numbers = list(range(len(length_B))) if ids is None else torch.as_tensor(ids).tolist()
        return Prompts(prefix_tokens, length_B, max_len_B.maximum(length_B), numbers)

    def _begin(self, readers: list[Reader], prompts: Prompts, bos: int) -> Beams:
        """Read what all prompts have, in one go, and return the beams after it."""
        batch, beam = len(prompts.ids), self.beam_size
        # the end of a prompt is left to the next step, which moves hypotheses that end to those
        # done
        common = int((prompts.length_B - prompts.complete_B(self.eos).long()).min())
        front_B1 = prompts.tokens_BP.new_full((batch, 1), bos)
        tokens_BS = torch.cat([front_B1, prompts.tokens_BP[:, :common]], dim=1)
        order_R = torch.arange(batch, device=tokens_BS.device).repeat_interleave(beam)
        for reader in readers:
            reader.read(tokens_BS, common + 1)
        scores_BT = self._prompt_scores(readers, tokens_BS)
        for reader in readers:
            reader.reorder(order_R)
            assert reader.hidden_RTC is not None
            # the last state says all about the next token; those before were scored
            reader.hidden_RTC = reader.hidden_RTC[order_R, -1:]
        total_BK = scores_BT.sum(1)[:, None].repeat(1, beam)
        if self.search.branches:
            # so far all hypotheses of a sentence are one: its copies would fill the beam with
            # equals
            total_BK[:, 1:] = -torch.inf
        return Beams(
            rows_B=torch.arange(batch, device=tokens_BS.device),
            tokens_BKS=tokens_BS[:, None].repeat(1, beam, 1),
            scores_BKT=scores_BT[:, None].repeat(1, beam, 1),
            total_BK=total_BK,
        )

    def _prompt_scores(self, readers: list[Reader], tokens_BS: Tensor) -> Tensor:
        """Return the log-probability of every token but the first, fp32 (B, S - 1)."""
        batch, length = tokens_BS.shape
        parts = [torch.zeros(batch, 0, device=tokens_BS.device)]
        first, step = 0, 1  # the vocabulary's size is known after the first piece
        while first < length - 1:
            last = min(first + step, length - 1)
            log_p_BTV = average_log_probs([reader.log_probs(first, last) for reader in readers])
            next_BT1 = tokens_BS[:, first + 1 : last + 1, None]
            parts.append(log_p_BTV.gather(2, next_BT1)[:, :, 0])
            first, step = last, max(1, CHUNK_ELEMENTS // (batch * log_p_BTV.shape[-1]))
        return torch.cat(parts, dim=1)

    # -- one step --------------------------------------------------------------------------------

    def _log_probs(self, readers: list[Reader], beams: Beams, prompts: Prompts) -> Tensor:
        """Return the log-probabilities of the next token, fp32 (B, K, V).

        In rows whose prompt goes on they are the model's; in others, what may not follow is at
        -inf.
        """
        log_p_RV = average_log_probs([reader.log_probs(-1, None)[:, 0] for reader in readers])
        if bool(log_p_RV.isnan().any()):
            raise CheckpointError("the model's output is not a number; did its training diverge?")
        raw_BKV = log_p_RV.unflatten(0, beams.total_BK.shape)
        step = beams.scores_BKT.shape[2]
        free_B = prompts.next_tokens(step, beams.rows_B, self.pad).eq(self.pad)
        log_p_BKV = raw_BKV.clone()
        log_p_BKV[:, :, self.unk] -= self.unk_penalty
        log_p_BKV[:, :, self.pad] = -torch.inf
        if step < self.min_len:
            log_p_BKV[:, :, self.eos] = -torch.inf
        for row in free_B.nonzero()[:, 0].tolist():
            self._rule_out(log_p_BKV[row], beams, prompts, row)
        over_B = free_B & (step >= prompts.max_len_B[beams.rows_B])
        ended_BKV = torch.full_like(raw_BKV, -torch.inf)
        ended_BKV[:, :, self.eos] = raw_BKV[:, :, self.eos]
        log_p_BKV = torch.where(over_B[:, None, None], ended_BKV, log_p_BKV)
        return torch.where(free_B[:, None, None], log_p_BKV, raw_BKV)

    def _rule_out(self, log_p_KV: Tensor, beams: Beams, prompts: Prompts, row: int) -> None:
        """Rule out repeated n-grams and what the caller does not allow, in place."""
        size, allow = self.no_repeat_ngram_size, self.prefix_allowed_tokens_fn
        if size < 1 and allow is None:
            return
        for place, (log_p_V, tokens_S) in enumerate(
            zip(log_p_KV, beams.tokens_BKS[row], strict=True)
        ):
            if beams.total_BK[row, place].isneginf():
                continue
            if size > 0:
                log_p_V[sorted(_repeating(tokens_S[1:].tolist(), size))] = -torch.inf
            if allow is not None:
                number = prompts.ids[int(beams.rows_B[row])]
                allowed = torch.tensor(list(allow(number, tokens_S)), dtype=torch.int64)
                kept_V = torch.full_like(log_p_V, -torch.inf)
                allowed = allowed.to(log_p_V.device)
                kept_V[allowed] = log_p_V[allowed]
                log_p_V.copy_(kept_V)

    def _candidates(
        self, log_p_BKV: Tensor, beams: Beams, prompts: Prompts
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(scores, tokens, beams)``, (B, C) with C >= K: how hypotheses may go on."""
        step, beam = beams.scores_BKT.shape[2], self.beam_size
        ids = [prompts.ids[row] for row in beams.rows_B.tolist()]
        score_BC, token_BC, beam_BC = self.search.step(
            step, log_p_BKV, beams.total_BK[:, :, None], beams.tokens_BKS, torch.tensor(ids)
        )
        # a small vocabulary may have fewer continuations than the beam is wide
        missing = (0, max(0, beam - score_BC.shape[1]))
        score_BC = F.pad(score_BC, missing, value=-torch.inf)
        token_BC, beam_BC = F.pad(token_BC, missing), F.pad(beam_BC, missing)
        next_B = prompts.next_tokens(step, beams.rows_B, self.pad)
        forced_B1 = next_B.ne(self.pad)[:, None]
        if bool(forced_B1.any()):
            next_BK1 = next_B[:, None, None].expand(-1, beam, 1)
            prompted_BC = torch.full_like(score_BC, -torch.inf)
            prompted_BC[:, :beam] = beams.total_BK + log_p_BKV.gather(2, next_BK1)[:, :, 0]
            places_C = torch.arange(score_BC.shape[1], device=next_B.device).clamp(max=beam - 1)
            score_BC = torch.where(forced_B1, prompted_BC, score_BC)
            token_BC = torch.where(forced_B1, next_B[:, None], token_BC)
            beam_BC = torch.where(forced_B1, places_C, beam_BC)
        return score_BC, token_BC, beam_BC

    def _advance(
        self,
        log_p_BKV: Tensor,
        beams: Beams,
        prompts: Prompts,
        done: list[list[dict[str, Any]]],
    ) -> Tensor:
        """Choose how hypotheses go on, in place; move those that end to ``done``.

        Returns:
            the row that each new row continues, int64 (R,).
        """
        step, beam = beams.scores_BKT.shape[2], self.beam_size
        score_BC, token_BC, beam_BC = self._candidates(log_p_BKV, beams, prompts)
        rows = beams.rows_B.tolist()
        # an end-of-sentence inside a prompt ends nothing
        ends_BC = token_BC.eq(self.eos) & (step + 1 >= prompts.length_B[beams.rows_B])[:, None]
        good_BK = (ends_BC & score_BC.isfinite())[:, :beam]
        for row, place in good_BK.nonzero().tolist():
            if len(done[rows[row]]) < beam:
                source, total = int(beam_BC[row, place]), score_BC[row, place]
                gain = log_p_BKV[row, source, token_BC[row, place]]
                done[rows[row]].append(self._hypothesis(beams, row, source, gain, total))
        score_BC = score_BC.masked_fill(ends_BC, -torch.inf)
        # candidates come best first: a stable sort only moves those that cannot go on behind
        best_BK = score_BC.isneginf().int().sort(dim=1, stable=True).indices[:, :beam]
        alive_B = score_BC.isfinite().any(1) & (step < prompts.max_len_B[beams.rows_B])
        full_B = torch.tensor([len(done[row]) >= beam for row in rows], device=alive_B.device)
        kept_B1 = (alive_B & ~full_B).nonzero()
        best_BK = best_BK[kept_B1[:, 0]]
        beam_BK, token_BK = beam_BC[kept_B1, best_BK], token_BC[kept_B1, best_BK]
        gain_BK = log_p_BKV[kept_B1, beam_BK, token_BK]
        beams.rows_B = beams.rows_B[kept_B1[:, 0]]
        beams.total_BK = score_BC[kept_B1, best_BK]
        beams.tokens_BKS = torch.cat(
            [beams.tokens_BKS[kept_B1, beam_BK], token_BK[:, :, None]], dim=2
        )
        beams.scores_BKT = torch.cat(
            [beams.scores_BKT[kept_B1, beam_BK], gain_BK[:, :, None]], dim=2
        )
        return (kept_B1 * beam + beam_BK).flatten()

    def _hypothesis(
        self, beams: Beams, row: int, source: int, gain: Tensor, total: Tensor
    ) -> dict[str, Any]:
        """Return a hypothesis that ends with end-of-sentence."""
        tokens_S = beams.tokens_BKS[row, source]
        length = len(tokens_S)  # the end instead of what is in front
        return {
            "tokens": torch.cat([tokens_S[1:], tokens_S.new_tensor([self.eos])]),
            "score": total / length**self.len_penalty if self.normalize_scores else total,
            "attention": torch.empty(0),
            "alignment": torch.empty(0),
            "positional_scores": torch.cat([beams.scores_BKT[row, source], gain[None]]),
        }


def _repeating(tokens: list[int], size: int) -> set[int]:
    """Return the tokens that would complete ``size`` tokens which stand in ``tokens`` already."""
    first = len(tokens) - size + 1
    tail = tokens[max(0, first) :]
    return {tokens[i + size - 1] for i in range(first) if tokens[i : i + size - 1] == tail}


def build_generator(
    tgt_dict: Dictionary,
    models: Sequence[Any],
    args: Settings,
    seq_gen_cls: Callable[..., Any] | None = None,
    extra_gen_cls_kwargs: dict[str, Any] | None = None,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
) -> Any:
    """Return the generator, or scorer, that settings ask for.

    Args:
        tgt_dict: dictionary of the targets.
        models: the models.
        args: settings of the section ``generation``; ``score_reference`` asks for a scorer,
            ``seed`` for samples that are the same in every run.
        seq_gen_cls: class of the generator; :class:`SequenceGenerator` if None.
        extra_gen_cls_kwargs: further arguments for it.
        prefix_allowed_tokens_fn: see there.

    Raises:
        ConfigError: for settings that contradict each other.
    """
    if getattr(args, "score_reference", False):
        return SequenceScorer(tgt_dict, compute_alignment=bool(getattr(args, "print_alignment", 0)))
    settings = GenerationConfig.from_namespace(args)
    cut = settings.sampling_topk > 0 or settings.sampling_topp > 0
    if cut and not settings.sampling:
        raise ConfigError("--sampling-topk and --sampling-topp need --sampling")
    search: Search = BeamSearch(tgt_dict)
    if settings.sampling:
        seed = getattr(args, "seed", None)
        search = Sampling(tgt_dict, settings.sampling_topk, settings.sampling_topp, seed)
    extra = dict(extra_gen_cls_kwargs or {})
    if prefix_allowed_tokens_fn is not None:
        extra["prefix_allowed_tokens_fn"] = prefix_allowed_tokens_fn
    return (seq_gen_cls or SequenceGenerator)(
        models,
        tgt_dict,
        beam_size=settings.beam,
        max_len_a=settings.max_len_a,
        max_len_b=settings.max_len_b,
        min_len=settings.min_len,
        normalize_scores=not settings.unnormalized,
        len_penalty=settings.lenpen,
        unk_penalty=settings.unkpen,
        temperature=settings.temperature,
        match_source_len=bool(getattr(args, "match_source_len", False)),
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        **{"search_strategy": search, **extra},
    )

"""Ways of choosing the next token: beam search and sampling.

Shapes: B sentences, K hypotheses of each (the beam), V vocabulary, C candidates, S steps so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError
from fairseq.rng import philox


class Search:
    """Base of the strategies.

    Attributes:
        branches: whether the hypotheses of a sentence descend from one; otherwise each goes its
            own way from the start.
    """

    branches = True

    def __init__(self, tgt_dict: Dictionary) -> None:
        self.pad, self.unk, self.eos = tgt_dict.pad(), tgt_dict.unk(), tgt_dict.eos()
        self.vocab_size = len(tgt_dict)

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Propose continuations.

        Args:
            step: tokens that every hypothesis has so far; at 0 all of a sentence are the same.
            lprobs: log-probabilities of the next token, fp32 (B, K, V).
            scores: log-probabilities of the hypotheses up to each step, (B, K, S), the last one
                counts; -inf for those that exist no longer. None or empty at step 0.
            prev_output_tokens: the hypotheses, int64 (B, K, S + 1).
            original_batch_idxs: numbers of the sentences, int64 (B,); 0..B-1 if None.

        Returns:
            ``(scores, tokens, beams)``, each (B, C): the log-probability of each candidate, its
            last token, and the hypothesis it extends. Those with -inf do not exist.
        """
        raise NotImplementedError


class BeamSearch(Search):
    """The 2K most likely continuations, most likely first (K of them could be at their end)."""

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        beam, words = lprobs.shape[1:]
        if step == 0:
            total_BKV = lprobs[:, :1]
        else:
            assert scores is not None
            total_BKV = lprobs + scores[:, :, -1:]
        flat_BN = total_BKV.flatten(1)
        best_BC, index_BC = flat_BN.topk(min(2 * beam, flat_BN.shape[1]))
        return best_BC, index_BC % words, index_BC // words


class Sampling(Search):
    """A token drawn for each hypothesis; scores are the model's log-probabilities.

    Args:
        tgt_dict: dictionary of the targets.
        sampling_topk: draw among the k most likely tokens; all if not positive.
        sampling_topp: draw among the most likely tokens that together have this probability; all
            if not positive. With both settings, a token must satisfy both.
        seed: draws are a function of (seed, number of the sentence, step), so that they are the
            same in any batch; None uses torch's global generator.

    Raises:
        ConfigError: if the probability is above 1.

    Source: top-k Fan et al. 2018; top-p (nucleus) Holtzman et al. 2020.
    """

    branches = False

    def __init__(
        self,
        tgt_dict: Dictionary,
        sampling_topk: int = -1,
        sampling_topp: float = -1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(tgt_dict)
        if sampling_topp > 1:
            raise ConfigError(f"--sampling-topp is a probability, not {sampling_topp}")
        self.sampling_topk, self.sampling_topp, self.seed = sampling_topk, sampling_topp, seed

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, beam, _ = lprobs.shape
        ids = range(batch) if original_batch_idxs is None else original_batch_idxs
        draw_BK = self._draws(ids, step, batch, beam)
        token_BK = self._pick(lprobs, draw_BK)
        score_BK = lprobs.gather(2, token_BK[:, :, None])[:, :, 0]
        if scores is not None and scores.shape[-1] > 0:
            score_BK = score_BK + scores[:, :, -1]
        return score_BK, token_BK, torch.arange(beam, device=lprobs.device).expand(batch, beam)

    def _pick(self, log_p_BKV: Tensor, draw_BK: Tensor) -> Tensor:
        """Return the token at which the cumulative probability exceeds each draw, int64 (B, K)."""
        p_BKV = log_p_BKV.exp()
        order_BKV = torch.arange(p_BKV.shape[-1], device=p_BKV.device).expand(p_BKV.shape)
        if self.sampling_topk > 0:
            p_BKV, order_BKV = p_BKV.topk(min(self.sampling_topk, p_BKV.shape[-1]))
        elif self.sampling_topp > 0:
            p_BKV, order_BKV = p_BKV.sort(dim=-1, descending=True)
        # MPS has no fp64
        exact = torch.float32 if p_BKV.device.type == "mps" else torch.float64
        if self.sampling_topp > 0:
            # what lies before a token counts, so that the one which crosses the threshold stays
            before_BKV = p_BKV.cumsum(-1, dtype=exact) - p_BKV
            p_BKV = p_BKV.masked_fill(before_BKV >= self.sampling_topp, 0)
        mass_BKV = p_BKV.cumsum(-1, dtype=exact)
        all_BK1 = mass_BKV[:, :, -1:]
        aim_BK1 = draw_BK[:, :, None].to(exact).to(all_BK1.device) * all_BK1
        # rounded up to everything there is, it would lie beyond the last token
        aim_BK1 = aim_BK1.minimum(all_BK1.nextafter(torch.zeros_like(all_BK1)))
        place_BK1 = torch.searchsorted(mass_BKV, aim_BK1, right=True)
        return order_BKV.gather(2, place_BK1.clamp(max=p_BKV.shape[-1] - 1))[:, :, 0]

    def _draws(self, ids: Sequence[int] | Tensor, step: int, batch: int, beam: int) -> Tensor:
        """Return uniform numbers in [0, 1), fp64 (B, K)."""
        if self.seed is None:
            return torch.rand(batch, beam, dtype=torch.float64)
        rows = [philox(self.seed, "sampling", int(i), step).random(beam).tolist() for i in ids]
        return torch.tensor(rows, dtype=torch.float64).view(batch, beam)

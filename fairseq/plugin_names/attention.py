"""Multi-head attention as plug-ins call it: time first, queries, keys and values apart.

Shapes: T queries, S keys, B batch, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import UnsupportedError
from fairseq.plugin_names.incremental_state import FairseqIncrementalState, IncrementalState
from fairseq.plugin_names.modules import FairseqDropout, quant_noise


class MultiheadAttention(FairseqIncrementalState, nn.Module):
    """Attention with separate projections, under the names of the original's state dict.

    Args:
        embed_dim: C.
        num_heads: H.
        kdim: channels of the keys; C if None.
        vdim: channels of the values; C if None.
        dropout: on attention weights.
        bias: of the projections.
        add_bias_kv: not supported.
        add_zero_attn: not supported.
        self_attention: queries, keys and values are the same.
        encoder_decoder_attention: keys and values come from an encoder.
        q_noise: not supported.
        qn_block_size: for old callers.

    Raises:
        UnsupportedError: if something is asked for that is not supported.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        **unused: object,
    ) -> None:
        super().__init__()
        if add_bias_kv or add_zero_attn:
            raise UnsupportedError("attention: add_bias_kv and add_zero_attn are not supported")
        assert embed_dim % num_heads == 0, (embed_dim, num_heads)
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.qkv_same_dim = self.kdim == self.vdim == embed_dim
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.self_attention = self_attention
        self.encoder_decoder_attention = encoder_decoder_attention
        self.dropout_module = FairseqDropout(dropout)

        def linear(inputs: int) -> Any:
            return quant_noise(nn.Linear(inputs, embed_dim, bias), q_noise, qn_block_size)

        self.k_proj, self.v_proj = linear(self.kdim), linear(self.vdim)
        self.q_proj, self.out_proj = linear(embed_dim), linear(embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as the original does; see the house's attention."""
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5 if self.qkv_same_dim else 1.0)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: (T, B, C).
            key: (S, B, C'); None where it was remembered (``static_kv``).
            value: (S, B, C'').
            key_padding_mask: bool (B, S), true at keys that are not seen.
            incremental_state: remembers keys and values; new ones are added.
            need_weights: also return the weights.
            static_kv: keys and values never change: those remembered are used.
            attn_mask: added to the scores, (T, S) or (B * H, T, S).
            before_softmax: not supported.
            need_head_weights: return the weights of every head.

        Returns:
            ``(output (T, B, C), weights)``: (B, T, S), the mean over heads, or (H, B, T, S).
        """
        if before_softmax:
            raise UnsupportedError("attention: before_softmax is not supported")
        batch = query.shape[1]
        saved = self._get_input_buffer(incremental_state) if incremental_state is not None else {}
        query_BHTD = self._heads(self.q_proj(query)) * self.scaling
        if saved and static_kv:
            key_BHSD, value_BHSD = saved["prev_key"], saved["prev_value"]
            key_padding_mask = saved["prev_key_padding_mask"]
        else:
            assert key is not None and (value is not None or self.encoder_decoder_attention)
            key_BHSD = self._heads(self.k_proj(key))
            value_BHSD = self._heads(self.v_proj(key if value is None else value))
            if saved:
                key_padding_mask = self._padding(saved, key_BHSD, key_padding_mask)
                key_BHSD = torch.cat([saved["prev_key"], key_BHSD], 2)  # type: ignore[list-item]
                value_BHSD = torch.cat([saved["prev_value"], value_BHSD], 2)  # type: ignore[list-item]
        assert key_BHSD is not None and value_BHSD is not None
        if incremental_state is not None:
            names = ("prev_key", "prev_value", "prev_key_padding_mask")
            kept = dict(zip(names, (key_BHSD, value_BHSD, key_padding_mask), strict=True))
            self._set_input_buffer(incremental_state, kept)
        scores_BHTS = query_BHTD @ key_BHSD.transpose(2, 3)
        if attn_mask is not None:
            wide = attn_mask.dim() == 3
            scores_BHTS = scores_BHTS + (
                attn_mask.unflatten(0, (batch, self.num_heads)) if wide else attn_mask
            )
        if key_padding_mask is not None:
            hidden_B11S = key_padding_mask.bool()[:, None, None]
            scores_BHTS = scores_BHTS.masked_fill(hidden_B11S, float("-inf"))
        weights_BHTS = F.softmax(scores_BHTS, dim=-1, dtype=torch.float32).type_as(scores_BHTS)
        out_BHTD = self.dropout_module(weights_BHTS) @ value_BHSD
        output = self.out_proj(out_BHTD.permute(2, 0, 1, 3).flatten(2))
        if need_head_weights:
            return output, weights_BHTS.transpose(0, 1)
        return output, weights_BHTS.mean(1) if need_weights else None

    def _heads(self, x_TBC: Tensor) -> Tensor:
        """Return (B, H, T, D)."""
        return x_TBC.unflatten(2, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)

    @staticmethod
    def _padding(
        saved: dict[str, Tensor | None], key_BHSD: Tensor, new_BS: Tensor | None
    ) -> Tensor | None:
        """Return the padding mask of remembered and new keys, None if none is hidden."""
        before_BS, remembered = saved["prev_key_padding_mask"], saved["prev_key"]
        assert remembered is not None
        total = remembered.shape[2] + key_BHSD.shape[2]
        if new_BS is not None and new_BS.shape[1] == total:
            return new_BS  # it tells of all keys so far
        if before_BS is None and new_BS is None:
            return None
        zeros = key_BHSD.new_zeros((key_BHSD.shape[0], total), dtype=torch.bool)
        if before_BS is not None:
            zeros[:, : before_BS.shape[1]] = before_BS
        if new_BS is not None:
            zeros[:, total - new_BS.shape[1] :] = new_BS
        return zeros

    def _get_input_buffer(
        self, incremental_state: IncrementalState | None
    ) -> dict[str, Tensor | None]:
        kept = self.get_incremental_state(incremental_state, "attn_state")
        return {} if kept is None else kept

    def _set_input_buffer(
        self, incremental_state: IncrementalState, buffer: dict[str, Tensor | None]
    ) -> IncrementalState:
        self.set_incremental_state(incremental_state, "attn_state", buffer)
        return incremental_state

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> IncrementalState:
        """Keep the remembered rows that ``new_order`` names."""
        buffer = self._get_input_buffer(incremental_state)
        kept = {n: None if x is None else x.index_select(0, new_order) for n, x in buffer.items()}
        return self._set_input_buffer(incremental_state, kept) if kept else incremental_state

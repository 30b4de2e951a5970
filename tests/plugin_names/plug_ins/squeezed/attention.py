"""Attention to K summaries of the keys: learned sums over time."""

import math

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from fairseq.modules.quant_noise import quant_noise
from torch import nn

from fairseq import utils
from fairseq.modules import FairseqDropout


@with_incremental_state
class SummaryAttention(nn.Module):
    """Called as the attention of a layer is: time first."""

    def __init__(self, dim, heads, dropout, length, summaries, shared, q_noise, block_size):
        super().__init__()
        self.heads, self.length = heads, length
        self.qkv = quant_noise(nn.Linear(dim, 3 * dim), q_noise, block_size)
        self.sums = shared if shared is not None else nn.Linear(length, summaries, bias=False)
        self.out = quant_noise(nn.Linear(dim, dim), q_noise, block_size)
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        incremental_state=None,
        need_weights=True,
        static_kv=False,
        attn_mask=None,
    ):
        time, batch, dim = query.shape
        qkv = self.qkv(query).view(time, batch, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 1, 3, 0, 4)
        if key_padding_mask is not None:
            hidden = key_padding_mask[:, None, :, None]
            k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        sums = self.sums.weight[:, :time]
        weights = utils.softmax(q @ (sums @ k).transpose(2, 3) / math.sqrt(k.shape[-1]), dim=-1)
        attended = self.dropout_module(weights.type_as(q)) @ (sums @ v)
        assert torch.isfinite(attended).all()
        return self.out(attended.permute(2, 0, 1, 3).reshape(time, batch, dim)), None

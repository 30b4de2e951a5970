"""RoBERTa as fairseq-lm trains it: ALiBi, sinusoidal or learned positions, CLAP head, zero masks.

This file travels inside exported folders and needs only ``torch`` and ``transformers``:
``AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)``.

Shapes: B sequences of T tokens, C channels, H heads, V rows of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "linear": lambda x: x,
    "swish": F.silu,
}


class FairseqRobertaConfig(PretrainedConfig):
    """The settings of the encoder and of its head, under the names fairseq-lm gives them."""

    model_type = "fairseq_roberta"

    def __init__(
        self,
        vocab_size: int = 50265,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        activation_fn: str = "gelu",
        max_positions: int = 512,
        position: str = "learned",
        position_offset: int | None = None,
        head: str = "roberta",
        clap_normalize: bool = True,
        clap_normalize_hidden: bool = False,
        mask_embedding: str = "learned",
        mask_id: int = 50264,
        scale_embedding: bool = False,
        layernorm_embedding: bool = True,
        normalize_before: bool = False,
        untied: bool = False,
        segments: int = 0,
        layer_norm_eps: float = 1e-5,
        pad_token_id: int = 1,
        bos_token_id: int = 0,
        eos_token_id: int = 2,
        unk_token_id: int = 3,
        **kwargs: Any,
    ) -> None:
        own = {k: v for k, v in locals().items() if k not in ("self", "kwargs", "__class__")}
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        for name, value in own.items():
            setattr(self, name, value)


def sinusoids(positions_BT: Tensor, channels: int) -> Tensor:
    """Return sines (first half of the channels) and cosines of positions, (B, T, C)."""
    half = channels // 2
    step = math.log(10000) / (half - 1)
    frequencies_C = torch.exp(torch.arange(half, device=positions_BT.device).float() * -step)
    angles_BTC = positions_BT.float().unsqueeze(-1) * frequencies_C
    table_BTC = torch.cat([angles_BTC.sin(), angles_BTC.cos()], -1)
    return F.pad(table_BTC, (0, channels % 2))


def alibi(heads: int, length: int, asymmetric: bool, device: torch.device) -> Tensor:
    """Return ``-slope |i - j|``, (1, H, T, T); a future key is half a step nearer if asymmetric."""
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    slopes += [2 ** (-8 * (i + 1) / (2 * lower)) for i in range(0, 2 * (heads - lower), 2)]
    place_T = torch.arange(length, device=device, dtype=torch.float32)
    offset_TT = place_T[None, :] - place_T[:, None]
    distance_TT = offset_TT.abs() - (0.5 * (offset_TT > 0) if asymmetric else 0.0)
    return (-torch.tensor(slopes, device=device)[:, None, None] * distance_TT)[None]


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each with its residual and layer norm."""

    def __init__(self, config: FairseqRobertaConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads, self.pre = config.num_attention_heads, config.normalize_before
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.self_attn_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.activation_fn]

    def forward(self, x_BTC: Tensor, bias: Tensor) -> Tensor:
        """Return the hidden states; ``bias`` (B or 1, H or 1, T, T) is added to the scores."""
        residual = x_BTC
        if self.pre:
            x_BTC = self.self_attn_layer_norm(x_BTC)
        q, k, v = (
            project(x_BTC).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x_BTC = residual + self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not self.pre:
            x_BTC = self.self_attn_layer_norm(x_BTC)
        residual = x_BTC
        if self.pre:
            x_BTC = self.final_layer_norm(x_BTC)
        x_BTC = residual + self.fc2(self.activation(self.fc1(x_BTC)))
        return x_BTC if self.pre else self.final_layer_norm(x_BTC)


class FairseqRobertaPreTrainedModel(PreTrainedModel):
    """Ties the configuration to the models."""

    config_class = FairseqRobertaConfig
    base_model_prefix = "encoder"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)


class FairseqRobertaModel(FairseqRobertaPreTrainedModel):
    """The encoder: token ids in, hidden states out."""

    def __init__(self, config: FairseqRobertaConfig) -> None:
        super().__init__(config)
        width, pad = config.hidden_size, config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.first = pad + 1 if config.position_offset is None else config.position_offset
        if config.position == "learned":
            self.embed_positions = nn.Embedding(config.max_positions + self.first, width)
        if config.segments:
            self.embed_segments = nn.Embedding(config.segments, width)
        if config.layernorm_embedding:
            self.layernorm_embedding = nn.LayerNorm(width, config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        if config.normalize_before:
            self.layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.post_init()

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return what enters the first layer."""
        config = self.config
        rows, last = config.vocab_size, max(config.vocab_size - 1, config.mask_id)
        input_ids = input_ids.masked_fill(input_ids > last, config.unk_token_id)
        inside = input_ids < rows
        x_BTC = self.embed_tokens(input_ids.clamp(max=rows - 1))
        if config.head == "clap" and config.clap_normalize:
            x_BTC = F.normalize(x_BTC, dim=-1)
        if config.mask_embedding == "zero":
            x_BTC = x_BTC * inside.unsqueeze(-1)
        if config.scale_embedding:
            x_BTC = x_BTC * math.sqrt(config.hidden_size)
        is_token = input_ids.ne(config.pad_token_id)
        places = (is_token.cumsum(1) - 1 + self.first) * is_token
        if config.position_offset is None:
            places = places + config.pad_token_id * ~is_token
        if config.position == "learned":
            x_BTC = x_BTC + self.embed_positions(places)
        elif config.position == "sinusoidal":
            x_BTC = x_BTC + sinusoids(places, config.hidden_size) * is_token.unsqueeze(-1)
        if config.segments:
            segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x_BTC = x_BTC + self.embed_segments(segments)
        return self.layernorm_embedding(x_BTC) if config.layernorm_embedding else x_BTC

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Return the hidden states of a batch, padded on the right."""
        config = self.config
        if attention_mask is None:
            attention_mask = input_ids.ne(config.pad_token_id)
        x_BTC = self.embed(input_ids, token_type_ids)
        kept = attention_mask.bool()
        x_BTC = x_BTC * kept.unsqueeze(-1)
        bias = torch.zeros(kept.shape, device=kept.device).masked_fill(~kept, float("-inf"))
        bias = bias[:, None, None, :]
        if config.position.startswith("alibi"):
            asymmetric = config.position == "alibi-asymmetric"
            heads, length = config.num_attention_heads, input_ids.shape[1]
            bias = bias + alibi(heads, length, asymmetric, input_ids.device)
        states = [x_BTC]
        for layer in self.layers:
            x_BTC = layer(x_BTC, bias)
            states.append(x_BTC)
        if config.normalize_before:
            x_BTC = self.layer_norm(x_BTC)
        return BaseModelOutput(
            last_hidden_state=x_BTC, hidden_states=tuple(states) if output_hidden_states else None
        )


class FairseqRobertaForMaskedLM(FairseqRobertaPreTrainedModel):
    """The encoder with its vocabulary head."""

    def __init__(self, config: FairseqRobertaConfig) -> None:
        super().__init__(config)
        self.encoder = FairseqRobertaModel(config)
        width = config.hidden_size
        if config.head == "roberta":
            self.head_dense = nn.Linear(width, width)
            self.head_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
            self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
            if config.untied:
                self.head_weight = nn.Parameter(torch.empty(config.vocab_size, width))
        else:
            self.head_beta = nn.Parameter(torch.ones(()))
        self.post_init()

    def project(self, x_BTC: Tensor) -> Tensor:
        """Return the logits, (B, T, V)."""
        config, table_VC = self.config, self.encoder.embed_tokens.weight
        if config.head == "roberta":
            activation = ACTIVATIONS[config.activation_fn]
            x_BTC = self.head_layer_norm(activation(self.head_dense(x_BTC)))
            return F.linear(x_BTC, self.head_weight if config.untied else table_VC, self.head_bias)
        if config.clap_normalize_hidden:
            x_BTC = F.normalize(x_BTC, dim=-1)
        table_VC = F.normalize(table_VC, dim=-1) if config.clap_normalize else table_VC
        return F.linear(x_BTC * self.head_beta, table_VC)

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> MaskedLMOutput:
        """Return the logits and, with ``labels`` (-100 where nothing is asked), the loss."""
        kwargs.pop("return_dict", None)
        output = self.encoder(input_ids, **kwargs)
        logits = self.project(output.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)

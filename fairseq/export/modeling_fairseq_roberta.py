"""What fairseq-lm trains and transformers has no class for, encoders and decoders alike.

This file travels inside exported folders and needs only ``torch`` and ``transformers``:
``AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)``, and other auto classes.

The table has a row for each symbol of the dictionary. A tokenizer may give pieces that are not in
it; their ids, from ``dictionary_size`` up to ``first_new_id``, read as unknown and are never
predicted, however many rows the table is resized to.

Shapes: B sequences of T tokens, C channels, D of a head, H heads, V rows of the table, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "linear": lambda x: x,
    "swish": F.silu,
}
BELOW_UNKNOWN = 30.0  # nats
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50265, "dictionary_size": None, "first_new_id": None, "hidden_size": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "activation_fn": "gelu", "max_positions": 512, "position": "learned",
    "position_offset": None, "alibi_slopes": None, "rotary_fraction": 1.0, "causal": False,
    "head": "roberta", "head_bias": False, "untied": False, "clap_normalize": True,
    "clap_normalize_hidden": False, "mask_embedding": "learned", "mask_id": 50264,
    "embedding_multiplier": 1.0, "segments": 0, "layernorm_embedding": True,
    "normalize_before": False, "final_norm": None, "parallel_residual": False,
    "layer_norm_eps": 1e-5, "dropout": 0.0, "attention_dropout": 0.0, "pooling": "cls",
    "pooler_activation_fn": "tanh", "pooler_dropout": 0.0, "pooler_size": None,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "unk_token_id": 3,
}  # fmt: skip


class FairseqRobertaConfig(PretrainedConfig):
    """The settings of the model and of its head, under the names fairseq-lm gives them."""

    model_type = "fairseq_roberta"

    def __init__(self, **kwargs: object) -> None:
        kwargs = {**DEFAULTS, "tie_word_embeddings": False, "use_cache": False, **kwargs}
        settings = {name: kwargs.pop(name) for name in DEFAULTS}
        super().__init__(**kwargs)
        for name, stands_for in (
            ("dictionary_size", "vocab_size"), ("first_new_id", "dictionary_size"),
            ("final_norm", "normalize_before"), ("pooler_size", "hidden_size"),
        ):  # fmt: skip
            settings[name] = settings[stands_for] if settings[name] is None else settings[name]
        for name, value in settings.items():
            setattr(self, name, value)

    def known(self, ids: Tensor) -> Tensor:
        """Return ids of any shape, those outside the dictionary replaced by the unknown's."""
        foreign = ids >= self.dictionary_size
        foreign &= (ids < self.first_new_id) | (ids >= self.vocab_size)
        return ids.masked_fill(foreign, self.unk_token_id)


class AttnContext(NamedTuple):
    """What all layers are told: a bias of the scores, (B or 1, H or 1, T, T), and rotations."""

    bias: Tensor
    rotation: tuple[Tensor, Tensor] | None
    weights: bool


def sinusoids(positions_BT: Tensor, channels: int) -> Tensor:
    """Return sines (first half of the channels) and cosines of positions, (B, T, C), in fp32."""
    half = channels // 2
    step = math.log(10000) / (half - 1)
    frequencies_C = torch.exp(torch.arange(half, device=positions_BT.device).float() * -step)
    angles_BTC = positions_BT.float().unsqueeze(-1) * frequencies_C
    table_BTC = torch.cat([angles_BTC.sin(), angles_BTC.cos()], -1)
    return F.pad(table_BTC, (0, channels % 2))


def alibi(slopes: list[float], places_BT: Tensor, asymmetric: bool) -> Tensor:
    """Return ``-slope |i - j|``, (B, H, T, T); a future key is half a step nearer if asymmetric."""
    offset_BTT = (places_BT[:, None, :] - places_BT[:, :, None]).float()
    distance_BTT = offset_BTT.abs() - (0.5 * (offset_BTT > 0) if asymmetric else 0.0)
    return -torch.tensor(slopes, device=places_BT.device)[:, None, None] * distance_BTT[:, None]


def rotation(places_BT: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (B, 1, T, channels), of rotary positions (Su et al. 2021)."""
    powers = torch.arange(0, channels, 2, device=places_BT.device).float() / channels
    angles = places_BT.float()[..., None] * 10000**-powers
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the first channels of queries or keys."""
    cos, sin = (part.to(x_BHTD.dtype) for part in turned)
    first, rest = x_BHTD[..., : cos.shape[-1]], x_BHTD[..., cos.shape[-1] :]
    low, high = first.chunk(2, -1)
    return torch.cat([first * cos + torch.cat([-high, low], -1) * sin, rest], -1)


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each with its residual and layer norm."""

    def __init__(self, config: FairseqRobertaConfig) -> None:
        super().__init__()
        self.config, width, inner = config, config.hidden_size, config.intermediate_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.self_attn_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)

    def attend(self, x_BTC: Tensor, context: AttnContext) -> tuple[Tensor, Tensor | None]:
        """Return what the attention gives, and its weights (B, H, T, T) if they are wanted."""
        config = self.config
        q, k, v = (
            project(x_BTC).unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if context.rotation is not None:
            q, k = rotate(q, context.rotation), rotate(k, context.rotation)
        bias, weights = context.bias.to(q.dtype), None
        drop = config.attention_dropout if self.training else 0.0
        if context.weights:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
            weights = scores.float().softmax(-1).to(q.dtype)
            mixed = F.dropout(weights, drop, self.training) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop)
        mixed = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return F.dropout(mixed, config.dropout, self.training), weights

    def feed(self, x_BTC: Tensor) -> Tensor:
        """Return what the feed-forward network gives."""
        x_BTC = self.fc2(ACTIVATIONS[self.config.activation_fn](self.fc1(x_BTC)))
        return F.dropout(x_BTC, self.config.dropout, self.training)

    def forward(self, x_BTC: Tensor, context: AttnContext) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states, and the attention's weights if they are wanted."""
        first, second = self.self_attn_layer_norm, self.final_layer_norm
        pre, beside = self.config.normalize_before, self.config.parallel_residual
        attended, weights = self.attend(first(x_BTC) if pre else x_BTC, context)
        if not pre:
            x_BTC = first(x_BTC + attended)
            return second(x_BTC + self.feed(x_BTC)), weights
        fed = self.feed(second(x_BTC if beside else x_BTC + attended))
        return x_BTC + attended + fed, weights


class FairseqRobertaPreTrainedModel(PreTrainedModel):
    """Ties the configuration to the models."""

    config_class = FairseqRobertaConfig
    base_model_prefix = "encoder"
    output_class: Any = None  # of models with a head
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of the tokens."""
        return self.base_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.base_model.embed_tokens = value

    def resize_token_embeddings(self, *args: object, **kwargs: object) -> Any:
        """Resize the table, and what a head has of its own; new rows begin as in transformers."""
        table = super().resize_token_embeddings(*args, **kwargs)
        rows = self.config.vocab_size
        for name in ("head_bias", "head_weight"):
            old = getattr(self, name, None)
            if old is not None and len(old) != rows:
                new = table.weight.data.clone() if old.dim() > 1 else old.new_zeros(rows)
                kept = min(rows, len(old))
                new[:kept] = old.data[:kept]
                setattr(self, name, nn.Parameter(new))
        return table

    def packed(self, output: Any, return_dict: bool | None) -> Any:
        """Return an output as a tuple if that is wanted."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def answer(
        self, logits: Tensor, labels: Tensor | None, body: BaseModelOutput, return_dict: bool | None
    ) -> Any:
        """Return what a model with a head answers, with the loss of its labels if it has any."""
        loss = None
        if labels is not None and logits.shape[-1] == 1:
            loss = F.mse_loss(logits.flatten().float(), labels.flatten().float())
        elif labels is not None:
            loss = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
        output = self.output_class(
            loss=loss, logits=logits, hidden_states=body.hidden_states, attentions=body.attentions
        )
        return self.packed(output, return_dict)


class FairseqRobertaModel(FairseqRobertaPreTrainedModel):
    """The body: token ids in, hidden states out."""

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
        if config.final_norm:
            self.layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def look_up(self, input_ids: Tensor) -> Tensor:
        """Return the vectors of tokens, (B, T, C): no vector where the mask has none."""
        config = self.config
        zero = config.mask_embedding == "zero"
        is_mask = input_ids == config.mask_id
        ids = config.known(input_ids)
        x_BTC = self.embed_tokens(ids.masked_fill(is_mask, config.unk_token_id) if zero else ids)
        if config.head == "clap" and config.clap_normalize:
            x_BTC = F.normalize(x_BTC, dim=-1)
        return x_BTC * ~is_mask.unsqueeze(-1) if zero else x_BTC

    def embed(
        self, x_BTC: Tensor, is_token: Tensor, segments: Tensor | None, places: Tensor | None
    ) -> Tensor:
        """Return what enters the first layer, from the vectors of the tokens."""
        config = self.config
        x_BTC = x_BTC * config.embedding_multiplier
        places = is_token.cumsum(1) - 1 if places is None else places
        rows = (places + self.first) * is_token
        # padding has a row of its own where positions begin behind it
        if config.position_offset is None:
            rows = rows + config.pad_token_id * ~is_token
        if config.position == "learned":
            x_BTC = x_BTC + self.embed_positions(rows)
        elif config.position == "sinusoidal":
            vectors_BTC = sinusoids(rows, config.hidden_size) * is_token.unsqueeze(-1)
            x_BTC = x_BTC + vectors_BTC.to(x_BTC.dtype)
        if config.segments:
            segments = torch.zeros_like(rows) if segments is None else segments
            x_BTC = x_BTC + self.embed_segments(segments)
        x_BTC = self.layernorm_embedding(x_BTC) if config.layernorm_embedding else x_BTC
        return F.dropout(x_BTC, config.dropout, self.training)

    def context_of(
        self, kept_BT: Tensor, places: Tensor | None, dtype: torch.dtype, weights: bool
    ) -> AttnContext:
        """Return what the layers are told of the tokens."""
        config, length = self.config, kept_BT.shape[1]
        places = torch.arange(length, device=kept_BT.device)[None] if places is None else places
        visible = kept_BT[:, None, None, :]
        if config.causal:
            past = torch.ones(length, length, dtype=torch.bool, device=kept_BT.device).tril()
            visible = visible & past
        bias = torch.zeros((), device=kept_BT.device)
        if config.position.startswith("alibi"):
            bias = alibi(config.alibi_slopes, places, config.position.endswith("asymmetric"))
        width = int(config.hidden_size // config.num_attention_heads * config.rotary_fraction)
        turned = rotation(places, width) if config.position == "rotary" else None
        bias = torch.where(visible, bias, torch.finfo(dtype).min)
        return AttnContext(bias, turned, weights)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> Any:
        """Return the hidden states of a batch: ids or vectors (B, T, C), before they are scaled.

        By default tokens are where the id of padding is not; ``position_ids`` are places from 0.
        """
        config = self.config
        if input_ids is not None and inputs_embeds is None:
            x_BTC = self.look_up(input_ids)
        elif input_ids is None and inputs_embeds is not None:
            x_BTC = inputs_embeds
        else:
            raise ValueError("give either input_ids or inputs_embeds")
        if attention_mask is not None:
            kept_BT = attention_mask.bool()
        elif input_ids is not None:
            kept_BT = input_ids.ne(config.pad_token_id)
        else:
            kept_BT = torch.ones(x_BTC.shape[:2], dtype=torch.bool, device=x_BTC.device)
        x_BTC = self.embed(x_BTC, kept_BT, token_type_ids, position_ids)
        x_BTC = x_BTC if config.causal else x_BTC * kept_BT.unsqueeze(-1)
        wanted = config.output_attentions if output_attentions is None else output_attentions
        context = self.context_of(kept_BT, position_ids, x_BTC.dtype, bool(wanted))
        states, attentions = [x_BTC], []
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x_BTC, weights = self._gradient_checkpointing_func(layer.__call__, x_BTC, context)
            else:
                x_BTC, weights = layer(x_BTC, context)
            states.append(x_BTC)
            attentions.append(weights)
        if config.final_norm:
            x_BTC = self.layer_norm(x_BTC)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        output = BaseModelOutput(
            last_hidden_state=x_BTC,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if wanted else None,
        )
        return self.packed(output, return_dict)


class _WithVocabularyHead(FairseqRobertaPreTrainedModel):
    """The body with its vocabulary head."""

    shift = 0

    def __init__(self, config: FairseqRobertaConfig) -> None:
        super().__init__(config)
        self.encoder = FairseqRobertaModel(config)
        width = config.hidden_size
        if config.head == "roberta":
            self.head_dense = nn.Linear(width, width)
            self.head_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        if config.head == "clap":
            self.head_beta = nn.Parameter(torch.ones(()))
        if config.head == "roberta" or config.head_bias:
            self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if config.untied:
            self.head_weight = nn.Parameter(torch.empty(config.vocab_size, width))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Begin parameters for which the library has no rule, as no module of its own has them."""
        super()._init_weights(module)
        for name, value in module.named_parameters(recurse=False):
            if name == "head_weight":
                nn.init.normal_(value, std=0.02)
            elif name in ("head_beta", "head_bias"):
                nn.init.constant_(value, float(name == "head_beta"))

    def project(self, x_BTC: Tensor) -> Tensor:
        """Return the logits, (B, T, V); those of ids outside the dictionary are next to nothing."""
        config = self.config
        table_VC = self.head_weight if config.untied else self.encoder.embed_tokens.weight
        if config.head == "roberta":
            activation = ACTIVATIONS[config.activation_fn]
            x_BTC = self.head_layer_norm(activation(self.head_dense(x_BTC)))
        elif config.head == "clap":
            x_BTC = F.normalize(x_BTC, dim=-1) if config.clap_normalize_hidden else x_BTC
            table_VC = F.normalize(table_VC, dim=-1) if config.clap_normalize else table_VC
            x_BTC = x_BTC * self.head_beta
        logits = F.linear(x_BTC, table_VC, getattr(self, "head_bias", None))
        logits = F.pad(logits, (0, max(0, config.first_new_id - logits.shape[-1])))
        ids_V = torch.arange(logits.shape[-1], device=logits.device)
        foreign_V = (ids_V >= config.dictionary_size) & (ids_V < config.first_new_id)
        unknown = logits[..., config.unk_token_id, None]
        return torch.where(foreign_V, unknown - BELOW_UNKNOWN, logits)

    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: object,
    ) -> Any:
        """Return the logits (the last few if asked) and, with labels, the loss.

        A label of -100 asks nothing; one outside the dictionary is the unknown symbol.
        """
        output = self.encoder(input_ids, return_dict=True, **kwargs)
        logits = self.project(output.last_hidden_state[:, -logits_to_keep:])
        if labels is not None:
            labels = self.config.known(F.pad(labels, (0, self.shift), value=-100)[:, self.shift :])
        return self.answer(logits, labels, output, return_dict)


class FairseqRobertaForMaskedLM(_WithVocabularyHead):
    """An encoder with its vocabulary head; labels are the tokens that masks hide."""

    output_class = MaskedLMOutput


class FairseqRobertaForCausalLM(_WithVocabularyHead, GenerationMixin):
    """A decoder with its vocabulary head; it remembers nothing between the steps of a generation.

    Labels are the tokens themselves: each is predicted from those before it.
    """

    output_class, shift = CausalLMOutput, 1

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: object
    ) -> dict[str, Any]:
        """Return all tokens so far."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class Classifier(nn.Module):
    """The sentence head of fairseq: one hidden layer on pooled features."""

    def __init__(self, config: FairseqRobertaConfig) -> None:
        super().__init__()
        width = config.hidden_size * (2 if config.pooling == "concat" else 1)
        self.config = config
        self.dense = nn.Linear(width, config.pooler_size)
        self.out_proj = nn.Linear(config.pooler_size, config.num_labels)

    def forward(self, x_BTC: Tensor, kept_BT: Tensor) -> Tensor:
        """Return the scores of the labels, (B, K)."""
        config, first_BC = self.config, x_BTC[:, 0]
        weights_BT1 = (kept_BT / kept_BT.sum(1, keepdim=True)).unsqueeze(-1).to(x_BTC.dtype)
        mean_BC = (x_BTC * weights_BT1).sum(1)
        pooled = {"cls": first_BC, "mean": mean_BC, "concat": torch.cat([first_BC, mean_BC], -1)}
        x = F.dropout(pooled[config.pooling], config.pooler_dropout, self.training)
        x = ACTIVATIONS[config.pooler_activation_fn](self.dense(x))
        return self.out_proj(F.dropout(x, config.pooler_dropout, self.training))


class FairseqRobertaForSequenceClassification(FairseqRobertaPreTrainedModel):
    """The body with a head that classifies sentences, or gives a number."""

    output_class = SequenceClassifierOutput

    def __init__(self, config: FairseqRobertaConfig) -> None:
        super().__init__(config)
        self.encoder = FairseqRobertaModel(config)
        self.classifier = Classifier(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> Any:
        """Return the scores and, with ``labels`` (B,), the loss; one label is a regression."""
        output = self.encoder(input_ids, attention_mask, return_dict=True, **kwargs)
        x_BTC = output.last_hidden_state
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        kept_BT = x_BTC.new_ones(x_BTC.shape[:2]) if attention_mask is None else attention_mask
        logits = self.classifier(x_BTC, kept_BT.float())
        return self.answer(logits, labels, output, return_dict)


class FairseqRobertaForTokenClassification(FairseqRobertaPreTrainedModel):
    """The body with a linear map from each token to its label."""

    output_class = TokenClassifierOutput

    def __init__(self, config: FairseqRobertaConfig) -> None:
        super().__init__(config)
        self.encoder = FairseqRobertaModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Return the scores (B, T, K) and, with ``labels`` (-100 asks nothing), the loss."""
        return_dict = kwargs.pop("return_dict", None)
        output = self.encoder(input_ids, return_dict=True, **kwargs)
        return self.answer(self.classifier(output.last_hidden_state), labels, output, return_dict)

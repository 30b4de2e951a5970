"""RoBERTa: a Transformer encoder with a vocabulary head, and every variant that is a knob of it.

``--position`` says how tokens know where they stand, ``--head`` what the hidden states are
projected on, ``--mask-embedding`` what stands for ``<mask>``. Baseline, ALiBi, CLAP and zero-CLAP
are combinations of the three.

Shapes: B batch, T time, C channels, V vocabulary, N predicted positions.

Source: Liu et al. 2019 (RoBERTa).
"""

from __future__ import annotations

import dataclasses
import logging
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.checkpoint.tensor_names import upgrade_roberta_state
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError
from fairseq.models import register_model
from fairseq.models.base import (
    BaseFairseqModel,
    FairseqEncoder,
    FairseqEncoderModel,
    FairseqLanguageModel,
    wrong_kind,
)
from fairseq.models.roberta.config import RobertaConfig, encoder_shape
from fairseq.models.roberta.presets import (  # noqa: F401 - the original keeps them here
    base_architecture,
    roberta_base_architecture,
    roberta_large_architecture,
    roberta_prenorm_architecture,
    roberta_small_architecture,
    roberta_tiny_architecture,
    xlm_architecture,
)
from fairseq.modules.flops import FlopShape
from fairseq.modules.heads import (
    ClapHead,
    ClassificationHead,
    LinearProbe,
    Projection,
    RobertaLMHead,
    VocabularyHead,
    checked_classes,
)
from fairseq.modules.transformer_encoder import TransformerEncoder, init_bert_params
from fairseq.modules.transformer_layer import QueryKeyValue
from fairseq.protocols import Settings, StateDict, Task

logger = logging.getLogger(__name__)

DEFAULT_MAX_POSITIONS = 512
UNLIMITED = 1_000_000
PUBLISHED = "http://dl.fbaipublicfiles.com/fairseq/models"
RobertaClassificationHead = ClassificationHead


class RobertaEncoder(FairseqEncoder):
    """The encoder and its vocabulary head, under the names of the original's state dict.

    A plug-in overrides ``build_embedding``, ``build_encoder`` or ``build_lm_head``.

    Args:
        args: the settings; a plug-in may give a Namespace with settings of its own.
        dictionary: of the input.
    """

    def __init__(self, args: RobertaConfig | Namespace, dictionary: Dictionary) -> None:
        super().__init__(dictionary)
        self.config = RobertaConfig.from_namespace(args)
        if isinstance(args, Namespace):  # of a plug-in: with our defaults where it says nothing
            args = Namespace(**{**vars(self.config), **vars(args)})
        self.args = args
        dim, act = self.config.encoder_embed_dim, self.config.activation_fn
        # made here and handed on, because the head may be tied to it
        table: Any = self.build_embedding(len(dictionary), dim, dictionary.pad())
        self.sentence_encoder: Any = self.build_encoder(args, dictionary, table)
        tied = None if self.config.untie_weights_roberta else table.weight
        self.lm_head: Any = self.build_lm_head(dim, len(dictionary), act, tied)
        if self.lm_head is not None:
            # a plug-in's layers too; the table is no layer of the head, and initialised already
            self.lm_head.apply(init_bert_params)

    def build_embedding(
        self, vocab_size: int, embedding_dim: int, padding_idx: int
    ) -> nn.Embedding:
        """Return the token embeddings; their pad row stays zero if it cannot be normalised."""
        clap_or_zero = self.config.head == "clap" or self.config.mask_embedding == "zero"
        return nn.Embedding(vocab_size, embedding_dim, None if clap_or_zero else padding_idx)

    def build_encoder(
        self, args: Settings, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> nn.Module:
        """Return the encoder, initialised as BERT's."""
        length = self.config.max_positions or DEFAULT_MAX_POSITIONS
        shape = encoder_shape(self.config, dictionary, length)
        return TransformerEncoder(shape, embed_tokens).apply(init_bert_params)

    def build_lm_head(
        self, embed_dim: int, output_dim: int, activation_fn: str, weight: nn.Parameter | None
    ) -> nn.Module | None:
        """Return the vocabulary head that ``--head`` names, tied to ``weight`` unless None."""
        config: RobertaConfig = self.config
        table: Any = self.sentence_encoder.embed_tokens.weight
        if config.head == "none":
            return None
        if config.head == "clap":
            return ClapHead(
                table,
                config.clap_initial_beta,
                config.clap_normalize,
                config.clap_normalize_hidden,
            )
        eps, norm = config.layer_norm_eps, config.layer_norm
        return RobertaLMHead(embed_dim, output_dim, activation_fn, weight, eps, norm)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        masked_tokens: Tensor | None = None,
        segments: Tensor | None = None,
        token_embeddings: Tensor | None = None,
        qkv_layers: Collection[int] = (),
        documents: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        x_BTC, extra = self.extract_features(
            src_tokens, return_all_hiddens, segments, token_embeddings, qkv_layers, documents
        )
        if features_only:
            return x_BTC, extra
        return self.output_layer(x_BTC, masked_tokens), extra

    def extract_features(
        self,
        src_tokens: Tensor,
        return_all_hiddens: bool = False,
        segments: Tensor | None = None,
        token_embeddings: Tensor | None = None,
        qkv_layers: Collection[int] = (),
        documents: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return hidden states (B, T, C) and ``{"inner_states": ..., "features": ...}``.

        The inner states, on request, are a list of (T, B, C): the output of the embeddings and of
        every layer, before the norm after the last one. The features are the hidden states after
        it. ``qkv_layers`` names layers whose queries, keys and values are put into
        ``extra["qkv"][layer]``.
        """
        if not isinstance(self.sentence_encoder, TransformerEncoder):
            out = self.sentence_encoder(  # a plug-in's, which speaks the original's language
                src_tokens, return_all_hiddens=return_all_hiddens, token_embeddings=token_embeddings
            )
            # the original's encoders speak (T, B, C)
            x_BTC = out["encoder_out"][0].transpose(0, 1)
            inner_TBC = out["encoder_states"] if return_all_hiddens else None
            return x_BTC, {"inner_states": inner_TBC, "features": x_BTC}
        qkv: dict[int, QueryKeyValue] = {}
        x_BTC, hiddens = self.sentence_encoder(
            src_tokens, segments, return_all_hiddens, token_embeddings, qkv_layers, qkv, documents
        )
        inner = [hidden_BTC.transpose(0, 1) for hidden_BTC in hiddens]
        extra = {"inner_states": inner if return_all_hiddens else None, "features": x_BTC}
        return x_BTC, {**extra, "qkv": qkv} if qkv_layers else extra

    def output_layer(
        self, features: Tensor, masked_tokens: Tensor | None = None, **unused: Any
    ) -> Tensor:
        """Return logits from hidden states (B, T, C), of the selected positions if given."""
        return self.vocabulary_head()(features, masked_tokens)

    def vocabulary_head(self) -> VocabularyHead:
        """Return the vocabulary head.

        Raises:
            ConfigError: if the model was built without one.
        """
        if self.lm_head is None:
            raise ConfigError(
                "this model has no vocabulary head (--head none): it gives features and classes, "
                "but predicts no tokens"
            )
        return self.lm_head

    def max_positions(self) -> int:
        """Return the longest input: that of the table where positions are learned."""
        if self.config.position != "learned":
            return UNLIMITED
        return self.config.max_positions or DEFAULT_MAX_POSITIONS


@register_model("roberta", dataclass=RobertaConfig)
class RobertaModel(FairseqEncoderModel):
    """RoBERTa with its vocabulary head and any number of classification heads.

    Attributes:
        encoder_class: what :meth:`build_model` makes; a plug-in may set its own.
    """

    encoder: RobertaEncoder
    encoder_class: type[RobertaEncoder] = RobertaEncoder

    def __init__(self, args: RobertaConfig | Namespace, encoder: RobertaEncoder) -> None:
        super().__init__(encoder)
        self.args, self.config = args, RobertaConfig.from_namespace(args)
        self.classification_heads = nn.ModuleDict()
        if self.config.freeze_encoder:
            # before the optimizer is built, which takes what requires a gradient
            encoder.requires_grad_(False)

    @classmethod
    def build_model(cls, args: Settings, task: Task) -> RobertaModel:
        """Build the model; ``max_positions`` falls back to the task's sample length."""
        config = RobertaConfig.from_namespace(args)
        if config.max_positions is None:  # of a task that says it only by its method
            limit = getattr(task.cfg, "tokens_per_sample", None) or task.max_positions()
            # tasks of plug-ins may state a pair of limits, which says nothing about one table
            length = limit if isinstance(limit, int) else DEFAULT_MAX_POSITIONS
            config = dataclasses.replace(config, max_positions=length)
        return cls(config, cls.encoder_class(config, task.source_dictionary))

    def train(self, mode: bool = True) -> RobertaModel:
        """Switch dropout on or off; a frozen encoder stays without."""
        super().train(mode)
        if self.config.freeze_encoder:
            self.encoder.eval()
        return self

    @property
    def supported_targets(self) -> set[str]:
        """Return what the model predicts: its own input."""
        return {"self"}

    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Return ``(x, extra)``.

        Args:
            src_tokens: int64 (B, T), padded on the right.
            features_only: return hidden states (B, T, C) instead of logits.
            return_all_hiddens: put the layers' outputs into ``extra["inner_states"]``.
            classification_head_name: return this head's scores (B, classes).
            **kwargs: ``masked_tokens`` (bool B, T) projects only these positions, to (N, V);
                ``predicted_positions`` (int64 N, flat) returns the operands of their projection
                (a :class:`~fairseq.modules.heads.Projection`) instead of logits;
                ``qkv_layers`` (numbers) asks for ``extra["qkv"]``, see
                :meth:`RobertaEncoder.extract_features`;
                ``documents`` (int64 B, T) numbers the documents of a packed row, which do not see
                each other; ``segments`` (int64 B, T); ``token_embeddings`` (B, T, C) are used
                instead of the tokens' rows of the table.
        """
        positions_N = kwargs.pop("predicted_positions", None)
        # collaters send lengths, but pads are told by their id
        kwargs.pop("src_lengths", None)
        wants_features = classification_head_name is not None or positions_N is not None
        x: Any
        x, extra = self.encoder(
            src_tokens,
            None,
            features_only=features_only or wants_features,
            return_all_hiddens=return_all_hiddens,
            **kwargs,
        )
        if classification_head_name is not None:
            padding_BT = src_tokens.eq(self.encoder.dictionary.pad())
            x = self.classification_head(classification_head_name)(x, padding_BT)
        elif positions_N is not None:
            hidden_NC = x.flatten(0, 1).index_select(0, positions_N)
            hidden_NC, weight_VC, bias_V = self.projection(hidden_NC)
            # as views: DDP misses parameters that leave the forward pass as they are
            bias_V = None if bias_V is None else bias_V.view_as(bias_V)
            x = Projection(hidden_NC, weight_VC.view_as(weight_VC), bias_V)
        return x, extra

    def embedding_table(self) -> Tensor:
        """Return the input embeddings, (V, C), of unit length if they enter the model so."""
        weight_VC = self.encoder.sentence_encoder.embed_tokens.weight
        clap = self.config.head == "clap" and self.config.clap_normalize
        return F.normalize(weight_VC, dim=-1) if clap else weight_VC

    def flop_shape(self) -> FlopShape | None:
        """See the base class; nobody counted an encoder of a plug-in, or a head without table."""
        encoder, head = self.encoder.sentence_encoder, self.encoder.lm_head
        counted = type(encoder) is TransformerEncoder and (head is None or hasattr(head, "weight"))
        return encoder.flop_shape(head) if counted else None

    @property
    def projection(self) -> Callable[[Tensor], Projection]:
        """Return what makes the operands of the vocabulary projection from hidden states (N, C).

        Raises:
            AttributeError: if a plug-in makes the logits in a way of its own.
        """
        head, output_layer = self.encoder.lm_head, type(self.encoder).output_layer
        # a head of another forward, or an output layer of its own, computes logits we cannot know
        # as one product: tells_projection(model) must then say no
        by_plug_in = output_layer is not RobertaEncoder.output_layer or (
            head is not None and getattr(type(head), "forward", None) is not VocabularyHead.forward
        )
        if by_plug_in:
            raise AttributeError("projection")
        return self.encoder.vocabulary_head().projection

    def classification_head(self, name: str) -> nn.Module:
        """Return a classification head.

        Raises:
            ConfigError: if there is none of this name.
        """
        if name not in self.classification_heads:
            known = ", ".join(self.classification_heads) or "none"
            raise ConfigError(
                f"this model has no classification head '{name}' (it has: {known}); add it with "
                "register_classification_head, or load it with --load-checkpoint-heads"
            )
        return self.classification_heads[name]

    def register_classification_head(
        self, name: str, num_classes: int | None = None, inner_dim: int | None = None, **kwargs: Any
    ) -> None:
        """Add (or replace, with a warning) a classification head.

        Args:
            name: its name.
            num_classes: number of outputs; as before when a head is replaced.
            inner_dim: width of its hidden layer; the model's if None.
            **kwargs: ignored, for old callers.

        Raises:
            ConfigError: if a new head is to have no number of classes, or cannot have this name.
        """
        if name in self.classification_heads:
            old: Any = self.classification_heads[name]
            num_classes = num_classes or old.out_proj.out_features
            logger.warning("classification head '%s' is replaced by a new one", name)
        num_classes = checked_classes(name, num_classes)
        config, longest = self.config, self.config.max_positions or DEFAULT_MAX_POSITIONS
        width, pooled = config.encoder_embed_dim, (config.pooler_dropout, config.pooling, longest)
        head: nn.Module = LinearProbe(width, num_classes, *pooled)
        if config.probe_head == "dense":
            activation = config.pooler_activation_fn
            head = ClassificationHead(width, inner_dim or width, num_classes, activation, *pooled)
        self.classification_heads[name] = head.to(self.encoder.sentence_encoder.embed_tokens.weight)

    def upgrade_state_dict_named(self, state_dict: StateDict, name: str) -> None:
        """Rename old keys, fill tied tensors and settle which heads are loaded, in place."""
        upgrade_roberta_state(state_dict)
        encoder = "encoder.sentence_encoder."
        state_dict.setdefault(f"{encoder}version", torch.tensor([3.0]))
        table: Tensor | None = state_dict.get(f"{encoder}embed_tokens.weight")
        head = self.encoder.lm_head
        if head is None:
            for key in [key for key in state_dict if key.startswith("encoder.lm_head.")]:
                del state_dict[key]
        elif table is None or "weight" not in head.state_dict():
            pass  # the head of a plug-in has the tensors that the file has
        elif not self.config.untie_weights_roberta:
            kept = state_dict.setdefault("encoder.lm_head.weight", table)
            if kept.shape == table.shape and not torch.equal(kept, table):
                logger.warning(
                    "the file's output weights differ from its embeddings, but this model ties "
                    "them: the embeddings are used (--untie-weights-roberta keeps both)"
                )
            state_dict["encoder.lm_head.weight"] = table
        self._upgrade_classification_heads(state_dict)

    def _upgrade_classification_heads(self, state: StateDict) -> None:
        """Drop heads that do not fit, add those that are asked for, fill in those that are new."""
        prefix = "classification_heads."
        names = sorted({key.split(".")[1] for key in state if key.startswith(prefix)})
        for name in names:
            layers = [state.get(f"{prefix}{name}.{x}.weight") for x in ("out_proj", "dense")]
            out, dense = (() if layer is None else tuple(layer.shape) for layer in layers)
            # classes, inner width, input width; without a hidden layer classes and input width
            shape = (*out[:1], *dense) if dense else out
            complete = len(shape) == (3 if self.config.probe_head == "dense" else 2)
            known = name in self.classification_heads
            if not known and self.config.load_checkpoint_heads and complete:
                self.register_classification_head(name, *shape[:2])
            head: Any = dict(self.classification_heads.items()).get(name)
            if head is not None and len(shape) == 3 and head.shape[::2] == shape[::2]:
                head.set_inner_width(shape[1])  # growth leaves the hidden layer as wide as it was
            if head is None or head.shape != shape:
                reason = "there is none here"
                if head is not None:
                    reason = (
                        "the one here has another shape and begins with new weights ((classes, "
                        f"inner width, input width) are {head.shape} here, {shape} in the file)"
                    )
                logger.warning("classification head '%s' is not loaded: %s", name, reason)
                for key in [key for key in state if key.startswith(f"{prefix}{name}.")]:
                    del state[key]
        for name in self.classification_heads:
            if names and name not in names:
                logger.warning(
                    "classification head '%s' begins with new weights: the file has only %s",
                    name,
                    ", ".join(names),
                )
        for key, value in self.classification_heads.state_dict().items():
            state.setdefault(prefix + key, value)

    def _mismatches(self, state: StateDict) -> list[str]:
        """Return what does not fit, as lines; say what to do about tables of other lengths."""
        rows = super()._mismatches(state)
        for table, advice in (
            ("embed_tokens", self._vocabulary_advice),
            ("embed_positions", self._positions_advice),
        ):
            key = f"encoder.sentence_encoder.{table}.weight"
            here, there = self.state_dict().get(key), state.get(key)
            if here is not None and there is not None and len(here) != len(there):
                rows.append(advice(len(here), len(there)))
        return rows

    @staticmethod
    def _vocabulary_advice(here: int, there: int) -> str:
        return (
            f"the checkpoint knows {there} tokens, the dictionary of the data {here}: binarize the "
            "data with the checkpoint's dict.txt (--srcdict), and give the same --mask-embedding"
        )

    def _positions_advice(self, here: int, there: int) -> str:
        limit = there - here + self.encoder.max_positions()
        return (
            f"the checkpoint has {limit} learned positions, the model was asked for "
            f"{self.encoder.max_positions()}: give --max-positions {limit} (and, for longer "
            "inputs, --shorten-method truncate)"
        )

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        names = ("roberta.base", "roberta.large", "roberta.large.mnli", "roberta.large.wsc")
        return {name: f"{PUBLISHED}/{name}.tar.gz" for name in names}

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | PathLike[str],
        checkpoint_file: str = "model.pt",
        data_name_or_path: str | PathLike[str] = ".",
        bpe: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a RoBERTa for use.

        Args:
            model_name_or_path: folder, archive or published name.
            checkpoint_file: file inside the folder.
            data_name_or_path: folder with ``dict.txt``; relative to the model folder if it starts
                with a dot.
            bpe: how text is split; None for what the checkpoint names, else what its dictionary
                was made with (GPT-2 pieces or words).
            **kwargs: override any setting of the checkpoint.

        Returns:
            a :class:`~fairseq.models.roberta.hub_interface.RobertaHubInterface`.
        """
        return super().from_pretrained(
            model_name_or_path,
            checkpoint_file,
            data_name_or_path,
            bpe=bpe,
            **{"load_checkpoint_heads": True, **kwargs},
        )

    @classmethod
    def hub_interface(cls, args: Settings, task: Task, models: Sequence[BaseFairseqModel]) -> Any:
        from fairseq.models.roberta.hub_interface import RobertaHubInterface

        if isinstance(models[0], FairseqLanguageModel):
            raise wrong_kind(models[0], "the checkpoint", "no masked language model")
        if len(models) > 1:
            raise ConfigError(
                f"a RoBERTa at hand is one model, not an ensemble of {len(models)}: name one "
                "checkpoint_file (fairseq-average makes one of several)"
            )
        return RobertaHubInterface(args, task, models[0])

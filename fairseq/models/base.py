"""What every model promises to the trainer, the checkpoints and the hub.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.aliases import NAMES
from fairseq.catalog import HOOKS
from fairseq.config.build import plain
from fairseq.config.registry import load_attribute
from fairseq.config.schema import FairseqDataclass
from fairseq.config.upgrade import upgrade_args
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError, ConfigError
from fairseq.lazy import lazy_names
from fairseq.modules.flops import FlopShape
from fairseq.protocols import Sample, Settings, StateDict, Task

__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])

Activation = Literal["relu", "gelu", "gelu_fast", "gelu_accurate", "tanh", "linear", "swish"]


class BaseFairseqModel(nn.Module):
    """Base of every model.

    Attributes:
        runs_once: whether gradients reach all parameters in a backward pass through a run of the
            model; if not, they are averaged over processes after that, as with a criterion's.
    """

    runs_once = True

    if TYPE_CHECKING:  # what only some models have: ask with hasattr first
        config: Any
        classification_heads: nn.ModuleDict
        classification_head: Callable[[str], nn.Module]
        register_classification_head: Callable[..., None]

        @property
        def projection(self) -> Callable[[Tensor], Any]:
            """Return what makes the operands of the vocabulary projection from (N, C)."""

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add flags to ``parser``; models with a configuration dataclass need not."""

    @classmethod
    def build_model(cls, args: Any, task: Task) -> BaseFairseqModel:
        """Build an instance from its configuration and the task it serves."""
        raise NotImplementedError(f"{cls.__name__} must define build_model")

    def get_targets(self, sample: Sample, net_output: Tensor | tuple[Tensor, Any]) -> Tensor:
        """Return the targets of a batch."""
        return sample["target"]

    def get_normalized_probs(
        self, net_output: Tensor | tuple[Tensor, Any], log_probs: bool, sample: Sample | None = None
    ) -> Tensor:
        """Return (log-)probabilities in fp32 from a network's output."""
        decoder: Any = getattr(self, "decoder", None)
        if decoder is not None:
            return decoder.get_normalized_probs(net_output, log_probs, sample)
        # in half precision exp and the sum over a large vocabulary lose digits, hence float()
        logits = net_output[0] if isinstance(net_output, tuple) else net_output
        return (F.log_softmax if log_probs else F.softmax)(logits.float(), dim=-1)

    def extract_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return hidden states instead of logits."""
        return self(*args, **kwargs)

    def max_positions(self) -> Any:
        """Return the longest input, None for no limit."""
        return None

    def flop_shape(self) -> FlopShape | None:
        """Return what the cost of the model depends on, None if nobody counted it."""
        return None

    def flops(self, rows: int, length: int, predicted: int) -> int | None:
        """Return the operations of a forward pass, None if unknown; training costs three.

        Args:
            rows: B.
            length: T, padding included.
            predicted: tokens that are projected on the vocabulary.
        """
        shape = self.flop_shape()
        return None if shape is None else shape.forward(rows, length, predicted)

    def load_state_dict(  # type: ignore[override]
        self,
        state_dict: StateDict,
        strict: bool = True,
        model_cfg: Settings | None = None,
        args: Settings | None = None,
    ) -> Any:
        """Load a state dict of any supported age.

        Args:
            state_dict: tensors by name; old names are upgraded on a copy.
            strict: whether missing or surplus names are errors.
            model_cfg: configuration of this model (its ``*_layers_to_keep`` prune the state);
                the model's own if None.
            args: the same, for old callers.

        Raises:
            CheckpointError: listing every missing, surplus and misshapen tensor.
        """
        state = dict(state_dict)
        self.upgrade_state_dict(state)
        state = prune_state_dict(state, model_cfg or args or getattr(self, "config", None))
        problems = self._mismatches(state) if strict else []
        if problems:
            raise CheckpointError(
                "the checkpoint does not fit the model:\n  " + "\n  ".join(problems)
            )
        return super().load_state_dict(state, strict)

    def _mismatches(self, state: StateDict) -> list[str]:
        mine = self.state_dict()
        rows = [f"missing in the file: {name}" for name in mine if name not in state]
        rows += [f"not in the model: {name}" for name in state if name not in mine]
        rows += [
            f"{name}: {tuple(state[name].shape)} in the file, "
            f"{tuple(mine[name].shape)} in the model"
            for name in mine
            if name in state and mine[name].shape != state[name].shape
        ]
        # another architecture differs in every tensor; thirty lines tell that as well
        return rows[:30] + ([f"... and {len(rows) - 30} more"] if len(rows) > 30 else [])

    def upgrade_state_dict(self, state_dict: StateDict) -> None:
        """Rename what older versions called otherwise, in place."""
        self.upgrade_state_dict_named(state_dict, "")

    def upgrade_state_dict_named(self, state_dict: StateDict, name: str) -> None:
        """Upgrade the part of ``state_dict`` whose names start with ``name``."""
        for child_name, child in self.named_children():
            upgrade = getattr(child, "upgrade_state_dict_named", None)
            if upgrade is not None:
                upgrade(state_dict, f"{name}.{child_name}" if name else child_name)

    def formed_once(self) -> contextlib.AbstractContextManager[None]:
        """Return a context of one update, inside which no weight changes.

        A model that computes its weights from others may do so once, however many micro-batches
        follow; gradients are complete when the context ends.
        """
        return contextlib.nullcontext()

    def set_num_updates(self, num_updates: int) -> None:
        """Tell every module that wants to know how many updates were done."""
        self._tell("set_num_updates", num_updates)

    def set_epoch(self, epoch: int) -> None:
        """Tell every module that wants to know which epoch begins."""
        self._tell("set_epoch", epoch)

    def _tell(self, method: str, value: int) -> None:
        for module in self.modules():
            listener: Any = getattr(module, method, None)
            # self is the one that is telling: it would go round in circles
            if module is not self and listener is not None:
                listener(value)

    def prepare_for_inference_(self, cfg: Settings) -> None:
        """Switch to evaluation; nothing else needs to be prepared here."""
        self.eval()

    def make_generation_fast_(self, **kwargs: Any) -> None:
        """Switch to evaluation; kept for old callers."""
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | PathLike[str],
        checkpoint_file: str = "model.pt",
        data_name_or_path: str | PathLike[str] = ".",
        **kwargs: Any,
    ) -> Any:
        """Load models from a folder, an archive or a published name; see :mod:`fairseq.hub.load`.

        Returns:
            a :class:`fairseq.hub.language_model.GeneratorHubInterface`, which holds them.
        """
        load = load_attribute(HOOKS["from_pretrained"])
        return load(
            cls,
            model_name_or_path,
            checkpoint_file,
            data_name_or_path,
            **kwargs,
        )

    @classmethod
    def hub_interface(cls, args: Settings, task: Task, models: Sequence[BaseFairseqModel]) -> Any:
        """Return what :meth:`from_pretrained` hands out, None for the interface that generates.

        Raises:
            CheckpointError: if the checkpoint holds another kind of model.
        """
        if issubclass(cls, FairseqLanguageModel):
            for model in models:
                if not isinstance(model, FairseqLanguageModel):
                    raise wrong_kind(model, "the checkpoint", "no causal language model")
        return None

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        """Return published names and where they can be had."""
        return {}


def wrong_kind(model: BaseFairseqModel, path: str, what: str) -> CheckpointError:
    """Return the error for a checkpoint that holds another kind of model than was asked for."""
    right = (
        "TransformerLanguageModel" if isinstance(model, FairseqLanguageModel) else "RobertaModel"
    )
    return CheckpointError(
        f"{path} holds a {type(model).__name__}, which is {what}: load it with "
        f"{right}.from_pretrained, or name another checkpoint_file"
    )


class FairseqEncoder(nn.Module):
    """Base of encoders: token ids in, hidden states out."""

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: Any) -> Any:
        """Encode ``src_tokens`` (B, T)."""
        raise NotImplementedError

    def max_positions(self) -> int | float:
        """Return the longest input."""
        return 1e6

    def set_num_updates(self, num_updates: int) -> None:
        """Accept the number of updates."""


class FairseqEncoderModel(BaseFairseqModel):
    """A model that is an encoder with something on top."""

    def __init__(self, encoder: FairseqEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        assert isinstance(encoder, FairseqEncoder), type(encoder)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: Any) -> Any:
        """Run the encoder."""
        return self.encoder(src_tokens, src_lengths, **kwargs)

    def max_positions(self) -> Any:
        return self.encoder.max_positions()


class FairseqEncoderDecoderModel(BaseFairseqModel):
    """A model of an encoder and a decoder, for plug-ins: there is none of them here."""

    def __init__(self, encoder: FairseqEncoder, decoder: FairseqDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor, **kwargs: Any
    ) -> Any:
        """Run the encoder on the source, then the decoder on the target so far."""
        encoded = self.encoder(src_tokens, src_lengths=src_lengths, **kwargs)
        return self.decoder(prev_output_tokens, encoder_out=encoded, **kwargs)

    def max_positions(self) -> Any:
        """Return the longest source and the longest target."""
        return self.encoder.max_positions(), self.decoder.max_positions()


class FairseqDecoder(nn.Module):
    """Base of decoders: previous tokens in, logits of the next out."""

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.adaptive_softmax: Any = None

    def forward(self, prev_output_tokens: Tensor, encoder_out: object = None, **kwargs: Any) -> Any:
        """Return ``(logits, extra)`` for ``prev_output_tokens`` (B, T)."""
        features, extra = self.extract_features(prev_output_tokens, encoder_out, **kwargs)
        return self.output_layer(features), extra

    def extract_features(
        self, prev_output_tokens: Tensor, encoder_out: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """Return ``(hidden states, extra)``."""
        raise NotImplementedError

    def output_layer(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Return logits from hidden states."""
        raise NotImplementedError

    def get_normalized_probs(
        self, net_output: Tensor | tuple[Tensor, Any], log_probs: bool, sample: Sample | None = None
    ) -> Tensor:
        """Return (log-)probabilities in fp32."""
        if self.adaptive_softmax is None:
            return (F.log_softmax if log_probs else F.softmax)(net_output[0].float(), dim=-1)
        log_p_BTV = self.adaptive_softmax.get_log_prob(net_output[0])
        return log_p_BTV if log_probs else log_p_BTV.exp()

    def max_positions(self) -> int | float:
        """Return the longest input."""
        return 1e6


class FairseqIncrementalDecoder(FairseqDecoder):
    """Base of decoders that can extend a sequence token by token."""

    def reorder_incremental_state(self, incremental_state: Any, new_order: Tensor) -> None:
        """Select the cached states of the hypotheses that go on."""

    def set_beam_size(self, beam_size: int) -> None:
        """Accept the beam size."""


class FairseqLanguageModel(BaseFairseqModel):
    """A model that is a decoder without an encoder."""

    def __init__(self, decoder: FairseqDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        assert isinstance(decoder, FairseqDecoder), type(decoder)

    def forward(self, src_tokens: Tensor, **kwargs: Any) -> Any:
        """Return ``(logits, extra)`` for the tokens (B, T)."""
        return self.decoder(src_tokens, **kwargs)

    def extract_features(self, src_tokens: Tensor, **kwargs: Any) -> Any:
        return self.decoder.extract_features(src_tokens, **kwargs)

    def max_positions(self) -> Any:
        return self.decoder.max_positions()

    @property
    def supported_targets(self) -> set[str]:
        """Return what the model can predict."""
        return {"future"}


def count_parameters(model: nn.Module, trained_only: bool = False) -> int:
    """Return the number of parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained_only)


def kept_layers(config: Settings, side: str) -> list[int] | None:
    """Return the layers that ``encoder_layers_to_keep`` or ``decoder_layers_to_keep`` names.

    Args:
        config: the configuration of a model.
        side: ``encoder`` or ``decoder``.

    Returns:
        their numbers, ascending; None if all are kept.

    Raises:
        ConfigError: if the setting is not a list of numbers such as ``0,2,4``.
    """
    text = getattr(config, f"{side}_layers_to_keep", None)
    if not text:
        return None
    try:
        return sorted({int(layer) for layer in text.split(",")})
    except ValueError:
        raise ConfigError(
            f"--{side}-layers-to-keep must be numbers such as 0,2,4, not {text!r}"
        ) from None


@dataclasses.dataclass
class ModelConfig(FairseqDataclass):
    """Base of the settings of this project's models, which are read from old names, too.

    Attributes:
        side: ``encoder`` or ``decoder``, what the names of sizes begin with.
    """

    side: ClassVar[str]

    @classmethod
    def from_namespace(cls, args: Settings) -> Self:
        """Read the settings from ``args``, old names included."""
        if isinstance(args, cls):
            return args
        values = plain(args)
        values = values if isinstance(values, dict) else vars(args)
        fields = [field.name for field in dataclasses.fields(cls)]
        values = upgrade_args(values, "model", fields=fields)
        config = super().from_namespace(argparse.Namespace(**values))
        config._name = values.get("_name") or values.get("arch")
        return config

    def layers(self) -> int:
        """Return how many layers are built: those that are kept, else all."""
        kept = kept_layers(self, self.side)
        return getattr(self, f"{self.side}_layers") if kept is None else len(kept)


def prune_state_dict(state_dict: Mapping[str, Any], model_cfg: Settings | None) -> dict[str, Any]:
    """Return the state of the layers that are kept, renumbered.

    A state that has as many layers as are kept was pruned before; it comes back as it is.

    Args:
        state_dict: tensors by name.
        model_cfg: configuration with ``encoder_layers_to_keep`` or ``decoder_layers_to_keep``.
    """
    state = dict(state_dict)
    for side in ("encoder", "decoder"):
        keep = kept_layers(model_cfg, side)
        pattern = re.compile(rf"({side}\.(?:.*\.)?layers\.)(\d+)(\..*)")
        layers = {name: match for name in state if (match := pattern.match(name))}
        # the same settings are used again whenever a pruned model is loaded
        if keep is None or len({int(match[2]) for match in layers.values()}) == len(keep):
            continue
        pruned = {name: tensor for name, tensor in state.items() if name not in layers}
        for name, match in layers.items():
            if int(match[2]) in keep:
                # layers of the model are numbered without gaps
                pruned[match[1] + str(keep.index(int(match[2]))) + match[3]] = state[name]
        state = pruned
    return state


class EncoderOut(NamedTuple):
    """What encoders of plug-ins return: hidden states (T, B, C) and what belongs to them."""

    encoder_out: Tensor
    encoder_padding_mask: Tensor | None
    encoder_embedding: Tensor | None
    encoder_states: list[Tensor] | None
    src_tokens: Tensor | None
    src_lengths: Tensor | None

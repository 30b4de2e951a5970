"""Learning to grow: models whose weights are a linear function of a smaller model's.

The large model exists as a skeleton without weights. In every forward pass they are formed from the
operator and the source's weights and handed to the skeleton, so that tasks, criterions and the
trainer see an ordinary model of which only the operator is trained. A checkpoint holds operator,
source weights and both configurations.

Source: Wang et al. 2023 (LiGO), section 3.3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fairseq.checkpoint.layout import config_of, descended, read_state
from fairseq.config.build import plain
from fairseq.config.schema import FairseqDataclass, option
from fairseq.errors import ConfigError, MissingFileError, UnsupportedError
from fairseq.files.io import checkpoints_there
from fairseq.growth.ligo import apply_operator
from fairseq.growth.ligo_init import new_operator
from fairseq.growth.sizes import Config, Pair, check_pair
from fairseq.growth.tensors import Parts, join, split
from fairseq.models import register_model
from fairseq.models.base import BaseFairseqModel
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.model import RobertaModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.models.transformer_lm.config import TransformerLanguageModelConfig
from fairseq.modules.flops import FlopShape
from fairseq.protocols import Task
from fairseq.tasks.loading import model_of

DepthInit = Literal[
    "stack",
    "interlace",
    "rand",
    "sel",
    "rand_softmax",
    "stack_noisy",
    "interlace_noisy",
    "rand_noisy",
    "sel_noisy",
]
WidthInit = Literal["rand", "rand_softmax", "sel", "sel_noisy", "zero", "average", "copy"]
TUNABLE = ("width", "depth", "residual")


@dataclass
class LigoSettings(FairseqDataclass):
    """What a learned growth operator adds to the settings of the large model."""

    ligo_source: str | None = option(None, "checkpoint of the small model", new=True, path=True)
    ligo_depth_init: DepthInit = option("stack_noisy", "first mixture of layers", new=True)
    ligo_width_init: WidthInit = option("rand", "first values of new channels", new=True)
    ligo_noise: list[float] = option(
        [0.03, 0.03], "noise of the first values: of depth, of width", new=True, minimum=0
    )
    ligo_share: Literal["layer", "global", "none"] = option(
        "layer", "a width matrix for every layer, one for all, or one for every use", new=True
    )
    ligo_tune: str = option("width,depth", "what is trained: width, depth, residual", new=True)
    ligo_in_matrix: Literal["same", "pinv", "orthonormal"] = option(
        "same", "what readers are multiplied with", new=True
    )
    ligo_source_config: str | None = option(
        None, "settings of the small model, filled in", new=True
    )


@dataclass
class LigoRobertaConfig(RobertaConfig, LigoSettings):
    """Settings of a RoBERTa that grows from a smaller one."""


@dataclass
class LigoTransformerLanguageModelConfig(TransformerLanguageModelConfig, LigoSettings):
    """Settings of a causal language model that grows from a smaller one."""


LigoConfig = LigoRobertaConfig | LigoTransformerLanguageModelConfig


class Tensors(nn.Module):
    """Tensors under dotted names.

    Args:
        tensors: by name.
        trained: tells which are trained; None makes buffers of all.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], trained: Callable[[str], bool] | None = None
    ) -> None:
        super().__init__()
        for name, x in tensors.items():
            module: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            if trained is None:
                module.register_buffer(last, x)
            else:
                module.register_parameter(last, nn.Parameter(x, requires_grad=trained(name)))

    def by_name(self) -> dict[str, Tensor]:
        """Return the tensors."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}


class _Caller(nn.Module):
    """Calls any method through ``forward``, the only one that can be called functionally."""

    def __init__(self, model: BaseFairseqModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *args: object, **kwargs: object) -> Any:
        """Return the result of the model's method."""
        return getattr(self.model, method)(*args, **kwargs)


def hollow(model: BaseFairseqModel) -> BaseFairseqModel:
    """Replace the parameters of a model, in place, by ones without memory; buffers stay."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty_like(weight, device="meta")
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
    return model


class LigoModel(BaseFairseqModel):
    """A large model that is a function of a small one.

    Args:
        config: settings of the large model and of the operator.
        pair: the plain configurations of both models.
        skeleton: the large model; it loses its weights.
        source: the small model's weights.
        lineage: the runs that they come from, as :func:`fairseq.checkpoint.layout.descended` tells
            them; empty for a model from a checkpoint, which holds its own.
    """

    runs_once = False  # one pass through the operator ends the update, see formed_once
    target_model: ClassVar[type[BaseFairseqModel]]
    target_config: ClassVar[type[RobertaConfig] | type[TransformerLanguageModelConfig]]

    def __init__(
        self,
        config: LigoConfig,
        pair: Pair,
        skeleton: BaseFairseqModel,
        source: Parts,
        lineage: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.config = self.args = config
        self.pair, self.lineage = pair, lineage
        tuned = _tuned(config.ligo_tune)
        operator = new_operator(
            source,
            pair,
            None,
            config.ligo_depth_init,
            config.ligo_width_init,
            _noise(config.ligo_noise),
            config.ligo_share,
        )
        # shapes are those of the large model, which the operator cannot know from the source
        if "residual" in tuned:
            shapes = {n: x for n, x in skeleton.state_dict().items() if x.is_floating_point()}
            shapes = join(split(shapes, pair.one_table))
            operator |= {
                f"residual.{name}": torch.empty_like(x, dtype=torch.float32).uniform_(-0.01, 0.01)
                for name, x in shapes.items()
                # the number of a layout is no weight
                if not name.endswith("version")
            }
        self.operator = Tensors(operator, lambda name: name.partition(".")[0] in tuned)
        self.source = Tensors(join(source))
        # in a list, so that it is no child: what has no memory can neither be moved nor saved
        self._skeleton = [_Caller(hollow(skeleton))]
        self._formed: dict[str, Tensor] | None = None

    @classmethod
    def build_model(cls, args: LigoConfig, task: Task) -> LigoModel:
        """Build the model; the source is read, or, from a checkpoint of ours, only its settings.

        The settings of the model, :attr:`config`, name those of its source: checkpoints keep them.

        Raises:
            ConfigError: if no source is named, or it does not fit.
            MissingFileError: if it does not exist.
        """
        config = args.settled(getattr(task.cfg, "tokens_per_sample", None))
        target = settings_of_target(config, cls.target_config)
        skeleton = cls.target_model.build_model(target, task)
        source_config, state, lineage = _source(config, task, cls.target_model, cls.target_config)
        pair = Pair(source_config, target)
        check_pair(pair)
        recalled = json.dumps(plain(source_config))
        config = dataclasses.replace(config, ligo_source_config=recalled)
        return cls(config, pair, skeleton, split(state, pair.one_table), lineage)

    def grown(self) -> dict[str, Tensor]:
        """Return the weights of the large model, by name, differentiable in the operator."""
        source = split(self.source.by_name())
        device = next(iter(source.shared.values())).device.type
        # formed in fp32: autocast rounds the finished weights where they are used, once
        with torch.autocast(device, enabled=False):
            parts = apply_operator(
                source,
                self.operator.by_name(),
                self.pair,
                self.config.ligo_share,
                self.config.ligo_in_matrix,
            )
        return join(parts, self.pair.one_table)

    @contextlib.contextmanager
    def formed_once(self) -> Iterator[None]:
        """Form the weights once for all micro-batches inside.

        Gradients gather on the weights and go through the operator in one backward pass at the end.
        """
        grown = self.grown()
        # by identity, since a tied head is its table; what no trained tensor touches stays as it is
        roots = {id(x): x for x in grown.values() if x.requires_grad}
        leaves = {key: x.detach().requires_grad_() for key, x in roots.items()}
        self._formed = {name: leaves.get(id(x), x) for name, x in grown.items()}
        try:
            yield
        finally:
            self._formed = None
        used = [key for key, leaf in leaves.items() if leaf.grad is not None]
        torch.autograd.backward([roots[key] for key in used], [leaves[key].grad for key in used])

    def _call(self, method: str, *args: object, **kwargs: object) -> Any:
        formed = self.grown() if self._formed is None else self._formed
        weights = {f"model.{name}": x for name, x in formed.items()}
        return functional_call(self._skeleton[0], weights, (method, *args), kwargs)

    def forward(self, *args: object, **kwargs: object) -> Any:
        """Return what the large model returns."""
        return self._call("forward", *args, **kwargs)

    def projection(self, hidden_NC: Tensor) -> Any:
        """Return the operands of the vocabulary projection."""
        return self._call("projection", hidden_NC)

    def extract_features(self, *args: object, **kwargs: object) -> Any:
        return self._call("extract_features", *args, **kwargs)

    def embedding_table(self) -> Tensor:
        """Return the input embeddings."""
        return self._call("embedding_table")

    def flop_shape(self) -> FlopShape | None:
        """Return what the large model's cost depends on; forming its weights is not counted."""
        shape: FlopShape | None = self._skeleton[0].model.flop_shape()
        return shape

    def max_positions(self) -> Any:
        return self._skeleton[0].model.max_positions()

    @property
    def supported_targets(self) -> set[str]:
        """Return what the model predicts."""
        targets: Any = self._skeleton[0].model.supported_targets
        return targets

    def hidden_modules(self) -> list[nn.Module]:
        """Return the modules that compute, which are no children: they own no weights."""
        return list(self._skeleton[0].modules())

    def train(self, mode: bool = True) -> LigoModel:
        """Switch dropout on or off, in the skeleton too."""
        super().train(mode)
        self._skeleton[0].train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LigoModel:
        """Move to a device; of the skeleton, the tables of positions go along."""
        super()._apply(fn, recurse)
        for module in self.hidden_modules():
            for name, x in module._buffers.items():
                module._buffers[name] = None if x is None else fn(x)
        return self


def settings_of_target(config: LigoConfig, kind: type[Config]) -> Config:
    """Return the settings of the large model alone."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}
    # the model ligo_roberta makes a roberta
    name = str(config._name or "").removeprefix("ligo_")
    return kind(**{**values, "_name": name or None})


def _tuned(text: str) -> list[str]:
    tuned = [part.strip() for part in text.split(",")]
    unknown = [part for part in tuned if part not in TUNABLE]
    if unknown:
        raise ConfigError(f"--ligo-tune: '{unknown[0]}' is none of {', '.join(TUNABLE)}")
    return tuned


def _noise(values: list[float]) -> tuple[float, float]:
    if len(values) not in (1, 2) or min(values) < 0:
        raise ConfigError("--ligo-noise takes one or two numbers of 0 or more, such as 0.03,0.03")
    return values[0], values[-1]


def _source(
    config: LigoConfig, task: Task, model: type[BaseFairseqModel], kind: type[Config]
) -> tuple[Config, dict[str, Tensor], list[dict[str, Any]]]:
    """Return the settings, the weights and the lineage of the small model.

    A configuration that knows the settings comes from a checkpoint that holds the weights, too.
    """
    if config.ligo_source_config is not None:
        known = kind.from_namespace(json.loads(config.ligo_source_config))
        return known, model.build_model(known, task).state_dict(), []
    if config.ligo_source is None:
        raise ConfigError("--ligo-source must name the checkpoint of the small model")
    if not os.path.isfile(config.ligo_source):
        there = checkpoints_there(config.ligo_source)
        raise MissingFileError(f"--ligo-source not found: {config.ligo_source}. {there}")
    state = read_state(config.ligo_source)
    small = config_of(state).model
    if not isinstance(small, kind) or isinstance(small, LigoSettings):
        name = getattr(small, "_name", None)
        raise UnsupportedError(
            f"--ligo-source {config.ligo_source} holds the model {name}, which cannot become a "
            f"{model.__name__}"
        )
    small = dataclasses.replace(small)
    weights = model_of(state["model"], small, task, config.ligo_source).state_dict()
    return small, weights, descended(state, config.ligo_source, "ligo")


@register_model("ligo_roberta", dataclass=LigoRobertaConfig)
class LigoRoberta(LigoModel):
    """A RoBERTa that grows from a smaller one."""

    target_model, target_config = RobertaModel, RobertaConfig


@register_model("ligo_transformer_lm", dataclass=LigoTransformerLanguageModelConfig)
class LigoTransformerLanguageModel(LigoModel):
    """A causal language model that grows from a smaller one."""

    target_model, target_config = TransformerLanguageModel, TransformerLanguageModelConfig

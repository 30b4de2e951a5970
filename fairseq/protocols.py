"""What the parts of the house may ask of each other: batch, task, model, criterion, settings.

Packages are ordered and import only those below, so a criterion cannot import the classes of
tasks or models. Each protocol lists what packages below the class ask of it; those above it import
the class itself. Plug-ins satisfy them by deriving from the ``Fairseq...`` bases.

Shapes: B batch, T time, N predicted positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypedDict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fairseq.data.storage.dictionary import Dictionary


class NetInput(TypedDict, total=False):
    """Keyword arguments of a model's forward pass; plug-ins may add their own."""

    src_tokens: Tensor  # int64 (B, T), padded
    src_lengths: Tensor  # int64 (B,)
    src_id: Tensor  # int64 (B,): the number of each item in its dataset
    prev_output_tokens: Tensor  # int64 (B, T), of models with an encoder and a decoder
    documents: Tensor  # int64 (B, T): attention stays within tokens of one number
    segments: Tensor  # int64 (B, T): the first or the second text of a pair


class Sample(TypedDict, total=False):
    """One batch, as a collater makes it.

    Every key can be missing: an empty batch is ``{}``, and foreign collaters leave out what only
    this project adds. Plug-ins may add keys; a function that reads keys by a name it computes takes
    a ``Mapping[str, Any]``, which every batch is.
    """

    id: Tensor  # int64 (B,)
    net_input: NetInput
    target: Tensor  # int64 (B, T) of language models, (B,) of classes, float of regressions
    predicted_positions: Tensor  # int64 (N,): ascending indices into the flattened (B, T)
    distinct_targets: tuple[Tensor, Tensor, Tensor]  # see fairseq.ops.contrastive_weight_tying
    nsentences: int
    ntokens: int  # padding does not count
    is_filler: bool  # in validation, instead of a batch that a process does not have; not counted
    start_indices: list[int]  # B: where the scored tokens begin, after their context


Limits: TypeAlias = "float | Sequence[float | None] | None"
"""The longest sample: one number, one for each length of an item, or None for no limit."""

LogValue: TypeAlias = "Tensor | float"
"""A figure of one batch; a tensor stays on the device until somebody prints it."""

LoggingOutput: TypeAlias = dict[str, Any]
"""Figures of one batch by name, :data:`LogValue` each in the house; plug-ins may keep lists."""

StateDict: TypeAlias = dict[str, Any]
"""What a checkpoint keeps of an object: tensors, plain values and dicts of them, by name."""


class Settings(Protocol):
    """A configuration dataclass, or the flat ``Namespace`` of old plug-ins.

    Only where both can arrive; everything else takes the dataclass that it reads. Which fields
    there are is the component's affair: ask with ``getattr`` and a default.
    """

    @property
    def __dict__(self) -> dict[str, Any]: ...  # type: ignore[override]


class Task(Protocol):
    """What models, criterions, decoding and checkpoints ask of a task."""

    @property
    def cfg(self) -> Any:
        """The task's configuration; its class depends on the task."""

    @property
    def source_dictionary(self) -> Dictionary:
        """What gives the ids of a model's input their meaning."""

    @property
    def target_dictionary(self) -> Dictionary:
        """What gives the ids of a model's output their meaning."""

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any: ...

    def first_token(self) -> int: ...

    def max_positions(self) -> Limits: ...

    def post_save(self, path: str, num_updates: int) -> None: ...

    def get_checkpoint_dict(self) -> StateDict: ...


class Model(Protocol):
    """What criterions and tasks ask of a model, which may be wrapped for several processes."""

    training: bool
    # only some have these: ask with hasattr first
    classification_heads: nn.ModuleDict

    @property
    def projection(self) -> Callable[[Tensor], Any]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def set_num_updates(self, num_updates: int) -> None: ...

    def set_epoch(self, epoch: int) -> None: ...

    def get_targets(self, sample: Sample, net_output: Any) -> Tensor: ...

    def get_normalized_probs(
        self, net_output: Any, log_probs: bool, sample: Sample | None = None
    ) -> Tensor: ...

    def max_positions(self) -> Limits: ...


class Criterion(Protocol):
    """What tasks ask of a criterion."""

    def __call__(
        self, model: Model, sample: Sample, reduce: bool = True
    ) -> tuple[Tensor, LogValue, LoggingOutput]: ...

    @staticmethod
    def logging_outputs_can_be_summed() -> bool: ...

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[LoggingOutput]) -> None: ...


class Context(Protocol):
    """What torch hands to ``forward`` and ``backward`` of a ``torch.autograd.Function``.

    A function may hang further values on it; those are declared where they are set.
    """

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...

"""The registry of growth methods, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq import catalog
from fairseq.config.registry import Registry
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.growth.sizes import Config, Pair, check_pair, settings_reason
from fairseq.growth.tensors import Parts, State, join, split
from fairseq.models.base import prune_state_dict
from fairseq.rng import derive_seed

GROWTH = Registry("growth method", catalog.GROWTH)
# layers of the source and of the target -> the source's layer for every layer of the target
LayerMap = Callable[[int, int], list[int]]


@dataclass(frozen=True)
class Options:
    """What methods may be told; each uses what concerns it.

    Attributes:
        layers: the source's layer for every layer of the target; None for the method's own map.
        seed: of everything that is drawn.
        noise: standard deviation of noise on copies, in units of the tensor's.
        norms: with ``aki``, whose layer norms new channels get: the layer's ``own``, or those of
            the layer ``above``.
        fill: with ``copy``, what new entries hold: ``fresh`` weights or ``zero``.
        maps: index maps ``g_emb``, ``g_head.L``, ``g_qkv.L``, ``g_ffn.L`` instead of drawn ones.
        fresh: a new model of the target's sizes, for methods that need one.
        operator: tensors of a learned operator, for ``ligo``.
        share, in_matrix: how it was learned; see :func:`fairseq.growth.ligo.ligo_maps`.
    """

    layers: Sequence[int] | None = None
    seed: int = 1
    noise: float | None = None
    norms: str = "own"
    fill: str = "fresh"
    maps: Mapping[str, Tensor] | None = None
    fresh: State | None = None
    operator: Mapping[str, Tensor] | None = None
    share: str = "layer"
    in_matrix: str = "same"

    def layer_map(self, pair: Pair, usual: LayerMap) -> list[int]:
        """Return ``layers``, or the usual map where none are told."""
        if self.layers is not None:
            return list(self.layers)
        return usual(pair.small.layers, pair.large.layers)

    def generator(self, purpose: str, layer: int | None = None) -> torch.Generator:
        """Return a generator of its own for a purpose, and a layer."""
        drawn = torch.Generator()
        # counters are not negative, and layer 0 draws otherwise than what stands outside the layers
        number = 0 if layer is None else layer + 1
        drawn.manual_seed(derive_seed(self.seed, f"growth {purpose}", number))
        return drawn


Grow = Callable[[Parts, Pair, Options], Parts]
# why the grown model does not compute what the source does; None if it does
Reason = Callable[[Pair, Options], str | None]


@dataclass(frozen=True)
class Method:
    """A way to grow; calling it grows a state.

    Attributes:
        grow: the function itself.
        inexact: where and why the grown model computes something else.
        exact_only: the method is refused where it is not exact.
        shrinks: it makes models smaller.
        any_depth: it makes them deeper or shallower.
        needs_fresh: it needs new weights of the target.
        uses: which of ``noise`` (what copies channels), ``norms`` and ``fill`` say something to it.
    """

    grow: Grow
    inexact: Reason
    exact_only: bool = False
    shrinks: bool = False
    any_depth: bool = False
    needs_fresh: bool = False
    uses: tuple[str, ...] = ("noise",)

    def check(self, source: Config, target: Config, options: Options) -> str | None:
        """Refuse what makes no sense; return why the result is not exact, None if it is.

        Raises:
            ConfigError: for a pair that does not fit, or options that do not.
            UnsupportedError: where the method would have to be exact, but cannot be.
        """
        pair = Pair(source, target)
        check_pair(pair, self.shrinks, self.any_depth)
        if options.layers is not None:
            check_layers(options.layers, pair)
        for name in ("noise", "norms", "fill"):
            if name not in self.uses and getattr(options, name) != getattr(Options, name):
                raise ConfigError(f"--grow-{name} says nothing to this method; leave it out")
        reason = self.inexact(pair, options) or settings_reason(pair)
        if self.exact_only and reason is not None:
            raise UnsupportedError(f"this model cannot be enlarged exactly: {reason}")
        return reason

    def __call__(
        self,
        state: State,
        source: Config,
        target: Config,
        options: Options | None = None,
    ) -> dict[str, Tensor]:
        """Return the state of the target.

        Args:
            state: of the source, under today's names; it is not changed.
            source: configuration of the source.
            target: configuration of the target.
            options: see :class:`Options`.

        Raises:
            ConfigError: for a pair that does not fit, or options that do not.
            UnsupportedError: for models this method cannot grow.
        """
        options = options or Options()
        self.check(source, target, options)
        pair = Pair(source, target)
        parts = split(prune_state_dict(state, source), pair.one_table)
        given = (state, options.fresh or {}, options.operator or {})
        # no name for what was grown: it would keep alive what is copied and no longer needed
        return _apart(
            join(self.grow(parts, pair, options), pair.one_table),
            [x for part in given for x in part.values()],
        )


def _apart(state: dict[str, Tensor], others: Sequence[Tensor]) -> dict[str, Tensor]:
    """Copy, in place, what shares memory with another tensor of the state or one of ``others``.

    Layers that are copied are one tensor until here; parameters must not be.
    """
    taken = {x.untyped_storage().data_ptr() for x in others}
    # one memory after the other, so that a stack of layers is gone before the next is copied
    for name in sorted(state, key=lambda name: state[name].untyped_storage().data_ptr()):
        x = state[name]
        storage = x.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != x.nbytes:
            state[name] = x = x.clone()
        taken.add(x.untyped_storage().data_ptr())
    return state


def method(inexact: Reason, **facts: Any) -> Callable[[Grow], Method]:
    """Return a decorator that makes a :class:`Method` of a function; ``facts`` are its flags."""

    def decorate(grow: Grow) -> Method:
        made = Method(grow, inexact, **facts)
        # the class is frozen; the help and the documentation show what the function says
        object.__setattr__(made, "__doc__", grow.__doc__)
        return made

    return decorate


def check_layers(layers: Sequence[int], pair: Pair) -> None:
    """Make sure that a map of layers fits both models.

    Raises:
        ConfigError: for layers that the source lacks, or too many or few of them.
    """
    have, want = pair.small.layers, pair.large.layers
    outside = sorted({layer for layer in layers if not 0 <= layer < have})
    if outside:
        raise ConfigError(
            f"--grow-layers names layer {outside[0]}, but the source has layers 0 to {have - 1}"
        )
    if len(layers) != want:
        raise ConfigError(
            f"--grow-layers names {len(layers)} layers, but the target has {want}: give "
            f"--{pair.side}-layers {len(layers)}"
        )

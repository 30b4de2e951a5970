"""What width changes outside the matrices: factors of embeddings, tied heads, CLAP's scale.

With k = D2 / D1, a table that is read as well as written cannot give its readers shares: the norm
before it takes them (encoder: the head's, decoder: the last one). Token embeddings times sqrt(D)
grow by themselves: the table shrinks by as much. Rows of unit length shrink by sqrt(k) when they
are repeated. Every rule here is a row of the table of exactness in the tests.
"""

from __future__ import annotations

from torch import Tensor

from fairseq.growth.maps import Average, Select
from fairseq.growth.sizes import Pair
from fairseq.growth.tensors import Maps, Parts, role_name

Copied = Select | Average


def settle_scales(small: Parts, wide: Parts, pair: Pair, maps: Maps) -> Parts:
    """Return ``wide`` with its scales settled.

    Args:
        small: the tensors before they were widened.
        wide: the tensors after that.
        pair: the configurations.
        maps: how they were widened.
    """
    k, growth = pair.large.width / pair.small.width, pair.growth_of_scale
    emb = maps("emb", None, "", False)
    if emb is None:
        return wide
    assert isinstance(emb, Select | Average)
    shared = dict(wide.shared)
    _shrink(shared, _shrinking(pair, k, growth))
    if pair.tied:
        last = maps("cls", None, "", False) if pair.side == "encoder" else emb
        assert isinstance(last, Select | Average)
        wide = wide._replace(as_top=_norm_before_table(small, shared, last, growth))
    elif pair.clap and not pair.projected:  # else the head reads what keeps its width
        for name in shared:
            if name.endswith(".beta"):
                shared[name] = shared[name] * beta_factor(pair, k, growth, emb)
    return wide._replace(shared=shared)


def _shrinking(pair: Pair, k: float, growth: float) -> dict[str, float]:
    """Return by what which tables are divided."""
    if pair.unit_rows:
        tables = ("embed_positions.weight", "embed_segments.weight")
        return dict.fromkeys(tables, k**0.5 / growth)
    return {"project_in_dim.weight" if pair.projects_in else "embed_tokens.weight": growth}


def _shrink(shared: dict[str, Tensor], divisors: dict[str, float]) -> None:
    for name in shared:
        divisor = divisors.get(role_name(name), 1.0)
        # dividing by 1.0000000000000002 would round weights that should stay bit for bit
        if abs(divisor - 1) > 1e-12:
            shared[name] = shared[name] / divisor


def _norm_before_table(
    small: Parts, shared: dict[str, Tensor], last: Copied, by: float
) -> list[dict[str, Tensor]]:
    """Give the shares of a tied table to the norm before it, times the factor ``by``.

    Returns:
        the norms of layers that will stand before the table, none if another norm does.
    """
    named = {role_name(name): name for name in shared}
    as_top: list[dict[str, Tensor]] = [{} for _ in small.layers]
    for part in ("weight", "bias"):
        inside = named.get(f"lm_head.layer_norm.{part}", named.get(f"layer_norm.{part}"))
        # RoBERTa's head has a norm of its own; pre-norm stacks end in one
        if inside is not None:
            x = small.shared[inside]
            shared[inside] = last.before_tied_head(x, part == "weight") * by
        else:  # post-norm: the output of the last layer's norm goes nowhere else
            name = f"final_layer_norm.{part}"
            for norms, layer in zip(as_top, small.layers, strict=True):
                norms[name] = last.before_tied_head(layer[name], part == "weight") * by
    return as_top


def beta_factor(pair: Pair, k: float, growth: float, emb: Copied) -> float:
    """Return what CLAP's scale is multiplied with, so that logits stay.

    k copies are summed; table rows are 1/sqrt(k) as long if they have unit length, else 1/growth,
    and so are hidden states of unit length.
    """
    if isinstance(emb, Average):  # new channels of the hidden states are zero
        return 1.0 if pair.unit_rows else growth
    table = k**-0.5 if pair.unit_rows else 1 / growth
    hidden = k**-0.5 if pair.source.get("clap_normalize_hidden") else 1.0
    return 1 / (k * table * hidden)

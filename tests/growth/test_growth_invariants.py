"""What holds for growth whatever the sizes: identity, linearity, untouched corners, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from growth_pairs import a_config, build, grown, logits_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq import catalog
from fairseq.errors import CheckpointError, ConfigError, FairseqError, RegistryError
from fairseq.growth.ligo import apply_operator
from fairseq.growth.ligo_init import WIDTH, depth_weights, new_operator, width_rows
from fairseq.growth.maps import Pool, Select
from fairseq.growth.methods import GROWTH, Options
from fairseq.growth.sizes import Pair, resized
from fairseq.growth.tensors import join, split

FAMILIES = ("encoder", "decoder")
PLAIN = [name for name in catalog.GROWTH if name not in ("ligo", "random")]


def options_for(method: str, model: Any, layers_: int = 2) -> Options:
    fresh = build(model.config, seed=3).state_dict()
    return Options(layers=range(layers_) if method == "extract" else None, fresh=fresh)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", PLAIN)
def test_growth_by_nothing_is_bit_exact(method: str, family: str) -> None:
    for dtype in (torch.float32, torch.float16):
        model = build(a_config(family)).to(dtype)
        before = {name: x.clone() for name, x in model.state_dict().items()}
        options = options_for(method, model)
        assert GROWTH[method].check(model.config, model.config, options) is None
        after = GROWTH[method](model.state_dict(), model.config, model.config, options)
        assert after.keys() == before.keys()
        assert all(after[name].equal(before[name]) for name in before)
        assert all(x.equal(before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_operator_of_nothing_is_bit_exact(family: str) -> None:
    model = build(a_config(family))
    pair = Pair(model.config, model.config)
    parts = split(model.state_dict(), pair.one_table)
    operator = new_operator(parts, pair, None, depth="stack")
    assert not any(name.startswith("width.") for name in operator)
    after = join(apply_operator(parts, operator, pair), pair.one_table)
    assert all(after[name].equal(x) for name, x in model.state_dict().items())


def test_layers_in_any_order() -> None:
    for family in FAMILIES:
        model = build(a_config(family, **{f"{family}_layers": 4}))
        order = (0, 1, 1, 3, 0)
        target = resized(model.config, layers=5)
        after = grown("extract", model, target, layers=order)
        stacks = [
            m.encoder.sentence_encoder if family == "encoder" else m.decoder for m in (model, after)
        ]
        for layer, source in zip(stacks[1].layers, order, strict=True):
            for name, x in stacks[0].layers[source].state_dict().items():
                assert layer.state_dict()[name].equal(x)
        assert torch.isfinite(logits_of(after)).all()


def test_layers_that_are_kept_count() -> None:
    """A source with --encoder-layers-to-keep has only those layers."""
    model = build(a_config("encoder", encoder_layers=4))
    pruned = dataclasses.replace(model.config, encoder_layers_to_keep="1,3")
    target = resized(pruned, layers=4)
    assert target.encoder_layers_to_keep is None
    after = GROWTH["stack"](model.state_dict(), pruned, target)
    stem = "encoder.sentence_encoder.layers."
    for layer, source in enumerate((1, 3, 1, 3)):
        name = "fc1.weight"
        assert after[f"{stem}{layer}.{name}"].equal(model.state_dict()[f"{stem}{source}.{name}"])


SIZED = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2)
)


@settings(max_examples=25, deadline=None)
@given(SIZED, st.sampled_from(FAMILIES), st.integers(0, 99))
def test_random_shapes(sized: tuple[int, ...], family: str, seed: int) -> None:
    """Shapes are the target's, corners are the source's, and exact methods are exact."""
    depth, heads, times, deeper, wider = sized
    norm = {"encoder_normalize_before": True, "layernorm_embedding": False, "head": "none"}
    if family == "decoder":
        norm = {"decoder_normalize_before": True, "position": "rotary"}
        norm |= {"decoder_input_dim": 4 * heads, "decoder_output_dim": 4 * heads}
    sizes = {"layers": depth, "embed_dim": 4 * heads, "attention_heads": heads, "ffn_embed_dim": 5}
    model = build(a_config(family, **norm, **{f"{family}_{k}": v for k, v in sizes.items()}), seed)
    target = resized(
        model.config, layers=depth + deeper, width=4 * heads * times, ffn=5 * times + wider
    )
    shapes = {name: x.shape for name, x in build(target).state_dict().items()}
    for method in ("enlarge", "lemon", "hyperclone", "fpi", "aki", "net2net", "random", "stack"):
        after = GROWTH[method](model.state_dict(), model.config, target, Options(seed=seed))
        assert {name: x.shape for name, x in after.items()} == shapes, method
        if family == "decoder" and GROWTH[method].check(model.config, target, Options()) is None:
            result = build(target)
            result.load_state_dict(after)
            torch.testing.assert_close(logits_of(result), logits_of(model), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_operator_is_linear_and_leaves_the_corner(family: str) -> None:
    models = [build(a_config(family), seed) for seed in (0, 1)]
    pair = Pair(models[0].config, resized(models[0].config, width=16, layers=3))
    one, two = (split(model.state_dict(), pair.one_table) for model in models)
    operator = new_operator(one, pair, None)
    sums = {n: 2 * x - 3 * join(two)[n] for n, x in join(one).items()}
    a, b, both = (
        join(apply_operator(split(join(parts)), operator, pair))
        for parts in (one, two, split(sums))
    )
    for name, x in both.items():
        torch.testing.assert_close(x, 2 * a[name] - 3 * b[name])
    # the upper left of every tensor is the mixture of the small ones, what stands outside as it was
    for name, x in one.shared.items():
        assert a[name][tuple(slice(size) for size in x.shape)].equal(x), name
    for name in one.layers[0]:
        stacked = torch.stack([layer[name] for layer in one.layers])
        mixed = torch.tensordot(operator[f"depth.{name}"].double(), stacked, dims=1)
        for layer, x in enumerate(mixed):
            corner = a[f"{one.stem}{layer}.{name}"][tuple(slice(size) for size in x.shape)]
            torch.testing.assert_close(corner, x, rtol=0, atol=1e-14)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(("layer", "global", "none")),
    st.sampled_from(("same", "pinv", "orthonormal")),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
)
def test_an_operator_is_its_formula(
    share: str, in_matrix: str, sizes: tuple[int, int, int, int]
) -> None:
    """W' = B_out (sum_j w_j W_j) A^T and b' = B_out (sum_j u_j b_j), one tensor at a time."""
    depth, heads, deeper, more = sizes
    flags = {"layers": depth, "embed_dim": 4 * heads, "attention_heads": heads}
    model = build(a_config("encoder", **{f"encoder_{name}": x for name, x in flags.items()}))
    target = resized(model.config, layers=depth + deeper, width=4 * (heads + more), ffn=19)
    pair = Pair(model.config, target)
    parts = split(model.state_dict(), pair.one_table)
    drawn = new_operator(parts, pair, None, share=share)
    operator = {name: x.double() + 0.1 * torch.randn(x.shape).double() for name, x in drawn.items()}
    after = apply_operator(parts, operator, pair, share, in_matrix)

    def matrix(axis: str, layer: int, module: str, reads: bool) -> Tensor:
        name = {
            "layer": f"width.{axis}" if axis == "emb" else f"width.{axis}.{layer}",
            "global": f"width.{axis}",
            "none": f"width.{module}.{layer}.{'in' if reads else 'out'}",
        }[share]
        new = operator[name]
        whole = torch.cat([torch.eye(new.shape[1]).double(), new])
        if in_matrix == "pinv" and reads:
            return torch.linalg.pinv(whole).T
        if in_matrix == "orthonormal" and axis in ("emb", "v"):
            # the one with a triangular factor of positive diagonal, as Gram and Schmidt have it
            q, r = torch.linalg.qr(whole)
            return q * r.diagonal().sign()
        return whole

    axes = {"self_attn.v_proj": ("v", "emb"), "self_attn.out_proj": ("emb", "v"),
            "fc1": ("ffn", "emb"), "fc2": ("emb", "ffn")}  # fmt: skip
    for layer, found in enumerate(after.layers):
        for module, (out, into) in axes.items():
            b_out, b_in = matrix(out, layer, module, False), matrix(into, layer, module, True)
            for kind in ("weight", "bias"):
                w = operator[f"depth.{module}.{kind}"][layer]
                mixed = sum(w[j] * x[f"{module}.{kind}"] for j, x in enumerate(parts.layers))
                wanted = b_out @ mixed @ b_in.T if kind == "weight" else b_out @ mixed
                torch.testing.assert_close(found[f"{module}.{kind}"], wanted)


def test_one_hot_operators_are_depth_maps_and_shared_matrices_commute() -> None:
    model = build(a_config("encoder"))
    deeper = resized(model.config, layers=5)
    pair = Pair(model.config, deeper)
    parts = split(model.state_dict(), True)
    for kind, method in (("stack", "stack"), ("interlace", "interpolate")):
        operator = new_operator(parts, pair, None, depth=kind)
        after = join(apply_operator(parts, operator, pair), True)
        wanted = GROWTH[method](model.state_dict(), model.config, deeper)
        assert all(x.equal(after[name]) for name, x in wanted.items())
    large, wider = resized(model.config, layers=5, width=16), resized(model.config, width=16)
    operator = new_operator(parts, Pair(model.config, large), None, share="global")
    at_once = apply_operator(parts, operator, Pair(model.config, large), "global")
    width = {name: x for name, x in operator.items() if name.startswith("width.")}
    depth = {name: x for name, x in operator.items() if name.startswith("depth.")}
    first = apply_operator(parts, width, Pair(model.config, wider), "global")
    then = join(apply_operator(first, depth, Pair(wider, large), "global"))
    # the same matrices, one for every layer: layers are mixed before they are widened
    apart = {
        f"{name}.{layer}" if name.rpartition(".")[2] in ("q", "k", "v", "ffn") else name: x
        for layer in range(5)
        for name, x in operator.items()
    }
    last = join(apply_operator(parts, apart, Pair(model.config, large), "layer"))
    for name, x in join(at_once).items():
        torch.testing.assert_close(x, then[name])
        torch.testing.assert_close(x, last[name])


def test_orthonormal_matrices_undo_themselves_and_so_does_the_inverse() -> None:
    """Reading after writing is the identity on the axes without an activation."""
    model = build(a_config("encoder"))
    pair = Pair(model.config, resized(model.config, width=16))
    parts = split(model.state_dict(), True)
    drawn = new_operator(parts, pair, None, depth="stack")
    operator = {name: x.double() for name, x in drawn.items()}
    for in_matrix in ("pinv", "orthonormal"):
        after = apply_operator(parts, operator, pair, in_matrix=in_matrix)
        (small, *_), (large, *_) = parts.layers, after.layers
        ov = small["self_attn.out_proj.weight"] @ small["self_attn.v_proj.weight"]
        grown_ov = large["self_attn.out_proj.weight"] @ large["self_attn.v_proj.weight"]
        # compared through the stream: B^+ (O' V' B) = O V, with B from a table that it widened
        eye = dataclasses.replace(pair.source)
        table = {
            **join(parts),
            "encoder.sentence_encoder.embed_tokens.weight": torch.eye(8).double(),
        }
        b = join(
            apply_operator(split(table), operator, Pair(eye, pair.target), in_matrix=in_matrix)
        )
        b_81 = b["encoder.sentence_encoder.embed_tokens.weight"].T
        torch.testing.assert_close(torch.linalg.pinv(b_81) @ grown_ov @ b_81, ov)


@pytest.mark.parametrize("method", ["stack", "interpolate", "interlace", "mslt", "fpi", "aki"])
def test_only_the_last_norm_of_a_post_norm_decoder_takes_the_shares_of_a_tied_table(
    method: str,
) -> None:
    settings = {"share_decoder_input_output_embed": True, "decoder_normalize_before": False}
    model = build(a_config("decoder", **settings))
    target = resized(model.config, width=16, layers=5)
    grown_state = GROWTH[method](model.state_dict(), model.config, target, Options(seed=1))
    below = model.state_dict()["decoder.layers.0.final_layer_norm.weight"]
    wide = [grown_state[f"decoder.layers.{n}.final_layer_norm.weight"] for n in range(5)]
    # new channels are copies: a layer in the middle has the gains of the source and no others
    assert all(bool(torch.isin(x, model_norms(model)).all()) for x in wide[:-1])
    assert not torch.isin(wide[-1], model_norms(model)).all()
    torch.testing.assert_close(wide[0][:8], below)


def model_norms(model: Any) -> Tensor:
    """Return all gains behind the layers of a decoder."""
    state = model.state_dict()
    return torch.cat([x for name, x in state.items() if "final_layer_norm.weight" in name])


def test_first_values() -> None:
    uniform = torch.rand(5, 3, dtype=torch.float64)
    for kind in ("stack", "interlace", "rand", "rand_softmax", "sel", "stack_noisy", "sel_noisy"):
        rows = depth_weights(kind, uniform, 0.03)
        torch.testing.assert_close(rows.sum(-1), torch.ones(5).double())
    assert depth_weights("interlace", uniform, 0).argmax(-1).tolist() == [0, 0, 1, 1, 2]
    for kind in set(WIDTH) - {"zero"}:
        torch.testing.assert_close(width_rows(kind, uniform, 0.03).sum(-1), torch.ones(5).double())
    assert not width_rows("zero", uniform, 0.03).any()


def test_a_seed_decides_new_entries_alone() -> None:
    model = build(a_config("encoder"))
    target = resized(model.config, width=16, layers=3)
    for method in ("fpi", "hyperclone", "net2net", "lemon", "random"):
        one, same, other = (
            GROWTH[method](model.state_dict(), model.config, target, Options(seed=seed))
            for seed in (1, 1, 2)
        )
        assert all(one[name].equal(same[name]) for name in one)
        assert any(not one[name].equal(other[name]) for name in one)
        if method in ("fpi", "net2net"):  # rows of writers are copies; the first ones are fixed
            name = "encoder.sentence_encoder.embed_tokens.weight"
            assert one[name][:, :8].equal(model.state_dict()[name])


def test_the_corner_of_a_copy() -> None:
    model = build(a_config("decoder"))
    target = resized(model.config, width=16, layers=3)
    fresh = build(target, seed=4).state_dict()
    for fill in ("fresh", "zero"):
        after = GROWTH["copy"](
            model.state_dict(), model.config, target, Options(fresh=fresh, fill=fill)
        )
        for name, x in model.state_dict().items():
            corner = tuple(slice(size) for size in x.shape)
            assert after[name][corner].equal(x)
        rest = after["decoder.layers.2.fc1.weight"]
        assert (
            rest.equal(fresh["decoder.layers.2.fc1.weight"]) if fill == "fresh" else not rest.any()
        )
    with pytest.raises(ConfigError, match="needs the weights of a new model"):
        GROWTH["copy"](model.state_dict(), model.config, target)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["fpi", "hyperclone", "stack", "random", "copy"])
def test_grown_models_are_finite_in_half_precision(method: str, family: str) -> None:
    model = build(a_config(family))
    target = resized(model.config, width=16, layers=4)
    fresh = build(target, seed=4).state_dict()
    assert torch.isfinite(logits_of(grown(method, model, target, fresh=fresh).half())).all()


def test_pooling_is_a_moving_mean() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    wanted = torch.nn.functional.avg_pool1d(x[None], 3, 1)[0]
    torch.testing.assert_close(Pool(5, 3).write(x, 1), wanted)
    model = build(a_config("encoder", encoder_attention_heads=1))
    target = resized(model.config, width=4, ffn=6, layers=1, heads=1)
    assert torch.isfinite(logits_of(grown("pool", model, target))).all()


def test_noise_on_copies_cancels() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    chosen = Select(torch.tensor([0, 1, 2, 0, 0, 1]), 3, None, 0.5, torch.Generator())
    columns = chosen.read(x, 1)
    assert not columns[:, 0].equal(columns[:, 3])
    torch.testing.assert_close(
        torch.zeros(4, 3, dtype=torch.float64).index_add(1, chosen.index_M, columns), x
    )


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "options", "message"),
    [
        ("stack", {"encoder_layers": 1}, {}, "--encoder-layers would decrease from 2 to 1"),
        ("fpi", {"encoder_ffn_embed_dim": 8}, {}, "--encoder-ffn-embed-dim would decrease"),
        ("pool", {"encoder_embed_dim": 16}, {}, "would increase from 8 to 16"),
        ("fpi", {"encoder_attention_heads": 4}, {}, "heads of the source have 4 channels"),
        ("fpi", {"head": "clap"}, {}, "--head is roberta in the source, clap in the target"),
        ("fpi", {"position": "alibi"}, {}, "--position is learned in the source"),
        ("fpi", {"encoder_normalize_before": True}, {}, "--encoder-normalize-before is False"),
        ("fpi", {"max_positions": 20}, {}, "--max-positions is 10 in the source"),
        ("fpi", {"untie_weights_roberta": True}, {}, "--untie-weights-roberta is False"),
        ("gstack", {"encoder_layers": 5}, {}, "5 layers are no multiple of 2"),
        ("extract", {}, {}, "needs --grow-layers"),
        ("extract", {}, {"layers": (0, 2)}, "names layer 2, but the source has layers 0 to 1"),
        ("stack", {}, {"layers": (0, 1, 1)}, "names 3 layers, but the target has 2"),
        ("extract", {"encoder_ffn_embed_dim": 16}, {"layers": (0, 1)}, "takes whole layers"),
        ("ligo", {"encoder_layers": 3}, {}, "needs a learned operator"),
    ],
)
def test_what_does_not_fit(
    method: str, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    model = build(a_config("encoder"))
    target = dataclasses.replace(model.config, **changes)
    with pytest.raises(FairseqError, match=message):
        GROWTH[method](model.state_dict(), model.config, target, Options(**options))


def test_other_families_and_unknown_names() -> None:
    encoder, decoder = (build(a_config(family)) for family in FAMILIES)
    with pytest.raises(ConfigError, match="the source is an encoder .* the target a decoder"):
        GROWTH["stack"](encoder.state_dict(), encoder.config, decoder.config)
    with pytest.raises(RegistryError, match="did you mean 'stack'"):
        GROWTH["stak"]
    wider = resized(encoder.config, width=16)
    foreign = {**encoder.state_dict(), "encoder.adapter.weight": torch.zeros(8)}
    with pytest.raises(FairseqError, match="does not know the tensor encoder.adapter.weight"):
        GROWTH["fpi"](foreign, encoder.config, wider)
    operator = {"width.emb": torch.zeros(3, 8)}
    with pytest.raises(CheckpointError, match="another pair"):
        GROWTH["ligo"](encoder.state_dict(), encoder.config, wider, Options(operator=operator))

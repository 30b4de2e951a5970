"""Where growth is exact: every row of the table, and that no method claims more than is true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from growth_pairs import SIZES, TOKENS, a_config, build, change, grown, logits_of

from fairseq import catalog
from fairseq.errors import UnsupportedError
from fairseq.growth.files import settle_target
from fairseq.growth.methods import GROWTH, Options
from fairseq.growth.sizes import Pair, resized

EXACT = 1e-9
POSITIONS = ("learned", "rotary", "none")
NORMS = [
    {"encoder_normalize_before": pre, "layernorm_embedding": norm}
    for pre in (False, True)
    for norm in (False, True)
]
SCALES = ("scale_fc", "scale_attn", "scale_heads", "scale_resids")
NORMFORMER = {
    "decoder_normalize_before": True,
    "position": "learned",
    **dict.fromkeys(SCALES, True),
}
GPT = {"decoder_normalize_before": True, "no_scale_embedding": True}
TIED = {"share_decoder_input_output_embed": True}
OWN_WIDTH = {"head": "clap", "decoder_input_dim": 6, "decoder_output_dim": 6}


def encoder(**settings: Any) -> tuple[str, dict[str, Any]]:
    return "encoder", settings


def decoder(**settings: Any) -> tuple[str, dict[str, Any]]:
    return "decoder", settings


# what stays the same function when every channel is repeated
DOUBLED = [
    *(encoder(**norms, **extra) for norms in NORMS for extra in (
        {},
        {"scale_embedding": True},
        {"untie_weights_roberta": True, "segments": 2},
        {"head": "clap", "scale_embedding": True},
        {"head": "clap", "clap_normalize": False},
        {"head": "clap", "scale_embedding": True, "clap_normalize_hidden": True},
    )),
    *(encoder(head="clap", scale_embedding=True, position=p) for p in ("learned", "none")),
    *(decoder(**GPT, **TIED, position=position) for position in POSITIONS),
    *(decoder(**TIED, decoder_normalize_before=pre, position="rotary") for pre in (False, True)),
    decoder(**GPT, position="learned"),
    decoder(decoder_normalize_before=True, head="clap", position="none"),
    decoder(**GPT, parallel_residual=True, position="rotary"),
    decoder(**NORMFORMER, **TIED),
    decoder(**NORMFORMER, **TIED, no_scale_embedding=True),
    decoder(**TIED, position="learned", decoder_input_dim=6, decoder_output_dim=6),
    *(decoder(**OWN_WIDTH, **extra, position="learned") for extra in (
        {},
        {"no_scale_embedding": True},
        {"clap_normalize": False},
        {"clap_normalize_hidden": True, "layernorm_embedding": True},
    )),
]  # fmt: skip


@pytest.mark.parametrize(("family", "settings"), DOUBLED)
@pytest.mark.parametrize("method", ["enlarge", "hyperclone", "lemon"])
def test_repeated_channels(method: str, family: str, settings: dict[str, Any]) -> None:
    sizes = {"width": 16} if method == "enlarge" else {"width": 24, "ffn": 48}
    assert change(method, family, settings, **sizes) < EXACT


@pytest.mark.parametrize(("family", "settings"), DOUBLED)
def test_repeated_channels_in_single_precision(family: str, settings: dict[str, Any]) -> None:
    assert change("enlarge", family, settings, width=16, dtype=torch.float32) < 1e-5


def test_weights_keep_their_precision() -> None:
    model = build(a_config("encoder")).float()
    state = GROWTH["enlarge"](model.state_dict(), model.config, resized(model.config, width=16))
    assert {x.dtype for x in state.values()} == {torch.float32}


def test_scores_of_headless_models_grow_with_the_width() -> None:
    """Hidden states against embeddings: k times as much, which a temperature of k takes back."""
    settings = {"head": "none", "position": "none", "layernorm_embedding": True}
    model = build(a_config("encoder", **settings))
    after = grown("enlarge", model, resized(model.config, width=24))
    small, large = (logits_of(m) @ m.embedding_table().detach().T for m in (model, after))
    torch.testing.assert_close(large, 3 * small, rtol=1e-9, atol=1e-9)


def refused(
    settings: dict[str, Any], family: str, reason: str, largest: float, **sizes: Any
) -> None:
    """The exact method refuses; another one says why, and is off by more than rounding."""
    config = build(a_config(family, **settings)).config
    target = resized(config, **(sizes or {"width": 16}))
    with pytest.raises(UnsupportedError, match=reason):
        GROWTH["enlarge"].check(config, target, Options())
    assert reason in str(GROWTH["hyperclone"].inexact(Pair(config, target), Options()))
    moved = change("hyperclone", family, settings, **(sizes or {"width": 16}))
    assert moved > 1e-7, (settings, moved)
    assert moved < largest


def test_clap_without_scale() -> None:
    clap = {"head": "clap", "layernorm_embedding": True}
    refused(clap, "encoder", "eps of the layer norm", 0.05)
    refused({**clap, "layernorm_embedding": False}, "encoder", "no rule without", 100)


def test_sinusoidal_positions() -> None:
    refused({"position": "sinusoidal"}, "decoder", "table of sinusoidal positions", 100)
    refused({"position": "sinusoidal"}, "encoder", "table of sinusoidal positions", 100)


def test_alibi_with_slopes_of_more_heads() -> None:
    for family in ("encoder", "decoder"):
        refused({"position": "alibi"}, family, "old heads get other slopes", 100)


def test_post_norm_depth_and_widths_that_are_no_multiple() -> None:
    refused({}, "encoder", "a post-norm layer cannot do nothing", 100, layers=3)
    refused({}, "encoder", "no multiple of 8", 100, width=12)


def test_a_norm_inside_the_feed_forward_network() -> None:
    refused(NORMFORMER, "decoder", "must be a multiple of 12", 100, ffn=17)
    assert change("enlarge", "decoder", NORMFORMER, ffn=24) < EXACT


def test_a_table_that_reads_without_norm() -> None:
    bare = {**GPT, **TIED, "no_decoder_final_norm": True, "position": "learned"}
    refused(bare, "decoder", "without a layer norm", 100)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_slopes_and_multipliers_make_the_rest_exact(family: str) -> None:
    """What fairseq-grow sets: slopes stay with their heads, unit rows are scaled up."""
    for settings in ({"position": "alibi"}, {"head": "clap", "position": "none"}):
        scale = (
            {"no_scale_embedding": True} if family == "decoder" else {"layernorm_embedding": False}
        )
        model = build(a_config(family, **settings, **scale))
        target = resized(model.config, width=16, layers=2)
        settle_target("enlarge", model.config, target, {})
        result = build(target, seed=5)
        result.load_state_dict(GROWTH["enlarge"](model.state_dict(), model.config, target))
        assert (logits_of(result) - logits_of(model)).abs().max() < EXACT


def test_adaptive_tables_grow_in_depth_and_ffn() -> None:
    adaptive = {
        **{"adaptive_input": True, "adaptive_input_cutoff": "5", "adaptive_input_factor": 2.0},
        **{"adaptive_softmax_cutoff": "5", "adaptive_softmax_factor": 2.0},
        **{"tie_adaptive_weights": True, "decoder_normalize_before": True, "position": "rotary"},
    }
    assert change("enlarge", "decoder", adaptive, layers=4, ffn=20) < EXACT
    assert change("random", "decoder", adaptive, layers=3) > EXACT
    with pytest.raises(UnsupportedError, match="keep their width"):
        change("enlarge", "decoder", adaptive, width=16)


# -- any width, pre-norm ---------------------------------------------------------------------------

AVERAGED = [
    *(decoder(**GPT, **tied, position=p) for p in POSITIONS for tied in ({}, TIED)),
    decoder(decoder_normalize_before=True, **TIED, position="rotary"),
    decoder(**GPT, parallel_residual=True, position="learned"),
    decoder(**GPT, head="clap", clap_normalize=False, position="learned"),
    encoder(encoder_normalize_before=True, layernorm_embedding=False, head="clap",
            clap_normalize=False, clap_normalize_hidden=True),
    decoder(**GPT, **OWN_WIDTH, position="learned"),
    decoder(decoder_normalize_before=True, **OWN_WIDTH, position="rotary"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "settings"), AVERAGED)
def test_means_in_new_channels(family: str, settings: dict[str, Any]) -> None:
    sizes = {"width": 12, "heads": 3, "ffn": 17, "layers": 4}
    assert change("lemon", family, settings, **sizes, eps=1e-5 * 8 / 12) < EXACT
    assert change("lemon", family, settings, **sizes) > EXACT  # eps stays: 1e-4 to 1e-3
    single = {**sizes, "eps": 1e-5 * 8 / 12, "dtype": torch.float32}
    assert change("lemon", family, settings, **single) < 1e-5


def test_an_eps_that_does_not_fit_is_named() -> None:
    config = build(a_config("decoder", **GPT, position="learned")).config
    target = resized(config, width=12)
    reason = GROWTH["lemon"].check(config, target, Options())
    assert reason is not None and "--layer-norm-eps 6.66666667e-06" in reason
    settle_target("lemon", config, target, {})
    assert GROWTH["lemon"].check(config, target, Options()) is None


def test_features_of_a_headed_encoder_stay() -> None:
    settings = {"encoder_normalize_before": True, "layernorm_embedding": False}
    model = build(a_config("encoder", **settings))
    target = resized(model.config, width=12, heads=3)
    target.layer_norm_eps = 1e-5 * 8 / 12
    assert "hidden states are exact" in str(GROWTH["lemon"].check(model.config, target, Options()))
    result = build(target)
    result.load_state_dict(GROWTH["lemon"](model.state_dict(), model.config, target))
    with torch.no_grad():
        small, large = (m(TOKENS, features_only=True)[0][TOKENS.ne(1)] for m in (model, result))
    assert (small - large[:, :8]).abs().max() < EXACT
    assert large[:, 8:].abs().max() < EXACT


# -- no method claims more than is true ------------------------------------------------------------

GROWN = {
    "enlarge": {"width": 16, "ffn": 36},
    "hyperclone": {"width": 24, "layers": 3},
    "lemon": {"width": 12, "ffn": 17, "layers": 3, "eps": 1e-5 * 8 / 12},
    "net2net": {"ffn": 20, "layers": 3},
    "fpi": {"ffn": 20},
    "aki": {"width": 16, "layers": 5},
    "random": {"width": 16, "layers": 3},
    "stack": {"width": 12, "layers": 4},
    "gstack": {"layers": 6},
    "interlace": {"layers": 5},
    "interpolate": {"layers": 4},
    "mslt": {"layers": 3},
    "extract": {"layers": 3, "options": {"layers": (1, 0, 1)}},
}
ZOO = [
    encoder(),
    encoder(encoder_normalize_before=True, layernorm_embedding=False, scale_embedding=True),
    encoder(head="clap", position="alibi"),
    encoder(head="none", position="none"),
    decoder(**GPT, **TIED, position="rotary"),
    decoder(**NORMFORMER),
    decoder(position="sinusoidal"),
    decoder(**GPT, head="clap", position="alibi"),
]  # fmt: skip


@pytest.mark.parametrize("method", GROWN)
@pytest.mark.parametrize(("family", "settings"), ZOO)
def test_the_claim_is_the_truth(method: str, family: str, settings: dict[str, Any]) -> None:
    sizes = GROWN[method]
    config = build(a_config(family, **settings)).config
    named = {name: size for name, size in sizes.items() if name not in ("eps", "options")}
    target = resized(config, **named)
    target.layer_norm_eps = sizes.get("eps", 1e-5)
    options = Options(**sizes.get("options", {}))
    reason = GROWTH[method].inexact(Pair(config, target), options)
    if method == "enlarge" and reason is not None:
        with pytest.raises(UnsupportedError):
            change(method, family, settings, **sizes)
        return
    if settings.get("head") == "none" and target.encoder_embed_dim != 8:
        return  # hidden states of another width
    moved = change(method, family, settings, **sizes)
    assert (moved < EXACT) == (reason is None), (moved, reason)


def test_every_row_of_the_catalogue_is_a_method_with_a_sentence() -> None:
    assert SIZES["layers"] == 2
    for name in catalog.GROWTH:
        assert GROWTH[name].__doc__ and callable(GROWTH[name].grow), name
    assert set(catalog.GROWTH) == {*GROWN, "copy", "ligo", "pool"}

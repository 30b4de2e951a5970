"""Settings that are no sizes: equal tensors under other ones are another function."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from growth_pairs import a_config, build, grown, logits_of

from fairseq.errors import UnsupportedError
from fairseq.growth.methods import GROWTH, Options
from fairseq.growth.sizes import resized

CASES = {
    "eps": ({}, {"layer_norm_eps": 1e-3}, "--layer-norm-eps 1e-05"),
    "slopes": (
        {"position": "alibi", "alibi_slopes": [0.5, 0.125]},
        {"alibi_slopes": None},
        "--alibi-slopes",
    ),
    "multiplier": (
        {"embedding_multiplier": 3.0},
        {"embedding_multiplier": None},
        "multiplied by 3",
    ),
}


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("case", CASES)
def test_a_setting_that_changes_the_function_is_named(family: str, case: str) -> None:
    """Copies of layers and wider FFN alone; without the other setting they are exact."""
    settings, others, said = CASES[case]
    norms: dict[str, Any] = {f"{family}_normalize_before": True, "layernorm_embedding": False}
    if family == "decoder":
        norms.pop("layernorm_embedding")
    source = a_config(family, **settings, **norms)
    model = build(source)
    same = resized(source, ffn=20, layers=3)
    other = dataclasses.replace(same, **others)
    check = GROWTH["enlarge"].check
    assert check(source, same, Options()) is None
    before = logits_of(model)
    assert (logits_of(grown("enlarge", model, same)) - before).abs().max() < 1e-12
    with pytest.raises(UnsupportedError, match=said):
        check(source, other, Options())
    assert said in str(GROWTH["net2net"].check(source, other, Options()))
    moved = build(other, seed=9)
    moved.load_state_dict(grown("enlarge", model, same).state_dict())
    assert (logits_of(moved) - before).abs().max() > 1e-4

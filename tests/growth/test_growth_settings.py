"""Settings that are no sizes: equal tensors under other ones are another function."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from growth_pairs import a_config, build, grown, logits_of

from fairseq.errors import CheckpointError, ConfigError, UnsupportedError
from fairseq.growth.files import settle_target
from fairseq.growth.methods import GROWTH, Options
from fairseq.growth.sizes import resized
from fairseq_cli import grow
from tests import tiny_run

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


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_slopes_belong_to_a_number_of_heads(family: str) -> None:
    """Those of the source do not fit more heads; stated ones are taken, or refused."""
    source = a_config(family, position="alibi", alibi_slopes=[0.5, 0.125])
    assert resized(source, ffn=20).alibi_slopes == [0.5, 0.125]
    wide = resized(source, width=16)
    assert torch.isfinite(logits_of(grown("stack", build(source), wide))).all()
    settle_target("hyperclone", source, wide, {})
    assert wide.alibi_slopes == [0.5, 0.125, 0.5, 0.125]
    stated = {"alibi_slopes": [0.5, 0.25, 0.125, 0.0625]}
    other = dataclasses.replace(wide, **stated)
    settle_target("hyperclone", source, other, stated)
    assert other.alibi_slopes == stated["alibi_slopes"]
    assert "old heads get other slopes" in str(GROWTH["hyperclone"].check(source, other, Options()))
    other.alibi_slopes = [0.5, 0.25, 0.125]
    with pytest.raises(ConfigError, match="--alibi-slopes gives 3 numbers for 4 heads"):
        grown("stack", build(source), other)


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    """A NaN is neither larger nor smaller than any tolerance."""
    data = tiny_run.make_corpus(tmp_path / "data")
    tiny_run.train(tiny_run.config(data, tmp_path / "run", max_update=1))
    source, out = tmp_path / "run/checkpoint_last.pt", tmp_path / "grown.pt"
    command = [
        "--out",
        str(out),
        "--method",
        "hyperclone",
        "--grow-width",
        "2",
        "--data",
        str(data),
    ]
    for number, said in (("-1", "at least 0"), ("nan", "finite number")):
        with pytest.raises(ConfigError, match=f"--grow-noise.*{said}"):
            grow.main([str(source), *command, "--grow-noise", number])
    with pytest.raises(ConfigError, match="--layer-norm-eps"):
        grow.main([str(source), *command, "--layer-norm-eps", "-1"])
    for method, flag, value in (
        ("lemon", "noise", "0.1"),
        ("hyperclone", "norms", "above"),
        ("aki", "fill", "zero"),
    ):
        with pytest.raises(ConfigError, match=f"--grow-{flag} says nothing to this method"):
            grow.main([str(source), *command, "--method", method, f"--grow-{flag}", value])
    content = tiny_run.content(source)
    name = "encoder.sentence_encoder.layers.0.fc1.bias"
    content["model"][name][0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=rf"nan\.pt has weights that are not finite: {name}"):
        grow.main([str(tmp_path / "nan.pt"), *command])
    assert not out.exists()

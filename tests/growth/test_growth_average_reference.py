"""The checker of growth on average expansion of a pre-norm model, a reference made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.references import ligo

OLD, NEW = 8, 12
Arrays = dict[str, np.ndarray]


def writer(x: np.ndarray) -> np.ndarray:
    """New rows are the mean of the old ones."""
    return np.concatenate([x, np.repeat(x.mean(0, keepdims=True), NEW - OLD, 0)])


def average_expansion(small: Arrays, rng: np.random.Generator) -> Arrays:
    """Grow widths 8 to 12 and 16 to 24; what is free is drawn, new inner channels write nothing."""

    def padded(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
        wide = rng.normal(size=(rows, columns))
        wide[: x.shape[0], : x.shape[1]] = x
        return wide

    grown = {}
    for name, x in small.items():
        part = name.rpartition("layers.")[2]
        if name.startswith(("embed_", "token_type")):
            grown[name] = writer(x.T).T
        elif "layer_norm" in name and not name.startswith("lm_head"):
            gain = np.sqrt(OLD / NEW) if name.endswith("weight") else 1.0
            grown[name] = np.concatenate([gain * x, np.zeros(NEW - OLD)])
        elif part.endswith(("out_proj.weight", "fc2.weight")):
            grown[name] = np.hstack([writer(x), np.zeros((NEW, x.shape[1] // 2))])
        elif part.endswith(("out_proj.bias", "fc2.bias")):
            grown[name] = writer(x)
        elif part.endswith(("proj.weight", "fc1.weight")):
            grown[name] = padded(x, len(x) * NEW // OLD, NEW)
        elif part.endswith(("proj.bias", "fc1.bias")):
            grown[name] = np.concatenate([x, rng.normal(size=len(x) // 2)])
    return grown


@pytest.mark.parametrize("head", ["none", "as wide as it was", "with columns for the new channels"])
def test_average_expansion_is_understood_with_any_head(
    shared: Path, tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new channels of the last norm are zero: the old head gives the small model's logits."""
    rng = np.random.default_rng(0)
    for name in ("small", "small_io"):
        source = shared / "compat" / "ligo" / "b" / f"{name}.npz"
        (tmp_path / source.name).write_bytes(source.read_bytes())
    small, io = (dict(np.load(tmp_path / name)) for name in ("small.npz", "small_io.npz"))
    grown, recorded = average_expansion(small, rng), {"tokens": io["tokens"]}
    if head != "none":
        grown |= {name: x for name, x in small.items() if name.startswith("lm_head.")}
        recorded["logits"] = io["logits_preln_noembln"]
    if head.startswith("with"):
        free = rng.normal(size=(OLD, NEW - OLD))
        grown["lm_head.dense.weight"] = np.hstack([grown["lm_head.dense.weight"], free])
    np.savez(tmp_path / "exact_preln_avg_8to12.npz", **grown)
    np.savez(tmp_path / "exact_preln_avg_8to12_io.npz", **recorded)
    assert ligo.check(tmp_path) == 0, capsys.readouterr().out
    grown["layers.1.fc2.bias"] = grown["layers.1.fc2.bias"] + 1e-4 * np.eye(NEW)[NEW - 1]
    np.savez(tmp_path / "exact_preln_avg_8to12.npz", **grown)
    assert ligo.check(tmp_path) == 1
    assert "DIFFERS" in capsys.readouterr().out

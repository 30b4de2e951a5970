"""--compile changes who computes a step, not what comes out, nor the names in files.

The compiler's second half is left out: graphs are traced as ever, and run as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CLAP, DECODER, Recorder, config, content, make_corpus, train
from torch import nn

from fairseq.errors import ConfigError
from fairseq.training import compiled

QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "disable_validation": True, "max_update": 3}
CASES = [("layer", CLAP), ("layer", DECODER)]
LONG = [pytest.param("full", flags, marks=pytest.mark.matrix) for flags in (CLAP, DECODER)]


@pytest.mark.parametrize(("kind", "flags"), [*CASES, *LONG], ids=str)
def test_compiled_steps_are_the_same_steps(
    kind: str, flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_corpus(tmp_path / "data")
    products: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        products.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    losses, names = {}, {}
    for way in ("off", kind):
        with monkeypatch.context() as patch:
            recorder = Recorder(patch)
            train(config(data, tmp_path / way, compile=way, **flags, **QUIET))
        assert bool(products) == (way != "off")
        losses[way] = [float.fromhex(loss) for loss in recorder.losses.values()]
        names[way] = list(content(tmp_path / way / "checkpoint_last.pt")["model"])
    torch._dynamo.reset()
    assert max(products) >= 6  # projections and feed-forward network of a layer in one graph
    assert losses["off"] == pytest.approx(losses[kind], rel=1e-5) and len(losses["off"]) == 3
    assert names["off"] == names[kind]


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.matrix)]
)
@pytest.mark.parametrize(("kind", "flags"), [("full", {}), *CASES, *LONG], ids=str)
def test_compiled_layers_drop(
    backend: str,
    kind: str,
    flags: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tracer's own rewriting of a step with dropout, which the tests above leave out."""
    data = make_corpus(tmp_path / "data")
    monkeypatch.setattr(compiled, "BACKEND", backend)
    losses = []
    for dropout in (0.0, 0.5):
        with monkeypatch.context() as patch:
            recorder = Recorder(patch)
            more = {**QUIET, "dropout": dropout, "attention_dropout": dropout}
            train(config(data, tmp_path / f"run{dropout}", compile=kind, **{**flags, **more}))
        losses.append([float.fromhex(loss) for loss in recorder.losses.values()])
        torch._dynamo.reset()
    without, dropped = losses
    assert len(dropped) == 3 and all(a != b for a, b in zip(without, dropped, strict=True))


def test_a_machine_without_a_compiler_says_so_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(compiled, "BACKEND", missing)
    with pytest.raises(ConfigError, match="--compile full.*no compiler found.*--compile off"):
        compiled.compile_parts(nn.Linear(2, 2), "full", torch.device("cpu"))
    torch._dynamo.reset()


def test_a_model_without_our_layers_cannot_be_compiled_by_layer() -> None:
    with pytest.raises(ConfigError, match="Linear has no layers.*use full"):
        compiled.compile_parts(nn.Linear(2, 2), "layer", torch.device("cpu"))

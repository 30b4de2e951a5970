"""The studies of growth and distillation: their sums, and READMEs that say what results say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import comparison  # noqa: E402
import studies  # noqa: E402


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{name}_study", EXAMPLES / name / "study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


RECORDS = [
    pytest.param(path, id=f"{path.parent.parent.name}-{path.stem}")
    for name in ("growth", "distillation")
    for path in sorted((EXAMPLES / name / "results").glob("*.json"))
]


@pytest.mark.parametrize("record", RECORDS)
def test_the_readme_holds_what_is_printed(record: Path) -> None:
    study, found = load(record.parent.parent.name), studies.read(record)
    readme = (record.parent.parent / "README.md").read_text(encoding="utf-8")
    for part in (study.table(found), study.facts(found), study.verdict(found)):
        assert part.strip() and part.strip() in readme
    for group in studies.by_name(found["results"]).values():
        assert tuple(result["seed"] for result in group) == studies.SEEDS
    assert record.with_suffix(".png").is_file()


@pytest.mark.parametrize(
    ("loss", "update"), [(7.5, 25.0), (6.5, 35.0), (5.0, 50.0), (8.5, 20.0), (4.0, None)]
)
def test_where_a_loss_is_reached(loss: float, update: float | None) -> None:
    curve = [{"update": u, "loss": x} for u, x in ((20, 8.0), (30, 7.0), (40, 6.0), (50, 5.0))]
    assert comparison.reached(curve, loss) == update


def growth_result(losses: list[float], donor: float = 0.0, operator: float = 0.0) -> dict[str, Any]:
    curve = [{"update": 10.0 * n, "loss": loss} for n, loss in enumerate(losses, 1)]
    costs = {"flops": 100.0, "seconds": 50.0, "tokens": 5}
    return {**costs, "curve": curve, "before": {"donor": (donor, 1.0), "operator": (operator, 1.0)}}


def test_what_growth_saves() -> None:
    study = load("growth")
    scratch = growth_result([8.0, 7.0, 6.0, 5.0])
    grown = growth_result([6.0, 5.0, 4.0, 3.0], donor=30.0, operator=5.0)
    assert study.saved(grown, scratch, (), 0) == pytest.approx(0.5)
    assert study.saved(grown, scratch, ("operator",), 0) == pytest.approx(0.45)
    assert study.saved(grown, scratch, ("donor", "operator"), 0) == pytest.approx(0.15)
    assert study.saved(grown, scratch, ("donor",), 1) == pytest.approx(0.48)
    assert study.saved(growth_result([9.0, 9.0]), scratch, (), 0) is None


@pytest.mark.parametrize(("shift", "said"), [(-1.0, "better than"), (1.0, "worse than")])
def test_what_growth_says_of_the_paper(shift: float, said: str) -> None:
    study, results = load("growth"), []
    for seed in studies.SEEDS:
        scratch = growth_result([8.0, 7.0, 6.0, 5.0])
        rival = growth_result([7.0, 6.0, 5.0, 4.0])
        learned = growth_result([5.0 + 0.01 * seed, 4.5, 4.2, 4.0 + shift + 0.01 * seed])
        for name, result in (("scratch", scratch), ("ligo-0", rival), ("ligo-100", learned)):
            results.append({**result, "name": name, "seed": seed})
    words = study.verdict({"results": results})
    assert f"ligo-100 is {said} ligo-0" in words and "above the paper's 44.7 %" in words


@pytest.mark.parametrize(
    ("shift", "said"), [(-0.1, "beats"), (0.1, "loses to"), (0.0, "is not told from")]
)
def test_what_distillation_says(shift: float, said: str) -> None:
    study, results = load("distillation"), []
    for seed in studies.SEEDS:
        for objective, loss in (("LM", 5.0), ("CE + cos", 5.0 + shift + 0.01 * (seed - 2))):
            curve = [{"update": 10, "loss": loss}]
            results.append({"name": f"extracted: {objective}", "seed": seed, "curve": curve})
    assert f'"CE + cos" {said} likelihood alone' in study.verdict({"results": results})


def test_arms_are_chosen_by_name() -> None:
    study = load("growth")
    assert study.chosen("all") == list(study.ARMS)
    assert study.chosen("scratch,fpi") == study.chosen("fpi") == ["scratch", "fpi"]
    fixed = "ligo-100, width fixed"
    assert study.chosen(fixed) == ["scratch", fixed]
    assert study.chosen(f"copy;{fixed}") == ["scratch", "copy", fixed]
    with pytest.raises(SystemExit, match="no arm 'fpl': choose of scratch; copy"):
        study.chosen("scratch,fpl")


def test_forming_costs_what_is_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT of 6 layers of 512 to 12 of 768, V = 30,522: 0.45 + 96.6 + 8.0 GFLOP."""
    study = load("growth")
    monkeypatch.setattr(study, "VOCABULARY", 30_522)
    sizes = {"small": (6, 512), "large": (12, 768)}
    d1, d2, square = 512, 768, 2 * 512 * 512 * 256 + 2 * 256 * 512 * 768
    wide = 2 * 2048 * 512 * 256 + 2 * 1024 * 2048 * 768  # fc1: rows of 4 d1 and 4 d2
    tall = 2 * 512 * 2048 * 1024 + 2 * 256 * 512 * 3072
    width = 12 * (4 * square + wide + tall)
    depth = 2 * 6 * 12 * (4 * d1**2 + 2 * d1 * 2048)
    total = depth + width + 2 * 30_522 * d1 * (d2 - d1)
    assert study.Study("encoder", sizes, Path(), Path(), 1).forming() == total
    assert depth == pytest.approx(0.45e9, rel=0.02) and width == pytest.approx(96.6e9, rel=0.01)


@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_every_arm_has_a_command(kind: str, larger: bool, tmp_path: Path) -> None:
    """All arms are declared by words that the parser of the trainer knows."""
    from fairseq.config import options

    growth, distillation = load("growth"), load("distillation")
    sizes = growth.LARGER_SIZES if larger else growth.SIZES
    study = growth.Study(kind, sizes, tmp_path, tmp_path, 1)
    choice = {"--lr": "0.001"}
    lines = [study.schedule(flags.split(), 50, choice) for flags in growth.ARMS.values()]
    lines.append(study.donor(1).words)
    lines += [study.operator(arm, tmp_path / "x.pt", 1).words for arm in growth.OPERATORS]
    for start, objective in distillation.ARMS.values():
        wanted = "LM" if objective == distillation.LONGER else objective
        flags = f"{distillation.STARTS[start]} {distillation.OBJECTIVES[wanted]}"
        lines.append(distillation.schedule(flags.split(), 50, choice))
    # four arms differ in the operator alone, two in the cache, one in how long it trains
    assert len(set(lines)) == len(lines) - 3 - 2 * (1 + 1)
    for words in lines:
        options.parse_config(options.get_training_parser(argv=words), ["bin", *words])

"""Runs with a teacher: of every origin, cut anywhere, in two processes, without it afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from teacher_runs import CAUSAL, FAMILIES, LAST, load, shown, student
from tiny_run import Recorder, config, content, digest, make_corpus, train

from fairseq import checkpoint, evaluation
from fairseq.errors import CheckpointError, ConfigError, MissingFileError
from fairseq.evaluation import pseudo_perplexity
from fairseq.export import original_and_safetensors
from fairseq.models import pcfg_lookup
from fairseq.report.page import write_report
from tests.distributed.test_distributed import assert_same, finish, start


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(scope="module")
def teachers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a trained checkpoint of each family."""
    found = {}
    for name, family in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        train(config(data, folder, **family, max_update=4))
        found[name] = folder / LAST
    return found


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_trained_validated_and_used_without_its_teacher(
    family: str, data: Path, teachers: dict[str, Path], tmp_path: Path, caplog: Any
) -> None:
    teacher = tmp_path / "teacher.pt"
    shutil.copy(teachers[family], teacher)
    shutil.copy(data / "dict.txt", tmp_path / "dict.txt")
    before = teacher.read_bytes()
    train(config(data, tmp_path / "run", **student(family, teacher)))
    valid = shown(tmp_path / "run", "valid")
    terms = {f"loss_{name}" for name in ("ce", "mse", "cos", "pkd", "attention", "value")}
    assert terms | {"loss", "nll_loss", "ppl"} <= set(valid)
    assert terms | {"nll_loss"} <= set(shown(tmp_path / "run", "train_inner"))
    state = content(tmp_path / "run" / LAST)
    assert state["criterion"] is None and teacher.read_bytes() == before
    assert not any("teacher" in name for name in state["model"])
    facts = state["extra_state"]["fairseq_lm"]["facts"]["teacher"]
    assert facts["path"] == str(teacher) and len(facts["sha256"]) == 64
    given = {"path": str(tmp_path / "run" / LAST), "data": str(data)}
    with_it = evaluation.validate(given)["valid"]
    assert float(with_it["loss"]) == pytest.approx(valid["loss"], abs=2e-3)
    teacher.unlink()
    alone = evaluation.validate(given)["valid"]
    assert float(alone["nll_loss"]) == float(with_it["nll_loss"])
    assert not terms & set(alone) and "terms of the student alone" in caplog.text
    models, _, _ = checkpoint.load_model_ensemble_and_task([given["path"]])
    assert models[0](torch.tensor([[0, 5, 6]]))[0].shape[:2] == (1, 3)
    with pytest.raises(MissingFileError, match="--teacher-path not found"):
        train(config(data, tmp_path / "run", **student(family, teacher, max_update=12)))


def test_a_student_is_evaluated_beyond_its_teachers_reach(
    data: Path, teachers: dict[str, Path], tmp_path: Path, caplog: Any
) -> None:
    """Where the teacher ends its terms are left out; at lengths it reaches they are computed."""
    flags = student("masked", teachers["masked"], max_positions=32, max_update=1)
    train(config(data, tmp_path / "run", **flags))
    given = {"path": str(tmp_path / "run" / LAST), "data": str(data)}
    figures = pseudo_perplexity.at_lengths(given, [16, 32])
    assert "loss_ce" in figures["16"]["valid"] and "loss_ce" not in figures["32"]["valid"]
    assert float(figures["32"]["valid"]["nll_loss"]) > 0
    warnings = [r.message for r in caplog.records if "terms of the student alone" in r.message]
    assert len(warnings) == 1 and "reaches 16" in warnings[0]


def test_a_teacher_is_part_of_nothing_that_is_trained_or_kept(
    data: Path, teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimizer, average and checkpoint know the student and the maps between widths alone."""
    seen: list[tuple[Any, dict[str, torch.Tensor]]] = []

    def look(trainer: Any, calls: int) -> None:
        model = trainer.criterion._teacher.model
        seen.append((model, {name: x.clone() for name, x in model.state_dict().items()}))
        model.train()  # as a careless caller would; the next forward pass puts it right

    flags = student("masked", teachers["masked"], encoder_embed_dim=16, store_ema=True)
    with monkeypatch.context() as patch:
        Recorder(patch, look)
        train(config(data, tmp_path / "run", **flags, freeze_positions=True, max_update=3))
    model, before = seen[0]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(x.equal(before[name]) for name, x in model.state_dict().items())
    state = content(tmp_path / "run" / LAST)
    trained = sum(len(g["params"]) for g in state["last_optimizer_state"]["param_groups"])
    positions = "encoder.sentence_encoder.embed_positions.weight"
    own = {n for n, x in state["model"].items() if x.is_floating_point() and n != positions}
    own -= {"encoder.lm_head.weight", *(n for n in own if n.endswith("version"))}  # a tied table
    assert trained == len(own) + len(state["criterion"])
    assert set(state["extra_state"]["ema"]) <= set(state["model"])
    again = train_nothing(data, tmp_path / "none", **flags, freeze_positions=True)
    assert state["model"][positions].equal(again["model"][positions])


def train_nothing(data: Path, folder: Path, **flags: Any) -> dict[str, Any]:
    """Return the checkpoint of a run whose one update changes nothing."""
    train(config(data, folder, **{**flags, "max_update": 1, "lr": [0.0], "weight_decay": 0.0}))
    return content(folder / LAST)


class Killed(BaseException):
    """Ends a run as SIGKILL would, as far as its files are concerned."""


VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 teacher": {"teacher_dtype": "bfloat16"},
    "amp student": {"amp": True},
    "bf16 student": {"bf16": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_run_ends_with_the_same_bits(
    variant: str, data: Path, teachers: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A narrower student, so that the criterion has weights of its own; dropout is on."""
    flags = student(
        "masked", teachers["masked"], encoder_embed_dim=16, save_interval_updates=2,
        keep_interval_updates=1, update_freq=[2], max_update=6, **VARIANTS[variant],
    )  # fmt: skip
    with monkeypatch.context() as patch:
        whole = Recorder(patch)
        train(config(data, tmp_path / "whole", **flags))

    def kill(trainer: Any, calls: int) -> None:
        if trainer.get_num_updates() == 5:
            raise Killed

    with monkeypatch.context() as patch:
        cut = Recorder(patch, kill)
        with pytest.raises(Killed):
            train(config(data, tmp_path / "cut", **flags))
    with monkeypatch.context() as patch:
        rest = Recorder(patch)
        train(config(data, tmp_path / "cut", **flags))
    assert {**cut.losses, **rest.losses} == whole.losses and set(rest.losses) == {5, 6}
    assert digest(tmp_path / "cut" / LAST) == digest(tmp_path / "whole" / LAST)
    own, other = (content(tmp_path / name / LAST)["criterion"] for name in ("cut", "whole"))
    assert set(own) == {"projections.features.weight", "projections.layer0.weight"}
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_two_processes_are_one(teachers: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Terms have other numbers of positions, and an epoch has an odd number of batches."""
    corpus = make_corpus(tmp_path / "bin", train_lines=79)
    flags = {"max_update": 9, "required_batch_size_multiple": 1, "encoder_embed_dim": 16}
    flags |= {"optimizer": "sgd", "lr": [0.1]}  # Adam makes steps of the rounding of zero gradients
    flags = student("masked", teachers["masked"], **flags)
    assert finish(start(corpus, tmp_path / "one", 1, update_freq=[4], **flags)) == [0]
    assert finish(start(corpus, tmp_path / "two", 2, update_freq=[2], **flags)) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")


def test_another_teacher_is_noticed_when_a_run_goes_on(
    data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.pt"
    shutil.copy(teachers["causal"], teacher)
    shutil.copy(data / "dict.txt", tmp_path / "dict.txt")
    flags = student("causal", teacher, max_update=2)
    train(config(data, tmp_path / "run", **flags))
    train(config(data, tmp_path / "other", **CAUSAL, max_update=1))
    shutil.copy(tmp_path / "other" / LAST, teacher)
    with pytest.raises(ConfigError, match="began with the teacher"):
        train(config(data, tmp_path / "run", **{**flags, "max_update": 3}))


def test_the_lineage_is_kept(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    source = str(teachers["causal"])
    tuned = {**CAUSAL, "finetune_from_model": source, "max_update": 2}
    train(config(data, tmp_path / "one", **tuned))
    second = {**CAUSAL, "finetune_from_model": str(tmp_path / "one" / LAST), "max_update": 1}
    train(config(data, tmp_path / "two", **second))
    train(config(data, tmp_path / "two", **{**second, "max_update": 2}))  # goes on
    steps = content(tmp_path / "two" / LAST)["extra_state"]["fairseq_lm"]["lineage"]
    assert [(step["method"], step["updates"]) for step in steps] == [
        ("finetune", 4),
        ("finetune", 2),
    ]
    assert steps[0]["source"] == LAST and steps[0]["sha256"] != steps[1]["sha256"]
    page = write_report([tmp_path / "two"], tmp_path / "page").read_text()
    assert page.count("finetune of checkpoint_last.pt after") == 2
    assert "lineage" not in content(teachers["causal"])["extra_state"]["fairseq_lm"]


# -- what does not fit -----------------------------------------------------------------------------


def with_words(folder: Path, teacher: Path, words: list[str]) -> Path:
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"{word}\n" for word in words))
    shutil.copy(teacher, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("family", FAMILIES)
def test_symbols_that_round_the_size_do_not_count(
    family: str, data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    """The teacher's dictionary is rounded up, that of the data is not: the same logits."""
    words = (data / "dict.txt").read_text().splitlines()
    rounded = make_corpus(tmp_path / "rounded")
    more = [*words, *(f"madeupword{n:04d} 0" for n in range(4))]
    (rounded / "dict.txt").write_text("".join(f"{word}\n" for word in more))
    train(config(rounded, tmp_path / "wide", **FAMILIES[family], max_update=2))
    path = with_words(tmp_path / "teacher", tmp_path / "wide" / LAST, more)
    flags = student(family, path)
    wide, narrow = load(rounded, flags), load(data, flags)
    ids, size = torch.tensor([[0, 5, 9, 60, 2]]), 64
    both = [t.outputs({"src_tokens": ids}, torch.arange(5))[0].logits() for t in (wide, narrow)]
    torch.testing.assert_close(both[0][:, :size], both[1][:, :size])
    if family == "masked":  # <mask> is the last symbol of either
        masked = torch.tensor([[0, 68, 2]]), torch.tensor([[0, 64, 2]])
        both = [
            t.outputs({"src_tokens": m}, torch.arange(3))[0].logits()
            for t, m in zip((wide, narrow), masked, strict=True)
        ]
        torch.testing.assert_close(both[0][:, [*range(64), 68]], both[1])
    train(config(data, tmp_path / "run", **flags, max_update=1))
    lacking = student(family, with_words(tmp_path / "less", teachers[family], words))
    with pytest.raises(ConfigError, match="no rows"):
        load(rounded, lacking)


def test_a_lookup_table_is_no_teacher(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused with what to use in its place; so is a model that does not say what it is."""
    words = [line.split()[0] for line in (data / "dict.txt").read_text().splitlines()]
    rules = ["S N S 0.9", "S N N 0.1", *(f"N {word} {1 / len(words)}" for word in words)]
    (tmp_path / "g.rules").write_text("\n".join(rules) + "\n")
    table = {"arch": "pcfg_lookup", "grammar": str(tmp_path / "g.rules"), "max_update": 1,
             "sample_break_mode": "eos", "tokens_per_sample": 64}  # fmt: skip
    train(config(data, tmp_path / "table", **table))
    flags = student("masked", tmp_path / "table" / LAST)
    with pytest.raises(ConfigError, match="is a lookup table .*--criterion masked_lm_truth"):
        load(data, flags)
    monkeypatch.setattr(pcfg_lookup, "PcfgLookup", int)
    with pytest.raises(ConfigError, match="does not say which tokens .*no supported_targets"):
        load(data, flags)


def test_what_does_not_fit_is_refused(
    data: Path, teachers: dict[str, Path], tmp_path: Path, caplog: Any
) -> None:
    words = (data / "dict.txt").read_text().splitlines()
    other = make_corpus(tmp_path / "other")
    (other / "dict.txt").write_text("\n".join([words[1], words[0], *words[2:]]) + "\n")
    train(config(other, tmp_path / "swapped", **FAMILIES["causal"], max_update=1))
    swapped = tmp_path / "swapped" / LAST
    with pytest.raises(ConfigError, match="symbol 4 is 'w1' for the teacher .* 'w0' in the data"):
        load(data, student("causal", swapped))
    # the folder of its training was made anew: its own words are not known any more
    shutil.copy(data / "dict.txt", other / "dict.txt")
    with pytest.raises(CheckpointError, match="not the one that .* was trained with"):
        load(data, student("causal", swapped))
    with pytest.raises(
        (ConfigError, CheckpointError), match="causal ones from causal ones|predict"
    ):
        load(data, student("causal", teachers["masked"]))
    with pytest.raises((ConfigError, CheckpointError), match="masked models learn from masked"):
        load(data, student("masked", teachers["causal"], teacher_overrides=""))
    # <mask> has no row in the one model, and one in the other
    blank = {"head": "clap", "position": "alibi", "mask_embedding": "zero"}
    with pytest.raises(ConfigError, match="hide tokens differently.* learned and zero"):
        load(data, student("masked", teachers["masked"], **blank))
    broken = content(teachers["masked"])
    next(x for n, x in broken["model"].items() if n.endswith("fc2.bias"))[3] = float("nan")
    torch.save(broken, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"not finite: .*fc2\.bias"):
        load(data, student("masked", tmp_path / "nan.pt"))
    with pytest.raises(ConfigError, match="reaches 16"):
        load(data, student("masked", teachers["masked"], tokens_per_sample=32, max_positions=32))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="Is this a model folder"):
        load(data, student("masked", tmp_path / "empty"))
    (tmp_path / "garbage.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        load(data, student("masked", tmp_path / "garbage.pt"))
    with pytest.raises(ConfigError, match="--teacher-overrides must be a dict"):
        load(data, student("masked", teachers["masked"], teacher_overrides="3"))


def test_exports_leave_the_learned_maps_out(
    data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    flags = student("masked", teachers["masked"], encoder_embed_dim=16, max_update=1)
    train(config(data, tmp_path / "run", **flags))
    state = content(tmp_path / "run" / LAST)
    assert state["criterion"] and not any("projections" in name for name in state["model"])
    original_and_safetensors.to_safetensors(
        tmp_path / "run" / LAST, tmp_path / "weights.safetensors"
    )
    assert set(load_file(str(tmp_path / "weights.safetensors"))) == set(state["model"])

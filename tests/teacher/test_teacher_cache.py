"""Stored outputs of a teacher: equal to live ones, unbiased where drawn, refused elsewhere."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_runs import FAMILIES, LAST, load
from tiny_run import Recorder, config, make_corpus, train

from fairseq import evaluation, tasks
from fairseq.criterions.base import predicted_positions
from fairseq.errors import CheckpointError, ConfigError, DataError, MissingFileError
from fairseq.evaluation.teacher_outputs import write_teacher_cache
from fairseq.ops.linear_distillation import SparseTeacher, linear_distillation
from fairseq.tasks import validation
from fairseq.teacher.cache import TeacherCache
from fairseq_cli.validate import run

MASKED_ONLY = {"masked": {"restrict_ce_to_mask": True}, "causal": {}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(scope="module")
def teachers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, family in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        train(config(data, folder, **family, max_update=6))
        found[name] = folder / LAST
    return found


def given(data: Path, teacher: Path, subsets: str = "train,valid") -> dict[str, Any]:
    return {"path": str(teacher), "data": str(data), "valid_subset": subsets, "log_format": "none"}


def distilled(family: str, **flags: Any) -> dict[str, Any]:
    return {**FAMILIES[family], "criterion": "distillation", **MASKED_ONLY[family], **flags}


def losses(data: Path, folder: Path, **flags: Any) -> dict[int, float]:
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        train(config(data, folder, **flags))
    return {update: float.fromhex(value) for update, value in recorder.losses.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_whole_vocabulary_stored_is_the_teacher_itself(
    family: str, temperature: float, data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    """Also over a second epoch, whose masks are others; batches are shuffled."""
    write_teacher_cache(
        given(data, teachers[family]), tmp_path / "cache", k=100, temperatures=[1, 2],
        epochs=2 if family == "masked" else 1,
    )  # fmt: skip
    flags = distilled(family, distillation_temperature=temperature, dropout=0.0)
    live = losses(data, tmp_path / "live", **flags, teacher_path=str(teachers[family]))
    stored = losses(data, tmp_path / "stored", **flags, teacher_cache=str(tmp_path / "cache"))
    assert len(live) == 9 and stored == pytest.approx(live, abs=2e-4)


def batches(data: Path, flags: dict[str, Any]) -> Any:
    cfg = config(data, data, **flags)
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    model = task.build_model(cfg.model)
    return (
        model,
        task,
        list(validation.valid_batches(cfg, task, model, "train").next_epoch_itr(shuffle=False)),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_is_stored_as_defined(
    family: str, data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    """The K likeliest words and the exact mass of all others, at each temperature."""
    write_teacher_cache(given(data, teachers[family]), tmp_path / "c", k=5, temperatures=[1, 2.5])
    flags = distilled(family, teacher_path=str(teachers[family]), batch_size=3)
    student, task, samples = batches(data, flags)
    teacher, pad = load(data, flags), task.target_dictionary.pad()
    cache = TeacherCache(str(tmp_path / "c"), task.target_dictionary)
    for sample in samples:
        positions_N = predicted_positions(sample, pad)
        logits_NV = teacher.outputs(sample["net_input"], positions_N)[0].logits()
        for temperature in (1.0, 2.5):
            stored = cache.lookup(sample["net_input"], positions_N, pad, temperature)
            assert stored is not None and stored.log_tail_N is not None
            p_NV = (logits_NV / temperature).softmax(-1)
            wanted_NK, ids_NK = p_NV.topk(5)
            torch.testing.assert_close(stored.log_p_NK.exp(), wanted_NK, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(p_NV.gather(1, stored.ids_NK), wanted_NK)
            tail_N = p_NV.scatter(1, ids_NK, 0.0).sum(1)
            torch.testing.assert_close(stored.log_tail_N.exp(), tail_N, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(stored.weight_NK.sum(1) + tail_N, torch.ones(len(tail_N)))
    with pytest.raises(ConfigError, match=r"temperatures \[1.*not for .*3"):
        cache.lookup(sample["net_input"], positions_N, pad, 3.0)


def test_drawn_words_estimate_the_divergence_without_bias(
    data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    """The mean over draws (several caches) lies within four standard errors of the exact value."""
    flags = distilled("causal", teacher_path=str(teachers["causal"]), batch_size=8)
    student, task, samples = batches(data, flags)
    teacher, sample = load(data, flags), samples[0]
    pad = task.target_dictionary.pad()
    positions_N = predicted_positions(sample, pad)
    target_N = sample["target"].reshape(-1)[positions_N]
    with torch.no_grad():
        own = student.eval()(**sample["net_input"], predicted_positions=positions_N)[0]
    operands = teacher.outputs(sample["net_input"], positions_N)[0]
    exact = linear_distillation(own, operands, target_N, temperature=2.0).divergence_N.mean()
    means = []
    for seed in range(12):
        folder = tmp_path / f"cache{seed}"
        told = {**given(data, teachers["causal"], "train"), "seed": seed}
        write_teacher_cache(told, folder, "sample", 8, [1.0, 2.0])
        stored = TeacherCache(str(folder), task.target_dictionary).lookup(
            sample["net_input"], positions_N, pad, 2.0
        )
        assert isinstance(stored, SparseTeacher) and stored.log_tail_N is None
        means.append(linear_distillation(own, stored, target_N, temperature=2.0)[1].mean())
    spread = torch.stack(means)
    assert spread.std() > 0
    assert abs(spread.mean() - exact) < 4 * spread.std() / len(means) ** 0.5
    again = tmp_path / "again"
    write_teacher_cache(
        {**given(data, teachers["causal"], "train"), "seed": 0}, again, "sample", 8, [1.0, 2.0]
    )
    assert (again / "ids.bin").read_bytes() == (tmp_path / "cache0" / "ids.bin").read_bytes()
    few = losses(
        data, tmp_path / "run", **distilled("causal", teacher_cache=str(again), max_update=2)
    )
    assert len(few) == 2


def test_a_run_goes_on_with_the_same_teacher_live_or_stored(
    data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    """A cache counts as the teacher that it was written from, in either direction."""
    train(config(data, tmp_path / "b", **FAMILIES["causal"], max_update=1))
    live: dict[str, dict[str, Any]] = {}
    stored: dict[str, dict[str, Any]] = {}
    for name, path in {"a": teachers["causal"], "b": tmp_path / "b" / LAST}.items():
        write_teacher_cache(given(data, path), tmp_path / f"cache-{name}", k=4, temperatures=[2.0])
        live[name] = {"teacher_path": str(path)}
        stored[name] = {"teacher_cache": str(tmp_path / f"cache-{name}")}
    both = {**live["a"], **stored["b"], "alpha_cos": 1.0}  # one as before, the other is new
    for first, others, right in (
        (live["a"], (stored["b"], both), stored["a"]),
        (stored["b"], (live["a"], both), live["b"]),
    ):
        run_dir = tmp_path / next(iter(first))
        train(config(data, run_dir, **distilled("causal", **first, max_update=1)))
        for wrong in others:
            with pytest.raises(ConfigError, match="began with the teacher"):
                train(config(data, run_dir, **distilled("causal", **wrong, max_update=2)))
        train(config(data, run_dir, **distilled("causal", **right, max_update=2)))


def test_what_was_not_stored_is_not_made_up(
    data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    write_teacher_cache(given(data, teachers["masked"], "train"), cache, k=4, temperatures=[2.0])
    flags = distilled("masked", teacher_cache=str(cache))
    with pytest.raises(DataError, match="masks of the epochs it was made for"):
        train(config(data, tmp_path / "run", **flags))  # the second epoch has other masks
    with pytest.raises(DataError, match="other data"):
        train(config(data, tmp_path / "other", **flags, seed=4))
    one = {**flags, "max_update": 3}
    train(config(data, tmp_path / "one", **one))  # validation, not stored, has no divergence
    found = evaluation.validate(given(data, tmp_path / "one" / LAST, "train,valid"))
    assert "loss_ce" in found["train"] and "loss_ce" not in found["valid"]
    other = make_corpus(tmp_path / "data")
    words = (other / "dict.txt").read_text().splitlines()
    (other / "dict.txt").write_text("\n".join([words[1], words[0], *words[2:]]) + "\n")
    with pytest.raises(ConfigError, match="another dictionary"):
        train(config(other, tmp_path / "swapped", **one))
    index = (cache / "index.bin").read_bytes()
    # a row is lost; the first row of all begins far behind the end
    for broken in (index[:-24], index[:8] + (10**9).to_bytes(8, "little") + index[16:]):
        (cache / "index.bin").write_bytes(broken)
        with pytest.raises(CheckpointError, match="damaged"):
            train(config(data, tmp_path / "index", **one))
    (cache / "index.bin").write_bytes(index)
    meta = json.loads((cache / "meta.json").read_text())
    for lost in ("dictionary", "symbols", "teacher_sha256"):
        (cache / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k != lost}))
        with pytest.raises(CheckpointError, match=f"damaged .*{lost}"):
            train(config(data, tmp_path / "meta", **one))
    (cache / "meta.json").write_text(json.dumps(meta))
    (cache / "values.bin").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        train(config(data, tmp_path / "damaged", **one))
    shutil.rmtree(cache)
    with pytest.raises(MissingFileError, match="--teacher-cache not found"):
        train(config(data, tmp_path / "missing", **one))


def test_the_command_writes_caches_and_scores(
    data: Path, teachers: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    common = [str(data), "--path", str(teachers["causal"]), "--cpu", "--log-format", "none"]
    common += ["--valid-subset", "valid", "--json"]
    cache = ["--write-teacher-cache", str(tmp_path / "cache"), "--cache-temperatures", "1,2"]
    assert run([*common, *cache, "--top-k", "3", "--cache-method", "sample"]) == 0
    meta = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert meta["temperatures"] == [1.0, 2.0] and meta["k"] == 3 and meta["method"] == "sample"
    assert meta == json.loads((tmp_path / "cache" / "meta.json").read_text())
    assert not list(tmp_path.glob(".*"))
    for wrong in (["--top-k", "0"], ["--cache-epochs", "0"]):
        with pytest.raises(ConfigError, match="--top-k and --cache-epochs at least 1"):
            run([*common, *cache, *wrong, "--cache-force"])
    # an adaptive softmax has no table of logits
    adaptive = {"criterion": "adaptive_loss", "adaptive_softmax_cutoff": "8,16", "max_update": 1}
    train(config(data, tmp_path / "adaptive", **{**FAMILIES["causal"], **adaptive}))
    other = [*common[:2], str(tmp_path / "adaptive" / LAST), *common[3:]]
    with pytest.raises(CheckpointError, match="has no table of all logits"):
        run([*other, "--write-teacher-cache", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="several teachers"):
        run([*common[:2], f"{common[2]}:{common[2]}", *common[3:], *cache, "--cache-force"])
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    # a slip of the pen: the data in the place of the cache
    with pytest.raises(DataError, match="holds something else"):
        run([*common, "--write-teacher-cache", str(data), "--cache-force"])
    assert before == {path.name: path.read_bytes() for path in data.iterdir()}
    with pytest.raises(DataError, match="exists"):
        run([*common, *cache])
    flags = {"max_update": 2, "decoder_layers": 1, "teacher_path": str(teachers["causal"])}
    train(config(data, tmp_path / "run", **distilled("causal", **flags)))
    common[2] = str(tmp_path / "run" / LAST)
    drawn = ["--plot", str(tmp_path / "scores.png")]
    assert run([*common, "--per-sample", str(tmp_path / "scores.csv"), *drawn]) == 0
    assert (tmp_path / "scores.png").read_bytes()[:4] == b"\x89PNG"
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    student = evaluation.validate(given(data, tmp_path / "run" / LAST, "valid"))["valid"]
    teacher = evaluation.validate(given(data, teachers["causal"], "valid"))["valid"]
    total = sum(int(row["predicted"]) for row in rows)
    for key, wanted in (("student_bits", student["nll_loss"]), ("teacher_bits", teacher["loss"])):
        mean = sum(float(row[key]) * int(row["predicted"]) for row in rows) / total
        assert mean == pytest.approx(float(wanted), abs=2e-3)
    assert all(float(row["kl_bits"]) > 0 and int(row["length"]) > 0 for row in rows)
    common[2] = str(teachers["causal"])
    with pytest.raises(ConfigError, match="--per-sample compares with a teacher"):
        run([*common, "--per-sample", str(tmp_path / "more.csv")])
    assert not (tmp_path / "more.csv").exists()

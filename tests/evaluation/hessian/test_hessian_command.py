"""fairseq-hessian on checkpoints of every task; what it prints; what it refuses."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from fairseq.catalog import HESSIAN_METHODS
from fairseq.errors import FairseqError, UnsupportedError
from fairseq.evaluation.hessian.batches import Batches, open_checkpoint
from fairseq.evaluation.hessian.measure import Measurement, Settings, measure
from fairseq.ops import linear_cross_entropy
from fairseq_cli import hessian, train
from tests.documents import TINY, narrow
from tests.tasks.test_sentence_prediction import LABELS, SENTENCES, binarize, write_numbers

ENCODER = ["--arch", "roberta", *narrow("encoder"), *TINY, "--optimizer", "adam", "--lr", "0.01"]
DECODER = "--arch transformer_lm --decoder-input-dim 16 --decoder-output-dim 16".split()
SENTENCE = "--task sentence_prediction --criterion sentence_prediction --init-token 0".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """One checkpoint of every task, with its data."""
    root = tmp_path_factory.mktemp("runs")
    binarize(SENTENCES, root / "bin" / "input0")
    binarize(LABELS, root / "bin" / "label")
    write_numbers(root / "bin")
    # a sentence, and which of two belongs to it: itself, or itself backwards
    backwards = [" ".join(line.split()[::-1]) for line in SENTENCES]
    for number, lines in enumerate((SENTENCES, SENTENCES, backwards)):
        words = ["--srcdict", str(root / "bin" / "input0" / "dict.txt")]
        binarize(lines, root / "rank" / f"input{number}", *words)
    (root / "rank" / "label").mkdir()
    for split, count in (("train", 16), ("valid", 8)):
        right = "".join(f"{number % 2}\n" for number in range(count))
        (root / "rank" / "label" / f"{split}.label").write_text(right)
    ranking = "--task sentence_ranking --criterion sentence_ranking --max-positions 32".split()
    ranking += ["--num-classes", "2", "--save-predictions", str(root / "ranking" / "answers.txt")]
    text, pairs = str(root / "bin" / "input0"), str(root / "bin")
    wide = [*DECODER, *narrow("decoder"), *TINY, "--optimizer", "adam", "--lr", "0.01"]
    regression = ["--num-classes", "1", "--regression-target"]
    masked = ["--task", "masked_lm", *ENCODER, "--criterion"]
    smooth = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
    adaptive = ["--adaptive-softmax-cutoff", "4,8", "--criterion", "adaptive_loss"]
    flags = {
        "masked_lm": (text, [*masked, "masked_lm"]),
        "distillation": (
            text,
            [*masked, "distillation", "--teacher-path", str(root / "masked_lm/checkpoint_last.pt")],
        ),
        "smoothed": (text, ["--task", "language_modeling", *smooth, *wide]),
        "by_sentence": (text, ["--task", "language_modeling", "--sentence-avg", *wide]),
        "language_modeling": (text, ["--task", "language_modeling", *wide]),
        "adaptive": (text, ["--task", "language_modeling", *adaptive, *wide]),
        "sentence_prediction": (pairs, [*SENTENCE, "--num-classes", "2", *ENCODER]),
        "ranking": (str(root / "rank"), [*ranking, *ENCODER]),
        "regression": (pairs, [*SENTENCE, *regression, *ENCODER]),
    }
    found = {}
    for name, (data, words) in flags.items():
        save = str(root / name)
        if "sentence" not in words[1]:
            words = [*words, "--tokens-per-sample", "16", "--sample-break-mode", "eos"]
        assert (
            train.run([data, "--save-dir", save, *words, "--batch-size", "8", "--max-update", "2"])
            == 0
        )
        found[name] = (f"{save}/checkpoint_last.pt", data)
    return found


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return what the command prints with --json."""
    capsys.readouterr()
    words = (*words, "--device", "cpu", "--log-format", "none", "--json")
    assert hessian.main(words) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "task", ["masked_lm", "language_modeling", "sentence_prediction", "ranking", "adaptive"]
)
def test_every_method_measures_a_checkpoint_of_every_task(
    runs: dict[str, tuple[str, str]], task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a fixed set of sentences estimates agree with the exact trace within 6 errors."""
    fixed = ["--sentences", "6", "--dtype", "fp64", "--params", r"layers\.0\.fc1\.bias"]
    exact = run(capsys, *runs[task], *fixed, "--method", "exact")
    flat = run(capsys, *runs[task], *fixed, "--method", "exact", "--matrix", "ggn")
    assert exact["parameters"] == 16 and len(exact["spectrum"]["values"]) == 16
    assert math.isclose(sum(exact["spectrum"]["values"]), exact["trace"], abs_tol=1e-12)
    for method, aim in (("hutchinson", exact), ("hutch++", exact), ("lanczos", exact),
                        ("ggn", flat), ("fisher --labels model", flat)):  # fmt: skip
        words = ["--method", *method.split(), "--probes", "24"]
        found = run(capsys, *runs[task], *fixed, *words)
        assert abs(found["trace"] - aim["trace"]) < 6 * found["se"] + 1e-6 * abs(aim["trace"])
        assert "in nats" in found["convention"] and "tied tensors once" in found["convention"]
        assert "6 samples" in found["convention"] and "fp64" in found["convention"]
        for block in found.get("blocks", {}):
            assert block == "bias"
        if method == "lanczos":
            largest = found["eigenvalues"]["largest"][0]
            wanted = exact["eigenvalues"]["largest"][0]["value"]
            assert math.isclose(largest["value"], wanted, rel_tol=1e-6)
    assert abs(flat["loss"] - exact["loss"]) < 1e-5


def test_a_measurement_appends_nothing_to_predictions(
    runs: dict[str, tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation may write the answers of a ranking into a file, which checkpoints remember."""
    answers = Path(runs["ranking"][0]).parent / "answers.txt"
    written = answers.read_text()
    run(capsys, *runs["ranking"], "--params", r"fc1\.bias", "--probes", "2")
    assert written and answers.read_text() == written


def test_a_regression_has_a_hessian_but_no_labels_of_its_own(
    runs: dict[str, tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--params", "out_proj", "--sentences", "8", "--dtype", "fp64"]
    found = run(capsys, *runs["regression"], *few, "--method", "exact")
    assert found["trace"] > 0  # squared error of a linear layer
    with pytest.raises(UnsupportedError, match="a regression has no distribution of labels"):
        run(capsys, *runs["regression"], "--method", "ggn")


def test_figures_of_the_labels_are_not_called_those_of_another_loss(
    runs: dict[str, tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A smoothed loss is not the cross-entropy that ``ggn`` is about; a student's own is."""
    few = ["--params", r"fc1\.bias", "--sentences", "6", "--dtype", "fp64"]
    own = run(capsys, *runs["distillation"], *few, "--method", "exact")
    assert "(the student's own, labels: data)" in own["convention"]
    for words in (["--method", "ggn"], ["--method", "fisher"], ["--labels", "model"]):
        found = run(capsys, *runs["distillation"], *few, *words, "--probes", "2")
        assert "(the student's own, labels: " in found["convention"]
        assert math.isclose(found["loss"], own["loss"], rel_tol=0.02)  # of other batches
        found = run(capsys, *runs["smoothed"], *few, *words, "--probes", "2")
        assert "(cross-entropy of the labels, not LabelSmoothed" in found["convention"]
    run(capsys, *runs["distillation"], *few, "--residual", "--probes", "2")
    # targets shared with all words leave the curvature in the logits as it is: G is of this loss
    run(capsys, *runs["smoothed"], *few, "--residual", "--probes", "2")
    found = run(capsys, *runs["by_sentence"], *few, "--probes", "2")
    assert "per sentence in nats" in found["convention"]
    assert "sentences weighted alike" in found["convention"]
    with pytest.raises(FairseqError, match="--residual takes"):
        run(capsys, *runs["by_sentence"], *few, "--residual")


def test_what_was_measured_before_an_interruption_is_told(
    runs: dict[str, tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*runs["masked_lm"], "--device", "cpu", "--log-format", "none", "--json"]
    whole = run(capsys, *words, "--probes", "3")["values"]
    one = Measurement._one

    def interrupted(self: Measurement, number: int) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return one(self, number)

    monkeypatch.setattr(Measurement, "_one", interrupted)
    assert hessian.main([*words, "--probes", "50", "--out", str(tmp_path / "h.json")]) == 130
    printed = capsys.readouterr()
    assert json.loads(printed.out)["values"] == whole and "estimates so far" in printed.err
    assert json.loads((tmp_path / "h.json").read_text())["interrupted"] is True


def test_draws_repeat_and_the_residual_is_the_difference(
    runs: dict[str, tuple[str, str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*runs["masked_lm"], "--probes", "4", "--residual", "--out", str(tmp_path / "h.json")]
    first, second = run(capsys, *words), run(capsys, *words)
    assert first["values"] == second["values"] and len(first["values"]) == 4
    assert run(capsys, *words, "--seed", "2")["values"] != first["values"]
    assert math.isclose(
        first["residual"], first["trace"] - first["trace_ggn"], rel_tol=1e-6, abs_tol=1e-9
    )
    assert json.loads((tmp_path / "h.json").read_text())["settings"]["seed"] == 2
    total = sum(block["trace"] for block in first["blocks"].values())
    assert math.isclose(total, first["trace"], rel_tol=1e-9)
    assert sum(first["block_sizes"].values()) == first["parameters"]


def test_it_stops_at_the_error_that_is_asked_for(runs: dict[str, tuple[str, str]]) -> None:
    given = dict(zip(("path", "data"), runs["masked_lm"], strict=True)) | {"cpu": True}
    found = measure(given, Settings(method="fisher", rel_se=0.2, probes=90), "none")
    assert 10 <= found["probes"] < 90 and found["se"] <= 0.2 * found["trace"]


def test_the_text_names_the_convention_first(
    runs: dict[str, tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="train")
    words = ["--probes", "2", "--device", "cpu", "--labels", "model", "--log-format", "simple"]
    assert hessian.main([*runs["masked_lm"], *words]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("Hessian of the mean loss per target in nats (MaskedLmLoss, labels: ")
    assert "labels: model" in first and "params: all" in first and "fp32" in first
    assert second.startswith("trace") and "2 estimates" in second
    assert "trace of the Hessian" in caplog.text and "eta=0:" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "exact"], "at most 5,000 parameters, not "),
        (["--params", "("], "not a regular expression"),
        (["--params", "nowhere"], "fits no parameter"),
        (["--probes", "1"], "needs --probes of at least 2"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--rel-se", "0"], "--rel-se must be positive"),
        (["--rel-se", "nan"], "--rel-se must be positive"),
        (["--method", "lanczos", "--rel-se", "0.1"], "--method lanczos does not stop early"),
        (["--method", "fisher", "--matrix", "ggn"], "has a matrix of its own"),
        (["--method", "lanczos", "--top", "-1"], "--top must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--out", "/"], "is a folder; name a file"),
        (["--out", "/nowhere/at/all.json"], "there is no such folder"),
        (["--method", "fisher", "--residual"], "--residual belongs to"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    runs: dict[str, tuple[str, str]],
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "fairseq.evaluation.hessian.measure.EXACT_LIMIT", 5000 if "exact" not in words else 100
    )
    message = message.replace("5,000", "100")
    with pytest.raises(FairseqError, match=message):
        hessian.main([*runs["masked_lm"], *words, "--device", "cpu", "--log-format", "none"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matrix": "hesian"}, "--matrix hesian .did you mean 'hessian'"),
        ({"vector": "gausian"}, "--vector gausian .did you mean 'gaussian'"),
        ({"labels": "none"}, "--labels none: choose data, model"),
    ],
)
def test_unknown_names_are_refused_in_python_too(settings: dict[str, str], message: str) -> None:
    with pytest.raises(FairseqError, match=message):
        Settings(**settings).settled()


def test_help_tells_the_defaults_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hessian.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    own = Settings()
    for flag, default in (
        ("method", own.method), ("matrix", own.matrix), ("vector", own.vector),
        ("batch-size", own.batch_size), ("subset", own.subset), ("steps", own.steps),
        ("top", own.top), ("seed", own.seed),
    ):  # fmt: skip
        options = text.split(" options: ")[1].split(" examples: ")[0]
        explained = options.split(f"--{flag} ")[-1].split(" --")[0]
        assert f"(default: {default})" in explained, flag
    counts = {name: count for name, count in HESSIAN_METHODS.items() if count not in (0, 100)}
    assert "(default: 100; " + ", ".join(f"{n} {c}" for n, c in counts.items()) + ")" in text


def test_of_a_distilled_student_its_own_loss_is_measured(
    runs: dict[str, tuple[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever weight it had beside the teacher, and with a map to the teacher's width."""
    teacher, data = runs["masked_lm"]
    save = tmp_path / "student"
    words = [data, "--save-dir", str(save), "--task", "masked_lm", *ENCODER]
    words += "--tokens-per-sample 16 --sample-break-mode eos --batch-size 8 --max-update 2".split()
    distilled = ["--criterion", "distillation", "--teacher-path", teacher, "--alpha-mlm", "3",
                 "--encoder-embed-dim", "8", "--alpha-cos", "1"]  # fmt: skip
    assert train.run([*words, *distilled]) == 0
    student = str(save / "checkpoint_last.pt")
    few = ["--params", r"layers\.0\.fc1\.bias", "--sentences", "6", "--dtype", "fp64"]
    plain = ["--model-overrides", "{'criterion': 'masked_lm'}"]
    for method in (["--method", "exact"], ["--residual", "--probes", "4"]):
        found = run(capsys, student, data, *few, *method)
        wanted = run(capsys, student, data, *few, *method, *plain)
        assert "(the student's own, labels: data)" in found["convention"]
        for name in {"trace", "loss", "residual"} & found.keys():
            assert found[name] == pytest.approx(wanted[name], rel=1e-9)
    headless = ["--criterion", "contrastive_weight_tying", "--vocabulary-weight", "1"]
    words[2] = str(tmp_path / "headless")
    assert train.run([*words, *headless]) == 0
    path = str(tmp_path / "headless" / "checkpoint_last.pt")
    for method in (["--method", "ggn"], ["--residual"]):
        with pytest.raises(UnsupportedError, match="the loss is contrastive weight tying"):
            run(capsys, path, data, *few, *method)
    assert run(capsys, path, data, *few, "--method", "ggn", *plain)["loss"] > 0
    # of a larger problem the loss would be taken in chunks, which have no second derivative
    exact = [*few, "--method", "exact"]
    small = run(capsys, path, data, *exact)
    monkeypatch.setattr(linear_cross_entropy, "SMALL_PROBLEM", 0)
    assert run(capsys, path, data, *exact)["trace"] == pytest.approx(small["trace"], rel=1e-9)


def test_of_an_operator_of_growth_second_differences_are_the_curvature(
    runs: dict[str, tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = runs["masked_lm"]
    save = tmp_path / "operator"
    words = [data, "--save-dir", str(save), "--task", "masked_lm", "--criterion", "masked_lm"]
    words += [*ENCODER, "--arch", "ligo_roberta", "--ligo-source", source, "--encoder-layers", "3"]
    words += "--tokens-per-sample 16 --sample-break-mode eos --batch-size 8 --max-update 2".split()
    assert train.run(words) == 0
    path, name = str(save / "checkpoint_last.pt"), "operator.depth.fc1.weight"
    few = ["--params", name, "--sentences", "99", "--dtype", "fp64"]
    found = run(capsys, path, data, *few, "--method", "exact")
    objective, task, config, device = open_checkpoint({"path": path, "data": data}, double=True)
    batches = Batches(task, config, objective.model, "valid", 1, device)
    (sample,) = batches.fixed(99, 99)
    weight, trace, step = objective.model.get_parameter(name).detach().view(-1), 0.0, 1e-3
    for place in range(len(weight)):
        losses = []
        for move in (step, -2 * step, step):  # up, down, and back to where it was
            weight[place] += move
            losses.append(float(objective.loss(sample)[0].detach()))
        trace += (losses[0] - 2 * losses[2] + losses[1]) / step**2
    assert found["trace"] == pytest.approx(trace, rel=1e-4, abs=1e-7)

"""fairseq-glue: official files in, scores out; nothing is done twice."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairseq import tasks
from fairseq.config import options
from fairseq.errors import CheckpointError, ConfigError, DataError, MissingFileError
from fairseq.evaluation.glue import runs as glue_runs
from fairseq.evaluation.glue.prepare import open_pretrained, prepare
from fairseq.evaluation.glue.results import summarize, table
from fairseq.evaluation.glue.scoring import SCORES
from fairseq.evaluation.glue.tasks import TASKS, find_task, read_examples
from fairseq.files.safe_load import safe_load
from fairseq.training import loop
from fairseq_cli import glue

WORDS = [f"w{n}" for n in range(tiny_run.WORDS)]
# title lines of the official files
TITLES = {
    "SST-2": "sentence\tlabel",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
    "sentence1\tsentence2\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "MNLI dev": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\t"
    "label5\tgold_label",
}


def example(name: str, number: int, rng: random.Random) -> list[str]:
    """Return sentences and label that go together: the first word of the last one tells it."""
    task = TASKS[name]
    place = number % max(len(task.classes), 2)
    label = task.classes[place] if task.classes else str(5 * place - 1.25 * place * (number % 3))
    sentences = [
        " ".join(rng.choices(WORDS[10:], k=rng.randrange(2, 6))) for _ in task.sentences[1:]
    ]
    sentences.append(" ".join([WORDS[place], *rng.choices(WORDS[10:], k=rng.randrange(2, 6))]))
    return [*sentences, label]


def write_task(folder: Path, name: str, train: int = 60, valid: int = 24) -> None:
    """Write the files of a task in its official layout, fillers in all other columns."""
    task, rng = TASKS[name], random.Random(name)
    (folder / name).mkdir(parents=True)
    for split, count in (("train", train), *((split, valid) for split in task.valid)):
        titles = TITLES.get(f"{name} dev" if split != "train" else name) or TITLES.get(name)
        lines = [] if titles is None else [titles]
        for number in range(count):
            *sentences, label = example(name, number, rng)
            if titles is None:
                lines.append("\t".join(["gj04", label, "", *sentences]))
                continue
            named = dict(zip((*task.sentences, task.label), (*sentences, label), strict=True))
            columns = titles.removeprefix("\ufeff").split("\t")
            lines.append("\t".join(named.get(column, "x") for column in columns))
        (folder / name / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of one update: plain, a BERT's, and with everything that must be carried over."""
    folder = tmp_path_factory.mktemp("models")
    data = tiny_run.make_corpus(folder / "bin")
    zero_clap = {"head": "clap", "position": "alibi-asymmetric", "mask_embedding": "zero"}
    variants = {"plain": {}, "bert": {"segments": 2}, "zero_clap": zero_clap}
    for name, flags in variants.items():
        tiny_run.train(tiny_run.config(data, folder / name, max_update=1, **flags))
    return {name: folder / name / "checkpoint_last.pt" for name in variants}


@pytest.fixture(scope="module")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    for name in TASKS:
        write_task(folder, name)
    return folder


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "split", "count", "ones"),
        [
            ("CoLA", "train", 8551, 6023),
            ("CoLA", "dev", 1043, 719),
            ("SST-2", "train", 6920, 3610),
            ("SST-2", "dev", 872, 444),
            ("MRPC", "train", 4076, 2753),
            ("MRPC", "dev", 1725, 1147),
        ],
    )
    def test_real_files(self, shared, name, split, count, ones):
        found = read_examples(TASKS[name], shared / f"data/glue/{name}/{split}.tsv")
        assert {len(found.labels), *map(len, found.columns)} == {count}
        assert found.labels.count("1") == ones
        assert all(text.strip() for column in found.columns for text in column)

    def test_real_content(self, shared):
        folder = shared / "data/glue"
        cola = read_examples(TASKS["CoLA"], folder / "CoLA/dev.tsv")
        assert cola.columns[0][0] == "The sailors rode the breeze clear of the rocks."
        mrpc = read_examples(TASKS["MRPC"], folder / "MRPC/train.tsv")
        assert mrpc.columns[0][0].endswith(
            '"the witness", of deliberately distorting his evidence.'
        )
        assert (mrpc.columns[1][1][:8], mrpc.labels[1]) == ("Yucaipa ", "0")

    @pytest.mark.parametrize("name", TASKS)
    def test_every_layout(self, glue_dir, name):
        task, rng = TASKS[name], random.Random(name)
        for split, count in (("train", 60), *((split, 24) for split in task.valid)):
            found = read_examples(task, glue_dir / name / f"{split}.tsv")
            rows = [list(row) for row in zip(*found.columns, found.labels, strict=True)]
            assert rows == [example(name, number, rng) for number in range(count)]

    def test_quotes_line_ends_and_odd_characters(self, tmp_path):
        rows = ['1\ta\tb\tsays "no\tso\u2028 it\x85is', '0\ta\tb\t"\t\x0b']
        path = tmp_path / "train.tsv"
        path.write_bytes("\r\n".join([TITLES["MRPC"], *rows, ""]).encode())
        found = read_examples(TASKS["MRPC"], path)
        assert found.columns == (['says "no', '"'], ["so\u2028 it\x85is", "\x0b"])

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("CoLA", b"a\t1\t\tfine\na\t1\tfine\n", r"train.tsv, line 2: 3 columns instead of 4"),
            ("CoLA", b"a\t1\t\tfine\na\t2\t\tbad\n", r"line 2: label '2' is none of 0, 1"),
            ("CoLA", b"", "holds no example"),
            ("SST-2", b"sentence\tlabel\nno\t1\textra\n", r"line 2: 3 columns instead of 2"),
            ("SST-2", b"index\tsentence\n0\tno\n", r"line 1: there is no column 'label'"),
            ("SST-2", b"sentence\tlabel\n\xff\t1\n", "not UTF-8"),
            ("RTE", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral\n", "'neutral' is none"),
            (
                "STS-B",
                (TITLES["STS-B"] + "\n" + "x\t" * 9 + "5.5\n").encode(),
                r"line 2: score '5.5' is no number from 0 to 5",
            ),
            ("QQP", (TITLES["QQP"] + "\n1\t2\t3\n").encode(), "line 2: 3 columns instead of 6"),
        ],
    )
    def test_wrong_files(self, tmp_path, name, content, message):
        path = tmp_path / "train.tsv"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_examples(TASKS[name], path)

    def test_missing(self, tmp_path):
        with pytest.raises(MissingFileError, match=r"RTE file not found.*--glue-dir"):
            read_examples(TASKS["RTE"], tmp_path / "train.tsv")

    def test_a_few_broken_lines_of_qqp_are_left_out(self, tmp_path, caplog):
        path = tmp_path / "train.tsv"
        lines = [TITLES["QQP"], *["1\t2\t3\ta\tb\t0"] * 200, "1\t2\t3\ta"]
        path.write_text("\n".join(lines) + "\n")
        assert len(read_examples(TASKS["QQP"], path).labels) == 200
        assert "line 202: 4 columns instead of 6; such lines are left out: 1" in caplog.text

    def test_names(self):
        for name in ("SST-2", "sst2", "sst_2", "SST-2"):
            assert find_task(name).name == "SST-2"
        with pytest.raises(ConfigError, match=r"no GLUE task 'WNLI'.*CoLA"):
            find_task("WNLI")


LABELS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)
NUMBERS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40)


class TestScores:
    @given(LABELS)
    def test_of_classes(self, pairs):
        """Against the textbook formulas on the confusion matrix."""
        predicted, target = np.array(pairs).T
        tp, tn, fp, fn = (
            float(np.sum((predicted == a) & (target == b)))
            for a, b in ((1, 1), (0, 0), (1, 0), (0, 1))
        )
        assert SCORES["accuracy"](predicted, target) == pytest.approx((tp + tn) / len(pairs))
        f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0
        assert SCORES["f1"](predicted, target) == pytest.approx(f1)
        scale = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
        mcc = (tp * tn - fp * fn) / scale if scale else 0.0
        assert SCORES["mcc"](predicted, target) == pytest.approx(mcc, abs=1e-12)

    @given(NUMBERS)
    def test_of_numbers(self, pairs):
        """Against numpy, and the sum over pairs that ranks amount to."""
        x, y = np.array(pairs, dtype=np.float64).T
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            assert SCORES["pearson"](x, y) == SCORES["spearman"](x, y) == 0.0
            return
        assert SCORES["pearson"](x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
        ranks = [np.array([np.sign(v - row).sum() for v in row]) for row in (x, y)]
        assert SCORES["spearman"](x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])

    def test_against_the_libraries(self):
        metrics = pytest.importorskip("sklearn.metrics")
        stats = pytest.importorskip("scipy.stats")
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 2, (2, 300))
        assert SCORES["mcc"](x, y) == pytest.approx(metrics.matthews_corrcoef(y, x))
        assert SCORES["f1"](x, y) == pytest.approx(metrics.f1_score(y, x))
        a, b = rng.normal(size=(2, 300)).round(1)
        assert SCORES["pearson"](a, b) == pytest.approx(stats.pearsonr(a, b)[0])
        assert SCORES["spearman"](a, b) == pytest.approx(stats.spearmanr(a, b)[0])


def load(prepared: Any, task: Any, pretrained: Any, split: str) -> Any:
    settings = glue_runs.recipe(task, pretrained, prepared)
    config = options.make_config({}, settings)
    built = tasks.setup_task(config.task)
    built.load_dataset(split)
    return built, built.dataset(split)


class TestPreparation:
    @pytest.mark.parametrize(
        ("name", "model", "between"),
        [
            ("CoLA", "plain", ""),
            ("MNLI", "plain", " </s> </s> "),
            ("STS-B", "plain", " </s> </s> "),
            ("RTE", "bert", " </s> "),
        ],
    )
    def test_sentences_come_back(self, models, glue_dir, tmp_path, name, model, between):
        task, pretrained = TASKS[name], open_pretrained(str(models[model]))
        prepared = prepare(task, glue_dir, pretrained, tmp_path / "bin", 16)
        assert prepared.examples == 60
        for place, file in enumerate(("train", *task.valid)):
            split = ("train", "valid", "valid1")[place]
            built, dataset = load(prepared, task, pretrained, split)
            lengths = [len(dataset[i]["net_input.src_tokens"]) for i in range(len(dataset))]
            assert lengths == sorted(lengths)
            if split == "train":
                assert sum(lengths) == prepared.tokens
            found = []
            for i in range(len(dataset)):
                item = dataset[i]
                words = [built.dictionary[int(token)] for token in item["net_input.src_tokens"]]
                assert (words[0], words[-1]) == ("<s>", "</s>")
                target = np.asarray(item["target"]).item()
                label = task.classes[target] if task.classes else f"{5 * target:.3f}"
                found.append(" ".join([*words[1:-1], label]))
            content = read_examples(task, glue_dir / name / f"{file}.tsv")
            labels = content.labels
            if not task.classes:
                labels = [f"{float(label):.3f}" for label in labels]
            joined = [between.join(row) for row in zip(*content.columns, strict=True)]
            expected = [f"{text} {label}" for text, label in zip(joined, labels, strict=True)]
            assert sorted(found) == sorted(expected)

    @pytest.mark.parametrize("model", ["plain", "bert"])
    def test_long_examples_are_cut(self, models, glue_dir, tmp_path, model):
        pretrained = open_pretrained(str(models[model]))
        prepared = prepare(TASKS["RTE"], glue_dir, pretrained, tmp_path / "bin", 12)
        _, dataset = load(prepared, TASKS["RTE"], pretrained, "train")
        lengths = [len(dataset[i]["net_input.src_tokens"]) for i in range(len(dataset))]
        assert max(lengths) == 12
        assert min(lengths) < 12

    def test_it_is_done_once_per_content(self, models, glue_dir, tmp_path, monkeypatch):
        pretrained = open_pretrained(str(models["plain"]))
        source, folder = tmp_path / "glue", tmp_path / "bin"
        write_task(source, "SST-2")
        first = prepare(TASKS["SST-2"], source, pretrained, folder, 16)
        stamp = (folder / "input0/train.bin").stat().st_mtime_ns
        assert prepare(TASKS["SST-2"], source, pretrained, folder, 16) == first
        assert (folder / "input0/train.bin").stat().st_mtime_ns == stamp
        with open(source / "SST-2/train.tsv", "a") as handle:
            handle.write("w1 w2\t1\n")
        second = prepare(TASKS["SST-2"], source, pretrained, folder, 16)
        assert (second.examples, second.digest == first.digest) == (61, False)
        assert (folder / "input0/train.bin").stat().st_mtime_ns != stamp
        assert prepare(TASKS["SST-2"], source, pretrained, folder, 9).digest != second.digest

    def test_only_folders_of_its_own_are_replaced(self, models, glue_dir, tmp_path, monkeypatch):
        pretrained, folder = open_pretrained(str(models["plain"])), tmp_path / "bin"
        (folder / "input0").mkdir(parents=True)
        (folder / "input0" / "mine").write_text("months of work")
        with pytest.raises(ConfigError, match="was not made by fairseq-glue"):
            prepare(TASKS["CoLA"], glue_dir, pretrained, folder, 16)
        assert (folder / "input0" / "mine").read_text() == "months of work"
        (folder / "input0" / "mine").unlink()
        (folder / "input0").rmdir()
        with monkeypatch.context() as patch:  # a call that ends half-way leaves a mark
            patch.setattr("fairseq.evaluation.glue.prepare._finish_labels", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare(TASKS["CoLA"], glue_dir, pretrained, folder, 16)
        assert prepare(TASKS["CoLA"], glue_dir, pretrained, folder, 16).examples == 60
        assert not (folder / ".fairseq-glue").exists()

    def test_the_dictionary_is_the_checkpoints(self, models, glue_dir, tmp_path):
        pretrained = open_pretrained(str(models["zero_clap"]))
        assert len(pretrained.dictionary) == tiny_run.WORDS + 4
        prepare(TASKS["CoLA"], glue_dir, pretrained, tmp_path / "bin", 16)
        text = (tmp_path / "bin/input0/dict.txt").read_text()
        assert text == (models["plain"].parent.parent / "bin/dict.txt").read_text()

    def test_a_dictionary_of_another_model(self, models, tmp_path):
        (tmp_path / "dict.txt").write_text("".join(f"v{n} 9\n" for n in range(99)))
        with pytest.raises(CheckpointError, match="the dictionary has 10[34] entries"):
            open_pretrained(str(models["plain"]), str(tmp_path))
        (tmp_path / "dict.txt").unlink()
        with pytest.raises(MissingFileError, match="--dict-dir"):
            open_pretrained(str(models["plain"]), str(tmp_path))
        with pytest.raises(MissingFileError, match="checkpoint not found"):
            open_pretrained(str(tmp_path / "none.pt"))


def test_an_encoder_that_does_not_fit(models, glue_dir, tmp_path):
    pretrained = open_pretrained(str(models["plain"]))

    class Spells:
        def encode(self, text: str) -> str:
            return " ".join(text)

    other = dataclasses.replace(pretrained, encoder=Spells())
    with pytest.raises(DataError, match=r"are not in the checkpoint's dictionary.*--bpe"):
        prepare(TASKS["CoLA"], glue_dir, other, tmp_path / "bin", 16)
    assert prepare(TASKS["CoLA"], glue_dir, pretrained, tmp_path / "bin", 16).examples == 60


def run(capsys: Any, *words: Any) -> tuple[list[dict[str, Any]], str]:
    """Run the command; return its summary and what it said."""
    fixed = ["--cpu", "--json"]
    assert glue.main([str(word) for word in (*words, *fixed)]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.fixture
def never_train(monkeypatch: pytest.MonkeyPatch) -> Any:
    def forbid() -> None:
        def refuse(config: Any) -> None:
            raise AssertionError("trained again")

        monkeypatch.setattr(loop, "run_training", refuse)

    return forbid


class TestCommand:
    @pytest.mark.parametrize("model", ["plain", "zero_clap"])
    def test_scores_are_learnt_and_kept(
        self, models, glue_dir, tmp_path, capsys, never_train, model
    ):
        out = tmp_path / "out"
        words = [models[model], "--glue-dir", glue_dir, "--out", out]
        recipe = ["--lr", "0.01", "--max-epoch", "12", "--batch-size", "8"]
        rows, _ = run(capsys, *words, "--tasks", "CoLA", "--seeds", 1, 2, *recipe)
        assert [(row["task"], row["score"]) for row in rows] == [
            ("CoLA", "mcc"),
            ("CoLA", "accuracy"),
        ]
        assert rows[0]["seeds"] == [1, 2]
        assert rows[0]["best"] > 0.8
        assert (rows[0]["majority"], rows[1]["majority"]) == (0.0, 0.5)
        content = json.loads((out / "results.json").read_text())
        assert content["summary"] == rows
        assert content["versions"]["fairseq"]
        first = content["runs"][0]
        assert first["updates"] >= 12 * 8
        assert first["padding"] < 0.1
        assert not list(out.rglob("*.pt"))
        never_train()
        again, said = run(capsys, *words, "--tasks", "cola", "--seeds", 2, *recipe)
        assert "1 runs are in" in said
        assert again[0]["seeds"] == [2]
        with pytest.raises(AssertionError, match="trained again"):
            run(capsys, *words, "--tasks", "CoLA", "--seeds", 3, *recipe)
        with pytest.raises(AssertionError, match="trained again"):
            run(capsys, *words, "--tasks", "CoLA", "--seeds", 1, "--lr", "0.02")

    def test_every_kind_of_task(self, models, glue_dir, tmp_path, capsys):
        words = [models["plain"], "--glue-dir", glue_dir, "--out", tmp_path, "--seeds", 5]
        chosen = ["--tasks", "MNLI", "STS-B", "MRPC"]
        rows, said = run(capsys, *words, *chosen, "--lr", "0.01", "--max-epoch", "1")
        assert [(row["task"], row["score"]) for row in rows] == [
            ("MRPC", "accuracy"),
            ("MRPC", "f1"),
            ("STS-B", "pearson"),
            ("STS-B", "spearman"),
            ("MNLI", "accuracy matched"),
            ("MNLI", "accuracy mismatched"),
        ]
        majority = {(row["task"], row["score"]): row["majority"] for row in rows}
        assert majority["STS-B", "pearson"] == 0.0
        assert majority["MNLI", "accuracy matched"] == pytest.approx(1 / 3)
        assert "[3/3] MRPC, seed 5: accuracy" in said
        assert "left" in said

    def test_the_recipe_of_a_run(self, models, glue_dir, tmp_path, capsys):
        words = [models["zero_clap"], "--glue-dir", glue_dir, "--out", tmp_path]
        run(capsys, *words, "--tasks", "RTE", "--max-epoch", "2", "--seeds", "4")
        (file,) = tmp_path.glob("RTE/*-seed4/recipe.yaml")
        settings = yaml.safe_load(file.read_text())
        assert (settings["optimization"]["lr"], settings["dataset"]["batch_size"]) == ([2e-5], 16)
        updates = settings["lr_scheduler"]["total_num_update"]
        assert settings["lr_scheduler"]["warmup_updates"] == int(np.ceil(0.06 * updates))
        assert (settings["model"]["head"], settings["model"]["position"]) == (
            "clap",
            "alibi-asymmetric",
        )
        effective = yaml.safe_load((file.parent / "config.yaml").read_text())
        assert (effective["optimization"]["max_epoch"], effective["common"]["seed"]) == (2, 4)
        run_record = json.loads((tmp_path / "results.json").read_text())["runs"][0]
        assert run_record["updates"] == updates

    def test_a_probe_leaves_the_encoder_alone(self, models, glue_dir, tmp_path, capsys):
        words = [models["plain"], "--glue-dir", glue_dir, "--out", tmp_path, "--tasks", "SST-2"]
        probe = ["--freeze-encoder", "--pooling", "mean", "--lr", "0.05", "--max-epoch", "2"]
        run(capsys, *words, *probe, "--keep-checkpoints")
        (path,) = tmp_path.glob("SST-2/*-seed1/checkpoint_last.pt")
        before, after = safe_load(models["plain"])["model"], safe_load(path)["model"]
        for name, tensor in before.items():
            assert tensor.equal(after[name]), name
        assert any(name.startswith("classification_heads") for name in after)

    def test_an_interrupted_run_goes_on(self, models, glue_dir, tmp_path, capsys, monkeypatch):
        from fairseq.training.trainer import Trainer

        words = [models["plain"], "--glue-dir", glue_dir, "--tasks", "CoLA", "--lr", "0.01"]
        words += ["--max-epoch", "3", "--keep-checkpoints"]
        run(capsys, *words, "--out", tmp_path / "whole")
        original = Trainer.train_step

        def stop(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            if trainer.get_num_updates() >= 6:
                raise KeyboardInterrupt
            return original(trainer, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", stop)
            with pytest.raises(KeyboardInterrupt):
                run(capsys, *words, "--out", tmp_path / "parts")
        (folder,) = (tmp_path / "parts/CoLA").glob("*-seed1")
        assert (folder / "checkpoint_last.pt").is_file()
        assert not (tmp_path / "parts/results.json").exists()
        seen = tiny_run.Recorder(monkeypatch)
        run(capsys, *words, "--out", tmp_path / "parts")
        assert min(seen.losses) > 1
        (whole,) = (tmp_path / "whole/CoLA").glob("*-seed1")
        assert whole.name == folder.name
        left, right = (tiny_run.content(place / "checkpoint_last.pt") for place in (whole, folder))
        for name, tensor in left["model"].items():
            assert tensor.equal(right["model"][name]), name

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--tasks", "WNLI"], "no GLUE task 'WNLI'"),
            (["--tasks", "CoLA", "--no-save"], "CoLA, seed 1: fine-tuned model not found"),
            (["--tasks", "CoLA", "--glue-dir", "nowhere"], "CoLA file not found"),
        ],
    )
    def test_wrong_requests(self, models, glue_dir, tmp_path, words, message):
        given = [str(models["plain"]), "--glue-dir", str(glue_dir), "--out", str(tmp_path), "--cpu"]
        with pytest.raises((ConfigError, MissingFileError), match=message):
            glue.main([*given, "--max-epoch", "1", *words])

    def test_a_wrong_training_flag_is_a_wrong_command_line(
        self, models, glue_dir, tmp_path, capsys
    ):
        words = [str(models["plain"]), "--glue-dir", str(glue_dir), "--out", str(tmp_path)]
        with pytest.raises(SystemExit) as stop:
            glue.main([*words, "--tasks", "CoLA", "--bogus"])
        assert stop.value.code == 2
        assert "--bogus" in capsys.readouterr().err

    def test_what_is_named_twice_is_one_run(self, models, glue_dir, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "fairseq.evaluation.glue.runs.run_glue",
            lambda chosen, seeds, *rest: asked.append(([t.name for t in chosen], seeds)) or [],
        )
        words = [str(models["plain"]), "--glue-dir", str(glue_dir), "--out", str(tmp_path)]
        glue.main([*words, "--tasks", "CoLA", "MRPC", "CoLA", "--seeds", "2", "1", "2", "--json"])
        assert asked == [(["CoLA", "MRPC"], [2, 1])]

    def test_foreign_results_are_not_overwritten(self, models, glue_dir, tmp_path):
        (tmp_path / "results.json").write_text("[]")
        words = [str(models["plain"]), "--glue-dir", str(glue_dir), "--out", str(tmp_path)]
        with pytest.raises(DataError, match="no file of results"):
            glue.main([*words, "--tasks", "CoLA"])
        assert (tmp_path / "results.json").read_text() == "[]"


def test_the_table():
    def record(seed: int, best: float) -> dict[str, Any]:
        scores = {"best": {"accuracy": best}, "last": {"accuracy": 0.5}}
        common = {"task": "RTE", "digest": "d", "majority": {"accuracy": 0.527}}
        return {**common, "seed": seed, "scores": scores}

    rows = summarize([record(2, 0.7), record(1, 0.6)])
    assert rows[0]["spread"] == pytest.approx(0.0707107, abs=1e-6)
    assert table(rows).splitlines() == [
        "task  score     seeds  best  spread  last  majority",
        "RTE   accuracy      2  65.0     7.1  50.0      52.7",
    ]


def test_digests_tell_settings_apart_and_not_places(models, glue_dir, tmp_path):
    pretrained = open_pretrained(str(models["plain"]))
    task = TASKS["CoLA"]
    ready = [prepare(task, glue_dir, pretrained, tmp_path / name, 16) for name in ("a", "b")]

    def digest(place: int, *flags: str) -> str:
        settings = glue_runs.recipe(task, pretrained, ready[place])
        return glue_runs.digest_of(settings, flags, pretrained, ready[place])

    assert digest(0) == digest(1)
    assert len({digest(0), digest(0, "--lr", "1"), digest(0, "--lr", "2")}) == 3

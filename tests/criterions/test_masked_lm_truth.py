"""The loss against the truth, the endless stream, and the lookup table that is the truth."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.criterions.masked_lm_truth import COLUMNS, MaskedLmTruthConfig, MaskedLmTruthCriterion
from fairseq.errors import ConfigError, DataError
from fairseq.models.pcfg_lookup import PcfgLookup, PcfgLookupConfig
from fairseq.pcfg.score import score
from fairseq.pcfg.source import load_source
from fairseq.tasks.pcfg_masked_lm import PcfgMaskedLMConfig, PcfgMaskedLMTask
from fairseq_cli import train, validate

GRAMMAR = """\
S A B 0.6
S B A 0.4
A B B 0.5
A a 0.3
A b 0.2
B c 0.5
B a 0.25
B d 0.25
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    path = tmp_path / "g.rules"
    path.write_text(GRAMMAR)
    return str(path)


def task_of(rules: str, **settings: Any) -> PcfgMaskedLMTask:
    task = PcfgMaskedLMTask(PcfgMaskedLMConfig(grammar=rules, seed=3, **settings))
    for split in ("train", "valid"):
        task.load_dataset(split)
    return task


def batch_of(task: PcfgMaskedLMTask, split: str = "valid", count: int = 64) -> dict[str, Any]:
    data = task.datasets[split]
    return data.collater([data[index] for index in range(count)])


class Uniform(torch.nn.Module):
    """Says that every entry of the dictionary is as likely."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries = entries

    def forward(self, src_tokens: torch.Tensor, **unused: Any) -> Any:
        return torch.zeros(*src_tokens.shape, self.entries), None


def test_the_lookup_table_has_no_distance_from_the_truth(rules: str) -> None:
    task = task_of(rules, mask_count=2)
    model = PcfgLookup.build_model(PcfgLookupConfig(grammar=rules), task).eval()
    criterion = MaskedLmTruthCriterion(MaskedLmTruthConfig(grammar=rules), task)
    sample = batch_of(task)
    loss, size, log = criterion(model, sample)
    table = dict(zip(COLUMNS, log["_truth"].T, strict=True))
    assert size == len(sample["predicted_positions"]) and len(log["_truth"]) == 64
    assert table["kl"].abs().max() < 1e-6 and table["off_grammar"].abs().max() < 1e-6
    assert (table["agree"] == 1).all() and log["clamped"] == 0
    assert (table["optimum"] >= 0).all() and table["optimum"].max() > 0.5


def test_figures_of_a_model_that_knows_nothing(rules: str) -> None:
    task = task_of(rules)
    entries = len(task.dictionary)
    criterion = MaskedLmTruthCriterion(MaskedLmTruthConfig(grammar=rules), task)
    loss, size, log = criterion(Uniform(entries).eval(), batch_of(task))
    table = dict(zip(COLUMNS, log["_truth"].T, strict=True))
    assert loss.item() == pytest.approx(size * np.log(entries))
    np.testing.assert_allclose(table["ce"], np.log(entries), rtol=1e-6)
    np.testing.assert_allclose(table["kl"] + table["optimum"], table["ce"], rtol=1e-12)
    np.testing.assert_allclose(table["off_grammar"], 1 - 4 / entries, rtol=1e-6)


def test_soft_targets_have_the_expected_gradient_of_words(rules: str) -> None:
    task = task_of(rules)
    sample = batch_of(task, "train", 2000)
    grads = []
    for soft in (False, True):
        model = PcfgLookup.build_model(PcfgLookupConfig(grammar=rules), task).train()
        model.log_temperature.data += 0.7
        criterion = MaskedLmTruthCriterion(
            MaskedLmTruthConfig(grammar=rules, soft_targets=soft), task
        )
        loss, size, log = criterion(model, sample)
        (loss / size).backward()
        grads.append(model.log_temperature.grad.item())
        assert "_truth" not in log
    assert grads[1] > 0.01 and grads[0] == pytest.approx(grads[1], abs=0.05)


def test_the_truth_needs_hidden_words_of_one_sentence(rules: str) -> None:
    task = task_of(rules)
    criterion = MaskedLmTruthCriterion(MaskedLmTruthConfig(grammar=rules), task)
    model = Uniform(len(task.dictionary)).eval()
    sample = batch_of(task)
    shown = sample["net_input"]["src_tokens"].view(-1)
    shown[sample["predicted_positions"][0]] = task.dictionary.index("a")
    with pytest.raises(ConfigError, match="--random-token-prob 0"):
        criterion(model, sample)
    word = task.dictionary.index("a")
    with pytest.raises(DataError, match="--sample-break-mode eos"):
        criterion.truth.conditionals(np.array([[0, word, 2, word, 2]]))
    with pytest.raises(DataError, match="no word of the grammar"):
        criterion.truth.conditionals(np.array([[0, task.dictionary.unk(), 2]]))
    with pytest.raises(ConfigError, match="needs --grammar"):
        MaskedLmTruthCriterion(MaskedLmTruthConfig(), task)
    with pytest.raises(ConfigError, match="masks words"):
        MaskedLmTruthCriterion(
            MaskedLmTruthConfig(grammar=rules), SimpleNamespace(target_dictionary=task.dictionary)
        )


def test_the_stream_is_a_function_of_seed_epoch_and_index(rules: str) -> None:
    first, again = task_of(rules).datasets["train"], task_of(rules).datasets["train"]
    order = [5, 700, 6, 64, 63, 5]
    for index in order:
        np.testing.assert_array_equal(first[index]["tokens"], again[index]["tokens"])
    again.set_epoch(2)
    assert any(
        first[index]["tokens"].tolist() != again[index]["tokens"].tolist() for index in range(20)
    )
    valid = task_of(rules).datasets["valid"]
    before = [valid[index]["hidden"].tolist() for index in range(50)]
    valid.set_epoch(2)
    assert before == [valid[index]["hidden"].tolist() for index in range(50)]


def test_train_and_validate_against_the_truth(
    rules: str, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    common = ["--grammar", rules, "--batch-size", "50", "--valid-sentences", "3000"]
    train.run(["--task", "pcfg_masked_lm", "--criterion", "masked_lm_truth", "--arch",
               "pcfg_lookup", "--optimizer", "sgd", "--lr", "0.1", "--max-update", "2",
               "--epoch-sentences", "50", "--save-dir", str(run), *common])  # fmt: skip
    capsys.readouterr()
    validate.run(
        [
            "--task",
            "pcfg_masked_lm",
            "--path",
            str(run / "checkpoint_last.pt"),
            "--batch-size",
            "100",
            "--json",
        ]
    )
    found = json.loads(capsys.readouterr().out)["valid"]
    source = load_source(rules)
    sentences = source.draw(np.random.default_rng(0), 4000, 32).split()
    expected = score(source, sentences).optimum()
    for mean in ("macro", "micro"):
        assert 0 <= found[f"kl_{mean}"] + 1e-6 < 0.02  # a step or two from the truth
        apart = abs(found[f"optimum_{mean}"] - expected[f"optimum_{mean}"])
        assert apart < 4 * np.hypot(found[f"optimum_{mean}_se"], expected[f"optimum_{mean}_se"])
        assert abs(found[f"nll_{mean}"] - found[f"ce_{mean}"]) < 4 * found[f"nll_{mean}_se"]
    assert "is not read" not in caplog.text
    # a folder that is named beside a task that draws is not what is evaluated
    path = str(run / "checkpoint_last.pt")
    validate.run([str(tmp_path), "--path", path, "--batch-size", "100", "--json"])
    assert f"makes its samples itself: {tmp_path} is not read" in caplog.text


def test_words_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.rules"
    path.write_text("S <mask> 1\n")
    with pytest.raises(DataError, match="rename it"):
        PcfgMaskedLMTask(PcfgMaskedLMConfig(grammar=str(path)))
    with pytest.raises(ConfigError, match="needs --grammar"):
        PcfgMaskedLMTask(PcfgMaskedLMConfig(grammar=None))


def test_a_stream_goes_to_workers_that_are_spawned(rules: str) -> None:
    stream = task_of(rules).datasets["train"]
    stream.set_epoch(3)
    there = pickle.loads(pickle.dumps(stream))
    for index in (0, 5, 700):
        ours, theirs = stream[index], there[index]
        assert ours["tokens"].tolist() == theirs["tokens"].tolist()
        assert ours["hidden"].tolist() == theirs["hidden"].tolist()

"""The loss against a task: its head by another formula, its sign, and a training with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.criterions.masked_lm_adversarial import (
    MaskedLmAdversarial,
    MaskedLmAdversarialConfig,
    head_error,
)
from fairseq.errors import ConfigError, DataError
from fairseq.tasks.pcfg_masked_lm import PcfgMaskedLMConfig, PcfgMaskedLMTask
from fairseq_cli import pcfg, train

MODEL = (
    "--arch roberta --encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 "
    "--encoder-attention-heads 2 --dropout 0 --attention-dropout 0"
).split()


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    rules = str(folder / "g.rules")
    sizes = "--levels 2 --width 3 --roots 3 --binary 4 --vocab 9 --emit 6".split()
    assert pcfg.main(["grammar", "--seed", "0", *sizes, "--out", rules]) == 0
    words = ["downstream", rules, str(folder / "task"), "--task", "C", "--num", "300"]
    assert pcfg.main([*words, "--min-len", "2", "--drop-unparsable"]) == 0
    return folder


def kernel_error(x: Any, y: Any, held: Any, held_y: Any, ridge: float) -> float:
    """The dual of ridge regression: as many equations as sentences, not channels."""
    x, held = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, held))
    alpha = np.linalg.inv(x @ x.T + ridge * np.eye(len(x))) @ y
    return float(((held @ x.T @ alpha - held_y) ** 2).mean())


@pytest.mark.parametrize(("fitted", "channels"), [(12, 5), (4, 9)])
def test_the_head_is_that_of_kernel_ridge_regression(fitted: int, channels: int) -> None:
    rng = np.random.default_rng(1)
    x, held = rng.normal(size=(fitted, channels)), rng.normal(size=(7, channels))
    y, held_y = rng.normal(size=(fitted, 3)), rng.normal(size=(7, 3))
    found = head_error(*map(torch.from_numpy, (x, y, held, held_y)), ridge=0.01)
    assert float(found) == pytest.approx(kernel_error(x, y, held, held_y, 0.01), rel=1e-9)


def test_gradients_reach_both_halves() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    targets = [torch.randn(5, 2, dtype=torch.float64) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda a, b: head_error(a, targets[0], b, targets[1], 0.1), parts
    )


def test_the_loss_is_that_of_the_model_minus_the_error(language: Path) -> None:
    task = PcfgMaskedLMTask(PcfgMaskedLMConfig(grammar=str(language / "g.rules"), seed=3))
    task.load_dataset("train")
    data = task.datasets["train"]
    sample = data.collater([data[number] for number in range(16)])
    settings = {"adv_task_data": str(language / "task"), "adv_batch": 64}
    criterion = MaskedLmAdversarial(MaskedLmAdversarialConfig(adv_lambda=2.5, **settings), task)
    plain = MaskedLmLoss(MaskedLmConfig(), task)
    vocabulary = len(task.dictionary)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(vocabulary, 8)
            self.out = torch.nn.Linear(8, vocabulary)

        def forward(self, tokens: Any = None, src_tokens: Any = None, **given: Any) -> Any:
            states = self.table(src_tokens if tokens is None else tokens)
            if given.get("features_only"):
                return states, None
            return self.out(states)[given["masked_tokens"]], None

    model = Model()
    torch.manual_seed(7)
    loss, size, log = criterion(model, sample)
    expected, same_size, _ = plain(model, sample)
    torch.manual_seed(7)
    chosen = torch.randperm(len(criterion.rows))[:64]
    x = np.stack(
        [model.table(criterion.rows[k][1:-1]).mean(0).detach().numpy() for k in chosen.tolist()]
    ).astype(np.float64)
    y = criterion.target_SK[chosen].double().numpy()
    error = kernel_error(x[:32], y[:32], x[32:], y[32:], 1e-3)
    assert size == same_size == 16
    assert float(log["adversarial"]) / size == pytest.approx(error, rel=2e-3)
    assert float(loss.detach()) == pytest.approx(
        float(expected.detach()) - 2.5 * size * error, rel=1e-3
    )
    assert float(criterion(model.eval(), sample)[0]) == float(plain(model, sample)[0])


def test_training_logs_both_terms_and_resumes(language: Path, tmp_path: Path) -> None:
    words = [
        "--task", "pcfg_masked_lm", "--grammar", str(language / "g.rules"), "--criterion",
        "masked_lm_adversarial", "--adv-task-data", str(language / "task"), *MODEL, "--optimizer",
        "adam", "--lr", "0.01", "--batch-size", "16", "--valid-sentences", "32", "--num-workers",
        "0", "--device", "cpu", "--log-format", "none", "--log-interval", "1", "--seed", "1",
    ]  # fmt: skip

    def trained(name: str, updates: int) -> list[dict[str, Any]]:
        more = ["--max-update", str(updates), "--save-dir", str(tmp_path / name)]
        assert train.run([*words, *more]) == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["tag"] == "train_inner"]

    whole = trained("whole", 4)
    trained("parts", 2)
    parts = trained("parts", 4)
    assert all(0 < row["adversarial"] < 10 for row in whole)
    assert [row["adversarial"] for row in parts] == [row["adversarial"] for row in whole]
    assert [row["loss"] for row in parts] == [row["loss"] for row in whole]


def test_operations_of_the_head_are_those_counted_by_hand(language: Path, tmp_path: Path) -> None:
    words = [*"--task pcfg_masked_lm --optimizer sgd --lr 0.01 --batch-size 16".split(), *MODEL]
    words += "--disable-validation --num-workers 0 --device cpu --log-format none".split()
    words += ["--log-interval", "1", "--grammar", str(language / "g.rules"), "--max-update", "3"]
    # 30 sentences of four words and two classes, so that all batches of the task are alike
    text = [f"w00{row % 9} w001 w002 w003" for row in range(30)]
    known = {word for line in (language / "task/train.input0").open() for word in line.split()}
    first = sorted(known)[0]
    text = [" ".join(word if word in known else first for word in row.split()) for row in text]
    (tmp_path / "train.input0").write_text("\n".join(text) + "\n")
    (tmp_path / "train.label").write_text("A\nB\n" * 15)
    adversarial = f"masked_lm_adversarial --adv-batch 20 --adv-task-data {tmp_path}"
    totals = []
    for number, criterion in enumerate(("masked_lm", adversarial)):
        folder = tmp_path / str(number)
        more = ["--criterion", *criterion.split(), "--save-dir", str(folder), "--seed", "1"]
        assert train.run([*words, *more]) == 0
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        totals.append([row for row in map(json.loads, lines) if "flops" in row][-1]["flops"])
    layer = 4 * 16 * 16 + 2 * 16 * 16  # attention, feed-forward
    rows, length, width, classes = 20, 4 + 2, 16, 2
    model = 2 * rows * length * layer + 2 * (2 * rows * length**2 * width)  # scores, values
    head = 2 * (10 * width * width + 10 * width * classes + 10 * width * classes)
    assert totals[1] - totals[0] == 3 * 3 * (model + head)  # updates; forward, two of backward


def test_what_does_not_fit_is_refused(language: Path, tmp_path: Path) -> None:
    task = PcfgMaskedLMTask(PcfgMaskedLMConfig(grammar=str(language / "g.rules")))
    with pytest.raises(ConfigError, match="--adv-task-data"):
        MaskedLmAdversarial(MaskedLmAdversarialConfig(), task)
    (tmp_path / "train.input0").write_text("w001 nonsense\nw002\n")
    (tmp_path / "train.label").write_text("A\nB\n")
    with pytest.raises(DataError, match="line 1"):
        MaskedLmAdversarial(MaskedLmAdversarialConfig(adv_task_data=str(tmp_path)), task)
    (tmp_path / "train.label").write_text("A\n")
    with pytest.raises(DataError, match="1 labels"):
        MaskedLmAdversarial(MaskedLmAdversarialConfig(adv_task_data=str(tmp_path)), task)


def test_mixed_precision_leaves_the_head_alone() -> None:
    """Features with a common direction: the ridge is far below what bfloat16 rounds away."""
    torch.manual_seed(0)
    common = torch.randn(64)
    fitted, held = (common + 0.05 * torch.randn(64, 64) for _ in range(2))
    target = torch.randn(64, 3)
    alone = head_error(fitted, target, held, target, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head_error(fitted, target, held, target, 1e-3), alone)

"""Tasks on random tokens: what a batch holds, and training without a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.config import options
from fairseq.files.safe_load import safe_load
from fairseq.tasks import setup_task
from fairseq.tasks.dummy_lm import DummyLMConfig, DummyMaskedLMConfig
from fairseq.training import loop

SIZES: dict[str, Any] = {"dict_size": 30, "dataset_size": 12, "tokens_per_sample": 8}
BOS, PAD, EOS = 0, 1, 2


def batch_of(name: str, seed: int = 1, split: str = "train", **settings: Any) -> dict[str, Any]:
    kinds = {"dummy_lm": DummyLMConfig, "dummy_masked_lm": DummyMaskedLMConfig}
    config = kinds[name](**SIZES, seed=seed, **settings)
    config._name = name
    task = setup_task(config)
    task.load_dataset(split, epoch=1)
    dataset = task.dataset(split)
    return dataset.collater([dataset[i] for i in range(len(dataset))])


@pytest.mark.parametrize("bos", [False, True])
def test_the_next_token_is_predicted(bos: bool) -> None:
    batch = batch_of("dummy_lm", add_bos_token=bos)
    source_BT, target_BT = batch["net_input"]["src_tokens"], batch["target"]
    assert source_BT.shape == target_BT.shape == (12, 8)
    first = int(bos)
    assert not bos or (source_BT[:, 0].eq(BOS).all() and target_BT[:, 0].eq(BOS).all())
    assert source_BT[:, first].eq(EOS).all() and target_BT[:, -1].eq(EOS).all()
    assert source_BT[:, first + 1 :].equal(target_BT[:, first:-1])
    words_BT = target_BT[:, first:-1]
    assert words_BT.min() >= 4 and words_BT.max() < 34 and words_BT.unique().numel() > 15


def test_hidden_tokens_are_predicted() -> None:
    batch = batch_of("dummy_masked_lm")
    source_BT, target_BT = batch["net_input"]["src_tokens"], batch["target"]
    assert source_BT.shape == (12, 8) and source_BT[:, 0].eq(BOS).all()
    shown_BT = target_BT.eq(PAD)
    assert 0 < (~shown_BT).sum() < shown_BT.sum()
    assert source_BT[~shown_BT].eq(40).any() and not source_BT[shown_BT].eq(40).any()


def test_lines_follow_from_seed_and_split() -> None:
    def target(**settings: Any) -> torch.Tensor:
        return batch_of("dummy_lm", **settings)["target"]

    assert target().equal(target())
    assert not target().equal(target(seed=2)) and not target().equal(target(split="valid"))


@pytest.mark.parametrize(
    ("task", "arch", "criterion"),
    [
        ("dummy_lm", "transformer_lm", "cross_entropy"),
        ("dummy_masked_lm", "roberta_tiny", "masked_lm"),
    ],
)
def test_training_needs_no_data_folder(
    tmp_path: Path, task: str, arch: str, criterion: str
) -> None:
    prefix = "decoder" if task == "dummy_lm" else "encoder"
    # fmt: off
    words = [
        "--task", task, "--arch", arch, "--criterion", criterion, "--optimizer", "adam",
        f"--{prefix}-layers", "1", f"--{prefix}-embed-dim", "16", f"--{prefix}-ffn-embed-dim", "16",
        f"--{prefix}-attention-heads", "2", "--dict-size", "30", "--dataset-size", "12",
        "--tokens-per-sample", "8", "--batch-size", "4", "--lr", "0.01", "--max-update", "3",
        "--save-dir", str(tmp_path), "--cpu", "--log-format", "none", "--num-workers", "0",
    ]
    # fmt: on
    args = options.parse_args_and_arch(options.get_training_parser(argv=()), words)
    loop.run_training(options.make_config(vars(args)))
    assert safe_load(str(tmp_path / "checkpoint_last.pt"))["extra_state"]["val_loss"] > 0

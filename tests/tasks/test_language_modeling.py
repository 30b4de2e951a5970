"""The language-modelling task: blocks, targets, prompts, contexts, training from the command line.

Shapes: B batch, T time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.config import options
from fairseq.data.datasets.causal_lm import MonolingualDataset
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.errors import ConfigError, DataError
from fairseq.files.safe_load import safe_load
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.training import loop
from tests import tiny_run

LINES = [[4, 5, 6, 2], [7, 2], [8, 9, 10, 11, 2]]
PAD, EOS, BOS = 1, 2, 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data-bin"
    folder.mkdir()
    words = "".join(f"w{n} {100 - n}\n" for n in range(12))
    (folder / "dict.txt").write_text(words, encoding="utf-8")
    builder = make_builder(str(folder / "train.bin"), "mmap", 16)
    for line in LINES:
        builder.add_item(torch.tensor(line))
    builder.finalize(str(folder / "train.idx"))
    return folder


def a_task(data: Path, **settings: Any) -> LanguageModelingTask:
    settings = {"tokens_per_sample": 4, "seed": 1, "dataset_impl": None, **settings}
    cfg = LanguageModelingConfig(data=str(data), **settings)
    task = LanguageModelingTask.setup_task(cfg)
    task.load_dataset("train")
    return task


def items(task: LanguageModelingTask) -> list[tuple[list[int], list[int]]]:
    dataset = task.dataset("train")
    found = [dataset[i] for i in range(len(dataset))]
    return [(item["source"].tolist(), item["target"].tolist()) for item in found]


def test_sources_are_the_targets_one_token_earlier(data: Path) -> None:
    stream = [token for line in LINES for token in line]
    found = items(a_task(data))
    assert [token for _, target in found for token in target] == stream
    assert [token for source, _ in found for token in source] == [EOS, *stream[:-1]]
    assert [len(target) for _, target in found] == [4, 4, 3]


def test_sentences_as_blocks(data: Path) -> None:
    found = items(a_task(data, sample_break_mode="eos", tokens_per_sample=8))
    assert found == [([EOS, *line[:-1]], line) for line in LINES]


def test_begin_of_sentence_in_front(data: Path) -> None:
    source, target = items(a_task(data, add_bos_token=True))[0]
    assert source == [BOS, EOS, 4, 5, 6] and target == [BOS, 4, 5, 6, 2]


@pytest.mark.parametrize(
    ("settings", "mark"),
    [({}, EOS), ({"add_bos_token": True}, BOS), ({"sample_break_mode": "line"}, BOS)],
)
def test_prompts_begin_as_texts_do(data: Path, settings: dict[str, Any], mark: int) -> None:
    task = LanguageModelingTask.setup_task(LanguageModelingConfig(data=str(data), **settings))
    dataset = task.build_dataset_for_inference([torch.tensor([4, 5, EOS])], [3])
    assert dataset.collater([dataset[0]])["net_input"]["src_tokens"].tolist() == [[mark, 4, 5]]


def test_a_batch(data: Path) -> None:
    dataset = a_task(data).dataset("train")
    batch = dataset.collater([dataset[0], dataset[2]])
    assert batch["net_input"]["src_tokens"].tolist() == [[2, 4, 5, 6], [9, 10, 11, PAD][-4:]] or (
        batch["net_input"]["src_tokens"].tolist()[1][-1] == PAD
    )
    assert batch["ntokens"] == 7 and batch["nsentences"] == 2
    target = batch["target"].flatten()
    assert batch["predicted_positions"].tolist() == target.ne(PAD).nonzero()[:, 0].tolist()


def test_fixed_shapes(data: Path) -> None:
    task = a_task(data, pad_to_fixed_length=True, pad_to_fixed_bsz=True, batch_size=3)
    dataset = task.dataset("train")
    assert dataset.collater([dataset[2]])["target"].shape == (3, 4)


def test_a_smaller_output_dictionary(data: Path) -> None:
    task = a_task(data, output_dictionary_size=8)
    assert len(task.target_dictionary) == 8 and len(task.source_dictionary) == 16
    targets = {token for _, target in items(task) for token in target}
    assert targets <= set(range(8)) and 3 in targets


@pytest.mark.parametrize("flag, source_of", [("self_target", 0), ("past_target", -1)])
def test_other_targets(data: Path, flag: str, source_of: int) -> None:
    task = a_task(data, **{flag: True})
    source, target = items(task)[1]
    assert (target == source) == (source_of == 0)
    if source_of:
        assert target[1:] == source[:-1]
    config = tiny_run.SMALL | {"task": "language_modeling", "arch": "transformer_lm"}
    settled = options.make_config({**config, "criterion": "cross_entropy", "data": str(data)})
    with pytest.raises(ConfigError, match="cannot predict"):
        task.build_model(settled.model)


def test_prompts(data: Path) -> None:
    task = a_task(data)
    prompts = [torch.tensor([5, 6, 2]), torch.tensor([7, 8, 9])]
    dataset = task.build_dataset_for_inference(prompts, [3, 3])
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["net_input"]["src_tokens"].tolist() == [[EOS, 5, 6, PAD], [EOS, 7, 8, 9]]
    assert batch["target"].tolist() == [[5, 6, PAD, PAD], [7, 8, 9, PAD]]


def test_context_comes_from_the_blocks_before() -> None:
    dictionary = Dictionary()
    for word in range(10):
        dictionary.add_symbol(str(word))
    blocks = [torch.tensor([4, 5, 6, 7]), torch.tensor([8, 9, 10, 11]), torch.tensor([12, 13])]
    dataset = MonolingualDataset(blocks, [4, 4, 2], dictionary)
    task = LanguageModelingTask(LanguageModelingConfig(tokens_per_sample=4), dictionary)
    batches = list(
        task.eval_lm_dataloader(dataset=dataset, batch_size=1, context_window=2, num_workers=0)
    )
    sources = [batch["net_input"]["src_tokens"][0].tolist() for batch in batches]
    assert [[t for t in s if t != PAD] for s in sources] == [
        [4, 5, 6, 7],
        [6, 7, 8, 9, 10, 11],
        [10, 11, 12, 13],
    ]
    targets = [batch["target"][0].tolist() for batch in batches]
    assert targets[0][:4] == [4, 5, 6, 7] and targets[1] == [PAD, PAD, 8, 9, 10, 11]
    assert [batch["start_indices"] for batch in batches] == [[0], [2], [2]]


def test_data_of_a_larger_dictionary_are_refused(data: Path) -> None:
    (data / "dict.txt").write_text("w0 1\nw1 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="token id 11"):
        a_task(data)


def test_a_run_saves_what_the_original_reads(tmp_path: Path, shared: Path) -> None:
    """The checkpoint of a plain model has the sections and keys of the original's."""
    corpus = tiny_run.make_corpus(tmp_path / "data")
    settings = {
        "task": "language_modeling",
        "arch": "transformer_lm",
        "criterion": "cross_entropy",
        "decoder_embed_dim": 16,
        "decoder_input_dim": 16,
        "decoder_output_dim": 16,
        "decoder_ffn_embed_dim": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
    }
    flat = {k: v for k, v in tiny_run.SMALL.items() if not k.startswith(("encoder_", "max_pos"))}
    flat |= settings
    cfg = options.make_config({**flat, "data": str(corpus), "save_dir": str(tmp_path / "run")})
    torch.set_num_threads(1)
    loop.run_training(cfg)
    ours = safe_load(str(tmp_path / "run" / "checkpoint_last.pt"))
    path = shared / "compat" / "checkpoints" / "fb_lm" / "model.pt"
    theirs = safe_load(str(path))
    for section in ("model", "task", "criterion"):
        assert set(ours["cfg"][section]) <= set(theirs["cfg"][section]), section
    names = {name.replace("layers.1", "layers.0") for name in ours["model"]}
    known = {name.replace("layers.1", "layers.0") for name in theirs["model"]}
    assert names - known == {"decoder.output_projection.weight"} - known

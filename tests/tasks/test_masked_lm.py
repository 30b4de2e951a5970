"""The masked-LM task: from binarized text to masked batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import MMapIndexedDatasetBuilder, make_builder
from fairseq.data.storage.manifest import DatasetEntry, write_manifest
from fairseq.errors import ConfigError, DataError, MissingFileError, UnsupportedError
from fairseq.tasks import setup_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

PAD, EOS = 1, 2
# pieces of words, four of which begin one; a filler rounds the size
PIECES = ["_a", "_bb", "_c", "_d", "x", "y", "z", "madeupword0000"]


def write_dictionary(folder: Path) -> Dictionary:
    dictionary = Dictionary()
    for piece in PIECES:
        dictionary.add_symbol(piece, n=0 if piece.startswith("madeup") else 7)
    folder.mkdir(exist_ok=True)
    dictionary.save(str(folder / "dict.txt"))
    return dictionary


def write_split(folder: Path, split: str, lines: list[list[int]]) -> None:
    builder = MMapIndexedDatasetBuilder(str(folder / f"{split}.bin"), np.uint16)
    for line in lines:
        builder.add_item(torch.tensor([*line, EOS]))
    builder.finalize(str(folder / f"{split}.idx"))


def random_lines(seed: int, lines: int = 40, longest: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 11, rng.integers(1, longest)).tolist() for _ in range(lines)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "a"
    write_dictionary(folder)
    write_split(folder, "train", random_lines(0))
    write_split(folder, "valid", random_lines(1, lines=9))
    return folder


def a_task(data: Any, **settings: Any) -> MaskedLMTask:
    config = MaskedLMConfig(**{"data": str(data), "tokens_per_sample": 16, "seed": 1, **settings})
    return MaskedLMTask.setup_task(config)


def batches(task: MaskedLMTask, split: str = "train", epoch: int = 1) -> list[dict[str, Any]]:
    task.load_dataset(split, epoch=epoch)
    iterator = task.get_batch_iterator(task.dataset(split), max_sentences=4, epoch=epoch)
    return list(iterator.next_epoch_itr(shuffle=False))


# -- what comes out --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "complete", "eos"])
@pytest.mark.parametrize("omit_mask", [False, True])
def test_masked_tokens_are_the_originals_and_nothing_else_is(
    data: Path, mode: str, omit_mask: bool
) -> None:
    settings = {"mask_prob": 0.5, "random_token_prob": 0.0, "leave_unmasked_prob": 0.0}
    task = a_task(data, sample_break_mode=mode, omit_mask=omit_mask, **settings)
    assert task.mask_idx == 12 and len(task.source_dictionary) == 12 + (not omit_mask)
    assert task.target_dictionary is task.source_dictionary
    seen = 0
    # by a path, under the name it has in the original
    plain = task._load_dataset_split(str(data / "train"), 1, False)
    for batch in batches(task):
        net_input = batch["net_input"]
        for row, index in enumerate(batch["id"].tolist()):
            length = int(net_input["src_lengths"][row])
            source_T = net_input["src_tokens"][row]
            target_T = batch["target"][row]
            assert source_T[length:].eq(PAD).all() and target_T[length:].eq(PAD).all()
            original_T = plain[index]
            assert len(original_T) == length and original_T[0] == 0
            masked_T = source_T[:length] == task.mask_idx
            assert target_T[:length][masked_T].equal(original_T[masked_T])
            assert source_T[:length][~masked_T].equal(original_T[~masked_T])
            assert target_T[:length][~masked_T].eq(PAD).all()
            assert not masked_T[original_T < 3].any()  # <s> and </s> are never hidden
            seen += int(masked_T.sum())
        flat = batch["target"].flatten()
        assert batch["predicted_positions"].equal(flat.ne(PAD).nonzero()[:, 0])
        assert net_input["src_id"].equal(batch["id"])
    assert seen > 20


@pytest.mark.parametrize("settings", [{"skip_masking": True}, {"mask_prob": 0.0}])
def test_without_masks_every_token_is_predicted(data: Path, settings: dict[str, Any]) -> None:
    for batch in batches(a_task(data, include_index=False, **settings)):
        assert batch["target"].equal(batch["net_input"]["src_tokens"])
        assert set(batch["net_input"]) == {"src_tokens", "src_lengths"}


def test_training_masks_change_with_the_epoch_and_validation_masks_do_not(data: Path) -> None:
    task = a_task(data)
    first, again, second = (batches(task, "train", epoch) for epoch in (1, 1, 2))
    sources = [torch.cat([b["net_input"]["src_tokens"].flatten() for b in bs])
               for bs in (first, again, second)]  # fmt: skip
    assert sources[0].equal(sources[1]) and not sources[0].equal(sources[2])


def sources(task: MaskedLMTask, split: str, epoch: int) -> torch.Tensor:
    rows = [batch["net_input"]["src_tokens"].flatten() for batch in batches(task, split, epoch)]
    return torch.cat(rows)


@pytest.mark.parametrize("data_rng", ["philox", "fairseq-main", "fairseq-0.12"])
def test_static_masks_come_back(data: Path, data_rng: str) -> None:
    task = a_task(data, static_masks=3, data_rng=data_rng)
    drawn = [sources(task, "train", epoch) for epoch in range(1, 8)]
    for epoch in range(3):
        assert drawn[epoch].equal(drawn[epoch + 3])
        assert not drawn[epoch].equal(drawn[epoch + 1])
    other = a_task(data, data_rng=data_rng)
    assert drawn[0].equal(sources(other, "train", 1))  # epoch e has the masks of e modulo N
    assert drawn[3].equal(sources(other, "train", 1))
    assert sources(task, "valid", 1).equal(sources(other, "valid", 1))
    once = a_task(data, static_masks=1, data_rng=data_rng)
    assert sources(once, "train", 1).equal(sources(once, "train", 2))


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_tokens_of_each_sample_are_masked(data: Path, count: int) -> None:
    task = a_task(data, mask_count=count, mask_prob=0.0, tokens_per_sample=8)
    plain = task.unmasked_blocks("train")
    seen = set()
    for batch in batches(task):
        for row, index in enumerate(batch["id"].tolist()):
            maskable = int((plain[index] > 2).sum())
            masked = int((batch["target"][row] != PAD).sum())
            assert masked == min(count, maskable)
            seen.add(masked)
    assert count in seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_count": -1}, "--mask-count must not be negative"),
        ({"mask_count": 1, "data_rng": "fairseq-main"}, "--data-rng philox"),
        ({"mask_count": 1, "mask_multiple_length": 2}, "counts tokens"),
        ({"static_masks": -1}, "--static-masks must not be negative"),
    ],
)
def test_counts_that_make_no_sense_are_refused(
    data: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        a_task(data, **settings).load_dataset("train")


def test_the_originals_number_of_blocks(shared: Path) -> None:
    folder = shared / "compat" / "checkpoints" / "data-bin"
    task = a_task(folder, tokens_per_sample=64, sample_break_mode="none")
    task.load_dataset("valid")
    assert len(task.dataset("valid")) == 163
    assert len(task.source_dictionary) == 1505 and task.mask_idx == 1504


class Pieces:
    """Stands in for a text encoder: a piece that begins with ``_`` begins a word."""

    def is_beginning_of_word(self, piece: str) -> bool:
        return piece.startswith("_")


def test_whole_words_are_masked_or_not(data: Path) -> None:
    task = a_task(data, mask_whole_words=True, mask_prob=0.4)
    with pytest.raises(ConfigError, match="--mask-whole-words needs --bpe"):
        task.load_dataset("train")
    task.bpe = Pieces()
    plain = task.unmasked_blocks("train")
    partial = whole = 0
    for batch in batches(task):
        for row, index in enumerate(batch["id"].tolist()):
            hidden_T = batch["target"][row] != PAD
            words: list[list[bool]] = []
            for position, token in enumerate(plain[index].tolist()):
                begins = token < 8 or int(plain[index][position - 1]) < 4
                words = [*words, []] if begins or not words else words
                words[-1].append(bool(hidden_T[position]))
            whole += sum(all(word) and len(word) > 1 for word in words)
            partial += sum(any(word) and not all(word) for word in words)
    assert whole > 5 and partial == 0


# -- lengths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["complete", "eos"])
@pytest.mark.parametrize("method", ["truncate", "random_crop"])
@pytest.mark.parametrize("data_rng, longest", [("philox", 16), ("fairseq-main", 17)])
def test_no_sample_is_too_long_because_of_its_first_token(
    data: Path, mode: str, method: str, data_rng: str, longest: int
) -> None:
    lengths = [13, 14, 15, 16, 17, 40]  # without </s>
    write_split(data, "train", [[4] * length for length in lengths])
    task = a_task(data, shorten_method=method, sample_break_mode=mode, data_rng=data_rng)
    task.load_dataset("train")
    sizes = task.dataset("train").sizes
    assert sizes.tolist() == [min(length + 2, longest) for length in lengths]
    kept = task.filter_indices_by_size(
        np.arange(6), task.dataset("train"), task.max_positions(), ignore_invalid_inputs=True
    )
    # the original loses every text that it shortens
    assert len(kept) == (6 if data_rng == "philox" else 2)


def test_only_the_named_splits_are_shortened(data: Path) -> None:
    for split in ("train", "valid"):
        write_split(data, split, [[4] * 30])
    task = a_task(data, shorten_method="truncate", shorten_data_split_list="valid",
                  sample_break_mode="eos")  # fmt: skip
    for split, size in (("train", 32), ("valid", 16)):
        task.load_dataset(split)
        assert task.dataset(split).sizes.tolist() == [size]


def test_blocks_that_are_too_long_are_refused_or_left_out(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_split(data, "train", [[4] * 30, [5] * 3])
    task = a_task(data, sample_break_mode="eos")
    task.load_dataset("train")
    dataset = task.dataset("train")
    with pytest.raises(DataError, match=r"sample #0 .*\(=32\).*--skip-invalid-size-inputs-valid-t"):
        task.get_batch_iterator(dataset, max_sentences=2, max_positions=16)
    iterator = task.get_batch_iterator(
        dataset, max_sentences=2, max_positions=16, ignore_invalid_inputs=True
    )
    assert [b["id"].tolist() for b in iterator.next_epoch_itr(shuffle=False)] == [[1]]
    assert "1 samples have invalid sizes" in caplog.text
    with pytest.raises(DataError, match="all are longer than max_positions=2"):
        task.get_batch_iterator(
            dataset,
            max_sentences=2,
            max_positions=2,
            ignore_invalid_inputs=True,
            disable_iterator_cache=True,
        )


# -- folders and errors ----------------------------------------------------------------------------


def test_shards_take_turns_and_validation_stays(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "b"
    write_dictionary(other)
    write_split(other, "train", [[7, 7, 7]])
    task = a_task(f"{data}:{other}")
    assert task.has_sharded_data("train") and not a_task(data).has_sharded_data("train")
    sizes = []
    for epoch in (1, 2, 3):
        task.load_dataset("train", epoch=epoch)
        sizes.append(len(task.dataset("train")))
    assert sizes[0] == sizes[2] > sizes[1] == 1
    task.load_dataset("valid", epoch=2)
    assert len(task.dataset("valid")) > 1


@pytest.mark.parametrize("kind", [MaskedLMTask, LanguageModelingTask])
def test_shards_of_another_dictionary_are_refused(data: Path, tmp_path: Path, kind: Any) -> None:
    other = tmp_path / "b"
    write_dictionary(other)
    config = {MaskedLMTask: MaskedLMConfig, LanguageModelingTask: LanguageModelingConfig}[kind]

    def setup(lines: list[str]) -> None:
        (other / "dict.txt").write_text("".join(f"{line}\n" for line in lines))
        kind.setup_task(config(data=f"{data}:{other}"))

    lines = (other / "dict.txt").read_text().splitlines()
    setup([f"{line.split()[0]} 1" for line in lines[:7]])  # counts may differ
    setup(lines[:4])  # and words be missing at the end
    words = [*lines[:2], lines[3], lines[2], *lines[4:]]
    with pytest.raises(DataError, match=rf"{other}.* id 6 .*'_d', but '_c' in {data}.*--srcdict"):
        setup(words)
    with pytest.raises(DataError, match="id 11 .*'more', but no word"):
        setup([*lines[:7], "more 1"])
    (other / "dict.txt").unlink()
    kind.setup_task(config(data=f"{data}:{other}:{tmp_path}/none"))  # nothing to compare with


def test_numbered_files_are_combined_on_request(data: Path) -> None:
    write_split(data, "train1", [[7, 7, 7]])
    task = a_task(data, sample_break_mode="eos")
    sizes = []
    for combine in (False, True):
        task.load_dataset("train", combine=combine)
        sizes.append(len(task.dataset("train")))
    assert sizes == [40, 41]


def test_missing_things_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data folder is given"):
        a_task("")
    with pytest.raises(DataError, match="data folder not found: .*nowhere"):
        a_task(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"Dataset not found: test .*fairseq-preprocess"):
        a_task(data).load_dataset("test")
    with pytest.raises(KeyError, match="Dataset not loaded: train"):
        a_task(data).dataset("train")
    (data / "dict.txt").unlink()
    with pytest.raises(MissingFileError, match="dict.txt.*fairseq-preprocess"):
        a_task(data)


def test_an_empty_split_is_refused(data: Path) -> None:
    write_split(data, "train", [])
    with pytest.raises(DataError, match="holds no text"):
        a_task(data).load_dataset("train")


@pytest.mark.parametrize("omit_mask", [False, True])
@pytest.mark.parametrize("manifest", [False, True])
def test_data_of_a_larger_dictionary_are_refused(
    data: Path, manifest: bool, omit_mask: bool
) -> None:
    write_split(data, "train", [[4] * 10, [4, 12]])  # 12 is <mask>, or nothing
    if manifest:
        entry = DatasetEntry("mmap", 2, 14, 12, "dict.txt")
        files = ["train.bin", "train.idx", "dict.txt"]
        digest = write_manifest(data, files, {}).files["dict.txt"].sha256
        entry = DatasetEntry("mmap", 2, 14, 12, "dict.txt", digest)
        write_manifest(data, files, {"train": entry})
    with pytest.raises(DataError, match="holds token id 12, but the dictionary has 12 entries"):
        a_task(data, omit_mask=omit_mask).load_dataset("train")
    write_split(data, "valid", [[4, 11]])
    a_task(data, omit_mask=omit_mask).load_dataset("valid")


def test_old_formats_may_hold_the_last_word_of_the_dictionary(data: Path) -> None:
    """They store ids plus one, as files of the original do, which have no manifest."""
    for end in ("bin", "idx"):
        (data / f"train.{end}").unlink(missing_ok=True)
    builder = make_builder(str(data / "train.bin"), "cached", 12)
    builder.add_item(torch.tensor([4, 11, 2]))
    builder.finalize(str(data / "train.idx"))
    task = a_task(data)
    task.load_dataset("train")
    assert task.dataset("train")[0]["tokens"].tolist()[-2:] == [11, 2]
    builder = make_builder(str(data / "valid.bin"), "cached", 13)
    builder.add_item(torch.tensor([4, 12, 2]))
    builder.finalize(str(data / "valid.idx"))
    with pytest.raises(DataError, match="holds token id 12"):
        task.load_dataset("valid")


def test_a_mask_in_the_dictionary_is_used(data: Path) -> None:
    dictionary = write_dictionary(data)
    dictionary.add_symbol("<mask>", n=1)
    dictionary.add_symbol("last", n=1)
    dictionary.save(str(data / "dict.txt"))
    write_split(data, "train", [[4, 13]])
    task = a_task(data)
    assert task.mask_idx == 12 and len(task.source_dictionary) == 14
    task.load_dataset("train")


def test_what_does_not_exist_here_is_refused(data: Path) -> None:
    with pytest.raises(UnsupportedError, match="--include-target-tokens"):
        a_task(data, include_target_tokens=True)


def test_settings_used_alone_have_their_defaults(data: Path) -> None:
    task = setup_task(config := MaskedLMConfig(data=str(data), _name="masked_lm"))
    assert task.cfg.seed == 1 and task.data_rng == "philox" and task.train_split == "train"
    assert config.tokens_per_sample == task.max_positions() == 1024


# -- the dictionary and the checkpoint's table -----------------------------------------------------


@pytest.mark.parametrize("omit_mask", [False, True])
def test_the_dictionary_fits_itself_to_the_table(data: Path, omit_mask: bool) -> None:
    own = 0 if omit_mask else 1
    for words in (11, 12, 15):
        task = a_task(data, omit_mask=omit_mask)
        before = task.source_dictionary
        assert task.fit_dictionary(words + own)
        assert len(task.source_dictionary) == words + own
        assert task.mask_idx == words
        assert task.source_dictionary.symbols[:11] == before.symbols[:11]
        assert ("<mask>" in task.source_dictionary) is not omit_mask
    task = a_task(data, omit_mask=omit_mask)
    before, size = task.source_dictionary, len(task.source_dictionary)
    assert not task.fit_dictionary(10 + own)  # a real word would be lost
    assert not task.fit_dictionary(1000)
    assert task.source_dictionary is before and len(before) == size


def test_inference_takes_sequences_as_they_are(data: Path) -> None:
    task = a_task(data)
    sequences = [torch.tensor([4, 5, 6, EOS]), torch.tensor([7, EOS]), torch.tensor([8, 9, EOS])]
    dataset = task.build_dataset_for_inference(sequences, [4, 2, 3])
    assert dataset.ordered_indices().tolist() == [1, 2, 0]
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["id"].tolist() == [0, 1]
    assert batch["net_input"]["src_tokens"].tolist() == [[0, 4, 5, 6, 2], [0, 7, 2, 1, 1]]
    assert batch["net_input"]["src_lengths"].tolist() == [5, 3]
    unsorted = task.build_dataset_for_inference(sequences, [4, 2, 3], sort=False)
    assert unsorted.ordered_indices().tolist() == [0, 1, 2]

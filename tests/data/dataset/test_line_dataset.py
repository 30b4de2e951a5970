"""Lines as samples: what is cut, marked and left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq import tasks
from fairseq.config.options import make_config
from fairseq.data.line_dataset import SHORTEST_LEFT_OUT, LineDataset, ShiftedLineDataset
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.errors import ConfigError, DataError

WORDS = Dictionary()
for _word in range(40):
    WORDS.add_symbol(f"w{_word}")
BOS, EOS, UNK = WORDS.bos(), WORDS.eos(), WORDS.unk()


def pieces(lines: list[list[int]], longest: int, kind: Any = LineDataset) -> list[Any]:
    found = kind(
        [np.array(line) for line in lines], np.array([len(x) for x in lines]), WORDS, longest
    )
    assert found.sizes.tolist() == [len(x[0] if isinstance(x, tuple) else x) for x in found]
    return [x if isinstance(x, tuple) else x.tolist() for x in found]


lines_of_words = st.lists(
    st.tuples(st.lists(st.integers(4, 43), min_size=12, max_size=60), st.booleans()), min_size=1
)


@given(lines_of_words, st.integers(14, 40))
def test_pieces_are_marked_short_enough_and_make_up_the_lines(
    lines: list[tuple[list[int], bool]], longest: int
) -> None:
    found = pieces([[*words, *([EOS] if ends else [])] for words, ends in lines], longest)
    assert all(piece[0] == BOS and piece[-1] == EOS and len(piece) <= longest for piece in found)
    wanted = []
    for words, _ in lines:
        whole = [BOS, *words, EOS]
        if len(whole) <= longest:
            wanted.append(words)
            continue
        cut = [whole[n : n + longest - 2] for n in range(0, len(whole), longest - 2)]
        cut = [[t for t in piece if t not in (BOS, EOS)] for piece in cut]
        assert [t for piece in cut for t in piece] == words
        wanted += [piece for piece in cut if len(piece) + 2 > SHORTEST_LEFT_OUT]
    assert [piece[1:-1] for piece in found] == wanted


def test_short_and_mostly_unknown_lines_are_left_out(caplog: Any) -> None:
    caplog.set_level("INFO")
    ten, nine = list(range(4, 14)), list(range(4, 13))
    half = [*[UNK] * 7, *range(4, 9)]  # 14 tokens with the marks, 7 of them unknown
    less = [*[UNK] * 6, *range(4, 10)]
    assert pieces([ten, nine, half, less], 20) == [[BOS, *ten, EOS], [BOS, *less, EOS]]
    assert "1 of at most 11 tokens, 1 that are mostly unknown" in caplog.text
    with pytest.raises(DataError, match="leaves nothing of 1 lines"):
        pieces([nine], 20)
    with pytest.raises(ConfigError, match="3 tokens"):
        pieces([ten], 2)


def test_causal_models_predict_all_but_the_first() -> None:
    words = list(range(4, 20))
    [(source_T, target_T, _)] = pieces([[*words, EOS]], 30, ShiftedLineDataset)
    assert source_T.tolist() == [BOS, *words] and target_T.tolist() == [*words, EOS]


@pytest.mark.parametrize("task", ["masked_lm", "language_modeling"])
def test_the_tasks_read_lines(task: str, tmp_path: Path) -> None:
    WORDS.save(tmp_path / "dict.txt")
    builder = make_builder(str(tmp_path / "train.bin"), "mmap", len(WORDS))
    for length in (5, 12, 60):
        builder.add_item(torch.tensor([*[7] * length, EOS]))
    builder.finalize(str(tmp_path / "train.idx"))
    settings = {"task": task, "data": str(tmp_path), "sample_break_mode": "line"}
    built = tasks.setup_task(make_config({**settings, "tokens_per_sample": 24}).task)
    built.load_dataset("train")
    dataset = built.dataset("train")
    # pieces of 62 marked tokens are cut by 22, or, for causal models, whose samples lack one, by 23
    wanted = {"masked_lm": [14, 23, 24, 19], "language_modeling": [13, 23, 24, 16]}
    assert dataset.sizes.tolist() == wanted[task]
    batch = dataset.collater([dataset[2]])
    assert batch["net_input"]["src_tokens"].shape == (1, 24)
    assert batch["net_input"]["src_tokens"][0, 0] == BOS

"""A checkpoint knows its dictionaries: another order is refused wherever one is loaded."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import WORDS, config, content, make_corpus, train

from fairseq.checkpoint.files import write_checkpoint
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.dictionary_record import digest_of, meaningful_symbols
from fairseq.errors import CheckpointError, FairseqError
from fairseq.evaluation import validate
from fairseq.tasks.dictionaries import check_dictionaries

LM = {
    "task": "language_modeling",
    "criterion": "cross_entropy",
    "arch": "transformer_lm",
    "decoder_layers": 1,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 16,
    "decoder_attention_heads": 2,
}
KINDS: dict[str, dict[str, Any]] = {"masked": {}, "causal": LM}


def dictionary(*words: str) -> Dictionary:
    made = Dictionary()
    for word in words:
        made.add_symbol(word)
    return made


@given(st.lists(st.text("abc", min_size=1), unique=True, max_size=9), st.integers(1, 9))
def test_what_a_load_adds_or_drops_does_not_count(words: list[str], multiple: int) -> None:
    plain, padded = dictionary(*words), dictionary(*words)
    padded.pad_to_multiple_(multiple)
    padded.add_symbol("<mask>")
    assert meaningful_symbols(plain) == meaningful_symbols(padded) == plain.symbols
    if len(words) > 1:
        other = meaningful_symbols(dictionary(*words[::-1]))
        assert digest_of(other) != digest_of(plain.symbols)


def test_the_border_between_symbols_counts() -> None:
    assert digest_of(["a", "bc"]) != digest_of(["ab", "c"])


@pytest.fixture(scope="module", params=KINDS)
def trained(request: Any, tmp_path_factory: Any) -> SimpleNamespace:
    """Return a short run, its data, and the same data with two words of the dictionary swapped."""
    folder = tmp_path_factory.mktemp(request.param)
    data, swapped, run = make_corpus(folder / "data"), folder / "swapped", folder / "run"
    settings = {**KINDS[request.param], "max_update": 2}
    train(config(data, run, **settings))
    shutil.copytree(data, swapped)
    lines = [f"w{n} {1000 - n}\n" for n in range(WORDS)]
    lines[3], lines[4] = lines[4], lines[3]
    (swapped / "dict.txt").write_text("".join(lines), encoding="utf-8")
    return SimpleNamespace(
        kind=request.param, data=data, swapped=swapped, run=run, settings=settings
    )


def use_in_hub(run: Any, data: Path) -> Any:
    from fairseq.models.roberta import RobertaModel
    from fairseq.models.transformer_lm import TransformerLanguageModel

    kind = RobertaModel if run.kind == "masked" else TransformerLanguageModel
    return kind.from_pretrained(str(run.run), "checkpoint_last.pt", str(data), bpe="none")


def eval_lm(run: Any, data: Path) -> Any:
    from fairseq.evaluation.perplexity import evaluate

    if run.kind == "masked":
        pytest.skip("it has no next token")
    return evaluate({"path": f"{run.run}/checkpoint_last.pt", "data": data, "gen_subset": "valid"})


def generate(run: Any, data: Path) -> Any:
    from fairseq.hub.continue_text import generate

    if run.kind == "masked":
        pytest.skip("it has no next token")
    given = {"path": f"{run.run}/checkpoint_last.pt", "data": str(data), "gen_subset": "valid"}
    return list(generate({**given, "prefix_size": 2, "batch_size": 4, "cpu": True})[0])


def go_on(run: Any, data: Path, **settings: Any) -> Any:
    where = run.run.parent / f"{data.name}-{'-'.join(settings)}"
    last = str(run.run / "checkpoint_last.pt")
    settings = dict.fromkeys(settings, last)
    return train(config(data, where, **{**run.settings, "max_update": 3, **settings}))


DOORS: dict[str, Callable[[Any, Path], Any]] = {
    "resume": lambda run, data: go_on(run, data, restore_file=""),
    "fine-tune": lambda run, data: go_on(run, data, finetune_from_model=""),
    "validate": lambda run, data: validate(
        {"path": f"{run.run}/checkpoint_last.pt", "data": str(data), "cpu": True}
    ),
    "eval-lm": eval_lm,
    "generate": generate,
    "hub": use_in_hub,
}


@pytest.mark.parametrize("door", DOORS)
def test_another_order_is_refused(trained: SimpleNamespace, door: str) -> None:
    DOORS[door](trained, trained.data)
    with pytest.raises(CheckpointError, match="not the one that .* was trained with"):
        DOORS[door](trained, trained.swapped)


def test_glue_refuses_another_order(trained: SimpleNamespace) -> None:
    from fairseq.evaluation.glue.prepare import open_pretrained

    if trained.kind == "causal":
        pytest.skip("it classifies nothing")
    path = str(trained.run / "checkpoint_last.pt")
    open_pretrained(path, dict_dir=str(trained.data), bpe="none")
    with pytest.raises(FairseqError, match="not the one that"):
        open_pretrained(path, dict_dir=str(trained.swapped), bpe="none")


def a_task(**parts: Dictionary) -> Any:
    return SimpleNamespace(dictionaries=lambda: parts)


def recorded(**parts: list[str]) -> dict[str, Any]:
    record = {k: {"symbols": len(v), "sha256": digest_of(v)} for k, v in parts.items()}
    return {"extra_state": {"fairseq_lm": {"dictionaries": record}}}


def test_words_in_place_of_fillers_are_told(caplog: Any) -> None:
    state = recorded(source=dictionary("a", "b").symbols)
    check_dictionaries("x.pt", state, a_task(source=dictionary("a", "b")))
    assert not caplog.records
    check_dictionaries("x.pt", state, a_task(source=dictionary("a", "b", "new")))
    assert "1 symbols more" in caplog.text
    with pytest.raises(CheckpointError, match="5 symbols"):
        check_dictionaries("x.pt", state, a_task(source=dictionary("a")))


def test_labels_in_another_order_are_other_classes() -> None:
    state = recorded(labels=dictionary("yes", "no").symbols)
    other = a_task(labels=dictionary("no", "yes"))
    with pytest.raises(CheckpointError, match="labels"):
        check_dictionaries("x.pt", state, other)
    check_dictionaries("x.pt", state, other, but=("labels",))


def test_a_file_of_another_program_is_compared_with_what_lies_beside_it(
    tmp_path: Path, caplog: Any
) -> None:
    path, task = str(tmp_path / "model.pt"), a_task(source=dictionary("a", "b"))
    check_dictionaries(path, {}, task)
    assert "only its size was compared" in caplog.text
    caplog.clear()
    dictionary("a", "b").save(tmp_path / "dict.txt")
    check_dictionaries(path, {}, task)
    assert not caplog.records
    dictionary("b", "a").save(tmp_path / "dict.txt")
    check_dictionaries(path, {}, task)
    assert "the same ids mean other words" in caplog.text


def test_all_parts_of_a_sentence_task_are_kept() -> None:
    from fairseq.tasks.dictionaries import dictionary_record
    from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

    words, labels = dictionary("a", "b"), dictionary("yes", "no")
    task = SentencePredictionTask(SentencePredictionConfig(num_classes=2), words, labels)
    kept = dictionary_record(task)["dictionaries"]
    assert kept["source"] == {"symbols": 6, "sha256": digest_of(words.symbols[:6])}
    assert kept["labels"] == {"symbols": 6, "sha256": digest_of(labels.symbols)}


# -- evaluation of files without a record ----------------------------------------------------------


def test_evaluation_drops_nothing_and_says_whose_masks_are_drawn(
    tmp_path: Path, caplog: Any
) -> None:
    data, run = make_corpus(tmp_path / "data", valid_lines=70), tmp_path / "run"
    # 38 blocks: four batches of eight, and six are left
    train(config(data, run, max_update=2, required_batch_size_multiple=8, batch_size=8))
    state = content(run / "checkpoint_last.pt")
    del state["extra_state"]["fairseq_lm"]
    write_checkpoint(state, str(tmp_path / "plain.pt"), {})
    given = {"data": str(data), "cpu": True}
    ours = validate({"path": str(run / "checkpoint_last.pt"), **given})["valid"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        plain = validate({"path": str(tmp_path / "plain.pt"), **given})["valid"]
    assert plain["bsz"] == ours["bsz"]
    assert plain["wpb"] == ours["wpb"]
    told = next(r.getMessage() for r in caplog.records if "--data-rng" in r.getMessage())
    assert "all 38 samples in 5 batches" in told
    assert "the original drops the last 6" in told
    same = validate({"path": str(tmp_path / "plain.pt"), **given, "data_rng": "philox"})["valid"]
    assert same["loss"] == ours["loss"]
    assert plain["loss"] != ours["loss"]

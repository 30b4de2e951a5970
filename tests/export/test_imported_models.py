"""Models that were imported, in use: their text encoder is found, and so is its absence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_export_causal import byte_level, their_model

from fairseq.checkpoint.layout import config_of
from fairseq.evaluation.continuations import load
from fairseq.export.encoder_in import from_huggingface
from fairseq.export.encoder_out import load_ours
from fairseq.files.safe_load import safe_load
from fairseq.hub.continue_text import interact
from fairseq_cli import eval_lm, flags, generate

TEXT = ["The cat of the house"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported GPT-2 with a tokenizer, in ``with``, and one without, in ``without``."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "theirs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        their_model("gpt2", 300, bos_token_id=299, eos_token_id=299).save_pretrained("theirs")
        from_huggingface(Path("theirs"), Path("without"), TEXT)
        their_model("gpt2", 300, bos_token_id=0, eos_token_id=0).save_pretrained("theirs")
        byte_level(Path("theirs"), {"<|endoftext|>": 0}, 1)
        from_huggingface(Path("theirs"), Path("with"), TEXT)
    return folder


def test_a_checkpoint_names_the_folder_that_stays(folder: Path) -> None:
    config = config_of(safe_load(folder / "with/model.pt"))
    assert (config.task.data, config.bpe.byte_level_tokenizer) == ("with", "with/tokenizer.json")
    assert config_of(safe_load(folder / "without/model.pt")).task.data == "without"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_generation_finds_the_encoder(
    elsewhere: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path if elsewhere else folder)
    given = {"data": str(folder / "with"), "path": str(folder / "with/model.pt"), "cpu": True}
    found, _ = interact({**given, "beam": 1, "max_len_b": 20}, io.StringIO(f"{TEXT[0]}\n"))
    assert next(found).hypotheses[0].text.startswith(TEXT[0])


def given_by(module: Any, *argv: str) -> dict[str, Any]:
    task = ["--task", "language_modeling"]
    return flags.stated_flags(module.make_parser(argv), [*argv, *task], "language_modeling")


def test_the_file_of_an_encoder_chooses_it(folder: Path, tmp_path: Path) -> None:
    for module in (generate, eval_lm):
        given = given_by(module, "data", "--byte-level-tokenizer", "a/tokenizer.json")
        assert given["bpe"] == "byte_level" and given["byte_level_tokenizer"] == "a/tokenizer.json"
    assert flags.encoder_of_flags(["x", "--gpt2-vocab-bpe=y"]) == "gpt2"
    assert flags.encoder_of_flags(["x", "--beam", "2", "gpt2_vocab_bpe"]) is None
    assert "bpe" not in given_by(generate, "data", "--beam", "2")
    # a file that is named wins over the one beside the dictionary
    given = {"data": str(folder / "with"), "path": str(folder / "with/model.pt"), "cpu": True}
    missing = str(tmp_path / "none.json")
    with pytest.raises(ValueError, match="none.json"):
        interact({**given, "bpe": "byte_level", "byte_level_tokenizer": missing}, io.StringIO())


def test_a_folder_without_tokenizer_has_no_encoder(folder: Path) -> None:
    """Its dictionary holds decimal numbers, as that of GPT-2 does."""
    path = folder / "without/model.pt"
    assert load_ours(path, None).bpe is None
    assert load({"path": str(path), "cpu": True})[3] is None


def test_last_words_without_encoder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "5 6 9"}\n')
    argv = [str(folder / "with"), "--path", str(folder / "with/model.pt"), "--cpu", "--json"]
    last = ["--last-word", str(tmp_path / "texts.jsonl"), "--bpe", "none"]
    assert eval_lm.run([*argv, *last]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["unknown"]) == (1, 0)
    with pytest.raises(ValueError, match="--bpe none belongs to --last-word"):
        eval_lm.run([*argv, "--bpe", "none"])
    with pytest.raises(SystemExit):
        eval_lm.run([*argv, *last[:-1], "some"])
    assert "choose from byte_level" in capsys.readouterr().err

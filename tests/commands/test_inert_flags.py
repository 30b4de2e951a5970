"""Evaluating and exporting commands refuse flags that would do nothing."""

from __future__ import annotations

import re

import pytest

from fairseq.errors import ConfigError
from fairseq_cli import eval_lm, export, validate


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "x.png"], "--plot belongs to --per-sample"),
        (["--top-k", "3"], "--top-k belongs to --write-teacher-cache"),
        (["--cache-force"], "--cache-force belongs to --write-teacher-cache"),
        (["--pseudo-ppl-blocks", "3"], "--pseudo-ppl-blocks belongs to --pseudo-ppl"),
        (["--pseudo-ppl", "--at-lengths", "8"], "--pseudo-ppl and --at-lengths .*one at a time"),
        (["--write-teacher-cache", "c", "--per-sample", "s.csv"], "one at a time"),
        (["--pseudo-ppl", "--pseudo-ppl-blocks", "2", "--write-teacher-cache", "c"], "one at a"),
        (["--last-word", "x.jsonl", "--pseudo-ppl"], "--last-word and --pseudo-ppl .*one at a"),
        (["--minimal-pairs", "x", "--per-sample", "s.csv"], "one at a time"),
        (["--last-word", "x.jsonl", "--minimal-pairs", "x"], "one at a time"),
        (["--pseudo-ppl", "--text-key", "foo"], "--text-key belongs to --last-word"),
        (["--minimal-pairs", "x", "--text-key", "foo"], "--text-key belongs to --last-word"),
        (["--pseudo-ppl", "--pseudo-ppl-blocks", "0"], "must be at least 1"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate.run(["nowhere", "--path", "nothing.pt", *words])


def test_the_key_of_a_file_that_is_not_read_is_refused_by_both_commands() -> None:
    with pytest.raises(ConfigError, match="--text-key belongs to --last-word"):
        eval_lm.run(["nowhere", "--path", "nothing.pt", "--text-key", "foo"])


@pytest.mark.parametrize(
    ("way", "words", "message"),
    [
        ("--to safetensors", "--classification-head foo", "--classification-head .* --to hf"),
        ("--to safetensors", "--bpe gpt2", "--bpe .* --to hf"),
        ("--to fairseq", "--sentences va.txt", "--sentences .* --to hf and --from hf"),
        ("--to fairseq", "--data /nowhere", "--data .* --to hf and --add-head"),
        ("--from hf", "--wordpiece-vocab v.txt", "--wordpiece-vocab .* --to hf"),
        ("--from hf", "--log-unigram-bias", "--log-unigram-bias .* --add-head"),
        ("--add-head tied", "--push me/mine", "--push .* --to hf"),
        ("--add-head tied", "--revisions", "--revisions .* --to hf"),
        ("--to hf", "--public", "--public .* --push"),
    ],
)
def test_what_a_direction_does_not_read_is_refused(
    way: str, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        export.main(["nothing.pt", *way.split(), "--out", "x", *words.split()])
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])

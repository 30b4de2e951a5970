"""fairseq-generate and fairseq-interactive: their lines, their JSON, their ways of being called."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.config import options
from fairseq.errors import ConfigError, DataError, MissingFileError
from fairseq.hub.continue_text import TextGenerator
from fairseq.training import loop
from fairseq_cli import generate, interactive
from tests import tiny_run

MODEL = {
    "task": "language_modeling",
    "criterion": "cross_entropy",
    "arch": "transformer_lm",
    "decoder_layers": 1,
    "decoder_embed_dim": 16,
    "decoder_input_dim": 16,
    "decoder_output_dim": 16,
    "decoder_ffn_embed_dim": 16,
    "decoder_attention_heads": 2,
    "max_update": 2,
    "total_num_update": 2,
    "tokens_per_sample": 24,
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train a model for two updates; return its file and its data."""
    folder = tmp_path_factory.mktemp("lm")
    data = tiny_run.make_corpus(folder / "data-bin")
    shared = {
        k: v for k, v in tiny_run.SMALL.items() if "encoder" not in k and k != "max_positions"
    }
    save_dir = str(folder / "run")
    cfg = options.make_config({**shared, **MODEL, "data": str(data), "save_dir": save_dir})
    torch.set_num_threads(1)
    loop.run_training(cfg)
    return {"path": str(folder / "run" / "checkpoint_last.pt"), "data": str(data), "cpu": True}


def argv_of(lm: dict[str, Any], *more: str) -> list[str]:
    return [lm["data"], "--path", lm["path"], "--cpu", "--log-format", "none", *more]


def by_kind(text: str) -> dict[str, list[list[str]]]:
    """Return the fields of all lines by their letter."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        letter, _, rest = line.partition("-")
        assert letter in "STHDPW", line
        found.setdefault(letter, []).append(rest.split("\t"))
    return found


def test_lines_of_generate(lm: dict[str, Any], capsys: Any) -> None:
    argv = argv_of(lm, "--gen-subset", "valid", "--prefix-size", "2", "--max-len-b", "6")
    assert generate.run([*argv, "--beam", "3", "--nbest", "2"]) == 0
    kinds = by_kind(capsys.readouterr().out)
    assert len(kinds["S"]) == len(kinds["T"]) == 8
    assert len(kinds["H"]) == len(kinds["D"]) == len(kinds["P"]) == 16
    targets = dict(kinds["T"])
    assert dict(kinds["S"]) == targets  # sources are targets with an end in front
    for (number, score, text), (_, scores) in zip(kinds["H"], kinds["P"], strict=True):
        each = [float(x) for x in scores.split()]
        assert text.split()[:2] == targets[number].split()[:2]
        assert len(text.split()) < len(each) <= 7
        assert float(score) == pytest.approx(sum(each) / len(each), abs=1e-3)


def test_json_says_the_same(lm: dict[str, Any], capsys: Any) -> None:
    argv = argv_of(lm, "--gen-subset", "valid", "--beam", "2", "--max-len-b", "12")
    generate.run(argv)
    kinds = by_kind(capsys.readouterr().out)
    generate.run([*argv, "--json", "--scoring", "bleu"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[str(r["id"]), str(r["score"]), r["hypothesis"]] for r in records] == kinds["H"]
    assert [[str(r["id"]), r["target"]] for r in records] == kinds["T"]
    for record in records:  # without --prefix-size the whole line is the prompt
        assert record["hypothesis"].startswith(record["source"])
        assert record["rank"] == 0 and record["text"] == record["hypothesis"]


def test_scores_are_in_bits(lm: dict[str, Any]) -> None:
    writer = TextGenerator({**lm, "beam": 1, "max_len_b": 6})
    (one,) = writer.continue_lines(["w1 w2"])
    sample = writer.task.build_dataset_for_inference([torch.tensor([5, 6, 2])], [3])
    batch = sample.collater([sample[0]])
    ((found,),) = writer.task.inference_step(writer.generator, writer.models, batch)
    assert one.hypotheses[0].score == pytest.approx(float(found["score"]) / math.log(2))
    assert one.source == "w1 w2" and one.target is None
    assert writer.tally.sentences == 1


def test_interactive_reads_as_it_goes(lm: dict[str, Any]) -> None:
    """Without a buffer an answer comes before the next line is read."""
    events: list[str] = []

    def lines() -> Any:
        for line in ("w1 w2\n", "\n", "w3 strange\n"):
            events.append("read")
            yield line

    for one in TextGenerator({**lm, "beam": 1, "max_len_b": 6}).continue_lines(lines()):
        events.append(one.source)
    assert events == ["read", "w1 w2", "read", "", "read", "w3 <unk>"]


@pytest.mark.parametrize("settings", [{"beam": 2}, {"sampling": True, "beam": 1, "seed": 7}])
def test_the_buffer_changes_nothing(lm: dict[str, Any], settings: dict[str, Any]) -> None:
    texts = ["w1 w2", "w3", "", "w4 w5 w6 w7", "w3"]

    def answers(**more: Any) -> list[list[str]]:
        writer = TextGenerator({**lm, "max_len_b": 10, **settings, **more})
        found = list(writer.continue_lines(texts))
        assert [one.number for one in found] == [0, 1, 2, 3, 4]
        return [[one.pieces for one in result.hypotheses] for result in found]

    alone = answers()
    assert alone == answers(buffer_size=2) == answers(buffer_size=9, batch_size=2)
    if "sampling" in settings:
        assert alone != answers(seed=8)
        assert alone[1] != alone[4]  # each line has draws of its own


def test_interactive_skips_lines_that_are_too_long(lm: dict[str, Any]) -> None:
    texts = ["w1", " ".join(["w1"] * 3000), "w2"]
    settings = {**lm, "beam": 1, "max_len_b": 6, "skip_invalid_size_inputs_valid_test": True}
    found = list(TextGenerator(settings).continue_lines(texts))
    assert [(one.number, one.source) for one in found] == [(0, "w1"), (2, "w2")]


def test_interactive_from_a_file(lm: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "prompts.txt").write_text("w1 w2\nw5\n", encoding="utf-8")
    argv = argv_of(lm, "--input", str(tmp_path / "prompts.txt"), "--beam", "1", "--max-len-b", "5")
    assert interactive.run(argv) == 0
    kinds = by_kind(capsys.readouterr().out)
    assert kinds["S"] == [["0", "w1 w2"], ["1", "w5"]]
    assert [row[2] for row in kinds["W"]] == ["seconds", "seconds"]
    assert "T" not in kinds
    with pytest.raises(MissingFileError, match="none.txt"):
        interactive.run([*argv, "--input", str(tmp_path / "none.txt")])


def test_text_that_is_not_utf_8(
    lm: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "latin").write_bytes("w1\r\nw2 é\n".encode("latin-1"))
    argv = argv_of(lm, "--beam", "1", "--max-len-b", "5")
    with pytest.raises(DataError, match=r"latin, line 2: not UTF-8 \(byte 0xe9\)"):
        interactive.run([*argv, "--input", str(tmp_path / "latin")])
    assert by_kind(capsys.readouterr().out)["S"] == [["0", "w1"]]
    stdin = io.TextIOWrapper(io.BytesIO(b"w1\n\xff\n"), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(DataError, match="standard input, line 2: not UTF-8"):
        interactive.run(argv)


def test_main_takes_a_parsed_command_line(
    lm: dict[str, Any], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the original's own test calls it: one Namespace, first in batches, then from stdin."""
    argv = argv_of(lm, "--beam", "3", "--batch-size", "64", "--max-len-b", "5", "--gen-subset")
    argv += ["valid", "--no-progress-bar", "--task", "language_modeling"]
    argv += ["--sample-break-mode", "eos", "--tokens-per-sample", "20"]
    args = options.parse_args_and_arch(options.get_generation_parser(), argv)
    assert generate.main(args).sentences == 8
    assert len(by_kind(capsys.readouterr().out)["H"]) == 8
    args.buffer_size, args.input, args.batch_size = 0, "-", None
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2\n"))
    assert interactive.main(args).sentences == 1
    assert by_kind(capsys.readouterr().out)["S"] == [["0", "w1 w2"]]


def test_main_takes_other_configurations(lm: dict[str, Any], capsys: Any) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    nested = {
        "common": {"cpu": True, "log_format": "none"},
        "common_eval": {"path": lm["path"]},
        "generation": {"beam": 2, "max_len_b": 4, "prefix_size": 1},
        "dataset": {"gen_subset": "valid"},
        "task": {"_name": "language_modeling", "data": lm["data"]},
    }
    generate.main(omegaconf.OmegaConf.create(nested))
    first = capsys.readouterr().out
    flat = {"beam": 2, "max_len_b": 4, "prefix_size": 1, "gen_subset": "valid", **lm}
    generate.main({**flat, "log_format": "none"})
    assert capsys.readouterr().out == first
    ours = options.make_config({**flat, "task": "language_modeling"})
    generate.main(ours)
    assert capsys.readouterr().out == first
    generate.main({**flat, "quiet": True})
    assert capsys.readouterr().out == ""


def test_shards_share_the_work(lm: dict[str, Any]) -> None:
    given = {**lm, "beam": 1, "gen_subset": "valid", "max_len_b": 12, "batch_size": 2}
    given |= {"sample_break_mode": "eos", "log_format": "none"}
    parts = [
        [one.number for one in TextGenerator(given | shard).continue_subset()]
        for shard in ({}, {"num_shards": 2, "shard_id": 0}, {"num_shards": 2, "shard_id": 1})
    ]
    assert sorted(parts[0]) == sorted(parts[1] + parts[2]) == list(range(8))


def test_refusals(lm: dict[str, Any], capsys: Any) -> None:
    for argv, message in (
        (argv_of(lm, "--scoring", "sacrebleu"), "no reference to be compared with"),
        (argv_of(lm, "--diverse-beam-groups", "2"), "translation is out of scope"),
        (argv_of(lm, "--replace-unk", "x"), "translation is out of scope"),
    ):
        with pytest.raises(SystemExit) as stopped:
            generate.run(argv)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--path is missing"):
        generate.run([lm["data"]])
    with pytest.raises(ConfigError, match="need --sampling"):
        generate.run(argv_of(lm, "--sampling-topk", "3"))
    with pytest.raises(ConfigError, match="--prefix-size"):
        generate.run(argv_of(lm, "--prefix-size", "-1", "--gen-subset", "valid"))


@pytest.mark.parametrize("command", [generate, interactive])
def test_help_has_examples(command: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.run(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out and "--sampling-topp" in out
    assert ("--buffer-size" in out) == (command is interactive)


def test_encoders_of_a_namespace_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq.hub.continue_text import stated

    args = argparse.Namespace(path="m.pt", data="d", bpe="gpt2", gpt2_encoder_json="e.json", beam=5)
    assert stated(args) == {
        "path": "m.pt",
        "data": "d",
        "bpe": "gpt2",
        "gpt2_encoder_json": "e.json",
    }

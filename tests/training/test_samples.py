"""--sample-prompts: what it writes is a function of the weights, and it leaves the run alone."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, content, digest, make_corpus, train

from fairseq.errors import ConfigError, DataError, FairseqError, MissingFileError
from fairseq.logging.sinks import read_jsonl
from fairseq.report.runs import load_runs
from fairseq.training.samples import MOST_LINES, NEW_TOKENS, sample_line
from fairseq.training.trainer import Trainer

NARROW = {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16}
LM = {
    "task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm",
    "decoder_layers": 1, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 16,
    "decoder_input_dim": 16, "decoder_output_dim": 16, "decoder_attention_heads": 2,
    "sample_break_mode": "eos", "max_target_positions": 16,
}  # fmt: skip
KINDS = {
    "masked": (NARROW, "w1 w4 <mask> w10\n\nw5 <mask>\n"),
    "causal": (LM, "w1 w4 w7\n\nw5\n"),
}
# dropout and averaged weights: both would show a stray random number, or a stray step
OFTEN = {"dropout": 0.3, "store_ema": True, "validate_interval_updates": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


def run(data: Path, folder: Path, kind: str, text: str | None = None, **flags: Any) -> None:
    settings, lines = KINDS[kind]
    folder.mkdir(exist_ok=True)
    (folder / "prompts").write_text(lines if text is None else text)
    flags = {**settings, **OFTEN, "sample_prompts": str(folder / "prompts"), **flags}
    train(config(data, folder / "run", **flags))


def said(folder: Path) -> dict[int, Any]:
    """Return what stands in the file, by update, after what was written twice was left out."""
    rows = read_jsonl(folder / "run/samples.jsonl")
    return {row["update"]: (row["epoch"], row["samples"]) for row in rows}


@pytest.mark.parametrize("kind", KINDS)
def test_every_validation_is_sampled_and_nothing_else_changes(
    kind: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fairseq.samples")
    run(data, tmp_path / "a", kind)
    logged = [r.getMessage() for r in caplog.records if r.name == "fairseq.samples"]
    run(data, tmp_path / "b", kind)
    run(data, tmp_path / "without", kind, sample_prompts=None)
    validated = [r["update"] for r in read_jsonl(tmp_path / "a/run/metrics.jsonl")
                 if r["tag"] == "valid"]  # fmt: skip
    rows = said(tmp_path / "a")
    assert list(rows) == validated and len(validated) > 2 and rows == said(tmp_path / "b")
    if kind == "masked":
        assert {update: epoch for update, (epoch, _) in rows.items()} == {4: 1, 6: 1, 8: 2, 9: 2}
    assert len({str(samples) for _, samples in rows.values()}) > 1  # the model does learn
    assert logged == [
        f"sample {number}: {sample_line(sample)}"
        for _, samples in rows.values()
        for number, sample in enumerate(samples, start=1)
    ]
    last = "run/checkpoint_last.pt"
    assert digest(tmp_path / "a" / last) == digest(tmp_path / "without" / last)
    assert not (tmp_path / "without/run/samples.jsonl").exists()
    (loaded,) = load_runs([tmp_path / "a/run"])
    assert loaded.valid_tags == ["valid"]  # what was sampled is not taken for a subset


def test_fills_are_those_of_the_saved_weights(data: Path, tmp_path: Path) -> None:
    """Against the hub interface, which reads the checkpoint of the last validation."""
    from fairseq.models.roberta import RobertaModel

    run(data, tmp_path, "masked")
    model = RobertaModel.from_pretrained(
        str(tmp_path / "run"), "checkpoint_last.pt", str(data), bpe="none"
    )
    for sample in said(tmp_path)[9][1]:
        expected = [[token, p] for _, p, token in model.fill_mask(sample["prompt"])]
        assert [token for token, _ in sample["fills"]] == [token for token, _ in expected]
        assert [p for _, p in sample["fills"]] == pytest.approx([p for _, p in expected])
    averaged = content(tmp_path / "run/checkpoint_last.pt")["extra_state"]["ema"]
    model.model.load_state_dict(averaged)
    (_, first), *_ = said(tmp_path)[9][1][1]["fills"]
    assert model.fill_mask("w5 <mask>")[0][1] != pytest.approx(first)


def test_continuations_are_drawn_from_the_saved_weights(data: Path, tmp_path: Path) -> None:
    from fairseq.models.transformer_lm import TransformerLanguageModel

    run(data, tmp_path, "causal")
    hub = TransformerLanguageModel.from_pretrained(
        str(tmp_path / "run"), "checkpoint_last.pt", str(data), bpe="none"
    )
    wanted = {"max_len_a": 1, "max_len_b": NEW_TOKENS, "sampling": True, "sampling_topp": 0.9}
    texts = hub.sample(["w1 w4 w7", "w5"], seed=3, **wanted)
    samples = said(tmp_path)[9][1]
    assert [sample["prompt"] + sample["continuation"] for sample in samples] == texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["killed", "asked to stop"])
def test_an_interrupted_run_says_the_same(
    kind: str, how: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    done = []

    def before(trainer: Trainer, calls: int) -> None:
        if trainer.get_num_updates() == 7 and not done:
            done.append(True)
            if how == "killed":  # after the validation at 6, whose checkpoint has been written
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)  # the validation at 8 waits for the restart

    run(data, tmp_path / "whole", kind)
    Recorder(monkeypatch, before)
    with pytest.raises((Killed, SystemExit)):
        run(data, tmp_path / "cut", kind)
    assert 8 not in said(tmp_path / "cut")
    run(data, tmp_path / "cut", kind)
    assert said(tmp_path / "cut") == said(tmp_path / "whole")
    last = "run/checkpoint_last.pt"
    assert digest(tmp_path / "cut" / last) == digest(tmp_path / "whole" / last)


def test_what_is_done_again_is_written_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at update 9, two validations after the last checkpoint: their samples come again."""

    class Killed(BaseException):
        pass

    done = []

    def before(trainer: Trainer, calls: int) -> None:
        if trainer.get_num_updates() == 8 and not done:
            done.append(True)
            raise Killed

    Recorder(monkeypatch, before)
    flags = {"save_interval": 10, "validate_interval_updates": 2}
    with pytest.raises(Killed):
        run(data, tmp_path, "masked", **flags)
    assert list(said(tmp_path)) == [2, 4, 6, 8]
    run(data, tmp_path, "masked", **flags)
    rows = [row["update"] for row in read_jsonl(tmp_path / "run/samples.jsonl")]
    assert rows == [2, 4, 6, 8, 9]
    aside = read_jsonl(tmp_path / "run/samples.jsonl.superseded")
    assert [row["update"] for row in aside] == [2, 4, 6, 8]


BAD = {
    "nothing": ("masked", "\n \n", {}, "no line of text"),
    "no mask": ("masked", "w1 <mask>\nw2\n", {}, "line 2: .* fills one <mask> .* has none"),
    "two masks": ("masked", "<mask> w1 <mask>\n", {}, "line 1: .* has 2"),
    "too long": ("masked", "\n" + "w1 " * 14 + "<mask>\n", {}, "line 2: 17 tokens .* the 16"),
    "too long to go on": ("causal", "w1 " * 15, {}, "line 1: 15 tokens .* the 14"),
    "other words": ("masked", "The <mask> sat\n", {}, "line 1: no word of it .* --bpe"),
    "other words to go on": ("causal", "The cat\n", {}, "no word of it is in the dictionary"),
    "too many": ("causal", "w1\n" * (MOST_LINES + 1), {}, "more than 32 lines"),
    "no byte": ("causal", "", {}, "no line of text"),
}


@pytest.mark.parametrize("case", BAD)
def test_lines_that_cannot_be_used_are_named(case: str, data: Path, tmp_path: Path) -> None:
    kind, text, flags, message = BAD[case]
    with pytest.raises(DataError, match=message):
        run(data, tmp_path, kind, text, **flags)
    assert not (tmp_path / "run/checkpoint_last.pt").exists()


def test_the_longest_lines_that_fit_are_taken(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a", "masked", "w1 " * 13 + "<mask>\n", max_update=4)
    assert len(said(tmp_path / "a")[4][1][0]["fills"]) == 5
    run(data, tmp_path / "b", "causal", "w1 " * 14 + "\n", max_update=4)
    assert len(said(tmp_path / "b")[4][1][0]["continuation"].split()) <= 1


def test_a_file_that_is_none(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="file of prompts not found: .*nowhere"):
        run(data, tmp_path, "masked", sample_prompts=str(tmp_path / "nowhere"))
    (tmp_path / "bytes").write_bytes(b"w1 <mask>\n\xff <mask>\n")
    with pytest.raises(DataError, match="not UTF-8 .*line 2"):
        run(data, tmp_path, "masked", sample_prompts=str(tmp_path / "bytes"))


def test_pieces_need_their_encoder(tmp_path: Path) -> None:
    data = make_corpus(tmp_path / "data")
    words = (data / "dict.txt").read_text().replace("w", "")
    (data / "dict.txt").write_text(words)
    with pytest.raises(ConfigError, match="--byte-level-tokenizer TOKENIZER.json"):
        run(data, tmp_path, "masked", "1 <mask>\n")
    (data / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"--byte-level-tokenizer {data}/tokenizer.json"):
        run(data, tmp_path, "masked", "1 <mask>\n")


def test_a_headless_model_is_refused(data: Path, tmp_path: Path) -> None:
    headless = {"criterion": "contrastive_weight_tying", "head": "none"}
    with pytest.raises(FairseqError, match="--sample-prompts: masks cannot be filled"):
        run(data, tmp_path, "masked", **headless)


def test_modes_and_random_numbers_stay(data: Path, tmp_path: Path) -> None:
    from fairseq.training import samples

    seen = []
    original = samples.Sampler.report

    def report(self: Any, *args: Any) -> None:
        self.model.train()
        state = torch.get_rng_state()
        original(self, *args)
        same = torch.equal(state, torch.get_rng_state())
        seen.append((same, all(module.training for module in self.model.modules())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples.Sampler, "report", report)
        for kind in KINDS:
            run(data, tmp_path / kind, kind, max_update=4)
    assert seen == [(True, True)] * 2

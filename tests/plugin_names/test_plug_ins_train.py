"""Plug-ins in the style of the original's examples train here, through ``--user-dir``."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairseq.data.storage.indexed_dataset import make_builder
from fairseq_cli import eval_lm, generate, preprocess
from tests.tiny_run import make_corpus, run

PLUG_INS = Path(__file__).parent / "plug_ins"
COMMON = "--lr 0.01 --max-update 30 --batch-size 8 --cpu --num-workers 0 --seed 1".split()
COMMON += ["--log-format", "none", "--log-interval", "1", "--no-epoch-checkpoints"]
MASKED = "--task masked_lm --criterion masked_lm --tokens-per-sample 16".split()
CAUSAL = "--task language_modeling --tokens-per-sample 16".split()
NARROW = "--encoder-embed-dim 32 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2".split()
ADAM = ["--optimizer", "adam"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of 60 words are used, so that there is something to learn at once."""
    folder = make_corpus(tmp_path_factory.mktemp("corpus") / "bin")
    draw = random.Random(0)
    for split, lines in (("train", 64), ("valid", 8)):
        builder = make_builder(str(folder / f"{split}.bin"), "mmap", 64)
        for _ in range(lines):
            builder.add_item(torch.tensor([*draw.choices(range(4, 8), k=12), 2]))
        builder.finalize(str(folder / f"{split}.idx"))
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in two classes: those with the word ``dog``, and the others."""
    folder = tmp_path_factory.mktemp("sentences")
    words, draw = "red blue green dog cat house".split(), random.Random(1)
    lines = [" ".join(draw.choices(words, k=4)) for _ in range(48)]
    labels = ["yes" if "dog" in line else "no" for line in lines]
    for kind, text in (("input0", lines), ("label", labels)):
        (folder / kind).mkdir()
        for split, part in (("train", text[:32]), ("valid", text[32:])):
            (folder / kind / f"{split}.txt").write_text("".join(f"{x}\n" for x in part))
        prefixes = [f"--{split}pref={folder / kind / split}.txt" for split in ("train", "valid")]
        assert preprocess.run(["--only-source", *prefixes, "--destdir", str(folder / kind)]) == 0
    return folder


def losses(name: str, data: Path, out: Path, *words: str) -> list[float]:
    """Train with a plug-in in an interpreter of its own; return the losses."""
    flags = [str(data), "--user-dir", str(PLUG_INS / name), "--save-dir", str(out), *COMMON, *words]
    command = [sys.executable, "-m", "fairseq_cli.train", *flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "checkpoint_last.pt").is_file()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [float(row["loss"]) for row in rows if row.get("tag") == "train_inner"]


def falls(history: list[float]) -> bool:
    """Tell whether the last losses are lower than the first ones by a tenth."""
    assert len(history) == 30
    return sum(history[-5:]) < 0.9 * sum(history[:5])


@pytest.mark.parametrize("shared", [False, True])
def test_an_encoder_with_attention_of_its_own(corpus: Path, tmp_path: Path, shared: bool) -> None:
    flags = [*MASKED, *ADAM, "--arch", "squeezed_roberta_small", *NARROW]
    more = ["--share-sums"] * shared
    assert falls(losses("squeezed", corpus, tmp_path, *flags, *more))


def test_a_criterion_that_disturbs_embeddings(sentences: Path, tmp_path: Path) -> None:
    flags = "--task sentence_prediction --num-classes 2 --init-token 0 --arch roberta".split()
    flags += ["--encoder-layers", "1", *NARROW, *ADAM, "--max-epoch", "99"]
    name = "noisy_sentence_prediction"
    history = losses("noisy", sentences, tmp_path, *flags, "--criterion", name)
    assert falls(history)


def test_a_model_with_loss_task_and_optimizer_of_its_own(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = "--task continued_lm --arch spans --criterion priced_cross_entropy".split()
    flags += "--optimizer clipped_adagrad --own-clip 0.1 --tokens-per-sample 8".split()
    assert falls(losses("spans", corpus, tmp_path, *flags))
    # its task has no setting but the block length in common with language_modeling
    scored = [str(corpus), "--user-dir", str(PLUG_INS / "spans"), "--task", "continued_lm",
              "--path", str(tmp_path / "checkpoint_last.pt"), "--gen-subset", "valid",
              "--batch-size", "2", "--tokens-per-sample", "8", "--cpu"]  # fmt: skip
    for window, tokens in (("0", 84), ("3", 80)):
        capfd.readouterr()
        assert run(lambda window=window: eval_lm.run([*scored, "--context-window", window])) == 0
        assert f"Evaluated {tokens} tokens" in capfd.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["stack_lm", *CAUSAL],
        ["stack_lm", *CAUSAL, "--criterion=halved", "--lr-scheduler=floored_cosine"],
        ["transformer_lm_gpt2_tiny", *CAUSAL, "--criterion=halved"],
        ["gated_lm", *CAUSAL],
        ["bare_layers", *CAUSAL],
        ["old_roberta", *MASKED],
        ["roberta_small", *MASKED],
        ["copier", *CAUSAL, "--task=copying"],
    ],
    ids=lambda words: "-".join((words[0], *(word[2:] for word in words if "=" in word))),
)
def test_models_from_layers_and_stacks(corpus: Path, tmp_path: Path, words: list[str]) -> None:
    assert falls(losses("stacks", corpus, tmp_path, *ADAM, "--arch", *words))


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (
            "--task writing_lm --arch writing_transformer --criterion writing_cross_entropy",
            {"task.add_bos_token": True, "model.dropout": 0.25, "model.attention_dropout": 0.125,
             "model.max_target_positions": 40, "criterion.sentence_avg": True},
        ),
        (
            "--task writing_lm --arch transformer_lm",
            {"task.add_bos_token": True, "model.dropout": 0.25, "model.max_target_positions": 16},
        ),
        (
            "--task language_modeling --arch transformer_lm --criterion writing_cross_entropy",
            {"criterion.sentence_avg": True, "model.max_target_positions": 16},
        ),
    ],
)  # fmt: skip
def test_what_a_plug_in_writes_into_its_settings_is_kept(
    corpus: Path, tmp_path: Path, words: str, written: dict[str, object]
) -> None:
    flags = [*words.split(), *ADAM, "--tokens-per-sample", "16", "--decoder-layers", "1"]
    flags += ["--decoder-embed-dim", "16", "--decoder-attention-heads", "2"]
    losses("writes", corpus, tmp_path, *flags, "--max-update", "2")
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)
    saved = state["extra_state"]["fairseq_lm"]["config"]
    for place, value in written.items():
        section, _, key = place.partition(".")
        assert saved[section][key] == value, place


@pytest.mark.parametrize("criterion", ["sentence_ranking", "margin"])
def test_a_task_of_the_legacy_kind(tmp_path: Path, criterion: str) -> None:
    draw = random.Random(1)
    words = [f"w{number}" for number in range(12)]
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    for split, count in (("train", 40), ("valid", 8)):
        with open(tmp_path / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(count):
                choices = draw.sample(words[:6], 2)
                right = draw.randrange(3)
                choices.insert(right, "w11")
                row = {"question": draw.choice(words), "choices": choices, "right": right}
                file.write(json.dumps(row) + "\n")
    flags = ["--task", "answer_choice", "--criterion", criterion, "--arch", "roberta", *NARROW]
    flags += ["--encoder-layers", "1", "--init-token", "0", *ADAM, "--max-positions", "16"]
    assert falls(losses("choices", tmp_path, tmp_path / "run", *flags))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("squeezed", ["--arch", "squeezed_roberta_small", *NARROW, *MASKED]),
        ("stacks", ["--arch", "gated_lm", *CAUSAL]),
    ],
)
def test_a_run_goes_on_from_its_checkpoint(
    corpus: Path, tmp_path: Path, name: str, words: list[str]
) -> None:
    """Stopped after 15 updates and gone on with, it ends with the losses of one run."""
    whole = losses(name, corpus, tmp_path / "whole", *ADAM, *words)
    flags = [*ADAM, *words, "--save-interval-updates", "15"]
    losses(name, corpus, tmp_path / "parts", *flags, "--max-update", "15")
    assert losses(name, corpus, tmp_path / "parts", *flags) == whole


def test_a_decoder_of_a_plug_in_generates_and_is_scored(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    losses("stacks", corpus, tmp_path, *ADAM, "--arch", "gated_lm", *CAUSAL)
    common = [str(corpus), "--user-dir", str(PLUG_INS / "stacks"), "--cpu"]
    path = ["--path", str(tmp_path / "checkpoint_last.pt"), "--gen-subset", "valid"]
    assert run(lambda: eval_lm.run([*common, *path])) == 0
    words = ["--task", "language_modeling", "--batch-size", "2", "--prefix-size", "2"]
    assert run(lambda: generate.run([*common, *path, *words, "--max-len-b", "6"])) == 0
    out = capfd.readouterr().out
    assert sum(line.startswith("H-") for line in out.splitlines()) >= 2

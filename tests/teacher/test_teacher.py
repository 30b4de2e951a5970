"""Runs with a teacher: of every origin, cut anywhere, in two processes, without it afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_run import Recorder, config, content, digest, make_corpus, train

from fairseq import checkpoint, evaluation, tasks
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError, ConfigError, MissingFileError
from fairseq.export import original_and_safetensors
from fairseq.logging.sinks import read_jsonl
from fairseq.report.page import write_report
from fairseq.teacher import load_teacher
from tests.distributed.test_distributed import assert_same, finish, start

LAST = "checkpoint_last.pt"
CAUSAL: dict[str, Any] = {
    "task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm",
    "decoder_layers": 2, "decoder_embed_dim": 32, "decoder_input_dim": 32, "decoder_output_dim": 32,
    "decoder_ffn_embed_dim": 64, "decoder_attention_heads": 2,
}  # fmt: skip
ALL_TERMS: dict[str, Any] = {
    "criterion": "distillation", "alpha_mse": 0.01, "alpha_cos": 1.0, "pkd_weight": 1.0,
    "minilm_attention_weight": 1.0, "minilm_value_weight": 1.0,
}  # fmt: skip
FAMILIES = {"masked": {}, "causal": CAUSAL}
HALF = {"masked": {"encoder_layers": 1}, "causal": {"decoder_layers": 1}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(scope="module")
def teachers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a trained checkpoint of each family."""
    found = {}
    for name, family in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        train(config(data, folder, **family, max_update=4))
        found[name] = folder / LAST
    return found


def student(family: str, teacher: Path | str, **flags: Any) -> dict[str, Any]:
    return {**FAMILIES[family], **HALF[family], **ALL_TERMS, "teacher_path": str(teacher), **flags}


def shown(folder: Path, tag: str) -> dict[str, Any]:
    return [r for r in read_jsonl(folder / "metrics.jsonl") if r["tag"] == tag][-1]


def load(data: Path, flags: dict[str, Any]) -> Any:
    """Return the teacher of a run, as the run would get it."""
    cfg = config(data, data, **flags)
    task = tasks.setup_task(cfg.task)
    return load_teacher(cfg, task, task.build_model(cfg.model))


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_trained_validated_and_used_without_its_teacher(
    family: str, data: Path, teachers: dict[str, Path], tmp_path: Path, caplog: Any
) -> None:
    teacher = tmp_path / "teacher.pt"
    shutil.copy(teachers[family], teacher)
    shutil.copy(data / "dict.txt", tmp_path / "dict.txt")
    before = teacher.read_bytes()
    train(config(data, tmp_path / "run", **student(family, teacher)))
    valid = shown(tmp_path / "run", "valid")
    terms = {f"loss_{name}" for name in ("ce", "mse", "cos", "pkd", "attention", "value")}
    assert terms | {"loss", "nll_loss", "ppl"} <= set(valid)
    assert terms | {"nll_loss"} <= set(shown(tmp_path / "run", "train_inner"))
    state = content(tmp_path / "run" / LAST)
    assert state["criterion"] is None and teacher.read_bytes() == before
    assert not any("teacher" in name for name in state["model"])
    facts = state["extra_state"]["fairseq_lm"]["facts"]["teacher"]
    assert facts["path"] == str(teacher) and len(facts["sha256"]) == 64
    given = {"path": str(tmp_path / "run" / LAST), "data": str(data)}
    with_it = evaluation.validate(given)["valid"]
    assert float(with_it["loss"]) == pytest.approx(valid["loss"], abs=2e-3)
    teacher.unlink()
    alone = evaluation.validate(given)["valid"]
    assert float(alone["nll_loss"]) == float(with_it["nll_loss"])
    assert not terms & set(alone) and "terms of the student alone" in caplog.text
    models, _, _ = checkpoint.load_model_ensemble_and_task([given["path"]])
    assert models[0](torch.tensor([[0, 5, 6]]))[0].shape[:2] == (1, 3)
    with pytest.raises(MissingFileError, match="--teacher-path not found"):
        train(config(data, tmp_path / "run", **student(family, teacher, max_update=12)))


def test_a_teacher_is_part_of_nothing_that_is_trained_or_kept(
    data: Path, teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimizer, average and checkpoint know the student and the maps between widths alone."""
    seen: list[tuple[Any, dict[str, torch.Tensor]]] = []

    def look(trainer: Any, calls: int) -> None:
        model = trainer.criterion._teacher.model
        seen.append((model, {name: x.clone() for name, x in model.state_dict().items()}))
        model.train()  # as a careless caller would; the next forward pass puts it right

    flags = student("masked", teachers["masked"], encoder_embed_dim=16, store_ema=True)
    with monkeypatch.context() as patch:
        Recorder(patch, look)
        train(config(data, tmp_path / "run", **flags, freeze_positions=True, max_update=3))
    model, before = seen[0]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(x.equal(before[name]) for name, x in model.state_dict().items())
    state = content(tmp_path / "run" / LAST)
    trained = sum(len(g["params"]) for g in state["last_optimizer_state"]["param_groups"])
    positions = "encoder.sentence_encoder.embed_positions.weight"
    own = {n for n, x in state["model"].items() if x.is_floating_point() and n != positions}
    own -= {"encoder.lm_head.weight", *(n for n in own if n.endswith("version"))}  # a tied table
    assert trained == len(own) + len(state["criterion"])
    assert set(state["extra_state"]["ema"]) <= set(state["model"])
    again = train_nothing(data, tmp_path / "none", **flags, freeze_positions=True)
    assert state["model"][positions].equal(again["model"][positions])


def train_nothing(data: Path, folder: Path, **flags: Any) -> dict[str, Any]:
    """Return the checkpoint of a run whose one update changes nothing."""
    train(config(data, folder, **{**flags, "max_update": 1, "lr": [0.0], "weight_decay": 0.0}))
    return content(folder / LAST)


class Killed(BaseException):
    """Ends a run as SIGKILL would, as far as its files are concerned."""


VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 teacher": {"teacher_dtype": "bfloat16"},
    "amp student": {"amp": True},
    "bf16 student": {"bf16": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_run_ends_with_the_same_bits(
    variant: str, data: Path, teachers: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A narrower student, so that the criterion has weights of its own; dropout is on."""
    flags = student(
        "masked", teachers["masked"], encoder_embed_dim=16, save_interval_updates=2,
        keep_interval_updates=1, update_freq=[2], max_update=6, **VARIANTS[variant],
    )  # fmt: skip
    with monkeypatch.context() as patch:
        whole = Recorder(patch)
        train(config(data, tmp_path / "whole", **flags))

    def kill(trainer: Any, calls: int) -> None:
        if trainer.get_num_updates() == 5:
            raise Killed

    with monkeypatch.context() as patch:
        cut = Recorder(patch, kill)
        with pytest.raises(Killed):
            train(config(data, tmp_path / "cut", **flags))
    with monkeypatch.context() as patch:
        rest = Recorder(patch)
        train(config(data, tmp_path / "cut", **flags))
    assert {**cut.losses, **rest.losses} == whole.losses and set(rest.losses) == {5, 6}
    assert digest(tmp_path / "cut" / LAST) == digest(tmp_path / "whole" / LAST)
    own, other = (content(tmp_path / name / LAST)["criterion"] for name in ("cut", "whole"))
    assert set(own) == {"projections.features.weight", "projections.layer0.weight"}
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_two_processes_are_one(teachers: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Terms have other numbers of positions, and an epoch has an odd number of batches."""
    corpus = make_corpus(tmp_path / "bin", train_lines=79)
    flags = {"max_update": 9, "required_batch_size_multiple": 1, "encoder_embed_dim": 16}
    flags |= {"optimizer": "sgd", "lr": [0.1]}  # Adam makes steps of the rounding of zero gradients
    flags = student("masked", teachers["masked"], **flags)
    assert finish(start(corpus, tmp_path / "one", 1, update_freq=[4], **flags)) == [0]
    assert finish(start(corpus, tmp_path / "two", 2, update_freq=[2], **flags)) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")


def test_another_teacher_is_noticed_when_a_run_goes_on(
    data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.pt"
    shutil.copy(teachers["causal"], teacher)
    shutil.copy(data / "dict.txt", tmp_path / "dict.txt")
    flags = student("causal", teacher, max_update=2)
    train(config(data, tmp_path / "run", **flags))
    train(config(data, tmp_path / "other", **CAUSAL, max_update=1))
    shutil.copy(tmp_path / "other" / LAST, teacher)
    with pytest.raises(ConfigError, match="began with the teacher"):
        train(config(data, tmp_path / "run", **{**flags, "max_update": 3}))


def test_the_lineage_is_kept(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    source = str(teachers["causal"])
    tuned = {**CAUSAL, "finetune_from_model": source, "max_update": 2}
    train(config(data, tmp_path / "one", **tuned))
    second = {**CAUSAL, "finetune_from_model": str(tmp_path / "one" / LAST), "max_update": 1}
    train(config(data, tmp_path / "two", **second))
    train(config(data, tmp_path / "two", **{**second, "max_update": 2}))  # goes on
    steps = content(tmp_path / "two" / LAST)["extra_state"]["fairseq_lm"]["lineage"]
    assert [(step["method"], step["updates"]) for step in steps] == [
        ("finetune", 4),
        ("finetune", 2),
    ]
    assert steps[0]["source"] == LAST and steps[0]["sha256"] != steps[1]["sha256"]
    page = write_report([tmp_path / "two"], tmp_path / "page").read_text()
    assert page.count("finetune of checkpoint_last.pt after") == 2
    assert "lineage" not in content(teachers["causal"])["extra_state"]["fairseq_lm"]


# -- teachers of other programs --------------------------------------------------------------------


@pytest.mark.parametrize("name, family", [("fb_lm", "causal"), ("fb_baseline", "masked")])
def test_checkpoints_of_the_original_teach(
    name: str, family: str, shared: Path, tmp_path: Path
) -> None:
    """One command: their dictionary is found by --teacher-overrides; half the depth and width."""
    folder = shared / "compat" / "checkpoints"
    corpus = folder / "data-bin"
    flags = student(
        family, folder / name / "model.pt", teacher_overrides=f"{{'data': {str(corpus)!r}}}",
        tokens_per_sample=64, max_positions=64, max_update=2, disable_validation=True,
        minilm_relation_heads=4,
    )  # fmt: skip
    flags.pop("max_positions") if family == "causal" else None
    train(config(corpus, tmp_path, **flags))
    assert shown(tmp_path, "train_inner")["loss_ce"] > 0
    import numpy as np

    golden = np.load(folder / name / "golden.npz")
    tokens_BT = torch.from_numpy(golden["tokens"]).long()
    if name == "fb_lm":
        tokens_BT = tokens_BT.clamp(max=1503)
    teacher = load(corpus, flags)
    net_input = {"src_tokens": tokens_BT}
    operands, extra = teacher.outputs(net_input, torch.arange(tokens_BT.numel()))
    kept_BT = tokens_BT.ne(1)
    wanted_BTV = torch.from_numpy(golden["logits"])
    got_BTV = operands.logits().unflatten(0, tokens_BT.shape)
    torch.testing.assert_close(got_BTV[kept_BT], wanted_BTV[kept_BT], atol=1e-4, rtol=1e-4)
    wanted_BTC = torch.from_numpy(golden["features"])
    torch.testing.assert_close(
        extra["features"][kept_BT], wanted_BTC[kept_BT], atol=1e-4, rtol=1e-4
    )


def gpt2_folder(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Write a GPT-2 of two layers, its words separated by blanks; return its weights."""
    folder.mkdir()
    width, rows = 32, len(words)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (rows, width), "wpe.weight": (20, width)}
    for n in range(2):
        shapes |= {
            f"h.{n}.attn.c_attn.weight": (width, 3 * width),
            f"h.{n}.attn.c_attn.bias": (3 * width,),
            f"h.{n}.attn.c_proj.weight": (width, width), f"h.{n}.attn.c_proj.bias": (width,),
            f"h.{n}.mlp.c_fc.weight": (width, 4 * width), f"h.{n}.mlp.c_fc.bias": (4 * width,),
            f"h.{n}.mlp.c_proj.weight": (4 * width, width), f"h.{n}.mlp.c_proj.bias": (width,),
        }  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    state = {name: torch.randn(*shape, generator=draw) * 0.2 for name, shape in shapes.items()}
    for norm in ("h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "ln_f"):
        state[f"{norm}.weight"] = 1 + 0.1 * torch.randn(width, generator=draw)
        state[f"{norm}.bias"] = 0.1 * torch.randn(width, generator=draw)
    save_file({f"transformer.{name}": value for name, value in state.items()},
              str(folder / "model.safetensors"))  # fmt: skip
    told = {"model_type": "gpt2", "n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 20,
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))
    split = {
        "model": {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)},
                  "unk_token": "<unk>"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(split))
    return state


def gpt2(state: dict[str, torch.Tensor], tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits of a GPT-2 with two heads, written out."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    length = tokens_BT.shape[1]
    x = state["wte.weight"][tokens_BT] + state["wpe.weight"][:length]
    for n in range(2):
        parts = linear(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
        scores = (q @ k.mT / 4).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"h.{n}.attn.c_proj")
        inner = linear(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc")
        x = x + linear(F.gelu(inner, approximate="tanh"), f"h.{n}.mlp.c_proj")
    return norm(x, "ln_f") @ state.get("head", state["wte.weight"]).T


def opt_folder(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Write an OPT of two layers over :func:`gpt2_folder`'s tokenizer; return its weights."""
    gpt2_folder(folder, words)
    width = 32
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (len(words), width)}
    shapes |= {"embed_positions.weight": (22, width)}  # the first position has row 2
    for n in range(2):
        for name, outputs, inputs in (
            *((f"self_attn.{part}_proj", width, width) for part in ("q", "k", "v", "out")),
            ("fc1", 48, width), ("fc2", width, 48),
        ):  # fmt: skip
            shapes |= {f"layers.{n}.{name}.weight": (outputs, inputs)}
            shapes |= {f"layers.{n}.{name}.bias": (outputs,)}
    norms = [f"layers.{n}.{k}_layer_norm" for n in range(2) for k in ("self_attn", "final")]
    for norm in (*norms, "final_layer_norm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    draw = torch.Generator().manual_seed(0)
    state = {name: torch.randn(*shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    save_file({f"model.decoder.{name}": value for name, value in state.items()},
              str(folder / "model.safetensors"))  # fmt: skip
    told = {"model_type": "opt", "hidden_size": width, "num_hidden_layers": 2, "ffn_dim": 48,
            "num_attention_heads": 2, "max_position_embeddings": 20, "bos_token_id": 0,
            "eos_token_id": 2, "pad_token_id": 1, "word_embed_proj_dim": width}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))
    return state


def opt(state: dict[str, torch.Tensor], tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits of an OPT with two heads, written out; no pads."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    length = tokens_BT.shape[1]
    x = state["embed_tokens.weight"][tokens_BT] + state["embed_positions.weight"][2 : 2 + length]
    for n in range(2):
        inner = norm(x, f"layers.{n}.self_attn_layer_norm")
        q, k, v = (
            linear(inner, f"layers.{n}.self_attn.{part}_proj")
            .unflatten(-1, (2, -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        scores = (q @ k.mT / 4).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"layers.{n}.self_attn.out_proj")
        inner = linear(norm(x, f"layers.{n}.final_layer_norm"), f"layers.{n}.fc1").relu()
        x = x + linear(inner, f"layers.{n}.fc2")
    return norm(x, "final_layer_norm") @ state["embed_tokens.weight"].T


def untied_folder(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Write a GPT-2 whose head is a table of its own; return its weights."""
    state = gpt2_folder(folder, words)
    head_VC = torch.randn(len(words), 32, generator=torch.Generator().manual_seed(7)) * 0.2
    weights = {f"transformer.{name}": value for name, value in state.items()}
    save_file({**weights, "lm_head.weight": head_VC}, str(folder / "model.safetensors"))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "tie_word_embeddings": False}))
    return {**state, "head": head_VC}


FOLDERS: dict[str, Any] = {
    "gpt2": (gpt2_folder, gpt2), "opt": (opt_folder, opt), "untied head": (untied_folder, gpt2),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_hugging_face_teaches(kind: str, data: Path, tmp_path: Path) -> None:
    words = Dictionary.load(data / "dict.txt").symbols
    write, logits_of = FOLDERS[kind]
    state = write(tmp_path / "folder", words)
    flags = student("causal", tmp_path / "folder", max_update=3)
    train(config(data, tmp_path / "run", **flags))
    assert shown(tmp_path / "run", "valid")["loss_ce"] > 0
    tokens_BT = torch.randint(4, len(words), (2, 9))
    operands, _ = load(data, flags).outputs({"src_tokens": tokens_BT}, torch.arange(18))
    wanted_NV = logits_of(state, tokens_BT).flatten(0, 1)
    torch.testing.assert_close(operands.logits(), wanted_NV, atol=1e-4, rtol=1e-4)


# -- what does not fit -----------------------------------------------------------------------------


def with_words(folder: Path, teacher: Path, words: list[str]) -> Path:
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"{word}\n" for word in words))
    shutil.copy(teacher, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("family", FAMILIES)
def test_symbols_that_round_the_size_do_not_count(
    family: str, data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    """The teacher's dictionary is rounded up, that of the data is not: the same logits."""
    words = (data / "dict.txt").read_text().splitlines()
    rounded = make_corpus(tmp_path / "rounded")
    more = [*words, *(f"madeupword{n:04d} 0" for n in range(4))]
    (rounded / "dict.txt").write_text("".join(f"{word}\n" for word in more))
    train(config(rounded, tmp_path / "wide", **FAMILIES[family], max_update=2))
    path = with_words(tmp_path / "teacher", tmp_path / "wide" / LAST, more)
    flags = student(family, path)
    wide, narrow = load(rounded, flags), load(data, flags)
    ids, size = torch.tensor([[0, 5, 9, 60, 2]]), 64
    both = [t.outputs({"src_tokens": ids}, torch.arange(5))[0].logits() for t in (wide, narrow)]
    torch.testing.assert_close(both[0][:, :size], both[1][:, :size])
    if family == "masked":  # <mask> is the last symbol of either
        masked = torch.tensor([[0, 68, 2]]), torch.tensor([[0, 64, 2]])
        both = [
            t.outputs({"src_tokens": m}, torch.arange(3))[0].logits()
            for t, m in zip((wide, narrow), masked, strict=True)
        ]
        torch.testing.assert_close(both[0][:, [*range(64), 68]], both[1])
    train(config(data, tmp_path / "run", **flags, max_update=1))
    lacking = student(family, with_words(tmp_path / "less", teachers[family], words))
    with pytest.raises(ConfigError, match="no rows"):
        load(rounded, lacking)


def test_what_does_not_fit_is_refused(
    data: Path, teachers: dict[str, Path], tmp_path: Path, caplog: Any
) -> None:
    words = (data / "dict.txt").read_text().splitlines()
    swapped = with_words(tmp_path / "swapped", teachers["causal"], [words[1], words[0], *words[2:]])
    with pytest.raises(ConfigError, match="symbol 4 is 'w1' for the teacher .* 'w0' in the data"):
        load(data, student("causal", swapped))
    with pytest.raises(
        (ConfigError, CheckpointError), match="causal ones from causal ones|predict"
    ):
        load(data, student("causal", teachers["masked"]))
    with pytest.raises((ConfigError, CheckpointError), match="masked models learn from masked"):
        load(data, student("masked", teachers["causal"], teacher_overrides=""))
    with pytest.raises(ConfigError, match="reaches 16"):
        load(data, student("masked", teachers["masked"], tokens_per_sample=32, max_positions=32))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="Is this a model folder"):
        load(data, student("masked", tmp_path / "empty"))
    (tmp_path / "garbage.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        load(data, student("masked", tmp_path / "garbage.pt"))
    with pytest.raises(ConfigError, match="--teacher-overrides must be a dict"):
        load(data, student("masked", teachers["masked"], teacher_overrides="3"))


# -- encoders without a head -----------------------------------------------------------------------


def bert_folder(folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Write a BERT of two layers without a head, as sentence encoders are; return its weights."""
    folder.mkdir()
    width, rows = 32, len(words)
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (size, width)
        for name, size in (("word", rows), ("position", 20), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm"]
    for n in range(2):
        layer = f"encoder.layer.{n}."
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
        for name, outputs, inputs in (
            *((f"attention.self.{kind}", width, width) for kind in ("query", "key", "value")),
            ("attention.output.dense", width, width),
            ("intermediate.dense", 64, width), ("output.dense", width, 64),
        ):  # fmt: skip
            shapes |= {
                f"{layer}{name}.weight": (outputs, inputs),
                f"{layer}{name}.bias": (outputs,),
            }
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    draw = torch.Generator().manual_seed(0)
    state = {name: torch.randn(*shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    save_file(state, str(folder / "model.safetensors"))
    told = {"model_type": "bert", "hidden_size": width, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return state


def bert(state: dict[str, torch.Tensor], tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the hidden states of a BERT with two heads, written out."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], *parts, eps=1e-12)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    tables = [
        state[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type")
    ]
    summed = tables[0][tokens_BT] + tables[1][: tokens_BT.shape[1]] + tables[2][0]
    x = norm(summed, "embeddings.LayerNorm")
    for n in range(2):
        layer = f"encoder.layer.{n}."
        q, k, v = (
            linear(x, f"{layer}attention.self.{kind}").unflatten(-1, (2, -1)).transpose(1, 2)
            for kind in ("query", "key", "value")
        )
        attended = ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"{layer}attention.output.dense")
        x = norm(x, f"{layer}attention.output.LayerNorm")
        inner = F.gelu(linear(x, f"{layer}intermediate.dense"))
        x = norm(x + linear(inner, f"{layer}output.dense"), f"{layer}output.LayerNorm")
    return x


def test_an_encoder_without_a_head_teaches_hidden_states_and_relations(tmp_path: Path) -> None:
    words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(60)), "[MASK]"]
    state = bert_folder(tmp_path / "bert", words)
    corpus = make_corpus(tmp_path / "data")
    roles = {"bos": "[CLS]", "pad": "[PAD]", "eos": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    Dictionary.foreign(words, **roles).save(corpus / "dict.txt")
    flags = student("masked", tmp_path / "bert", max_update=3, alpha_ce=0.0, alpha_mse=0.0,
                    encoder_embed_dim=16, minilm_relation_heads=4)  # fmt: skip
    train(config(corpus, tmp_path / "run", **flags))
    valid = shown(tmp_path / "run", "valid")
    assert min(valid[f"loss_{name}"] for name in ("cos", "pkd", "attention", "value")) > 0
    tokens_BT = torch.randint(4, 64, (2, 9))
    features_BTC, _ = load(corpus, flags).outputs({"src_tokens": tokens_BT}, None)
    torch.testing.assert_close(features_BTC, bert(state, tokens_BT), atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="hidden states only"):
        load(corpus, {**flags, "alpha_ce": 1.0})


def test_exports_leave_the_learned_maps_out(
    data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    flags = student("masked", teachers["masked"], encoder_embed_dim=16, max_update=1)
    train(config(data, tmp_path / "run", **flags))
    state = content(tmp_path / "run" / LAST)
    assert state["criterion"] and not any("projections" in name for name in state["model"])
    original_and_safetensors.to_safetensors(
        tmp_path / "run" / LAST, tmp_path / "weights.safetensors"
    )
    assert set(load_file(str(tmp_path / "weights.safetensors"))) == set(state["model"])

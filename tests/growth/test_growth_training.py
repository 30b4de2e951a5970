"""Growth in real runs: grow and train, learn an operator, go on after an interruption."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fairseq import checkpoint
from fairseq.config import options
from fairseq.config.sections import FairseqConfig
from fairseq.errors import ConfigError, FairseqError, MissingFileError
from fairseq.growth.ligo_model import LigoModel
from fairseq.growth.methods import GROWTH
from fairseq.models.roberta import RobertaModel
from fairseq_cli import export, grow
from tests import tiny_run
from tests.distributed.test_distributed import assert_same, finish, start

BIG = {
    "encoder_layers": 3,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 3,
}
LIGO = {"arch": "ligo_roberta", **BIG}
LM = {
    **{"task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm"},
    **{"decoder_layers": 2, "decoder_embed_dim": 32, "decoder_ffn_embed_dim": 64},
    **{"decoder_input_dim": 32, "decoder_output_dim": 32, "decoder_attention_heads": 2},
    **{"share_decoder_input_output_embed": True, "position": "learned", "activation_fn": "gelu"},
}
BIG_LM = {
    **{"decoder_layers": 4, "decoder_embed_dim": 64, "decoder_ffn_embed_dim": 128},
    **{"decoder_input_dim": 64, "decoder_output_dim": 64, "decoder_attention_heads": 4},
}


def an_lm(data: Path, save_dir: Path, **flags: Any) -> FairseqConfig:
    given = {**tiny_run.SMALL, **LM, "data": str(data), "save_dir": str(save_dir), **flags}
    kept = {k: v for k, v in given.items() if not k.startswith("encoder_") and k != "max_positions"}
    return options.make_config(kept)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a small model of each family."""
    folder = tmp_path_factory.mktemp("growth")
    data = tiny_run.make_corpus(folder / "data")
    tiny_run.train(tiny_run.config(data, folder / "small", max_update=30, total_num_update=30))
    tiny_run.train(an_lm(data, folder / "small-lm"))
    return folder


def last(run: Path) -> Path:
    return run / "checkpoint_last.pt"


def losses_of(patch: pytest.MonkeyPatch, cfg: FairseqConfig) -> list[float]:
    with patch.context() as inner:
        recorder = tiny_run.Recorder(inner)
        tiny_run.train(cfg)
    return [float.fromhex(recorder.losses[update]) for update in sorted(recorder.losses)]


# -- grow and train --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["stack", "operator"])
def test_grow_train_interrupt_resume(
    start: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A resume ignores --grow-from, whose file may be gone, and is bit-exact."""
    source = tmp_path / "source.pt"
    if start == "operator":
        tiny_run.train(
            tiny_run.config(
                folder / "data", tmp_path / "op", ligo_source=str(last(folder / "small")), **LIGO
            )
        )
        source.write_bytes(last(tmp_path / "op").read_bytes())
        flags: dict[str, Any] = {"grow_from": str(source), **BIG}
    else:
        source.write_bytes(last(folder / "small").read_bytes())
        flags = {"grow_from": str(source), "grow_method": "stack", **BIG}
    with caplog.at_level(logging.INFO, "fairseq.growth.start"):
        tiny_run.train(tiny_run.config(folder / "data", tmp_path / "whole", **flags))
    assert "not exact: " in caplog.text
    tiny_run.train(tiny_run.config(folder / "data", tmp_path / "parts", **flags, max_update=4))
    source.unlink()
    tiny_run.train(tiny_run.config(folder / "data", tmp_path / "parts", **flags))
    assert tiny_run.digest(last(tmp_path / "parts")) == tiny_run.digest(last(tmp_path / "whole"))
    with pytest.raises(MissingFileError, match="--grow-from not found"):
        tiny_run.train(tiny_run.config(folder / "data", tmp_path / "third", **flags))


@pytest.mark.parametrize("method", ["fpi", "copy"])
def test_training_begins_where_the_command_ends(method: str, folder: Path, tmp_path: Path) -> None:
    """--grow-from is fairseq-grow and --finetune-from-model in one, fresh weights included."""
    source, out = last(folder / "small"), tmp_path / "grown.pt"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in BIG.items()]
    command = [str(source), "--out", str(out), "--method", method, "--grow-seed", "5", *flags]
    assert grow.main([*command, "--data", str(folder / "data")]) == 0
    tiny_run.train(
        tiny_run.config(folder / "data", tmp_path / "two", finetune_from_model=str(out), **BIG)
    )
    in_one = {"grow_from": str(source), "grow_method": method, "grow_seed": 5}
    tiny_run.train(tiny_run.config(folder / "data", tmp_path / "one", **in_one, **BIG))
    assert tiny_run.digest(last(tmp_path / "one")) == tiny_run.digest(last(tmp_path / "two"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"grow_method": "stack"}, "need --grow-from FILE"),
        ({"grow_from": "SMALL"}, "growth needs a method"),
        ({"grow_from": "SMALL", "grow_method": "stak"}, "did you mean 'stack'"),
        ({"grow_from": "SMALL", "grow_method": "stack", "encoder_layers": 1}, "would decrease"),
        ({"grow_from": "SMALL", "grow_method": "stack", "head": "clap"}, "--head is roberta"),
        ({"grow_from": "SMALL", "grow_method": "extract"}, "extract needs --grow-layers"),
        (
            {"grow_from": "SMALL", "grow_method": "extract", "grow_layers": [0, 1, 1]},
            "give --encoder-layers 3",
        ),
        ({"grow_from": "SMALL", "restore_file": "x.pt"}, "exclude each other"),
        ({"grow_from": "SMALL", "finetune_from_model": "x.pt"}, "exclude each other"),
        ({"grow_from": "LM", "grow_method": "stack"}, "the source is a decoder"),
        ({"arch": "ligo_roberta"}, "--ligo-source must name"),
        ({**LIGO, "ligo_source": "nowhere.pt"}, "--ligo-source not found: nowhere.pt"),
        ({**LIGO, "ligo_source": "LM"}, "which cannot become a RobertaModel"),
        ({**LIGO, "ligo_source": "SMALL", "encoder_layers": 1}, "would decrease"),
        ({**LIGO, "ligo_source": "SMALL", "bf16": True}, "--bf16 would round the growth operator"),
        ({**LIGO, "ligo_source": "SMALL", "checkpoint_activations": True}, ": drop it, or use"),
        ({**LIGO, "ligo_source": "SMALL", "ligo_tune": "depht"}, "'depht' is none of"),
    ],
)
def test_what_cannot_be_started(
    flags: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    files = {"SMALL": str(last(folder / "small")), "LM": str(last(folder / "small-lm"))}
    named = {k: files.get(v, v) if isinstance(v, str) else v for k, v in flags.items()}
    with pytest.raises(FairseqError, match=message):
        tiny_run.train(tiny_run.config(folder / "data", tmp_path / "run", **named))
    assert not list(tmp_path.glob("run/*.pt"))


# -- learning an operator --------------------------------------------------------------------------


def ligo_config(folder: Path, run: Path, family: str, **flags: Any) -> FairseqConfig:
    if family == "encoder":
        source = str(last(folder / "small"))
        return tiny_run.config(folder / "data", run, **{"ligo_source": source, **LIGO, **flags})
    source = str(last(folder / "small-lm"))
    settings = {"arch": "ligo_transformer_lm", "ligo_source": source, **BIG_LM}
    return an_lm(folder / "data", run, **{**settings, **flags})


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_an_operator_learns(family: str, seed: int, folder: Path, tmp_path: Path) -> None:
    """The loss on fixed sentences, with fixed masks, falls; nothing but the operator changes."""
    flags: dict[str, Any] = {"mask_prob": 0.3} if family == "encoder" else {}
    cfg = ligo_config(
        folder, tmp_path / "op", family, seed=seed, lr=[4e-3], warmup_updates=0, batch_size=16,
        max_update=30, total_num_update=60, validate_interval_updates=5, validate_interval=100,
        dropout=0.0, attention_dropout=0.0, no_epoch_checkpoints=True, **flags,
    )  # fmt: skip
    tiny_run.train(cfg)
    records = [json.loads(line) for line in (tmp_path / "op" / "metrics.jsonl").open()]
    losses = [float(record["loss"]) for record in records if record["tag"] == "valid"]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.01, losses
    state = tiny_run.content(last(tmp_path / "op"))["model"]
    small = "small" if family == "encoder" else "small-lm"
    source = tiny_run.content(last(folder / small))["model"]
    kept = {n.removeprefix("source."): x for n, x in state.items() if n.startswith("source.")}
    assert kept and all(x.equal(source[name]) for name, x in kept.items())
    assert {name.partition(".")[0] for name in state} == {"source", "operator"}


OPERATORS: list[dict[str, Any]] = [
    {"ligo_share": "global"},
    {"ligo_share": "none", "ligo_tune": "width"},
    {"ligo_tune": "depth", "ligo_depth_init": "interlace_noisy", "ligo_width_init": "copy"},
    {"ligo_tune": "width,depth,residual", "ligo_in_matrix": "pinv"},
    {"ligo_in_matrix": "orthonormal", "ligo_noise": [0.1], "ligo_width_init": "sel_noisy"},
    {"untie_weights_roberta": True},
    {"amp": True},
]


@pytest.mark.parametrize("flags", OPERATORS, ids=str)
def test_what_is_learned_is_what_is_grown(
    flags: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """The grown checkpoint computes what the operator's model does, without the source's file."""
    small = tmp_path / "small.pt"
    small.write_bytes(last(folder / "small").read_bytes())
    if flags.get("untie_weights_roberta"):
        plain = tiny_run.config(folder / "data", tmp_path / "untied", **flags)
        tiny_run.train(plain)
        small.write_bytes(last(tmp_path / "untied").read_bytes())
    cfg = ligo_config(folder, tmp_path / "op", "encoder", **flags, ligo_source=str(small))
    tiny_run.train(cfg)
    small.unlink()
    grown = tmp_path / "grown.pt"
    assert grow.main([str(last(tmp_path / "op")), "--out", str(grown)]) == 0
    models, _, task = checkpoint.load_model_ensemble_and_task(
        [str(last(tmp_path / "op")), str(grown)]
    )
    operator, ordinary = (model.eval() for model in models)
    assert isinstance(operator, LigoModel) and type(ordinary) is RobertaModel
    tokens = torch.randint(4, len(task.source_dictionary), (3, 9))
    with torch.no_grad():
        torch.testing.assert_close(operator(tokens)[0], ordinary(tokens)[0], rtol=0, atol=1e-5)
        losses = [
            float(torch.nn.functional.cross_entropy(m(tokens)[0].flatten(0, 1), tokens.flatten()))
            for m in (operator, ordinary)
        ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    tuned = flags.get("ligo_tune", "width,depth").split(",")
    trained = {n.split(".")[1] for n, p in operator.named_parameters() if p.requires_grad}
    assert trained == set(tuned)


def test_an_operator_goes_on_learning_bit_exactly(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.pt"
    small.write_bytes(last(folder / "small").read_bytes())

    def run(name: str, **flags: Any) -> None:
        flags = {"ligo_source": str(small), "store_ema": True, "disable_validation": True, **flags}
        tiny_run.train(ligo_config(folder, tmp_path / name, "encoder", **flags))

    run("whole")
    run("parts", max_update=4)
    small.unlink()
    run("parts")
    assert tiny_run.digest(last(tmp_path / "parts")) == tiny_run.digest(last(tmp_path / "whole"))


@pytest.mark.parametrize(("micro", "find_unused"), [(1, False), (2, False), (2, True)])
def test_two_processes_learn_like_one(
    micro: int, find_unused: bool, folder: Path, tmp_path: Path
) -> None:
    flags = {
        **{name: value for name, value in LIGO.items() if name != "max_update"},
        **{"ligo_source": str(last(folder / "small")), "max_update": 6},
        **{"required_batch_size_multiple": 1, "find_unused_parameters": find_unused},
    }
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    data = folder / "data"
    assert finish(start(data, alone, 1, update_freq=[2 * micro], **flags)) == [0]
    assert finish(start(data, pair, 2, update_freq=[micro], **flags)) == [0, 0]
    assert_same(alone, pair)


@pytest.mark.parametrize("flags", [{}, {"ligo_tune": "depth"}, {"ligo_share": "global"}], ids=str)
def test_weights_are_formed_once_an_update(
    flags: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rows one after the other: gradients as with weights formed eight times, none kept."""
    tiny_run.train(ligo_config(folder, tmp_path / "op", "encoder", **flags, max_update=1))
    (model,), _ = checkpoint.load_model_ensemble([str(last(tmp_path / "op"))])
    model.double().eval()
    formed: list[list[StorageWeakRef]] = []
    original = LigoModel.grown

    def grown(model: LigoModel) -> dict[str, torch.Tensor]:
        weights = original(model)
        made = [x.untyped_storage() for x in weights.values() if x.requires_grad]
        formed.append([StorageWeakRef(storage) for storage in made])
        return weights

    monkeypatch.setattr(LigoModel, "grown", grown)
    tokens, found = torch.randint(4, 60, (8, 9)), []
    for once in (False, True):
        model.zero_grad()
        formed.clear()
        with model.formed_once() if once else contextlib.nullcontext():
            for row in tokens.split(1):
                model(row)[0].log_softmax(-1).square().sum().backward()
        assert len(formed) == (1 if once else 8) and model._formed is None
        assert formed[0] and all(ref.expired() for refs in formed for ref in refs)
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    with pytest.raises(RuntimeError, match="memory"), model.formed_once():
        raise RuntimeError("memory")
    assert model._formed is None
    cfg = ligo_config(
        folder, tmp_path / "two", "encoder", **flags, update_freq=[2], max_update=3,
        disable_validation=True,
    )  # fmt: skip
    formed.clear()
    tiny_run.train(cfg)
    assert len(formed) == 3


def test_gradients_of_parts_add_up(folder: Path, tmp_path: Path) -> None:
    """Eight rows at once, or one after the other."""
    tiny_run.train(ligo_config(folder, tmp_path / "op", "encoder", max_update=1))
    (model,), _ = checkpoint.load_model_ensemble([str(last(tmp_path / "op"))])
    model.double().eval()
    tokens = torch.randint(4, 60, (8, 9))
    found = []
    for rows in (tokens.split(8), tokens.split(1)):
        model.zero_grad()
        for row in rows:
            model(row)[0].log_softmax(-1).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == {n for n, _ in model.named_parameters()}
    for name, gradient in found[0].items():
        assert gradient.any(), name
        torch.testing.assert_close(gradient, found[1][name])


@pytest.mark.parametrize("name", ["fb_baseline", "clap_alibi", "zero_clap", "fb_sentpred", "fb_lm"])
def test_originals_files(
    name: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All layers of a file of the original are its tensors, bit for bit."""
    folder, out = shared / "compat" / "checkpoints", tmp_path / "out.pt"
    source, data = folder / name / "model.pt", "sentpred-bin" if "sentpred" in name else "data-bin"
    tensors = tiny_run.content(source)["model"]
    layers = {int(found[1]) for n in tensors if (found := re.search(r"\.layers\.(\d+)\.", n))}
    kept = ",".join(map(str, sorted(layers)))
    words = ["--method", "extract", "--grow-layers", kept, "--data", str(folder / data), "--json"]
    assert grow.main([str(source), "--out", str(out), *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["exact"] and result["logit_change"] in (0.0, None)
    after = tiny_run.content(out)["model"]
    assert all(x.equal(after[n]) for n, x in tensors.items() if n in after)
    assert set(tensors) - set(after) <= {"decoder.embed_positions._float_tensor"}


# -- the command -----------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: str) -> tuple[int, str]:
        status = grow.main([*words, "--data", str(folder / "data")])
        return status, capsys.readouterr().out

    return command


def test_the_command(run: Run, folder: Path, tmp_path: Path) -> None:
    source, out = str(last(folder / "small")), tmp_path / "wide.pt"
    status, text = run(source, "--out", str(out), "--method", "enlarge", "--grow-width", "2")
    assert status == 0
    assert "enlarge, layers 2, width 64, ffn 128, heads 4; the same function" in text
    status, text = run(
        *(source, "--out", str(out), "--method", "stack", "--encoder-layers", "5"),
        *("--force", "--json"),
    )
    result = json.loads(text)
    assert result["layers"] == 5 and not result["exact"] and result["logit_change"] > 1e-6
    record = tiny_run.content(out)["extra_state"]["fairseq_lm"]
    assert [facts["method"] for facts in record["lineage"]] == ["stack"]
    again = tmp_path / "again.pt"
    run(str(out), "--out", str(again), "--method", "extract", "--grow-layers", "0,1")
    record = tiny_run.content(again)["extra_state"]["fairseq_lm"]
    assert [facts["method"] for facts in record["lineage"]] == ["stack", "extract"]
    before, after = tiny_run.content(Path(source))["model"], tiny_run.content(again)["model"]
    assert before.keys() == after.keys()
    assert all(x.equal(after[name]) for name, x in before.items())


def test_a_grown_model_is_an_ordinary_one(run: Run, folder: Path, tmp_path: Path) -> None:
    """It fills masks, with the same words if growth was exact, and keeps its classifiers."""
    (tmp_path / "dict.txt").write_bytes((folder / "data" / "dict.txt").read_bytes())
    (tmp_path / "small.pt").write_bytes(last(folder / "small").read_bytes())
    run(
        *(str(tmp_path / "small.pt"), "--out", str(tmp_path / "wide.pt")),
        *("--method", "hyperclone", "--grow-width", "2"),
    )
    small, wide = (
        RobertaModel.from_pretrained(str(tmp_path), name, bpe="none")
        for name in ("small.pt", "wide.pt")
    )
    answers = [hub.fill_mask("w3 w6 <mask> w12", topk=5) for hub in (small, wide)]
    assert [a[2] for a in answers[0]] == [a[2] for a in answers[1]]
    assert answers[0][0][1] == pytest.approx(answers[1][0][1], abs=1e-5)


def test_a_learned_operator_by_command(run: Run, folder: Path, tmp_path: Path) -> None:
    tiny_run.train(ligo_config(folder, tmp_path / "op", "decoder"))
    small, op = str(last(folder / "small-lm")), str(last(tmp_path / "op"))
    status, text = run(small, "--out", str(tmp_path / "a.pt"), "--operator", op)
    assert status == 0 and "ligo, layers 4, width 64" in text
    run(op, "--out", str(tmp_path / "b.pt"))
    one, two = (tiny_run.content(tmp_path / name)["model"] for name in ("a.pt", "b.pt"))
    assert all(x.equal(two[name]) for name, x in one.items())
    with pytest.raises(ConfigError, match="learned for another source"):
        run(str(last(folder / "small")), "--out", str(tmp_path / "c.pt"), "--operator", op)
    with pytest.raises(ConfigError, match="names an ordinary model"):
        run(small, "--out", str(tmp_path / "c.pt"), "--operator", small)
    with pytest.raises(ConfigError, match="belongs to another pair: it makes layers 4"):
        run(op, "--out", str(tmp_path / "c.pt"), "--decoder-layers", "6")
    assert not (tmp_path / "c.pt").exists()


def test_bad_command_lines(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(last(folder / "small")), str(tmp_path / "out.pt")
    for words, message in (
        (["--method", "fpi", "--arch", "transformer_lm_gpt"], "is of the family transformer_lm"),
        (["--method", "fpi", "--grow-width", "0"], "--grow-width is a whole number"),
        ([], "growth needs a method"),
    ):
        with pytest.raises(FairseqError, match=message):
            run(source, "--out", out, *words)
    with pytest.raises(SystemExit):
        run(source, "--out", out, "--method", "fpi", "--decoder-layers", "3")
    assert "has no such setting: --decoder-layers" in capsys.readouterr().err
    with pytest.raises(FairseqError, match=r"dictionary not found.*--data"):
        grow.main([source, "--out", out, "--method", "stack", "--data", str(tmp_path)])
    Path(out).write_text("mine")
    with pytest.raises(FairseqError, match="--force"):
        run(source, "--out", out, "--method", "stack", "--encoder-layers", "4")
    assert Path(out).read_text() == "mine"


def test_another_vocabulary_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    words = (folder / "data" / "dict.txt").read_text().splitlines()
    other = tmp_path / "other"
    other.mkdir()
    (other / "dict.txt").write_text("".join(f"{word}\n" for word in [*words, "more 1", "words 1"]))
    source, out = str(last(folder / "small")), tmp_path / "out.pt"
    with pytest.raises(FairseqError, match="dict|vocab|symbols|tokens|rows"):
        grow.main([source, "--out", str(out), "--method", "fpi", "--encoder-layers", "4",
                   "--data", str(other)])  # fmt: skip
    assert not out.exists()


def test_what_the_original_cannot_read_is_not_exported_to_it(run: Run, tmp_path: Path) -> None:
    """Multiplier, slopes and eps that keep the function exact are no settings of the original."""
    data = tiny_run.make_corpus(tmp_path / "data")
    pre = {"encoder_normalize_before": True, "layernorm_embedding": False, "position": "none"}
    tiny_run.train(tiny_run.config(data, tmp_path / "small", **pre, head="clap", max_update=1,
                                   clap_normalize=False))  # fmt: skip
    out = tmp_path / "wide.pt"
    words = ["--method", "lemon", "--encoder-embed-dim", "48", "--encoder-attention-heads", "3"]
    assert grow.main([str(last(tmp_path / "small")), "--out", str(out), *words, "--data",
                      str(data)]) == 0  # fmt: skip
    config = tiny_run.content(out)["cfg"]["model"]
    eps = config["layer_norm_eps"] if isinstance(config, dict) else config.layer_norm_eps
    assert eps == pytest.approx(1e-5 * 32 / 48)
    with pytest.raises(FairseqError, match="the original fairseq cannot load this model"):
        export.main([str(out), "--to", "fairseq", "--out", str(tmp_path / "original.pt")])
    assert not (tmp_path / "original.pt").exists()


def test_a_claim_that_is_not_true_writes_nothing(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = GROWTH["stack"]
    monkeypatch.setitem(GROWTH.data, "gstack", type(liar)(liar.grow, lambda pair, options: None))
    out = tmp_path / "out.pt"
    with pytest.raises(FairseqError, match="should not change logits, but moves them by"):
        run(
            *(str(last(folder / "small")), "--out", str(out)),
            *("--method", "gstack", "--encoder-layers", "4"),
        )
    assert not out.exists()

"""What is inside a checkpoint: the original finds what it looks for, we find everything again."""

from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import config, content, make_corpus, train

from fairseq.checkpoint import load_checkpoint_to_cpu
from fairseq.checkpoint.layout import (
    OURS,
    PROCESSES,
    config_of,
    data_rng_of,
    original_cfg,
    our_record,
    upgrade_state,
    vocabulary_of,
)
from fairseq.config import options
from fairseq.config.build import plain
from fairseq.errors import CheckpointError, ConfigError, FairseqError
from fairseq.files.safe_load import safe_load
from fairseq.hub.load import load_model_ensemble_and_task

PLAIN = (str, int, float, bool, type(None), torch.Tensor)
# A flag of the original's RoBERTa that its Namespace holds only if it is given.
SUPPRESSED = {"load_checkpoint_heads"}
# What the original's main branch has and its release 0.12, which the fork is made of, has not.
MAIN_ONLY = {"min_params_to_wrap", "debug_param_names"}  # where no loader is strict
FORK_KEYS = {
    "encoder_alibi",
    "encoder_alibi_asymmetrical",
    "contrastive_pretraining",
    "initial_beta",
    "l2norm_embedding",
    "zero_masking",
    "mask_prob",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the plain model; two epochs, the second cut short."""
    folder = tmp_path_factory.mktemp("state")
    data = make_corpus(folder / "data")
    train(config(data, folder / "run"))
    return folder / "run"


def as_dict(value: Any) -> Any:
    return vars(value) if isinstance(value, argparse.Namespace) else value


def plain_config(**flags: Any) -> Any:
    return options.make_config(
        {
            "arch": "roberta_base",
            "task": "masked_lm",
            "criterion": "masked_lm",
            "optimizer": "adam",
            "lr_scheduler": "polynomial_decay",
            "lr": [1e-3],
            "max_update": 10,
            "batch_size": 4,
            "data": "data-bin",
            **flags,
        }
    )


# -- what the original sees ------------------------------------------------------------------------


def test_cfg_holds_only_keys_that_the_original_knows(shared: Path) -> None:
    theirs = safe_load(shared / "compat/checkpoints/fb_baseline/model.pt")["cfg"]
    ours = original_cfg(plain_config())
    assert ours.keys() == theirs.keys()
    for name, section in ours.items():
        known = as_dict(theirs[name])
        if isinstance(section, dict) and known is not None:
            assert set(section) - SUPPRESSED <= set(known), name
        if name in ("common", "dataset", "optimization", "checkpoint", "distributed_training"):
            assert set(section) == set(known), name


def test_cfg_is_that_of_the_fork_for_the_plain_model(shared: Path) -> None:
    file = shared / "compat/checkpoints/baseline/structure.json"
    theirs = json.loads(file.read_text())["cfg"]
    assert isinstance(theirs["model"], dict)
    ours = original_cfg(plain_config())
    assert set(ours) - set(theirs) == {"simul_type"}
    for name, section in ours.items():
        if isinstance(section, dict):
            assert set(section) - SUPPRESSED - MAIN_ONLY <= set(theirs[name]), name


@pytest.mark.parametrize("name", ["fb_baseline", "baseline"])
def test_values_survive_a_foreign_checkpoint(name: str, shared: Path) -> None:
    state = safe_load(shared / f"compat/checkpoints/{name}/model.pt")
    theirs, ours = state["cfg"], original_cfg(config_of(state))
    for section, values in ours.items():
        known = as_dict(theirs.get(section))
        if isinstance(values, dict) and isinstance(known, dict):
            shared_keys = (set(values) & set(known)) - PROCESSES
            assert {k: values[k] for k in shared_keys} == {k: known[k] for k in shared_keys}


def test_cfg_is_made_of_plain_types() -> None:
    def check(value: Any) -> None:
        if type(value) is dict:
            for key, item in value.items():
                assert type(key) is str
                check(item)
        elif type(value) is list:
            for item in value:
                check(item)
        else:
            assert type(value) in PLAIN, value

    check(original_cfg(plain_config(bpe="gpt2", tokenizer="space")))
    check(our_record(plain_config(), {"validation_due": "epoch"}))


def test_keys_of_the_fork_are_written_only_when_they_say_something() -> None:
    assert not FORK_KEYS & set(original_cfg(plain_config())["model"])
    assert "omit_mask" not in original_cfg(plain_config())["task"]
    zero_clap = plain_config(
        head="clap", position="alibi-asymmetric", mask_embedding="zero", layernorm_embedding=False
    )
    model, task = original_cfg(zero_clap)["model"], original_cfg(zero_clap)["task"]
    assert model["contrastive_pretraining"] is True and model["zero_masking"] is True
    assert model["encoder_alibi"] is True and model["encoder_alibi_asymmetrical"] is True
    assert task["omit_mask"] is True
    assert "initial_beta" not in model


def test_layout_of_a_file(trained: Path, shared: Path) -> None:
    ours = content(trained / "checkpoint_last.pt")
    theirs = safe_load(shared / "compat/checkpoints/fb_resume25/checkpoint_last.pt")
    assert list(ours) == list(theirs)
    assert set(ours["extra_state"]) == {*theirs["extra_state"], OURS}
    assert set(ours["optimizer_history"][-1]) == set(theirs["optimizer_history"][-1])
    iterator = ours["extra_state"]["train_iterator"]
    assert set(theirs["extra_state"]["train_iterator"]) <= set(iterator)
    mine, original = (s["last_optimizer_state"] for s in (ours, theirs))
    assert set(mine["state"][0]) == set(original["state"][0])
    assert set(original["param_groups"][0]) <= set(mine["param_groups"][0])
    meters = ours["extra_state"]["metrics"]
    assert isinstance(meters, collections.OrderedDict)
    assert {"default", "train", "train_inner"} <= set(meters)
    assert all(len(row) == 4 for rows in meters.values() for row in rows)


def test_tensors_have_the_original_names_and_order(trained: Path, shared: Path) -> None:
    ours = content(trained / "checkpoint_last.pt")["model"]
    file = shared / "compat/checkpoints/baseline/structure.json"
    theirs = json.loads(file.read_text())["model"]
    assert list(ours) == list(theirs)
    assert isinstance(ours, collections.OrderedDict)
    order = [name for name in ours if name != "encoder.sentence_encoder.version"]
    shapes = [tuple(ours[name].shape) for name in order if name != "encoder.lm_head.weight"]
    state = content(trained / "checkpoint_last.pt")["last_optimizer_state"]["state"]
    assert [tuple(state[n]["exp_avg"].shape) for n in range(len(state))] == shapes


def test_nothing_but_plain_values_is_written(trained: Path) -> None:
    kinds = collections.Counter()

    def visit(value: Any) -> None:
        kinds[type(value)] += 1
        if isinstance(value, dict):
            for key, item in value.items():
                assert type(key) in (str, int)
                visit(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    visit(torch.load(trained / "checkpoint_last.pt", weights_only=True))
    assert set(kinds) <= {*PLAIN, dict, list, tuple, collections.OrderedDict}


def test_tied_weights_are_stored_once(trained: Path) -> None:
    model = content(trained / "checkpoint_last.pt")["model"]
    embedding = model["encoder.sentence_encoder.embed_tokens.weight"]
    assert model["encoder.lm_head.weight"].data_ptr() == embedding.data_ptr()


# -- what we see -----------------------------------------------------------------------------------


def lasting(config: Any) -> dict[str, Any]:
    """Return plain settings without what no file decides: processes, and what was stated."""
    values = dict(plain(config))
    values.pop("stated", None)
    del values["distributed_training"]
    values["dataset"] = {k: v for k, v in values["dataset"].items() if k not in PROCESSES}
    return values


def test_the_configuration_comes_back_complete(tmp_path: Path, trained: Path) -> None:
    state = content(trained / "checkpoint_last.pt")
    record = state["extra_state"][OURS]["config"]
    assert "stated" not in record
    assert lasting(config_of(state)) == lasting(record)
    for flags in (
        {},
        {"head": "clap", "position": "alibi", "layernorm_embedding": False},
        {"mask_embedding": "zero", "layer_norm_eps": 1e-12, "segments": 2, "bpe": "gpt2"},
        {"bf16": True, "update_freq": [2, 4], "adam_betas": "(0.9, 0.98)", "encoder_layers": 3},
    ):
        before = plain_config(data_rng="philox", **flags)
        record = {"cfg": original_cfg(before), "extra_state": {OURS: our_record(before, {})}}
        torch.save(record, tmp_path / "a.pt")
        assert lasting(config_of(safe_load(tmp_path / "a.pt"))) == lasting(before)


def test_without_our_record_the_models_come_back_from_cfg() -> None:
    for flags in (
        {},
        {"head": "clap", "position": "alibi", "layernorm_embedding": False},
        {"position": "alibi-asymmetric", "mask_embedding": "zero"},
        {"position": "sinusoidal", "scale_embedding": True},
        {"position": "none"},
    ):
        before = plain_config(data_rng="fairseq-main", **flags)
        after = config_of({"cfg": original_cfg(before)})
        assert plain(after.model) == plain(before.model), flags
        assert after.dataset.data_rng == "fairseq-main"


def test_overrides_reach_every_section_and_name_components(trained: Path) -> None:
    state = content(trained / "checkpoint_last.pt")
    after = config_of(state, {"data": "elsewhere", "seed": 9, "bpe": "gpt2", "dropout": 0.3})
    assert after.task.data == "elsewhere" and after.common.seed == 9
    assert after.bpe._name == "gpt2" and after.model.dropout == 0.3


def test_a_component_that_is_stated_and_unknown_is_refused() -> None:
    """The README on language models loads with tokenizer='moses', bpe='fastbpe'."""
    state = {"cfg": {"task": {"_name": "masked_lm"}, "model": {"_name": "roberta"}}}
    for key, name in (("tokenizer", "moses"), ("bpe", "fastbpe")):
        for known in (None, {"_name": "gpt2"}):
            stated = {"cfg": {**state["cfg"], "bpe": known}}
            with pytest.raises(ConfigError, match=f"{key} invalid choice: '{name}'.* choose from"):
                config_of(stated, {key: name})
    # what the file itself names is left out: its model can be used without
    assert config_of({"cfg": {**state["cfg"], "bpe": {"_name": "fastbpe"}}}).bpe is None


@pytest.mark.parametrize("place", ["cfg", "record", "args"])
def test_user_dir_is_never_taken_from_a_file(place: str) -> None:
    before = plain_config().thawed()
    before.common.user_dir = "/tmp/evil"
    state: dict[str, Any] = {"cfg": original_cfg(before)}
    if place == "record":
        state = {"extra_state": {OURS: our_record(before, {})}}
    if place == "args":
        state = {"args": argparse.Namespace(arch="roberta", task="masked_lm", user_dir="/tmp/evil")}
    assert config_of(state).common.user_dir is None
    assert config_of(state, {"user_dir": "/mine"}).common.user_dir == "/mine"


def test_nothing_in_a_hostile_cfg_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    before = original_cfg(plain_config())
    strings = [
        "${oc.env:SECRET}",
        "${env:SECRET}",
        "__import__('os').environ['SECRET']",
        "{'_target_': 'os.getenv', '_args_': ['SECRET']}",
    ]
    for text in strings:
        cfg = json.loads(json.dumps(before))
        cfg["common"]["tensorboard_logdir"] = text
        cfg["checkpoint"]["save_dir"] = text
        cfg["model"]["_target_"] = "os.system"
        try:
            said = json.dumps(plain(config_of({"cfg": cfg})))
        except ConfigError as error:
            said = str(error)
        assert "hunter2" not in said


def test_a_damaged_record_is_not_trusted() -> None:
    cfg = original_cfg(plain_config())
    for record in ({}, {"config": None}, [], "text", None):
        state = {"cfg": cfg, "extra_state": {OURS: record}}
        assert config_of(state).model._name == "roberta_base"
    with pytest.raises(CheckpointError, match="no configuration"):
        config_of({"extra_state": {}})


RNG_OF = {
    "alibi_asymmetrical": "fairseq-0.12",
    "alibi_symmetrical": "fairseq-0.12",
    "baseline": "fairseq-0.12",
    "clap_alibi": "fairseq-0.12",
    "learned_clap": "fairseq-0.12",
    "zero_clap": "fairseq-0.12",
    "zero_clap_self_masking": "fairseq-0.12",
    "fb_baseline": "fairseq-main",
    "fb_init": "fairseq-main",
    "fb_lm": "fairseq-main",
    "fb_resume25": "fairseq-main",
    "fb_sentpred": "fairseq-main",
}


def test_the_generator_of_every_foreign_checkpoint_is_known(shared: Path) -> None:
    folder = shared / "compat/checkpoints"
    found = {f.parent.name: data_rng_of(safe_load(f)) for f in sorted(folder.glob("*/*.pt"))}
    assert found == RNG_OF


def test_our_own_checkpoints_remember_their_generator(trained: Path) -> None:
    assert data_rng_of(content(trained / "checkpoint_last.pt")) == "philox"


@pytest.mark.parametrize("name", ["fb_baseline", "baseline", "zero_clap", "fb_resume25"])
def test_foreign_checkpoints_become_configurations(name: str, shared: Path) -> None:
    file = next((shared / "compat/checkpoints" / name).glob("*.pt"))
    state = load_checkpoint_to_cpu(str(file))
    cfg = state["cfg"]
    assert cfg.model._name == "roberta" and cfg.model.encoder_layers == 2
    assert cfg.task.tokens_per_sample == 64 and cfg.criterion._name == "masked_lm"
    assert cfg.model.mask_embedding == ("zero" if name == "zero_clap" else "learned")
    assert state["args"] is None
    rows = {"zero_clap": 1504}.get(name, 1505)
    assert vocabulary_of(state) == rows


# -- checkpoints from before structured configurations ---------------------------------------------


def old_args(**values: Any) -> argparse.Namespace:
    known = {
        "arch": "roberta",
        "task": "masked_lm",
        "criterion": "masked_lm",
        "optimizer": "adam",
        "encoder_layers": 2,
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 128,
        "encoder_attention_heads": 4,
        "max_positions": 64,
        "tokens_per_sample": 64,
        "sample_break_mode": "none",
        "lr": 0.5,
        "update_freq": 2,
        "data": ["somewhere", "else"],
        "raw_text": True,
        "remove_bpe": "subword_nmt",
        "min_lr": 1e-9,
        "log_keys": None,
        "adam_betas": "(0.9, 0.98)",
        "max_sentences": 16,
        "unheard_of": "value",
    }
    return argparse.Namespace(**{**known, **values})


def test_flat_settings_are_upgraded() -> None:
    cfg = config_of({"args": old_args()})
    assert cfg.model.encoder_embed_dim == 64 and cfg.model.max_positions == 64
    assert cfg.optimization.lr == [0.5] and cfg.optimization.update_freq == [2]
    assert cfg.optimization.stop_min_lr == 1e-9
    assert cfg.task.data == "somewhere"
    assert cfg.dataset.dataset_impl == "raw"
    assert cfg.common_eval.post_process == "subword_nmt"
    assert cfg.dataset.data_rng == "fairseq-0.12"
    lazy = config_of({"args": old_args(raw_text=False, lazy_load=True)})
    assert lazy.dataset.dataset_impl == "lazy"


def test_the_oldest_layout_is_upgraded() -> None:
    old = {
        "args": old_args(),
        "model": {"w": torch.ones(1)},
        "optimizer": {"state": {}, "param_groups": []},
        "best_loss": 3.25,
        "epoch": 0,
        "batch_offset": 7,
        "val_loss": 3.5,
    }
    state = upgrade_state(dict(old))
    assert state["last_optimizer_state"] == old["optimizer"]
    assert state["optimizer_history"] == [
        {
            "criterion_name": "CrossEntropyCriterion",
            "optimizer_name": "FairseqNAG",
            "lr_scheduler_state": {"best": 3.25},
            "num_updates": 0,
        }
    ]
    extra = state["extra_state"]
    assert extra["train_iterator"] == {"epoch": 1, "iterations_in_epoch": 7}
    assert extra["val_loss"] == 3.5
    assert not {"optimizer", "best_loss", "epoch", "batch_offset", "val_loss"} & set(state)
    assert upgrade_state(dict(state)) == state


def test_optimizer_states_inside_the_history_are_found() -> None:
    entry = {"criterion_name": "A", "optimizer_name": "B", "best_loss": 1.5}
    state = upgrade_state(
        {
            "model": {},
            "optimizer_history": [
                {**entry, "optimizer": {"n": 1}},
                {**entry, "optimizer": {"n": 2}, "num_updates": 20},
            ],
            "extra_state": {"epoch": 4, "batch_offset": 0},
        }
    )
    assert state["last_optimizer_state"] == {"n": 2}
    assert state["optimizer_history"][-1]["lr_scheduler_state"] == {"best": 1.5}
    assert state["optimizer_history"][-1]["num_updates"] == 20
    assert all("optimizer" not in row for row in state["optimizer_history"])
    assert state["extra_state"]["train_iterator"]["epoch"] == 4


def test_weights_alone_are_a_checkpoint() -> None:
    state = upgrade_state({"model": {"w": torch.ones(1)}, "extra_state": None, "task_state": None})
    assert state["extra_state"] == {} and state["task_state"] == {}


@pytest.mark.parametrize("content_", [[], {"model": 3}, {"weights": {}}, None, "text"])
def test_something_else_is_no_checkpoint(content_: Any) -> None:
    with pytest.raises(CheckpointError, match="no model"):
        upgrade_state(content_)


def test_a_model_of_the_args_age_gives_the_same_logits(shared: Path, tmp_path: Path) -> None:
    """The newest checkpoint, rewritten in the layout of 2019, is still the same model."""
    source = shared / "compat/checkpoints/fb_baseline"
    state = safe_load(source / "model.pt")
    old = {
        "args": state["cfg"]["model"],
        "model": {
            name.replace("encoder.sentence_encoder", "decoder.sentence_encoder")
            .replace("encoder.lm_head", "decoder.lm_head")
            .replace(".layernorm_embedding.", ".emb_layer_norm."): tensor
            for name, tensor in state["model"].items()
        },
        "optimizer_history": state["optimizer_history"],
        "extra_state": {"epoch": 5, "batch_offset": 0},
    }
    torch.save(old, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    data = {"data": str(shared / "compat/checkpoints/data-bin")}
    (model,), cfg, _ = load_model_ensemble_and_task([str(tmp_path / "model.pt")], data)
    assert cfg.dataset.data_rng == "fairseq-0.12"
    with np.load(source / "golden.npz") as golden, torch.no_grad():
        tokens = torch.from_numpy(golden["tokens"]).long()
        logits = model.eval()(tokens)[0]
        real = (tokens != 1).unsqueeze(-1)
        expected = torch.from_numpy(golden["logits"])
        assert float(((logits - expected) * real).abs().max()) <= 1e-5


def test_a_misfit_is_explained(shared: Path, trained: Path) -> None:
    data = {"data": str(shared / "compat/checkpoints/data-bin")}
    path = str(trained / "checkpoint_last.pt")
    with pytest.raises(FairseqError, match=r"dictionary has \d+ entries.*65"):
        load_model_ensemble_and_task([path], data)
    with pytest.raises(CheckpointError, match="encoder_layers is 3, but .* of 2 layers"):
        load_model_ensemble_and_task([path], {"encoder_layers": 3})
    with pytest.raises(CheckpointError, match="(?s)architectures match.*missing|not in the model"):
        load_model_ensemble_and_task([path], {"encoder_layers_to_keep": "0", "head": "clap"})


def test_the_strict_sections_hold_nothing_that_older_programs_refuse(shared: Path) -> None:
    """The fork and 0.12 stop at an unknown key of the task; what is not default is written."""
    file = shared / "compat/checkpoints/baseline/structure.json"
    theirs = json.loads(file.read_text())["cfg"]
    ours = original_cfg(plain_config())
    assert set(ours["task"]) - SUPPRESSED == set(theirs["task"]) - {"omit_mask"}
    assert set(ours["criterion"]) <= set(theirs["criterion"])
    said = original_cfg(plain_config(skip_masking=True, include_index=False))["task"]
    assert said["skip_masking"] is True and said["include_index"] is False
    pairs = plain_config(task="sentence_prediction", criterion="sentence_prediction", num_classes=2)
    newer = {"d2v2_multi", "report_mcc", "report_acc_and_f1", "report_pearson_and_spearman"}
    assert not newer & {*original_cfg(pairs)["task"], *original_cfg(pairs)["criterion"]}


CAUSAL = {"arch": "transformer_lm", "task": "language_modeling", "criterion": "cross_entropy"}


def test_a_decoder_with_alibi_carries_what_the_fork_needs() -> None:
    prenorm = {**CAUSAL, "position": "alibi", "decoder_normalize_before": True}
    model = original_cfg(plain_config(**prenorm))["model"]
    assert model["_name"] == "transformer_lm_alibi"  # a name that the original does not know
    assert model["decoder_alibi"] is True and model["no_token_positional_embeddings"] is True
    back = config_of({"cfg": original_cfg(plain_config(**prenorm, decoder_layers=3))})
    assert (back.model.position_kind(), back.model.decoder_layers) == ("alibi", 3)
    # the fork makes every decoder of that name a pre-norm one
    postnorm = original_cfg(plain_config(**{**prenorm, "decoder_normalize_before": False}))["model"]
    assert postnorm["_name"] == "transformer_lm" and postnorm["position"] == "alibi"
    assert "decoder_alibi" not in original_cfg(plain_config(**CAUSAL))["model"]

"""One configuration from flags, recipes and presets: what wins, what is refused, what refers."""

from __future__ import annotations

import argparse
import enum
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from fairseq.config.build import Component, build_config, flatten, plain, recipe_of
from fairseq.config.references import settled_alone
from fairseq.config.schema import II, FairseqDataclass, option
from fairseq.errors import ConfigError, RegistryError, UnsupportedError


@dataclass
class ModelConfig(FairseqDataclass):
    layers: int = 12
    width: int = 768
    dropout: float = 0.1
    position: str = "learned"
    tokens: int = II("task.tokens_per_sample")


@dataclass
class TaskConfig(FairseqDataclass):
    data: str | None = None
    tokens_per_sample: int = 512
    seed: int = II("common.seed")
    where: str = option(II("checkpoint.save_dir"), "a folder")


@dataclass
class OptimizerConfig(FairseqDataclass):
    momentum: float = 0.0
    lr: list[float] = II("optimization.lr")
    must: int = field(default="???")


@dataclass
class SimpleConfig(FairseqDataclass):
    momentum: float = 0.5


@dataclass
class EmptyConfig(FairseqDataclass):
    pass


def small(args: Any) -> None:
    args.layers = getattr(args, "layers", 2)
    args.width = getattr(args, "width", 64)
    args.no_token_positional_embeddings = getattr(args, "no_token_positional_embeddings", True)


COMPONENTS = {
    ("model", "net"): Component(ModelConfig),
    ("model", "small"): Component(ModelConfig, preset=small),
    ("model", "legacy"): Component(None, {"depth": 3, "width": 5}, small),
    ("task", "read"): Component(TaskConfig),
    ("task", "old"): Component(None, {"speed": 7}),
    ("optimizer", "first"): Component(OptimizerConfig),
    ("optimizer", "second"): Component(SimpleConfig),
    ("criterion", "cross_entropy"): Component(EmptyConfig),
    ("lr_scheduler", "fixed"): Component(EmptyConfig),
}


def describe(section: str, name: str) -> Component:
    if (section, name) not in COMPONENTS:
        raise RegistryError(f"unknown {section} '{name}'")
    return COMPONENTS[section, name]


def build(given=None, sections=None, strict=True):
    return build_config(given or {}, sections, describe=describe, strict=strict)


def test_default_preset_recipe_flag_in_this_order():
    sections = {"model": {"_name": "small"}}
    config = build({}, sections)
    assert (config.model.layers, config.model.dropout) == (2, 0.1)
    assert config.model._name == "small"
    sections["model"]["layers"] = "3"
    assert build({}, sections).model.layers == 3
    assert build({"layers": 4}, sections).model.layers == 4
    assert build({"arch": "net"}, {"model": {"width": 9}}).model.layers == 12


def test_shared_sections_too():
    sections = {"common": {"seed": 3}, "optimization": {"lr": "1e-3", "update_freq": 16}}
    config = build({"seed": 4}, sections)
    assert config.common.seed == 4
    assert config.optimization.lr == [1e-3]
    assert config.optimization.update_freq == [16]


def test_components_by_bare_name_and_defaults_of_those_nobody_names():
    config = build({}, {"task": "read", "optimizer": None})
    assert isinstance(config.task, TaskConfig)
    assert config.model is None and config.optimizer is None
    assert config.criterion._name == "cross_entropy"
    assert config.lr_scheduler._name == "fixed"
    assert build({}, {"task": "read"}, strict=False).criterion is None


def test_old_names_of_a_preset_do_not_overrule_new_names_of_the_user():
    assert build({"arch": "small"}).model.position == "none"
    assert build({"arch": "small", "position": "alibi"}).model.position == "alibi"
    nested = {"model": {"_name": "small", "position": "alibi"}}
    assert build({}, nested).model.position == "alibi"
    old = {"model": {"_name": "small", "no_token_positional_embeddings": False}}
    assert build({}, old).model.position == "learned"


def test_a_preset_may_force_a_value():
    def force(args):
        args.layers, args.no_scale_embedding = 5, False

    @dataclass
    class Scaled(ModelConfig):
        scale_embedding: bool = False

    forced = Component(Scaled, preset=force)
    model = build_config({"arch": "x", "layers": 2}, describe=lambda *_: forced).model
    assert (model.layers, model.scale_embedding) == (5, True)
    nested = {"model": {"_name": "x", "no_scale_embedding": True}}
    assert build_config({}, nested, describe=lambda *_: forced).model.layers == 5


def test_a_flag_in_new_names_wins_over_a_recipe_in_old_ones():
    nested = {"model": {"_name": "net", "encoder_learned_pos": False}}
    assert build({}, nested).model.position == "sinusoidal"
    assert build({"position": "none"}, nested).model.position == "none"


def test_a_model_may_use_an_old_name_itself():
    @dataclass
    class Own(FairseqDataclass):
        adaptive_input: bool = False
        max_source_positions: int = 0

    own = Component(Own)
    values = {"adaptive_input": True, "max_source_positions": 9}
    for given, nested in [({"arch": "x", **values}, {}), ({}, {"model": {"_name": "x", **values}})]:
        model = build_config(given, nested, describe=lambda *_: own).model
        assert (model.adaptive_input, model.max_source_positions) == (True, 9)


def test_plug_ins_without_dataclass_get_everything_flat():
    given = {"arch": "legacy", "task": "old", "depth": 4, "seed": 8}
    config = build(given, {"model": {"extra": 1, "no_scale_embedding": True}})
    model = config.model
    assert isinstance(model, argparse.Namespace) and model._name == "legacy"
    assert (model.depth, model.width, model.layers, model.extra) == (4, 5, 2, 1)
    assert (model.seed, model.no_scale_embedding, model.max_update) == (8, True, 0)
    assert (config.task.speed, config.task.arch, config.task.log_interval) == (7, "legacy", 100)


def test_settings_of_another_component_are_dropped():
    sections = {"optimizer": {"_name": "first", "must": 1, "momentum": 0.9}}
    assert build({}, sections).optimizer.momentum == 0.9
    config = build({"optimizer": "second"}, sections)
    assert config.optimizer.momentum == 0.9 and isinstance(config.optimizer, SimpleConfig)


@pytest.mark.parametrize(
    ("given", "sections", "message"),
    [
        ({}, {"optimisation": {}}, "unknown section 'optimisation' (did you mean 'optimization'?)"),
        ({}, {"common": {"sed": 1}}, "unknown key common.sed (did you mean 'seed'?)"),
        ({}, {"model": {"_name": "net", "layer": 1}}, "model.layer (did you mean 'layers'?)"),
        ({}, {"model": {"layers": 1}}, "section 'model' does not say which"),
        ({}, {"common": 3}, "must hold settings"),
        ({}, {"optimizer": "first"}, "optimizer.must is required"),
        ({}, {"task": {"_name": "read", "data": "???"}}, "task.data is required"),
        ({}, {"common": {"seed": "x"}}, "common.seed: cannot read 'x' as int"),
        ({"seed": "x"}, {}, "common.seed: cannot read"),
        ({}, {"task": {"_name": "unknown"}}, "unknown task 'unknown'"),
        ({}, {"model": {"_name": "net", "_target_": "os.system"}}, ""),
    ],
)
def test_strict(given, sections, message):
    if not message:  # nothing is instantiated: Hydra's key is private, hence ignored
        assert isinstance(build(given, sections).model, ModelConfig)
        return
    with pytest.raises((ConfigError, RegistryError)) as caught:
        build(given, sections)
    assert message in str(caught.value)


def test_a_missing_value_may_come_from_a_flag():
    sections = {"task": {"_name": "read", "data": "???"}, "optimizer": {"_name": "first"}}
    config = build({"data": "bin", "must": 4}, sections)
    assert (config.task.data, config.optimizer.must) == ("bin", 4)


def test_lenient_drops_and_names_what_nobody_knows(caplog):
    sections = {
        "whatever": {"a": 1},
        "common": {"seed": 3, "color": "red", "tpu": True, "model_parallel_size": 1},
        "model": {"_name": "net", "seed": 3, "lr": [1], "layers": 2, "gone": 1},
    }
    config = build({}, sections, strict=False)
    assert (config.common.seed, config.model.layers) == (3, 2)
    assert "section common: color" in caplog.text
    assert "section model: gone" in caplog.text
    assert "lr" not in caplog.text and "model_parallel_size" not in caplog.text


@pytest.mark.parametrize(
    ("given", "sections"),
    [
        ({"tpu": True}, {}),
        ({}, {"common": {"tpu": True}}),
        ({}, {"bmuf": {"use_nbm": True}}),
        ({}, {"model": {"_name": "net", "quant_noise_pq": 0.1}}),
        ({}, {"optimization": {"use_bmuf": "true"}}),
    ],
)
def test_refused_settings(given, sections):
    with pytest.raises(UnsupportedError, match="not supported"):
        build(given, sections)
    sections.setdefault("task", "read")
    assert build({}, sections, strict=False).task.seed == 1


def test_refused_settings_may_spell_their_default_out():
    sections = {
        "common": {"tpu": False, "plasma_path": "/tmp/other"},
        "bmuf": {"block_lr": 1},
        "model": {
            "_name": "net",
            "quant_noise_pq": "0",
            "spectral_norm_classification_head": False,
        },
        "distributed_training": {"nprocs_per_node": 8, "slowmo_momentum": None},
        "generation": {"sacrebleu": "false"},
        "scoring": {"_name": "bleu"},
        "simul_type": None,
        "hydra": {"run": {"dir": "."}},
    }
    assert build({"tpu": False, "localsgd_frequency": "3"}, sections).model.layers == 12


class TestReferences:
    def test_defaults_refer_to_other_sections(self):
        sections = {"task": {"_name": "read", "tokens_per_sample": 64}, "common": {"seed": 9}}
        config = build({"arch": "net"}, sections)
        assert (config.model.tokens, config.task.seed) == (64, 9)
        assert config.task.where == "checkpoints"
        assert build({"arch": "net"}).model.tokens is None  # there is no task

    def test_values_refer_and_keep_the_type_of_their_field(self):
        sections = {
            "optimization": {"max_update": 100, "stop_time_hours": "${common.seed}"},
            "common": {"seed": 2, "tensorboard_logdir": "${checkpoint.save_dir}/tb-${common.seed}"},
            "checkpoint": {"save_dir": "runs/a"},
            "task": {"_name": "read", "tokens_per_sample": "${optimization.max_update}"},
            "model": {"_name": "net", "width": "${model.layers}"},
        }
        config = build({}, sections)
        assert config.optimization.stop_time_hours == 2.0
        assert config.common.tensorboard_logdir == "runs/a/tb-2"
        assert (config.task.tokens_per_sample, config.model.tokens) == (100, 100)
        assert config.model.width == 12

    def test_plug_ins_without_dataclass(self):
        config = build({}, {"model": {"_name": "legacy", "mine": "${common.seed}"}})
        assert config.model.mine == 1

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("${oc.env:HOME}", "not evaluated"),
            ("${env:HOME}/x", "not evaluated"),
            ("${now:%Y}", "not evaluated"),
            ("${a.${common.seed}}", "not evaluated"),
            ("${common.seed", "not evaluated"),
            ("${common.sed}", "which does not exist"),
            ("${checkpoint.save_dir}", "circular reference"),
            ("x/${checkpoint.restore_file}", "circular reference"),
        ],
    )
    def test_nothing_else_is_evaluated(self, value, message):
        sections = {"checkpoint": {"save_dir": value, "restore_file": "${checkpoint.save_dir}"}}
        with pytest.raises(ConfigError) as caught:
            build({}, sections)
        assert message in str(caught.value)

    def test_what_a_file_of_others_refers_to_is_left_out(self, caplog, monkeypatch):
        monkeypatch.setenv("SECRET", "hunter2")
        sections = {
            "checkpoint": {"save_dir": "${oc.env:SECRET}", "restore_file": "${gone.key}"},
            "task": {
                "_name": "read",
                "seed": "${oc.env:SECRET}",
                "where": "${checkpoint.save_dir}",
            },
        }
        config = build({}, sections, strict=False)
        assert (config.checkpoint.save_dir, config.task.where) == ("checkpoints", "checkpoints")
        assert (config.checkpoint.restore_file, config.task.seed) == ("checkpoint_last.pt", 1)
        assert "not evaluated" in caplog.text and "(ignored)" in caplog.text
        assert "hunter2" not in str(plain(config))

    def test_alone(self):
        given = TaskConfig(data="bin")
        task = settled_alone(given)
        assert given == TaskConfig(data="bin") and given is not task
        assert (task.seed, task.where, task.data) == (1, "checkpoints", "bin")
        model = settled_alone(ModelConfig())
        assert model.tokens is None
        args = settled_alone(argparse.Namespace(seed="${common.seed}", other=3))
        assert (args.seed, args.other) == (1, 3)
        task.freeze()
        assert settled_alone(task) is task  # was settled before


def test_flatten_is_read_back():
    given = {"arch": "small", "task": "read", "dropout": 0.3, "lr": [0.1], "must": 2}
    config = build({**given, "optimizer": "first"})
    flat = vars(flatten(config))
    assert (flat["arch"], flat["task"], flat["layers"], flat["lr"]) == ("small", "read", 2, [0.1])
    assert build({k: v for k, v in flat.items() if v is not None}) == config


def test_recipe_of_is_read_back_and_leaves_out_copies():
    given = {"arch": "small", "task": "read", "optimizer": "first", "must": 2, "lr": "0.1,0.2"}
    config = build(given)
    recipe = recipe_of(config)
    assert build({}, recipe) == config
    assert "seed" not in recipe["task"] and "lr" not in recipe["optimizer"]
    recipe["optimization"]["lr"] = [0.3]
    assert build({}, recipe).optimizer.lr == [0.3]
    config.task.seed = 77  # no longer a copy
    assert recipe_of(config)["task"]["seed"] == 77


def test_plain():
    class Mode(enum.Enum):
        A = "a"

    config = OmegaConf.create({"x": {"y": [1, "${z}"]}, "z": 3, "m": Mode.A})
    assert plain(config) == {"x": {"y": [1, "${z}"]}, "z": 3, "m": "A"}
    values = argparse.Namespace(a=(1, Mode.A), b=SimpleConfig(), c={1: None})
    expected = {"a": [1, "a"], "b": {"_name": None, "momentum": 0.5}, "c": {"1": None}}
    assert plain(values) == expected


def test_omegaconf_containers_are_accepted():
    sections = OmegaConf.create(
        {"common": {"seed": 4}, "task": {"_name": "read", "seed": "${common.seed}", "data": "???"}}
    )
    config = build({"data": "bin"}, sections)
    assert (config.task.seed, config.task.data) == (4, "bin")

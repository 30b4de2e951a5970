"""``fairseq.dataclass``: the names plug-ins import, and what the functions do."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Optional

import pytest
from omegaconf import II as OmegaII
from omegaconf import OmegaConf

from fairseq.config import sections
from fairseq.dataclass import (
    II,
    ChoiceEnum,
    FairseqDataclass,
    configs,
    constants,
    initialize,
    utils,
)
from fairseq.errors import ConfigError


@dataclass
class Thing(FairseqDataclass):
    size: int = 3
    rates: list[float] = II("optimization.lr")
    mode: ChoiceEnum(["a", "b"]) = "a"  # type: ignore[valid-type]


def settings(**more):
    return argparse.Namespace(
        task="masked_lm",
        arch="roberta_tiny",
        criterion="masked_lm",
        optimizer="adam",
        lr_scheduler="fixed",
        data="bin",
        lr=[0.1],
        seed=7,
        encoder_layers=2,
        adam_betas="(0.9, 0.98)",
        max_tokens=None,
        mine="kept away",
        **more,
    )


def test_names():
    assert issubclass(configs.FairseqBMUFConfig, FairseqDataclass)
    for name in ("CommonConfig", "EMAConfig", "FairseqConfig", "InteractiveConfig"):
        assert issubclass(getattr(configs, name), FairseqDataclass)
        if hasattr(sections, name):
            assert getattr(configs, name) is getattr(sections, name)
    assert "pytorch_ddp" in constants.DDP_BACKEND_CHOICES
    assert "json" in constants.LOG_FORMAT_CHOICES and "mmap" in constants.DATASET_IMPL_CHOICES
    assert constants.ZERO_SHARDING_CHOICES("os") == "os"
    assert constants.DDP_COMM_HOOK_CHOICES.none == "none"
    assert II("a.b") == OmegaII("a.b") == "${a.b}"
    initialize.hydra_init()
    initialize.hydra_init("base")
    assert initialize.add_defaults(OmegaConf.create({})) is None
    with utils.omegaconf_no_object_check():
        pass


def test_namespaces_become_configurations():
    config = utils.convert_namespace_to_omegaconf(settings(memory_efficient_fp16=True))
    assert isinstance(config, configs.FairseqConfig)
    assert config.task.data == config["task"]["data"] == "bin"
    assert (config.model._name, config.model.encoder_layers) == ("roberta_tiny", 2)
    assert config.model.encoder_embed_dim == 192
    assert config.optimizer.lr == config.optimization.lr == [0.1]
    assert (config.task.seed, config.common.seed) == (7, 7)
    assert config.common.fp16 is True
    assert config.get("bpe") is None and config.dataset.get("nothing", 3) == 3
    assert "model" in config and "mine" not in config
    # twice is once
    assert utils.convert_namespace_to_omegaconf(config) is config


def test_text_in_namespaces_is_read():
    args = settings(update_freq="[2, 4]", clip_norm="0.5", total_num_update="150", max_update="9")
    args.lr_scheduler = "polynomial_decay"
    config = utils.convert_namespace_to_omegaconf(args)
    assert (config.optimization.update_freq, config.optimization.clip_norm) == ([2, 4], 0.5)
    assert (config.lr_scheduler.total_num_update, config.optimization.max_update) == (150.0, 9)


def test_overwriting_by_name():
    config = utils.convert_namespace_to_omegaconf(settings())
    utils.overwrite_args_by_name(config, {"seed": 9, "lr": [0.5], "dropout": 0.3, "nobody": 1})
    assert (config.common.seed, config.task.seed) == (9, 9)
    assert config.optimization.lr == config.optimizer.lr == config.lr_scheduler.lr == [0.5]
    assert config.model.dropout == 0.3
    utils.overwrite_args_by_name(config, {"optimizer": "sgd", "momentum": 0.9})
    assert (config.optimizer._name, config.optimizer.momentum) == ("sgd", 0.9)


def test_overwriting_other_kinds_of_configurations():
    nested = {"a": {"x": 1, "y": 2}, "x": 3, "b": argparse.Namespace(x=4), "optimizer": None}
    utils.overwrite_args_by_name(nested, {"x": 0})
    assert nested == {
        "a": {"x": 0, "y": 2},
        "x": 0,
        "b": argparse.Namespace(x=0),
        "optimizer": None,
    }
    config = OmegaConf.create(
        {"a": {"x": 1}, "optimizer": {"_name": "adam"}, "x": 2, "optimization": {"lr": [0.1]}}
    )
    utils.overwrite_args_by_name(config, {"x": 0, "optimizer": "sgd", "momentum": 0.5})
    assert (config.a.x, config.x) == (0, 0)
    assert (config.optimizer._name, config.optimizer.momentum) == ("sgd", 0.5)


def test_merging_with_a_dataclass():
    parent = Thing(size=5)
    for values in ({"size": "4"}, OmegaConf.create({"size": 4}), argparse.Namespace(size=4)):
        merged = utils.merge_with_parent(parent, values)
        assert isinstance(merged, Thing) and merged.size == 4
    assert parent.size == 5
    assert utils.merge_with_parent(parent, {"mode": "b", "_name": "n"})._name == "n"
    assert utils.merge_with_parent(parent, {"gone": 1}, remove_missing=True).size == 5
    with pytest.raises(ConfigError, match=r"no field sizes \(did you mean 'size'\?\)"):
        utils.merge_with_parent(parent, {"sizes": 1})
    with pytest.raises(ConfigError, match="none of a, b"):
        utils.merge_with_parent(parent, {"mode": "c"})


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        (None, float, None),
        ("", float, []),
        ("1,2", int, [1, 2]),
        ("[0.5]", float, [0.5]),
        ("4", float, [4.0]),
        ([1, 2], float, [1.0, 2.0]),
        ("'a','b'", str, ["a", "b"]),
    ],
)
def test_lists_in_text(text, kind, value):
    assert utils.eval_str_list(text, kind) == value


def test_types_of_fields():
    assert utils.interpret_dc_type(Optional[int]) is int  # noqa: UP045
    assert utils.interpret_dc_type(Any) is str
    assert utils.interpret_dc_type(float) is float
    with pytest.raises(RuntimeError):
        utils.interpret_dc_type("int")

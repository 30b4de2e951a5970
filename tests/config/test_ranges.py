"""Ranges of numbers and paths with ``~``: declared by the field, checked wherever it comes from."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from typing import get_args, get_origin

import pytest
import yaml

from fairseq.config import options
from fairseq.config.components import as_config, class_of, make_config
from fairseq.config.preprocess import PreprocessConfig
from fairseq.config.ranges import BOUNDS, check_fields, expand_home
from fairseq.config.registries import CHOICES
from fairseq.config.registry import config_class
from fairseq.config.schema import (
    FairseqDataclass,
    default_of,
    is_reference,
    option,
    public_fields,
    without_optional,
)
from fairseq.config.sections import SECTIONS
from fairseq.errors import ConfigError
from fairseq.evaluation.glue.runs import _parse, _write_recipe
from fairseq_cli import hydra_train
from fairseq_cli.entry import expand_home as expand_argument

# numbers that may be anything finite
FREE = {"lenpen", "unkpen", "clap_initial_beta", "stop_at_metric"}
COMPONENTS = {
    "task": "masked_lm",
    "arch": "roberta_tiny",
    "criterion": "masked_lm",
    "optimizer": "adam",
}
# section, setting, accepted value, values that are refused
CASES = [
    ("optimization", "lr", "0.5", ["-1", "0.1,-1", "nan", "inf", ""]),
    ("optimization", "update_freq", "2", ["0", "1,0"]),
    ("optimization", "clip_norm", "0", ["-0.1"]),
    ("common", "seed", "0", ["-1", str(2**63)]),
    ("common", "log_interval", "1", ["0", "-5"]),
    ("dataset", "num_workers", "0", ["-1", "5000"]),
    ("dataset", "required_batch_size_multiple", "1", ["0"]),
    ("dataset", "batch_size", "1", ["0", "-3"]),
    ("checkpoint", "save_interval", "1", ["0"]),
    ("checkpoint", "keep_interval_updates_pattern", "-1", ["0"]),
    ("ema", "ema_decay", "1", ["1.5"]),
    ("model", "dropout", "1", ["1.1", "-0.1", "nan"]),
    ("model", "encoder_embed_dim", "4", ["0", "-4"]),
    ("task", "mask_prob", "1", ["1.5", "-1"]),
    ("optimizer", "adam_betas", "(0, 0.9)", ["(0.9, 1)", "(-0.1, 0.9)", "oops"]),
    ("optimizer", "weight_decay", "0", ["-0.01"]),
]
REFUSED = [(section, key, bad) for section, key, _, values in CASES for bad in values]


def by_flag(section, key, text):
    argv = ["/data", f"--{key.replace('_', '-')}={text}"]
    argv += [f"--{flag}={name}" for flag, name in COMPONENTS.items()]
    return options.parse_config(options.get_training_parser(argv=argv), argv)


def nested(section, key, text):
    names = {"model" if flag == "arch" else flag: {"_name": n} for flag, n in COMPONENTS.items()}
    names["task"]["data"] = "/data"
    names.setdefault(section, {})[key] = text
    return names


def by_yaml(section, key, text, folder):
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(nested(section, key, text)))
    parser = options.get_training_parser(argv=[])
    parser.add_argument("--config")
    return options.parse_config(parser, ["--config", str(file)])


def by_hydra(section, key, text, folder):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(nested(section, key, text)))
    return as_config(hydra_train.compose(str(folder), "recipe", []), strict=True)


def by_namespace(section, key, text):
    return as_config(argparse.Namespace(data="/data", **COMPONENTS, **{key: text}))


@pytest.mark.parametrize("section,key,bad", REFUSED, ids=lambda value: str(value)[:12])
def test_out_of_range_is_refused_wherever_it_comes_from(section, key, bad, tmp_path, capsys):
    with pytest.raises(SystemExit):
        by_flag(section, key, bad)
    assert f"--{key.replace('_', '-')}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=key.replace("_", "[-_]")):
        by_namespace(section, key, bad)


@pytest.mark.parametrize("section,key,bad", REFUSED[::4], ids=lambda value: str(value)[:12])
def test_files_are_checked_as_flags_are(section, key, bad, tmp_path, capsys):
    with pytest.raises(SystemExit):
        by_yaml(section, key, bad, tmp_path)
    assert f"({section}.{key})" in capsys.readouterr().err or bad == ""
    with pytest.raises(ConfigError, match=key.replace("_", "[-_]")):
        by_hydra(section, key, bad, tmp_path)


@pytest.mark.parametrize("section,key,good", [case[:3] for case in CASES])
def test_the_ends_of_a_range_are_accepted(section, key, good):
    assert getattr(by_flag(section, key, good), section) is not None


def test_an_old_file_is_read_with_the_default_and_a_warning(caplog):
    config = make_config({}, {"common": {"seed": -4, "log_interval": 0}}, strict=False)
    assert (config.common.seed, config.common.log_interval) == (1, 100)
    assert "--seed (common.seed) must be at least 0 and at most" in caplog.text
    with pytest.raises(ConfigError, match="--seed"):  # but not if the user says it
        make_config({"seed": -4}, {"common": {"seed": 1}}, strict=False)


def every_dataclass():
    yield from SECTIONS.items()
    yield "preprocess", PreprocessConfig
    for flag, names in CHOICES.items():
        for name in names:
            if (found := config_class(class_of(flag, name))) is not None:
                yield f"{flag} {name}", found


def test_every_number_has_a_range():
    """A field of numbers states its range, unless it takes them from elsewhere or any will do."""
    without, seen = set(), 0
    for place, cls in every_dataclass():
        for field, kind in public_fields(cls):
            inner = without_optional(kind)
            parts = get_args(inner) if get_origin(inner) in (list, tuple) else (inner,)
            if not {int, float} & set(parts) or is_reference(default_of(field)):
                continue
            seen += 1
            if not BOUNDS.keys() & field.metadata.keys() and field.name not in FREE:
                without.add(f"{place}: {field.name}")
    assert not without
    assert seen > 150


def test_a_plug_in_declares_ranges():
    @dataclasses.dataclass
    class Mine(FairseqDataclass):
        share: float = option(0.5, "a share", minimum=0.1, below=1)
        names: list[str] = option(["a"], "no numbers")
        any_number: float = option(0.0, "any")

    check_fields(Mine(), "model")
    for bad in (0.05, 1.0, math.nan):
        with pytest.raises(ConfigError, match=r"--share \(model.share\)"):
            check_fields(Mine(share=bad), "model")
    with pytest.raises(ConfigError, match="finite"):
        check_fields(Mine(any_number=math.inf), "model")


def test_home_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/a:b:~/c~d") == "/home/me/a:b:/home/me/c~d"
    config = by_yaml("checkpoint", "save_dir", "~/run", tmp_path)
    assert config.checkpoint.save_dir == "/home/me/run"
    assert by_hydra("task", "data", "~/bin:/other", tmp_path).task.data == "/home/me/bin:/other"
    assert by_flag("checkpoint", "restore_file", "~/m.pt").checkpoint.restore_file == (
        "/home/me/m.pt"
    )
    given = {**COMPONENTS, "data": "~/d", "bpe": "byte_level", "byte_level_tokenizer": "~/t.json"}
    config = make_config(given)
    assert (config.task.data, config.bpe.byte_level_tokenizer) == ("/home/me/d", "/home/me/t.json")


def test_home_in_arguments_of_every_command(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--inputs=~/a", "~/b", "--title", "~tilde", "--x=a~/b", "~common.seed"]
    assert [expand_argument(word) for word in words] == [
        "--inputs=/home/me/a", "/home/me/b", "--title", "~tilde", "--x=a~/b", "~common.seed",
    ]  # fmt: skip


def test_paths_are_marked():
    """Whatever is named like a file or folder writes ``~`` out."""
    ends = ("_dir", "_file", "dict", "pref", "_logdir", "destdir", "_json", "_path")
    for place, cls in every_dataclass():
        for field, _ in public_fields(cls):
            if field.name in ("path", "data", "tensorboard_logdir") or field.name.endswith(ends):
                marked = field.metadata.get("path") or is_reference(default_of(field))
                assert marked, f"{place}: {field.name}"
    assert os.path.expanduser("~")


@pytest.mark.parametrize("words", [["--lr", "-1"], ["--seed", "-1"], ["--dropout", "1.5"]])
def test_flags_of_glue_are_checked(words, tmp_path, capsys):
    recipe = nested("common", "seed", 1)
    _write_recipe(tmp_path / "recipe.yaml", recipe)
    assert _parse(tmp_path / "recipe.yaml", ["--lr", "0.1"]).optimization.lr == [0.1]
    with pytest.raises(SystemExit):
        _parse(tmp_path / "recipe.yaml", words)
    assert f"error: {words[0]} (" in capsys.readouterr().err


def test_a_flag_of_a_component_without_effect_warns(caplog):
    make_config({**COMPONENTS, "optimizer": "adadelta", "anneal_eps": True, "data": "d"})
    assert "--anneal-eps has no effect here" in caplog.text

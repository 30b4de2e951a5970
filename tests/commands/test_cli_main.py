"""``main`` of the commands, called from Python with any kind of configuration."""

from __future__ import annotations

import argparse

import pytest
from omegaconf import OmegaConf

from fairseq.config import options
from fairseq.config.build import flatten
from fairseq.config.plugin_names import convert_namespace_to_omegaconf
from fairseq.config.sections import FairseqConfig
from fairseq_cli import train, validate

WORDS = ["bin", "--task", "masked_lm", "--arch", "roberta_tiny", "--optimizer", "adam"]
WORDS += ["--batch-size", "4", "--lr", "0.1", "--seed", "3"]


def training_args():
    return options.parse_args_and_arch(options.get_training_parser(argv=()), WORDS)


@pytest.fixture
def started(monkeypatch):
    """Configurations that training was started with."""
    import fairseq.distributed.utils as distributed_utils

    seen = []
    monkeypatch.setattr(distributed_utils, "call_main", lambda cfg, main: seen.append(cfg))
    return seen


@pytest.mark.parametrize("kind", ["namespace", "ours", "dict", "omegaconf"])
def test_training_takes_every_kind_of_configuration(started, kind):
    args = training_args()
    nested = {
        "common": {"seed": 3},
        "task": {"_name": "masked_lm", "data": "bin"},
        "model": {"_name": "roberta_tiny"},
        "optimizer": "adam",
        "optimization": {"lr": [0.1]},
        "dataset": {"batch_size": 4},
    }
    cfg = {
        "namespace": args,
        "ours": convert_namespace_to_omegaconf(args),
        "dict": nested,
        "omegaconf": OmegaConf.create(nested),
    }[kind]
    train.main(cfg)
    config = started[0]
    assert isinstance(config, FairseqConfig)
    assert (config.task.data, config.task.seed, config.model.encoder_layers) == ("bin", 3, 4)
    assert (config.optimizer.lr, config.dataset.batch_size_valid) == ([0.1], 4)


def test_every_training_process_imports_the_plug_in_first(monkeypatch, tmp_path):
    import fairseq.training.loop

    order = []
    monkeypatch.setattr(
        "fairseq.config.plugins.import_user_module", lambda c: order.append(c.user_dir)
    )
    monkeypatch.setattr(
        fairseq.training.loop, "run_training", lambda cfg: order.append("train") or 1.5
    )
    config = FairseqConfig()
    config.common.user_dir = str(tmp_path)
    assert train.train_here(config) == 1.5
    assert order == [str(tmp_path), "train"]


@pytest.fixture
def validated(monkeypatch):
    """Settings that evaluation was started with."""
    import fairseq.evaluation

    seen = []
    monkeypatch.setattr(fairseq.evaluation, "validate", lambda given: seen.append(given) or {})
    return seen


def validation_args():
    words = ["bin", "--task", "masked_lm", "--path", "m.pt", "--batch-size", "2"]
    return options.parse_args_and_arch(options.get_validation_parser(argv=()), words)


@pytest.mark.parametrize("convert", [lambda args: args, convert_namespace_to_omegaconf])
def test_a_complete_configuration_overrides_with_what_it_states(validated, convert):
    """Defaults of flags, such as --tokens-per-sample 1024, must not replace the checkpoint's."""
    validate.main(convert(validation_args()))
    given = validated[0]
    assert (given["path"], given["data"], given["batch_size"]) == ("m.pt", "bin", 2)
    assert not {"tokens_per_sample", "mask_prob", "seed", "log_interval", "task"} & set(given)


def test_nested_configurations_and_overrides(validated):
    nested = {
        "common_eval": {"path": "m.pt", "quiet": True},
        "dataset": {"valid_subset": "test"},
        "task": {"_name": "masked_lm", "data": "bin", "tokens_per_sample": 512},
    }
    validate.main(OmegaConf.create(nested), argparse.Namespace(tokens_per_sample=64, seed=None))
    expected = {"path": "m.pt", "quiet": True, "valid_subset": "test", "data": "bin"}
    assert validated[0] == {**expected, "tokens_per_sample": 64}
    validate.main({"path": "n.pt", "tokens_per_sample": 32})
    assert validated[1] == {"path": "n.pt", "tokens_per_sample": 32}


def test_the_command_passes_on_what_is_stated_and_nothing_else(validated, capsys):
    words = ["bin", "--path", "m.pt", "--tokens-per-sample", "64", "--no-fp16", "--json"]
    assert validate.run(words) == 0
    expected = {"data": "bin", "path": "m.pt", "tokens_per_sample": 64, "fp16": False}
    assert validated[0] == {**expected, "log_format": "none"}
    assert capsys.readouterr().out == "{}\n"


def test_show_config_prints_and_does_not_train(started, capsys):
    assert train.run([*WORDS, "--show-config"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert (printed.model.encoder_layers, printed.task.seed) == (4, 3)
    assert not started
    assert train.run(WORDS) == 0
    assert vars(flatten(started[0]))["lr"] == [0.1]

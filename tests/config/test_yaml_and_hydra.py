"""Recipes: YAML through ``fairseq-train --config`` and through Hydra."""

from __future__ import annotations

import os
import sys
import textwrap

import pytest
import yaml
from omegaconf import OmegaConf

from fairseq.config import options
from fairseq.config.components import as_config, make_config
from fairseq.config.references import lookup
from fairseq.config.yaml import read_yaml
from fairseq.errors import ConfigError, MissingFileError, RegistryError
from fairseq.training.run_folder import config_as_yaml
from fairseq_cli import hydra_train, train

# the structure of the fork's recipes: sections, `_name`, interpolations, a header for old Hydra
RECIPE = """\
# @package _group_
common:
  fp16: true
  log_format: json
  log_interval: 200

checkpoint:
  no_epoch_checkpoints: true

task:
  _name: masked_lm
  data: ???
  sample_break_mode: complete
  tokens_per_sample: 512
  omit_mask: true

criterion: masked_lm

dataset:
  batch_size: 16
  ignore_unused_valid_subsets: true

optimizer:
  _name: adam
  weight_decay: 0.01
  adam_betas: (0.9,0.98)
  adam_eps: 1e-06

lr_scheduler:
  _name: polynomial_decay
  warmup_updates: 10000
  total_num_update: ${optimization.max_update}

optimization:
  clip_norm: 0
  lr: [5e-4]
  max_update: 125000
  update_freq: [16]

model:
  _name: roberta
  max_positions: ${task.tokens_per_sample}
  dropout: 0.0
  attention_dropout: 0.1
  layernorm_embedding: false
  no_token_positional_embeddings: true
  encoder_alibi: true
  encoder_alibi_asymmetrical: true
  contrastive_pretraining: true
  initial_beta: 1
  zero_masking: true
  no_scale_embedding: false
"""
GROUPS = """\
defaults:
  - optimizer: adam
  - model: tiny
  - _self_
task:
  _name: masked_lm
  data: bin
criterion:
  _name: masked_lm
lr_scheduler:
  _name: fixed
dataset:
  max_tokens: 1024
optimization:
  lr: [0.001]
"""


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "recipes"
    for name, text in {
        "zero.yaml": RECIPE,
        "groups.yaml": GROUPS,
        "optimizer/adam.yaml": "# @package _group_\n_name: adam\nweight_decay: 0.1\n",
        "optimizer/sgd.yaml": "# @package _group_\n_name: sgd\nmomentum: 0.9\n",
        "model/tiny.yaml": "# @package _group_\n_name: roberta_tiny\ndropout: 0.2\n",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def launch(recipes, monkeypatch, tmp_path):
    """Return a function that runs fairseq-hydra-train up to the training."""
    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr(train, "main", trained.append)

    def run(name, *overrides):
        trained.clear()
        words = ["--config-name", name] if name else []
        assert hydra_train.run(["--config-dir", str(recipes), *words, *overrides]) == 0
        return trained[0]

    return run


def parse(*words):
    parser = options.get_training_parser(argv=())
    parser.add_argument("--config")
    return options.parse_config(parser, [str(word) for word in words])


def check_zero_clap(config):
    model, task = config.model, config.task
    assert (model._name, model.encoder_layers, model.max_positions) == ("roberta", 12, 512)
    assert (model.position, model.head, model.mask_embedding) == (
        "alibi-asymmetric",
        "clap",
        "zero",
    )
    assert (model.scale_embedding, model.layernorm_embedding) == (True, False)
    assert (model.dropout, model.attention_dropout) == (0.0, 0.1)
    assert (task.tokens_per_sample, task.omit_mask, task.mask_prob) == (512, True, 0.15)
    assert config.criterion._name == "masked_lm"
    assert config.optimizer.adam_betas == "(0.9,0.98)"
    assert (config.optimizer.adam_eps, config.optimizer.lr) == (1e-6, [5e-4])
    assert (config.lr_scheduler.total_num_update, config.lr_scheduler.lr) == (125_000.0, [5e-4])
    assert (config.optimization.update_freq, config.optimization.clip_norm) == ([16], 0.0)
    assert (config.common.fp16, config.dataset.batch_size_valid) == (True, 16)


class TestConfigFile:
    def test_the_forks_recipe(self, recipes):
        config = parse("data-bin", "--config", recipes / "zero.yaml")
        check_zero_clap(config)
        assert config.task.data == "data-bin"

    def test_flags_win_over_the_file_and_the_file_over_the_preset(self, recipes):
        words = ["--lr", "0.1", "--encoder-layers", "2", "--position", "none", "--no-fp16"]
        config = parse(
            "bin", "--config", recipes / "zero.yaml", *words, "--tokens-per-sample", "64"
        )
        assert config.optimization.lr == config.optimizer.lr == config.lr_scheduler.lr == [0.1]
        assert (config.model.encoder_layers, config.model.position) == (2, "none")
        assert (config.model.max_positions, config.common.fp16) == (64, False)
        config = parse("bin", "--config", recipes / "zero.yaml", "--arch", "roberta_tiny")
        assert (config.model._name, config.model.encoder_layers) == ("roberta_tiny", 4)
        assert config.model.head == "clap"

    def test_a_folder_in_the_file_can_be_left_out_or_replaced(self, tmp_path):
        path = tmp_path / "r.yaml"
        path.write_text("task: {_name: masked_lm, data: one}\nmodel: roberta_tiny\n")
        assert parse("--config", path).task.data == "one"
        assert parse("--config", path, "two").task.data == "two"
        assert parse("two", "--config", path).task.data == "two"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("task: [", "not valid YAML"),
            ("- a", "must hold sections"),
            ("modle: roberta", "unknown section 'modle' (did you mean 'model'?)"),
            ("model: {_name: roberta, layers: 3}", "unknown key model.layers"),
            ("model: {_name: robreta}", "unknown architecture 'robreta' (did you mean 'roberta'?)"),
            ("common: {seed: '${oc.env:HOME}'}", "not evaluated"),
            ("common: {tpu: true}", "TPUs are not supported"),
            ("defaults: [{optimizer: adam}]", "fairseq-hydra-train"),
            ("task: masked_lm", "required: data"),
        ],
    )
    def test_a_wrong_file_is_a_wrong_command_line(self, tmp_path, capsys, text, message):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        with pytest.raises(SystemExit) as stop:
            parse("--config", path)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    def test_reading(self, tmp_path):
        path = tmp_path / "r.yaml"
        path.write_text(
            "defaults: [_self_, {task: null}]\nhydra: {run: {dir: .}}\ncommon: {seed: 2}"
        )
        assert read_yaml(str(path)) == {"common": {"seed": 2}}
        with pytest.raises(MissingFileError, match="--config"):
            read_yaml(str(tmp_path / "none.yaml"))
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="not valid YAML"):
            read_yaml(str(path))

    def test_the_configuration_of_a_run_is_read_back(self, tmp_path, recipes):
        words = [
            "--seed",
            "7",
            "--adam-betas",
            "(0.9, 0.95)",
            "--lr",
            "1e-7",
            "--arch",
            "roberta_tiny",
        ]
        config = parse("bin", "--config", recipes / "zero.yaml", *words)
        path = tmp_path / "config.yaml"
        path.write_text(config_as_yaml(config))
        again = parse("--config", path).thawed()
        again.generation.no_seed_provided = config.generation.no_seed_provided
        assert again == config
        assert parse("--config", path, "--seed", "8").task.seed == 8

    def test_a_plug_in_folder_in_the_file_needs_the_flag(self, tmp_path, capsys):
        plugin = tmp_path / "yaml_plugin"
        plugin.mkdir()
        (plugin / "__init__.py").write_text(
            textwrap.dedent(
                """
                from fairseq.models import register_model_architecture

                @register_model_architecture("roberta", "roberta_of_yaml")
                def narrow(args):
                    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 24)
                """
            )
        )
        path = tmp_path / "r.yaml"
        path.write_text(f"common: {{user_dir: {plugin}}}\nmodel: roberta_of_yaml\n")
        with pytest.raises(SystemExit):
            parse("--config", path)
        assert f"if you trust it, add --user-dir {plugin}" in capsys.readouterr().err
        assert "yaml_plugin" not in sys.modules
        found = parse("--config", path, "--user-dir", str(plugin))
        assert found.model.encoder_embed_dim == 24


class TestHydra:
    def test_the_forks_recipe(self, launch):
        check_zero_clap(launch("zero", "task.data=/bin"))

    def test_the_forks_command_line(self, launch):
        config = launch(
            "zero",
            "common.fp16=false",
            "common.cpu=true",
            "common.seed=1",
            "task.data=bin",
            "task.tokens_per_sample=64",
            "task.sample_break_mode=none",
            "dataset.num_workers=0",
            "optimization.update_freq=[1]",
            "optimization.max_update=200",
            "optimization.lr=[0.002]",
            "lr_scheduler.warmup_updates=20",
            "checkpoint.save_dir=ckpt",
            "+model.encoder_layers=2",
            "+model.encoder_embed_dim=64",
            "++model.encoder_attention_heads=4",
            "model.encoder_ffn_embed_dim=128",
            "~model.initial_beta",
        )
        model = config.model
        assert (model.encoder_layers, model.encoder_embed_dim, model.max_positions) == (2, 64, 64)
        assert (model.encoder_attention_heads, model.encoder_ffn_embed_dim) == (4, 128)
        assert (config.common.cpu, config.common.fp16, config.dataset.num_workers) == (
            True,
            False,
            0,
        )
        assert config.lr_scheduler.total_num_update == 200
        assert config.optimizer.lr == [0.002]
        assert os.path.basename(os.getcwd()) != "outputs"

    def test_groups(self, launch):
        config = launch("groups")
        assert (config.optimizer._name, config.optimizer.weight_decay) == ("adam", 0.1)
        assert (config.model.encoder_layers, config.model.dropout) == (4, 0.2)
        config = launch("groups", "optimizer=sgd", "optimizer.momentum=0.5")
        assert (config.optimizer._name, config.optimizer.momentum) == ("sgd", 0.5)

    def test_names_without_groups(self, launch):
        config = launch("zero", "task.data=bin", "criterion=cross_entropy")
        assert config.criterion._name == "cross_entropy"
        config = launch("zero", "task.data=bin", "task=masked_lm")
        assert config.task.tokens_per_sample == 512

    def test_no_recipe_at_all(self, launch):
        words = ["task=masked_lm", "task.data=bin", "dataset.batch_size=2", "optimizer=adam"]
        words.append("optimization.max_update=5")
        with pytest.raises(RegistryError, match="did you mean 'roberta'"):
            launch(None, *words, "model=robert")
        config = launch(None, *words, "model=roberta/roberta_tiny")
        assert (config.model.encoder_layers, config.optimization.max_update) == (4, 5)
        assert config.criterion._name == "cross_entropy"

    def test_run_dir_is_entered_and_inputs_stay_where_they_are(self, launch, tmp_path):
        (tmp_path / "bin").mkdir()
        config = launch("zero", "task.data=bin", "hydra.run.dir=runs/a", "hydra.job.name=x")
        assert os.path.samefile(os.getcwd(), tmp_path / "runs" / "a")
        assert os.path.samefile(config.task.data, tmp_path / "bin")
        assert config.checkpoint.save_dir == "checkpoints"
        with pytest.raises(ConfigError, match="not evaluated"):
            launch("zero", "task.data=bin", "hydra.run.dir=${now:%Y}")

    def test_whatever_is_read_stays_where_it_is(self, launch, tmp_path):
        read = {
            "checkpoint.grow_from": "small.pt",
            "ema.ema_seed_model": "small.pt",
            "dataset.sample_prompts": "prompts.txt",
            "bpe.sentencepiece_model": "pieces.model",
            "criterion.teacher_path": "teacher.pt",
            "checkpoint.restore_file": "checkpoint_last.pt",
        }
        written = {
            "checkpoint.save_dir": "saved",
            "common.log_file": "log.txt",
            "common.tensorboard_logdir": "events",
        }
        for name in [*read.values(), *written.values()]:
            (tmp_path / name).touch()
        words = [f"{key}={value}" for key, value in (read | written).items()]
        words += ["bpe=sentencepiece", "criterion=distillation", "hydra.run.dir=runs/b"]
        config = launch("zero", "task.data=bin", *words)
        del read["checkpoint.restore_file"]  # the default: a file of the run folder
        for key, name in read.items():
            assert lookup(config, key) == str(tmp_path / name), key
        for key, name in written.items() | {("checkpoint.restore_file", "checkpoint_last.pt")}:
            assert lookup(config, key) == name, key

    def test_without_run_dir_the_launch_folder_is_kept(self, launch, tmp_path):
        launch("zero", "task.data=bin")
        assert os.path.samefile(os.getcwd(), tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["recipes"]

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["task.data=bin", "common.seed=${oc.env:HOME}"], "not evaluated"),
            (["task.data=bin", "model.encoder_layer=2"], "did you mean 'encoder_layers'"),
            (["task.data=bin", "commn.seed=2"], "unknown section 'commn'"),
            (["task.data=bin", "common.tpu=true"], "TPUs are not supported"),
            ([], "task.data is required"),
            (["common.seed"], "Hydra cannot compose"),
            (["~common.nothing"], "Hydra cannot compose"),
        ],
    )
    def test_wrong_overrides(self, launch, overrides, message):
        with pytest.raises(ConfigError) as caught:
            launch("zero", *overrides)
        assert message in str(caught.value)

    def test_a_missing_recipe(self, launch):
        with pytest.raises(ConfigError, match="Cannot find primary config 'none'"):
            launch("none")

    @pytest.mark.parametrize("sweep", ["common.seed=1,2", "common.seed=range(1,3)"])
    def test_sweeps_are_not_offered(self, sweep):
        with pytest.raises(ConfigError, match="call the command in a loop"):
            hydra_train.run(["--config-name", "x", "-m", sweep])

    def test_one_run_may_be_called_a_multirun(self, recipes, monkeypatch):
        started = []
        monkeypatch.setattr(hydra_train, "main", started.append)
        words = ["--config-dir", str(recipes), "--config-name", "zero", "optimization.lr=[0.1,0.2]"]
        assert hydra_train.run(["-m", *words]) == hydra_train.run(words) == 0
        assert started[0] == started[1]
        with pytest.raises(SystemExit):
            hydra_train.run([*words, "--resolve-what"])

    def test_cfg_job_prints_what_was_composed(self, launch, recipes, capsys):
        words = ["--config-dir", str(recipes), "--config-name", "zero", "--cfg", "job"]
        assert hydra_train.run([*words, "common.seed=5"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["common"]["seed"] == 5
        assert printed["lr_scheduler"]["total_num_update"] == "${optimization.max_update}"

    def test_suppressed_crashes(self, monkeypatch, caplog):
        def crash(config):
            raise ZeroDivisionError("boom")

        monkeypatch.setattr(train, "main", crash)
        nested = {"task": {"_name": "masked_lm", "data": "x"}}
        with pytest.raises(ZeroDivisionError):
            hydra_train.main(nested)
        nested["common"] = {"suppress_crashes": True}
        assert hydra_train.main(nested) is None
        assert "boom" in caplog.text


def test_a_dict_config_is_a_configuration():
    nested = OmegaConf.create(
        {
            "common": {"seed": 3},
            "task": {"_name": "masked_lm", "data": "bin", "seed": "${common.seed}"},
            "optimization": {"lr": [0.1]},
            "optimizer": {"_name": "adam", "lr": "${optimization.lr}"},
        }
    )
    config = as_config(nested)
    assert (config.task.seed, config.optimizer.lr) == (3, [0.1])
    assert as_config(config) is config
    assert make_config({"task": "masked_lm", "data": "x"}).task.data == "x"

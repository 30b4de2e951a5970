"""A component named over a run's own recipe: what the old one set goes, what was stated stays."""

from __future__ import annotations

import argparse

import pytest
import yaml

from fairseq.config import options
from fairseq.config.components import as_config
from fairseq.training.run_folder import config_as_yaml
from fairseq_cli import hydra_train

RUN = [
    "/data", "--task=masked_lm", "--criterion=masked_lm", "--arch=roberta_tiny",
    "--optimizer=adam", "--adam-eps=1e-6", "--lr=0.002", "--lr-scheduler=polynomial_decay",
    "--warmup-updates=7", "--max-update=70", "--encoder-attention-heads=2", "--dropout=0.3",
    "--tokens-per-sample=32", "--batch-size=4", "--seed=9",
]  # fmt: skip


def parse(*words):
    argv = [str(word) for word in words]
    parser = options.get_training_parser(argv=argv)
    parser.add_argument("--config", action="append")
    return options.parse_config(parser, argv)


@pytest.fixture
def dump(tmp_path):
    """Return a function that writes the recipe a run folder would hold."""

    def write(*argv, name="old.yaml", edit=None):
        text = config_as_yaml(parse(*argv), as_recipe=True)
        content = yaml.safe_load(text)
        if edit is not None:
            edit(content)
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return tmp_path / name

    return write


def replaced(flag, name):
    """Return the command of ``RUN`` with another component."""
    return [f"--{flag}={name}" if word.startswith(f"--{flag}=") else word for word in RUN]


@pytest.mark.parametrize(
    "flag,name",
    [
        ("arch", "roberta_base"),
        ("arch", "roberta_prenorm"),
        ("optimizer", "sgd"),
        ("optimizer", "adamax"),
        ("lr-scheduler", "inverse_sqrt"),
        ("criterion", "cross_entropy"),
    ],
)
def test_it_is_as_if_the_command_had_named_it(dump, flag, name):
    old = dump(*RUN)
    words = replaced(flag, name)
    known = {  # what the new component has no flag for
        "sgd": ("--adam-eps",), "adamax": ("--adam-eps",),
    }.get(name, ())  # fmt: skip
    expected = parse(*[word for word in words if word.split("=")[0] not in known])
    assert parse("--config", old, f"--{flag}", name) == expected


def test_the_sizes_of_the_old_architecture_go_and_what_was_stated_stays(dump):
    new = parse("--config", dump(*RUN), "--arch", "roberta_base")
    assert new.model.encoder_embed_dim == 768
    assert (new.model.encoder_attention_heads, new.model.dropout) == (2, 0.3)
    assert new.stated["model"] == {
        "_name": "roberta_base", "encoder_attention_heads": 2, "dropout": 0.3,
    }  # fmt: skip


def test_the_recipe_alone_is_the_same_run(dump):
    assert parse("--config", dump(*RUN)) == parse(*RUN)
    assert parse("--config", dump(*RUN), "--arch", "roberta_tiny") == parse(*RUN)


def test_what_followed_from_the_old_criterion_goes_too(dump):
    headless = replaced("criterion", "contrastive_weight_tying")
    old = dump(*headless)
    assert yaml.safe_load(old.read_text())["model"]["head"] == "none"
    new = parse("--config", old, "--criterion", "masked_lm")
    assert new.model.head == "roberta" and new == parse(*RUN)


def test_edits_by_hand_stay(dump):
    def edit(content):
        content["optimization"]["lr"] = [0.5]
        content["model"]["encoder_layers"] = 5

    new = parse("--config", dump(*RUN, edit=edit), "--arch", "roberta_base")
    assert (new.optimization.lr, new.model.encoder_layers) == ([0.5], 5)
    assert new.model.encoder_embed_dim == 768


def test_it_goes_on_over_generations(dump):
    first = dump(*RUN)
    second = dump("--config", first, "--seed=5", name="second.yaml")
    third = parse("--config", second, "--arch", "roberta_base")
    assert (third.common.seed, third.task.seed, third.model.dropout) == (5, 5, 0.3)
    assert third.model.encoder_embed_dim == 768


def test_a_second_recipe_names_it(dump, tmp_path):
    (tmp_path / "new.yaml").write_text("model: {_name: roberta_base, encoder_embed_dim: 128}\n")
    new = parse("--config", dump(*RUN), "--config", tmp_path / "new.yaml")
    # the width equals that of the old architecture, but it was said again
    assert (new.model._name, new.model.encoder_embed_dim) == ("roberta_base", 128)
    assert new.model.encoder_layers == 12
    (tmp_path / "bare.yaml").write_text("model: roberta_base\n")
    assert parse("--config", dump(*RUN), "--config", tmp_path / "bare.yaml") == (
        parse(*replaced("arch", "roberta_base"))
    )


def test_hydra_names_it(dump, tmp_path):
    dump(*RUN)
    words = ["model=roberta_base", "model.encoder_ffn_embed_dim=512"]
    new = as_config(hydra_train.compose(str(tmp_path), "old", words), strict=True)
    assert (new.model.encoder_embed_dim, new.model.encoder_ffn_embed_dim) == (768, 512)
    assert new.model.dropout == 0.3
    new = as_config(hydra_train.compose(str(tmp_path), "old", ["optimizer._name=sgd"]), strict=True)
    assert new.optimizer == parse(*[w for w in replaced("optimizer", "sgd") if "eps" not in w]
                                  ).optimizer  # fmt: skip


def test_a_dump_from_before_is_refused(dump, capsys):
    old = dump(*RUN, edit=lambda content: content.pop("stated"))
    assert parse("--config", old) == parse(*RUN)
    with pytest.raises(SystemExit):
        parse("--config", old, "--arch", "roberta_base")
    assert "holds every setting of the arch roberta_tiny" in capsys.readouterr().err


def test_a_recipe_of_ones_own_states_everything(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "task: {_name: masked_lm, data: /d}\ncriterion: masked_lm\noptimizer: adam\n"
        "model: {_name: roberta_tiny, encoder_layers: 3}\n"
    )
    new = parse("--config", tmp_path / "mine.yaml", "--arch", "roberta_base")
    assert (new.model.encoder_layers, new.model.encoder_embed_dim) == (3, 768)


def test_old_flags_count_as_stated(dump):
    new = parse("--config", dump(*RUN, "--zero-masking"), "--arch", "roberta_base")
    assert new.model.mask_embedding == "zero" and new.task.omit_mask


def test_what_is_stated_is_plain(tmp_path):
    """Python callers give paths and enums: they are kept as the configuration reads them."""
    config = as_config(
        argparse.Namespace(
            data=tmp_path, task="masked_lm", arch="roberta_tiny", criterion="masked_lm",
            optimizer="adam", lr="0.5,0.1", save_dir=tmp_path / "run",
        )
    )  # fmt: skip
    again = yaml.safe_load(config_as_yaml(config))
    assert again["stated"]["task"]["data"] == str(tmp_path)
    assert again["stated"]["optimization"]["lr"] == [0.5, 0.1]

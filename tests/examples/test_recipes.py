"""Every recipe, through both readers, against the table of the experiments it repeats."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml

from fairseq.config import options
from fairseq.config.components import as_config
from fairseq.config.sections import FairseqConfig
from fairseq.config.yaml import read_yaml
from fairseq.errors import ConfigError
from fairseq_cli import train
from fairseq_cli.hydra_train import compose

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRETRAINING = EXAMPLES / "roberta/config/pretraining"
FINETUNING = EXAMPLES / "roberta/config/finetuning"
STUDY = EXAMPLES / "clap_alibi/config"
HEADLESS = EXAMPLES / "headless/config"
GROWTH = EXAMPLES / "growth/config"
PARTS = ("masked_lm", "glue")

LEARNED = ("learned", "roberta", "learned", 0.1, 0.1, True)
ALIBI = ("alibi", *LEARNED[1:])
ASYMMETRICAL = ("alibi-asymmetric", *LEARNED[1:])
CLAP = ("learned", "clap", "learned", 0.0, 0.1, False)
ZERO_CLAP = ("alibi-asymmetric", "clap", "zero", 0.0, 0.0, False)
ZERO_CLAP_ATTENTION = (*ZERO_CLAP[:4], 0.1, False)
# name -> position, head, mask, dropout, attention dropout, embedding norm; clap_normalize, scaled
WIKITEXT: dict[str, tuple[tuple[Any, ...], bool, bool]] = {
    "base": (LEARNED, True, False),
    "sinusoidal": (("sinusoidal", *LEARNED[1:]), True, False),
    "alibi": (ALIBI, True, False),
    "alibi_asymmetrical": (ASYMMETRICAL, True, False),
    "learned_clap": (CLAP, True, False),
    "learned_clap_unnormalized": (CLAP, False, False),
    "clap": (("alibi-asymmetric", "clap", "learned", 0.0, 0.0, False), True, False),
    "zero_clap": (ZERO_CLAP, True, False),
    "zero_clap_attention_dropout": (ZERO_CLAP_ATTENTION, True, False),
    "zero_clap_scaled_embedding_attention_dropout": (ZERO_CLAP_ATTENTION, True, True),
    "zero_clap_unnormalized_attention_dropout": (ZERO_CLAP_ATTENTION, False, False),
    "zero_clap_self_masking": (ZERO_CLAP, True, False),
}
PILE = {
    "baseline_pile": (LEARNED, True, False),
    "sinusoidal_pile": (("sinusoidal", *LEARNED[1:]), True, False),
    "alibi_pile": (ASYMMETRICAL, True, False),
    "learned_clap_pile": (CLAP, True, False),
    "zero_clap_pile": (ZERO_CLAP_ATTENTION, True, True),
}
LARGE = {
    "large_pile": PILE["baseline_pile"],
    "alibi_large_pile": PILE["alibi_pile"],
    "learned_clap_large_pile": PILE["learned_clap_pile"],
    "zero_clap_large_pile": PILE["zero_clap_pile"],
}
# name -> batch, rate, warm-up, updates, classes
GLUE = {
    "cola": (16, 1e-5, 320, 5336, 2),
    "mnli": (32, 1e-5, 7432, 123873, 3),
    "mrpc": (16, 1e-5, 137, 2296, 2),
    "qnli": (32, 1e-5, 1986, 33112, 2),
    "qqp": (32, 1e-5, 28318, 113272, 2),
    "rte": (16, 2e-5, 122, 2036, 2),
    "sst_2": (32, 1e-5, 1256, 20935, 2),
    "sts_b": (16, 2e-5, 214, 3598, 1),
}


def by_hydra(folder: Path, name: str, *overrides: str) -> FairseqConfig:
    return as_config(
        compose(str(folder), name, ["task.data=bin", *overrides]),
        strict=True,
    )


def by_flag(*files: Path, words: tuple[str, ...] = ()) -> FairseqConfig:
    parser = options.get_training_parser(argv=())
    parser.add_argument("--config")
    configs = [word for file in files for word in ("--config", str(file))]
    return options.parse_config(parser, ["bin", *configs, *words]).thawed()


def by_both(folder: Path, name: str) -> FairseqConfig:
    """Return what a recipe amounts to; both readers must agree."""
    first = by_hydra(folder, name)
    second = by_flag(folder / f"{name}.yaml")
    second.generation.no_seed_provided = first.generation.no_seed_provided
    assert first == second
    return first


def check_model(config: FairseqConfig, variant: tuple[tuple[Any, ...], bool, bool]) -> None:
    (position, head, mask, dropout, attention, norm), normalize, scaled = variant
    model = config.model
    assert (model.position, model.head, model.mask_embedding) == (position, head, mask)
    assert (model.dropout, model.attention_dropout) == (dropout, attention)
    assert (model.layernorm_embedding, model.scale_embedding) == (norm, scaled)
    assert (model.clap_normalize, model.clap_initial_beta) == (normalize, 1.0)
    assert config.task.omit_mask is (mask == "zero")
    assert model.max_positions == config.task.tokens_per_sample
    assert config.task.sample_break_mode == "complete"
    assert (config.task.mask_prob, config.common.seed, config.common.fp16) == (0.15, 1, True)
    assert config.criterion._name == "masked_lm"
    optimizer = config.optimizer
    assert (optimizer._name, optimizer.adam_eps, optimizer.weight_decay) == ("adam", 1e-6, 0.01)
    assert (optimizer.adam_betas, optimizer.weight_decay_mode) == ("(0.9,0.98)", "all")
    assert (config.optimization.clip_norm, config.checkpoint.no_epoch_checkpoints) == (0.0, True)


@pytest.mark.parametrize("name", WIKITEXT)
def test_wikitext(name):
    config = by_both(PRETRAINING, name)
    check_model(config, WIKITEXT[name])
    assert (config.task.tokens_per_sample, config.dataset.batch_size) == (512, 16)
    assert (config.optimization.update_freq, config.optimization.lr) == ([16], [5e-4])
    schedule = config.lr_scheduler
    assert (schedule._name, schedule.warmup_updates) == ("polynomial_decay", 10_000)
    assert schedule.total_num_update == config.optimization.max_update == 125_000
    itself = name == "zero_clap_self_masking"
    shares = (config.task.leave_unmasked_prob, config.task.random_token_prob)
    assert shares == ((0.0, 0.0) if itself else (0.1, 0.1))


@pytest.mark.parametrize("name", [*PILE, *LARGE])
def test_pile(name):
    config = by_both(PRETRAINING, name)
    check_model(config, {**PILE, **LARGE}[name])
    large = name in LARGE
    model, schedule, updates = config.model, config.lr_scheduler, config.optimization
    assert (model._name, model.encoder_layers) == (
        ("roberta_large", 24) if large else ("roberta", 12)
    )
    batch = (config.dataset.batch_size, updates.update_freq)
    assert batch == ((2, [32]) if large else (4, [16]))
    rates = (updates.lr, schedule.min_lr, schedule.warmup_init_lr)
    assert rates == (([4e-4], 4e-5, 4e-5) if large else ([6e-4], 6e-5, 6e-5))
    assert (schedule._name, schedule.warmup_updates) == ("cosine", 10_000)
    assert (schedule.lr_period_updates, schedule.lr_shrink) == (146_390, 1.0)
    assert (updates.max_epoch, updates.max_update) == (1, 133_082)
    assert (config.task.tokens_per_sample, config.task.shorten_method) == (2048, "truncate")
    assert config.dataset.skip_invalid_size_inputs_valid_test
    assert config.checkpoint.save_interval_updates == 5000


def test_last_rate_of_the_pile():
    """The period outlasts the run: the last rate is 9.3e-5 and 6.2e-5, not the least."""
    from fairseq.optim import FairseqOptimizer, lr_scheduler

    class Rate(FairseqOptimizer):
        def __init__(self):
            self.value = 0.0

        def set_lr(self, lr):
            self.value = lr

        def get_lr(self):
            return self.value

    for name, last in (("baseline_pile", 9.3e-5), ("large_pile", 6.2e-5)):
        config = by_flag(PRETRAINING / f"{name}.yaml")
        schedule = lr_scheduler.build_lr_scheduler(config.lr_scheduler, Rate())
        assert schedule.step_update(0) == config.lr_scheduler.min_lr
        assert schedule.step_update(10_000) == pytest.approx(config.optimization.lr[0])
        assert schedule.step_update(133_082) == pytest.approx(last, rel=0.01)


@pytest.mark.parametrize("name", GLUE)
def test_glue(name):
    config = by_flag(FINETUNING / f"{name}.yaml", words=("--restore-file", "model.pt"))
    hydra = by_hydra(FINETUNING, name, "checkpoint.restore_file=model.pt")
    config.generation.no_seed_provided = hydra.generation.no_seed_provided
    assert hydra == config
    batch, lr, warmup, updates, classes = GLUE[name]
    assert (config.dataset.batch_size, config.optimization.lr) == (batch, [lr])
    schedule = config.lr_scheduler
    assert (schedule.warmup_updates, schedule.total_num_update) == (warmup, updates)
    assert (config.optimization.max_update, config.optimization.max_epoch) == (updates, 10)
    task = config.task
    assert (task.num_classes, task.init_token, task.separator_token) == (classes, 0, 2)
    assert (config.dataset.max_tokens, config.dataset.required_batch_size_multiple) == (4400, 1)
    assert config.criterion.regression_target is (name == "sts_b")
    best = (
        config.checkpoint.best_checkpoint_metric,
        config.checkpoint.maximize_best_checkpoint_metric,
    )
    assert best == (("loss", False) if name == "sts_b" else ("accuracy", True))
    assert config.dataset.valid_subset == ("valid,valid1" if name == "mnli" else "valid")


def test_the_tiny_scale_of_glue_fits_the_tiny_models():
    model = by_flag(PRETRAINING / "tiny.yaml").model
    words = ("--restore-file", "model.pt")
    config = by_flag(FINETUNING / "tiny.yaml", words=words)
    hydra = by_hydra(FINETUNING, "tiny", "checkpoint.restore_file=model.pt")
    config.generation.no_seed_provided = hydra.generation.no_seed_provided
    assert hydra == config
    for key in ("layers", "embed_dim", "ffn_embed_dim", "attention_heads"):
        name = f"encoder_{key}"
        assert getattr(config.model, name) == getattr(model, name)
    assert config.model.max_positions == config.task.max_positions == model.max_positions
    scaled = by_flag(FINETUNING / "mnli.yaml", FINETUNING / "scale/tiny.yaml", words=words)
    assert (scaled.task.num_classes, scaled.model) == (3, config.model)


def test_no_recipe_is_forgotten():
    """Every YAML file is in a table above, or a part of one that is."""
    tiny = {"tiny", "tiny_pile"}
    names = {file.stem for file in PRETRAINING.glob("*.yaml")}
    assert names == {*WIKITEXT, *PILE, *LARGE, *tiny, "masked_lm"}
    assert {file.stem for file in FINETUNING.glob("*.yaml")} == {*GLUE, "tiny", "glue"}
    assert {file.stem for file in STUDY.glob("*.yaml")} == {"tiny", "paper"}
    assert {file.stem for file in HEADLESS.glob("*.yaml")} == {"tiny", "paper", "encoder_paper"}


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_a_study_changes_one_thing_at_a_time(scale):
    """Variants differ from the baseline in the settings that their names announce."""
    changed = {}
    plain = by_flag(STUDY / f"{scale}.yaml")
    for file in sorted((STUDY / "variant").glob("*.yaml")):
        config = by_flag(STUDY / f"{scale}.yaml", file)
        hydra = by_hydra(STUDY, scale, f"+variant={file.stem}")
        config.generation.no_seed_provided = hydra.generation.no_seed_provided
        assert hydra == config
        model, base = vars(config.model), vars(plain.model)
        changed[file.stem] = {key for key in model if model[key] != base[key]}
        config.model, config.task.omit_mask = plain.model, plain.task.omit_mask
        config.generation.no_seed_provided = plain.generation.no_seed_provided
        assert config == plain
    zero_clap = {"position", "head", "mask_embedding"}
    assert changed == {
        "baseline": set(),
        "sinusoidal": {"position"},
        "no_positions": {"position"},
        "alibi": {"position"},
        "alibi_asymmetrical": {"position"},
        "learned_clap": {"head"},
        "zero_mask": {"mask_embedding"},
        "clap": {"position", "head"},
        "zero_clap": zero_clap,
        "clap_unnormalized": {"position", "head", "clap_normalize"},
        "zero_clap_scaled": {*zero_clap, "scale_embedding"},
        "no_embedding_norm": {"layernorm_embedding"},
        "no_dropout": {"dropout", "attention_dropout"},
    }


@pytest.mark.parametrize(
    "name, variants, table",
    [
        ("paper", ("vanilla", "headless", "headless_global", "joint"),
         (6, 512, 2048, 8, 2048, 1e-3, 143_000, 1430, 0.1, "(0.9,0.95)")),
        ("tiny", ("vanilla", "headless", "headless_global", "joint"),
         (2, 128, 512, 4, 64, 4e-3, 350, 40, 0.1, "(0.9,0.95)")),
        ("encoder_paper", ("vanilla_encoder", "headless", "joint"),
         (12, 768, 3072, 12, 128, 1e-4, 1_000_000, 10_000, 0.01, "(0.9,0.999)")),
    ],
    ids=["paper", "tiny", "encoder"],
)  # fmt: skip
def test_headless_recipes(name, variants, table):
    """Variants differ in the criterion, and in the head that it needs or does not."""
    found = []
    for variant in variants:
        config = by_flag(HEADLESS / f"{name}.yaml", HEADLESS / f"variant/{variant}.yaml")
        hydra = by_hydra(HEADLESS, name, f"+variant={variant}")
        config.generation.no_seed_provided = hydra.generation.no_seed_provided
        assert hydra == config
        assert (config.model.head == "none") == variant.startswith("headless")
        config.model.head, config.criterion = "any", None
        found.append(config)
    assert all(config == found[0] for config in found)
    model, side = found[0].model, "encoder" if name.startswith("encoder") else "decoder"
    sizes = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
    optimization, optimizer = found[0].optimization, found[0].optimizer
    assert table == (
        *(getattr(model, f"{side}_{size}") for size in sizes),
        found[0].task.tokens_per_sample,
        optimization.lr[0],
        optimization.max_update,
        found[0].lr_scheduler.warmup_updates,
        optimizer.weight_decay,
        optimizer.adam_betas,
    )
    rows = found[0].dataset.batch_size * optimization.update_freq[0]
    processes = {"paper": 16, "encoder_paper": 8, "tiny": 1}[name]
    assert rows * processes == {"paper": 1024, "encoder_paper": 256, "tiny": 16}[name]


@pytest.mark.parametrize(
    "files",
    [
        (PRETRAINING / "tiny.yaml",),
        (PRETRAINING / "tiny_pile.yaml",),
        (PRETRAINING / "zero_clap_scaled_embedding_attention_dropout.yaml", "scale/tiny.yaml"),
        (STUDY / "tiny.yaml", "variant/zero_clap.yaml"),
        (HEADLESS / "tiny.yaml", "variant/headless.yaml"),
        (GROWTH / "tiny.yaml", "kind/bert.yaml"),
    ],
    ids=["wikitext", "pile", "added scale", "study", "headless", "growth"],
)
def test_a_tiny_recipe_trains(tmp_path, monkeypatch, files):
    first, *others = files
    data = tiny_run.make_corpus(tmp_path / "bin", train_lines=600)
    words = [str(data), "--save-dir", str(tmp_path / "run"), "--max-update", "2", "--cpu"]
    words += ["--warmup-updates", "1"]  # the schedule must fit
    for file in (first, *(first.parent / other for other in others)):
        words += ["--config", str(file)]
    losses = tiny_run.Recorder(monkeypatch).losses
    assert train.run([*words, "--batch-size", "8"]) == 0
    assert len(losses) == 2
    assert (tmp_path / "run/checkpoint_last.pt").is_file()


class TestComposition:
    """Defaults lists mean to ``--config`` what they mean to Hydra."""

    FILES = {
        "base.yaml": "a: {x: 1, l: [1, 2]}\nmodel: {n: r, d: 0.1}\n",
        "first.yaml": "defaults: [_self_, base]\nmodel: {d: 0.2}\n",
        "last.yaml": "defaults: [base, _self_]\nmodel: {d: 0.2}\n",
        "unsaid.yaml": "defaults: [base]\nmodel: {d: 0.3}\n",
        "null.yaml": "defaults: [base, {size: null}, _self_]\n",
        "size/tiny.yaml": "# @package _global_\nmodel: {n: tiny}\na: {l: [9]}\n",
        "size/small.yaml": "# @package _global_\ndefaults: [tiny, _self_]\nmodel: {d: 0.7}\n",
        "group/own.yaml": "k: 1\n",
        "group/header.yaml": "# @package _group_\ndefaults: [own]\nj: 2\n",
        "global.yaml": "defaults: [last, {size: small}, _self_]\n",
        "section.yaml": "defaults: [base, {group: own}, {size: tiny}, _self_]\ngroup: {m: 3}\n",
        "nested.yaml": "defaults: [{group: header}, unsaid]\n",
    }

    @pytest.fixture
    def folder(self, tmp_path):
        for name, text in self.FILES.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    @pytest.mark.parametrize("name", [name for name in FILES if "/" not in name])
    def test_as_hydra(self, folder, name):
        assert read_yaml(str(folder / name)) == compose(str(folder), name.removesuffix(".yaml"), [])

    def test_several_files(self, folder):
        both = read_yaml(str(folder / "last.yaml"), str(folder / "size/small.yaml"))
        assert both == compose(str(folder), "last", ["+size=small"])

    def test_circles_and_holes(self, folder):
        (folder / "a.yaml").write_text("defaults: [b]\n")
        (folder / "b.yaml").write_text("defaults: [a]\n")
        with pytest.raises(ConfigError, match=r"includes itself: a.yaml > b.yaml"):
            read_yaml(str(folder / "a.yaml"))
        for entry, message in (("[none]", "there is no"), ("base", "must be a list")):
            (folder / "c.yaml").write_text(f"defaults: {entry}\n")
            with pytest.raises(ConfigError, match=message):
                read_yaml(str(folder / "c.yaml"))


def test_recipes_are_small():
    """A recipe says only what sets it apart: no line stands in two recipes of one chain."""
    folders = (PRETRAINING, STUDY, HEADLESS, GROWTH)
    for file in itertools.chain(*(folder.glob("*.yaml") for folder in folders)):
        own = yaml.safe_load(file.read_text(encoding="utf-8"))
        entries = own.pop("defaults", [])
        below: dict[str, Any] = {}
        for entry in entries:
            if isinstance(entry, dict):
                ((group, name),) = entry.items()
                content = read_yaml(str(file.parent / group / f"{name}.yaml"))
            elif entry != "_self_":
                content = read_yaml(str(file.parent / f"{entry}.yaml"))
            for section, values in content.items():
                below.setdefault(section, {}).update(values)
        for section, values in own.items():
            for key, value in values.items():
                assert below.get(section, {}).get(key, None) != value, (file.name, section, key)

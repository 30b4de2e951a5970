"""Settings that concern several components: each rule, each refusal."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from argparse import Namespace

import pytest

from fairseq.config.resolve import required_settings, resolve
from fairseq.config.schema import with_values
from fairseq.config.sections import FairseqConfig
from fairseq.criterions.contrastive_weight_tying import ContrastiveWeightTyingConfig
from fairseq.criterions.cross_entropy import CrossEntropyConfig
from fairseq.criterions.masked_lm import MaskedLmConfig
from fairseq.errors import ConfigError
from fairseq.models.roberta import RobertaConfig
from fairseq.tasks.masked_lm import MaskedLMConfig


def config(**settings):
    """Return a masked-LM configuration; ``section__key=value`` changes a setting."""
    made = FairseqConfig(
        model=RobertaConfig(_name="roberta"),
        task=MaskedLMConfig(_name="masked_lm", data="bin", tokens_per_sample=64),
        criterion=Namespace(_name="masked_lm"),
        optimizer=Namespace(_name="adam"),
    )
    for path, value in settings.items():
        section, _, key = path.partition("__")
        setattr(getattr(made, section), key, value)
    return made


RULES = [
    ("fp16", {"common__memory_efficient_fp16": True}, ("common", "fp16", True)),
    ("bf16", {"common__memory_efficient_bf16": True}, ("common", "bf16", True)),
    ("no precision", {}, ("common", "fp16", False)),
    ("cpu", {"common__cpu": True}, ("common", "device", "cpu")),
    ("device", {"common__device": "mps"}, ("common", "device", "mps")),
    ("valid batch", {"dataset__batch_size": 8}, ("dataset", "batch_size_valid", 8)),
    (
        "own valid batch",
        {"dataset__batch_size": 8, "dataset__batch_size_valid": 2},
        ("dataset", "batch_size_valid", 2),
    ),
    ("valid tokens", {"dataset__max_tokens": 80}, ("dataset", "max_tokens_valid", 80)),
    ("zero mask", {"model__mask_embedding": "zero"}, ("task", "omit_mask", True)),
    ("learned mask", {}, ("task", "omit_mask", False)),
]


@pytest.mark.parametrize(
    ("settings", "expected"), [row[1:] for row in RULES], ids=[r[0] for r in RULES]
)
def test_what_follows_from_other_settings(settings, expected):
    section, key, value = expected
    given = config(**settings)
    before = copy.deepcopy(given)
    settled = resolve(given)
    assert given == before and not given.is_frozen() and settled.is_frozen()
    assert getattr(getattr(settled, section), key) == value
    before = copy.deepcopy(settled)
    assert resolve(settled) is settled and settled == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"common__fp16": True, "common__bf16": True}, "--fp16 and --bf16 exclude each other"),
        ({"common__amp": True, "common__bf16": True}, "--bf16 and --amp exclude each other"),
        ({"common__cpu": True, "common__device": "cuda"}, "--cpu and --device cuda"),
        ({"dataset__batch_size": 0}, "--batch-size (dataset.batch_size) must be at least 1, not 0"),
        ({"dataset__max_tokens": -1}, "--max-tokens (dataset.max_tokens) must be"),
        ({"dataset__max_tokens_valid": 0}, "--max-tokens-valid (dataset."),
        ({"dataset__batch_size_valid": 0}, "--batch-size-valid (dataset."),
        ({"optimization__update_freq": [2, 0]}, "--update-freq (optimization.update_freq) must"),
        ({"optimization__update_freq": []}, "is empty"),
        ({"checkpoint__optimizer_overrides": "[1]"}, "--optimizer-overrides must be a dict"),
        ({"checkpoint__optimizer_overrides": "{a"}, "--optimizer-overrides must be a dict"),
        ({"common_eval__model_overrides": "1"}, "--model-overrides must be a dict"),
        (
            {"checkpoint__finetune_from_model": "a.pt", "checkpoint__reset_meters": True},
            "drop --reset-meters",
        ),
        (
            {"checkpoint__finetune_from_model": "a.pt", "checkpoint__restore_file": "b.pt"},
            "--finetune-from-model and --restore-file",
        ),
        (
            {"checkpoint__finetune_from_model": "a.pt", "checkpoint__continue_once": "b.pt"},
            "--finetune-from-model and --continue-once",
        ),
        ({"common__profile": True, "checkpoint__no_save": True}, "--profile writes"),
        ({"task__omit_mask": True}, "--mask-embedding zero"),
        ({"model__head": "none"}, "criterion masked_lm needs a vocabulary head"),
        (
            {"model__head": "clap", "model__untie_weights_roberta": True},
            "drop --untie-weights-roberta",
        ),
        ({"model__clap_normalize_hidden": True}, "needs --head clap"),
        ({"model__max_positions": 32}, "exceeds the 32 learned positions"),
        ({"model__encoder_attention_heads": 5}, "not divisible by 5 attention heads"),
        (
            {
                "model__position": "sinusoidal",
                "model__encoder_embed_dim": 2,
                "model__encoder_attention_heads": 1,
            },
            "at least 4",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        resolve(config(**settings))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"model__position": "alibi", "model__max_positions": 32},
        {"model__head": "clap", "model__clap_normalize_hidden": True},
        {"model__mask_embedding": "zero", "task__omit_mask": True},
        {
            "model__head": "none",
            "criterion": ContrastiveWeightTyingConfig(_name="contrastive_weight_tying"),
        },
        {"checkpoint__restore_file": "b.pt", "checkpoint__reset_optimizer": True},
        {"checkpoint__finetune_from_model": "a.pt"},
    ],
)
def test_what_looks_odd_but_makes_sense(settings):
    criterion = settings.pop("criterion", None)
    made = config(**settings)
    made.criterion = criterion or made.criterion
    assert resolve(made).model.head == made.model.head


def test_a_zero_mask_without_masking_is_mentioned(caplog):
    resolve(config(model__mask_embedding="zero", task__skip_masking=True))
    assert "nothing to do under --skip-masking" in caplog.text


def test_an_adaptive_softmax_is_not_offered_beside_the_headless_loss():
    """Training both needs another criterion."""
    made = config()
    made.model = Namespace(decoder_output_dim=8, head="vocabulary", adaptive_softmax_cutoff="8")
    made.criterion = ContrastiveWeightTyingConfig(_name="contrastive_weight_tying")
    with pytest.raises(ConfigError, match="drop --adaptive-softmax-cutoff$"):
        resolve(made)


def test_a_frozen_configuration_is_left_alone():
    made = config(common__memory_efficient_fp16=True)
    made.freeze()
    assert resolve(made) is made and made.common.fp16 is False


@pytest.mark.parametrize("section", ["", "common", "model", "task", "optimization"])
def test_what_is_resolved_is_final_wherever_it_goes(section):
    settled = resolve(config())
    copies = pickle.loads(pickle.dumps(settled)), copy.deepcopy(settled), settled
    for made in copies:
        part = getattr(made, section) if section else made
        field = dataclasses.fields(part)[1].name
        with pytest.raises(
            ConfigError, match=rf"cannot set {type(part).__name__}\.{field}: .*copy"
        ):
            setattr(part, field, None)
        assert made == settled
    draft = settled.thawed()
    part = getattr(draft, section) if section else draft
    setattr(part, dataclasses.fields(part)[1].name, "new")
    assert draft != settled and settled.is_frozen()


def test_a_changed_configuration_is_as_final_as_the_one_it_comes_from():
    settled = resolve(config())
    common = settled.common.changed(seed=9)
    other = settled.changed(common=common)
    assert (other.common.seed, settled.common.seed) == (9, 1)
    assert other.is_frozen() and common.is_frozen() and other.model is settled.model
    assert not config().changed(common=common).is_frozen()
    old = Namespace(seed=1, arch="own")
    assert with_values(old, seed=2) == Namespace(seed=2, arch="own") and old.seed == 1


def test_sections_without_model_or_task():
    assert resolve(FairseqConfig()).model is None
    plugin = FairseqConfig(model=Namespace(_name="mine"), task=Namespace(_name="own"))
    assert resolve(plugin).task._name == "own"


def test_required_settings():
    assert required_settings(config(dataset__batch_size=8)) == []
    assert required_settings(config(dataset__max_tokens=8)) == []
    assert required_settings(config()) == ["a batch size: --max-tokens or --batch-size"]
    missing = required_settings(config(task__data=None, dataset__batch_size=8))
    assert missing == ["the data folder (first argument)"]
    names = [text.split()[0] for text in required_settings(FairseqConfig())]
    assert names == ["--arch", "--task", "--criterion", "--optimizer", "a"]


@pytest.mark.parametrize(
    ("settings", "flags", "switch", "on"),
    [
        (
            {"ema__ema_decay": 0.5, "ema__ema_seed_model": "x.pt"},
            "--ema-decay",
            "ema__store_ema",
            1,
        ),
        ({"common__fp16_init_scale": 4}, "--fp16-init-scale", "common__fp16", True),
        ({"common__amp_dtype": "fp16"}, "--amp-dtype", "common__amp", True),
        (
            {"optimization__spike_window": 16},
            "--spike-window",
            "optimization__spike_policy",
            "skip",
        ),
        ({"checkpoint__grow_seed": 4}, "--grow-seed", "checkpoint__grow_from", "small.pt"),
        (
            {"checkpoint__keep_interval_updates": 2},
            "--keep-interval-updates",
            "checkpoint__save_interval_updates",
            5,
        ),
    ],
)
def test_what_waits_for_another_flag_is_said(settings, flags, switch, on, caplog) -> None:
    """Nobody reads it, in a new run; the settings of a checkpoint are no news."""
    resolve(config(**settings))
    needed = switch.partition("__")[2].replace("_", "-")
    assert f"{flags} does nothing without --{needed}" in caplog.text
    caplog.clear()
    resolve(config(**settings), from_checkpoint=True)
    resolve(config(**settings, **{switch: on}))
    assert "does nothing" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "schedule", "flag"),
    [
        ({"checkpoint__patience": 3}, "fixed", "--patience"),
        ({"checkpoint__stop_at_metric": 2.0}, "fixed", "--stop-at-metric"),
        ({"checkpoint__keep_best_checkpoints": 2}, "fixed", "--keep-best-checkpoints"),
        ({}, "reduce_lr_on_plateau", "--lr-scheduler reduce_lr_on_plateau"),
    ],
)
def test_what_waits_for_validations_is_said(settings, schedule, flag, caplog) -> None:
    given = config(**settings)
    given.lr_scheduler = Namespace(_name=schedule)
    resolve(given)
    assert "does nothing" not in caplog.text
    given.dataset.disable_validation = True
    resolve(given)
    assert f"{flag} does nothing with --disable-validation" in caplog.text
    assert caplog.text.count("does nothing") == 1


def test_sentences_are_counted_by_some_losses_alone(caplog) -> None:
    given = config(optimization__sentence_avg=True)
    for criterion, idle in ((CrossEntropyConfig(), False), (MaskedLmConfig(), True)):
        caplog.clear()
        given.criterion = criterion
        resolve(given)
        assert ("--sentence-avg does nothing" in caplog.text) == idle

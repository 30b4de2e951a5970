"""Knobs that concern several components, settled in one place before anything is built.

:func:`resolve` runs on every configuration, wherever it came from. It fills in what follows from
other settings and refuses combinations that make no sense, with the reason.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from typing import Any

from fairseq.config.ranges import check_config
from fairseq.config.schema import FairseqDataclass, default_of, parse_dict, public_fields
from fairseq.config.sections import COMPONENTS, LAST_CHECKPOINT, RESETS, SECTIONS, FairseqConfig
from fairseq.errors import ConfigError

logger = logging.getLogger(__name__)


def resolve(config: FairseqConfig, from_checkpoint: bool = False) -> FairseqConfig:
    """Return a configuration settled, checked and frozen; nothing is written to it afterwards.

    Args:
        config: complete; it is left as it is.
        from_checkpoint: its model exists, with as many positions as it has.

    Returns:
        a new object; one that is frozen was settled before, and is returned itself.

    Raises:
        ConfigError: for settings that are out of range or contradict each other.
    """
    if config.is_frozen():
        return config
    config = copy.deepcopy(config)
    check_config(config)
    _without_effect(config)
    _numbers(config)
    _batches(config)
    _checkpoints(config)
    _mask_embedding(config)
    _head_and_criterion(config)
    _lengths(config, from_checkpoint)
    if not from_checkpoint:
        _waiting(config)
    _positions(config)
    config.freeze()
    return config


def _without_effect(config: FairseqConfig) -> None:
    """Warn about settings that are accepted for old scripts but do nothing here, or not yet."""
    for section in (*SECTIONS, *COMPONENTS):
        values = getattr(config, section)
        for field, _ in public_fields(type(values)) if dataclasses.is_dataclass(values) else ():
            if field.metadata.get("inert") and getattr(values, field.name) != default_of(field):
                flag = "--" + field.name.replace("_", "-")
                logger.warning("%s has no effect here (see docs/migrating.md)", flag)


# flags that do nothing without another one: (section, how their names begin) -> section, flag
WAITING = {
    ("ema", "ema_"): ("ema", "store_ema"),
    ("common", "amp_"): ("common", "amp"),
    ("common", "fp16_"): ("common", "fp16"),
    ("optimization", "spike_"): ("optimization", "spike_policy"),
    ("checkpoint", "grow_"): ("checkpoint", "grow_from"),
    ("checkpoint", "keep_interval_updates"): ("checkpoint", "save_interval_updates"),
}


def _flags(values: FairseqDataclass, *starts: str) -> list[str]:
    """Return the flags of the fields whose names begin so, if they are not at their defaults."""
    return [
        "--" + field.name.replace("_", "-")
        for field, _ in public_fields(type(values))
        if field.name.startswith(starts) and getattr(values, field.name) != default_of(field)
    ]


def _waiting(config: FairseqConfig) -> None:
    """Warn about settings that wait for another one, which is off."""
    for (section, start), (other, switch) in WAITING.items():
        if getattr(getattr(config, other), switch) in (None, False, "none"):
            for flag in _flags(getattr(config, section), start):
                logger.warning("%s does nothing without --%s", flag, switch.replace("_", "-"))
    if config.dataset.disable_validation:
        # what validations decide
        idle = _flags(config.checkpoint, "patience", "stop_at_metric", "keep_best_checkpoints")
        if (schedule := getattr(config.lr_scheduler, "_name", None)) == "reduce_lr_on_plateau":
            idle.append(f"--lr-scheduler {schedule}")
        for flag in idle:
            logger.warning("%s does nothing with --disable-validation", flag)
    loss = config.criterion
    ours = type(loss).__module__.startswith("fairseq.")  # a plug-in may read it elsewhere
    if config.optimization.sentence_avg and ours and "sentence_avg" not in loss:
        logger.warning("--sentence-avg does nothing with --criterion %s", loss._name)


def _numbers(config: FairseqConfig) -> None:
    common = config.common
    common.fp16 = common.fp16 or common.memory_efficient_fp16
    common.bf16 = common.bf16 or common.memory_efficient_bf16
    chosen = [name for name in ("fp16", "bf16", "amp") if getattr(common, name)]
    if len(chosen) > 1:
        raise ConfigError(f"--{' and --'.join(chosen)} exclude each other; choose one")
    if hasattr(config.model, "ligo_source") and (common.fp16 or common.bf16):
        raise ConfigError(f"--{chosen[0]} would round the growth operator; use --amp instead")
    if hasattr(config.model, "ligo_source") and config.model.checkpoint_activations:
        raise ConfigError(
            "--checkpoint-activations runs layers again in the backward pass, when the weights "
            "that a growth operator forms are gone: drop it, or use --update-freq with smaller "
            "batches"
        )
    if common.cpu and common.device not in ("auto", "cpu"):
        raise ConfigError(f"--cpu and --device {common.device} contradict each other")
    if common.cpu:
        common.device = "cpu"
    optimization = config.optimization
    if optimization.lr_time_budget and not optimization.max_update:
        raise ConfigError("--lr-time-budget needs --max-update: the updates of the whole curve")


def _batches(config: FairseqConfig) -> None:
    dataset = config.dataset
    if dataset.max_tokens_valid is None:
        dataset.max_tokens_valid = dataset.max_tokens
    if dataset.batch_size_valid is None:
        dataset.batch_size_valid = dataset.batch_size


def _checkpoints(config: FairseqConfig) -> None:
    checkpoint = config.checkpoint
    resets = [name for name in RESETS if getattr(checkpoint, name)]
    if checkpoint.finetune_from_model is not None:
        if resets:
            raise ConfigError(
                "--finetune-from-model already starts everything but the weights afresh; drop "
                + ", ".join("--" + name.replace("_", "-") for name in resets)
            )
        if checkpoint.restore_file != LAST_CHECKPOINT:
            raise ConfigError("--finetune-from-model and --restore-file exclude each other")
        if checkpoint.continue_once is not None:
            raise ConfigError("--finetune-from-model and --continue-once exclude each other")
    if config.common.profile and checkpoint.no_save:
        raise ConfigError("--profile writes into the run folder, which --no-save leaves alone")
    _growth(checkpoint)
    parse_dict("--optimizer-overrides", checkpoint.optimizer_overrides)
    parse_dict("--model-overrides", config.common_eval.model_overrides)


def _growth(checkpoint: Any) -> None:
    """Refuse what contradicts ``--grow-from``, which starts what it does not grow afresh."""
    if checkpoint.grow_from is None:
        if checkpoint.grow_method is not None or checkpoint.grow_layers:
            raise ConfigError("--grow-method and --grow-layers need --grow-from FILE")
        if checkpoint.grow_optimizer != "reset":
            raise ConfigError("--grow-optimizer needs --grow-from FILE")
        return
    if checkpoint.restore_file != LAST_CHECKPOINT:
        raise ConfigError("--grow-from and --restore-file exclude each other")
    for name in ("finetune_from_model", "continue_once", "reset_optimizer", "reset_lr_scheduler"):
        if getattr(checkpoint, name):
            raise ConfigError(f"--grow-from and --{name.replace('_', '-')} exclude each other")


def _mask_embedding(config: FairseqConfig) -> None:
    """Tie the model's zero mask to a dictionary without ``<mask>``: one switch, two places."""
    model, task = config.model, config.task
    zero = getattr(model, "mask_embedding", None) == "zero"
    omit = getattr(task, "omit_mask", None)
    if omit is None:
        return
    if zero:
        task.omit_mask = True
    elif omit and hasattr(model, "mask_embedding"):
        raise ConfigError(
            "omit_mask puts <mask> outside the embedding table, which needs --mask-embedding zero"
        )
    if zero and getattr(task, "skip_masking", False):
        logger.warning("--mask-embedding zero has nothing to do under --skip-masking")


def _head_and_criterion(config: FairseqConfig) -> None:
    model, criterion = config.model, getattr(config.criterion, "_name", None)
    head = getattr(model, "head", None)
    if criterion == "cross_entropy" and getattr(config.task, "_name", None) == "masked_lm":
        logger.warning(
            "--criterion cross_entropy divides the loss by all tokens; masked language models are "
            "trained with --criterion masked_lm, which divides by the predicted ones"
        )
    if criterion == "sentence_prediction":  # the vocabulary head rests, which DDP must expect
        config.distributed_training.find_unused_parameters = True
    if criterion == "contrastive_weight_tying" and head is not None:
        _headless(model, config.criterion)
        head = model.head
    needs_vocabulary = criterion in (
        "masked_lm",
        "cross_entropy",
        "label_smoothed_cross_entropy",
        "distillation",
    )
    if head == "none" and needs_vocabulary:
        raise ConfigError(f"criterion {criterion} needs a vocabulary head, but --head is none")
    if head == "clap":
        if getattr(model, "untie_weights_roberta", False):
            raise ConfigError("--head clap is tied to the embeddings; drop --untie-weights-roberta")
    elif head is not None and getattr(model, "clap_normalize_hidden", False):
        raise ConfigError("--clap-normalize-hidden needs --head clap")


def _headless(model: Any, criterion: Any) -> None:
    """Leave the vocabulary head away where nothing trains it, and settle the map's width."""
    side = "encoder" if hasattr(model, "encoder_embed_dim") else "decoder"
    width = model.encoder_embed_dim if side == "encoder" else model.decoder_output_dim
    criterion.contrastive_width = width if criterion.contrastive_projection else 0
    if criterion.vocabulary_weight > 0:
        if model.head == "none":
            raise ConfigError("--vocabulary-weight trains a vocabulary head, but --head is none")
    elif getattr(model, "adaptive_softmax_cutoff", None) is not None:
        raise ConfigError(
            "--criterion contrastive_weight_tying trains no adaptive softmax: drop "
            "--adaptive-softmax-cutoff"
        )
    elif model.head == "clap":
        raise ConfigError(
            "--criterion contrastive_weight_tying trains no vocabulary head: drop --head clap, or "
            "train both with --vocabulary-weight"
        )
    elif model.head != "none":
        logger.info("contrastive_weight_tying trains no vocabulary head: none is built")
        model.head = "none"


def _lengths(config: FairseqConfig, from_checkpoint: bool) -> None:
    """Give the model as many positions as the task has, and let it settle what is its own."""
    model, task = config.model, config.task
    wanted = getattr(task, "max_positions", None)
    tuned = hasattr(task, "classification_head_name") and hasattr(model, "max_positions")
    if tuned and not from_checkpoint:
        model.max_positions = wanted
    if hasattr(model, "settled"):
        config.model = model.settled(getattr(task, "tokens_per_sample", None) or wanted)


def _positions(config: FairseqConfig) -> None:
    model, task = config.model, config.task
    limit = getattr(model, "max_positions", None)
    wanted = getattr(task, "tokens_per_sample", None)
    bounded = getattr(model, "position", None) == "learned"
    if bounded and isinstance(limit, int) and isinstance(wanted, int) and wanted > limit:
        raise ConfigError(
            f"--tokens-per-sample {wanted} exceeds the {limit} learned positions "
            "(--max-positions); shorten the samples or use --position alibi"
        )
    for side in ("encoder", "decoder"):
        heads, dim = (getattr(model, f"{side}_{n}", None) for n in ("attention_heads", "embed_dim"))
        if heads and dim and dim % heads:
            raise ConfigError(
                f"--{side}-embed-dim {dim} is not divisible by {heads} attention heads"
            )
        # half of the channels are sines, and their frequencies are spread over half - 1 steps
        if getattr(model, "position", None) == "sinusoidal" and dim and dim < 4:
            raise ConfigError("sinusoidal positions need a width of at least 4")


def required_settings(config: FairseqConfig) -> list[str]:
    """Return what training cannot do without and the configuration does not state."""
    missing: list[Any] = []
    if config.model is None:
        missing.append("--arch (a model)")
    if config.task is None:
        missing.append("--task")
    if config.criterion is None:
        missing.append("--criterion")
    if config.optimizer is None:
        missing.append("--optimizer")
    if config.dataset.max_tokens is None and config.dataset.batch_size is None:
        missing.append("a batch size: --max-tokens or --batch-size")
    if config.task is not None and getattr(config.task, "data", "") is None:
        missing.append("the data folder (first argument)")
    frozen = getattr(config.model, "freeze_encoder", False)
    if frozen and getattr(config.criterion, "_name", None) in ("masked_lm", "cross_entropy"):
        missing.append("something to train: --freeze-encoder is for --task sentence_prediction")
    packed = getattr(config.task, "sample_break_mode", None) in (None, "none", "complete")
    if getattr(config.task, "document_mask", False) and not packed:
        missing.append(
            "rows of several documents for --document-mask: --sample-break-mode none or complete "
            "(a row of eos is one line, one of complete_doc ends with its document)"
        )
    return missing


def completed(settings: Any, model: Any) -> Any:
    """Return the settings that a model was built with; what they leave open is as it found out."""
    own = getattr(model, "config", None)
    if type(own) is not type(settings) or not isinstance(settings, FairseqDataclass):
        return settings
    open_fields = [field for field, value in vars(settings).items() if value is None]
    return settings.changed(**{field: getattr(own, field) for field in open_fields})

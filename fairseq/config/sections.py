"""The sections every command shares, field by field, and the root that holds them.

Names, types and defaults are the original's unless a field is marked "new". Flags of features that
are refused stand in :mod:`fairseq.config.refused`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from fairseq.catalog import GROWTH
from fairseq.config.evaluation import (
    CommonEvalConfig,
    EvalLMConfig,
    GenerationConfig,
    InteractiveConfig,
)
from fairseq.config.schema import (
    II,
    MOST_WORKERS,
    SEED,
    SHARE,
    FairseqDataclass,
    option,
)

LogFormat = Literal["json", "none", "simple", "tqdm", "rich"]
DatasetImpl = Literal["raw", "lazy", "cached", "mmap", "fasta", "huffman"]
DataRng = Literal["auto", "philox", "fairseq-main", "fairseq-0.12"]


@dataclass
class CommonConfig(FairseqDataclass):
    """Logging, seeds, device and number formats."""

    no_progress_bar: bool = option(False, "log plain lines instead of a progress bar")
    log_interval: int = option(100, "write a training record every N updates", minimum=1)
    log_format: LogFormat | None = option(
        None, "form of the records (default: a bar on a terminal, else simple)"
    )
    log_file: str | None = option(None, "also append the records to this file", path=True)
    tensorboard_logdir: str | None = option(
        None, "write TensorBoard events to this folder", path=True
    )
    wandb_project: str | None = option(None, "report to this Weights & Biases project")
    seed: int = option(1, "seed of all random draws", **SEED)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute", new=True)
    cpu: bool = option(False, "compute on the CPU even if there is a GPU; same as --device cpu")
    bf16: bool = option(False, "train in bfloat16 with fp32 master weights, on any device")
    memory_efficient_bf16: bool = option(False, "bfloat16 without fp32 master weights")
    fp16: bool = option(False, "train in half precision with fp32 master weights")
    memory_efficient_fp16: bool = option(False, "half precision without fp32 master weights")
    fp16_no_flatten_grads: bool = option(False, "keep fp32 gradients per parameter")
    fp16_init_scale: int = option(2**7, "first loss scale of fp16", minimum=1)
    fp16_scale_window: int | None = option(
        None,
        "updates without overflow before the scale doubles (default: 2^14 / (processes x "
        "--update-freq))",
        minimum=1,
    )
    fp16_scale_tolerance: float = option(
        0.0, "share of overflows tolerated before the scale halves", **SHARE
    )
    on_cpu_convert_precision: bool = option(
        False, "convert gradients to fp32 on the CPU", inert=True
    )
    min_loss_scale: float = option(
        1e-4, "--fp16: stop when the loss scale falls to this value", minimum=0
    )
    threshold_loss_scale: float | None = option(
        None, "--fp16: never let the loss scale fall below this (default: no bound)", above=0
    )
    amp: bool = option(False, "automatic mixed precision (autocast) instead of half weights")
    amp_dtype: Literal["auto", "bf16", "fp16"] = option(
        "auto", "number format of --amp; auto: bf16 where the hardware has it", new=True
    )
    amp_batch_retries: int = option(
        2, "retries of a batch that overflows under --amp", inert=True, minimum=0
    )
    amp_init_scale: int = option(2**7, "first loss scale of --amp", minimum=1)
    amp_scale_window: int | None = option(
        None, "updates before the --amp scale grows (default: 2000)", minimum=1
    )
    user_dir: str | None = option(
        None, "folder (a Python package) with models, tasks, losses of your own", path=True
    )
    empty_cache_freq: int = option(
        0, "empty the GPU memory cache every N updates (0: never)", minimum=0
    )
    all_gather_list_size: int = option(
        16384, "no effect here: gathers have no size limit", minimum=1
    )
    profile: bool = option(
        False, "record a torch profile of updates 10 to 20 of this process in the run folder"
    )
    reset_logging: bool = option(False, "drop log handlers installed by Hydra", inert=True)
    suppress_crashes: bool = option(False, "fairseq-hydra-train: log an error and end normally")
    peak_tflops: float | None = option(
        None,
        "10^12 operations a second that one device can do, for mfu (default: measure a product "
        "of matrices)",
        new=True,
        above=0,
    )
    compile: Literal["off", "layer", "full"] = option(
        "off",
        "torch.compile for each Transformer layer, or for the whole model; the first update waits "
        "for the compiler, on a CPU the others are no faster; not measured on a GPU",
        new=True,
    )
    allow_tf32: bool = option(True, "allow TF32 matrix products on GPUs", positive=True, new=True)
    deterministic: bool = option(False, "deterministic GPU kernels, slower", new=True)


@dataclass
class DistributedTrainingConfig(FairseqDataclass):
    """Several processes: who talks to whom and how gradients are averaged."""

    distributed_world_size: int = option(
        -1, "number of processes (-1: visible GPUs, or 1)", minimum=1
    )
    distributed_num_procs: int | None = option(
        -1, "processes to start here (-1: visible GPUs; all if none is used)", minimum=0
    )
    distributed_rank: int | None = option(0, "rank of this process", minimum=0)
    distributed_backend: str = option("nccl", "nccl or gloo (gloo is taken where there is no GPU)")
    distributed_init_method: str | None = option(
        None, "where processes meet, for example tcp://host:port"
    )
    distributed_port: int = option(
        -1, "port, for multi-node runs under Slurm", inert=True, minimum=0, maximum=65535
    )
    device_id: int = option(
        0, "GPU of this process", argparse_alias=("--local_rank", "--local-rank"), minimum=0
    )
    distributed_no_spawn: bool = option(False, "do not start processes, even if there are GPUs")
    ddp_backend: Literal["c10d", "pytorch_ddp", "legacy_ddp", "no_c10d", "fully_sharded"] = option(
        "pytorch_ddp",
        "average gradients during the backward pass, or after it (legacy_ddp, no_c10d): slower, "
        "but a process that runs out of memory can divide its batch",
    )
    ddp_comm_hook: Literal["none", "fp16"] = option(
        "none", "compress gradients on the wire", inert=True
    )
    bucket_cap_mb: int = option(25, "bucket size of DDP in MB", minimum=1)
    fix_batches_to_gpus: bool = option(False, "keep a batch on the same process in every epoch")
    find_unused_parameters: bool = option(False, "let DDP look for parameters without gradient")
    gradient_as_bucket_view: bool = option(
        False, "DDP: gradients lie in its buckets, which saves the memory of a copy"
    )
    fast_stat_sync: bool = option(False, "no effect here: statistics are always summed fast")
    heartbeat_timeout: int = option(
        -1, "end a process that made no progress for N seconds (-1: never)", minimum=0
    )
    broadcast_buffers: bool = option(False, "DDP: broadcast buffers before each forward")
    zero_sharding: Literal["none", "os"] = option(
        "none", "shard the optimizer state (ZeRO-1)", inert=True
    )
    no_reshard_after_forward: bool = option(
        False, "FSDP: keep parameters between passes", inert=True
    )
    fp32_reduce_scatter: bool = option(False, "FSDP: reduce gradients in fp32", inert=True)
    cpu_offload: bool = option(False, "FSDP: keep parameters in CPU memory", inert=True)
    use_sharded_state: bool = option(False, "FSDP: every rank saves its own shard", inert=True)
    not_fsdp_flatten_parameters: bool = option(False, "no effect here: nothing is flattened")


@dataclass
class DatasetConfig(FairseqDataclass):
    """Which data, in which batches, validated when."""

    num_workers: int = option(1, "processes that prepare batches", minimum=0, maximum=MOST_WORKERS)
    skip_invalid_size_inputs_valid_test: bool = option(
        False, "skip samples that are too long in validation, instead of stopping"
    )
    max_tokens: int | None = option(None, "most tokens in a batch, padding included", minimum=1)
    batch_size: int | None = option(
        None, "most samples in a batch", argparse_alias="--max-sentences", minimum=1
    )
    required_batch_size_multiple: int = option(
        8, "batch sizes are multiples of this if they can be", minimum=1
    )
    required_seq_len_multiple: int = option(
        1, "pad sequences to a multiple of this", inert=True, minimum=1
    )
    dataset_impl: DatasetImpl | None = option(None, "format of binarized files (default: detect)")
    data_buffer_size: int = option(10, "batches prepared ahead", minimum=0)
    train_subset: str = option("train", "name of the training split")
    valid_subset: str = option("valid", "names of the validation splits, separated by commas")
    combine_valid_subsets: bool | None = option(
        None, "merge valid, valid1, ... into one", argparse_alias="--combine-val"
    )
    ignore_unused_valid_subsets: bool = option(False, "allow valid splits that are not evaluated")
    validate_interval: int = option(1, "validate every N epochs", minimum=1)
    validate_interval_updates: int = option(
        0, "validate every N updates, besides when checkpoints are saved (0: not)", minimum=0
    )
    validate_after_updates: int = option(
        0, "do not validate, nor save by interval, before N updates", minimum=0
    )
    fixed_validation_seed: int | None = option(
        None, "torch seed set before each validation (default: none)", **SEED
    )
    disable_validation: bool = option(False, "never validate")
    max_tokens_valid: int | None = option(
        None, "most tokens in a validation batch (default: as in training)", minimum=1
    )
    batch_size_valid: int | None = option(
        None,
        "most samples in a validation batch (default: as in training)",
        argparse_alias="--max-sentences-valid",
        minimum=1,
    )
    max_valid_steps: int | None = option(
        None, "validate on the first N batches only", argparse_alias="--nval", minimum=1
    )
    sample_prompts: str | None = option(
        None,
        "text file: at every validation of fairseq-train, fill the <mask> of each line (masked "
        "models) or continue it (causal ones), in the log and in samples.jsonl",
        new=True,
        path=True,
    )
    curriculum: int = option(0, "do not shuffle batches in the first N epochs", minimum=0)
    gen_subset: str = option("test", "split that is evaluated or generated from")
    num_shards: int = option(
        1, "evaluation and generation: divide the data into N parts", minimum=1
    )
    shard_id: int = option(0, "part for this process, from 0", minimum=0)
    grouped_shuffling: bool = option(False, "shuffle groups of one batch per process")
    update_epoch_batch_itr: bool = option(
        II("dataset.grouped_shuffling"), "rebuild the batches every epoch"
    )
    update_ordered_indices_seed: bool = option(False, "order samples anew every epoch")
    data_rng: DataRng = option(
        "auto",
        "source of masks and batch order: philox, or the original's bits (fairseq-main or "
        "fairseq-0.12); auto continues a checkpoint in its own mode and starts with philox",
        new=True,
    )


@dataclass
class OptimizationConfig(FairseqDataclass):
    """How long, with which step."""

    max_epoch: int = option(0, "stop after this epoch (0: no limit)", minimum=0)
    max_update: int = option(0, "stop after N updates (0: no limit)", minimum=0)
    max_tokens_total: int = option(
        0,
        "stop after N tokens, padding not counted, restarts added up (0: no limit)",
        new=True,
        minimum=0,
    )
    stop_time_hours: float = option(
        0.0, "stop after X hours, restarts added up (0: never)", minimum=0
    )
    lr_time_budget: float = option(
        0.0,
        "let schedules follow the share of X hours that has passed, restarts added up, instead of "
        "that of --max-update, and stop after X hours (0: they follow updates)",
        new=True,
        minimum=0,
    )
    clip_norm: float = option(
        0.0, "clip the gradient norm at this value (0: do not clip)", minimum=0
    )
    sentence_avg: bool = option(
        False,
        "cross_entropy, adaptive_loss, label_smoothed_cross_entropy: normalise gradients by "
        "sentences instead of tokens",
    )
    update_freq: list[int] = option([1], "batches per update, one entry per epoch", minimum=1)
    lr: list[float] = option(
        [0.25],
        "learning rate, one entry per epoch; the default is the original's, for sgd: state one for "
        "adam (the recipes: 0.002)",
        minimum=0,
    )
    stop_min_lr: float = option(
        -1.0,
        "stop after an epoch that ends with a learning rate of this or less (-1: never)",
        minimum=-1,
    )
    freeze_embeddings: bool = option(
        False, "do not train token embeddings, nor a head that is tied to them", new=True
    )
    freeze_positions: bool = option(False, "do not train learned positions", new=True)
    freeze_layers: str | None = option(
        None, "do not train these layers, counted from 0, such as 0-3 or 0,2,5-7", new=True
    )
    skip_remainder_batch: bool = option(False, "drop the last incomplete batch group of an epoch")
    spike_policy: Literal["none", "skip", "rollback"] = option(
        "none",
        "what to do when the loss jumps: skip = drop the update, rollback = also go back to a "
        "checkpoint and go on with the data that follow",
        new=True,
    )
    spike_factor: float = option(
        6.0, "a jump: a loss X robust deviations (scaled MAD) above the median", new=True, above=1
    )
    spike_window: int = option(
        128, "the median and deviation are those of the last N losses", new=True, minimum=8
    )
    spike_back: int = option(10, "rollback: go back at least N updates", new=True, minimum=1)
    spike_reseed: bool = option(
        True, "rollback: draw other random numbers (dropout) than before", new=True
    )
    param_groups: str = option(
        "", "rates and decay by parameter name, such as 'embed=lr*0.1,norm=wd0'", new=True
    )
    debug_param_names: bool = option(False, "name parameters in the optimizer's groups", inert=True)


# what a run that starts from a checkpoint may leave out
RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
LAST_CHECKPOINT = "checkpoint_last.pt"


@dataclass
class CheckpointConfig(FairseqDataclass):
    """Where the run is kept and what it starts from."""

    save_dir: str = option("checkpoints", "the run folder", path=True)
    restore_file: str = option(
        LAST_CHECKPOINT, "checkpoint to start from, if it is not that of --save-dir", path=True
    )
    continue_once: str | None = option(
        None, "checkpoint to start from if --save-dir has no checkpoint_last.pt", path=True
    )
    finetune_from_model: str | None = option(
        None, "take the weights of this model, nothing else", path=True
    )
    grow_from: str | None = option(
        None,
        "start from this model, grown to the sizes of --arch; nothing else is taken",
        new=True,
        path=True,
    )
    grow_method: str | None = option(
        None, "how to grow: " + ", ".join(GROWTH) + " (a learned operator: ligo)", new=True
    )
    grow_layers: list[int] = option(
        [], "the source's layer for every layer, such as 0,1,1,3", new=True, minimum=0
    )
    grow_seed: int = option(1, "seed of what growth draws", new=True, **SEED)
    grow_noise: float | None = option(
        None,
        "noise on copied channels that leaves the output as it is, in standard deviations of the "
        "weights (default: 0; hyperclone 0.01)",
        new=True,
        minimum=0,
    )
    grow_norms: Literal["own", "above"] = option(
        "own",
        "aki: new channels take the layer norms of their own layer, or of the layer above",
        new=True,
    )
    grow_fill: Literal["fresh", "zero"] = option(
        "fresh", "copy: new entries are drawn (fresh) or zero", new=True
    )
    grow_optimizer: Literal["reset", "asymmetric"] = option(
        "reset",
        "state of the optimizer: reset, or kept and reset only for what is a copy (asymmetric)",
        new=True,
    )
    reset_dataloader: bool = option(False, "start at the first epoch")
    reset_lr_scheduler: bool = option(False, "do not load the state of the LR schedule")
    reset_meters: bool = option(False, "do not load the meters")
    reset_optimizer: bool = option(False, "do not load the optimizer state")
    optimizer_overrides: str = option("{}", "optimizer settings to replace, such as {'eps': 1e-6}")
    save_interval: int = option(1, "save every N epochs", minimum=1)
    save_interval_updates: int = option(0, "save every N updates (0: only by epochs)", minimum=0)
    save_at_updates: list[int] = option(
        [], "save after these updates, as checkpoint_updateN.pt, and keep that", new=True, minimum=1
    )
    save_at_tokens: list[int] = option(
        [],
        "save once N tokens were trained on, as checkpoint_tokensN.pt, and keep that",
        new=True,
        minimum=1,
    )
    keep_interval_updates: int = option(
        -1, "keep the newest N checkpoints of --save-interval-updates (-1: all)", minimum=-1
    )
    keep_interval_updates_pattern: int = option(
        -1, "of those, never delete updates divisible by N (-1: all may go)", minimum=1
    )
    keep_last_epochs: int = option(
        -1, "keep the newest N checkpoints of epochs (-1: all)", minimum=-1
    )
    keep_best_checkpoints: int = option(
        -1, "also keep the N best, as checkpoint.best_METRIC_VALUE.pt (-1: none)", minimum=-1
    )
    no_save: bool = option(False, "save nothing")
    no_epoch_checkpoints: bool = option(False, "keep only the last and the best checkpoint")
    no_last_checkpoints: bool = option(False, "do not write checkpoint_last.pt")
    no_save_optimizer_state: bool = option(False, "save no optimizer state: restarts count from 0")
    best_checkpoint_metric: str = option("loss", "validation metric that decides what is best")
    maximize_best_checkpoint_metric: bool = option(
        False, "the larger --best-checkpoint-metric, the better"
    )
    patience: int = option(-1, "stop after N validations without gain (-1: never)", minimum=-1)
    stop_at_metric: float | None = option(
        None, "stop once --best-checkpoint-metric is so good (kl_micro, say)", new=True
    )
    checkpoint_suffix: str = option("", "text put before .pt in the names of checkpoints")
    checkpoint_shard_count: int = option(1, "number of checkpoint shards", inert=True, minimum=1)
    load_checkpoint_on_all_dp_ranks: bool = option(
        False, "every process reads the file itself", inert=True
    )
    write_checkpoints_asynchronously: bool = option(
        False,
        "accepted with a warning: checkpoints are saved in the foreground",
        argparse_alias="--save-async",
    )


@dataclass
class EMAConfig(FairseqDataclass):
    """A moving average of the weights."""

    store_ema: bool = option(False, "keep an exponential moving average of the weights")
    ema_decay: float = option(0.9999, "weight of the old average at an update", **SHARE)
    ema_start_update: int = option(
        0, "until update N the average is a copy of the weights", minimum=0
    )
    ema_seed_model: str | None = option(None, "start the average from this checkpoint", path=True)
    ema_update_freq: int = option(1, "update the average every N updates", minimum=1)
    ema_fp32: bool = option(False, "save the average in fp32; in half precision always so")


@dataclass
class FairseqConfig(FairseqDataclass):
    """Everything a command needs: the shared sections and one section per component."""

    common: CommonConfig = field(default_factory=CommonConfig)
    common_eval: CommonEvalConfig = field(default_factory=CommonEvalConfig)
    distributed_training: DistributedTrainingConfig = field(
        default_factory=DistributedTrainingConfig
    )
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    eval_lm: EvalLMConfig = field(default_factory=EvalLMConfig)
    interactive: InteractiveConfig = field(default_factory=InteractiveConfig)
    model: Any = None
    task: Any = None
    criterion: Any = None
    optimizer: Any = None
    lr_scheduler: Any = None
    scoring: Any = None
    bpe: Any = None
    tokenizer: Any = None
    ema: EMAConfig = field(default_factory=EMAConfig)
    # by section: what the user said (see fairseq.config.stated)
    stated: dict[str, Any] = field(default_factory=dict, compare=False)


SECTIONS: dict[str, type[FairseqDataclass]] = {
    f.name: f.default_factory  # type: ignore[misc]
    for f in dataclasses.fields(FairseqConfig)
    if f.default_factory not in (dataclasses.MISSING, dict)
}
# settings of shared sections that commands without training accept, for old scripts, and never read
TRAINING_ALONE = frozenset(
    """fp16_no_flatten_grads fp16_init_scale fp16_scale_window fp16_scale_tolerance min_loss_scale
    threshold_loss_scale amp_init_scale amp_scale_window amp_batch_retries empty_cache_freq profile
    suppress_crashes reset_logging on_cpu_convert_precision all_gather_list_size ddp_comm_hook
    distributed_port bucket_cap_mb find_unused_parameters gradient_as_bucket_view fast_stat_sync
    broadcast_buffers zero_sharding no_reshard_after_forward fp32_reduce_scatter cpu_offload
    use_sharded_state not_fsdp_flatten_parameters fix_batches_to_gpus validate_interval
    validate_interval_updates validate_after_updates sample_prompts curriculum grouped_shuffling
    update_epoch_batch_itr required_seq_len_multiple results_path log_file tensorboard_logdir
    wandb_project peak_tflops compile train_subset ignore_unused_valid_subsets disable_validation
    update_ordered_indices_seed distributed_world_size distributed_num_procs distributed_rank
    distributed_backend distributed_init_method device_id distributed_no_spawn ddp_backend
    heartbeat_timeout""".split()
)
# component section -> the flag that names the component
COMPONENTS = {
    "model": "arch",
    "task": "task",
    "criterion": "criterion",
    "optimizer": "optimizer",
    "lr_scheduler": "lr_scheduler",
    "bpe": "bpe",
    "tokenizer": "tokenizer",
}
# what is taken if the user names none
DEFAULT_COMPONENTS = {"criterion": "cross_entropy", "lr_scheduler": "fixed"}


@dataclass
class FairseqBMUFConfig(FairseqDataclass):
    """A name that plug-ins import; BMUF itself is not supported."""

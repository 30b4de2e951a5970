"""The sections every command shares, field by field, and the root that holds them.

Names, types and defaults are the original's unless a field is marked "new". Flags of features that
are refused stand in :mod:`fairseq.config.refused`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from fairseq.config.schema import II, FairseqDataclass, option

LogFormat = Literal["json", "none", "simple", "tqdm", "rich"]
DatasetImpl = Literal["raw", "lazy", "cached", "mmap", "fasta", "huffman"]
DataRng = Literal["auto", "philox", "fairseq-main", "fairseq-0.12"]
NEVER_SPLIT = 9223372036854775807  # the original's default for --softmax-batch


@dataclass
class CommonConfig(FairseqDataclass):
    """Logging, seeds, device and number formats."""

    no_progress_bar: bool = option(False, "log plain lines instead of a progress bar")
    log_interval: int = option(100, "write a training record every so many updates")
    log_format: LogFormat | None = option(None, "how records look (default: a bar on a terminal)")
    log_file: str | None = option(None, "also append the records to this file")
    tensorboard_logdir: str | None = option(None, "write TensorBoard events to this folder")
    wandb_project: str | None = option(None, "report to this Weights & Biases project")
    seed: int = option(1, "every random draw derives from it")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute", new=True)
    cpu: bool = option(False, "compute on the CPU even if there is a GPU; same as --device cpu")
    bf16: bool = option(False, "train in bfloat16 with fp32 master weights, on any device")
    memory_efficient_bf16: bool = option(False, "bfloat16 without fp32 master weights")
    fp16: bool = option(False, "train in half precision with fp32 master weights")
    memory_efficient_fp16: bool = option(False, "half precision without fp32 master weights")
    fp16_no_flatten_grads: bool = option(False, "keep fp32 gradients per parameter")
    fp16_init_scale: int = option(2**7, "first loss scale of fp16")
    fp16_scale_window: int | None = option(
        None, "updates without overflow before the scale doubles"
    )
    fp16_scale_tolerance: float = option(
        0.0, "share of overflows tolerated before the scale halves"
    )
    on_cpu_convert_precision: bool = option(
        False, "convert gradients to fp32 on the CPU", inert=True
    )
    min_loss_scale: float = option(1e-4, "stop when the loss scale falls to this value")
    threshold_loss_scale: float | None = option(None, "never let the loss scale fall below this")
    amp: bool = option(False, "automatic mixed precision (autocast) instead of half weights")
    amp_dtype: Literal["auto", "bf16", "fp16"] = option(
        "auto", "number format of --amp; auto: bf16 where the hardware has it", new=True
    )
    amp_batch_retries: int = option(2, "retries of a batch that overflows under --amp", inert=True)
    amp_init_scale: int = option(2**7, "first loss scale of --amp")
    amp_scale_window: int | None = option(None, "updates before the --amp scale grows")
    user_dir: str | None = option(None, "folder (a Python package) with your models, tasks, losses")
    empty_cache_freq: int = option(0, "empty the GPU memory cache every so many updates")
    all_gather_list_size: int = option(
        16384, "accepted for old scripts; gathers have no size limit"
    )
    profile: bool = option(
        False, "record a torch profile of updates 10 to 20 in the run folder", inert=True
    )
    reset_logging: bool = option(False, "drop log handlers installed by Hydra")
    suppress_crashes: bool = option(False, "in fairseq-hydra-train: report a crash and return")
    allow_tf32: bool = option(True, "allow TF32 matrix products on GPUs", positive=True, new=True)
    deterministic: bool = option(False, "deterministic GPU kernels, slower", new=True)


@dataclass
class DistributedTrainingConfig(FairseqDataclass):
    """Several processes: who talks to whom and how gradients are averaged."""

    distributed_world_size: int = option(-1, "number of processes (default: visible GPUs, or 1)")
    distributed_num_procs: int | None = option(
        -1, "processes to start here (default: visible GPUs)"
    )
    distributed_rank: int | None = option(0, "rank of this process")
    distributed_backend: str = option("nccl", "nccl or gloo (gloo is taken where there is no GPU)")
    distributed_init_method: str | None = option(None, "for example tcp://host:port")
    distributed_port: int = option(-1, "port, for multi-node runs under Slurm", inert=True)
    device_id: int = option(
        0, "GPU of this process", argparse_alias=("--local_rank", "--local-rank")
    )
    distributed_no_spawn: bool = option(False, "do not start processes, even if there are GPUs")
    ddp_backend: Literal["c10d", "pytorch_ddp", "legacy_ddp", "no_c10d", "fully_sharded"] = option(
        "pytorch_ddp", "how gradients are averaged"
    )
    ddp_comm_hook: Literal["none", "fp16"] = option(
        "none", "compress gradients on the wire", inert=True
    )
    bucket_cap_mb: int = option(25, "bucket size of DDP in MB")
    fix_batches_to_gpus: bool = option(False, "keep a batch on the same process in every epoch")
    find_unused_parameters: bool = option(False, "let DDP look for parameters without gradient")
    gradient_as_bucket_view: bool = option(False, "DDP: save a copy of the gradients")
    fast_stat_sync: bool = option(False, "accepted for old scripts; statistics are always fast")
    heartbeat_timeout: int = option(-1, "end a process that made no progress for so many seconds")
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
    not_fsdp_flatten_parameters: bool = option(False, "accepted; FSDP2 never flattens")


@dataclass
class DatasetConfig(FairseqDataclass):
    """Which data, in which batches, validated when."""

    num_workers: int = option(1, "processes that prepare batches")
    skip_invalid_size_inputs_valid_test: bool = option(
        False, "skip too long samples in validation instead of stopping"
    )
    max_tokens: int | None = option(None, "most tokens in a batch, padding included")
    batch_size: int | None = option(
        None, "most samples in a batch", argparse_alias="--max-sentences"
    )
    required_batch_size_multiple: int = option(
        8, "batch sizes are multiples of this if they can be"
    )
    required_seq_len_multiple: int = option(1, "pad sequences to a multiple of this", inert=True)
    dataset_impl: DatasetImpl | None = option(None, "format of binarized files (default: detect)")
    data_buffer_size: int = option(10, "batches prepared ahead")
    train_subset: str = option("train", "name of the training split")
    valid_subset: str = option("valid", "names of the validation splits, separated by commas")
    combine_valid_subsets: bool | None = option(
        None, "merge valid, valid1, ... into one", argparse_alias="--combine-val"
    )
    ignore_unused_valid_subsets: bool = option(False, "allow valid splits that are not evaluated")
    validate_interval: int = option(1, "validate every so many epochs")
    validate_interval_updates: int = option(0, "validate every so many updates")
    validate_after_updates: int = option(0, "do not validate before so many updates")
    fixed_validation_seed: int | None = option(None, "torch seed set before each validation")
    disable_validation: bool = option(False, "never validate")
    max_tokens_valid: int | None = option(
        None, "most tokens in a validation batch (default: as in training)"
    )
    batch_size_valid: int | None = option(
        None,
        "most samples in a validation batch (default: as in training)",
        argparse_alias="--max-sentences-valid",
    )
    max_valid_steps: int | None = option(
        None, "validate on so many batches only", argparse_alias="--nval"
    )
    curriculum: int = option(0, "do not shuffle batches in the first so many epochs")
    gen_subset: str = option("test", "split that is evaluated or generated from")
    num_shards: int = option(1, "shards for generation and evaluation")
    shard_id: int = option(0, "shard of this process")
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

    max_epoch: int = option(0, "stop after this epoch (0: no limit)")
    max_update: int = option(0, "stop after so many updates (0: no limit)")
    stop_time_hours: float = option(0.0, "stop after so many hours, restarts added up (0: never)")
    clip_norm: float = option(0.0, "clip the gradient norm at this value (0: do not clip)")
    sentence_avg: bool = option(False, "normalise gradients by sentences instead of tokens")
    update_freq: list[int] = option([1], "batches per update, one entry per epoch")
    lr: list[float] = option([0.25], "learning rate, one entry per epoch")
    stop_min_lr: float = option(-1.0, "stop when the learning rate falls to this value")
    skip_remainder_batch: bool = option(False, "drop the last incomplete batch group of an epoch")
    debug_param_names: bool = option(False, "name parameters in the optimizer's groups", inert=True)


@dataclass
class CheckpointConfig(FairseqDataclass):
    """Where the run is kept and what it starts from."""

    save_dir: str = option("checkpoints", "the run folder")
    restore_file: str = option("checkpoint_last.pt", "checkpoint to start from")
    continue_once: str | None = option(None, "start from this file if there is no checkpoint_last")
    finetune_from_model: str | None = option(None, "take the weights of this model, nothing else")
    reset_dataloader: bool = option(False, "start at the first epoch")
    reset_lr_scheduler: bool = option(False, "do not load the state of the LR schedule")
    reset_meters: bool = option(False, "do not load the meters")
    reset_optimizer: bool = option(False, "do not load the optimizer state")
    optimizer_overrides: str = option("{}", "values that replace the checkpoint's, as a dict")
    save_interval: int = option(1, "save every so many epochs")
    save_interval_updates: int = option(0, "save every so many updates")
    keep_interval_updates: int = option(-1, "keep this many of those")
    keep_interval_updates_pattern: int = option(-1, "never delete updates divisible by this")
    keep_last_epochs: int = option(-1, "keep this many epoch checkpoints")
    keep_best_checkpoints: int = option(-1, "keep this many best checkpoints")
    no_save: bool = option(False, "save nothing")
    no_epoch_checkpoints: bool = option(False, "keep only the last and the best checkpoint")
    no_last_checkpoints: bool = option(False, "do not write checkpoint_last.pt")
    no_save_optimizer_state: bool = option(False, "leave the optimizer state out")
    best_checkpoint_metric: str = option("loss", "validation metric that decides what is best")
    maximize_best_checkpoint_metric: bool = option(False, "the larger that metric the better")
    patience: int = option(-1, "stop after so many validations without improvement")
    checkpoint_suffix: str = option("", "inserted before .pt")
    checkpoint_shard_count: int = option(1, "number of checkpoint shards", inert=True)
    load_checkpoint_on_all_dp_ranks: bool = option(
        False, "every process reads the file itself", inert=True
    )
    write_checkpoints_asynchronously: bool = option(
        False, "save in a background thread", argparse_alias="--save-async"
    )


@dataclass
class EMAConfig(FairseqDataclass):
    """A moving average of the weights."""

    store_ema: bool = option(False, "keep an exponential moving average of the weights")
    ema_decay: float = option(0.9999, "its decay")
    ema_start_update: int = option(0, "copy the weights until this update")
    ema_seed_model: str | None = option(None, "start the average from this checkpoint")
    ema_update_freq: int = option(1, "update it every so many updates")
    ema_fp32: bool = option(False, "accumulate in fp32 even if the model is not")


@dataclass
class CommonEvalConfig(FairseqDataclass):
    """What evaluation commands share."""

    path: str | None = option(None, "model file; several are joined with ':'")
    post_process: str | None = option(
        None,
        "undo the subword splitting before printing",
        argparse_alias="--remove-bpe",
        argparse_const="subword_nmt",
    )
    quiet: bool = option(False, "print only the final scores")
    model_overrides: str = option("{}", "values that replace the checkpoint's, as a dict")
    results_path: str | None = option(None, "folder for the results", inert=True)


@dataclass
class EvalLMConfig(FairseqDataclass):
    """Evaluation of causal language models."""

    output_word_probs: bool = option(False, "print words with their log-probabilities")
    output_word_stats: bool = option(False, "print statistics per word")
    context_window: int = option(0, "at least so many tokens of context for every token")
    softmax_batch: int = option(NEVER_SPLIT, "rows of logits computed at once")


@dataclass
class GenerationConfig(FairseqDataclass):
    """Generation from causal language models."""

    beam: int = option(5, "beam size")
    nbest: int = option(1, "hypotheses to print")
    max_len_a: float = option(0.0, "longest output is a * source length + b")
    max_len_b: int = option(200, "longest output is a * source length + b")
    min_len: int = option(1, "shortest output")
    unnormalized: bool = option(False, "compare hypotheses by total, not mean, log-probability")
    lenpen: float = option(1.0, "length penalty; below 1 favours short outputs")
    unkpen: float = option(0.0, "penalty for <unk>")
    prefix_size: int = option(0, "force the first so many tokens of the target")
    no_repeat_ngram_size: int = option(0, "never repeat n-grams of this size")
    sampling: bool = option(False, "sample instead of searching")
    sampling_topk: int = option(-1, "sample among the k most likely words")
    sampling_topp: float = option(-1.0, "sample among the words that make up this probability")
    temperature: float = option(1.0, "softmax temperature")
    no_seed_provided: bool = option(False, "set by the parser when --seed is not given")


@dataclass
class InteractiveConfig(FairseqDataclass):
    """Reading sentences from a stream."""

    buffer_size: int = option(0, "sentences read before a batch is formed")
    input: str = option("-", "file to read; - is standard input")


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


SECTIONS: dict[str, type[FairseqDataclass]] = {
    f.name: f.default_factory  # type: ignore[misc]
    for f in dataclasses.fields(FairseqConfig)
    if f.default_factory is not dataclasses.MISSING
}
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
class PreprocessConfig(FairseqDataclass):
    """Text in, dictionary and binary files out."""

    source_lang: str | None = option(None, "source language", argparse_alias="-s")
    target_lang: str | None = option(None, "target language", argparse_alias="-t")
    trainpref: str | None = option(None, "training text (without the language suffix, if any)")
    validpref: str | None = option(None, "validation texts, separated by commas")
    testpref: str | None = option(None, "test texts, separated by commas")
    align_suffix: str | None = option(None, "suffix of an alignment file (not supported)")
    destdir: str = option("data-bin", "folder for the output")
    thresholdtgt: int = option(0, "target words seen less often become <unk>")
    thresholdsrc: int = option(0, "words seen less often become <unk>")
    tgtdict: str | None = option(None, "use this target dictionary")
    srcdict: str | None = option(None, "use this dictionary instead of building one")
    nwordstgt: int = option(-1, "most target words to keep")
    nwordssrc: int = option(-1, "most words to keep, special symbols included")
    alignfile: str | None = option(None, "an alignment file (not supported)")
    dataset_impl: DatasetImpl = option("mmap", "format of the binary files")
    joined_dictionary: bool = option(False, "one dictionary for both languages")
    only_source: bool = option(False, "one language only: what language models need")
    padding_factor: int = option(8, "pad the dictionary to a multiple of this")
    workers: int = option(1, "processes")
    byte_level_tokenizer: str | None = option(
        None,
        "tokenizer.json of fairseq-bpe train that made the texts: the dictionary gets all of its "
        "pieces, so that no text has an unknown one, and the file is copied to --destdir",
        new=True,
    )
    dict_only: bool = option(False, "build the dictionary and stop")


@dataclass
class FairseqBMUFConfig(FairseqDataclass):
    """A name that plug-ins import; BMUF itself is not supported."""

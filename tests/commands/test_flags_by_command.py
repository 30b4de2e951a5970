"""Every flag of each of the original's parsers is known to the same command here.

The names are those that the parsers of fairseq 0.12.2 print, without components.
"""

from __future__ import annotations

import pytest

from fairseq.config import options
from fairseq.config.flags import Parser, explicitly_given
from fairseq_cli import generate

FLAGS = {
    "train preprocess validate eval_lm generate interactive": """
        no-progress-bar log-interval log-format log-file aim-repo aim-run-hash tensorboard-logdir
        wandb-project azureml-logging seed cpu tpu bf16 memory-efficient-bf16 fp16
        memory-efficient-fp16 fp16-no-flatten-grads fp16-init-scale fp16-scale-window
        fp16-scale-tolerance on-cpu-convert-precision min-loss-scale threshold-loss-scale amp
        amp-batch-retries amp-init-scale amp-scale-window user-dir empty-cache-freq
        all-gather-list-size model-parallel-size quantization-config-path profile reset-logging
        suppress-crashes use-plasma-view plasma-path criterion tokenizer bpe optimizer
        lr-scheduler scoring task dataset-impl
    """,
    "train validate eval_lm generate interactive": """
        num-workers skip-invalid-size-inputs-valid-test max-tokens batch-size max-sentences
        required-batch-size-multiple required-seq-len-multiple data-buffer-size train-subset
        valid-subset combine-valid-subsets combine-val ignore-unused-valid-subsets
        validate-interval validate-interval-updates validate-after-updates fixed-validation-seed
        disable-validation max-tokens-valid batch-size-valid max-sentences-valid max-valid-steps
        nval curriculum gen-subset num-shards shard-id grouped-shuffling update-epoch-batch-itr
        update-ordered-indices-seed distributed-world-size distributed-num-procs distributed-rank
        distributed-backend distributed-init-method distributed-port device-id local_rank
        distributed-no-spawn ddp-backend ddp-comm-hook bucket-cap-mb fix-batches-to-gpus
        find-unused-parameters gradient-as-bucket-view fast-stat-sync heartbeat-timeout
        broadcast-buffers slowmo-momentum slowmo-base-algorithm localsgd-frequency nprocs-per-node
        pipeline-model-parallel pipeline-balance pipeline-devices pipeline-chunks
        pipeline-encoder-balance pipeline-encoder-devices pipeline-decoder-balance
        pipeline-decoder-devices pipeline-checkpoint zero-sharding no-reshard-after-forward
        fp32-reduce-scatter cpu-offload use-sharded-state not-fsdp-flatten-parameters
    """,
    "train": """
        arch -a max-epoch max-update stop-time-hours clip-norm sentence-avg update-freq lr
        stop-min-lr use-bmuf skip-remainder-batch store-ema ema-decay ema-start-update
        ema-seed-model ema-update-freq ema-fp32
    """,
    "train generate interactive": """
        save-dir restore-file continue-once finetune-from-model reset-dataloader
        reset-lr-scheduler reset-meters reset-optimizer optimizer-overrides save-interval
        save-interval-updates keep-interval-updates keep-interval-updates-pattern keep-last-epochs
        keep-best-checkpoints no-save no-epoch-checkpoints no-last-checkpoints
        no-save-optimizer-state best-checkpoint-metric maximize-best-checkpoint-metric patience
        checkpoint-suffix checkpoint-shard-count load-checkpoint-on-all-dp-ranks
        write-checkpoints-asynchronously save-async
    """,
    "preprocess": """
        -s source-lang -t target-lang trainpref validpref testpref align-suffix destdir
        thresholdtgt thresholdsrc tgtdict srcdict nwordstgt nwordssrc alignfile joined-dictionary
        only-source padding-factor workers dict-only
    """,
    "validate eval_lm generate interactive": """
        path post-process remove-bpe quiet model-overrides results-path
    """,
    "eval_lm": """
        output-word-probs output-word-stats context-window softmax-batch
    """,
    "generate interactive": """
        beam nbest max-len-a max-len-b min-len match-source-len unnormalized no-early-stop
        no-beamable-mm lenpen unkpen replace-unk sacrebleu score-reference prefix-size
        no-repeat-ngram-size sampling sampling-topk sampling-topp constraints temperature
        diverse-beam-groups diverse-beam-strength diversity-rate print-alignment print-step
        lm-path lm-weight iter-decode-eos-penalty iter-decode-max-iter iter-decode-force-max-iter
        iter-decode-with-beam iter-decode-with-external-reranker retain-iter-history
        retain-dropout retain-dropout-modules decoding-format no-seed-provided eos-token
    """,
    "interactive": """
        buffer-size input
    """,
}

PARSERS = {
    "train": options.get_training_parser,
    "preprocess": options.get_preprocessing_parser,
    "validate": options.get_validation_parser,
    "eval_lm": options.get_eval_lm_parser,
    "generate": generate.make_parser,
    "interactive": lambda: generate.make_parser(interactive=True),
}
# they would name another file than --path does: an error is better than the wrong weights
LEFT_OUT = {"--checkpoint-suffix", "--checkpoint-shard-count"}


def flags_of(command: str) -> set[str]:
    names = [
        name for group, text in FLAGS.items() if command in group.split() for name in text.split()
    ]
    return {name if name.startswith("-") else f"--{name}" for name in names}


def parser_of(command: str) -> Parser:
    parser = PARSERS[command]()
    options.complete_parser(parser, [])
    return parser


@pytest.mark.parametrize("command", PARSERS)
def test_every_flag_is_known(command: str) -> None:
    missing = flags_of(command) - set(parser_of(command)._option_string_actions)
    assert missing == (LEFT_OUT if command in ("generate", "interactive") else set())


def test_what_a_command_does_not_read_leaves_no_trace() -> None:
    words = ["--optimizer", "adam", "--save-dir", "x", "--no-save", "--patience", "3"]
    given = explicitly_given(parser_of("generate"), ["data-bin", *words, "--beam", "2"])
    assert vars(given) == {"data": "data-bin", "beam": 2}
    words = ["--bpe", "gpt2", "--lr-scheduler", "fixed", "--only-source"]
    assert vars(explicitly_given(parser_of("preprocess"), words)) == {"only_source": True}

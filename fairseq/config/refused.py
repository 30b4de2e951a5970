"""What the original has and this project refuses: one table for parsing, reading and writing.

A refused field is accepted with its default value, so old scripts and YAML files that spell the
default out still work; any other value is an error that gives the reason. Checkpoints carry the
defaults, so that the original finds every key it looks for. Refused words are choices of the
original (names of components, mostly) that get their reason instead of a list of what is accepted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from fairseq.config.schema import parse_literal
from fairseq.errors import ConfigError, UnsupportedError

TPU = "TPUs are not supported; train on CPU, CUDA or MPS (--device)"
PLASMA = "the plasma object store no longer exists; memory-mapped data needs no replacement"
MEGATRON = "Megatron model parallelism is not supported; use --ddp-backend pytorch_ddp"
PIPELINE = "pipeline parallelism is not supported; use --ddp-backend pytorch_ddp"
SLOWMO = "SlowMo is not supported; use --ddp-backend pytorch_ddp"
BMUF = "BMUF is not supported; use --ddp-backend pytorch_ddp"
QUANT = "quantisation noise is not supported"
PRUNE = "structured pruning during training (AdaPrune) is not supported"
SPECTRAL = "spectral normalisation of classification heads is not supported"
D2V = "data2vec is out of scope"
SPEECH = "speech is out of scope; the original fairseq and Hugging Face transformers do it"
TRACKER = (
    "this tracker is not supported; use --tensorboard-logdir, --wandb-project or metrics.jsonl"
)
CHARACTERS = (
    "words made of characters are not supported; split text into byte-level pieces (fairseq-bpe)"
)
BASE = "BASE layers (a mixture of experts) are not supported"
XFORMERS = "attention is configured with --attention-backend, not with xFormers' factory"
MT = "translation is out of scope; the original fairseq and Hugging Face transformers do it"


@dataclass(frozen=True)
class Refused:
    """One refused field.

    Attributes:
        section: where the original keeps it.
        default: its value in the original.
        reason: why any other value is refused; None if the value changes nothing by itself.
    """

    section: str
    default: Any
    reason: str | None


def _rows(section: str, reason: str | None, **defaults: object) -> dict[str, Refused]:
    return {name: Refused(section, default, reason) for name, default in defaults.items()}


REFUSED: dict[str, Refused] = {
    **_rows("common", TPU, tpu=False),
    **_rows("common", TRACKER, aim_repo=None, aim_run_hash=None, azureml_logging=False),
    **_rows("common", MEGATRON, model_parallel_size=1),
    **_rows("common", QUANT, quantization_config_path=None),
    **_rows("common", PLASMA, use_plasma_view=False),
    **_rows("common", None, plasma_path="/tmp/plasma"),
    **_rows(
        "distributed_training",
        SLOWMO,
        slowmo_momentum=None,
        slowmo_base_algorithm="localsgd",
        localsgd_frequency=3,
    ),
    **_rows(
        "distributed_training",
        PIPELINE,
        pipeline_model_parallel=False,
        pipeline_balance=None,
        pipeline_devices=None,
        pipeline_chunks=0,
        pipeline_encoder_balance=None,
        pipeline_encoder_devices=None,
        pipeline_decoder_balance=None,
        pipeline_decoder_devices=None,
        pipeline_checkpoint="never",
    ),
    **_rows("distributed_training", None, nprocs_per_node=1),
    **_rows("optimization", BMUF, use_bmuf=False),
    **_rows(
        "bmuf",
        BMUF,
        block_lr=1.0,
        block_momentum=0.875,
        global_sync_iter=50,
        warmup_iterations=500,
        use_nbm=False,
        average_sync=False,
    ),
    **_rows(
        "model",
        QUANT,
        quant_noise_pq=0.0,
        quant_noise_pq_block_size=8,
        quant_noise_scalar=0.0,
    ),
    **_rows("model", SPECTRAL, spectral_norm_classification_head=False),
    **_rows(
        "model",
        PRUNE,
        mha_reg_scale_factor=0.0,
        ffn_reg_scale_factor=0.0,
        mha_heads_to_keep=-1,
        ffn_blocks_to_remove=-1,
    ),
    **_rows("model", CHARACTERS, character_embeddings=False),
    **_rows(
        "model",
        None,
        character_filters="[(1, 64), (2, 128), (3, 192), (4, 256), (5, 256), (6, 256), (7, 256)]",
        character_embedding_dim=4,
        char_embedder_highway_layers=2,
        base_sublayers=1,
        base_shuffle=1,
    ),
    **_rows("model", BASE, base_layers=0),
    **_rows("model", XFORMERS, decoder_xformers_att_config=None),
    **_rows("task", D2V, d2v2_multi=False),
    **_rows(
        "generation",
        MT,
        beam_mt=0,
        max_len_a_mt=0.0,
        max_len_b_mt=200,
        match_source_len=False,
        no_early_stop=False,
        no_beamable_mm=False,
        lenpen_mt=1.0,
        replace_unk=None,
        sacrebleu=False,
        score_reference=False,
        constraints=None,
        diverse_beam_groups=-1,
        diverse_beam_strength=0.5,
        diversity_rate=-1.0,
        print_alignment=None,
        print_step=False,
        lm_path=None,
        lm_weight=0.0,
        iter_decode_eos_penalty=0.0,
        iter_decode_max_iter=10,
        iter_decode_force_max_iter=False,
        iter_decode_with_beam=1,
        iter_decode_with_external_reranker=False,
        retain_iter_history=False,
        retain_dropout=False,
        retain_dropout_modules=None,
        decoding_format=None,
        eos_token=None,
    ),
}


# word of the original -> why it is refused
REFUSED_WORDS: dict[str, str] = {
    "slowmo": SLOWMO,
    "lamb": "it needs the LAMB kernel of NVIDIA apex; use adam",
    "cpu_adam": "it needs DeepSpeed; adam is fused on the CPU, too",
    "composite": "parameter groups with optimizers of their own are not supported",
    **dict.fromkeys(
        """translation translation_lev translation_multi_simple_epoch
        translation_from_pretrained_bart translation_from_pretrained_xlm multilingual_translation
        semisupervised_translation online_backtranslation simul_speech_to_text simul_text_to_text
        label_smoothed_cross_entropy_with_alignment transformer transformer_iwslt_de_en
        transformer_wmt_en_de transformer_wmt_en_de_big transformer_vaswani_wmt_en_de_big
        fconv lstm bart_base bart_large""".split(),
        MT,
    ),
    **dict.fromkeys(
        """audio_pretraining audio_finetuning speech_to_text speech_to_speech text_to_speech
        hubert_pretraining wav2vec wav2vec2 hubert ctc""".split(),
        SPEECH,
    ),
}


def why_refused(word: str) -> str:
    """Return why a word of ``REFUSED_WORDS`` is refused, as a sentence."""
    return f"{word} is not supported: {REFUSED_WORDS[word]} (see docs/migrating.md)"


def is_accepted(name: str, value: object) -> bool:
    """Tell whether the refused field ``name`` may be ``value``, which can be typed or text."""
    row = REFUSED[name]
    if isinstance(value, str) and not isinstance(row.default, str):
        with contextlib.suppress(ConfigError):
            value = parse_literal(value.capitalize() if value in ("true", "false") else value)
    return row.reason is None or bool(value == row.default)


def check_refused(name: str, value: object) -> None:
    """Raise ``UnsupportedError`` if the refused field ``name`` may not be ``value``."""
    if not is_accepted(name, value):
        shown = "" if value is True else f" {value}"
        raise UnsupportedError(
            f"--{name.replace('_', '-')}{shown}: {REFUSED[name].reason} (see docs/migrating.md)"
        )

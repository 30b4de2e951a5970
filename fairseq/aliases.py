"""Old import paths: modules that moved, and names that left their module.

A meta-path finder, first in line, gives an old path the very module that moved: classes are
identical by either path, pickles written under the old path load, and what is patched through one
path is patched for both. :mod:`fairseq` installs it, so it is there in data workers and spawned
ranks, too. The few files that lie under an old path (``fairseq/trainer.py`` and others) are never
executed: they are there for editors and type checkers, which do not see this table.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

# old path -> new path
MODULES = {
    "fairseq.binarizer": "fairseq.preprocess.binarize",
    "fairseq.checkpoint_utils": "fairseq.checkpoint",
    "fairseq.criterions.fairseq_criterion": "fairseq.criterions.base",
    "fairseq.data.base_wrapper_dataset": "fairseq.data.datasets.wrappers",
    "fairseq.data.concat_dataset": "fairseq.data.datasets.concat",
    "fairseq.data.data_utils": "fairseq.data.collate",
    "fairseq.data.data_utils_fast": "fairseq.data.batches.cut",
    "fairseq.data.dictionary": "fairseq.data.storage.dictionary",
    "fairseq.data.encoders.utils": "fairseq.plugin_names.masking",
    "fairseq.data.encoders.gpt2_bpe_utils": "fairseq.plugin_names.gpt2_pieces",
    "fairseq.data.fairseq_dataset": "fairseq.data.datasets.base",
    "fairseq.data.indexed_dataset": "fairseq.data.storage.indexed_dataset",
    "fairseq.data.iterators": "fairseq.data.batches.epochs",
    "fairseq.data.lm_context_window_dataset": "fairseq.data.datasets.context_window",
    "fairseq.data.mask_tokens_dataset": "fairseq.data.masking.item_by_item",
    "fairseq.data.monolingual_dataset": "fairseq.data.datasets.causal_lm",
    "fairseq.data.nested_dictionary_dataset": "fairseq.data.datasets.nested_dictionary",
    "fairseq.data.resampling_dataset": "fairseq.plugin_names.datasets",
    "fairseq.data.shorten_dataset": "fairseq.data.datasets.shorten",
    "fairseq.data.token_block_dataset": "fairseq.data.datasets.token_blocks",
    "fairseq.dataclass.configs": "fairseq.config.sections",
    "fairseq.dataclass.constants": "fairseq.config.plugin_names",
    "fairseq.dataclass.initialize": "fairseq.config.plugin_names",
    "fairseq.dataclass.utils": "fairseq.config.plugin_names",
    "fairseq.distributed_utils": "fairseq.distributed.utils",
    "fairseq.file_chunker_utils": "fairseq.files.text_blocks",
    "fairseq.file_io": "fairseq.files.io",
    "fairseq.file_utils": "fairseq.hub.load",
    "fairseq.hub_utils": "fairseq.hub.load",
    "fairseq.incremental_decoding_utils": "fairseq.plugin_names.incremental_state",
    "fairseq.lm_eval_adapter": "fairseq.evaluation.lm_eval",
    "fairseq.meters": "fairseq.logging.meters",
    "fairseq.metrics": "fairseq.logging.metrics",
    "fairseq.models.fairseq_decoder": "fairseq.models.base",
    "fairseq.models.fairseq_encoder": "fairseq.models.base",
    "fairseq.models.composite_encoder": "fairseq.plugin_names.models",
    "fairseq.models.distributed_fairseq_model": "fairseq.plugin_names.models",
    "fairseq.models.fairseq_incremental_decoder": "fairseq.plugin_names.models",
    "fairseq.models.fairseq_model": "fairseq.models.base",
    "fairseq.models.roberta.model_camembert": "fairseq.plugin_names.roberta",
    "fairseq.models.roberta.model_gottbert": "fairseq.plugin_names.roberta",
    "fairseq.models.roberta.model_xlmr": "fairseq.plugin_names.roberta",
    "fairseq.models.transformer": "fairseq.plugin_names.transformer",
    "fairseq.models.transformer.transformer_base": "fairseq.plugin_names.transformer",
    "fairseq.models.transformer.transformer_config": "fairseq.plugin_names.transformer.config",
    "fairseq.models.transformer.transformer_decoder": "fairseq.plugin_names.transformer.decoder",
    "fairseq.models.transformer.transformer_encoder": "fairseq.plugin_names.transformer.encoder",
    "fairseq.models.transformer.transformer_legacy": "fairseq.plugin_names.transformer",
    "fairseq.modules.checkpoint_activations": "fairseq.plugin_names.modules",
    "fairseq.modules.character_token_embedder": "fairseq.plugin_names.modules",
    "fairseq.modules.fairseq_dropout": "fairseq.plugin_names.modules",
    "fairseq.modules.fp32_group_norm": "fairseq.plugin_names.modules",
    "fairseq.modules.grad_multiply": "fairseq.plugin_names.modules",
    "fairseq.modules.layer_drop": "fairseq.plugin_names.modules",
    "fairseq.modules.layer_norm": "fairseq.modules.pointwise",
    "fairseq.modules.learned_positional_embedding": "fairseq.modules.positions",
    "fairseq.modules.multihead_attention": "fairseq.plugin_names.attention",
    "fairseq.modules.positional_embedding": "fairseq.modules.positions",
    "fairseq.modules.quant_noise": "fairseq.plugin_names.modules",
    "fairseq.modules.same_pad": "fairseq.plugin_names.modules",
    "fairseq.modules.sinusoidal_positional_embedding": "fairseq.modules.positions",
    "fairseq.modules.transformer_sentence_encoder": "fairseq.modules.transformer_encoder",
    "fairseq.modules.transformer_sentence_encoder_layer": (
        "fairseq.plugin_names.transformer.layers"
    ),
    "fairseq.modules.transpose_last": "fairseq.plugin_names.modules",
    "fairseq.nan_detector": "fairseq.training.nan_detector",
    "fairseq.optim.adadelta": "fairseq.optim.optimizers",
    "fairseq.optim.adagrad": "fairseq.optim.optimizers",
    "fairseq.optim.adamax": "fairseq.optim.optimizers",
    "fairseq.optim.dynamic_loss_scaler": "fairseq.optim.loss_scaler",
    "fairseq.optim.fairseq_optimizer": "fairseq.optim.base",
    "fairseq.optim.lr_scheduler.cosine_lr_scheduler": "fairseq.optim.lr_schedules",
    "fairseq.optim.lr_scheduler.fairseq_lr_scheduler": "fairseq.optim.lr_scheduler",
    "fairseq.optim.lr_scheduler.fixed_schedule": "fairseq.optim.lr_schedules",
    "fairseq.optim.lr_scheduler.inverse_square_root_schedule": "fairseq.optim.lr_schedules",
    "fairseq.optim.lr_scheduler.manual_lr_scheduler": "fairseq.optim.lr_driven",
    "fairseq.optim.lr_scheduler.pass_through": "fairseq.optim.lr_driven",
    "fairseq.optim.lr_scheduler.polynomial_decay_schedule": "fairseq.optim.lr_schedules",
    "fairseq.optim.lr_scheduler.reduce_lr_on_plateau": "fairseq.optim.lr_driven",
    "fairseq.optim.lr_scheduler.step_lr_scheduler": "fairseq.optim.lr_schedules",
    "fairseq.optim.lr_scheduler.tri_stage_lr_scheduler": "fairseq.optim.lr_schedules",
    "fairseq.optim.lr_scheduler.triangular_lr_scheduler": "fairseq.optim.lr_schedules",
    "fairseq.optim.nag": "fairseq.optim.optimizers",
    "fairseq.optim.sgd": "fairseq.optim.optimizers",
    "fairseq.options": "fairseq.config.options",
    "fairseq.progress_bar": "fairseq.logging.progress_bar",
    "fairseq.registry": "fairseq.config.registry",
    "fairseq.scoring": "fairseq.plugin_names.scoring",
    "fairseq.search": "fairseq.decoding.search",
    "fairseq.sequence_generator": "fairseq.decoding.beams",
    "fairseq.sequence_scorer": "fairseq.decoding.scorer",
    "fairseq.tasks.fairseq_task": "fairseq.tasks.base",
    "fairseq.tokenizer": "fairseq.files.text_blocks",
    "fairseq.trainer": "fairseq.training.trainer",
}

# module -> {name that was there: module that has it now}; looked up when somebody asks for it.
# This table and the row in catalog.HOOKS are the only places that reach up.
_CHECKPOINT_PARTS = """
    get_maybe_sharded_checkpoint_filename load_ema_from_checkpoint
    load_pretrained_component_from_model save_ema_as_checkpoint torch_persistent_save
""".split()
_LAYERS = """
    TransformerDecoderLayer TransformerDecoderLayerBase TransformerEncoderLayer
    TransformerEncoderLayerBase
""".split()
_MODULES = """
    CharacterTokenEmbedder FairseqDropout Fp32GroupNorm Fp32LayerNorm GradMultiply
    LayerDropModuleList SamePad TransposeLast cross_entropy
""".split()
_SEQUENCES = ("compute_mask_indices", "lengths_to_mask", "lengths_to_padding_mask")
_MODELS = """
    CompositeEncoder DistributedFairseqModel FairseqIncrementalDecoder FairseqModel
    FairseqMultiModel
""".split()
_READERS = ("csv_str_list", "eval_bool", "eval_str_dict", "eval_str_list")
_UTILS = """
    buffered_arange convert_padding_direction deprecation_warning fill_with_neg_inf
    get_incremental_state index_put move_to_cpu move_to_cuda new_arange reset_logging safe_getattr
    multi_tensor_total_norm safe_hasattr set_incremental_state
""".split()
NAMES = {
    "fairseq.checkpoint": {
        **dict.fromkeys(_CHECKPOINT_PARTS, "fairseq.plugin_names.checkpoints"),
        "load_checkpoint": "fairseq.training.restore",
        "load_model_ensemble": "fairseq.hub.load",
        "load_model_ensemble_and_task": "fairseq.hub.load",
        "prune_state_dict": "fairseq.models.base",
    },
    "fairseq.config.registry": {"set_defaults": "fairseq.plugin_names.utils"},
    "fairseq.config.options": dict.fromkeys(_READERS, "fairseq.plugin_names.utils"),
    "fairseq.data.batches.epochs": {
        "StreamingEpochBatchIterator": "fairseq.plugin_names.streaming_iterator"
    },
    "fairseq.data.collate": {
        **dict.fromkeys(_SEQUENCES, "fairseq.plugin_names.sequences"),
        "filter_by_size": "fairseq.plugin_names.datasets",
        "filter_paired_dataset_indices_by_size": "fairseq.plugin_names.datasets",
        "load_indexed_dataset": "fairseq.data.storage.load",
        "post_process": "fairseq.data.storage.dictionary",
        "raise_if_valid_subsets_unintentionally_ignored": "fairseq.data.storage.load",
    },
    "fairseq.models": dict.fromkeys(_MODELS, "fairseq.plugin_names.models"),
    "fairseq.models.base": dict.fromkeys(
        ("FairseqModel", "FairseqMultiModel"), "fairseq.plugin_names.models"
    ),
    "fairseq.models.ema": {"build_ema": "fairseq.plugin_names.models"},
    "fairseq.modules.pointwise": {"Fp32LayerNorm": "fairseq.plugin_names.modules"},
    "fairseq.models.roberta": dict.fromkeys(
        ("CamembertModel", "GottbertModel", "XLMRModel"), "fairseq.plugin_names.roberta"
    ),
    "fairseq.modules": {
        **dict.fromkeys(_MODULES, "fairseq.plugin_names.modules"),
        **dict.fromkeys(
            (*_LAYERS, "TransformerSentenceEncoderLayer"), "fairseq.plugin_names.transformer.layers"
        ),
        "MultiheadAttention": "fairseq.plugin_names.attention",
        "TransformerSentenceEncoder": "fairseq.plugin_names.sentence_encoder",
    },
    "fairseq.modules.transformer_encoder": {
        "TransformerSentenceEncoder": "fairseq.plugin_names.sentence_encoder"
    },
    "fairseq.modules.transformer_layer": dict.fromkeys(
        _LAYERS, "fairseq.plugin_names.transformer.layers"
    ),
    "fairseq.utils": {
        **dict.fromkeys((*_READERS, *_UTILS), "fairseq.plugin_names.utils"),
        "get_activation_fn": "fairseq.modules.pointwise",
        "get_available_activation_fns": "fairseq.modules.pointwise",
    },
}


class _OldPaths:
    """Finds and loads the modules of :data:`MODULES`.

    The interpreter asks for methods, not for base classes: importing those of ``importlib.abc``
    would slow every start down.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, cast("Loader", self)) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that moved, whose own spec is kept aside: it is overwritten next."""
        module = importlib.import_module(MODULES[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back instead of running it twice."""
        if module.__spec__ is not None and module.__spec__.loader_state is not None:
            module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the code that ``python -m OLD.PATH`` runs."""
        from importlib.util import find_spec

        spec = find_spec(MODULES[fullname])
        return None if spec is None else spec.loader.get_code(spec.name)  # type: ignore[union-attr]


def install() -> None:
    """Put the finder first in line, once."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldPaths())

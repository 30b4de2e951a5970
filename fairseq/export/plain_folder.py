"""A folder of Hugging Face reduced to what may be believed: numbers and names, no code.

``config.json`` and ``tokenizer_config.json`` may name code that transformers fetches or imports
(``auto_map``, ``_attn_implementation``, ``quantization_config``, an adapter beside the weights).
What a model is compared with is therefore loaded from a copy that holds only what is listed here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fairseq.errors import CheckpointError

logger = logging.getLogger(__name__)

_MODEL_KEYS = frozenset(
    """_remove_final_layer_norm activation activation_function add_cross_attention architectures
    attention_bias attention_dropout attention_probs_dropout_prob attn_pdrop bos_token_id
    classifier_dropout cls_token_id dim do_layer_norm_before dropout embd_pdrop enable_bias
    eos_token_id ffn_dim hidden_act hidden_dim hidden_dropout hidden_dropout_prob hidden_size
    id2label initializer_range intermediate_size is_decoder label2id
    layer_norm_elementwise_affine layer_norm_eps layer_norm_epsilon layerdrop mask_token_id
    max_position_embeddings model_type n_ctx n_embd n_head n_heads n_inner n_layer n_layers
    n_positions num_attention_heads num_hidden_layers num_labels pad_token_id
    partial_rotary_factor position_embedding_type problem_type qa_dropout
    reorder_and_upcast_attn resid_pdrop rope_parameters rope_scaling rope_theta rotary_emb_base
    rotary_pct scale_attn_by_inverse_layer_idx scale_attn_weights sep_token_id
    seq_classif_dropout sinusoidal_pos_embds tie_weights_ tie_word_embeddings
    transformers_version type_vocab_size unk_token_id use_cache use_parallel_residual vocab_size
    word_embed_proj_dim""".split()
)
_TOKENIZER_KEYS = frozenset(
    """add_bos_token add_eos_token add_prefix_space added_tokens_decoder bos_token
    clean_up_tokenization_spaces cls_token do_basic_tokenize do_lower_case eos_token errors
    mask_token model_max_length never_split pad_token sep_token strip_accents
    tokenize_chinese_chars tokenizer_class trim_offsets unk_token""".split()
)
_TOKENIZER_CLASS = re.compile(
    r"(Bert|Camembert|DistilBert|GPT2|GPTNeoX|Roberta|XLMRoberta|PreTrained)Tokenizer(Fast)?|TokenizersBackend"
)
_NAMES_OF_CODE = re.compile(r"auto_map|_implementation|quantization|custom|adapter|kernel")
_FILES = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|merges\.txt|"
    r"sentencepiece\.bpe\.model|"
    r"(tokenizer|vocab|special_tokens_map|added_tokens)\.(json|txt)"
)


@contextlib.contextmanager
def plain_folder(source: Path) -> Iterator[Path]:
    """Yield a copy of a model folder without anything that names code; links stand for weights.

    Raises:
        CheckpointError: if a configuration is no JSON object.
    """
    with tempfile.TemporaryDirectory(prefix="fairseq-import-") as name:
        folder = Path(name)
        _write(source / "config.json", folder, _MODEL_KEYS)
        if (source / "tokenizer_config.json").is_file():
            _write(source / "tokenizer_config.json", folder, _TOKENIZER_KEYS)
        for path in sorted(source.iterdir()):
            if _FILES.fullmatch(path.name) and path.is_file():
                try:
                    os.symlink(path.resolve(), folder / path.name)
                except OSError:  # a file system without links
                    shutil.copy(path, folder / path.name)
        yield folder


def _write(path: Path, folder: Path, known: Collection[str]) -> None:
    content = read_json(path)
    ignored = sorted(key for key in content if key not in known and _NAMES_OF_CODE.search(key))
    if ignored:
        logger.warning("%s: %s may name code and is not read", path, ", ".join(ignored))
    kept = {key: value for key, value in content.items() if key in known}
    if not _TOKENIZER_CLASS.fullmatch(str(kept.get("tokenizer_class", ""))):
        kept.pop("tokenizer_class", None)
    (folder / path.name).write_text(json.dumps(kept), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content

"""Causal language models to Hugging Face's GPT-2 and GPT-NeoX, compared before they get a name.

What has no place there is folded into weights where that is exact, and refused where it is not:

- token embeddings times sqrt(C), and CLAP's rows of unit length, go into the embedding table;
- where the output layer is that table, what it must not see of this (and CLAP's beta) goes into the
  last layer norm, whose output feeds nothing else: hidden states are then larger by one factor;
- positions that are sinusoidal, or that do not start at row 0, go into a table that does.

Shapes: B rows, T tokens, V vocabulary, C channels, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import CheckpointError, UnsupportedError
from fairseq.export import decoder_tokenizer
from fairseq.export.decoder_names import (
    BIAS,
    CAUSAL,
    NORM,
    OUTPUT,
    POSITIONS,
    TABLE,
    State,
    to_theirs,
)
from fairseq.export.encoder_tokenizer import missing_pieces
from fairseq.models.transformer_lm.config import TransformerLanguageModelConfig

RANDOM_LENGTHS = (1, 2, 7, 31, 64)
BETA = "decoder.output_projection.beta"
_ACTS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "tanh": "tanh",
    "linear": "linear",
    "swish": "silu",
}


# -- which family --------------------------------------------------------------------------------


def family_of(model: Any) -> str:
    """Return the family of Hugging Face that computes the same as a ``transformer_lm``.

    Raises:
        UnsupportedError: naming everything that none of them has.
    """
    config: TransformerLanguageModelConfig = model.config
    decoder, kind = model.decoder, config.position_kind()
    obstacles = {
        "layer norms after the blocks (--decoder-normalize-before is off)": (
            not config.decoder_normalize_before
        ),
        "no layer norm after the last layer": decoder.layer_norm is None,
        "a layer norm on the embeddings": config.layernorm_embedding,
        "adaptive input": config.adaptive_input,
        "an adaptive softmax": config.adaptive_softmax_cutoff is not None,
        "embeddings and hidden states of different widths": not (
            config.decoder_input_dim == config.decoder_embed_dim == config.decoder_output_dim
        ),
        "ALiBi": kind == "alibi",
        "--clap-normalize-hidden": config.head == "clap" and config.clap_normalize_hidden,
        "a bias in the vocabulary head": _has_bias(model),
        "fewer outputs than embeddings": _fewer_outputs(model),
        "--parallel-residual without rotary positions": (
            config.parallel_residual and kind != "rotary"
        ),
        **{
            f"--{name.replace('_', '-')}": getattr(config, name)
            for name in ("scale_attn", "scale_fc", "scale_heads", "scale_resids")
        },
    }
    if found := [name for name, there in obstacles.items() if there]:
        raise UnsupportedError(
            f"neither GPT-2 nor GPT-NeoX of Hugging Face has: {'; '.join(found)}"
        )
    return "gpt_neox" if kind == "rotary" else "gpt2"


def _has_bias(model: Any) -> bool:
    bias_V = getattr(model.decoder.output_projection, "bias", None)
    return bias_V is not None and bool(bias_V.ne(0).any())


def _fewer_outputs(model: Any) -> bool:
    decoder = model.decoder
    head = decoder.output_projection
    table = getattr(decoder.embed_tokens, "weight", None)
    return head is not None and table is not None and len(head.weight) != len(table)


# -- weights -------------------------------------------------------------------------------------


def plain_state(model: Any) -> State:
    """Return the weights of an equal model whose embeddings go in and out as they are."""
    config, decoder = model.config, model.decoder
    state = {key: value.detach().float() for key, value in model.state_dict().items()}
    state.pop("decoder.version")
    state.pop(BIAS, None)  # zero, or the export was refused
    table_VC = state[TABLE]
    if config.head == "clap" and config.clap_normalize:
        table_VC = F.normalize(table_VC, dim=-1)
    state[TABLE] = table_VC * decoder.embed_scale
    if _is_tied(config):
        factor = state.pop(BETA, torch.ones(())) / decoder.embed_scale
        for name in (f"{NORM}.weight", f"{NORM}.bias"):
            state[name] = state[name] * factor
        state[OUTPUT] = state[TABLE]
    if config.position_kind() != "rotary":
        state[POSITIONS] = _positions(config, decoder)
    return state


def _is_tied(config: TransformerLanguageModelConfig) -> bool:
    tied = config.head == "vocabulary" and config.share_decoder_input_output_embed
    return tied or config.head == "clap"


def _positions(config: TransformerLanguageModelConfig, decoder: Any) -> Tensor:
    """Return the vectors of the positions from the first one on, (P, C)."""
    length, table = decoder.max_positions(), decoder.embed_positions
    if table is None:
        return torch.zeros(length, config.decoder_embed_dim)
    first = decoder.pad + 1 if config.position_offset is None else config.position_offset
    rows_PC = table.weight.detach().float() if hasattr(table, "weight") else table.table
    return rows_PC[first : first + length].clone()


def _their_rows(state: State, kept: int, extra: int, unknown: int) -> State:
    """Drop the rows that an import added; add copies of the row of the unknown."""
    changed = dict(state)
    for name in (TABLE, OUTPUT):
        if name in state:
            copies = state[name][unknown].expand(extra, -1)
            changed[name] = torch.cat([state[name][:kept], copies])
    return changed


def their_config(transformers: Any, model: Any, family: str, rows: int, positions: int) -> Any:
    """Return the settings of their class."""
    config, dictionary = model.config, model.decoder.dictionary
    kept = decoder_tokenizer.rows_kept(dictionary)
    ids = {f"{role}_token_id": getattr(dictionary, role)() for role in ("bos", "eos", "pad")}
    common = {
        "vocab_size": rows,
        "tie_word_embeddings": _is_tied(config),
        **{name: index if index < kept else None for name, index in ids.items()},
    }
    if family == "gpt2":
        return transformers.GPT2Config(
            n_positions=positions,
            n_embd=config.decoder_embed_dim,
            n_layer=config.layers(),
            n_head=config.decoder_attention_heads,
            n_inner=config.decoder_ffn_embed_dim,
            activation_function=_ACTS[config.activation_fn],
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.attention_dropout,
            layer_norm_epsilon=config.layer_norm_eps,
            **common,
        )
    return transformers.GPTNeoXConfig(
        max_position_embeddings=positions,
        hidden_size=config.decoder_embed_dim,
        num_hidden_layers=config.layers(),
        num_attention_heads=config.decoder_attention_heads,
        intermediate_size=config.decoder_ffn_embed_dim,
        hidden_act=_ACTS[config.activation_fn],
        hidden_dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        layer_norm_eps=config.layer_norm_eps,
        use_parallel_residual=config.parallel_residual,
        rotary_pct=config.rotary_fraction,
        rotary_emb_base=10000,
        **common,
    )


def build_theirs(transformers: Any, model: Any, extra: int) -> Any:
    """Return a model as their class, with ``extra`` more rows that read as unknown.

    Raises:
        CheckpointError: if the weights do not fit it.
        UnsupportedError: if no class of theirs computes the same.
    """
    name = family_of(model)
    family, config, dictionary = CAUSAL[name], model.config, model.decoder.dictionary
    kept = decoder_tokenizer.rows_kept(dictionary)
    state = _their_rows(plain_state(model), kept, extra, dictionary.unk())
    positions = len(state[POSITIONS]) if POSITIONS in state else config.max_target_positions
    shape = their_config(transformers, model, name, kept + extra, positions)
    renamed = to_theirs(state, family, config.layers(), config.decoder_attention_heads)
    headless = model.decoder.output_projection is None
    if headless:
        renamed = {key.removeprefix(family.body): value for key, value in renamed.items()}
    theirs = getattr(transformers, family.classes[headless])(shape)
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{type(theirs).__name__} and the checkpoint differ: {[*missing, *unexpected][:5]}"
        )
    return theirs.eval()


# -- comparison ----------------------------------------------------------------------------------


def first_symbol(hub: Any) -> str | None:
    """Return the symbol that texts begin with; None for models that were imported."""
    dictionary = hub.task.source_dictionary
    if not dictionary.nspecial:
        return None
    begins = getattr(hub.task.cfg, "add_bos_token", False)
    return str(dictionary.bos_word if begins else dictionary.eos_word)


def our_tokens(hub: Any, sentences: Sequence[str]) -> list[Tensor]:
    """Return the tokens of sentences, int64 (T,) each, cut to what the model takes."""
    dictionary, first = hub.task.source_dictionary, first_symbol(hub)
    limit = min(int(hub.model.max_positions()), 512)
    front = [] if first is None else [dictionary.index(first)]
    return [
        torch.tensor([*front, *(dictionary.index(p) for p in hub._split(text).split())])[:limit]
        for text in sentences
    ]


def random_tokens(dictionary: Any, limit: int) -> list[Tensor]:
    """Return random tokens, int64 (T,) each, of several lengths; the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    known = torch.tensor(
        [i for i in range(decoder_tokenizer.rows_kept(dictionary)) if i != dictionary.pad()]
    )
    return [
        known[torch.randint(len(known), (min(length, limit),), generator=generator)]
        for length in RANDOM_LENGTHS
    ]


@torch.inference_mode()
def compare(
    hub: Any, theirs: Any, tokens: Sequence[Tensor], mapped: Sequence[Tensor]
) -> tuple[float, float]:
    """Return the greatest difference of logits, or of features where there is no head.

    Args:
        hub: our model.
        theirs: their model.
        tokens: token rows in our ids.
        mapped: the same in theirs.

    Returns:
        the difference, and the greatest absolute logit, with which rounding errors grow.
    """
    headless = hub.model.decoder.output_projection is None
    kept = decoder_tokenizer.rows_kept(hub.task.source_dictionary)
    worst = greatest = 0.0
    for ours_T, theirs_T in zip(tokens, mapped, strict=True):
        if not len(ours_T):
            continue
        expected = hub.model(ours_T[None], features_only=headless)[0]
        output = theirs(theirs_T[None])
        found = output.last_hidden_state if headless else output.logits
        if not headless:
            expected = expected[..., :kept]
            found = found[..., :kept]
        worst = max(worst, float((found - expected).abs().max()))
        greatest = max(greatest, float(expected.abs().max()))
    return worst, greatest


# -- export --------------------------------------------------------------------------------------


def write(transformers: Any, hub: Any, folder: Path, sentences: Sequence[str]) -> dict[str, Any]:
    """Write a causal language model into a folder and compare what was written.

    Args:
        transformers: the package.
        hub: our model with its task and encoder.
        folder: an empty folder.
        sentences: on which both models are compared, beside random tokens.

    Returns:
        ``{"class", "tokenizer", "extra_rows", "sentences", "greatest_logit",
        "max_abs_difference"}``; without text encoder there is no tokenizer, and random tokens
        alone are compared.

    Raises:
        CheckpointError: if the exported model or tokenizer differs.
        UnsupportedError: if no class of theirs computes the same.
    """
    dictionary = hub.task.source_dictionary
    kept = decoder_tokenizer.rows_kept(dictionary)
    extra = len(missing_pieces(hub.bpe, dictionary))
    built = build_theirs(transformers, hub.model, extra)
    built.save_pretrained(str(folder))
    loaded = type(built).from_pretrained(str(folder)).eval()
    longest = int(hub.model.max_positions())
    tokens = mapped = random_tokens(dictionary, min(longest, max(RANDOM_LENGTHS)))
    splits = hub.bpe is not None or dictionary.unk() < kept
    if splits:
        first = first_symbol(hub)
        decoder_tokenizer.save_tokenizer(folder, hub.bpe, dictionary, first, longest)
        rows = our_tokens(hub, sentences)
        tokens = [*tokens, *rows]
        mapped = [*mapped, *_their_tokens(transformers, folder, sentences, rows, dictionary)]
    worst, greatest = compare(hub, loaded, tokens, mapped)
    return {
        "class": type(loaded).__name__,
        "tokenizer": splits,
        "extra_rows": extra,
        "sentences": len(sentences) if splits else 0,
        "greatest_logit": greatest,
        "max_abs_difference": worst,
    }


def _their_tokens(
    transformers: Any,
    folder: Path,
    sentences: Sequence[str],
    tokens: Sequence[Tensor],
    dictionary: Any,
) -> list[Tensor]:
    """Return the tokens that the written tokenizer makes of sentences, int64 (T,) each.

    Raises:
        CheckpointError: if they are not ours, where ours are not unknown.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    kept = decoder_tokenizer.rows_kept(dictionary)
    mapped = []
    for text, ours_T in zip(sentences, tokens, strict=True):
        ids = tokenizer(text)["input_ids"][: len(ours_T)]
        theirs_T = torch.tensor(ids, dtype=torch.int64)
        if not torch.equal(theirs_T.masked_fill(theirs_T >= kept, dictionary.unk()), ours_T):
            raise CheckpointError(
                f"the exported tokenizer splits {text!r} into {ids}, the checkpoint's into "
                f"{ours_T.tolist()}; nothing was written"
            )
        mapped.append(theirs_T)
    return mapped

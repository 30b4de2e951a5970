"""Causal language models to Hugging Face: GPT-2, GPT-NeoX and OPT, compared before they get a name.

What has no place there is folded into weights where that is exact:

- token embeddings times sqrt(C), and CLAP's rows of unit length, go into the embedding table;
- where the output layer is that table, what it must not see of this (and CLAP's beta) goes into the
  last layer norm, whose output feeds nothing else: hidden states are then larger by one factor;
- positions that are sinusoidal, or that do not start at row 0, go into a table that does;
- pieces of text that the dictionary lacks get rows of their own, equal to that of the unknown where
  they are read; their logits, and a bias of the head, are a matter of the last layer norm and an
  output table of its own (:mod:`fairseq.export.norm_bias`).

What does not fit goes out as the class whose file travels with it.

Shapes: B rows, T tokens, V vocabulary, C channels, P positions.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import UnsupportedError
from fairseq.export import decoder_tokenizer, norm_bias, travelling
from fairseq.export.compare import (
    ODD_TEXTS,
    PROMPTS,
    Agreement,
    check_continuations,
    nats,
    perplexities,
    same_tokens,
)
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
from fairseq.export.encoder_names import THEIR_ACTS
from fairseq.export.encoder_tokenizer import missing_pieces
from fairseq.export.loaded import Loaded, TheirModel
from fairseq.export.model_files import filled
from fairseq.models.transformer_lm.config import TransformerLanguageModelConfig
from fairseq.models.transformer_lm.decoder import TransformerDecoder
from fairseq.models.transformer_lm.model import TransformerLanguageModel

RANDOM_LENGTHS = (1, 2, 7, 31, 64)
BETA = "decoder.output_projection.beta"
# What a piece outside the dictionary scores below the unknown symbol, in nats: together they take
# less than 1e-8 of its probability, and as labels they cost no more than this above it.
BELOW_UNKNOWN = -30.0
_ACTS = {**THEIR_ACTS, "tanh": "tanh", "linear": "linear", "swish": "silu"}


# -- which family --------------------------------------------------------------------------------


def refused(model: TransformerLanguageModel) -> list[str]:
    """Return what of a ``transformer_lm`` no class can compute that an export may use."""
    config: TransformerLanguageModelConfig = model.config
    obstacles = {
        "adaptive input": config.adaptive_input,
        "an adaptive softmax": config.adaptive_softmax_cutoff is not None,
        "embeddings and hidden states of different widths": not (
            config.decoder_input_dim == config.decoder_embed_dim == config.decoder_output_dim
        ),
        "fewer outputs than embeddings": _fewer_outputs(model),
        **{
            f"--{name.replace('_', '-')}": getattr(config, name)
            for name in ("scale_attn", "scale_fc", "scale_heads", "scale_resids")
        },
    }
    return [name for name, there in obstacles.items() if there]


def family_of(model: TransformerLanguageModel) -> str | None:
    """Return the family of Hugging Face that computes the same as a ``transformer_lm``.

    None if only the class that travels with the model does.

    Raises:
        UnsupportedError: naming everything that this one lacks, too.
    """
    config: TransformerLanguageModelConfig = model.config
    if obstacles := refused(model):
        raise UnsupportedError(f"no class for Hugging Face has: {'; '.join(obstacles)}")
    decoder, kind = model.decoder, config.position_kind()
    if (
        not config.decoder_normalize_before
        or decoder.layer_norm is None
        or config.layernorm_embedding
        or kind == "alibi"
        or (config.head == "clap" and config.clap_normalize_hidden)
        or (config.parallel_residual and kind != "rotary")
        or not norm_bias.can_carry(model.state_dict()[f"{NORM}.weight"])
    ):
        return None
    if kind == "rotary":
        return "gpt_neox"
    first = decoder.pad + 1 if config.position_offset is None else config.position_offset
    is_opt = kind == "learned" and first == 2 and config.activation_fn == "relu"
    return "opt" if is_opt and decoder.pad == 1 else "gpt2"


def _fewer_outputs(model: TransformerLanguageModel) -> bool:
    decoder = model.decoder
    head = decoder.output_projection
    table = getattr(decoder.embed_tokens, "weight", None)
    return head is not None and table is not None and len(head.weight) != len(table)


# -- weights -------------------------------------------------------------------------------------


def plain_state(model: TransformerLanguageModel) -> State:
    """Return the weights of an equal model whose embeddings go in and out as they are."""
    config, decoder = model.config, model.decoder
    state = {key: value.detach().float() for key, value in model.state_dict().items()}
    state.pop("decoder.version")
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


def _positions(config: TransformerLanguageModelConfig, decoder: TransformerDecoder) -> Tensor:
    """Return the vectors of the positions from the first one on, (P, C)."""
    length, table = decoder.max_positions(), decoder.embed_positions
    if table is None:
        return torch.zeros(length, config.decoder_embed_dim)
    first = decoder.pad + 1 if config.position_offset is None else config.position_offset
    rows_PC = table.weight.detach().float() if isinstance(table, nn.Embedding) else table.table
    return rows_PC[first : first + length].clone()


def _their_rows(state: State, kept: int, extra: int, unknown: int) -> bool:
    """Drop the rows that an import added; add rows that read as unknown, in place.

    Returns:
        whether the output layer is still the embedding table, if it was.
    """
    bias_V = state.pop(BIAS, None)
    for name in (TABLE, OUTPUT):
        if name in state:
            copies = state[name][unknown].expand(extra, -1)
            state[name] = torch.cat([state[name][:kept], copies])
    if OUTPUT not in state:
        return True
    bias_V = torch.zeros(max(kept, unknown + 1)) if bias_V is None else bias_V
    bias_V = torch.cat([bias_V[:kept], (bias_V[unknown] + BELOW_UNKNOWN).expand(extra)])
    if not bool(bias_V.any()):
        return True
    gain_C, shift_C = state[f"{NORM}.weight"], state[f"{NORM}.bias"]
    state[OUTPUT], state[f"{NORM}.bias"] = norm_bias.carry(state[OUTPUT], gain_C, shift_C, bias_V)
    return False


def their_config(
    transformers: ModuleType,
    hub: Loaded[TransformerLanguageModel],
    family: str,
    rows: int,
    positions: int,
    tied: bool,
) -> Any:
    """Return the settings of their class."""
    model = hub.model
    config, dictionary = model.config, model.decoder.dictionary
    kept = decoder_tokenizer.rows_kept(dictionary)
    ids = {f"{role}_token_id": getattr(dictionary, role)() for role in ("bos", "eos", "pad")}
    if (first := first_symbol(hub)) is not None:
        ids["bos_token_id"] = dictionary.index(first)
    common = {
        "vocab_size": rows,
        "tie_word_embeddings": tied and _is_tied(config),
        **{name: index if index < kept else None for name, index in ids.items()},
    }
    names = CAUSAL[family].settings
    values = {
        "length": positions,
        "width": config.decoder_embed_dim,
        "layers": config.layers(),
        "heads": config.decoder_attention_heads,
        "inner": config.decoder_ffn_embed_dim,
        "act": _ACTS[config.activation_fn],
        "dropout": config.dropout,
        "attention": config.attention_dropout,
    }
    settings = {names[name]: value for name, value in values.items()}
    if family == "gpt2":
        more = {"embd_pdrop": config.dropout, "layer_norm_epsilon": config.layer_norm_eps}
    elif family == "opt":
        more = {"word_embed_proj_dim": config.decoder_embed_dim, "layerdrop": 0.0}
    else:
        more = {
            "layer_norm_eps": config.layer_norm_eps,
            "use_parallel_residual": config.parallel_residual,
            "rotary_pct": config.rotary_fraction,
            "rotary_emb_base": 10000,
        }
    return getattr(transformers, CAUSAL[family].config)(**settings, **more, **common)


def build_theirs(
    transformers: ModuleType, hub: Loaded[TransformerLanguageModel], extra: int
) -> Any:
    """Return a model as their class, or as the travelling one.

    Args:
        transformers: the package.
        hub: our model with its task.
        extra: how many pieces of text the dictionary lacks; they read as unknown.

    Raises:
        CheckpointError: if the weights do not fit it.
        UnsupportedError: if no class computes the same.
    """
    model, name = hub.model, family_of(hub.model)
    dictionary = model.decoder.dictionary
    headless = model.decoder.output_projection is None
    if name is None:
        first = first_symbol(hub)
        begin = None if first is None else dictionary.index(first)
        settings = travelling.decoder_settings(hub, len(dictionary) + extra, begin)
        kind = "Model" if headless else "ForCausalLM"
        return travelling.build(model.state_dict(), settings, kind)
    family, config = CAUSAL[name], model.config
    kept = decoder_tokenizer.rows_kept(dictionary)
    state = plain_state(model)
    tied = _their_rows(state, kept, extra, dictionary.unk())
    positions = len(state[POSITIONS]) if POSITIONS in state else config.max_target_positions
    if family.first_position:  # rows of padding, which nothing reads
        front_PC = model.state_dict()[POSITIONS][: family.first_position].float()
        state[POSITIONS] = torch.cat([front_PC, state[POSITIONS]])
    shape = their_config(transformers, hub, name, kept + extra, positions, tied)
    renamed = to_theirs(state, family, config.layers(), config.decoder_attention_heads)
    if headless:
        body = family.body.split(".")[0] + "."  # what the class with a head calls the body
        renamed = {key.removeprefix(body): value for key, value in renamed.items()}
    return filled(getattr(transformers, family.classes[headless])(shape), renamed)


# -- comparison ----------------------------------------------------------------------------------


def first_symbol(hub: Loaded[TransformerLanguageModel]) -> str | None:
    """Return the symbol that texts begin with; None for models that were imported."""
    dictionary = hub.task.source_dictionary
    if not dictionary.nspecial:
        return None
    return str(dictionary[hub.task.first_token()])


def our_tokens(hub: Loaded[TransformerLanguageModel], sentences: Sequence[str]) -> list[Tensor]:
    """Return the tokens of sentences, int64 (T,) each, cut to what the model takes."""
    dictionary, first = hub.task.source_dictionary, first_symbol(hub)
    limit = min(int(hub.model.max_positions()), 512)
    front = [] if first is None else [dictionary.index(first)]
    return [
        torch.tensor([*front, *(dictionary.index(p) for p in hub._split(text).split())])[:limit]
        for text in sentences
    ]


def random_tokens(dictionary: Dictionary, limit: int) -> list[Tensor]:
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
    hub: Loaded[TransformerLanguageModel],
    their_model: TheirModel,
    tokens: Sequence[Tensor],
    mapped: Sequence[Tensor],
) -> Agreement:
    """Return how far two models are apart; perplexities are those of all tokens but the first.

    Args:
        hub: our model.
        their_model: their model.
        tokens: token rows in our ids.
        mapped: the same in theirs.

    Raises:
        CheckpointError: if they differ, in what they say or in how they go on.
    """
    headless = hub.model.decoder.output_projection is None
    dictionary = hub.task.source_dictionary
    kept = decoder_tokenizer.rows_kept(dictionary)
    agreement, lost = Agreement(), []
    for ours_T, theirs_T in zip(tokens, mapped, strict=True):
        if not len(ours_T):
            continue
        expected_TV = hub.model(ours_T[None], features_only=headless)[0][0]
        output = their_model(theirs_T[None])
        theirs_TV = (output.last_hidden_state if headless else output.logits)[0]
        if not headless:
            expected_TV = expected_TV[..., :kept]
            right_T = ours_T[1:].clamp(max=kept - 1)
            lost.append(
                (
                    nats(expected_TV[:-1], right_T),
                    nats(theirs_TV[:-1], right_T),
                )
            )
        agreement.add(expected_TV, theirs_TV, headless)
    agreement.perplexities = perplexities(lost)
    agreement.check()
    if not headless:
        prompts = [row[:5] for row in tokens if len(row) > 5][:PROMPTS]
        check_continuations(
            lambda x_1T: hub.model(x_1T)[0][..., :kept],
            lambda x_1T: their_model(x_1T).logits,
            prompts,
            dictionary.pad(),
        )
    return agreement


# -- export --------------------------------------------------------------------------------------


def write(
    transformers: ModuleType,
    hub: Loaded[TransformerLanguageModel],
    folder: Path,
    sentences: Sequence[str],
) -> dict[str, Any]:
    """Write a causal language model into a folder and compare what was written.

    Args:
        hub: our model with its task and encoder.
        sentences: on which both models are compared, beside odd texts and random tokens.

    Returns:
        ``{"class", "remote_code", "tokenizer", "extra_rows", "sentences", "max_abs_difference",
        ...}``; without text encoder there is no tokenizer, and random tokens alone are compared.

    Raises:
        CheckpointError: if the exported model or tokenizer differs.
        UnsupportedError: if no class computes the same.
    """
    dictionary = hub.task.source_dictionary
    kept = decoder_tokenizer.rows_kept(dictionary)
    extra = len(missing_pieces(hub.bpe, dictionary))
    built = build_theirs(transformers, hub, extra)
    built.save_pretrained(str(folder))
    remote = family_of(hub.model) is None
    if remote:
        shutil.copy(Path(__file__).with_name(f"{travelling.FILE}.py"), folder)
    loaded = type(built).from_pretrained(str(folder)).eval()
    longest = int(hub.model.max_positions())
    tokens = mapped = random_tokens(dictionary, min(longest, max(RANDOM_LENGTHS)))
    splits = hub.bpe is not None or dictionary.unk() < kept
    if splits:
        first = first_symbol(hub)
        after = len(dictionary) if remote else kept
        decoder_tokenizer.save_tokenizer(folder, hub.bpe, dictionary, first, longest, after)
        texts = [*sentences, *ODD_TEXTS]
        rows = our_tokens(hub, texts)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=remote
        )
        tokens = [*rows, *tokens]
        mapped = [*same_tokens(tokenizer, texts, rows, dictionary.unk(), after - 1), *mapped]
    agreement = compare(hub, loaded, tokens, mapped)
    return {
        "class": type(loaded).__name__,
        "remote_code": remote,
        "tokenizer": splits,
        "extra_rows": extra,
        "sentences": len(sentences) if splits else 0,
        **agreement.facts(),
    }

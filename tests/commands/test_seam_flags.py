"""New flags of training as they are typed: what they become, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from fairseq.config import options
from fairseq.errors import ConfigError

WORDS = "data-bin --arch roberta --task masked_lm --criterion masked_lm --optimizer adam".split()
TYPED: dict[str, tuple[str, str, Any]] = {
    "--save-at-updates 1000,2000": ("checkpoint", "save_at_updates", [1000, 2000]),
    "--save-at-tokens 1e6,3000000": ("checkpoint", "save_at_tokens", [1000000, 3000000]),
    "--max-tokens-total 1e9": ("optimization", "max_tokens_total", 10**9),
    "--peak-tflops 989.5": ("common", "peak_tflops", 989.5),
    "--freeze-embeddings": ("optimization", "freeze_embeddings", True),
    "--freeze-positions": ("optimization", "freeze_positions", True),
    "--freeze-layers 0-3": ("optimization", "freeze_layers", "0-3"),
    "--freeze-layers 2": ("optimization", "freeze_layers", "2"),
    "--document-mask": ("task", "document_mask", True),
    "--no-document-mask": ("task", "document_mask", False),
    "--static-masks 4": ("task", "static_masks", 4),
    "--mask-count 1": ("task", "mask_count", 1),
    "--probe-head linear": ("model", "probe_head", "linear"),
    "--pooling positions": ("model", "pooling", "positions"),
}
DEFAULTS = {"save_at_updates": [], "save_at_tokens": [], "max_tokens_total": 0, "mask_count": 0}
DEFAULTS |= {"static_masks": 0, "probe_head": "dense", "pooling": "cls"}


def parsed(words: list[str]) -> Any:
    return options.parse_config(options.get_training_parser(argv=words), words)


@pytest.mark.parametrize("typed", TYPED)
def test_typed_flags(typed: str) -> None:
    section, name, value = TYPED[typed]
    assert getattr(getattr(parsed([*WORDS, *typed.split()]), section), name) == value
    default = getattr(getattr(parsed(WORDS), section), name)
    assert default == DEFAULTS.get(name, False if isinstance(value, bool) else None)


@pytest.mark.parametrize(
    "typed",
    ["--save-at-updates 0", "--save-at-tokens 5,-1", "--max-tokens-total -1", "--peak-tflops 0"]
    + ["--static-masks -1", "--mask-count -1", "--probe-head deep", "--pooling max"],
)
def test_values_out_of_range_are_refused(typed: str) -> None:
    with pytest.raises((ConfigError, SystemExit)):
        parsed([*WORDS, *typed.split()])


def test_every_one_has_a_sentence_of_help() -> None:
    parser = options.get_training_parser(argv=WORDS)
    options.complete_parser(parser, WORDS)
    help_of = {flag: a.help for a in parser._actions for flag in a.option_strings}
    assert all(help_of[typed.split()[0]] for typed in TYPED if not typed.startswith("--no-"))

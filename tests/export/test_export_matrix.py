"""What is exported says the same in a process without fairseq, on sixty odd texts.

A few combinations of knobs run in every test run, all of them under ``-m matrix``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import test_export_causal
import torch
from test_export_tokenizers import LINES, checkpoint
from torch import Tensor

from fairseq.export import decoder_out
from fairseq.export.compare import ODD_TEXTS
from fairseq.export.encoder_out import load_ours, our_tokens, to_huggingface
from fairseq_cli import bpe

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")

Knobs = dict[str, Any]
TEXTS = [*ODD_TEXTS, *LINES[:4]]
IN_ONE_PROCESS = 40
ALONE = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fairseq", "fairseq_cli"):
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
import torch, transformers
texts, folders, out = json.load(open(sys.argv[1]))
found = []
for folder, auto, rows, limit in folders:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    told = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:limit]])
        with torch.inference_mode():
            output = model(ids)
        if auto == "AutoModel":
            told.append(output.last_hidden_state[0].clone())
        else:
            told.append(output.logits[0].log_softmax(-1)[:, :rows].clone())
    found.append(told)
torch.save(found, out)
print(sorted(name for name in sys.modules if name.split(".")[0] == "fairseq"))
"""


def encoders() -> Iterator[Knobs]:
    """Return the knobs of every encoder that can be trained."""
    switches = ("scale_embedding", "layernorm_embedding", "encoder_normalize_before")
    heads: list[Knobs] = [
        *({"head": "roberta", "untie_weights_roberta": untied} for untied in (False, True)),
        *(
            {"head": "clap", "clap_normalize": rows, "clap_normalize_hidden": hidden}
            for rows in (True, False)
            for hidden in (False, True)
        ),
        {"head": "none"},
    ]
    positions = ("learned", "sinusoidal", "alibi", "alibi-asymmetric", "none")
    acts = ("gelu", "relu", "gelu_accurate", "tanh", "swish", "linear")
    rest = itertools.product(
        heads, positions, ("learned", "zero"), (0, 2), *((False, True) for _ in switches)
    )
    for number, (head, position, mask, segments, *on) in enumerate(rest):
        yield {
            **head, "position": position, "mask_embedding": mask, "segments": segments,
            "activation_fn": acts[number % len(acts)], **dict(zip(switches, on, strict=True)),
        }  # fmt: skip


def decoders() -> Iterator[Knobs]:
    """Return the knobs of every decoder whose widths are one."""
    heads: list[Knobs] = [
        {}, {"share_decoder_input_output_embed": True},
        {"share_decoder_input_output_embed": True, "head_bias": True},
        {"head": "clap"}, {"head": "clap", "clap_normalize_hidden": True}, {"head": "none"},
    ]  # fmt: skip
    positions = ("learned", "sinusoidal", "alibi", "rotary", "none")
    acts = ("relu", "gelu", "gelu_accurate", "swish", "tanh")
    places = itertools.product(heads, positions, (False, True), (False, True), (False, True))
    for number, (head, position, before, normed, beside) in enumerate(places):
        if before or not beside:
            yield {
                **head, "position": position, "decoder_normalize_before": before,
                "layernorm_embedding": normed, "parallel_residual": beside,
                "activation_fn": acts[number % len(acts)],
            }  # fmt: skip


ENCODERS, DECODERS = list(encoders()), list(decoders())
# every head, position and mask, encoders and decoders
FEW = [*ENCODERS[::67], *DECODERS[::17]]
ALL = [*ENCODERS, *DECODERS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer some of whose pieces are in no dictionary."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_text("\n".join([*LINES, "schöner Bär 我们 😀 " * 3]), encoding="utf-8")
    command = ["train", "--inputs", str(folder / "text"), "--vocab-size", "330"]
    assert bpe.main([*command, "--output", str(folder / "tokenizer.json")]) == 0
    return folder


def ours(hub: Any, auto: str, causal: bool) -> tuple[list[Tensor], int]:
    """Return what our model says of the texts, as the other process does, and its limit."""
    headless = auto == "AutoModel"
    tokens = decoder_out.our_tokens(hub, TEXTS) if causal else our_tokens(hub, TEXTS)
    told = []
    for row in tokens:
        with torch.inference_mode():
            x_TV = hub.model(row[None], features_only=headless)[0][0]
        told.append(x_TV if headless else x_TV.log_softmax(-1))
    return told, min(int(hub.model.max_positions()), 512)


def exported(
    knobs: Knobs, tokenizer: Path, folder: Path
) -> tuple[list[Any], list[Tensor], dict[str, Any]]:
    """Write and export a model; return what to ask of it, the answers, and the result."""
    folder.mkdir()
    causal = knobs in DECODERS
    (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    encoder = {"bpe": "byte_level", "byte_level_tokenizer": str(folder / "tokenizer.json")}
    source = checkpoint(folder, encoder, **({} if causal else knobs))
    if causal:
        source = test_export_causal.checkpoint_of(folder, folder / "lm.pt", **knobs)
    result = to_huggingface(source, folder / "out", folder, LINES[:2])
    headless = knobs.get("head") == "none"
    kind = "" if headless else "ForCausalLM" if causal else "ForMaskedLM"
    hub = load_ours(source, folder)
    answers, limit = ours(hub, f"AutoModel{kind}", causal)
    rows = len(hub.task.source_dictionary)
    return [str(folder / "out"), f"AutoModel{kind}", rows, limit], answers, result


def check_alone(chosen: Sequence[Knobs], tokenizer: Path, folder: Path) -> set[str]:
    """Export models and ask them in a process without fairseq; return their classes."""
    made = [exported(knobs, tokenizer, folder / str(n)) for n, knobs in enumerate(chosen)]
    asked, out = folder / "asked.json", folder / "found.pt"
    asked.write_text(json.dumps([TEXTS, [row for row, *_ in made], str(out)]))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(asked)], capture_output=True, text=True, timeout=900,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"
    for knobs, (_, answers, _), found in zip(
        chosen, made, torch.load(out, weights_only=True), strict=True
    ):
        for text, expected, given in zip(TEXTS, answers, found, strict=True):
            assert given.shape == expected.shape, (knobs, text)
            if expected.numel():
                size = max(1.0, float(expected.abs().max()))
                assert float((given - expected).abs().max()) <= 2e-5 * size, (knobs, text)
    return {result["class"] for *_, result in made}


def test_a_few_combinations_alone(tokenizer: Path, tmp_path: Path) -> None:
    classes = check_alone(FEW, tokenizer, tmp_path)
    assert {"FairseqRobertaForMaskedLM", "FairseqRobertaForCausalLM"} <= classes
    assert len(classes) >= 5


@pytest.mark.matrix
@pytest.mark.parametrize("first", range(0, len(ALL), IN_ONE_PROCESS))
def test_every_combination_alone(first: int, tokenizer: Path, tmp_path: Path) -> None:
    check_alone(ALL[first : first + IN_ONE_PROCESS], tokenizer, tmp_path)

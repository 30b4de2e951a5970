"""RoBERTa's knobs together: each pair of values trains, is saved and comes back, or is refused.

The full product runs under ``-m matrix``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq import tasks
from fairseq.checkpoint.layout import original_cfg
from fairseq.config.components import make_config
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.errors import ConfigError, UnsupportedError
from fairseq.hub.load import load_model_ensemble_and_task

Knobs = dict[str, Any]
VALUES: dict[str, tuple[Any, ...]] = {
    "head": ("roberta", "clap", "none"),
    "position": ("learned", "sinusoidal", "alibi", "alibi-asymmetric", "none"),
    "mask_embedding": ("learned", "zero"),
    "clap_normalize": (True, False),
    "clap_normalize_hidden": (False, True),
    "scale_embedding": (False, True),
    "layernorm_embedding": (True, False),
    "encoder_normalize_before": (False, True),
    "untie_weights_roberta": (False, True),
    "segments": (0, 2),
    "loss_backend": ("auto", "reference", "chunked"),
}
# Settings of the task and of how things are computed. They join the pairs, not the full product.
FURTHER: dict[str, tuple[Any, ...]] = {
    "attention_backend": ("auto", "sdpa", "explicit", "rows", "reference"),
    "unpadded": ("auto", "on", "off"),
    "embedding_multiplier": (None, 2.0),
    "checkpoint_activations": (False, True),
    "document_mask": (False, True),
    "mask_count": (0, 2),
    "static_masks": (0, 2),
}
# Knobs that must be refused together, as one of them would do nothing.
SENSELESS: tuple[Knobs, ...] = (
    {"head": "none"},  # the masked-LM loss has nothing to predict with
    {"head": "clap", "untie_weights_roberta": True},
    {"head": "roberta", "clap_normalize_hidden": True},
)
# Without the CLAP head this knob does nothing; whether that is refused is no matter here.
HARMLESS: Knobs = {"head": "roberta", "clap_normalize": False}


def holds(part: Knobs, knobs: Knobs) -> bool:
    return all(knobs[name] == value for name, value in part.items())


def all_pairs(knobs: Knobs) -> set[tuple[tuple[str, Any], ...]]:
    return set(itertools.combinations(sorted(knobs.items()), 2))


def products(**fixed: Any) -> Iterator[Knobs]:
    values = [(fixed[name],) if name in fixed else values for name, values in VALUES.items()]
    for combination in itertools.product(*values):
        yield dict(zip(VALUES, combination, strict=True))


def covering() -> list[Knobs]:
    """Return a few combinations in which every pair of values that makes sense occurs."""
    rng = np.random.default_rng(0)
    values = {**VALUES, **FURTHER}
    drawn = [{n: v[rng.integers(len(v))] for n, v in values.items()} for _ in range(2000)]
    sensible = [k for k in drawn if not any(holds(part, k) for part in SENSELESS)]
    pairs = [all_pairs(knobs) for knobs in sensible]
    wanted = set().union(*pairs)
    chosen: list[Knobs] = []
    while wanted:
        best = max(range(len(pairs)), key=lambda i: len(pairs[i] & wanted))
        chosen.append(sensible[best])
        wanted -= pairs[best]
    return chosen


COVERING = covering()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    dictionary = Dictionary()
    for word in range(12):
        dictionary.add_symbol(f"w{word}", n=9)
    dictionary.save(str(folder / "dict.txt"))
    rng = np.random.default_rng(0)
    builder = MMapIndexedDatasetBuilder(str(folder / "train.bin"), np.uint16)
    for _ in range(8):
        builder.add_item(torch.tensor([*rng.integers(4, 16, rng.integers(3, 9)), 2]))
    builder.finalize(str(folder / "train.idx"))
    return folder


def a_config(data: Path, knobs: Knobs) -> Any:
    given = {
        "arch": "roberta",
        "task": "masked_lm",
        "criterion": "masked_lm",
        "data": str(data),
        "tokens_per_sample": 12,
        "sample_break_mode": "none" if knobs.get("document_mask") else "eos",
        "mask_prob": 0.4,
        "max_positions": 12,
        "encoder_layers": 2,
        "encoder_embed_dim": 8,
        "encoder_ffn_embed_dim": 8,
        "encoder_attention_heads": 2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return make_config({**given, **knobs})


def train_and_reload(data: Path, knobs: Knobs, path: Path, learns: bool = True) -> None:
    """Train three updates, save a checkpoint as the original lays it out, load it, compare.

    Some of the full product need more than three updates to get better; all must move.
    """
    config = a_config(data, knobs)
    torch.manual_seed(0)
    task = tasks.setup_task(config.task)
    model = task.build_model(config.model)
    criterion = task.build_criterion(config.criterion)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss, sample_size, _ = criterion(model, batch)
        (loss / sample_size).backward()
        losses.append(loss.item())
        if len(losses) <= 3:
            optimizer.step()
    assert np.isfinite(losses).all() and losses[3] != losses[0], losses
    assert losses[3] < losses[0] or not learns, losses
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert not idle, f"never used: {idle}"

    state = {"args": None, "cfg": original_cfg(config), "model": model.state_dict()}
    torch.save(state, path)
    (loaded,), _, its_task = load_model_ensemble_and_task([str(path)])
    tokens_BT = batch["net_input"]["src_tokens"]
    assert its_task.mask_idx == task.mask_idx and (tokens_BT == task.mask_idx).any()
    with torch.no_grad():
        logits = [m.eval()(tokens_BT)[0] for m in (model, loaded)]
    assert logits[0].isfinite().all()
    # a checkpoint says what a model is, not how it is computed: then the last bits may differ
    computed = any(
        knobs.get(name) not in (None, "auto") for name in ("attention_backend", "unpadded")
    )
    real_BT = tokens_BT != task.dictionary.pad()
    torch.testing.assert_close(
        logits[1][real_BT], logits[0][real_BT], rtol=0, atol=1e-6 if computed else 0
    )


@pytest.mark.parametrize("knobs", COVERING, ids=lambda k: "-".join(map(str, k.values())))
def test_every_pair_trains_and_comes_back(knobs: Knobs, data: Path, tmp_path: Path) -> None:
    try:
        train_and_reload(data, knobs, tmp_path / "model.pt")
    except ConfigError as error:
        assert holds(HARMLESS, knobs) and "clap-normalize" in str(error)
    else:
        export(data, knobs, tmp_path)


def export(data: Path, knobs: Knobs, folder: Path) -> None:
    """Export the checkpoint to Hugging Face, which compares logits, and to the original."""
    from fairseq.export import original_and_safetensors

    unknown = {"position": ("alibi", "alibi-asymmetric"), "head": ("clap",)}
    unknown |= {"mask_embedding": ("zero",), "segments": (2,), "embedding_multiplier": (2.0,)}
    if any(knobs[name] in values for name, values in unknown.items()):
        with pytest.raises(UnsupportedError, match="the original fairseq cannot load"):
            original_and_safetensors.to_fairseq(folder / "model.pt", folder / "plain.pt")
    else:
        original_and_safetensors.to_fairseq(folder / "model.pt", folder / "plain.pt")
    pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    from fairseq.export import encoder_out

    words = Dictionary.load(data / "dict.txt").symbols[4:]
    sentences = [" ".join(words[i : i + 5]) for i in range(6)]
    result = encoder_out.to_huggingface(folder / "model.pt", folder / "hf", data, sentences)
    assert result["max_abs_difference"] <= 1e-5


@pytest.mark.parametrize("part", SENSELESS, ids=str)
def test_what_makes_no_sense_is_refused_with_the_reason(part: Knobs, data: Path) -> None:
    defaults = {name: values[0] for name, values in VALUES.items()}
    with pytest.raises(ConfigError) as caught:
        a_config(data, {**defaults, **part})
    last = list(part)[-1].replace("_", "-")
    assert last in str(caught.value)


def test_the_combinations_are_few_and_cover_every_pair() -> None:
    assert len(COVERING) < 40
    sensible = (k for k in products() if not any(holds(part, k) for part in SENSELESS))
    own = [{name: knobs[name] for name in VALUES} for knobs in COVERING]
    assert set().union(*map(all_pairs, own)) == set().union(*map(all_pairs, sensible))
    singles = [[(n, v) for n, vs in t.items() for v in vs] for t in (FURTHER, VALUES)]
    for pair in itertools.product(*singles):
        sensible_value = pair[1] != ("head", "none")
        assert any(set(pair) <= set(k.items()) for k in COVERING) == sensible_value, pair


@pytest.mark.matrix
@pytest.mark.parametrize("position", VALUES["position"])
@pytest.mark.parametrize("head", VALUES["head"])
def test_the_full_product(
    head: str, position: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "matrix" not in request.config.option.markexpr:
        pytest.skip("takes minutes; run with -m matrix")
    for knobs in products(head=head, position=position):
        refused = any(holds(part, knobs) for part in SENSELESS)
        try:
            train_and_reload(data, knobs, tmp_path / "model.pt", learns=False)
        except ConfigError:
            assert refused or holds(HARMLESS, knobs), knobs
        else:
            assert not refused, knobs

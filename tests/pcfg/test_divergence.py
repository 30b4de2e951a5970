"""No model beats the truth: its divergence from it is at least 0, whatever it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fairseq.criterions.masked_lm_truth import COLUMNS, MaskedLmTruthConfig, MaskedLmTruthCriterion
from fairseq.models.pcfg_lookup import PcfgLookup, PcfgLookupConfig
from fairseq.models.roberta import RobertaConfig, RobertaModel
from fairseq.pcfg.random_sources import levelled_grammar, random_hmm
from fairseq.tasks.pcfg_masked_lm import PcfgMaskedLMConfig, PcfgMaskedLMTask


class Uniform(nn.Module):
    """Every entry of the dictionary is as likely."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries = entries

    def forward(self, src_tokens: Tensor, **unused: Any) -> tuple[Tensor, None]:
        return torch.zeros(*src_tokens.shape, self.entries), None


def encoder(task: PcfgMaskedLMTask, draw: st.DrawFn) -> nn.Module:
    """A RoBERTa with random weights, from timid to very sure of itself."""
    torch.manual_seed(draw(st.integers(0, 99)))
    config = RobertaConfig(
        encoder_layers=draw(st.integers(1, 3)),
        encoder_embed_dim=8,
        encoder_ffn_embed_dim=12,
        encoder_attention_heads=draw(st.sampled_from([1, 2, 4])),
        position=draw(
            st.sampled_from(["learned", "sinusoidal", "alibi", "alibi-asymmetric", "none"])
        ),
        max_positions=20,
    )
    model = RobertaModel.build_model(config, task)
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=scale)
    return model


@pytest.mark.parametrize("kind", ["grammar", "hmm"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_divergence_is_never_negative(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("source")
    seed = data.draw(st.integers(0, 99))
    if kind == "grammar":
        path = folder / "g.rules"
        levelled_grammar(seed, levels=3, width=4, roots=3, binary=4, vocab=7, emit=4).save(path)
    else:
        path = folder / "h.json"
        random_hmm(seed, states=3, vocab=7, components=2, lengths=(2, 6)).save(path)
    rules = str(path)
    hidden = data.draw(st.integers(1, 3))
    task = PcfgMaskedLMTask(
        PcfgMaskedLMConfig(grammar=rules, seed=seed, mask_count=hidden, tokens_per_sample=12)
    )
    task.load_dataset("valid")
    rows = task.datasets["valid"]
    sample = rows.collater([rows[row] for row in range(24)])
    criterion = MaskedLmTruthCriterion(MaskedLmTruthConfig(grammar=rules), task)
    models = {
        "lookup": PcfgLookup.build_model(PcfgLookupConfig(grammar=rules), task),
        "warm lookup": PcfgLookup.build_model(PcfgLookupConfig(grammar=rules), task),
        "uniform": Uniform(len(task.dictionary)),
        "encoder": encoder(task, data.draw),
    }
    with torch.no_grad():
        models["warm lookup"].log_temperature += data.draw(st.floats(-1, 1))
    for name, model in models.items():
        with torch.no_grad():
            _, _, log = criterion(model.eval(), sample)
        table = dict(zip(COLUMNS, log["_truth"].double().T, strict=True))
        # fp32: what sums of log probabilities as large as ce can lose
        allowed = 1e-5 * (1 + table["ce"].abs())
        assert (table["kl"] >= -allowed).all(), name
        assert (table["off_grammar"] >= -1e-5).all(), name
        if name == "lookup":
            assert (table["kl"].abs() <= allowed).all()
        elif name == "uniform":
            assert (table["kl"] > 0).all()

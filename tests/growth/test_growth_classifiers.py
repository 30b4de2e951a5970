"""Classifiers that fine-tuning added grow along: a head reads the wider features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from growth_pairs import TOKENS, a_config, build

from fairseq.errors import UnsupportedError
from fairseq.export.original_and_safetensors import to_fairseq
from fairseq.growth.ligo import ligo_maps
from fairseq.growth.ligo_init import matrices
from fairseq.growth.methods import GROWTH, Options
from fairseq.growth.sizes import Pair, resized
from fairseq.growth.tensors import split, widen_shared
from fairseq.models.roberta import RobertaModel
from fairseq_cli import grow, preprocess, train

WIDE = {"width": 16}
HEADS = [{}, {"probe_head": "linear"}, {"pooling": "mean"}, {"pooling": "concat"}]
HEADS += [{"probe_head": "linear", "pooling": "concat"}, {"probe_head": "linear", "head": "none"}]
HEADS += [{"head": "clap", "scale_embedding": True, "encoder_normalize_before": True}]


def classifier(settings: dict[str, Any]) -> Any:
    model = build(a_config("encoder", load_checkpoint_heads=True, **settings))
    model.register_classification_head("mood", num_classes=3)
    model.register_classification_head("topic", num_classes=2, inner_dim=5)
    return model.eval()


def scores_of(model: Any, head: str) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, classification_head_name=head)[0]


@pytest.mark.parametrize("settings", HEADS, ids=str)
@pytest.mark.parametrize("method", ["enlarge", "hyperclone", "lemon"])
@pytest.mark.parametrize("registered", [False, True], ids=["new", "registered"])
def test_classes_keep_their_scores(method: str, settings: dict[str, Any], registered: bool) -> None:
    """Also where the target made heads of its own width, as its task does, before it loads."""
    model = classifier(settings)
    target = resized(model.config, **WIDE)
    state = GROWTH[method](model.state_dict(), model.config, target, Options())
    sizes = {"embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 4}
    wide = {f"encoder_{name}": size for name, size in sizes.items()}
    after = classifier({**settings, **wide}) if registered else build(target)
    after.load_state_dict(state)
    after.eval()
    for head in ("mood", "topic"):
        torch.testing.assert_close(scores_of(after, head), scores_of(model, head))


def test_an_operator_reads_the_features_of_a_probe() -> None:
    model = classifier({"probe_head": "linear"})
    pair = Pair(model.config, resized(model.config, **WIDE))
    parts = split(model.state_dict(), pair.one_table)
    operator = {
        name: torch.zeros(more, few).double() for name, more, few in matrices(parts, pair, "layer")
    }
    shared = widen_shared(parts.shared, ligo_maps(operator, pair))
    assert shared["classification_heads.mood.out_proj.weight"].shape == (3, 16)


def test_a_fine_tuned_classifier_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command takes it, what it writes predicts the same, and trains on."""
    for name, lines in (("input0", ["a b c", "b c d", "d a"]), ("label", ["yes", "no", "no"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        words = [f"--{split}pref={tmp_path}/{name}.txt" for split in ("train", "valid")]
        destination = ["--destdir", str(tmp_path / "bin" / name)]
        assert preprocess.run(["--only-source", *words, *destination]) == 0
    flags = [str(tmp_path / "bin"), *"""--task sentence_prediction --criterion sentence_prediction
        --arch roberta --encoder-layers 1 --encoder-ffn-embed-dim 8 --batch-size 2 --optimizer adam
        --num-classes 2 --init-token 0 --max-positions 12 --cpu --log-format none --max-update 2
        --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric""".split()]  # fmt: skip
    small = ["--encoder-embed-dim", "8", "--encoder-attention-heads", "2"]
    train.run([*flags, *small, "--save-dir", str(tmp_path / "small")])
    source, out = str(tmp_path / "small/checkpoint_last.pt"), str(tmp_path / "small/wide.pt")
    words = ["--method", "hyperclone", "--grow-width", "2", "--data", str(tmp_path / "bin")]
    capsys.readouterr()
    assert grow.main([source, "--out", out, *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact"]
    tokens, predictions = torch.tensor([0, 5, 6, 2]), []
    for name in ("checkpoint_last.pt", "wide.pt"):
        hub = RobertaModel.from_pretrained(str(tmp_path / "small"), name, str(tmp_path / "bin"))
        (head,) = hub.eval().model.classification_heads
        with torch.no_grad():
            predictions.append(hub.predict(head, tokens))
    torch.testing.assert_close(*predictions)
    wide = ["--encoder-embed-dim", "16", "--encoder-attention-heads", "4"]
    wide += ["--encoder-ffn-embed-dim", "16", "--save-dir", str(tmp_path / "wide")]
    train.run([*flags, *wide, "--finetune-from-model", out])
    train.run([*flags, *wide, "--max-update", "3"])  # and it goes on
    assert (tmp_path / "wide/checkpoint_last.pt").is_file()
    with pytest.raises(UnsupportedError, match="hidden layer as wide as the model \\(16\\)"):
        to_fairseq(tmp_path / "small/wide.pt", tmp_path / "theirs.pt")

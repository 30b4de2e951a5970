"""Every checkpoint of a run as a revision: each has its own weights, and a branch when pushed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fairseq.checkpoint.files import write_checkpoint
from fairseq.config import options
from fairseq.errors import MissingFileError
from fairseq.export import push
from fairseq.export.model_files import write_model
from fairseq.export.revisions import checkpoints
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq_cli import export

NAMES = ["checkpoint_1_9", "checkpoint_1_10", "checkpoint_2_20", "checkpoint_best"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four checkpoints; the last one has two names."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "dict.txt").write_text("the 5\ncat 3\nsees 2\n")
    config = options.make_config(
        {
            "arch": "transformer_lm", "task": "language_modeling", "criterion": "cross_entropy",
            "data": str(folder), "decoder_layers": 1, "decoder_embed_dim": 16,
            "decoder_input_dim": 16, "decoder_output_dim": 16, "decoder_ffn_embed_dim": 24,
            "decoder_attention_heads": 2, "tokens_per_sample": 30, "position": "rotary",
            "parallel_residual": True, "decoder_normalize_before": True,
        }
    )  # fmt: skip
    task = LanguageModelingTask.setup_task(LanguageModelingConfig(data=str(folder)))
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        model = TransformerLanguageModel.build_model(config.model, task)
        write_model(folder / f"{name}.pt", model.state_dict(), config, {"num_updates": seed})
    os.link(folder / "checkpoint_2_20.pt", folder / "checkpoint_last.pt")
    return folder


def test_checkpoints_come_by_their_updates_and_once(run: Path, tmp_path: Path) -> None:
    assert [path.stem for path in checkpoints(run)] == NAMES
    with pytest.raises(MissingFileError, match="--save-dir"):
        checkpoints(tmp_path)


def test_the_newest_comes_last_whatever_it_is_called(tmp_path: Path) -> None:
    """The number behind an epoch and the number of an epoch cannot be compared."""

    def save(name: str, updates: int, side_file: bool = True) -> None:
        state = {"model": {}, "optimizer_history": [{"num_updates": updates}]}
        write_checkpoint(state, str(tmp_path / name), {"num_updates": updates})
        if not side_file:
            (tmp_path / f"{name}.json").unlink()

    save("checkpoint_1_50.pt", 50)
    save("checkpoint1.pt", 125, side_file=False)
    save("checkpoint_2_200.pt", 200)
    save("checkpoint2.pt", 250)
    save("checkpoint.best_loss_2.125.pt", 125)
    os.link(tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_best.pt")
    save("checkpoint_last.pt", 250)  # a copy: the folder was on a disk without links
    assert [path.stem for path in checkpoints(tmp_path)] == [
        "checkpoint_1_50", "checkpoint.best_loss_2.125", "checkpoint1", "checkpoint_2_200",
        "checkpoint2", "checkpoint_last",
    ]  # fmt: skip


def test_each_revision_has_its_own_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    (tmp_path / "text").write_text("the cat\ncat sees\n")
    out = tmp_path / "out"
    words = [str(run), "--to", "hf", "--revisions", "--out", str(out), "--json"]
    assert export.main([*words, "--sentences", str(tmp_path / "text")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["revisions"] == NAMES == list(json.loads((out / "revisions.json").read_text()))
    assert sorted(path.name for path in out.iterdir()) == sorted([*NAMES, "revisions.json"])
    for name in NAMES:
        state = torch.load(run / f"{name}.pt", weights_only=True)["model"]
        theirs = transformers.AutoModelForCausalLM.from_pretrained(str(out / name)).state_dict()
        rows_VC = state["decoder.embed_tokens.weight"]
        scaled = theirs["gpt_neox.embed_in.weight"][: len(rows_VC)]  # by the root of 16
        assert torch.equal(scaled, 4 * rows_VC)


def test_a_damaged_checkpoint_leaves_nothing(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    (run / "checkpoint_best.pt").write_bytes(b"no checkpoint")
    (tmp_path / "text").write_text("the cat\n")
    with pytest.raises(Exception, match="checkpoint_best"):
        export.main([
            str(run), "--to", "hf", "--revisions", "--out", str(tmp_path / "out"),
            "--sentences", str(tmp_path / "text"),
        ])  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_revisions_become_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class HfApi:
        def create_repo(self, name: str, **settings: Any) -> str:
            return "there"

        def create_branch(self, name: str, branch: str, exist_ok: bool) -> None:
            calls.append(("branch", branch))

        def upload_folder(self, folder_path: str, revision: str, **settings: Any) -> None:
            calls.append((revision, Path(folder_path).name))

    hub = ModuleType("huggingface_hub")
    hub.HfApi = HfApi  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert push.push(tmp_path, "me/mine", branches=["a", "b"]) == "there"
    assert calls == [("branch", "a"), ("branch", "b"), ("a", "a"), ("b", "b"), ("main", "b")]

"""What is published: the card of a model, and an upload that only an explicit flag makes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fairseq.config import options
from fairseq.errors import ConfigError, FairseqError, UnsupportedError
from fairseq.export import encoder_out, push
from fairseq.export.model_files import write_model
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq_cli import export

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small trained model, as its checkpoint tells."""
    (tmp_path / "dict.txt").write_text("the 5\ncat 3\nsees 2\n")
    config = options.make_config(
        {
            "arch": "transformer_lm", "task": "language_modeling", "criterion": "cross_entropy",
            "data": str(tmp_path), "decoder_layers": 1, "decoder_embed_dim": 16,
            "decoder_input_dim": 16, "decoder_output_dim": 16, "decoder_ffn_embed_dim": 24,
            "decoder_attention_heads": 2, "tokens_per_sample": 30, "position": "rotary",
            "parallel_residual": True, "decoder_normalize_before": True, "optimizer": "adam",
            "lr": "0.0007", "lr_scheduler": "inverse_sqrt", "warmup_updates": 123, "max_update": 77,
        }
    )  # fmt: skip
    torch.manual_seed(1)
    task = LanguageModelingTask.setup_task(LanguageModelingConfig(data=str(tmp_path)))
    model = TransformerLanguageModel.build_model(config.model, task)
    path = tmp_path / "a.pt"
    write_model(path, model.state_dict(), config, {"num_updates": 77, "val_loss": 3.25})
    return path


class FakeHub(ModuleType):
    """Stands for ``huggingface_hub``; remembers what it is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("huggingface_hub")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        hub = self

        class HfApi:
            def create_repo(self, repo_id: str, **settings: Any) -> str:
                if error is not None:
                    raise error
                hub.calls.append(("create", {"repo_id": repo_id, **settings}))
                return f"https://hub.example/{repo_id}"

            def upload_folder(self, **settings: Any) -> None:
                files = sorted(p.name for p in Path(settings["folder_path"]).iterdir())
                hub.calls.append(("upload", {**settings, "files": files}))

        self.HfApi = HfApi


def test_the_card(checkpoint: Path, tmp_path: Path) -> None:
    encoder_out.to_huggingface(checkpoint, tmp_path / "out", None, ["the cat", "cat sees"])
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert "GPTNeoXForCausalLM" in card and "AutoModelForCausalLM.from_pretrained" in card
    rows = {
        cells[1].strip(): cells[2].strip()
        for line in card.splitlines()
        if len(cells := line.split("|")) == 4
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    assert rows["parameters"] == f"{model.num_parameters():,}"
    assert rows["layers x width x heads"] == "1 x 16 x 2"
    assert rows["positions"] == "rotary" and rows["residual"] == "parallel"
    assert rows["vocabulary"] == "7 symbols" and rows["special symbols"].startswith("bos 0, pad 1")
    told = {"optimizer": "adam", "lr": "[0.0007]", "lr_scheduler": "inverse_sqrt",
            "warmup_updates": "123", "num_updates": "77", "val_loss": "3.25",
            "criterion": "cross_entropy", "tokens_per_sample": "30"}  # fmt: skip
    assert {name: rows.get(name) for name in told} == told
    assert str(tmp_path) not in card


def test_the_code_of_the_card_runs(checkpoint: Path, tmp_path: Path) -> None:
    encoder_out.to_huggingface(checkpoint, tmp_path / "out", None, ["the cat", "cat sees"])
    card = (tmp_path / "out/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert "AutoTokenizer" in code
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    model = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    tokens = tokenizer("the cat", return_tensors="pt")["input_ids"]
    assert tokens.tolist() == [[2, 4, 5]] and model(tokens).logits.shape == (1, 3, 7)


def test_a_push_is_only_made_when_asked(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = FakeHub()
    text = tmp_path / "text"
    text.write_text("the cat\n")
    command = [str(checkpoint), "--to", "hf", "--sentences", str(text), "--force", "--out"]
    command.append(str(tmp_path / "out"))
    encoder_out.require_transformers()  # which needs the real package
    _ = transformers.GPTNeoXForCausalLM, transformers.AutoTokenizer
    assert export.main(command) == 0 and not hub.calls
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert push.push(tmp_path / "out", "me/mine") == "https://hub.example/me/mine"
    (_, made), (_, sent) = hub.calls
    assert made == {"repo_id": "me/mine", "exist_ok": True, "private": True}
    assert sent["repo_id"] == "me/mine" and "README.md" in sent["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(sent["files"])
    monkeypatch.undo()
    asked: list[Any] = []
    monkeypatch.setattr(push, "push", lambda *args, **more: asked.append((args, more)) or "there")
    capsys.readouterr()
    assert export.main([*command, "--push", "me/mine", "--public"]) == 0
    assert asked == [((tmp_path / "out", "me/mine"), {"private": False, "branches": []})]
    assert "pushed there" in capsys.readouterr().out


def test_a_push_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(OSError("401 for you")))
    with pytest.raises(FairseqError, match="401 for you.*hf auth login"):
        push.push(tmp_path, "me/mine")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match="needs huggingface_hub"):
        push.push(tmp_path, "me/mine")
    for name in ("", "a/b/c", "me/", "../x", "me/-x"):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            push.check_repository(name)
    with pytest.raises(SystemExit):
        export.main(["x", "--to", "fairseq", "--out", "y", "--push", "me/mine"])

"""A folder of Hugging Face that names code: none of it is read by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_export_causal import byte_level, their_model

from fairseq.errors import CheckpointError
from fairseq.export.encoder_in import from_huggingface
from fairseq.export.plain_folder import plain_folder

HOSTILE = {
    "_attn_implementation": "nobody/kernel",
    "attn_implementation": "nobody/kernel",
    "_experts_implementation": "nobody/kernel",
    "auto_map": {"AutoConfig": "spy.Config", "AutoModelForCausalLM": "nobody/repo--spy.Model"},
    "quantization_config": {"quant_method": "spy"},
    "_name_or_path": "https://example.org/elsewhere",
    "torch_dtype": "spy.half",
}


def add(path: Path, **values: object) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}))


def test_an_import_reads_none_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    their_model("gpt2", 300, bos_token_id=0, eos_token_id=0).save_pretrained(theirs)
    byte_level(theirs, {"<|endoftext|>": 0}, 1)
    add(theirs / "config.json", **HOSTILE)
    add(theirs / "tokenizer_config.json", auto_map={"AutoTokenizer": ["spy.Tokenizer", None]})
    add(theirs / "adapter_config.json", base_model_name_or_path="nobody/base", peft_type="LORA")
    (theirs / "spy.py").write_text("raise SystemExit(99)")
    result = from_huggingface(theirs, tmp_path / "ours", ["The cat of the house"])
    assert result["max_abs_difference"] < 1e-4
    for name in ("_attn_implementation", "auto_map", "quantization_config"):
        assert name in caplog.text


def test_only_what_is_known_is_copied(tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json", "spy.py", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    add(tmp_path / "config.json", model_type="gpt2", n_embd=4, n_layer=2, **HOSTILE)
    add(tmp_path / "tokenizer_config.json", tokenizer_class="spy.Tokenizer", do_lower_case=True)
    with plain_folder(tmp_path) as folder:
        names = {path.name for path in folder.iterdir()}
        assert names == {
            "config.json", "tokenizer_config.json", "model.safetensors", "tokenizer.json",
        }  # fmt: skip
        told = json.loads((folder / "config.json").read_text())
        assert told == {"model_type": "gpt2", "n_embd": 4, "n_layer": 2}
        assert json.loads((folder / "tokenizer_config.json").read_text()) == {"do_lower_case": True}
    assert not folder.exists()


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\xff", "{'a': 1}"])
def test_a_broken_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config.json (cannot be read|must hold)"):
        from_huggingface(tmp_path, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()

"""The class that travels with a model does what users of transformers expect of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export_tokenizers import LINES, checkpoint
from torch import Tensor

from fairseq.export.encoder_out import load_ours, to_huggingface
from fairseq_cli import bpe

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")

from fairseq.export import modeling_fairseq_roberta  # noqa: E402

ZERO_CLAP = {
    "head": "clap", "position": "alibi", "mask_embedding": "zero", "scale_embedding": True,
    "layernorm_embedding": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported models by name; beside each its checkpoint."""
    made = {}
    variants = {
        "zero": ZERO_CLAP, "sinusoidal": {"position": "sinusoidal"},
        "learned": {"position": "learned", "activation_fn": "tanh", "untie_weights_roberta": True},
    }  # fmt: skip
    for name, knobs in variants.items():
        made[name] = tmp_path_factory.mktemp(name)
        exported(made[name], knobs)
    return made


def exported(folder: Path, knobs: dict[str, Any]) -> dict[str, Any]:
    """Write a checkpoint and what is exported of it; return what the export says."""
    (folder / "text").write_text("\n".join(LINES))
    command = ["train", "--inputs", str(folder / "text"), "--vocab-size", "300"]
    assert bpe.main([*command, "--output", str(folder / "tokenizer.json")]) == 0
    encoder = {"bpe": "byte_level", "byte_level_tokenizer": str(folder / "tokenizer.json")}
    checkpoint(folder, encoder, **knobs)
    return to_huggingface(folder / "model.pt", folder / "out", folder, LINES[:2])


SLOPES = {"position": "alibi", "alibi_slopes": [0.3, 0.01], "embedding_multiplier": 2.5}


@pytest.mark.parametrize(
    "knobs", [SLOPES, {"embedding_multiplier": 0.5}, {"position_offset": 0, **SLOPES}]
)
def test_slopes_and_the_multiplier_go_along(knobs: dict[str, Any], tmp_path: Path) -> None:
    told = exported(tmp_path, knobs)
    assert told["remote_code"] and told["max_abs_difference"] < 1e-4
    config = loaded(tmp_path).config
    assert config.embedding_multiplier == knobs["embedding_multiplier"]
    if "alibi_slopes" in knobs:
        assert config.alibi_slopes == pytest.approx(knobs["alibi_slopes"])


def loaded(folder: Path, auto: str = "AutoModelForMaskedLM", **settings: Any) -> Any:
    kind = getattr(transformers, auto)
    return kind.from_pretrained(str(folder / "out"), trust_remote_code=True, **settings).eval()


def batch(folder: Path, *texts: str) -> dict[str, Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "out"))
    return dict(
        tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
    )


@pytest.mark.parametrize("name", ["zero", "sinusoidal", "learned"])
def test_resizing_changes_no_logits(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder, model = folders[name], loaded(folders[name])
    x = batch(folder, "The <mask> cat 😀", "house")
    with torch.inference_mode():
        before = model(**x).logits
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "out"))
    rows = len(model.get_input_embeddings().weight)
    assert len(tokenizer) > rows
    model.resize_token_embeddings(len(tokenizer))
    with torch.inference_mode():
        after = model(**x).logits
    assert after.shape == before.shape and torch.equal(after, before)
    assert after.softmax(-1)[..., rows:].max() < 1e-12
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(str(tmp_path / "out"))
    (tmp_path / "out/modeling_fairseq_roberta.py").write_bytes(
        (folder / "out/modeling_fairseq_roberta.py").read_bytes()
    )
    again = loaded(tmp_path)
    x["input_ids"][0, 2] = len(tokenizer) - 1  # a new token is no unknown one
    with torch.inference_mode():
        found = again(**x).logits
        assert torch.equal(found, model(**x).logits)
        assert not torch.allclose(found[0, :, :rows], before[0, :, :rows])


@pytest.mark.parametrize("name", ["zero", "sinusoidal"])
def test_labels_outside_the_dictionary_are_unknown_as_here(
    name: str, folders: dict[str, Path]
) -> None:
    folder = folders[name]
    x = batch(folder, "The cat \u0120 😀 zzz")
    with torch.inference_mode():
        loss = loaded(folder)(**x, labels=x["input_ids"]).loss
    hub = load_ours(folder / "model.pt", folder)
    tokens_T = hub.encode("The cat \u0120 😀 zzz")
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(hub.model(tokens_T[None])[0][0], tokens_T)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["zero", "sinusoidal", "learned"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights(name: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    x = batch(folders[name], "The old cat", "a")
    with torch.inference_mode():
        exact = loaded(folders[name])(**x).logits
        half = loaded(folders[name], dtype=dtype)(**x).logits
    assert half.dtype == dtype
    kept = x["attention_mask"].bool()
    assert (half.float() - exact)[kept].abs().max() < 0.05 * exact[kept].abs().max()


@pytest.mark.parametrize("name", ["zero", "sinusoidal", "learned"])
def test_the_usual_arguments(name: str, folders: dict[str, Path]) -> None:
    model, x = loaded(folders[name]), batch(folders[name], "The old cat", "a")
    kept = x["attention_mask"].bool()
    plain = model(**x).logits
    full = model(**x, output_attentions=True, output_hidden_states=True)
    assert torch.allclose(full.logits[kept], plain[kept], atol=1e-5)
    layers = model.config.num_hidden_layers
    assert len(full.hidden_states) == layers + 1 and len(full.attentions) == layers
    weights = full.attentions[0]
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert weights[1, ..., int(kept[1].sum()) :].max() == 0  # nothing looks at padding
    (logits,) = model(**x, return_dict=False)
    assert torch.equal(logits, plain)
    vectors = model.encoder.look_up(x["input_ids"])
    found = model(inputs_embeds=vectors, attention_mask=x["attention_mask"]).logits
    assert torch.allclose(found[kept], plain[kept], atol=1e-6)
    places = torch.arange(plain.shape[1])[None].expand(2, -1)
    assert torch.allclose(model(**x, position_ids=places).logits[kept], plain[kept], atol=1e-5)
    wide = model(**x, position_ids=3 * places).logits
    assert not torch.allclose(wide[kept], plain[kept], atol=1e-3)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_gradient_checkpointing_and_dropout(folders: dict[str, Path]) -> None:
    x = batch(folders["zero"], "The old cat", "a")
    gradients = []
    for recompute in (False, True):
        model = loaded(folders["zero"]).train()
        model.config.dropout = model.config.attention_dropout = 0.0
        if recompute:
            model.gradient_checkpointing_enable()
        model(**x, labels=x["input_ids"]).loss.backward()
        gradients.append(model.encoder.layers[0].fc1.weight.grad)
    assert gradients[0].abs().max() > 0 and torch.allclose(*gradients, atol=1e-7)


@pytest.fixture
def memory_is_not_zero() -> Iterator[None]:
    """Fill memory that nobody has initialised with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("memory_is_not_zero")
def test_other_heads_can_be_trained(folders: dict[str, Path]) -> None:
    x = batch(folders["zero"], "The old cat", "a")
    body = loaded(folders["zero"], "AutoModel").state_dict()
    for auto, labels in (
        ("AutoModelForSequenceClassification", torch.tensor([2, 0])),
        ("AutoModelForTokenClassification", x["input_ids"] % 3),
    ):
        model = loaded(folders["zero"], auto, num_labels=3)
        assert all(torch.equal(model.encoder.state_dict()[k], v) for k, v in body.items())
        output = model(**x, labels=labels)
        assert output.logits.shape == (*labels.shape, 3)
        output.loss.backward()
        assert model.encoder.embed_tokens.weight.grad.abs().max() > 0


@pytest.mark.usefixtures("memory_is_not_zero")
@pytest.mark.parametrize("head", [{"head": "clap"}, {"untied": True}, {"head_bias": True}], ids=str)
def test_a_vocabulary_head_on_a_body_alone_begins_with_numbers(
    head: dict[str, Any], tmp_path: Path
) -> None:
    config = modeling_fairseq_roberta.FairseqRobertaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_positions=16, mask_id=19, dictionary_size=20, first_new_id=20,
        **head,
    )  # fmt: skip
    modeling_fairseq_roberta.FairseqRobertaModel(config).save_pretrained(tmp_path)
    model = modeling_fairseq_roberta.FairseqRobertaForMaskedLM.from_pretrained(tmp_path)
    assert all(value.isfinite().all() for value in model.parameters())
    beta = getattr(model, "head_beta", None)
    assert beta is None or beta.item() == 1

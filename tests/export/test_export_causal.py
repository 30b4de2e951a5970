"""Causal language models to Hugging Face and back: same logits, same ids, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.checkpoint.files import write_checkpoint
from fairseq.checkpoint.layout import OURS, original_cfg, our_record
from fairseq.config import options
from fairseq.data.encoders.byte_pair import byte_alphabet
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import CheckpointError, UnsupportedError
from fairseq.export import decoder_in, decoder_names, decoder_out, encoder_out
from fairseq.export.decoder_names import CAUSAL
from fairseq.export.encoder_in import from_huggingface
from fairseq.export.encoder_out import load_ours, to_huggingface
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq_cli import export

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")

LENGTHS = (1, 2, 5, 17, 40)
TEXT = ["The cat sees 12 red houses, doesn't it?", "Ünïcode bytes  and blanks", "a", "of the of"]
MERGES = [["t", "h"], ["th", "e"], ["\u0120", "the"], ["o", "f"], ["\u0120", "of"], ["c", "a"]]


@pytest.fixture(autouse=True)
def few_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare on six sentences, not on a hundred."""
    monkeypatch.setattr(encoder_out, "SENTENCES", 6)


# -- models of theirs ----------------------------------------------------------------------------

GPT2: dict[str, Any] = {"n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
NEOX: dict[str, Any] = {
    "max_position_embeddings": 48, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 3, "intermediate_size": 80,
}  # fmt: skip
OPT: dict[str, Any] = {
    "max_position_embeddings": 48, "hidden_size": 32, "word_embed_proj_dim": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 56, "pad_token_id": 1,
}  # fmt: skip
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt2 untied": ("GPT2LMHeadModel", {"tie_word_embeddings": False}),
    "gpt2 exact gelu": ("GPT2LMHeadModel", {"activation_function": "gelu", "n_inner": 56}),
    "gpt2 relu, eps": ("GPT2LMHeadModel", {"activation_function": "relu",
                                           "layer_norm_epsilon": 1e-2}),
    "gpt2 body": ("GPT2Model", {}),
    "neox": ("GPTNeoXForCausalLM", {}),
    "neox tied": ("GPTNeoXForCausalLM", {"tie_word_embeddings": True, "hidden_act": "gelu_new"}),
    "neox in sequence": ("GPTNeoXForCausalLM", {"use_parallel_residual": False}),
    "neox all channels": ("GPTNeoXForCausalLM", {"rotary_pct": 1.0}),
    "neox no biases": ("GPTNeoXForCausalLM", {"attention_bias": False}),
    "neox body": ("GPTNeoXModel", {"rotary_pct": 0.5}),
    "opt": ("OPTForCausalLM", {}),
    "opt untied": ("OPTForCausalLM", {"tie_word_embeddings": False}),
    "opt body": ("OPTModel", {}),
}  # fmt: skip


def their_model(kind: str, vocabulary: int = 130, **more: Any) -> Any:
    name, settings = THEIRS[kind]
    family = next(f for f in ("GPT2", "GPTNeoX", "OPT") if name.startswith(f))
    base = {"GPT2": GPT2, "GPTNeoX": NEOX, "OPT": OPT}[family]
    config = getattr(transformers, f"{family}Config")(
        **{"vocab_size": vocabulary, "bos_token_id": 7, "eos_token_id": 7, **base, **settings,
           **more}
    )  # fmt: skip
    torch.manual_seed(3)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.15 * torch.randn_like(value))
    return model


def byte_level(folder: Path, special: dict[str, int], first: int) -> int:
    """Write a byte-level tokenizer whose pieces begin at ``first``; return the next free id."""
    tokens = [*byte_alphabet(), *("".join(pair) for pair in MERGES)]
    vocabulary = {**special, **{token: first + place for place, token in enumerate(tokens)}}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": index, "content": token, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
            for token, index in special.items()
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True,
                                            "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": MERGES},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if special:
        token = next(iter(special))
        settings |= {"bos_token": token, "eos_token": token, "unk_token": token}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return first + len(tokens)


def logits_of(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    output = model(tokens_BT)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


@pytest.mark.parametrize("kind", THEIRS)
@torch.inference_mode()
def test_theirs_to_ours_and_back(kind: str, tmp_path: Path) -> None:
    theirs = their_model(kind)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    result = from_huggingface(tmp_path / "theirs", tmp_path / "ours")
    headless = kind.endswith("body")
    assert result["head"] == ("none" if headless else "vocabulary")
    opt = kind.startswith("opt")  # which has a symbol for padding
    assert result["added_rows"] == (1 if opt else 2) and result["max_abs_difference"] <= 1e-5
    hub = load_ours(tmp_path / "ours/model.pt", None)
    dictionary = hub.task.source_dictionary
    assert (dictionary.bos(), dictionary.eos(), dictionary.pad(), dictionary.unk()) == (
        (7, 7, 1, 130) if opt else (7, 7, 130, 131)
    )
    assert isinstance(hub.model, TransformerLanguageModel) and len(dictionary) == 132 - opt
    for length in LENGTHS:
        tokens_BT = torch.randint(2, 130, (3, length))
        ours = hub.model(tokens_BT, features_only=headless)[0]
        expected = logits_of(theirs, tokens_BT)
        assert expected.std() > 0.3
        assert float((ours[..., : expected.shape[-1]] - expected).abs().max()) <= 1e-5
        if not headless:  # the symbols that are new get next to nothing
            assert ours.argmax(-1).lt(130).all()
            assert ours.softmax(-1)[..., 130:].max() <= 1 / 130
    again = to_huggingface(tmp_path / "ours/model.pt", tmp_path / "again")
    assert again["class"] == type(theirs).__name__ and again["max_abs_difference"] <= 1e-5
    back = type(theirs).from_pretrained(str(tmp_path / "again"))
    assert back.config.vocab_size == 130 and back.config.eos_token_id == 7
    assert back.config.tie_word_embeddings == theirs.config.tie_word_embeddings or headless
    state = back.state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(state.pop(name), value), name
    assert not [name for name, value in state.items() if bool(value.ne(0).any())]


@pytest.mark.parametrize("kind", ["gpt2", "neox", "neox in sequence"])
@torch.inference_mode()
def test_greedy_generation(kind: str, tmp_path: Path) -> None:
    theirs = their_model(kind, bos_token_id=None, eos_token_id=None)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    from_huggingface(tmp_path / "theirs", tmp_path / "ours")
    model = load_ours(tmp_path / "ours/model.pt", None).model
    tokens_BT = torch.randint(130, (3, 4))
    expected_BT = theirs.generate(
        tokens_BT, attention_mask=torch.ones_like(tokens_BT), do_sample=False, max_new_tokens=30,
        pad_token_id=0,
    )  # fmt: skip
    state: dict[int, dict[str, torch.Tensor]] = {}
    for _ in range(30):
        logits_B1V = model(tokens_BT, incremental_state=state)[0]
        tokens_BT = torch.cat([tokens_BT, logits_B1V[:, -1:].argmax(-1)], dim=1)
    assert tokens_BT.tolist() == expected_BT.tolist()
    assert len(set(tokens_BT[:, 4:].flatten().tolist())) > 5


# -- text of theirs ------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_ids_of_text_are_theirs(spare: int, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    free = byte_level(folder, {"<|endoftext|>": 0}, 1)
    theirs = their_model("neox", free + spare, bos_token_id=0, eos_token_id=0)
    theirs.save_pretrained(str(folder))
    result = from_huggingface(folder, tmp_path / "ours")
    assert result["tokenizer"] == "byte_level" and result["sentences"] == 6
    assert result["added_rows"] == max(0, 2 - spare)
    hub = load_ours(tmp_path / "ours/model.pt", None)
    dictionary = hub.task.source_dictionary
    assert dictionary.bos_word == dictionary.eos_word == "<|endoftext|>"
    assert len({0, dictionary.pad(), dictionary.unk()}) == 3
    assert min(dictionary.pad(), dictionary.unk()) >= free
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in TEXT:
        ids = decoder_out.our_tokens(hub, [text])[0].tolist()
        assert ids == tokenizer(text)["input_ids"]
        assert hub.bpe.decode(dictionary.string(ids)) == text
    to_huggingface(tmp_path / "ours/model.pt", tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "again"))
    for text in [*TEXT, "end<|endoftext|>start"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.eos_token == again.bos_token == "<|endoftext|>"
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "again"))
    assert len(reloaded.get_input_embeddings().weight) == free + spare


def test_a_tokenizer_keeps_its_normalizer_and_added_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    free = byte_level(folder, {"<|endoftext|>": 0}, 1)
    their_model("neox", free + 1, bos_token_id=0, eos_token_id=0).save_pretrained(str(folder))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    added = {**content["added_tokens"][0], "id": free, "content": "   ", "special": False}
    content["added_tokens"].append(added)
    content["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(content))
    result = from_huggingface(folder, tmp_path / "a")
    assert result["tokenizer"] == "byte_level"
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    hub = load_ours(tmp_path / "a/model.pt", None)
    to_huggingface(tmp_path / "a/model.pt", tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "again"))
    for text in ("e\u0301", "of   the", "a   of e\u0301"):
        expected = tokenizer(text)["input_ids"]
        assert decoder_out.our_tokens(hub, [text])[0].tolist() == expected
        assert again(text)["input_ids"] == expected
    assert free in tokenizer("of   the")["input_ids"]
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]
    content["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(content))
    result = from_huggingface(folder, tmp_path / "b")
    assert result["tokenizer"] == "none: BPE with Whitespace is not known here"
    assert not (tmp_path / "b/tokenizer.json").exists()
    byte_level(folder, {"<|endoftext|>": 0}, 3)
    with pytest.raises(CheckpointError, match=r"the id \d+, the table"):
        from_huggingface(folder, tmp_path / "c")


def test_opt_keeps_its_first_symbol_and_added_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    free = byte_level(folder, {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, 4)
    content = json.loads((folder / "tokenizer.json").read_text())
    added = {**content["added_tokens"][0], "id": free, "content": "<|user|>"}
    content["added_tokens"].append(added)
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [end, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [end, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    told = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", **told}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    their_model("opt", free + 1, bos_token_id=2, eos_token_id=2).save_pretrained(str(folder))
    assert from_huggingface(folder, tmp_path / "ours")["added_rows"] == 0
    hub = load_ours(tmp_path / "ours/model.pt", None)
    to_huggingface(tmp_path / "ours/model.pt", tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "again"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in [*TEXT, "", "the <|user|>of"]:
        expected = tokenizer(text)["input_ids"]
        assert expected[0] == 2 and again(text)["input_ids"] == expected
        assert decoder_out.our_tokens(hub, [text])[0].tolist() == expected
    assert free in tokenizer("the <|user|>of")["input_ids"]
    config = transformers.AutoConfig.from_pretrained(str(tmp_path / "again"))
    assert (config.model_type, config.bos_token_id, again.bos_token) == ("opt", 2, "</s>")


def test_files_of_all_kinds(tmp_path: Path) -> None:
    theirs = their_model("gpt2")
    folder = tmp_path / "theirs"
    theirs.save_pretrained(str(folder))
    expected = decoder_names.to_ours(theirs.state_dict(), CAUSAL["gpt2"], 4)
    weights = {k.removeprefix("transformer."): v for k, v in theirs.state_dict().items()}
    weights.pop("lm_head.weight")
    for layer in range(2):  # as the published files of 2019
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    result = from_huggingface(folder, tmp_path / "a")
    assert result["head"] == "vocabulary" and result["max_abs_difference"] <= 1e-5
    found = torch.load(tmp_path / "a/model.pt", weights_only=True)["model"]
    assert all(torch.equal(found[name][: len(value)], value) for name, value in expected.items())
    (folder / "pytorch_model.bin").unlink()
    theirs.save_pretrained(str(folder), max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert from_huggingface(folder, tmp_path / "b")["max_abs_difference"] <= 1e-5
    torch.save({**weights, "score.weight": torch.ones(2, 32)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not known score.weight"):
        from_huggingface(folder, tmp_path / "c")
    torch.save({"wte.weight": weights["wte.weight"]}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="missing ln_f"):
        from_huggingface(folder, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("gpt2", {"activation_function": "quick_gelu"}, "quick_gelu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before False"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim 16 is not hidden_size 32"),
        ("neox", {"rotary_emb_base": 5000}, "base 5000"),
        ("neox", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "type 'linear'"),
    ],
)
def test_theirs_that_are_refused(
    kind: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    their_model(kind, **settings).save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(UnsupportedError, match=message):
        from_huggingface(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_other_classes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="GPT2ForSequenceClassification"):
        decoder_in.settle_head(
            {}, {"architectures": ["GPT2ForSequenceClassification"]}, CAUSAL["gpt2"]
        )


@torch.inference_mode()
def test_a_file_that_lacks_its_head_is_headless(tmp_path: Path) -> None:
    theirs, folder = their_model("neox"), tmp_path / "theirs"
    theirs.save_pretrained(str(folder))
    (folder / "model.safetensors").unlink()
    head = ("embed_out", "lm_head")
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith(head)}
    assert len(weights) == len(theirs.state_dict()) - 1
    torch.save(weights, folder / "pytorch_model.bin")
    result = from_huggingface(folder, tmp_path / "ours")
    assert result["head"] == "none" and result["max_abs_difference"] <= 1e-5
    hub = load_ours(tmp_path / "ours/model.pt", None)
    tokens_BT = torch.randint(130, (3, 9))
    expected_BTC = theirs.gpt_neox(tokens_BT).last_hidden_state
    found_BTC = hub.model(tokens_BT, features_only=True)[0]
    assert float((found_BTC - expected_BTC).abs().max()) <= 1e-5


# -- models of ours ------------------------------------------------------------------------------

SIZE: dict[str, Any] = {
    "decoder_layers": 2, "decoder_embed_dim": 48, "decoder_input_dim": 48,
    "decoder_output_dim": 48, "decoder_ffn_embed_dim": 72, "decoder_attention_heads": 4,
    "tokens_per_sample": 40, "max_target_positions": 40, "decoder_normalize_before": True,
}  # fmt: skip
TIED = {"share_decoder_input_output_embed": True}
OURS_TO_GO: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("GPT2LMHeadModel", {}),
    "learned, relu": ("OPTForCausalLM", {"position": "learned"}),
    "learned, relu, clap": ("OPTForCausalLM", {"position": "learned", "head": "clap"}),
    "multiplied": ("GPT2LMHeadModel", {"embedding_multiplier": 2.5, **TIED}),
    "scaled and tied": ("GPT2LMHeadModel", {"activation_fn": "gelu_accurate", **TIED}),
    "learned": ("GPT2LMHeadModel", {"position": "learned", "activation_fn": "gelu"}),
    "learned from 0": ("GPT2LMHeadModel", {"position": "learned", "position_offset": 0, **TIED,
                                           "no_scale_embedding": True, "layer_norm_eps": 1e-3}),
    "no positions": ("GPT2LMHeadModel", {"position": "none", "activation_fn": "swish"}),
    "clap": ("GPT2LMHeadModel", {"head": "clap", "clap_initial_beta": 3.0}),
    "clap as it is": ("GPT2LMHeadModel", {"head": "clap", "clap_normalize": False}),
    "zero bias": ("GPT2LMHeadModel", {"head_bias": True, **TIED}),
    "headless": ("GPT2Model", {"head": "none", "position": "learned", "activation_fn": "gelu"}),
    "headless, relu": ("OPTModel", {"head": "none", "position": "learned"}),
    "rotary": ("GPTNeoXForCausalLM", {"position": "rotary", "activation_fn": "gelu"}),
    "rotary, half, parallel": ("GPTNeoXForCausalLM", {
        "position": "rotary", "rotary_fraction": 0.5, "parallel_residual": True, **TIED}),
    "rotary clap": ("GPTNeoXForCausalLM", {"position": "rotary", "head": "clap"}),
    "rotary headless": ("GPTNeoXModel", {"position": "rotary", "head": "none"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json and dict.txt, in another order, without the last piece."""
    folder = tmp_path_factory.mktemp("words")
    pieces = byte_level(folder, {}, 0)
    dictionary = Dictionary()
    for number in reversed(range(pieces - 1)):
        dictionary.add_symbol(str(number), 3)
    dictionary.save(folder / "dict.txt")
    return folder


def checkpoint_of(data: Path, path: Path, encoder: bool = True, **knobs: Any) -> Path:
    """Write a random model as a checkpoint."""
    headless = knobs.get("head") == "none"
    bpe = {"bpe": "byte_level", "byte_level_tokenizer": str(data / "tokenizer.json")}
    settings = {
        "task": "language_modeling", "arch": "transformer_lm", "data": str(data),
        "criterion": "contrastive_weight_tying" if headless else "cross_entropy",
        **(bpe if encoder else {}), **SIZE, **knobs,
    }  # fmt: skip
    config = options.make_config(settings)
    torch.manual_seed(1)
    task = LanguageModelingTask.setup_task(LanguageModelingConfig(data=str(data)))
    model = TransformerLanguageModel.build_model(config.model, task)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name != decoder_names.BIAS:
                value.add_(0.1 * torch.randn_like(value))
    write_checkpoint(
        {
            "args": None, "cfg": original_cfg(config), "model": model.state_dict(),
            "criterion": None, "optimizer_history": [], "task_state": {},
            "extra_state": {OURS: our_record(config, {})}, "last_optimizer_state": None,
        },
        str(path), {},
    )  # fmt: skip
    return path


@pytest.mark.parametrize("kind", OURS_TO_GO)
@torch.inference_mode()
def test_ours_to_theirs_and_back(kind: str, words: Path, tmp_path: Path) -> None:
    name, knobs = OURS_TO_GO[kind]
    source = checkpoint_of(words, tmp_path / "a.pt", **knobs)
    result = to_huggingface(source, tmp_path / "theirs", words)
    assert result["class"] == name and result["sentences"] == 6
    assert result["extra_rows"] == 1 and result["max_abs_difference"] <= 1e-5
    hub = load_ours(source, words)
    rows = len(hub.task.source_dictionary)
    theirs = getattr(transformers, name).from_pretrained(str(tmp_path / "theirs")).eval()
    # a piece that the dictionary lacks has a row of its own, which cannot be tied
    assert not theirs.config.tie_word_embeddings
    assert (theirs.config.bos_token_id, theirs.config.pad_token_id) == (2, 1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "theirs"))
    assert tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id == 2
    from_huggingface(tmp_path / "theirs", tmp_path / "back")
    back = load_ours(tmp_path / "back/model.pt", None)
    assert back.task.source_dictionary.nspecial == 4
    assert decoder_out.our_tokens(back, TEXT[:2])[0].tolist() == tokenizer(TEXT[0])["input_ids"]
    headless = "headless" in kind
    for length in LENGTHS:
        tokens_BT = torch.randint(2, rows, (2, length))
        expected = hub.model(tokens_BT, features_only=headless)[0]
        width = expected.shape[-1]
        assert expected.std() > 0.2
        for found in (
            logits_of(theirs, tokens_BT), back.model(tokens_BT, features_only=headless)[0]
        ):  # fmt: skip
            assert float((found[..., :width] - expected).abs().max()) <= 1e-5 * max(
                1.0, float(expected.abs().max())
            )


def test_words_and_the_first_symbol(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("the 5\ncat 3\nsees 2\n")
    source = checkpoint_of(tmp_path, tmp_path / "a.pt", encoder=False, add_bos_token=True)
    result = to_huggingface(source, tmp_path / "theirs", tmp_path, ["the cat sees", "a cat"])
    assert result["sentences"] == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "theirs"))
    assert tokenizer("the cat sees a")["input_ids"] == [0, 4, 5, 6, 3]
    back = from_huggingface(tmp_path / "theirs", tmp_path / "back", ["the cat sees", "a cat"])
    assert back["tokenizer"] == "words"
    text = (tmp_path / "back/dict.txt").read_text()
    assert text == "the 0\ncat 0\nsees 0\n"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"decoder_input_dim": 24}, "different widths"),
        ({"scale_heads": True, "scale_attn": True}, "--scale-attn; --scale-heads"),
        ({"adaptive_softmax_cutoff": "50,100"}, "adaptive softmax"),
    ],
)
def test_ours_that_are_refused(
    knobs: dict[str, Any], message: str, words: Path, tmp_path: Path
) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt", **knobs)
    with pytest.raises(UnsupportedError, match=message):
        to_huggingface(source, tmp_path / "theirs", words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.pt.json"]


TRAVELS: dict[str, dict[str, Any]] = {
    "post-norm": {"decoder_normalize_before": False},
    "no last norm": {"no_decoder_final_norm": True, "position": "learned"},
    "norm of embeddings": {"layernorm_embedding": True, "activation_fn": "swish"},
    "ALiBi": {"position": "alibi", **TIED},
    "ALiBi, 3 heads": {"position": "alibi", "decoder_attention_heads": 3, "head_bias": True},
    "cosines": {"head": "clap", "clap_normalize_hidden": True, "position": "rotary"},
    "side by side": {"parallel_residual": True, "position": "none"},
    "rotary after": {"decoder_normalize_before": False, "position": "rotary",
                     "rotary_fraction": 0.5},
    "ALiBi headless": {"position": "alibi", "head": "none"},
    "own slopes": {"position": "alibi", "alibi_slopes": [0.5, 0.1, 0.02, 0.0], **TIED,
                   "embedding_multiplier": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAVELS)
@torch.inference_mode()
def test_ours_that_travel_with_their_class(kind: str, words: Path, tmp_path: Path) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt", **TRAVELS[kind])
    hub = load_ours(source, words)
    result = to_huggingface(source, tmp_path / "theirs", words)
    assert result["remote_code"] and result["extra_rows"] == 1
    headless = "headless" in kind
    auto = transformers.AutoModel if headless else transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(str(tmp_path / "theirs"), trust_remote_code=True).eval()
    rows = len(hub.task.source_dictionary)
    tokens_BT = torch.randint(4, rows, (3, 11))
    expected = hub.model(tokens_BT, features_only=headless)[0]
    width = expected.shape[-1]  # theirs has an id for the piece that the dictionary lacks, too
    found = logits_of(theirs, tokens_BT)[..., :width]
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    if headless:
        return
    padded_BT = torch.cat([torch.ones(3, 4, dtype=torch.int64), tokens_BT], 1)  # on the left
    mask_BT = padded_BT.ne(1).long()
    found = theirs(padded_BT, attention_mask=mask_BT).logits[:, 4:, :width]
    assert float((found - expected).abs().max()) <= 1e-4
    pad = hub.task.source_dictionary.pad()  # which nobody writes, and ours would not read
    made = theirs.generate(
        padded_BT, attention_mask=mask_BT, do_sample=False, max_new_tokens=6, eos_token_id=-1,
        suppress_tokens=[pad],
    )  # fmt: skip
    for _ in range(6):
        logits_BTV = hub.model(tokens_BT)[0]
        logits_BTV[..., pad] = -torch.inf
        last = logits_BTV[:, -1:].argmax(-1)
        tokens_BT = torch.cat([tokens_BT, last], 1)
    assert made[:, 4:].tolist() == tokens_BT.tolist()


@torch.inference_mode()
def test_a_bias_is_carried_by_the_last_layer_norm(words: Path, tmp_path: Path) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt", head_bias=True, **TIED)
    state = torch.load(source, weights_only=False)
    torch.manual_seed(5)
    state["model"][decoder_names.BIAS] = 4 * torch.randn_like(state["model"][decoder_names.BIAS])
    torch.save(state, source)
    result = to_huggingface(source, tmp_path / "theirs", words)
    assert result["class"] == "GPT2LMHeadModel" and not result["remote_code"]
    hub = load_ours(source, words)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "theirs")).eval()
    tokens_BT = torch.randint(4, len(hub.task.source_dictionary), (3, 20))
    expected = hub.model(tokens_BT)[0].log_softmax(-1)
    found = theirs(tokens_BT).logits.log_softmax(-1)
    assert found.shape[-1] == expected.shape[-1] + 1  # a piece that the dictionary lacks
    assert float((found[..., :-1] - expected).abs().max()) <= 1e-4
    assert float(found[..., -1].exp().max()) <= 1e-12


def test_a_difference_is_found(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint_of(words, tmp_path / "a.pt")
    monkeypatch.setattr(
        decoder_names, "fuse", lambda parts, heads, per_head: torch.cat(parts[::-1])
    )
    with pytest.raises(CheckpointError, match="differs by"):
        to_huggingface(source, tmp_path / "theirs", words)
    monkeypatch.undo()
    monkeypatch.setattr(decoder_out, "BELOW_UNKNOWN", 0.0)
    monkeypatch.setattr(decoder_out, "first_symbol", lambda hub: "<s>")
    with pytest.raises(CheckpointError, match="log-probabilities of the converted model differ"):
        to_huggingface(source, tmp_path / "theirs", words)
    assert not (tmp_path / "theirs").exists()


# -- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_head", [True, False])
def test_fused_weights(per_head: bool) -> None:
    parts = [torch.arange(12).reshape(6, 2) + 100 * n for n in range(3)]
    fused = decoder_names.fuse(parts, 2, per_head)
    assert fused.shape == (18, 2)
    # GPT-NeoX: all of the first head, q, k, v, then all of the second
    expected = [0, 100, 200, 6, 106, 206] if per_head else [0, 6, 100, 106, 200, 206]
    assert fused[::3, 0].tolist() == expected
    again = decoder_names.split(fused, 2, per_head)
    assert all(torch.equal(a, b) for a, b in zip(again, parts, strict=True))


def test_a_dictionary_names_its_special_symbols_anywhere(tmp_path: Path) -> None:
    symbols = ["a", "b", "<|end|>", "<p>", "<u>"]
    roles = {"bos": "<|end|>", "eos": "<|end|>", "pad": "<p>", "unk": "<u>"}
    Dictionary.foreign(symbols, **roles).save(tmp_path / "dict.txt")
    again = Dictionary.load(str(tmp_path / "dict.txt"))
    assert again.symbols == symbols
    assert [again.bos(), again.eos(), again.pad(), again.unk()] == [2, 2, 3, 4]
    assert again.eos_word == "<|end|>" and again.index("nothing") == 4
    again.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_text() == (tmp_path / "dict.txt").read_text()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    their_model("neox body").save_pretrained(str(tmp_path / "theirs"))
    command = [str(tmp_path / "theirs"), "--from", "hf", "--out", str(tmp_path / "ours"), "--json"]
    assert export.main(command) == 0
    assert json.loads(capsys.readouterr().out)["head"] == "none"


@pytest.mark.parametrize("knob", ["scale_attn", "scale_fc", "scale_heads", "scale_resids"])
def test_the_export_says_that_the_original_reads_no_normformer(
    knob: str, words: Path, tmp_path: Path
) -> None:
    from fairseq.export.original_and_safetensors import to_fairseq

    source = checkpoint_of(words, tmp_path / "a.pt", **{knob: True})
    with pytest.raises(UnsupportedError, match=f"no {knob} True"):
        to_fairseq(source, tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()

"""lm-eval's own ``hf`` model on an export says what our adapter says of the checkpoint.

Three kinds of tasks, item by item: a choice after a question, pairs of sentences, whole texts
longer than the window. lm-eval has no model that fills masks; encoders are held against equation 1
of Salazar et al. 2020 (Masked Language Model Scoring), worked out with what transformers loads.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export_causal import checkpoint_of
from test_export_tokenizers import LINES, checkpoint

from fairseq.data.encoders.byte_level import ByteLevelBPE, ByteLevelBPEConfig
from fairseq.data.storage.dictionary import Dictionary
from fairseq.evaluation.lm_eval import lm_class, load_scorer
from fairseq.export.encoder_out import to_huggingface
from fairseq_cli import bpe

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")
pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra [eval])")
pytest.importorskip("accelerate", reason="accelerate is not installed (lm-eval[hf] brings it)")

NATS = 1e-4  # an item
WINDOW = 24  # shorter than the rolling texts
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", {}),
    "OPT": ("OPTForCausalLM", {"position": "learned"}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", {"position": "rotary"}),
    "travelling": ("FairseqRobertaForCausalLM", {"position": "alibi"}),
}
DOCS = [
    {"asked": f"The {a} cat sees", "choices": [f"{n} red houses", f"the {b} dog", "it"],
     "pair": [f"The {a} dog sees {n} red houses", f"The red {a} sees houses dog {n}"],
     "text": " ".join(LINES[place : place + 5])}
    for place, (a, b, n) in enumerate([("old", "new", 1), ("new", "old", 7), ("old", "old", 3)])
]  # fmt: skip
TASKS = {
    "choice": 'output_type: multiple_choice\ndoc_to_text: "{{asked}}"\n'
    'doc_to_choice: "{{choices}}"\ndoc_to_target: 0\n',
    "pairs": 'output_type: multiple_choice\ndoc_to_text: ""\ntarget_delimiter: ""\n'
    'doc_to_choice: "{{pair}}"\ndoc_to_target: 0\n',
    "rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
    "metric_list: [{metric: word_perplexity}]\n",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, a dictionary of all that the tasks say, and the tasks."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").write_text("\n".join([*LINES, "zebra zebra zebra"]))
    command = ["train", "--inputs", str(folder / "text"), "--vocab-size", "330"]
    assert bpe.main([*command, "--output", str(folder / "tokenizer.json")]) == 0
    encoder = ByteLevelBPE(ByteLevelBPEConfig(byte_level_tokenizer=str(folder / "tokenizer.json")))
    said = [*LINES, *(text for doc in DOCS for text in (*doc["choices"], *doc["pair"]))]
    dictionary = Dictionary()
    for text in said:
        for piece in [*encoder.encode(text).split(), *encoder.encode(f" {text}").split()]:
            dictionary.add_symbol(piece)
    dictionary.save(folder / "dict.txt")
    rows = folder / "docs.json"
    rows.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (folder / "tasks").mkdir()
    for name, lines in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(
            f"task: own_{name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\n{lines}"
        )
    return folder


@functools.cache
def manager(folder: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def answers(model: Any, task: str, data: Path) -> list[float]:
    """Return what the harness hears from a model, item by item, in nats."""
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=model, tasks=[f"own_{task}"], task_manager=manager(data / "tasks"),
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    told = []
    for sample in sorted(found["samples"][f"own_{task}"], key=lambda sample: sample["doc_id"]):
        for (answer,) in sample["resps"]:
            told.append(float(answer[0] if isinstance(answer, (tuple, list)) else answer))
    return told


def harness_model(folder: Path, **settings: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(folder), trust_remote_code=True, device="cpu", dtype="float32",
        batch_size=2, **settings,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setitem(os.environ, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_class.cache_clear()


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders(kind: str, data: Path, tmp_path: Path, figure: Any) -> None:
    name, knobs = DECODERS[kind]
    source = checkpoint_of(data, tmp_path / "lm.pt", **knobs)
    assert to_huggingface(source, tmp_path / "out", data, LINES[:2])["class"] == name
    # both are told the window: where a model has no limit, each has a rule of its own
    ours = lm_class()(path=str(source), data=str(data), device="cpu", max_length=WINDOW)
    for task in TASKS:
        settings: dict[str, Any] = {"max_length": WINDOW}
        if task == "rolling":  # lm-eval puts the first symbol in front of such texts by itself
            settings["add_bos_token"] = False
        expected = answers(ours, task, data)
        found = answers(harness_model(tmp_path / "out", **settings), task, data)
        worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
        figure(f"lm-eval {kind} {task}: {len(found)} items, nats apart", worst)
        assert len(found) == {"choice": 9, "pairs": 6, "rolling": 3}[task]
        assert found == pytest.approx(expected, rel=0, abs=NATS) and max(expected) < -1
    rolled = ours.scorer.encode(DOCS[0]["text"])
    assert len(rolled) > WINDOW and ours.scorer.window == WINDOW


@pytest.mark.parametrize("kind", ["native", "travelling"])
@torch.inference_mode()
def test_encoders(kind: str, data: Path, tmp_path: Path, figure: Any) -> None:
    (tmp_path / "tokenizer.json").write_bytes((data / "tokenizer.json").read_bytes())
    encoder = {"bpe": "byte_level", "byte_level_tokenizer": str(tmp_path / "tokenizer.json")}
    knobs = {} if kind == "native" else {"head": "clap", "position": "alibi"}
    source = checkpoint(tmp_path, encoder, **knobs)
    to_huggingface(source, tmp_path / "out", tmp_path, LINES[:2])
    remote = {"trust_remote_code": True}
    model = transformers.AutoModelForMaskedLM.from_pretrained(str(tmp_path / "out"), **remote)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"), **remote)
    scorer = load_scorer(str(source), str(tmp_path), device="cpu")
    unknown = scorer.dictionary.unk()
    expected, found = [], []
    for text in [*LINES[:8], *DOCS[0]["pair"]]:
        if unknown in scorer.encode(text):
            continue
        ids_1T = tokenizer(text, return_tensors="pt")["input_ids"]
        total = 0.0
        for place in range(1, ids_1T.shape[1] - 1):
            asked_1T = ids_1T.clone()
            asked_1T[0, place] = tokenizer.mask_token_id
            log_p_V = model.eval()(asked_1T).logits[0, place].log_softmax(-1)
            total += float(log_p_V[ids_1T[0, place]])
        expected.append(total)
        found.append(scorer.loglikelihood([("", text)])[0][0])
    figure(f"{kind} encoder, nats of {len(found)} texts there and here", (expected, found))
    assert len(found) >= 3 and max(expected) < -1
    assert found == pytest.approx(expected, rel=0, abs=NATS)


@pytest.mark.parametrize("kind", ["GPT-2", "travelling"])
def test_a_piece_outside_the_dictionary_costs_thirty_nats_more(
    kind: str, data: Path, tmp_path: Path
) -> None:
    source = checkpoint_of(data, tmp_path / "lm.pt", **DECODERS[kind][1])
    to_huggingface(source, tmp_path / "out", data, LINES[:2])
    model = lm_class()(path=str(source), data=str(data), device="cpu")
    text, unknown = "The cat zebra", model.scorer.dictionary.unk()
    pieces = model.scorer.encode(text)
    outside = pieces.count(unknown)
    theirs = harness_model(tmp_path / "out")
    (found,) = theirs._loglikelihood_tokens([(None, [2], theirs.tok_encode(text)[1:])])
    (expected,) = model.scorer.loglikelihood([("", text)])
    assert outside and expected[0] - found[0] == pytest.approx(30 * outside, abs=1e-3)

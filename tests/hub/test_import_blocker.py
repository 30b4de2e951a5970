"""Loading a model and filling masks need torch, numpy and the tokenizer, nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
BLOCKED = {"omegaconf", "hydra", "yaml", "tensorboardX", "rich", "safetensors", "tokenizers",
           "sentencepiece", "matplotlib", "transformers", "sklearn", "scipy", "wandb"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
from fairseq.models.roberta import RobertaModel
model, data, gpt2 = sys.argv[1:]
roberta = RobertaModel.from_pretrained(
    model, "model.pt", data, bpe="gpt2",
    gpt2_encoder_json=gpt2 + "/encoder.json", gpt2_vocab_bpe=gpt2 + "/vocab.bpe",
)
print(len(roberta.fill_mask("The <mask> of the Union is strong.", topk=3)))
print(sorted(BLOCKED & set(sys.modules)))
"""


def test_hub_loading_under_an_import_blocker(shared: Path) -> None:
    checkpoints = shared / "compat" / "checkpoints"
    words = [str(checkpoints / "zero_clap"), str(checkpoints / "data-bin")]
    command = [sys.executable, "-c", SCRIPT, *words, str(shared / "data" / "gpt2_bpe")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["3", "[]"]

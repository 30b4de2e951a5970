# %% [markdown]
# # Training from Python
#
# Text, data, a run, its curve, a comparison, an answer. Open it as a notebook (each `# %%` is a
# cell) or run it: `python examples/training_in_python.py`. The functions are described in
# docs/python.md.

# %% Text: the documentation strings of a few modules, a line each, an empty line between modules.
import inspect
import json
import re
import statistics
import time
from pathlib import Path

from fairseq import train
from fairseq.config.preprocess import PreprocessConfig
from fairseq.models.roberta import RobertaModel
from fairseq.preprocess import preprocess

UPDATES = 200
folder = Path("python-example")
folder.mkdir(exist_ok=True)


def documentation(module):
    """Return the words of the documentation strings of a module, a line for each string."""
    texts = {inspect.getdoc(member) for _, member in inspect.getmembers(module)}
    lines = [" ".join(re.findall(r"\w+|[.,()]", text.lower())) for text in texts if text]
    return "\n".join(sorted(lines))


for name, modules in {"train": (statistics, json, inspect, Path), "valid": (re,)}.items():
    text = "\n\n".join(documentation(module) for module in modules)
    (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")

# %% Data: a dictionary and binary files.
preprocess(
    PreprocessConfig(
        only_source=True,
        trainpref=str(folder / "train.txt"),
        validpref=str(folder / "valid.txt"),
        destdir=str(folder / "data-bin"),
    )
)

# %% Settings are the flags of fairseq-train; a recipe's path may be given beside them.
settings = {
    "data": folder / "data-bin",
    "task": "masked_lm",
    "criterion": "masked_lm",
    "arch": "roberta_tiny",
    "encoder_layers": 2,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 256,
    "position": "alibi",
    "tokens_per_sample": 32,
    "batch_size": 16,
    "optimizer": "adam",
    "lr": 0.003,
    "lr_scheduler": "polynomial_decay",
    "warmup_updates": 20,
    "max_update": UPDATES,
    "validate_interval_updates": 50,
    "epoch_checkpoints": False,
    "log_format": "none",
    "log_interval": 2,
}

# %% A run. A callback that returns True ends it; the state is saved, and the same call goes on.
losses = []


def on_log(record):
    """Keep the curve."""
    losses.append((record["update"], record["loss"]))


def on_validate(record):
    """Say what a validation came to; end the run after two minutes."""
    print(f"update {record['update']}: perplexity {record['ppl']:.1f}")
    return time.monotonic() - started > 120


started = time.monotonic()
result = train({**settings, "save_dir": folder / "run"}, on_log=on_log, on_validate=on_validate)
print(f"{result.updates} updates, best perplexity {result.best['ppl']:.1f}, {result.reason}")
print(f"loss in bits: {losses[0][1]:.2f} at first, {losses[-1][1]:.2f} at last")

# %% A comparison: the same run with other settings, without files.
for position in ("alibi", "learned"):
    other = train({**settings, "position": position, "no_save": True, "max_update": UPDATES // 2})
    print(f"{position:8} {other.final['valid']['ppl']:.1f}")

# %% An answer.
roberta = RobertaModel.from_pretrained(
    str(result.save_dir), result.best_checkpoint.name, str(folder / "data-bin")
)
roberta.eval()
for filled, probability, _ in roberta.fill_mask("return the <mask> of data .", topk=3):
    print(f"{probability:.3f} {filled}")

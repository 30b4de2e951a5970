"""Sentence prediction: the original's checkpoint, data layouts, bad input, a whole run."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fairseq import evaluation
from fairseq.data import collate
from fairseq.data.storage.dictionary import Dictionary
from fairseq.distributed.utils import free_port
from fairseq.errors import CheckpointError, ConfigError, DataError, MissingFileError
from fairseq.logging.meters import exact
from fairseq.models.roberta import RobertaConfig, RobertaHubInterface
from fairseq.models.roberta.model import RobertaModel
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from fairseq_cli import preprocess, train
from tests.tiny_run import fork, wait

TINY = {
    "encoder_layers": 1,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 8,
    "encoder_attention_heads": 2,
}

WORDS = "red blue green dog cat house tree".split()
SENTENCES = [" ".join(WORDS[(i * k) % 7] for k in range(1, 3 + i % 4)) for i in range(24)]
LABELS = ["yes" if "dog" in line else "no" for line in SENTENCES]


def binarize(text: list[str], folder: Path, *flags: str) -> None:
    """Make ``folder`` from lines: the first two thirds for training, the rest for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(text) * 2 // 3
    for name, lines in (("train", text[:cut]), ("valid", text[cut:])):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    words = ["--trainpref", str(folder / "train.txt"), "--validpref", str(folder / "valid.txt")]
    assert preprocess.run(["--only-source", *words, "--destdir", str(folder), *flags]) == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for sentence prediction with two classes."""
    binarize(SENTENCES, tmp_path / "bin" / "input0")
    binarize(LABELS, tmp_path / "bin" / "label")
    return tmp_path / "bin"


def task_of(data: Path, **settings: Any) -> SentencePredictionTask:
    settings = {"num_classes": 2, "init_token": 0, "separator_token": 2, **settings}
    cfg = SentencePredictionConfig(data=str(data), **settings)
    return SentencePredictionTask.setup_task(cfg)


def batch_of(task: SentencePredictionTask, split: str = "valid") -> dict[str, Any]:
    task.load_dataset(split)
    dataset = task.dataset(split)
    return dataset.collater([dataset[i] for i in range(len(dataset))])


# -- the original's ------------------------------------------------------------------------------


def test_the_original_checkpoint_predicts_equally(shared: Path) -> None:
    folder = shared / "compat/checkpoints/fb_sentpred"
    data = shared / "compat/checkpoints/sentpred-bin"
    gpt2 = shared / "data/gpt2_bpe"
    hub = RobertaModel.from_pretrained(
        str(folder),
        "model.pt",
        data_name_or_path=str(data.resolve()),
        gpt2_encoder_json=str(gpt2 / "encoder.json"),
        gpt2_vocab_bpe=str(gpt2 / "vocab.bpe"),
    ).eval()
    golden = np.load(folder / "golden.npz")["predict_logprobs_first50_valid"]
    lines = collate.load_indexed_dataset(str(data / "input0/valid"))
    found = [hub.predict("cls2", torch.cat([torch.tensor([0]), lines[i]]))[0] for i in range(50)]
    np.testing.assert_allclose(torch.stack(found).detach().numpy(), golden, atol=1e-5)


def test_validation_of_the_original_checkpoint(shared: Path) -> None:
    folder = shared / "compat/checkpoints"
    last = (folder / "fb_sentpred/validate.txt").read_text().strip().splitlines()[-1]
    printed = json.loads(last)
    given = {
        "path": str(folder / "fb_sentpred/model.pt"),
        "data": str(folder / "sentpred-bin"),
        "batch_size": 32,
        "valid_subset": "valid",
        "init_token": 0,
    }
    stats = evaluation.validate(given)["valid"]
    assert f"{float(stats['loss']):g}" == printed["valid_loss"]
    assert float(stats["accuracy"]) == float(printed["valid_accuracy"])


# -- data ----------------------------------------------------------------------------------------


def test_a_batch(data: Path) -> None:
    task = task_of(data, no_shuffle=True)
    batch = batch_of(task)
    labels = task.label_dictionary
    cut = len(SENTENCES) * 2 // 3
    assert batch["target"].shape == (8, 1)
    named = [labels[int(i) + labels.nspecial] for i in batch["target"][:, 0]]
    assert named == LABELS[cut:]
    tokens = batch["net_input"]["src_tokens"]
    for row, line in zip(tokens, SENTENCES[cut:], strict=True):
        kept = [int(i) for i in row if i != 1]
        assert kept == [0, *(task.dictionary.index(w) for w in line.split()), 2]
    assert batch["ntokens"] == int((tokens != 1).sum()) and batch["nsentences"] == 8
    assert labels[labels.nspecial] == max(set(LABELS[:cut]), key=LABELS[:cut].count)


def test_pairs_are_joined_by_the_separator(data: Path) -> None:
    binarize(SENTENCES[::-1], data / "input1", "--srcdict", str(data / "input0/dict.txt"))
    batch = batch_of(task_of(data, no_shuffle=True, add_prev_output_tokens=True))
    row = [int(i) for i in batch["net_input"]["src_tokens"][0] if i != 1]
    assert row[0] == 0 and row.count(2) == 3 and row[row.index(2) + 1] == 2
    rolled = [int(i) for i in batch["net_input"]["prev_output_tokens"][0] if i != 1]
    assert rolled == [row[-1], *row[:-1]]


@pytest.mark.parametrize("shorten", ["none", "truncate", "random_crop"])
def test_segments_go_where_the_model_has_them(data: Path, shorten: str) -> None:
    settings: dict[str, Any] = {"no_shuffle": True, "separator_token": None}
    settings |= {"shorten_method": shorten, "classification_head_name": "h"}
    settings["max_positions"] = 512 if shorten == "none" else 5
    plain, bert = task_of(data, **settings), task_of(data, **settings)
    for task, segments in ((plain, 0), (bert, 2)):
        model = task.build_model(RobertaConfig(_name="roberta", **TINY, segments=segments))
        single = batch_of(task)["net_input"]
        assert ("segments" in single) == bool(segments)
    assert single["segments"].shape == single["src_tokens"].shape and not single["segments"].any()
    binarize(SENTENCES[::-1], data / "input1", "--srcdict", str(data / "input0/dict.txt"))
    assert "segments" not in batch_of(plain)["net_input"]
    pair = batch_of(bert)["net_input"]
    tokens_BT, segments_BT = pair["src_tokens"], pair["segments"]
    assert segments_BT.any() and not segments_BT[tokens_BT == 1].any()
    if shorten == "none":  # <s> A </s> B </s>
        after_BT = (tokens_BT == 2).cumsum(1) - (tokens_BT == 2).long()
        assert segments_BT.equal((after_BT == 1).long())
    with torch.no_grad():
        with_BTC = model.eval()(**pair, features_only=True)[0]
        pair["segments"] = torch.zeros_like(segments_BT)
        assert not with_BTC.allclose(model(**pair, features_only=True)[0])


@pytest.mark.parametrize("separator", [None, 2])
def test_pairs_of_the_interface_have_segments(data: Path, separator: int | None) -> None:
    task = task_of(data, classification_head_name="h", separator_token=separator)
    model = task.build_model(RobertaConfig(_name="roberta", **TINY, segments=2)).eval()
    hub = RobertaHubInterface(SimpleNamespace(bpe=None), task, model)
    tokens_T = hub.encode("red dog", "blue")
    # as the task joins them
    between = "</s> </s>" if separator else "</s>"
    assert [task.dictionary[int(i)] for i in tokens_T] == f"<s> red dog {between} blue </s>".split()
    segments_BT = torch.tensor([[0, 0, 0, 0, *[1] * (len(tokens_T) - 4)]])
    expected = model(tokens_T[None], features_only=True, segments=segments_BT)[0]
    assert hub.extract_features(tokens_T).equal(expected)
    assert not expected.allclose(model(tokens_T[None], features_only=True)[0])


def test_shuffling_is_a_permutation_of_the_seed(data: Path) -> None:
    orders = []
    for seed in (1, 1, 2):
        task = task_of(data, seed=seed)
        task.load_dataset("train")
        orders.append([int(i) for i in task.dataset("train").ordered_indices()])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == np.argsort(np.random.RandomState(1).permutation(16)).tolist()


def test_regression_reads_rows_of_numbers(data: Path) -> None:
    rows = [(i / 7, -i) for i in range(8)]
    lines = "".join(f"{a} {b}\n" for a, b in rows)
    (data / "label/valid.label").write_text("\ufeff" + lines, encoding="utf-8")
    batch = batch_of(task_of(data, regression_target=True, no_shuffle=True))
    np.testing.assert_allclose(batch["target"], rows, rtol=1e-6)


# -- bad input -----------------------------------------------------------------------------------


def test_bad_input_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--num-classes is -1"):
        task_of(data, num_classes=-1)
    with pytest.raises(ConfigError, match="has 2 labels"):
        task_of(data, num_classes=1)
    with pytest.raises(FileNotFoundError, match="Dataset not found: test"):
        task_of(data).load_dataset("test")
    binarize(["maybe"] * 24, tmp_path / "other", "--srcdict", str(data / "label/dict.txt"))
    for name in ("valid.bin", "valid.idx"):
        (data / "label" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(DataError, match="label in line 1 is not in label/dict.txt"):
        task_of(data).load_dataset("valid")
    binarize(LABELS[:9], tmp_path / "short", "--srcdict", str(data / "label/dict.txt"))
    for name in ("valid.bin", "valid.idx"):
        (data / "label" / name).write_bytes((tmp_path / "short" / name).read_bytes())
    with pytest.raises(DataError, match="8 inputs, but 3 labels"):
        task_of(data).load_dataset("valid")
    binarize(["yes no"] * 24, tmp_path / "two", "--srcdict", str(data / "label/dict.txt"))
    for name in ("valid.bin", "valid.idx"):
        (data / "label" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(DataError, match="line 1 does not hold exactly one label"):
        task_of(data).load_dataset("valid")


def test_what_lies_beside_the_data_is_checked(data: Path) -> None:
    for name in ("init_token", "separator_token"):
        for token in (-1, 99):
            with pytest.raises(ConfigError, match=rf"--{name.replace('_', '-')} {token} is not in"):
                task_of(data, **{name: token})
    binarize(SENTENCES[:9], data / "input1", "--srcdict", str(data / "input0/dict.txt"))
    with pytest.raises(DataError, match="8 sentences in input0 and 3 in input1"):
        task_of(data).load_dataset("valid")
    (data / "label/dict.txt").unlink()
    with pytest.raises(MissingFileError, match=r"label/dict.txt"):
        task_of(data)


def test_a_wrong_dictionary_is_named(data: Path) -> None:
    small = Dictionary()
    small.add_symbol("red", 5)
    small.save(str(data / "input0/dict.txt"))
    with pytest.raises(DataError, match="come from different runs"):
        task_of(data).load_dataset("valid")


@pytest.mark.parametrize(
    ("line", "message"),
    [("a", "could not convert"), ("1 2 3", "expected 2"), ("nan 1", "expected 2")],
)
def test_bad_numbers_are_named(data: Path, line: str, message: str) -> None:
    (data / "label/valid.label").write_text(f"1 2\n{line}\n" + "1 2\n" * 6)
    with pytest.raises(DataError, match=f"line 2: {message}"):
        task_of(data, regression_target=True).load_dataset("valid")


def test_a_label_file_that_is_no_text_is_named(data: Path) -> None:
    (data / "label/valid.label").write_bytes(b"\xff\xfe1 2\n")
    with pytest.raises(DataError, match=r"valid\.label is not UTF-8 text"):
        task_of(data, regression_target=True).load_dataset("valid")


# -- from end to end -----------------------------------------------------------------------------

MODEL = (
    "--arch roberta_tiny --encoder-layers 2 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 "
    "--encoder-attention-heads 2 --max-positions 32 --optimizer adam --lr 0.01 --batch-size 4 "
    "--num-workers 0 --cpu --log-format none --dropout 0.1 --no-epoch-checkpoints"
).split()
SENTENCE = "--task sentence_prediction --criterion sentence_prediction --init-token 0".split()


def run_train(data: Path, save: Path, *flags: str) -> None:
    words = [str(data), "--save-dir", str(save), *SENTENCE, *MODEL, *flags]
    assert train.run(words) == 0


def write_numbers(data: Path, columns: int = 1) -> None:
    """Give every sentence as many numbers."""
    for split, count in (("train", 16), ("valid", 8)):
        rows = (" ".join([str(i / 8)] * columns) for i in range(count))
        (data / f"label/{split}.label").write_text("".join(f"{row}\n" for row in rows))


@pytest.mark.parametrize("classes", [1, 2])
def test_regressions_train_and_report(data: Path, tmp_path: Path, classes: int) -> None:
    write_numbers(data, classes)
    flags = ["--regression-target", "--num-classes", str(classes), "--max-update", "3"]
    run_train(data, tmp_path / "out", *flags, "--report-pearson-and-spearman")
    stats = evaluation.validate({"path": str(tmp_path / "out/checkpoint_last.pt")})["valid"]
    assert -100 <= stats["pearson"] <= 100 and -100 <= stats["spearman"] <= 100
    assert math.isclose(
        stats["pearson_and_spearman"], (stats["pearson"] + stats["spearman"]) / 2, abs_tol=0.11
    )


def test_classes_train_score_and_predict(data: Path, tmp_path: Path) -> None:
    flags = ["--num-classes", "2", "--max-epoch", "8", "--report-mcc", "--report-acc-and-f1"]
    flags += ["--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"]
    run_train(data, tmp_path / "out", *flags, "--classification-head-name", "dogs")
    path = tmp_path / "out"
    hub = RobertaModel.from_pretrained(
        str(path), "checkpoint_last.pt", data_name_or_path=str(data), bpe=None
    ).eval()
    batch = batch_of(hub.task)
    logprobs = torch.cat(
        [hub.predict("dogs", row[row != 1]) for row in batch["net_input"]["src_tokens"]]
    )
    assert torch.allclose(logprobs.exp().sum(1), torch.ones(8), atol=1e-5)
    right = 100 * (logprobs.argmax(1) == batch["target"][:, 0]).float().mean().item()
    stats = evaluation.validate({"path": str(path / "checkpoint_last.pt")})["valid"]
    assert math.isclose(float(stats["accuracy"]), right, abs_tol=0.06)
    assert -100 <= stats["mcc"] <= 100 and 0 <= stats["f1"] <= 100


@pytest.mark.parametrize("kind", ["dense", "linear"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "concat", "positions"])
def test_probes_train_the_head_only(data: Path, tmp_path: Path, pooling: str, kind: str) -> None:
    flags = ["--num-classes", "2", "--pooling", pooling, "--weight-decay", "0.5"]
    flags += ["--probe-head", kind]
    run_train(data, tmp_path / "a", *flags, "--max-update", "1")
    run_train(
        data, tmp_path / "b", *flags, "--max-update", "4", "--freeze-encoder",
        "--finetune-from-model", str(tmp_path / "a/checkpoint_last.pt"),
    )  # fmt: skip
    states = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=False) for name in "ab"
    ]
    before, after = (state["model"] for state in states)
    kept = states[1]["last_optimizer_state"]
    tensors = 4 if kind == "dense" else 2
    assert len(kept["state"]) == tensors
    assert [len(g["params"]) for g in kept["param_groups"]] == [tensors]
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("classification_heads.") for key in changed)
    first = "dense" if kind == "dense" else "out_proj"
    weight = before[f"classification_heads.sentence_classification_head.{first}.weight"]
    longest = states[0]["extra_state"]["fairseq_lm"]["config"]["task"]["max_positions"]
    assert weight.shape[1] == 16 * {"concat": 2, "positions": longest}.get(pooling, 1)


REPORTS = {
    "classes": ["--num-classes", "2", "--report-mcc", "--report-acc-and-f1"],
    "numbers": ["--num-classes", "1", "--regression-target", "--report-pearson-and-spearman"],
}


@pytest.mark.parametrize("kind", list(REPORTS))
def test_two_processes_report_as_one(data: Path, tmp_path: Path, kind: str) -> None:
    """Eight sentences in batches of three: one process has two batches, the other one."""
    write_numbers(data)
    port = str(free_port())
    flags = [*REPORTS[kind], "--max-update", "3", "--batch-size", "2", "--batch-size-valid", "3"]

    def work(rank: int) -> None:
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        os.environ.update(env, RANK=str(rank), LOCAL_RANK=str(rank))
        run_train(data, tmp_path, *flags)

    assert [wait(pid) for pid in [fork(lambda rank=rank: work(rank)) for rank in (0, 1)]] == [0, 0]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    valid = [row for row in map(json.loads, lines) if row["tag"] == "valid"][-1]
    path = str(tmp_path / "checkpoint_last.pt")
    stats = evaluation.validate({"path": path, "distributed_world_size": 1})["valid"]
    reports = {
        "classes": ["mcc", "f1", "acc_and_f1", "accuracy"],
        "numbers": ["pearson", "spearman"],
    }
    for name in reports[kind]:
        assert math.isclose(valid[name], exact(stats[name]), rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(valid["loss"], float(stats["loss"]), abs_tol=2e-3)


# -- from a pre-trained encoder --------------------------------------------------------------------

ENCODERS = {
    "roberta": [],
    "clap": ["--head", "clap", "--no-layernorm-embedding"],
    "alibi": ["--position", "alibi"],
    "zero-clap": ["--head", "clap", "--mask-embedding", "zero", "--position", "alibi-asymmetric"],
}


def pretrain(data: Path, save: Path, *flags: str) -> str:
    words = "--task masked_lm --criterion masked_lm --max-update 2 --tokens-per-sample 16".split()
    assert train.run([str(data / "input0"), "--save-dir", str(save), *words, *MODEL, *flags]) == 0
    return str(save / "checkpoint_last.pt")


@pytest.mark.parametrize("name", list(ENCODERS))
def test_every_encoder_is_fine_tuned_and_predicts(data: Path, tmp_path: Path, name: str) -> None:
    start = pretrain(data, tmp_path / "start", *ENCODERS[name])
    flags = ["--num-classes", "2", "--finetune-from-model", start, *ENCODERS[name]]
    run_train(data, tmp_path / "end", *flags, "--max-update", "3", "--lr", "1e-9")
    before = torch.load(start, weights_only=False)["model"]
    hub = RobertaModel.from_pretrained(
        str(tmp_path / "end"), "checkpoint_last.pt", data_name_or_path=str(data)
    ).eval()
    after = hub.model.state_dict()
    for key, value in before.items():  # at this learning rate, weights stay what they were
        torch.testing.assert_close(after[key], value, atol=1e-6, rtol=0, msg=key)
    assert len(hub.task.source_dictionary) == 16 + (name != "zero-clap")  # with <mask>, or without
    masked = hub.encode("red <mask> dog")
    assert int(masked[2]) == 16  # the last row of the table, or one past it
    log_p = hub.predict("sentence_classification_head", masked)
    assert log_p.shape == (1, 2) and math.isclose(log_p.exp().sum().item(), 1, abs_tol=1e-6)


def test_what_does_not_fit_the_encoder_is_named(data: Path, tmp_path: Path) -> None:
    start = pretrain(data, tmp_path / "start")
    flags = ["--num-classes", "2", "--max-update", "1", "--finetune-from-model", start]
    with pytest.raises(CheckpointError, match="has 32 learned positions, .* --max-positions 32"):
        run_train(data, tmp_path / "long", *flags, "--max-positions", "64")
    with pytest.raises(CheckpointError, match="knows 17 tokens, the dictionary of the data 16"):
        run_train(data, tmp_path / "zero", *flags, "--mask-embedding", "zero")
    text = (data / "input0/dict.txt").read_text()
    (data / "input0/dict.txt").write_text(text + "more 1\n")
    with pytest.raises(CheckpointError, match=r"knows 17 tokens, the dictionary of the data 18.*"):
        run_train(data, tmp_path / "words", *flags)
    for name in ("long", "zero", "words"):
        assert not list((tmp_path / name).glob("*.pt*"))


def test_bad_labels_stop_the_command_before_anything_is_saved(data: Path, tmp_path: Path) -> None:
    (data / "label/train.label").write_text("1\n" * 15)
    (data / "label/valid.label").write_text("1\n" * 8)
    flags = ["--num-classes", "1", "--regression-target", "--max-update", "1"]
    with pytest.raises(DataError, match="16 inputs, but 15 labels"):
        run_train(data, tmp_path / "out", *flags)
    (data / "label/train.label").unlink()
    with pytest.raises(ConfigError, match="no label/SPLIT.label"):
        run_train(data, tmp_path / "out", *flags)
    assert not list((tmp_path / "out").glob("*.pt*"))


# -- plug-ins --------------------------------------------------------------------------------------

PLUGIN = """
import math
import torch
import torch.nn.functional as F
from fairseq import metrics
from fairseq.criterions import FairseqCriterion, register_criterion


@register_criterion("noisy_sentence_prediction")
class Noisy(FairseqCriterion):
    def __init__(self, task, eps, classification_head_name, regression_target):
        super().__init__(task)
        self.eps, self.head, self.regression = eps, classification_head_name, regression_target

    @staticmethod
    def add_args(parser):
        parser.add_argument("--eps", type=float, default=1e-5)
        parser.add_argument("--classification-head-name", default="sentence_classification_head")
        parser.add_argument("--regression-target", action="store_true")

    def forward(self, model, sample, reduce=True):
        assert self.head in model.classification_heads and not self.regression
        given = sample["net_input"]
        embedded = model.encoder.sentence_encoder.embed_tokens(given["src_tokens"])
        options = dict(features_only=True, return_all_hiddens=True)
        logits, _ = model(**given, **options, classification_head_name=self.head)
        noise = self.eps * torch.randn_like(embedded)
        noisy, extra = model(
            **given,
            **options,
            classification_head_name=self.head,
            token_embeddings=embedded.detach() + noise,
        )
        targets = model.get_targets(sample, [logits]).view(-1)
        loss = F.nll_loss(F.log_softmax(logits, -1), targets, reduction="sum")
        loss = loss + F.mse_loss(noisy, logits, reduction="sum")
        log = {
            "loss": loss.item() if reduce else loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": targets.size(0),
            "ncorrect": int((logits.argmax(1) == targets).sum()),
        }
        return loss, targets.numel(), log

    @staticmethod
    def reduce_metrics(logging_outputs):
        total = {key: sum(log[key] for log in logging_outputs) for key in logging_outputs[0]}
        metrics.log_scalar("loss", total["loss"] / total["sample_size"] / math.log(2), round=3)
        metrics.log_scalar("accuracy", 100.0 * total["ncorrect"] / total["nsentences"])

    @staticmethod
    def logging_outputs_can_be_summed():
        return True
"""


def test_a_criterion_of_a_plug_in_uses_the_task(data: Path, tmp_path: Path) -> None:
    """A regulariser on noisy embeddings, with flags in the old manner."""
    package = tmp_path / "noisy_plugin"
    package.mkdir()
    (package / "__init__.py").write_text(PLUGIN)
    flags = ["--user-dir", str(package), "--criterion", "noisy_sentence_prediction", "--eps", "0.1"]
    flags += ["--classification-head-name", "noisy", "--num-classes", "2", "--max-update", "3"]
    run_train(data, tmp_path / "out", *flags)
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    valid = [row for row in map(json.loads, lines) if row["tag"] == "valid"][-1]
    assert valid["loss"] > 0 and 0 <= valid["accuracy"] <= 100
    kept = torch.load(tmp_path / "out/checkpoint_last.pt", weights_only=False)["model"]
    assert kept["classification_heads.noisy.out_proj.weight"].shape == (2, 16)

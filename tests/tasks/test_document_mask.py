"""``--document-mask``: rows of several documents equal the documents run one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import WORDS, config, content, train

from fairseq import evaluation, tasks
from fairseq.config.components import make_config
from fairseq.data.datasets.documents import number_documents
from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.errors import ConfigError
from fairseq.evaluation import perplexity
from fairseq.evaluation.pseudo_perplexity import pseudo_log_likelihood

PAD, EOS = 1, 2
# the lines of each document; an empty line follows each
DOCUMENTS = [
    [[4, 5, 6], [7, 8]],
    [[9, 10, 11, 12, 13]],
    [[14], [15, 16, 17], [18, 19]],
    [[20, 21, 22, 23]],
]
MASKED = {"task": "masked_lm", "arch": "roberta", "criterion": "masked_lm"}
CAUSAL = {
    "task": "language_modeling",
    "arch": "transformer_lm",
    "criterion": "cross_entropy",
    "decoder_layers": 2,
    "decoder_embed_dim": 32,
    "decoder_input_dim": 32,
    "decoder_output_dim": 32,
    "decoder_ffn_embed_dim": 48,
    "decoder_attention_heads": 2,
    "max_target_positions": 64,
}


def write(folder: Path, documents: list[list[list[int]]]) -> Path:
    folder.mkdir(parents=True)
    words = "".join(f"w{n} {100 - n}\n" for n in range(WORDS))
    (folder / "dict.txt").write_text(words, encoding="utf-8")
    for split in ("train", "valid"):
        builder = make_builder(str(folder / f"{split}.bin"), "mmap", WORDS + 4)
        for document in documents:
            for line in [*document, []]:
                builder.add_item(torch.tensor([*line, EOS]))
        builder.finalize(str(folder / f"{split}.idx"))
    return folder


def tokens_of(document: list[list[int]]) -> list[int]:
    return [token for line in [*document, []] for token in [*line, EOS]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("packed") / "data", DOCUMENTS)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("apart")
    return [write(folder / f"{n}", [document]) for n, document in enumerate(DOCUMENTS)]


def build(data: Path, family: dict[str, Any], **knobs: Any) -> tuple[Any, Any, Any]:
    """Return task, model and criterion; the same weights whatever the data."""
    given = {**vars_of(data, family), **knobs}
    cfg = make_config(given)
    torch.manual_seed(0)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model).eval()
    task.load_dataset("train")
    return task, model, task.build_criterion(cfg.criterion)


def vars_of(data: Path, family: dict[str, Any]) -> dict[str, Any]:
    sizes = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48}
    small = {**sizes, "encoder_attention_heads": 2, "tokens_per_sample": 64}
    return {**small, "data": str(data), "document_mask": True, **family}


def whole(task: Any) -> dict[str, Any]:
    dataset = task.dataset("train")
    return dataset.collater([dataset[i] for i in range(len(dataset))])


def test_an_empty_line_parts_documents() -> None:
    tokens_BT = torch.tensor([[0, 5, 2, 2, 6, 2, 2, 2, 7, 1, 1], [2, 2, 5, 2, 1, 1, 1, 1, 1, 1, 1]])
    assert number_documents(tokens_BT, eos=EOS, pad=PAD).tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 2, 3, -1, -1],
        [0, 0, 1, 1, -1, -1, -1, -1, -1, -1, -1],
    ]
    # in the sources of causal models the empty line begins the next document
    assert number_documents(tokens_BT, eos=EOS, pad=PAD, shifted=True).tolist() == [
        [0, 0, 0, 1, 1, 1, 2, 3, 3, -1, -1],
        [0, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize("mask_embedding", ["learned", "zero"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "alibi-asymmetric", "none"])
@pytest.mark.parametrize("length", [64, 16])
def test_masked_rows_equal_their_documents(
    length: int, position: str, mask_embedding: str, data: Path
) -> None:
    knobs = {"position": position, "mask_embedding": mask_embedding, "mask_prob": 0.3}
    more = {"tokens_per_sample": length, "sample_break_mode": "complete" if length < 64 else "none"}
    task, model, criterion = build(data, MASKED, **knobs, **more)
    batch = whole(task)
    loss_N, _, log = criterion(model, batch, reduce=False)
    tokens_BT = batch["net_input"]["src_tokens"]
    unmasked_BT = tokens_BT.where(batch["target"].eq(PAD), batch["target"])
    numbers = {token: n for n, document in enumerate(DOCUMENTS) for token in sum(document, [])}
    expected, parts = [], 0
    for source_T, unmasked_T, target_T in zip(tokens_BT, unmasked_BT, batch["target"], strict=True):
        kept = unmasked_T != PAD
        source_T, target_T, ids = source_T[kept], target_T[kept], unmasked_T[kept].tolist()
        edges, last = [0], None
        for place, token in enumerate(ids):  # a document begins behind the empty line before it
            number = numbers.get(token, last)
            if last is not None and number != last:
                edges.append(place)
            last = number
        for first, end in zip(edges, [*edges[1:], len(ids)], strict=True):
            parts += 1
            sample = {
                "net_input": {"src_tokens": source_T[None, first:end]},
                "target": target_T[None, first:end],
                "ntokens": end - first,
                "nsentences": 1,
            }
            expected.append(criterion(model, sample, reduce=False)[0])
    assert parts >= len(DOCUMENTS) and len(loss_N) == log["sample_size"] > 3
    torch.testing.assert_close(loss_N, torch.cat(expected), rtol=0, atol=1e-6)
    plain = {**batch, "net_input": {"src_tokens": tokens_BT}}
    assert (criterion(model, plain, reduce=False)[0] - loss_N).abs().max() > 1e-4


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "alibi", "rotary", "none"])
def test_causal_rows_equal_their_documents(position: str, data: Path, apart: list[Path]) -> None:
    task, model, criterion = build(data, CAUSAL, position=position)
    batch = whole(task)
    assert len(batch["target"]) == 1  # all documents are one row
    loss_N, _, _ = criterion(model, batch, reduce=False)
    expected = []
    for folder in apart:
        alone, _, _ = build(folder, CAUSAL, position=position, document_mask=False)
        expected.append(criterion(model, whole(alone), reduce=False)[0])
    torch.testing.assert_close(loss_N, torch.cat(expected), rtol=0, atol=1e-6)
    plain = {**batch, "net_input": {"src_tokens": batch["net_input"]["src_tokens"]}}
    assert (criterion(model, plain, reduce=False)[0] - loss_N).abs().max() > 1e-4


@pytest.mark.parametrize("backend", ["auto", "sdpa", "explicit", "reference"])
@pytest.mark.parametrize("family", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_pads_do_no_harm(family: dict[str, Any], backend: str, data: Path) -> None:
    more = {"tokens_per_sample": 12, "sample_break_mode": "complete"}
    task, model, criterion = build(data, family, attention_backend=backend, **more)
    batch = whole(task)
    assert batch["net_input"]["src_tokens"].eq(PAD).any()
    assert batch["net_input"]["documents"].eq(-1).equal(batch["net_input"]["src_tokens"].eq(PAD))
    loss, _, _ = criterion(model.train(), batch)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("family", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_training_and_evaluation_say_the_same(
    family: dict[str, Any], data: Path, apart: list[Path], tmp_path: Path
) -> None:
    flags = {**family, "document_mask": True, "max_update": 3, "total_num_update": 3}
    more = {"tokens_per_sample": 64, "max_positions": 64, "dropout": 0.0}
    train(config(data, tmp_path, **flags, **more))
    path = tmp_path / "checkpoint_last.pt"
    last = content(path)["extra_state"]["val_loss"]
    given = {"path": str(path), "data": str(data), "cpu": True, "log_format": "none"}
    found = evaluation.validate({**given, "batch_size": 4})
    assert found["valid"]["loss"] == pytest.approx(last, abs=2e-3)
    if family is MASKED:
        return
    given |= {"gen_subset": "valid"}
    packed = perplexity.evaluate(given)
    one_by_one = [perplexity.evaluate({**given, "data": str(folder)}) for folder in apart]
    bits = sum(each["loss"] * each["tokens"] for each in one_by_one)
    assert packed["loss"] == pytest.approx(bits / packed["tokens"], abs=1e-6)
    # a context in front of a row does not show other documents either
    windowed = perplexity.evaluate({**given, "context_window": 56})
    assert windowed["loss"] == pytest.approx(packed["loss"], abs=1e-6)


def test_pseudo_likelihoods_know_documents(data: Path) -> None:
    task, model, _ = build(data, MASKED)
    (tokens_T,) = (task.unmasked_blocks("train")[0],)
    total, scored = pseudo_log_likelihood(model, task, tokens_T)
    expected, first = 0.0, 0
    for number, document in enumerate(DOCUMENTS):
        end = first + len(tokens_of(document)) + (number == 0)  # <s>
        part, count = pseudo_log_likelihood(model, task, tokens_T[first:end])
        expected, scored, first = expected + part, scored - count, end
    assert scored == 0 and math.isclose(total, expected, rel_tol=1e-6)


def test_where_it_cannot_work_it_is_refused(data: Path, tmp_path: Path) -> None:
    for mode in ("eos", "complete_doc"):
        flags = {"document_mask": True, "sample_break_mode": mode}
        with pytest.raises(ConfigError, match="--document-mask: --sample-break-mode none or"):
            train(config(data, tmp_path, **flags))
    task, model, _ = build(data, CAUSAL)
    net_input = whole(task)["net_input"]
    with pytest.raises(ConfigError, match="one document"):
        model(net_input["src_tokens"], documents=net_input["documents"], incremental_state={})
    generator = task.build_generator([model], make_config({}).generation)
    with pytest.raises(ConfigError, match="several documents cannot be continued"):
        task.inference_step(generator, [model], whole(task))

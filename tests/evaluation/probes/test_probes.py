"""Linear probes: classifiers against known solutions, features against the model, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq.errors import ConfigError, DataError, UnsupportedError
from fairseq.evaluation.probes.features import Encoder, one_hot, true_conditionals
from fairseq.evaluation.probes.linear import L2_GRID, Split, accuracy, fit
from fairseq.evaluation.probes.sentences import read_labelled
from fairseq_cli import pcfg, probe, train
from tests.documents import TINY, narrow
from tests.tasks.test_sentence_prediction import LABELS, SENTENCES, binarize

ENCODER = ["--arch", "roberta", *narrow("encoder"), *TINY, "--optimizer", "adam", "--lr", "0.01"]
DECODER = "--arch transformer_lm --decoder-input-dim 16 --decoder-output-dim 16".split()
BLOCKS = "--tokens-per-sample 16 --sample-break-mode eos --batch-size 8 --max-update 2".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a masked LM and one of a causal LM, and labelled sentences."""
    root = tmp_path_factory.mktemp("probes")
    binarize(SENTENCES, root / "bin")
    data = str(root / "bin")
    words = ["--task", "masked_lm", "--criterion", "masked_lm", *ENCODER, *BLOCKS]
    assert train.run([data, "--save-dir", str(root / "masked"), *words]) == 0
    causal = [*DECODER, *narrow("decoder"), *TINY, "--optimizer", "adam", "--lr", "0.01", *BLOCKS]
    words = ["--task", "language_modeling", *causal]
    assert train.run([data, "--save-dir", str(root / "causal"), *words]) == 0
    for name, part in (("train", slice(0, 16)), ("valid", slice(16, 24))):
        rows = zip(SENTENCES[part], LABELS[part], strict=True)
        lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return root


def clouds(count: int = 90, seed: int = 0) -> Split:
    """Three classes of points on a plane, well apart, and eight features of noise."""
    generator = torch.Generator().manual_seed(seed)
    class_S = torch.arange(count) % 3
    centre_SD = torch.tensor([[4.0, 0.0], [-2.0, 3.5], [-2.0, -3.5]])[class_S]
    noise_SD = torch.randn(count, 10, generator=generator)
    noise_SD[:, :2] += centre_SD
    return Split(noise_SD, class_S)


@pytest.mark.parametrize("solver", ["lbfgs", "ridge", "sgd"])
def test_every_solver_separates_what_can_be_separated(solver: str) -> None:
    train_split, valid = clouds(3000 if solver == "sgd" else 900), clouds(90, seed=1)
    classifier, chosen = fit(solver, train_split, valid, 3)
    assert accuracy(classifier, valid) > 0.93
    again, _ = fit(solver, train_split, valid, 3)
    assert torch.equal(classifier(valid.features_SD), again(valid.features_SD))
    if solver == "lbfgs":
        assert chosen["l2"] in L2_GRID
    with pytest.raises(ConfigError, match="did you mean 'lbfgs'"):
        fit("lbgfs", train_split, valid, 3)


def test_logistic_regression_ends_where_the_gradient_is_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fairseq.evaluation.probes.linear.L2_GRID", (0.1,))
    split = clouds()
    classifier, _ = fit("lbfgs", split, split, 3)
    x_SD = (split.features_SD - split.features_SD.mean(0)) / split.features_SD.std(0)
    bias_K = classifier(split.features_SD.mean(0, keepdim=True))[0]
    weight_DK = (
        classifier(split.features_SD.mean(0) + torch.diag(split.features_SD.std(0))) - bias_K
    )
    p_SK = (x_SD @ weight_DK + bias_K).softmax(1)
    slope_DK = x_SD.t() @ (p_SK - torch.eye(3)[split.class_S]) / 90 + 0.1 * weight_DK
    assert slope_DK.abs().max() < 1e-3


def test_both_forms_of_ridge_regression_are_one() -> None:
    split = clouds(8)  # fewer rows than features: the kernel form
    classifier, _ = fit("ridge", split, split, 3)
    x_SD = split.features_SD.double()
    x_SD = x_SD / x_SD.norm(dim=1, keepdim=True)
    target_SK = torch.eye(3)[split.class_S].double() - 1 / 3
    gram_DD = x_SD.t() @ x_SD + 1e-3 * torch.eye(10)
    wanted_SK = x_SD @ torch.linalg.inv(gram_DD) @ x_SD.t() @ target_SK
    assert torch.allclose(classifier(split.features_SD), wanted_SK, atol=1e-8)


def test_features_are_the_models_states_whatever_the_batch(folder: Path) -> None:
    encoder = Encoder(str(folder / "masked/checkpoint_last.pt"))
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    ids = encoder.ids(SENTENCES)
    for kind in ("positions", "mean", "first"):
        whole_SD = encoder.features(ids, kind, 6)
        for place, own_T in enumerate(ids[:5]):
            assert torch.allclose(encoder.features([own_T], kind, 6)[0], whole_SD[place], atol=1e-5)
            tokens_1T = torch.cat([torch.tensor([0]), own_T, torch.tensor([2])])[None]
            states_TC = encoder.model(tokens_1T, features_only=True)[0][0]
            wanted = {"first": states_TC[0], "mean": states_TC[1:-1].mean(0)}
            wanted["positions"] = torch.zeros(6, 16)
            wanted["positions"][: len(own_T)] = states_TC[1:-1]
            assert torch.allclose(whole_SD[place], wanted[kind].flatten(), atol=1e-5)
    assert not encoder.model.training
    assert all(torch.equal(value, before[n]) for n, value in encoder.model.state_dict().items())
    with pytest.raises(ConfigError, match="--max-positions 2: a sentence has 5 tokens"):
        encoder.features(ids, "positions", 2)
    encoder.forget(1)
    first = encoder.features(ids, "mean", 6)
    encoder.forget(1)
    assert torch.equal(first, encoder.features(ids, "mean", 6))
    assert not torch.allclose(first, encoder.features(ids, "first", 6))


def test_one_hot_rows_tell_tokens_and_places(folder: Path) -> None:
    ids = [torch.tensor([7, 5]), torch.tensor([9, 7, 5])]
    found = one_hot(ids, torch.tensor([5, 7]), 2).view(2, 2, 2)
    assert found.tolist() == [[[0, 1], [1, 0]], [[0, 0], [0, 1]]]  # 9 is unknown, the third cut off


def test_true_distributions_stand_at_their_places(tmp_path: Path) -> None:
    q = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], np.float32)
    facts = {"offset": np.array([0, 2, 3]), "target": np.array([2, 0, 1], np.int16)}
    facts["terminals"] = np.array(["a", "b", "c"])

    def written(position: list[int]) -> str:
        with np.errstate(divide="ignore"):
            logq = np.log(q)
        np.savez(tmp_path / "q.npz", logq=logq, position=np.array(position, np.int16), **facts)
        return str(tmp_path / "q.npz")

    texts = ["c a", "b"]
    found = true_conditionals(written([0, 1, 0]), texts, 2).view(2, 2, 3)
    assert torch.allclose(found[0], torch.from_numpy(q[:2]))
    assert torch.allclose(found[1, 0], torch.from_numpy(q[2])) and not found[1, 1].any()
    with pytest.raises(DataError, match="do not fit"):
        true_conditionals(str(tmp_path / "q.npz"), texts, 1)
    for others in (["c b", "b"], ["c a b", "b"], ["c a", "b", "c"], ["c a"]):
        with pytest.raises(DataError, match="every word of line 1|scores 2 sentences"):
            true_conditionals(str(tmp_path / "q.npz"), others, 3)
    with pytest.raises(DataError, match="every word of line 2.*--masks single"):
        true_conditionals(written([0, 1, 1]), texts, 2)  # of random masks
    whole = (tmp_path / "q.npz").read_bytes()
    for bad in (b"text", b"", whole[:-9], whole[:300] + b"~~~~" + whole[304:]):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(DataError, match="no score file.*Write it with fairseq-pcfg score"):
            true_conditionals(str(tmp_path / "bad.npz"), texts, 2)


def test_the_command_prints_checkpoints_and_baselines(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = str(folder / "masked/checkpoint_last.pt")
    files = ["--train", str(folder / "train.csv"), "--valid", str(folder / "valid.csv")]
    assert probe.main([model, model, *files, "--features", "mean", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = [row["features"] for row in rows]
    assert names == [f"majority ({max(LABELS[:16], key=LABELS[:16].count)})", "one-hot tokens",
                     model, "random encoder", model]  # fmt: skip
    share = LABELS[16:].count(max(LABELS[:16], key=LABELS[:16].count)) / 8
    assert rows[0]["accuracy"] == share and math.isclose(
        rows[0]["se"], math.sqrt(share * (1 - share) / 8)
    )
    assert rows[2]["accuracy"] == rows[4]["accuracy"] and rows[2]["width"] == 16
    assert rows[1]["accuracy"] >= 0.75  # whether a word occurs is in the one-hot rows
    for part, rows_of in (("train", slice(0, 16)), ("valid", slice(16, 24))):
        (tmp_path / part).write_text("\n".join(SENTENCES[rows_of]))
        (tmp_path / f"{part}.label").write_text("\n".join(LABELS[rows_of]))
    words = [f"--{part}{end}" for part in ("train", "valid") for end in ("", "-labels")]
    paths = [str(tmp_path / f"{p}{end}") for p in ("train", "valid") for end in ("", ".label")]
    pairs = [word for pair in zip(words, paths, strict=True) for word in pair]
    assert probe.main([model, *pairs, "--features", "mean"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == "accuracy in % on valid; features: mean; solver: lbfgs" and len(text) == 5
    assert text[3].startswith(f"{100 * rows[2]['accuracy']:6.2f}")
    assert pcfg.main(["probe", model, *pairs, "--features", "mean"]) == 0
    assert capsys.readouterr().out.splitlines() == text


def test_sentences_are_read_as_they_were_written(tmp_path: Path) -> None:
    csv, text, labels = (tmp_path / name for name in ("a.csv", "a.txt", "a.label"))
    csv.write_bytes('\ufefftext,label\r\n"good, old\nfilm",x\r\nbad,y\r\n'.encode())
    found = read_labelled(str(csv))
    assert found.texts == ["good, old\nfilm", "bad"] and found.labels == ["x", "y"]
    text.write_bytes("one\u2028line\nand\x0canother\n".encode())
    labels.write_bytes("\ufeffx\r\nx".encode())
    found = read_labelled(str(text), str(labels))
    assert found.texts == ["one\u2028line", "and\x0canother"] and found.labels == ["x", "x"]


def test_bad_files_and_decoders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is a decoder; probes read encoders"):
        Encoder(str(folder / "causal/checkpoint_last.pt"))
    (tmp_path / "a.csv").write_text("text,label\nred dog\n")
    with pytest.raises(DataError, match="a.csv, line 2: expected the columns text and label"):
        read_labelled(str(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text('text,label\n"red dog,x\n')
    with pytest.raises(DataError, match="a.csv, line 2: no CSV"):
        read_labelled(str(tmp_path / "a.csv"))
    (tmp_path / "a.txt").write_text("red dog\n\n")
    (tmp_path / "a.label").write_text("1\n2\n")
    with pytest.raises(DataError, match="give its labels"):
        read_labelled(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="sentence 2 is empty"):
        read_labelled(str(tmp_path / "a.txt"), str(tmp_path / "a.label"))
    (tmp_path / "a.label").write_text("1\n")
    with pytest.raises(DataError, match="2 lines, but .* 1 labels"):
        read_labelled(str(tmp_path / "a.txt"), str(tmp_path / "a.label"))
    (tmp_path / "one.csv").write_text("text,label\nred dog,x\ncat,x\n")
    model = str(folder / "masked/checkpoint_last.pt")
    files = ["--train", str(tmp_path / "one.csv"), "--valid", str(tmp_path / "one.csv")]
    with pytest.raises(DataError, match="have one label only: x"):
        probe.main([model, *files])

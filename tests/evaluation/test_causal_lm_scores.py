"""fairseq-eval-lm: the original's figures, and a direct computation of what it claims.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.config import options
from fairseq.errors import ConfigError
from fairseq.evaluation import perplexity
from fairseq.hub.load import load_causal_models, load_model_ensemble_and_task
from fairseq_cli import eval_lm


@pytest.fixture(scope="module")
def lm(shared: Path) -> dict[str, str]:
    folder = shared / "compat" / "checkpoints"
    return {"path": str(folder / "fb_lm" / "model.pt"), "data": str(folder / "data-bin")}


COMMON: dict[str, Any] = {"cpu": True, "log_format": "none", "num_workers": 0}


@pytest.mark.parametrize("wrong", ["[]", "dropout=1"])
def test_overrides_are_a_dict(wrong: str, lm: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="--model-overrides must be a dict"):
        load_causal_models({**lm, **COMMON, "model_overrides": wrong})


@pytest.mark.parametrize("window, loss, ppl", [(0, 6.7615, 108.50), (16, 6.7601, 108.39)])
def test_the_original_s_figures(lm: Any, capsys: Any, window: int, loss: float, ppl: float) -> None:
    given = {**lm, **COMMON, "tokens_per_sample": 64, "batch_size": 16, "context_window": window}
    found = eval_lm.main(given)
    assert (round(found["loss"], 4), round(found["perplexity"], 2)) == (loss, ppl)
    out = capsys.readouterr().out
    assert f"Loss (base 2): {loss:.4f}, Perplexity: {ppl:.2f}" in out
    assert "Evaluated 9,302 tokens in" in out


def stream(lm: Any) -> tuple[Any, torch.Tensor]:
    models, _, task = load_model_ensemble_and_task([lm["path"]], {"data": lm["data"]})
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    tokens = torch.cat([dataset[i]["target"] for i in range(12)])
    return models[0].eval(), torch.cat([torch.tensor([2]), tokens])


@pytest.mark.parametrize("window, length", [(5, 20), (12, 17), (0, 9)])
def test_every_token_sees_its_context(lm: Any, window: int, length: int) -> None:
    """Score the first blocks one token at a time, each with exactly the tokens it may see."""
    model, stream_T = stream(lm)
    block = length - window
    total, count = 0.0, 6 * block
    with torch.no_grad():
        for place in range(count):
            first = max(0, place // block * block - window)
            log_p = model(stream_T[None, first : place + 1])[0][0, -1].log_softmax(-1)
            total -= float(log_p[stream_T[place + 1]])
    given = {**lm, **COMMON, "tokens_per_sample": length, "context_window": window}
    models, config, task = load_causal_models(given)
    task = perplexity._with_room(task, window)
    task.load_dataset("valid")
    batches = task.eval_lm_dataloader(
        task.dataset("valid"), batch_size=1, num_workers=0, context_window=window
    )
    six = [batch for batch, _ in zip(batches, range(6), strict=False)]
    if window == 0:  # without a context the order is that of the lengths, which are equal
        six = [task.dataset("valid").collater([task.dataset("valid")[i]]) for i in range(6)]
    models[0].eval()
    found = perplexity.eval_lm(models, task.source_dictionary, six)
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(total / count / math.log(2), abs=1e-5)


def test_batches_and_ensembles_change_nothing(lm: Any) -> None:
    given = {**lm, **COMMON, "gen_subset": "valid"}
    one = perplexity.evaluate(given)
    small = perplexity.evaluate({**given, "max_tokens": 100})
    twice = perplexity.evaluate({**given, "path": f"{lm['path']}:{lm['path']}"})
    assert small["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert twice["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert one["tokens"] == small["tokens"] == twice["tokens"]


def test_an_ensemble_averages_probabilities(lm: Any) -> None:
    models, _, task = load_causal_models({**lm, **COMMON})
    other, _, _ = load_causal_models({**lm, **COMMON})
    torch.nn.init.normal_(other[0].decoder.layers[0].fc1.weight)
    both = [models[0].eval(), other[0].eval()]
    task.load_dataset("valid")
    sample = task.dataset("valid").collater([task.dataset("valid")[i] for i in (0, 3)])
    positions_N, target_N = perplexity.scored_positions(sample, 1)
    found = perplexity.target_log_probs(both, sample, positions_N, target_N)
    with torch.no_grad():
        probs = [m(sample["net_input"]["src_tokens"])[0].softmax(-1).flatten(0, 1) for m in both]
    mean = (probs[0] + probs[1])[positions_N, target_N] / 2
    torch.testing.assert_close(found, mean.log())


def test_words(lm: Any) -> None:
    found = perplexity.evaluate({**lm, **COMMON, "gen_subset": "valid", "output_word_probs": True})
    total = 0.0
    for line in found["lines"]:
        words = line.split(" ", 1)[1].split("\t")
        total += sum(float(word.rsplit("[", 1)[1].rstrip("]")) for word in words)
    assert -total / found["tokens"] / math.log(2) == pytest.approx(found["loss"], abs=1e-5)
    stats = perplexity.evaluate({**lm, **COMMON, "gen_subset": "valid", "output_word_stats": True})[
        "lines"
    ]
    rows = [line.split("\t") for line in stats]
    assert sum(int(row[1]) for row in rows) == found["tokens"]
    assert sum(float(row[2]) for row in rows) == pytest.approx(total, rel=1e-3)


def test_pieces_are_joined() -> None:
    words = perplexity._Words({4: "un@@", 5: "seen", 6: "word"}, "subword_nmt", True, True)
    sample = {"target": torch.tensor([[4, 5, 6]]), "id": torch.tensor([7])}
    places = torch.arange(3)
    words.add(sample, places, torch.tensor([4, 5, 6]), torch.tensor([-1.0, -2.0, -4.0]))
    lines = words.lines()
    assert lines[0] == "7 unseen [-3.000000]\tword [-4.000000]"  # six digits, as there
    assert lines[1].split("\t") == ["unseen", "1", "-3.0", "True", "-4.0", "1"]
    assert lines[2].split("\t") == ["word", "1", "-4.0", "False", "0.0", "0"]


def test_a_namespace_of_the_original_s_kind(lm: Any) -> None:
    parser = options.get_eval_lm_parser(argv=())
    argv = [lm["data"], "--path", lm["path"], "--no-progress-bar", "--num-workers", "0", "--cpu"]
    args = options.parse_args_and_arch(parser, [*argv, "--context-window", "16"])
    found = eval_lm.main(args)
    assert round(found["loss"], 4) == 6.7601
    from fairseq.config.plugin_names import convert_namespace_to_omegaconf

    assert round(eval_lm.main(convert_namespace_to_omegaconf(args))["loss"], 4) == 6.7601


def test_one_json_object(lm: Any, capsys: Any) -> None:
    argv = [lm["data"], "--path", lm["path"], "--json", "--cpu", "--gen-subset", "valid"]
    assert eval_lm.run(argv) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["perplexity"] == pytest.approx(2 ** found["loss"])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"path": None}, "--path is missing"),
        ({"context_window": 64}, "--context-window 64"),
        ({"context_window": -1}, "--context-window .*not -1"),
        ({"post_process": "sentencepiece", "output_word_probs": True}, "--post-process"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(lm: Any, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        perplexity.evaluate({**lm, **COMMON, **given})


def test_a_masked_lm_is_refused(shared: Path, lm: Any) -> None:
    path = shared / "compat" / "checkpoints" / "fb_baseline" / "model.pt"
    with pytest.raises(ConfigError, match="fairseq-validate"):
        perplexity.evaluate({**lm, **COMMON, "path": str(path)})

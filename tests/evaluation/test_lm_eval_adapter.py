"""The adapter for lm-evaluation-harness: its arithmetic, and the harness itself where it is there.

Shapes: T tokens.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.evaluation import lm_eval
from fairseq.evaluation.lm_eval import TextScorer, load_scorer, main
from fairseq.models.roberta.model import RobertaConfig, RobertaModel
from fairseq.models.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

LETTERS = "abcdefghijklmnop"
HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None


class Spelling:
    """Pieces are letters, marked after a space; a line break is a piece of its own."""

    def encode(self, x: str) -> str:
        return " ".join({"\n": "<n>"}.get(c, c) for c in x).replace("   ", " _")

    def decode(self, x: str) -> str:
        return x.replace(" ", "").replace("_", " ").replace("<n>", "\n")


def dictionary() -> Dictionary:
    words = Dictionary()
    for letter in LETTERS:
        words.add_symbol(letter)
        words.add_symbol(f"_{letter}")
    return words


def foreign() -> Dictionary:
    """Return the dictionary of an imported model: no counts, texts begin and end with one mark."""
    pieces = [f"{mark}{letter}" for letter in LETTERS for mark in ("", "_")]
    pad, end = "<pad>", "<|endoftext|>"
    return Dictionary.foreign([*pieces, "<n>", pad, end], bos=end, eos=end, unk=end, pad=pad)


def scorer(kind: str = "causal", length: int = 24, **settings: Any) -> TextScorer:
    """Return a scorer of random but decided models."""
    torch.manual_seed(0)
    words = settings.pop("words", None) or dictionary()
    position = settings.pop("position", "learned")
    task: Any
    model: Any
    if kind == "causal":
        cfg = LanguageModelingConfig(tokens_per_sample=length, **settings.pop("task", {}))
        task = LanguageModelingTask(cfg, words)
        sizes: dict[str, Any] = {
            "decoder_layers": 2, "decoder_embed_dim": 8, "decoder_input_dim": 8,
            "decoder_output_dim": 8, "decoder_ffn_embed_dim": 12, "decoder_attention_heads": 2,
        }  # fmt: skip
        config = TransformerLanguageModelConfig(
            **sizes, position=position, tokens_per_sample=length, max_target_positions=None
        )
        model = TransformerLanguageModel.build_model(config, task)
    else:
        task = MaskedLMTask(MaskedLMConfig(tokens_per_sample=length), words)
        sizes = {"encoder_layers": 2, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 12}
        masked = RobertaConfig(**sizes, encoder_attention_heads=2, max_positions=length)
        model = RobertaModel.build_model(masked, task)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return TextScorer([model.eval()], task, Spelling(), **settings)


def log_p_after(found: TextScorer, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return found.models[0](torch.tensor([ids]))[0][0, -1].log_softmax(-1)


# -- text and tokens -------------------------------------------------------------------------------


def test_line_breaks_are_ends_of_sentences() -> None:
    found = scorer()
    a, b, eos = found.dictionary.index("a"), found.dictionary.index("b"), found.dictionary.eos()
    assert found.encode("a \n\n b") == [a, eos, eos, b]
    assert found.decode([a, eos, eos, b]) == "a\n\nb"
    assert found.pair("a\n", "b") == ([eos, a, eos], [b])


def test_line_breaks_are_pieces_where_a_corpus_had_them() -> None:
    words = dictionary()
    words.add_symbol("<n>", n=3)
    found = scorer(words=words)
    a, n = words.index("a"), words.index("<n>")
    assert found.keeps_newlines and found.encode("a\na") == [a, n, a]
    assert not scorer(words=words, newline="eos").keeps_newlines
    words.count[n] = 0
    assert not scorer(words=words).keeps_newlines
    assert scorer(words=words, newline="piece").keeps_newlines


def test_line_breaks_are_pieces_of_imported_models() -> None:
    words = foreign()
    found = scorer(words=words)
    assert found.keeps_newlines
    assert found.encode("a\na") == [words.index("a"), words.index("<n>"), words.index("a")]
    assert not scorer(words=words, newline="eos").keeps_newlines


def test_texts_begin_with_what_the_model_was_trained_on() -> None:
    for settings, mark in (({}, "</s>"), ({"sample_break_mode": "line"}, "<s>")):
        found = scorer(task=settings)
        expected = [found.dictionary.index(mark)]
        assert found.front == expected and found.pair("", "b")[0] == expected


def test_spaces_belong_to_the_continuation() -> None:
    found = scorer()
    index, eos = found.dictionary.index, found.dictionary.eos()
    expected = ([eos, index("a")], [index("_b"), index("c")])
    assert found.pair("a", " bc") == found.pair("a ", "bc") == expected
    assert found.pair("", "bc") == ([eos], [index("b"), index("c")])
    assert scorer("masked").pair("", "b")[0] == []


# -- scores ----------------------------------------------------------------------------------------

PAIRS = [("ab c", " de"), ("", "fgh"), ("a\nb", "\ncd e"), ("abc", ""), ("p o n", " m l k")]


def test_log_likelihood_of_a_causal_model() -> None:
    expected = []
    found = scorer(position="alibi")
    for context, continuation in PAIRS:
        row, last = found.pair(context, continuation)
        total, greedy = 0.0, True
        for token in last:
            log_p_V = log_p_after(found, row)
            total, greedy = total + float(log_p_V[token]), greedy and token == log_p_V.argmax()
            row = [*row, token]
        expected.append((total, bool(greedy)))
    for batch_size in (1, 2, 16):
        found.batch_size = batch_size
        answers = found.loglikelihood(PAIRS)
        assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
        assert [x for x, _ in answers] == pytest.approx([x for x, _ in expected], rel=1e-5)
    assert answers[3] == (0.0, True)


def test_log_likelihood_of_a_masked_model() -> None:
    found = scorer("masked")
    words = found.dictionary
    for (context, continuation), answer in zip(PAIRS, found.loglikelihood(PAIRS), strict=True):
        begin, last = found.pair(context, continuation)
        ids, total = [words.bos(), *begin, *last, words.eos()], 0.0
        for place in range(1 + len(begin), len(ids) - 1):
            masked = torch.tensor([ids])
            masked[0, place] = found.task.mask_idx
            with torch.no_grad():
                log_p_V = found.models[0](masked)[0][0, place].log_softmax(-1)
            total += float(log_p_V[ids[place]])
        assert math.isclose(answer[0], total, rel_tol=1e-5, abs_tol=1e-9)


def test_masks_on_the_rest_hide_more() -> None:
    each, rest = (scorer("masked", masks=masks).loglikelihood(PAIRS) for masks in ("each", "rest"))
    same = [math.isclose(a[0], b[0], rel_tol=1e-5) for a, b in zip(each, rest, strict=True)]
    assert same == [False, False, False, True, False]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 21])
def test_windows_predict_each_token_once_with_full_context(count: int) -> None:
    found = scorer(length=8)
    ids = list(range(100, 100 + count))
    stream = [found.dictionary.eos(), *ids]
    predicted: list[int] = []
    for context, last in found.windows(ids):
        row = context + last[:-1]
        assert len(row) <= 8 and (len(row) == 8 or count < 8)
        assert stream[stream.index(last[-1]) - len(row) : stream.index(last[-1])] == row
        predicted += last
    assert predicted == ids
    masked = list(scorer("masked", length=8).windows(ids))
    assert [token for _, last in masked for token in last] == ids
    assert all(not context and len(last) <= 6 for context, last in masked)


def test_windows_equal_those_of_the_harness() -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed")
    found = scorer(length=8)
    for count in range(30):
        ids = list(range(100, 100 + count))
        theirs = utils.get_rolling_token_windows(ids, found.dictionary.eos(), 8, 1)
        ours = [(context + last[:-1], last) for context, last in found.windows(ids)]
        assert ours == [tuple(window) for window in theirs]


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_rolling_log_likelihood_is_the_sum_of_its_windows(kind: str) -> None:
    found = scorer(kind, length=8)
    texts = ["abc def ghi jkl mno", "", "ab"]
    expected = []
    for text in texts:
        pairs = list(found.windows(found.encode(text)))
        expected.append(sum(log_p for log_p, _ in found._scores(pairs)))
    assert found.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-5)
    (alone, _) = found.loglikelihood([("", "ab")])[0]
    assert math.isclose(expected[2], alone, rel_tol=1e-5) and expected[1] == 0


def test_without_a_limit_windows_are_as_long_as_samples() -> None:
    assert scorer(position="alibi", length=20).window == 20
    assert scorer(position="alibi", max_length=12).window == 12
    with pytest.raises(DataError, match="text 1"):
        scorer(position="alibi", max_length=3).loglikelihood([("a", "bcdefgh")])


def test_what_is_unknown_or_cut_is_said(caplog: pytest.LogCaptureFixture) -> None:
    scorer(length=8).loglikelihood([("abcdefghij", "k"), ("a", "z"), ("a", "b")])
    assert "1 of 3 contexts lost their beginning" in caplog.text
    assert "1 of 3 continuations hold unknown pieces" in caplog.text


# -- generation ------------------------------------------------------------------------------------


def written(found: TextScorer, context: str, count: int) -> list[int]:
    """Write greedily, one forward pass for each token."""
    row = found.front + found.encode(context)
    begin = len(row)
    for _ in range(count):
        log_p_V = log_p_after(found, row)
        marks = {found.dictionary.pad(), found.dictionary.bos()} - {found.dictionary.eos()}
        log_p_V[list(marks)] = -torch.inf
        row.append(int(log_p_V.argmax()))
    return row[begin:]


@pytest.mark.parametrize("position", ["learned", "alibi", "rotary"])
def test_generation_is_greedy_in_any_batch(position: str) -> None:
    found = scorer(position=position, newline="piece")
    contexts = ["a b", "c", "p o n m l", ""]
    requests = [(context, {"until": [], "max_gen_toks": 7}) for context in contexts]
    for batch_size in (1, 4):
        found.batch_size = batch_size
        for context, text in zip(contexts, found.generate_until(requests), strict=True):
            ids = written(found, context, 7)
            eos = found.dictionary.eos()
            ids = ids[: ids.index(eos)] if eos in ids else ids
            assert found.encode(context + text) == found.encode(context) + ids


class Fixed:
    """A model that recites a text, whatever it reads."""

    max_positions = staticmethod(lambda: 50)

    def __init__(self, ids: list[int], start: int, size: int) -> None:
        self.decoder, self.ids, self.start, self.size = self, ids, start, size

    def __call__(self, tokens_RS: torch.Tensor) -> tuple[torch.Tensor, None]:
        places = torch.arange(tokens_RS.shape[1]) - self.start + 1
        told = torch.tensor(self.ids)[places.clamp(0, len(self.ids) - 1)]
        logits = torch.nn.functional.one_hot(told, self.size).float() * 50
        return logits.expand(len(tokens_RS), -1, -1), None

    def get_normalized_probs(self, output: Any, log_probs: bool) -> torch.Tensor:
        return output[0].log_softmax(-1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"until": ["\n"]}, " bc d"),
        ({"until": "c"}, " b"),
        ({"until": ["x", "d", "c d"]}, " b"),
        ({"until": ["\n\n"]}, " bc d\ne"),
        ({}, " bc d\ne"),
        ({"max_gen_toks": 2}, " bc"),
        ({"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9}, " bc d\ne"),
        ({"do_sample": True, "temperature": 0}, " bc d\ne"),
    ],
)
def test_where_generation_stops(settings: dict[str, Any], expected: str) -> None:
    found = scorer()
    ids = found.encode("a bc d\ne\n\nf")[1:]
    found.models = [Fixed(ids, 2, len(found.dictionary))]
    assert found.generate_until([("a", settings)]) == [expected]


def test_where_one_mark_begins_and_ends_texts() -> None:
    found = scorer(words=foreign())
    ids = [*found.encode("a b\nc")[1:], found.dictionary.eos(), *found.encode("de")]
    found.models = [Fixed(ids, 2, len(found.dictionary))]
    assert found.generate_until([("a", {})]) == [" b\nc"]


def test_prompts_and_what_is_written_share_the_window() -> None:
    found = scorer(length=8, newline="piece")
    prompt = found.encode("abcdefghij")
    for wanted, read, room in ((3, 5, 3), (6, 4, 4), (100, 4, 4)):
        assert found._room(prompt, {"max_gen_toks": wanted}) == (prompt[-read:], room)
    assert found._room(prompt[:2], {}) == (prompt[:2], 6)
    (text,) = found.generate_until([("abcdefghij", {"max_gen_toks": 3})])
    found.front = []  # what is read begins in the middle of a text
    assert found.generate_until([("fghij", {"max_gen_toks": 3})]) == [text]
    with pytest.raises(ConfigError, match="no room to write"):
        found.generate_until([("a", {"max_gen_toks": 0})])
    with pytest.raises(ConfigError, match="masked language models do not generate"):
        scorer("masked").generate_until([("a", {})])


def test_settings_that_are_unknown() -> None:
    with pytest.raises(ConfigError, match="newline=n must be auto, eos or piece"):
        scorer(newline="n")
    with pytest.raises(ConfigError, match="masks=all each or rest"):
        scorer(masks="all")


# -- the harness -----------------------------------------------------------------------------------

TRAIN = (
    "--task language_modeling --criterion cross_entropy --arch transformer_lm --decoder-layers 1 "
    "--decoder-embed-dim 32 --decoder-ffn-embed-dim 64 --decoder-attention-heads 2 "
    "--optimizer adam --lr 0.01 --batch-size 8 --max-update 150 --cpu --num-workers 0 "
    "--log-format none --no-epoch-checkpoints --tokens-per-sample 16 --sample-break-mode eos "
    "--disable-validation"
).split()
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "now {{{{a}}}}"
doc_to_target: {target}
{more}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has learned which animal comes after which."""
    from fairseq_cli import preprocess, train

    folder = tmp_path_factory.mktemp("trained")
    animals = "cat dog hen cow pig".split()
    lines = [f"now {animals[i % 5]} {animals[(i + 1) % 5]}\n" for i in range(20)]
    (folder / "text").write_text("".join(lines))
    data = str(folder / "bin")
    preprocess.run(["--only-source", "--trainpref", str(folder / "text"), "--destdir", data])
    assert train.run([data, "--save-dir", str(folder), *TRAIN]) == 0
    return folder


def test_a_checkpoint_is_loaded(trained: Path) -> None:
    path, data = str(trained / "checkpoint_last.pt"), str(trained / "bin")
    found = load_scorer(path, data, batch_size="auto", device="cpu", max_length=9)
    assert (found.window, found.batch_size, found.bpe) == (9, 16, None)
    answers = found.loglikelihood([("now cat", " dog"), ("now cat", " pig")])
    assert [greedy for _, greedy in answers] == [True, False] and answers[0][0] > -1
    settings = {"until": ["\n"], "max_gen_toks": 5}
    assert found.generate_until([("now hen", settings)]) == [" cow"]


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    lm_eval.lm_class.cache_clear()
    with pytest.raises(ConfigError, match=r"needs the package 'lm_eval'"):
        main(["--tasks", "x"])
    assert main(["--help"]) == 0
    assert "examples:" in capsys.readouterr().out


def test_importing_the_adapter_does_not_import_the_harness() -> None:
    program = "import sys, fairseq.evaluation.lm_eval; print('lm_eval' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [("cat", "dog", 0), ("cow", "cat", 1), ("hen", "cow", 0), ("pig", "hen", 1)]
    answers = {"cat": "dog", "cow": "pig", "hen": "cow", "pig": "cat"}
    records = [
        {"a": a, "b": b, "label": label, "choices": [b, answers[a] if label else "now"]}
        for a, b, label in rows
    ]
    file = folder / "docs.json"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    kinds = {
        "multiple_choice": ("label", 'doc_to_choice: "{{choices}}"'),
        "loglikelihood": ('" {{b}}"', "metric_list: [{metric: acc}, {metric: perplexity}]"),
        "loglikelihood_rolling": ('" {{b}}"', "metric_list: [{metric: word_perplexity}]"),
        "generate_until": (
            '"{{b}}"',
            'generation_kwargs: {until: ["\\n"], max_gen_toks: 4}\n'
            "metric_list: [{metric: exact_match}]\n"
            "filter_list: [{name: strip, filter: [{function: remove_whitespace}, "
            "{function: take_first}]}]",
        ),
    }
    for kind, (target, more) in kinds.items():
        text = TASK.format(name=f"own_{kind}", file=file, kind=kind, target=target, more=more)
        (folder / f"{kind}.yaml").write_text(text)
    return folder


def run_harness(trained: Path, tasks: Path, names: str, monkeypatch: Any) -> dict[str, Any]:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    lm_eval.lm_class.cache_clear()
    out = trained / f"results-{names}"
    model = f"path={trained / 'checkpoint_last.pt'},data={trained / 'bin'}"
    flags = ["--model_args", model, "--tasks", names, "--include_path", str(tasks)]
    assert main([*flags, "--device", "cpu", "--batch_size", "3", "--output_path", str(out)]) == 0
    (file,) = out.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    return {name.removeprefix("own_"): found for name, found in results.items()}


@pytest.mark.skipif(not HAS_HARNESS, reason="lm-eval is not installed")
def test_the_harness_with_tasks_of_ones_own(
    trained: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "own_multiple_choice,own_loglikelihood,own_loglikelihood_rolling,own_generate_until"
    found = run_harness(trained, tasks, names, monkeypatch)
    assert found["multiple_choice"]["acc,none"] == 1
    assert found["loglikelihood"]["acc,none"] == 0.5
    assert found["generate_until"]["exact_match,strip"] == 0.5
    own = load_scorer(str(trained / "checkpoint_last.pt"), str(trained / "bin"), device="cpu")
    rows = [json.loads(line) for line in (tasks / "docs.json").read_text().splitlines()]
    answers = own.loglikelihood([(f"now {row['a']}", f" {row['b']}") for row in rows])
    mean = sum(log_p for log_p, _ in answers) / 4
    assert math.isclose(found["loglikelihood"]["perplexity,none"], math.exp(-mean), rel_tol=1e-4)
    rolled = sum(own.loglikelihood_rolling([f" {row['b']}" for row in rows]))
    words = sum(len(f" {row['b']}".split(" ")) for row in rows)  # an empty one in front
    measured = found["loglikelihood_rolling"]["word_perplexity,none"]
    assert math.isclose(measured, math.exp(-rolled / words), rel_tol=1e-4)


@pytest.mark.skipif(not HAS_HARNESS, reason="lm-eval is not installed")
def test_answers_are_kept_by_the_harness(trained: Path) -> None:
    lm_eval.lm_class.cache_clear()
    model = lm_eval.register()
    path, data = trained / "checkpoint_last.pt", trained / "bin"
    made: Any = model.create_from_arg_string(  # type: ignore[attr-defined]
        f"path={path},data={data}", {"batch_size": 2, "device": "cpu", "max_batch_size": None}
    )
    kept: list[Any] = []
    made.set_cache_hook(SimpleNamespace(add_partial=lambda *entry: kept.append(entry)))
    request = SimpleNamespace(args=("now cat", " dog"))
    answers = made.loglikelihood([request])
    assert kept == [("loglikelihood", request.args, answers[0])]
    assert str(made.device) == "cpu" and made.world_size == 1

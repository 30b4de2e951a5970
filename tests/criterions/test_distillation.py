"""Distillation: every term against its formula in fp64, written row by row.

Shapes: B batch, T time, C channels, V vocabulary, H heads, D channels of a head.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
from tiny_lm import tiny_lm
from tiny_roberta import DICTIONARY, PAD, tiny

from fairseq.criterions.distillation import DistillationConfig, DistillationCriterion
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.ops.hidden_distillation import Relation, relation_divergence
from fairseq.ops.linear_distillation import DIVERGENCES
from fairseq.teacher import Teacher

TERMS = ("nll", "ce", "mse", "cos", "pkd", "attention", "value")
EVERYTHING = {
    "alpha_ce": 0.7, "alpha_mse": 0.03, "alpha_cos": 0.9, "pkd_weight": 1.1,
    "minilm_attention_weight": 1.3, "minilm_value_weight": 0.4,
}  # fmt: skip
T = 2.0


def criterion(masked: bool, **settings: Any) -> DistillationCriterion:
    task = SimpleNamespace(target_dictionary=DICTIONARY)
    if masked:
        task.mask_idx = len(DICTIONARY) - 1
    return DistillationCriterion(DistillationConfig(distillation_temperature=T, **settings), task)


def teacher_of(model: Any, dtype: torch.dtype = torch.float64) -> Teacher:
    return Teacher(model, "teacher.pt", "0" * 64, torch.device("cpu"), dtype)


def models(masked: bool, **other: Any) -> tuple[Any, Any]:
    """Return student and teacher in fp64: fewer layers, and maybe other widths."""
    plain = {"dropout": 0.0, "attention_dropout": 0.0}
    if masked:
        student = tiny(encoder_layers=2, **plain).double().train()
        other = {f"encoder_{name}": value for name, value in other.items()}
        teacher = tiny(encoder_layers=4, encoder_normalize_before=True, **plain, **other).double()
    else:
        student = tiny_lm(decoder_normalize_before=True, **plain).double().train()
        width = other.get("embed_dim", 8)
        other = {f"decoder_{name}": value for name, value in other.items()}
        wide = {"decoder_input_dim": width, "decoder_output_dim": width}
        teacher = tiny_lm(decoder_layers=4, **plain, **wide, **other).double()
    for parameter in teacher.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return student, teacher


def batch(masked: bool, lengths: tuple[int, ...] = (6, 4), seed: int = 0) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(seed)
    tokens_BT = torch.full((len(lengths), max(lengths)), PAD)
    target_BT = tokens_BT.clone()
    for row, length in enumerate(lengths):
        tokens_BT[row, :length] = torch.randint(4, 13, (length,), generator=drawn)
        target_BT[row, :length] = torch.randint(4, 13, (length,), generator=drawn)
        if masked:
            target_BT[row, 1::2] = PAD
    return {
        "net_input": {"src_tokens": tokens_BT, "src_lengths": torch.tensor(lengths)},
        "target": target_BT,
        "ntokens": sum(lengths),
        "nsentences": len(lengths),
    }


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(-1, keepdim=True)


def last_relations(model: Any, inner: list[Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """Return q k^T / sqrt(D) and v v^T / sqrt(D) of the last layer, from its projections."""
    body = model.encoder.sentence_encoder if hasattr(model, "encoder") else model.decoder
    layer, x_BTC = body.layers[-1], inner[-2].transpose(0, 1)
    if layer.shape.pre_norm:
        x_BTC = layer.self_attn_layer_norm(x_BTC)
    split = []
    for name in "qkv":
        linear = getattr(layer.self_attn, f"{name}_proj")
        x_BHTD = (x_BTC @ linear.weight.T + linear.bias).unflatten(-1, (heads, -1))
        split.append(x_BHTD.permute(0, 2, 1, 3))
    query, key, value = split
    scale = query.shape[-1] ** 0.5
    return query @ key.mT / scale, value @ value.mT / scale


def expected(
    student: Any, teacher: Any, sample: dict[str, Any], masked: bool, restrict: bool, heads: int,
    layers: dict[int, int], maps: Any, kind: str = "forward",
) -> dict[str, tuple[Tensor, int]]:  # fmt: skip
    """Return the sum and the number of positions of every term, position by position."""
    tokens_BT, target_BT = sample["net_input"]["src_tokens"], sample["target"]
    (s_BTV, own), (t_BTV, theirs) = (
        m(tokens_BT, return_all_hiddens=True) for m in (student, teacher)
    )
    t_BTV = t_BTV.detach()
    relations = [
        last_relations(m, e["inner_states"], heads) for m, e in ((student, own), (teacher, theirs))
    ]
    sums = dict.fromkeys(TERMS, torch.zeros((), dtype=torch.float64))
    counts = dict.fromkeys(TERMS, 0)

    def add(name: str, value: Tensor) -> None:
        sums[name], counts[name] = sums[name] + value, counts[name] + 1

    def state(extra: Any, layer: int) -> Tensor:
        inner = extra["inner_states"]
        return extra["features"] if layer == len(inner) - 2 else inner[layer + 1].transpose(0, 1)

    for b, t in [(b, t) for b in range(len(tokens_BT)) for t in range(tokens_BT.shape[1])]:
        real, predicted = tokens_BT[b, t] != PAD, target_BT[b, t] != PAD
        s_V, t_V = s_BTV[b, t], t_BTV[b, t]
        if predicted:
            add("nll", -softmax(s_V)[target_BT[b, t]].log())
        if predicted if restrict or not masked else real:
            p_V, q_V = softmax(t_V / T), softmax(s_V / T)
            m_V = 0.5 * p_V + 0.5 * q_V
            add("ce", T**2 * {
                "forward": (p_V * (p_V / q_V).log()).sum(),
                "reverse": (q_V * (q_V / p_V).log()).sum(),
                "jsd": 0.5 * ((p_V * (p_V / m_V).log()).sum() + (q_V * (q_V / m_V).log()).sum()),
            }[kind])  # fmt: skip
            add("mse", (s_V - t_V).pow(2).sum())
        if not real:
            continue
        x_C, y_C = maps("features", own["features"][b, t]), theirs["features"][b, t].detach()
        add("cos", 1 - x_C @ y_C / (x_C.norm() * y_C.norm()))
        distance = torch.zeros((), dtype=torch.float64)
        for mine, other in layers.items():
            x_C = maps(f"layer{mine}", state(own, mine)[b, t])
            y_C = state(theirs, other)[b, t].detach()
            distance = distance + (x_C / x_C.norm() - y_C / y_C.norm()).pow(2).mean()
        add("pkd", distance)
        seen_T = (tokens_BT[b] != PAD) & (
            torch.ones(tokens_BT.shape[1], dtype=torch.bool) if masked
            else torch.arange(tokens_BT.shape[1]) <= t
        )  # fmt: skip
        for name, which in (("attention", 0), ("value", 1)):
            rows = [side[which][b, :, t][:, seen_T] for side in relations]
            q_HT, p_HT = softmax(rows[0]), softmax(rows[1]).detach()
            add(name, (p_HT * (p_HT / q_HT).log()).sum(-1).mean())
    return {name: (sums[name], counts[name]) for name in TERMS}


def run(student: Any, built: DistillationCriterion, samples: list[dict[str, Any]]) -> Any:
    """Return gradients and figures of an update of these micro-batches, divided as trainers do."""
    student.zero_grad()
    built.zero_grad()
    built.prepare_update(samples)
    size, logs = 0, []
    for sample in samples:
        loss, count, log = built(student, sample)
        loss.backward()
        size, logs = size + count, [*logs, log]
    parameters = [*student.parameters(), *built.parameters()]
    return [p.grad / size if p.grad is not None else None for p in parameters], logs


def figures(logs: list[dict[str, Any]]) -> dict[str, float]:
    with metrics.aggregate(new_root=True) as aggregated:
        DistillationCriterion.reduce_metrics(logs)
    shown = {name: meter.avg for name, meter in aggregated.items() if hasattr(meter, "avg")}
    whole = sum(value for name, value in shown.items() if name.startswith("_"))
    assert aggregated.get_smoothed_value("loss") == round(whole, 3)
    return {**shown, "loss": whole}


def test_the_objective_of_a_validation_does_not_depend_on_its_batches() -> None:
    """Terms have other counts: batches, logged one by one, weigh otherwise in each of them."""
    log = {
        "sample_size": 2, "nll_sum": 3.0, "nll_weighted": 3.0, "nll_count": 2,
        "cos_sum": 4.0, "cos_weighted": 20.0, "cos_count": 10,
    }  # fmt: skip
    other = {**log, "nll_count": 6, "cos_sum": 1.0, "cos_weighted": 5.0, "cos_count": 2}
    with metrics.aggregate(new_root=True) as aggregated:
        for one in (log, other):
            DistillationCriterion.reduce_metrics([one])
    expected = ((3 + 3) / (2 + 6) + (20 + 5) / (10 + 2)) / math.log(2)
    assert aggregated.get_smoothed_values()["loss"] == round(expected, 3)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "causal"])
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("restrict", [False, True])
@pytest.mark.parametrize("wider", [False, True])
def test_every_term_and_its_gradient(masked: bool, kind: str, restrict: bool, wider: bool) -> None:
    heads = 2 if not wider else 4
    student, teacher = models(masked, **({"embed_dim": 12} if wider else {}))
    own = {"alpha_mlm" if masked else "alpha_clm": 1.7}
    built = criterion(
        masked, **EVERYTHING, **own, divergence=kind, restrict_ce_to_mask=restrict,
        layer_map="1:0,3:1", minilm_relation_heads=4 if wider else 0, teacher_path="x",
    )  # fmt: skip
    built.attach(student, teacher_of(teacher), None)
    built.double()
    assert len(built.projections) == (3 if wider else 0)

    def maps(name: str, x_C: Tensor) -> Tensor:
        return x_C if name not in built.projections else built.projections[name].weight @ x_C

    sample = batch(masked)
    want = expected(student, teacher, sample, masked, restrict, heads, {0: 1, 1: 3}, maps, kind)
    total = sum(built.alphas[name] * want[name][0] / want[name][1] for name in TERMS)
    parameters = [*student.parameters(), *built.parameters()]
    theirs = torch.autograd.grad(total, parameters, allow_unused=True)
    gradients, logs = run(student, built, [sample])
    for one, other in zip(gradients, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    shown = figures(logs)
    assert shown["loss"] == pytest.approx(total.item() / math.log(2), rel=1e-9)
    for name in TERMS:
        unit = math.log(2) if name in ("nll", "ce", "attention", "value") else 1
        key = "nll_loss" if name == "nll" else f"loss_{name}"
        value = (want[name][0] / want[name][1]).item()
        assert shown[key] == pytest.approx(value / unit, rel=1e-9), name
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "causal"])
def test_micro_batches_and_pads_make_no_difference(masked: bool) -> None:
    """A batch with pads, the same in two micro-batches, and one by one: the same gradient."""
    student, teacher = models(masked)
    built = criterion(masked, **EVERYTHING, teacher_path="x")
    built.attach(student, teacher_of(teacher), None)
    whole = batch(masked, (6, 4, 3))

    def row(number: int, width: int) -> dict[str, Any]:
        tokens_T = whole["net_input"]["src_tokens"][number, :width][None]
        return {
            "net_input": {"src_tokens": tokens_T},
            "target": whole["target"][number, :width][None],
            "ntokens": int(tokens_T.ne(PAD).sum()),
            "nsentences": 1,
        }

    together, logs = run(student, built, [whole])
    for widths in ((6, 4, 3), (6, 6, 6)):
        apart, more = run(student, built, [row(n, w) for n, w in enumerate(widths)])
        for one, other in zip(apart, together, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert figures(more) == pytest.approx(figures(logs), rel=1e-9)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "causal"])
@pytest.mark.parametrize("heads", [0, 4])
def test_packed_documents_are_compared_as_rows_of_their_own(masked: bool, heads: int) -> None:
    """No term, nor its gradient, relates tokens of two documents to each other."""
    student, teacher = models(masked)
    built = criterion(masked, **EVERYTHING, minilm_relation_heads=heads, teacher_path="x")
    built.attach(student, teacher_of(teacher), None)
    apart = batch(masked, (4, 4))
    tokens_1T = apart["net_input"]["src_tokens"].view(1, 8)
    documents_1T = torch.arange(2).repeat_interleave(4)[None]
    packed = {
        **apart,
        "net_input": {"src_tokens": tokens_1T, "documents": documents_1T},
        "target": apart["target"].view(1, 8),
    }
    gradients, logs = run(student, built, [apart])
    found, more = run(student, built, [packed])
    assert figures(more) == pytest.approx(figures(logs), rel=1e-9)
    for one, other in zip(found, gradients, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


class Noisy(torch.nn.Module):
    """A model whose hidden states, queries, keys and values are others at pads."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, src_tokens: Tensor, **wanted: Any) -> Any:
        output, extra = self.model(src_tokens, **wanted)
        noise_BT1 = 100.0 * src_tokens.eq(PAD)[..., None]
        extra["features"] = extra["features"] + noise_BT1
        extra["inner_states"] = [x + noise_BT1.transpose(0, 1) for x in extra["inner_states"]]
        for layer, parts in extra["qkv"].items():
            extra["qkv"][layer] = tuple(
                part + (noise_BT1[:, None] if part.dim() == 4 else noise_BT1) for part in parts
            )
        return output, extra


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "causal"])
@pytest.mark.parametrize("heads", [0, 4])
def test_what_stands_at_pads_changes_no_term(masked: bool, heads: int) -> None:
    """Neither the value nor the gradient of any term, whichever side has it."""
    student, teacher = models(masked)
    own = {"alpha_mlm" if masked else "alpha_clm": 1.7}
    settings = {**EVERYTHING, **own, "minilm_relation_heads": heads, "teacher_path": "x"}
    built = criterion(masked, **settings)
    room = teacher_of(teacher)
    built.attach(student, room, None)
    gradients, logs = run(student, built, [batch(masked, (6, 3))])
    room.model = Noisy(teacher)
    noisy, more = Noisy(student), []
    student.zero_grad()
    sample = batch(masked, (6, 3))
    built.prepare_update([sample])
    loss, size, log = built(noisy, sample)
    loss.backward()
    more.append(log)
    assert figures(more) == pytest.approx(figures(logs), rel=1e-9)
    for one, parameter in zip(gradients, student.parameters(), strict=False):
        if one is not None:
            torch.testing.assert_close(parameter.grad / size, one, rtol=1e-9, atol=1e-12)


def test_what_stands_at_unselected_positions_changes_nothing() -> None:
    """With the divergence restricted to masked tokens, other targets and pads do not matter."""
    student, teacher = models(True)
    built = criterion(True, alpha_ce=1.0, alpha_mse=1.0, restrict_ce_to_mask=True, teacher_path="x")
    built.attach(student, teacher_of(teacher), None)
    sample = batch(True)
    seen: list[int] = []
    head = student.encoder.lm_head
    original = head.projection
    head.projection = lambda hidden_NC: seen.append(len(hidden_NC)) or original(hidden_NC)
    run(student, built, [sample])
    assert seen == [int(sample["target"].ne(PAD).sum())]


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    student, _ = models(False)
    built = criterion(False, **EVERYTHING, alpha_clm=0.0, teacher_path="x")
    copy, _ = models(False)
    built.attach(student, teacher_of(copy), None)
    gradients, logs = run(student, built, [batch(False)])
    assert all(g.abs().max() < 1e-8 for g in gradients if g is not None)
    shown = figures(logs)
    assert all(abs(shown[f"loss_{n}"]) < 1e-12 for n in ("ce", "mse", "cos", "pkd", "attention"))


def test_the_cosine_looks_at_directions_only() -> None:
    from fairseq.ops.hidden_distillation import cosine_distance

    left, right = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    one_BT = cosine_distance(left, right)
    torch.testing.assert_close(cosine_distance(7 * left, right), one_BT)
    torch.testing.assert_close(cosine_distance(-left, right), 2 - one_BT)
    assert one_BT.min() >= 0 and one_BT.max() <= 2


def test_zero_weights_cost_nothing_and_want_no_teacher() -> None:
    student, teacher = models(False)
    plain = criterion(False, alpha_ce=0.0, alpha_clm=1.0)
    assert plain.wanted() == set()
    watched = teacher_of(teacher)
    calls: list[Any] = []
    original = watched.outputs
    watched.outputs = lambda *a, **k: calls.append(k) or original(*a, **k)  # type: ignore
    built = criterion(False, alpha_ce=1.0, alpha_clm=0.0, teacher_path="x")
    built.attach(student, watched, None)
    built(student, batch(False))
    assert calls == [{}]  # neither hidden states nor queries were asked for
    nll = plain(student, batch(False))
    logits = student(batch(False)["net_input"]["src_tokens"])[0]
    want = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch(False)["target"].flatten(), ignore_index=PAD, reduction="sum"
    )
    torch.testing.assert_close(nll[0], want)


def test_alphas_are_linear_and_the_teacher_stays_as_it_is() -> None:
    student, model = models(True, embed_dim=12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = teacher_of(model)
    parts = {"alpha_ce": 0.0, "alpha_mlm": 0.0}
    single = []
    for name, value in {**EVERYTHING, "alpha_mlm": 0.6}.items():
        built = criterion(True, **{**parts, name: value}, minilm_relation_heads=4, teacher_path="x")
        built.attach(student, teacher, None)
        built.double()
        for linear in built.projections.values():
            torch.nn.init.eye_(linear.weight)
        single.append(run(student, built, [batch(True)])[0][: len(list(student.parameters()))])
    whole = criterion(True, **EVERYTHING, alpha_mlm=0.6, minilm_relation_heads=4, teacher_path="x")
    whole.attach(student, teacher, None)
    whole.double()
    for linear in whole.projections.values():
        torch.nn.init.eye_(linear.weight)
    gradients = run(student, whole, [batch(True)])[0]
    for number, gradient in enumerate(gradients[: len(list(student.parameters()))]):
        parts_sum = sum(g[number] for g in single if g[number] is not None)
        if gradient is not None:
            torch.testing.assert_close(gradient, parts_sum, rtol=1e-7, atol=1e-10)
    whole.train()
    whole.to(torch.bfloat16)  # reaches the projections, not the teacher
    whole(student, batch(True))
    assert not model.training
    assert not any("teacher" in name for name, _ in whole.named_modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {n.split(".")[0] for n in whole.state_dict()} == {"projections"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_teacher_has_a_type_of_its_own(dtype: torch.dtype) -> None:
    student, model = models(True)
    student.float()
    built = criterion(True, **EVERYTHING, teacher_path="x")
    built.attach(student, teacher_of(model, dtype), None)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        loss = built(student, batch(True))[0]
    loss.backward()
    assert next(model.parameters()).dtype == dtype and loss.dtype == torch.float32
    again, exact = models(True)
    other = criterion(True, **EVERYTHING, teacher_path="x")
    other.attach(again, teacher_of(exact), None)
    assert loss.item() == pytest.approx(other(again, batch(True))[0].item(), rel=0.1)


def test_validation_tells_the_students_own_loss_whatever_it_is_trained_with() -> None:
    student, teacher = models(False)
    built = criterion(False, alpha_ce=0.0, alpha_clm=0.0, alpha_cos=1.0, teacher_path="x")
    built.attach(student, teacher_of(teacher), None)
    assert "nll_sum" not in built(student, batch(False))[2]
    shown = figures([built(student.eval(), batch(False))[2]])
    assert {"nll_loss", "loss_cos", "loss"} <= set(shown)
    alone = figures([criterion(False, alpha_cos=1.0, teacher_path="x")(student, batch(False))[2]])
    assert alone["nll_loss"] == pytest.approx(shown["nll_loss"]) and "loss_cos" not in alone


REFUSED = [
    (
        False,
        {"alpha_mlm": 2.0, "alpha_clm": 0.0},
        "--task language_modeling trains with --alpha-clm",
    ),
    (True, {"alpha_clm": 2.0}, "--task masked_lm trains with --alpha-mlm"),
    (False, {"alpha_ce": -1.0}, "must not be negative"),
    (False, {"alpha_ce": 0.0, "alpha_clm": 0.0}, "one must be positive"),
    (False, {"jsd_beta": 1.0}, "--jsd-beta"),
    (False, {"layer_map": "0-1"}, "TEACHER:STUDENT"),
    (False, {"layer_map": "0:1,2:1"}, "once"),
    (True, {"teacher_cache": "x"}, "--restrict-ce-to-mask"),
]


@pytest.mark.parametrize("masked, settings, said", REFUSED)
def test_senseless_settings_are_refused(masked: bool, settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        criterion(masked, **settings)


def test_what_cannot_be_compared_is_refused() -> None:
    student, teacher = models(False, attention_heads=4)
    for settings, said in (
        ({"minilm_value_weight": 1.0}, "--minilm-relation-heads"),
        ({"minilm_value_weight": 1.0, "minilm_relation_heads": 3}, "does not divide"),
        ({"pkd_weight": 1.0, "layer_map": "4:0"}, "the teacher has 4 layers"),
    ):
        with pytest.raises(ConfigError, match=said):
            criterion(False, teacher_path="x", **settings).attach(
                student, teacher_of(teacher), None
            )
    with pytest.raises(ConfigError, match="needs --teacher-path"):
        criterion(False).wanted()


def test_mixed_precision_leaves_the_relations_alone() -> None:
    torch.manual_seed(0)
    sides = [Relation(*torch.randn(2, 2, 3, 5, 8)) for _ in range(2)]
    pad_BT = torch.zeros(2, 5, dtype=torch.bool)
    alone_BT = relation_divergence(*sides, pad_BT, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relation_divergence(*sides, pad_BT, causal=True), alone_BT)

"""Loss spikes are found, and a run that went back from one ends as if it had not happened."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import Recorder, config, content, faults, make_corpus, train

from fairseq.errors import ConfigError
from fairseq.logging.sinks import read_jsonl
from fairseq.training.spikes import MOST_RETURNS, SpikeError, SpikePolicy, roll_back
from fairseq.training.trainer import Trainer
from tests.training.resume.cut_runs import LAST, events, updates_of

# a decoder that learns to count in a hundred updates
RUN: dict[str, Any] = {
    "task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm",
    "decoder_layers": 1, "decoder_embed_dim": 32, "decoder_ffn_embed_dim": 64,
    "decoder_attention_heads": 2, "decoder_normalize_before": True, "dropout": 0.0,
    "share_decoder_input_output_embed": True, "sample_break_mode": "eos", "batch_size": 32,
    "batch_size_valid": 200, "lr": [2e-2], "warmup_updates": 10, "save_interval_updates": 10,
    "keep_interval_updates": 6, "no_epoch_checkpoints": True, "validate_interval": 1000,
    "spike_window": 32, "total_num_update": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data", 400, 100)


def policy(**settings: Any) -> SpikePolicy:
    known = {"policy": "skip", "factor": 6.0, "window": 16, "back": 10, "reseed": True}
    return SpikePolicy(
        SimpleNamespace(**{f"spike_{k}": v for k, v in {**known, **settings}.items()})
    )


def verdicts(losses: list[float], **settings: Any) -> list[int]:
    """Return the updates that are found to be spikes."""
    progress: dict[str, Any] = {}
    looks = policy(**settings)
    return [n for n, loss in enumerate(losses) if looks.verdict(loss, n, progress) is not None]


# -- what is a spike -------------------------------------------------------------------------------


def test_a_jump_is_found_and_noise_and_progress_are_not() -> None:
    rng = random.Random(0)
    falling = [6 - 0.01 * n + rng.gauss(0, 0.05) for n in range(200)]
    assert verdicts(falling) == []
    falling[100] += 1.0
    assert verdicts(falling) == [100]
    assert verdicts(falling, policy="none") == []
    assert verdicts(falling, factor=1000.0) == []


def test_a_constant_loss_has_no_spikes_and_a_new_level_is_accepted() -> None:
    assert verdicts([5.0] * 50 + [5.01] * 50) == []
    found = verdicts([5.0] * 50 + [8.0] * 50, window=16)
    assert found == list(range(50, 50 + 8))  # until half of the window is the new level


def test_too_few_losses_and_senseless_ones_decide_nothing() -> None:
    assert verdicts([1.0] * 7 + [100.0]) == []
    assert verdicts([1.0] * 20 + [float("nan"), float("inf")]) == []


@pytest.mark.parametrize(("name", "value"), [("factor", 1.0), ("window", 7), ("back", 0)])
def test_settings_that_find_nothing_are_refused(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--spike-{name} .* must be .*, not {value}"):
        train(config(tmp_path, tmp_path, **{f"spike_{name}": value}))


# -- what is done about it -------------------------------------------------------------------------


def faster(*calls: int, by: float = 50) -> Callable[[Trainer, int], None]:
    """Return an action that multiplies the rate of chosen calls: it ruins the weights."""

    def act(trainer: Trainer, call: int) -> None:
        if call in calls:
            trainer.optimizer.set_lr(by * trainer.get_lr())

    return act


def spike_at(patch: pytest.MonkeyPatch, update: int) -> None:
    """Find a spike after so many updates, once."""
    original, found = SpikePolicy.verdict, []

    def verdict(looks: SpikePolicy, loss: float, done: int, progress: dict[str, Any]) -> str | None:
        original(looks, loss, done, progress)
        if done != update or found:
            return None
        found.append(done)
        return "a spike"

    patch.setattr(SpikePolicy, "verdict", verdict)


def valid_loss(folder: Path) -> float:
    return [r["loss"] for r in read_jsonl(folder / "metrics.jsonl") if r["tag"] == "valid"][-1]


def run_with(
    data: Path, folder: Path, calls: tuple[int, ...], updates: int, **flags: Any
) -> dict[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch, faster(*calls, by=50 if len(calls) > 1 else 500))
        flags = {**RUN, "max_update": updates, "total_num_update": updates, **flags}
        train(config(data, folder, **flags))
    return recorder.losses


@pytest.mark.parametrize("points", faults(1, 20))
def test_a_run_recovers_from_spikes(
    points: int, data: Path, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    updates = 100 if points == 1 else 300
    run_with(data, tmp_path / "clean", (), updates)
    clean, rng = valid_loss(tmp_path / "clean"), random.Random(1)
    ratios = []
    for number in range(points):
        at = rng.randrange(updates // 3, updates - 40)
        folder = tmp_path / str(number)
        run_with(data, folder, (at, at + 1, at + 2), updates, spike_policy="rollback")
        assert events(folder, "rollback")
        ratios.append(valid_loss(folder) / clean)
    at = updates - 40
    run_with(data, tmp_path / "without", (at, at + 1, at + 2), updates)
    without = valid_loss(tmp_path / "without") / clean
    # it is a spike: far above what recovery may cost below; 1.5 itself, give or take the last bits
    assert without > 1.3
    figure("spikes, all recovered by going back", points)
    figure("spikes: worst final loss, times the clean run's", round(max(ratios), 3))
    figure(
        "spikes: final loss without a policy", round(valid_loss(tmp_path / "without") / clean, 2)
    )
    assert max(ratios) < 1.1


def test_skipping_leaves_the_weights_alone(data: Path, tmp_path: Path) -> None:
    weights: dict[int, list[torch.Tensor]] = {}

    def act(trainer: Trainer, call: int) -> None:
        weights[call] = [p.detach().clone() for p in trainer.parameters()]
        faster(60, by=500)(trainer, call)

    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch, act)
        train(config(data, tmp_path, **RUN, max_update=64, spike_policy="skip"))
    skipped = events(tmp_path, "skipped")
    assert skipped and skipped[0]["update"] == 61 and "deviations" in skipped[0]["reason"]
    assert not all(map(torch.equal, weights[60], weights[61]))  # the ruin
    assert all(map(torch.equal, weights[61], weights[62]))  # the update after it, skipped


def test_going_back_takes_the_checkpoint_and_the_data_that_follow(
    data: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, float]] = []
    rngs: dict[int, int] = {}

    def act(trainer: Trainer, call: int) -> None:
        first = next(trainer.get_model().parameters()).detach()
        seen.append((trainer.get_num_updates(), float(first.double().sum())))
        rngs[call] = trainer.spikes.seed_shift(trainer.progress)
        faster(65, by=500)(trainer, call)

    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch, act)
        flags = {**RUN, "spike_policy": "rollback", "spike_back": 12, "max_update": 75}
        train(config(data, tmp_path, **flags))
    (event,) = events(tmp_path, "rollback")
    assert event["update"] == 50 and event["checkpoint"].endswith("_50.pt")
    assert seen[66][0] == 66 and seen[67] == seen[50]  # the same weights and counter as then
    assert (rngs[66], rngs[67]) == (0, 1)
    state = content(tmp_path / "checkpoint_last.pt")
    read = state["extra_state"]["train_iterator"]
    per_epoch = 13  # batches of 32 in 400 lines
    position = (read["epoch"] - 1) * per_epoch + read["iterations_in_epoch"]
    assert position == 75 + (67 - 50)  # no batch was read twice


def test_a_run_that_is_killed_after_going_back_ends_with_the_same_bits(
    data: Path, tmp_path: Path
) -> None:
    flags = {"spike_policy": "rollback", "total_num_update": 70}
    whole = run_with(data, tmp_path / "whole", (55,), 70, **flags)
    assert events(tmp_path / "whole", "rollback")
    run_with(data, tmp_path / "cut", (55,), 60, **flags)
    assert events(tmp_path / "cut", "rollback")
    rest = run_with(data, tmp_path / "cut", (), 70, **flags)
    assert {u: whole[u] for u in rest} == rest
    ends = [content(tmp_path / name / "checkpoint_last.pt") for name in ("cut", "whole")]
    for part in ("model", "last_optimizer_state"):
        assert str(ends[0][part]) == str(ends[1][part])


def test_going_back_takes_no_checkpoint_of_another_run_in_the_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(data, tmp_path, **RUN, max_update=12, checkpoint_suffix="_a"))
    spike_at(monkeypatch, 16)
    flags = {**RUN, "max_update": 20, "spike_policy": "rollback", "spike_back": 4}
    train(config(data, tmp_path, **flags, checkpoint_suffix="_b"))
    (event,) = events(tmp_path, "rollback")
    assert event["update"] == 10 and event["checkpoint"].endswith("_b.pt")


BY_EPOCH: dict[str, dict[str, Any]] = {
    "fixed": {"lr": [1e-2, 1e-3]},
    "manual": {"epoch2lr": "{1: 1e-2, 2: 1e-3}"},
    # the first epoch has its second entry, as in the original
    "polynomial_decay": {"lr": [1e-2, 1e-2, 1e-3], "total_num_update": 10**6},
}


@pytest.mark.parametrize("schedule", BY_EPOCH)
def test_going_back_keeps_the_rate_of_the_epoch_at_work(
    schedule: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    spike_at(monkeypatch, 16)
    Recorder(monkeypatch, lambda trainer, call: rates.append(trainer.get_lr()))
    flags = {**RUN, "warmup_updates": 0, "max_update": 20, **BY_EPOCH[schedule]}
    flags |= {"lr_scheduler": schedule, "spike_policy": "rollback", "spike_back": 4}
    train(config(data, tmp_path, **flags))
    assert [event["update"] for event in events(tmp_path, "rollback")] == [10]  # of epoch 1
    per_epoch, calls = 13, 17 + 10
    assert rates == pytest.approx([1e-2] * per_epoch + [1e-3] * (calls - per_epoch), rel=1e-4)


def test_a_number_of_tokens_passed_before_going_back_keeps_its_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(data, tmp_path / "first", **RUN, max_update=16))
    progress = content(tmp_path / "first" / LAST)["extra_state"]["fairseq_lm"]["progress"]
    spike_at(monkeypatch, 16)
    flags = {**RUN, "max_update": 20, "spike_policy": "rollback", "spike_back": 4}
    # the spike is found in the update after the one that passes the first number, and passes
    # the second one itself: that one is due with the next update of weights
    flags |= {"save_at_tokens": [progress["tokens"], progress["tokens"] + 1]}
    train(config(data, tmp_path / "run", **flags))
    assert [event["update"] for event in events(tmp_path / "run", "rollback")] == [10]
    names = [f"checkpoint_tokens{tokens}.pt" for tokens in flags["save_at_tokens"]]
    assert [updates_of(tmp_path / "run", name) for name in names] == [16, 11]


def test_a_run_that_spikes_from_one_checkpoint_again_and_again_ends(
    data: Path, tmp_path: Path
) -> None:
    cfg = config(data, tmp_path, **RUN, max_update=20)
    train(cfg)
    back: list[str] = []
    trainer = SimpleNamespace(
        progress={"spike_window": []},
        get_num_updates=lambda: 30,
        spikes=policy(policy="rollback"),
        rewind=lambda path, state: back.append(Path(path).name),
        epoch=1,
        lr_step_begin_epoch=lambda epoch: None,
        effort=SimpleNamespace(take_back=lambda: None),
    )
    for _ in range(MOST_RETURNS):
        assert roll_back(trainer, cfg.checkpoint) is not None
    assert len(back) == MOST_RETURNS and len(set(back)) == 1
    with pytest.raises(SpikeError, match="--spike-back"):
        roll_back(trainer, cfg.checkpoint)
    trainer.get_num_updates = lambda: 12
    assert roll_back(trainer, cfg.checkpoint) is None  # nothing is old enough
    assert len(back) == MOST_RETURNS

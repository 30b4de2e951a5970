"""Several processes compute what one computes; they end together, and resume as fewer or more."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from fairseq.config.components import make_config
from fairseq.config.sections import DistributedTrainingConfig
from fairseq.data.batches.read import data_context
from fairseq.data.masking.dataset import MaskedLMDataset
from fairseq.distributed import utils
from fairseq.files.processes import start_method
from fairseq.tasks.base import FairseqTask
from fairseq.training import estimate as estimating
from fairseq.training.smaller_batches import cells_of
from fairseq.training.trainer import Trainer
from fairseq_cli.train import estimate_here
from tests import tiny_run

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "disable_validation": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten batches of four and one of two: two processes cannot share an epoch evenly."""
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus") / "bin", train_lines=79)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    data: Path,
    folder: Path,
    world: int,
    note: Path | None = None,
    limits: dict[int, int] | None = None,
    threads: Path | None = None,
    main: Callable[..., Any] = tiny_run.train,
    **flags: Any,
) -> list[int]:
    """Fork the processes of one run, as torchrun would start them; return their ids."""
    port = str(free_port())

    def work(rank: int) -> None:
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
        os.environ.update(env, RANK=str(rank), LOCAL_RANK=str(rank))
        if note is not None:
            record_samples(note)
        if limits is not None:
            out_of_memory_above(limits[rank])
        cfg = tiny_run.config(data, folder, **{**NO_DROPOUT, **flags})
        with contextlib.nullcontext() if threads is None else threads_noted(threads, rank):
            utils.call_main(cfg, main)

    return [tiny_run.fork(lambda rank=rank: work(rank)) for rank in range(world)]


@contextlib.contextmanager
def threads_noted(folder: Path, rank: int) -> Iterator[None]:
    """Write the names of the threads of this process, before and after what it does at exit."""
    at_exit: list[Callable[[], None]] = []
    utils.atexit = SimpleNamespace(register=at_exit.append)  # type: ignore[assignment]
    try:
        yield
    finally:
        joined = thread_names()
        for function in at_exit:
            function()
        (folder / f"threads{rank}").write_text(json.dumps([joined, thread_names()]))


def thread_names() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def wait_for(path: Path, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def record_samples(note: Path) -> None:
    """Append every training sample that is collated, with its masked tokens, to a file."""
    original = MaskedLMDataset.collater

    def collater(self: Any, samples: list[Any]) -> Any:
        batch = original(self, samples)
        if samples and len(self) > 20:
            for row, sample in enumerate(samples):
                tokens = batch["net_input"]["src_tokens"][row].tolist()
                line = json.dumps([self.epoch, int(sample["id"]), [t for t in tokens if t != 1]])
                with open(note, "a", encoding="utf-8") as handle:
                    handle.write(line + "\n")
        return batch

    def refuse(self: Any, protocol: Any) -> Any:
        raise TypeError("a dataset that cannot be sent is forked, and this recorder with it")

    MaskedLMDataset.collater = collater  # type: ignore[method-assign]
    MaskedLMDataset.__reduce_ex__ = refuse  # type: ignore[method-assign,assignment]


def finish(pids: list[int], seconds: float = 60.0) -> list[int]:
    return [tiny_run.wait(pid, seconds) for pid in pids]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return tiny_run.content(folder / "checkpoint_last.pt")["model"]


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["tag"] == "train_inner"]


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=0, msg=name)
    assert losses(one) == pytest.approx(losses(other), abs=1e-3)


@pytest.mark.parametrize("frequency", [1, 2])
def test_two_processes_equal_one(data: Path, tmp_path: Path, frequency: int) -> None:
    """An epoch has an odd number of batches: at its end one process has nothing to do.

    The same batches reach an update, so that the update is the same, filler and accumulation
    included.
    """
    flags = {"max_update": 14, "required_batch_size_multiple": 1}
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    assert finish(start(data, alone, 1, update_freq=[2 * frequency], **flags)) == [0]
    assert finish(start(data, pair, 2, update_freq=[frequency], **flags)) == [0, 0]
    assert len(losses(alone)) == 14
    assert_same(alone, pair)
    costs = [
        tiny_run.content(folder / "checkpoint_last.pt")["extra_state"]["fairseq_lm"]["progress"]
        for folder in (alone, pair)
    ]
    for name in ("tokens", "flops", "flops_electra"):  # fillers cost nothing
        assert costs[0][name] == costs[1][name] > 0


def out_of_memory_above(most: int) -> None:
    """Let no batch of more cells than that fit, after its backward pass."""
    original = FairseqTask.train_step

    def train_step(task: Any, sample: Any, *rest: Any, **more: Any) -> Any:
        result = original(task, sample, *rest, **more)
        if cells_of(sample) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    FairseqTask.train_step = train_step  # type: ignore[method-assign]


@pytest.mark.parametrize("updates", tiny_run.faults(7, 20))
def test_one_of_two_runs_out_of_memory(
    updates: int, data: Path, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    """It divides its batches, fillers included, while the other waits: the updates are the same."""
    flags = {"max_update": updates, "ddp_backend": "legacy_ddp", "optimizer": "sgd", "lr": [0.1]}
    flags |= {"required_batch_size_multiple": 1, "total_num_update": 20, "momentum": 0.0}
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    assert finish(start(data, alone, 1, update_freq=[2], **flags)) == [0]
    limits = {0: 10_000, 1: 20}  # a row has up to 12 cells
    assert finish(start(data, pair, 2, limits=limits, **flags)) == [0, 0]
    assert_same(alone, pair)
    figure("out of memory on one of two processes, updates as without", updates)


def test_out_of_memory_during_a_reduction_says_what_helps(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert all(finish(start(data, tmp_path, 2, limits={0: 20, 1: 20}, max_update=3)))
    assert "--ddp-backend legacy_ddp" in capfd.readouterr().err


@pytest.mark.parametrize("overflows", [False, True], ids=["other", "overflow"])
def test_gradients_that_differ_between_processes_end_the_run(
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    overflows: bool,
) -> None:
    """Something changed them behind their average; the weights would drift apart in silence."""
    original = Trainer._step

    def overflow(max_norm: float) -> float:
        raise OverflowError("setting loss scale to: 1")

    def step(trainer: Any, sample_size: float) -> str | None:
        if trainer.get_num_updates() == 2 and trainer.rank == 1:
            if overflows:
                monkeypatch.setattr(trainer.optimizer, "clip_grad_norm", overflow)
            for x in trainer.model.parameters():
                if x.grad is not None:
                    x.grad *= 1.001
        return original(trainer, sample_size)

    monkeypatch.setattr(Trainer, "_step", step)
    assert all(finish(start(data, tmp_path, 2, max_update=5)))
    said = capfd.readouterr().err
    assert "gradients are inconsistent between workers, their norms are" in said
    assert "--ddp-backend legacy_ddp" in said


def test_muon_with_groups_on_two_processes(data: Path, tmp_path: Path) -> None:
    flags = {
        "optimizer": "muon",
        "param_groups": "embed=lr*0.1,norm=wd0",
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "max_update": 8,
        "required_batch_size_multiple": 1,
    }
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    assert finish(start(data, alone, 1, update_freq=[2], **flags)) == [0]
    assert finish(start(data, pair, 2, **flags)) == [0, 0]
    assert_same(alone, pair)


def test_a_criterion_with_weights_and_global_negatives(data: Path, tmp_path: Path) -> None:
    """Negatives come from both processes, and the criterion's own weights move as one."""
    flags = {
        "criterion": "contrastive_weight_tying",
        "negatives": "global",
        "contrastive_projection": True,
        "max_update": 8,
        "required_batch_size_multiple": 1,
    }
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    assert finish(start(data, alone, 1, update_freq=[2], **flags)) == [0]
    assert finish(start(data, pair, 2, **flags)) == [0, 0]
    assert_same(alone, pair)
    maps = [
        tiny_run.content(folder / "checkpoint_last.pt")["criterion"]["projection.weight"]
        for folder in (alone, pair)
    ]
    torch.testing.assert_close(maps[0], maps[1], atol=1e-6, rtol=0)
    assert not torch.equal(maps[0], torch.eye(32))


MORE_WORLDS = [(a, b) for a in (1, 2, 4) for b in (1, 2, 4) if (a, b) != (2, 1)]


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), *(pytest.param(*pair, marks=pytest.mark.faults) for pair in MORE_WORLDS)],
)
def test_saved_by_some_resumed_by_others(
    before: int, after: int, data: Path, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    """Four batches an update, however many processes share them; cut in the first epoch."""
    flags = {"required_batch_size_multiple": 1, "total_num_update": 5, "max_update": 5}
    whole, cut, notes = tmp_path / "whole", tmp_path / "cut", [tmp_path / "one", tmp_path / "two"]
    assert finish(start(data, whole, 1, notes[0], update_freq=[4], **flags)) == [0]
    for world, last in ((before, 2), (after, 5)):
        more = {**flags, "max_update": last, "update_freq": [4 // world]}
        assert finish(start(data, cut, world, notes[1], **more)) == [0] * world
    read = [sorted(set(note.read_text(encoding="utf-8").splitlines())) for note in notes]
    assert read[0] == read[1]
    assert_same(whole, cut)
    figure(f"saved by {before} processes, resumed by {after}", "as one process")


def test_same_samples_whatever_the_processes_and_workers(data: Path, tmp_path: Path) -> None:
    seen = set()
    for world in (1, 2):
        for workers in (0, 1, 2):
            note = tmp_path / f"{world}-{workers}"
            flags = {"max_update": 20, "max_epoch": 2, "num_workers": workers}
            flags |= {"update_freq": [2 // world], "no_save": True, "data_buffer_size": 0}
            folder = tmp_path / f"run-{world}-{workers}"
            statuses = finish(start(data, folder, world, note, **flags))
            assert statuses == [0] * world
            lines = sorted(set(note.read_text(encoding="utf-8").splitlines()))
            assert len(lines) == 84  # 42 blocks, two epochs
            seen.add("\n".join(lines))
    assert len(seen) == 1


@pytest.mark.parametrize("times", tiny_run.faults(1, 20))
def test_a_dead_process_ends_the_others(
    times: int, data: Path, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    rng, seconds = random.Random(5), []
    for number in range(times):
        folder, flags = tmp_path / str(number), {"max_update": 100_000, "lr": [1e-6]}
        pids = start(data, folder, 2, total_num_update=100_000, **flags)
        deadline = time.monotonic() + 40
        while not (folder / "metrics.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.2) if number else 0)
        victim = number % 2
        os.kill(pids[1 - victim], signal.SIGKILL)
        began = time.monotonic()
        statuses = finish(pids, seconds=30)
        seconds.append(time.monotonic() - began)
        assert statuses[1 - victim] == -signal.SIGKILL and statuses[victim] > 0
    figure("processes killed, the other ended with an error", times)
    figure("processes killed: longest until the other's end, s", round(max(seconds), 1))


def test_a_signal_to_one_stops_all_and_saves(data: Path, tmp_path: Path) -> None:
    pids = start(data, tmp_path / "run", 2, max_update=100_000, lr=[1e-6], total_num_update=100_000)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    os.kill(pids[1], signal.SIGTERM)
    assert finish(pids, seconds=30) == [143, 143]
    assert tiny_run.content(tmp_path / "run" / "checkpoint_last.pt")["model"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the threads in /proc")
@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
@pytest.mark.parametrize("ends", ["at its end", "at a signal", "before it begins", "in its midst"])
def test_no_thread_of_the_group_outlives_a_run(
    data: Path, tmp_path: Path, backend: str, ends: str
) -> None:
    """One that did would abort the process, now and then, while the interpreter ends."""
    flags: dict[str, Any] = {"ddp_backend": backend, "max_update": 2}
    if ends == "at a signal":
        flags.update(max_update=100_000, lr=[1e-6], total_num_update=100_000)
    if ends == "before it begins":
        flags.update(disable_validation=False, valid_subset="missing")
    if ends == "in its midst":
        flags.update(max_update=100, lr=[1e30])
    pids = start(data, tmp_path / "run", 2, threads=tmp_path, **flags)
    if ends == "at a signal":
        wait_for(tmp_path / "run" / "metrics.jsonl")
        os.kill(pids[1], signal.SIGTERM)
    assert finish(pids) == [{"at its end": 0, "at a signal": 143}.get(ends, 1)] * 2
    for rank in range(2):
        before, after = json.loads((tmp_path / f"threads{rank}").read_text())
        assert [name for name in before if "gloo" in name]
        assert not [name for name in after if "gloo" in name]


def test_sums_cope_with_missing_names(tmp_path: Path) -> None:
    """Names change between calls, and processes have different ones, or none."""
    shares: list[tuple[dict[str, float], dict[str, float]]] = [
        ({}, {"loss": 2.0, "n": 3.0}),
        ({"loss": 1.0, "n": 1.0}, {"loss": 2.0, "n": 3.0}),
        ({"loss": 1.0, "n": 1.0}, {}),
        ({"accuracy": 5.0}, {"accuracy": 6.0}),
        ({}, {}),
        ({}, {"accuracy": 7.0}),
        ({"loss": 1.0, "n": 2.0}, {}),
        ({"n": 1.0, "shorter": 2.0}, {"longest": 3.0, "n": 5.0}),
        ({"n": 1.0}, {"loss": 3.0, "q": 5.0}),
    ]
    port = str(free_port())

    def work(rank: int) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank
        )
        sums = [utils.sum_over_processes(pair[rank], torch.device("cpu")) for pair in shares]
        plain = [{name: float(value) for name, value in one.items()} for one in sums]
        (tmp_path / str(rank)).write_text(json.dumps(plain), encoding="utf-8")

    pids = [tiny_run.fork(lambda rank=rank: work(rank)) for rank in range(2)]
    assert finish(pids) == [0, 0]
    found = [json.loads((tmp_path / str(rank)).read_text("utf-8")) for rank in range(2)]
    assert found[0] == found[1]
    for (one, other), total in zip(shares, found[0], strict=True):
        expected = {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
        assert {name: value for name, value in total.items() if value} == expected


def test_tables_of_two_processes_are_added_and_rows_joined(tmp_path: Path) -> None:
    logs = [
        [{"n": 1.0, "table": torch.tensor([[1, 2], [3, 4]]), "_rows": torch.tensor([[1, 2, 3]])}],
        [{"n": 2.0, "table": torch.tensor([[10, 0], [0, 0]]), "_rows": torch.ones(2, 3)}],
        [],
    ]
    port = str(free_port())

    def work(rank: int) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=3, rank=rank
        )
        (one,), size = utils.shared(logs[rank], len(logs[rank]), torch.device("cpu"))
        plain = {key: torch.as_tensor(value).tolist() for key, value in one.items()}
        (tmp_path / str(rank)).write_text(json.dumps([plain, float(size)]), encoding="utf-8")

    pids = [tiny_run.fork(lambda rank=rank: work(rank)) for rank in range(3)]
    assert finish(pids) == [0, 0, 0]
    found = [json.loads((tmp_path / str(rank)).read_text("utf-8")) for rank in range(3)]
    rows = [[1, 2, 3], [1, 1, 1], [1, 1, 1]]
    assert found[:2] == [[{"n": 3, "table": [[11, 2], [3, 4]], "_rows": rows}, 2]] * 2
    assert found[2] == [{"n": 3, "table": [11, 2, 3, 4], "_rows": rows}, 2]


def test_alone_a_sum_is_what_it_was() -> None:
    assert utils.sum_over_processes({"loss": 2.0}, torch.device("cpu")) == {"loss": 2.0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_passes_a_signal_on_and_waits(number: int) -> None:
    """Also one that was meant for it alone, such as that of ``kill``."""
    before, context = signal.getsignal(number), multiprocessing.get_context("fork")
    ready = context.Event()
    with pytest.raises(SystemExit) as end, utils.left_to_children():
        # its copy of the handler, which finds no children there, ends it
        child = context.Process(target=lambda: (ready.set(), time.sleep(20)))
        child.start()
        assert ready.wait(10)
        os.kill(os.getpid(), number)
        child.join(10)
        assert child.exitcode == 128 + number
    assert end.value.code == 128 + number
    assert signal.getsignal(number) == before
    with utils.left_to_children():
        pass


def test_data_workers_of_a_spawned_process_are_not_spawned(data: Path, tmp_path: Path) -> None:
    chosen: list[BaseContext] = []
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)  # so a spawned process begins
    try:
        cfg = tiny_run.config(data, tmp_path)
        utils._spawned(0, lambda cfg: chosen.append(data_context(range(2))), cfg, 0)
    finally:
        multiprocessing.set_start_method(before, force=True)  # type: ignore[arg-type]
    assert [context.get_start_method() for context in chosen] == [start_method()]


def test_layers_left_out_on_two_processes(data: Path, tmp_path: Path) -> None:
    """Each process leaves out its own, whose parameters have no gradient then."""
    flags = {"encoder_layers": 2, "encoder_layerdrop": 0.5, "max_update": 6}
    assert finish(start(data, tmp_path, 2, **flags)) == [0, 0]
    assert len(losses(tmp_path)) == 6


@pytest.mark.parametrize("limit", [1, 3])
def test_two_processes_validate_on_the_first_batches(
    data: Path, tmp_path: Path, limit: int
) -> None:
    """The limit is of all batches: the metric that decides what is best is that of one process."""
    flags = {"disable_validation": False, "batch_size_valid": 1, "max_valid_steps": limit}
    best = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        more = {**flags, "update_freq": [2 // world], "max_update": 1}
        assert finish(start(data, folder, world, **more)) == [0] * world
        best.append(tiny_run.content(folder / "checkpoint_last.pt")["extra_state"]["best"])
    assert best[0] == pytest.approx(best[1], abs=1e-5)


@pytest.mark.parametrize("fails", [0, 1])
def test_a_validation_that_fails_on_one_of_two(data: Path, tmp_path: Path, fails: int) -> None:
    """The other ends too, and the first process saves what was trained whoever it was."""

    def train(cfg: Any) -> None:
        def valid_step(trainer: Trainer, *rest: Any, **more: Any) -> Any:
            if trainer.rank == fails:
                raise RuntimeError("a bug of a plug-in")
            return original(trainer, *rest, **more)

        original, Trainer.valid_step = Trainer.valid_step, valid_step  # type: ignore[method-assign]
        tiny_run.train(cfg)

    flags = {"disable_validation": False, "max_update": 3}
    assert all(finish(start(data, tmp_path, 2, main=train, **flags)))
    state = tiny_run.content(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 3
    assert finish(start(data, tmp_path, 2, **flags)) == [0, 0]
    tags = [json.loads(line)["tag"] for line in (tmp_path / "metrics.jsonl").open()]
    assert tags.count("train_inner") == 3 and tags.count("valid") == 1


def test_two_processes_print_one_estimate(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimating, "ENOUGH", 0.1)
    main = functools.partial(estimate_here, as_json=True)
    assert finish(start(data, tmp_path / "run", 2, main=main)) == [0, 0]
    assert json.loads(capfd.readouterr().out)["processes"] == 2


@pytest.mark.parametrize(
    ("gpus", "flags", "started"),
    [
        (4, {"cpu": True}, None),  # the GPUs of the machine do not count
        (1, {"cpu": True, "distributed_world_size": 2}, 2),
        (1, {"device": "cpu", "cpu": False, "distributed_world_size": 3}, 3),
        (1, {"cpu": False, "distributed_world_size": 2}, 2),  # that share one, if they can
        (4, {"cpu": False}, 4),
        (4, {"cpu": False, "distributed_world_size": 8,
             "distributed_init_method": "tcp://other:1"}, 4),
    ],
)  # fmt: skip
def test_how_many_processes_start_here(
    gpus: int, flags: dict[str, Any], started: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def spawn(function: object, args: object, nprocs: int, join: bool) -> None:
        counts.append(nprocs)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    cfg = tiny_run.config(Path("data"), Path("run"), **flags)
    utils.call_main(cfg, lambda cfg: counts.append(-1))
    assert counts == [-1 if started is None else started]


def test_a_run_folder_keeps_no_place_of_a_process(data: Path, tmp_path: Path) -> None:
    """Its settings run elsewhere: with as many processes as were asked for, which meet anew."""
    flags = {"max_update": 1, "distributed_world_size": 3, "ddp_backend": "legacy_ddp"}
    assert finish(start(data, tmp_path / "torchrun", 2, **flags)) == [0, 0]
    cfg = tiny_run.config(data, tmp_path / "alone", max_update=1)
    utils.call_main(cfg, tiny_run.train)
    address = f"tcp://127.0.0.1:{free_port()}"
    stated = {"max_update": 1, "distributed_init_method": address, "distributed_world_size": 1}
    utils.call_main(tiny_run.config(data, tmp_path / "stated", **stated), tiny_run.train)
    told = {}
    for name in ("torchrun", "alone", "stated"):
        recipe = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        told[name] = make_config({}, recipe).distributed_training
    usual = DistributedTrainingConfig()
    assert told["torchrun"] == usual.changed(ddp_backend="legacy_ddp", distributed_world_size=3)
    assert told["alone"] == usual
    assert told["stated"].distributed_init_method == address
    assert told["stated"].distributed_world_size == 1


@pytest.mark.parametrize("world", [1, 2])
def test_a_heartbeat_needs_others_to_wait_for(
    world: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda *args, **more: None)
    flags = {"heartbeat_timeout": 60, "distributed_world_size": world}
    utils.call_main(tiny_run.config(Path("data"), Path("run"), **flags), lambda cfg: None)
    assert ("--heartbeat-timeout does nothing in one process" in caplog.text) == (world == 1)


def test_logging_outputs_are_added_and_rows_joined() -> None:
    logs = [
        {"loss": 1.0, "table": torch.ones(2, 2), "_rows": torch.zeros(1, 3)},
        {
            "loss": torch.tensor(2.0),
            "late": 5,
            "table": torch.ones(2, 2),
            "_rows": torch.ones(2, 3),
        },
    ]
    total, rows = utils.added_up(logs)
    assert total["loss"] == 3 and total["late"] == 5
    assert total["table"].tolist() == [[2, 2], [2, 2]]
    assert rows["_rows"].tolist() == [[0] * 3, [1] * 3, [1] * 3]
    assert utils.added_up([]) == ({}, {})
    assert utils.shared([{"loss": 1}], 3, torch.device("cpu")) == ([{"loss": 1}], 3)
    assert utils.can_be_added(logs) and not utils.can_be_added([{"loss": 1, "predicted": [0, 1]}])

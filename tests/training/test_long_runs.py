"""What goes wrong late: data workers that die, memory and files that pile up."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Recorder, config, content, faults, fork, make_corpus, run, train, wait

from fairseq.errors import FairseqError
from fairseq.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data", 2000)


def data_workers(trainer: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(n) for n in Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
@pytest.mark.parametrize("times", faults(1, 20))
def test_a_data_worker_killed_at_any_moment_ends_the_run_with_a_clear_error(
    times: int, data: Path, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    rng, seconds = random.Random(2), []

    def work(folder: Path) -> None:
        flags = {"max_update": 100_000, "total_num_update": 100_000, "num_workers": 2}
        with pytest.raises(FairseqError, match="data died.*--num-workers"):
            train(config(data, folder, **flags, disable_validation=True))

    for number in range(times):
        folder = tmp_path / str(number)
        trainer = fork(lambda folder=folder: work(folder))  # type: ignore[misc]
        deadline = time.monotonic() + 60
        while not (folder / "metrics.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        while not (workers := data_workers(trainer)):  # between two epochs
            assert time.monotonic() < deadline
            time.sleep(0.001)
        began = time.monotonic()
        os.kill(rng.choice(workers), signal.SIGKILL)
        assert wait(trainer, 60) == 0
        seconds.append(time.monotonic() - began)
    figure("data workers killed, all a clear error", times)
    figure("data workers: longest until the end, s", round(max(seconds), 1))
    assert max(seconds) < 10


def resident() -> float:
    """Return the memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("updates", faults(150, 3000))
def test_memory_and_open_files_stay_flat(
    updates: int, data: Path, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    """With a save and a validation every 25 updates; the first third is not counted."""
    smaller = {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16}

    def soak() -> None:
        seen: list[tuple[int, float, int]] = []

        def look(trainer: Trainer, calls: int) -> None:
            if calls % 25 == 24:
                seen.append((calls, resident(), len(os.listdir("/proc/self/fd"))))

        with pytest.MonkeyPatch.context() as patch:
            Recorder(patch, look)
            flags = {"max_update": updates, "total_num_update": updates}
            flags |= {"save_interval_updates": 25, "keep_interval_updates": 2}
            train(config(data, tmp_path / "run", **smaller, **flags))
        counted = seen[len(seen) // 3 :]
        (first, before, _), (last, after, _) = counted[0], counted[-1]
        slope = (after - before) / (last - first) * 1000
        files = {n for _, _, n in counted}
        (tmp_path / "figures").write_text(f"{slope} {len(files)} {max(files)}")

    assert run(soak, 1200) == 0
    slope, kinds, most = map(float, (tmp_path / "figures").read_text().split())
    figure("soak: updates", updates)
    figure("soak: MB more a thousand updates", round(slope, 2))
    figure("soak: open files", int(most))
    assert kinds == 1
    assert slope <= (1 if updates > 1000 else 40)
    assert content(tmp_path / "run" / "checkpoint_last.pt")["model"]

"""Workers: the same batches whatever their number, the right epoch, and explained failures."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from numbered_epochs import Numbers, epochs, ids

from fairseq.data.batches.read import WatchedBatches
from fairseq.errors import FairseqError


@pytest.mark.parametrize("buffer_size", [0, 3])
@pytest.mark.parametrize(
    ("num_workers", "persistent"), [(0, False), (1, False), (2, False), (2, True)]
)
def test_order_and_epoch_in_workers(num_workers, persistent, buffer_size):
    itr = epochs(num_workers=num_workers, persistent_workers=persistent, buffer_size=buffer_size)
    reference = epochs()
    for epoch in (1, 2, 3):
        found = list(itr.next_epoch_itr())
        assert [batch["ids"] for batch in found] == ids(reference.next_epoch_itr())
        assert all(batch["epochs"] == {epoch} for batch in found)
    fixed = epochs(num_workers=num_workers).next_epoch_itr(set_dataset_epoch=False)
    assert next(fixed)["epochs"] == {0}


class Reporting(Numbers):
    def __getitem__(self, index):
        return (self.epoch, (os.getpid(), torch.get_num_threads()))


@pytest.fixture
def spawn():
    before = torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method("spawn", force=True)
    yield
    torch.multiprocessing.set_start_method(before, force=True)


def test_spawned_workers(spawn):
    batches = list(epochs(Reporting(6), num_workers=1).next_epoch_itr())
    assert [batch["epochs"] for batch in batches] == [{1}, {1}]
    reports = {report for batch in batches for report in batch["ids"]}
    assert len(reports) == 1
    ((pid, threads),) = reports
    assert pid != os.getpid() and threads == 1


def test_workers_are_fresh_in_each_epoch_unless_asked():
    def pids(itr):
        return {report[0] for batch in itr.next_epoch_itr() for report in batch["ids"]}

    fresh = epochs(Reporting(6), num_workers=1)
    assert pids(fresh) != pids(fresh)
    kept = epochs(Reporting(6), num_workers=1, persistent_workers=True)
    assert pids(kept) == pids(kept)


class Killing(Numbers):
    def __getitem__(self, index):
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Failing(Numbers):
    def __getitem__(self, index):
        raise RuntimeError(f"sample {index} is broken")


class Sleeping(Numbers):
    def __getitem__(self, index):
        time.sleep(6)  # long after the time-out, however busy the machine


DIED = r"process that reads data died \(Killed\): pid \d+.*--num-workers 0"


def kill_workers():
    while not (workers := multiprocessing.active_children()):
        time.sleep(0.05)  # a server of processes, as since Python 3.12, needs its time to start
    for worker in workers:
        worker.kill()


def test_dead_workers_are_explained():
    with pytest.raises(FairseqError, match=DIED):
        list(epochs(Killing(), num_workers=1).next_epoch_itr(shuffle=False))
    with pytest.raises(FairseqError, match="stuck or too slow"):
        list(epochs(Sleeping(1), num_workers=1, timeout=1).next_epoch_itr())


def test_who_waits_for_a_batch_of_a_dead_worker_is_told(monkeypatch):
    """Torch waits without end for the rest of a message that nobody will finish."""
    monkeypatch.setattr(WatchedBatches, "__next__", lambda self: threading.Event().wait(60))
    batches = epochs(num_workers=1, buffer_size=0).next_epoch_itr()
    told = threading.Event()

    def keep_killing():  # on a busy machine, one of another test may be there before this one's
        while not told.wait(0.5):
            for worker in multiprocessing.active_children():
                worker.kill()

    threading.Thread(target=keep_killing).start()
    began = time.monotonic()
    try:
        with pytest.raises(FairseqError, match=DIED):
            next(batches)
    finally:
        told.set()
    assert time.monotonic() - began < 30


def test_a_broken_connection_to_a_dead_worker_is_its_death(monkeypatch):
    watched = epochs(num_workers=1)._loader.read([(1, [0])])
    assert next(watched)["ids"]

    def broken(batches):
        kill_workers()
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(type(watched._batches), "__next__", broken)
    with pytest.raises(FairseqError, match=DIED):
        next(watched)


def test_a_worker_that_dies_between_epochs_is_explained():
    itr = epochs(num_workers=1, persistent_workers=True)
    list(itr.next_epoch_itr())
    kill_workers()
    with pytest.raises(FairseqError, match="process that reads data died.*--num-workers 0"):
        list(itr.next_epoch_itr())


def test_nothing_is_raised_where_no_batch_is_waited_for():
    """Torch's handler of SIGCHLD would, in a save as well as in a log."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = epochs(num_workers=1).next_epoch_itr()
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    kill_workers()
    time.sleep(0.2)  # the signal is handled here, if anywhere


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_the_dataset_stay_what_they_are(num_workers, monkeypatch):
    # After an error torch waits so long for its worker to end.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    with pytest.raises(RuntimeError, match="sample 0 is broken") as caught:
        list(epochs(Failing(), num_workers=num_workers).next_epoch_itr(shuffle=False))
    assert not isinstance(caught.value, FairseqError)
    del caught
    gc.collect()

"""A training run of a few seconds: a corpus of 60 words, a model of two narrow layers.

Children are forked, so that torch is imported once however many processes are killed.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.config import options
from fairseq.config.sections import FairseqConfig
from fairseq.data.storage.indexed_dataset import make_builder
from fairseq.files.safe_load import safe_load
from fairseq.logging.meters import DerivedMeter
from fairseq.training import loop
from fairseq.training.trainer import Trainer

WORDS = 60
SMALL = {
    "task": "masked_lm",
    "criterion": "masked_lm",
    "arch": "roberta",
    "optimizer": "adam",
    "lr_scheduler": "polynomial_decay",
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 2,
    "tokens_per_sample": 16,
    "max_positions": 16,
    "batch_size": 4,
    "lr": [1e-2],
    "warmup_updates": 3,
    "max_update": 9,
    "total_num_update": 9,
    "seed": 3,
    "cpu": True,
    "num_workers": 0,
    "log_format": "none",
    "log_interval": 1,
}

# What turns the tiny masked model into another.
CLAP = {"head": "clap", "position": "alibi", "mask_embedding": "zero"}
HEADLESS = {"criterion": "contrastive_weight_tying", "head": "none"}
DECODER = {
    "task": "language_modeling",
    "criterion": "cross_entropy",
    "arch": "transformer_lm",
    "decoder_layers": 2,
    "decoder_embed_dim": 32,
    "decoder_ffn_embed_dim": 64,
    "decoder_attention_heads": 2,
}


def make_corpus(folder: Path, train_lines: int = 40, valid_lines: int = 8) -> Path:
    """Write binarized sentences that count through the words; an epoch has six batches of four."""
    folder.mkdir(parents=True)
    words = "".join(f"w{n} {1000 - n}\n" for n in range(WORDS))
    (folder / "dict.txt").write_text(words, encoding="utf-8")
    rng = random.Random(0)
    for split, lines in (("train", train_lines), ("valid", valid_lines)):
        builder = make_builder(str(folder / f"{split}.bin"), "mmap", WORDS + 4)
        for _ in range(lines):
            start, length = rng.randrange(WORDS), rng.randrange(4, 11)
            ids = [4 + (start + 3 * step) % WORDS for step in range(length)]
            builder.add_item(torch.tensor([*ids, 2]))
        builder.finalize(str(folder / f"{split}.idx"))
    return folder


def config(data: Path, save_dir: Path, **flags: Any) -> FairseqConfig:
    """Return the configuration of a small run."""
    return options.make_config({**SMALL, "data": str(data), "save_dir": str(save_dir), **flags})


def train(cfg: FairseqConfig) -> float | None:
    """Run to the end in this process, with one thread."""
    torch.set_num_threads(1)
    return loop.run_training(cfg)


def faults(few: int, many: int) -> list[Any]:
    """Return the parameters of a test that hurts a run so often: few times, or (make faults) many.

    Args:
        few: how often in every run of the tests.
        many: how often in the long one.
    """
    return [few, pytest.param(many, marks=pytest.mark.faults)]


class Recorder:
    """Notes the exact loss of every update, and acts before chosen ones.

    Args:
        patch: pytest's monkeypatch.
        before: called with (trainer, number of calls so far) before each update.
    """

    def __init__(self, patch: Any, before: Callable[[Trainer, int], None] | None = None) -> None:
        self.losses: dict[int, str] = {}
        calls = 0
        original = Trainer.train_step

        def train_step(trainer: Trainer, samples: Any, raise_oom: bool = False) -> Any:
            nonlocal calls
            if before is not None:
                before(trainer, calls)
            calls += 1
            output = original(trainer, samples, raise_oom)
            if output is not None:
                meter = output["loss"]  # with all its digits, computed from others or not
                loss = meter.fn(output) if isinstance(meter, DerivedMeter) else meter.avg
                self.losses[trainer.get_num_updates()] = float(loss).hex()
            return output

        patch.setattr(Trainer, "train_step", train_step)


def content(path: Path) -> dict[str, Any]:
    """Return a checkpoint."""
    return safe_load(path)


def digest(path: Path) -> str:
    """Return a digest of what a checkpoint computes with: weights, optimizer, position, best."""
    state = content(path)
    parts = [state["model"], state["last_optimizer_state"], state["optimizer_history"][-1]]
    extra = state["extra_state"]
    parts += [extra["train_iterator"], extra.get("best"), extra["fairseq_lm"]["progress"]]
    parts += [extra.get("ema"), extra.get("ema_fp32_params")]
    total = hashlib.sha256()
    _feed(total, parts)
    return total.hexdigest()


def _feed(total: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        total.update(str((value.dtype, tuple(value.shape))).encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in value:
            total.update(repr(key).encode())
            _feed(total, value[key])
    elif isinstance(value, (list, tuple)):
        total.update(str(len(value)).encode())
        for item in value:
            _feed(total, item)
    else:
        total.update(repr(value).encode())


def fork(work: Callable[[], Any]) -> int:
    """Run ``work`` in a child and return its process id; it exits as a command would."""
    with warnings.catch_warnings():  # of threads of pytest's, whose locks the child never takes
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 70
    forkserver._forkserver._forkserver_pid = None  # type: ignore[attr-defined]  # the parent's
    gc.freeze()  # so that a collection does not copy the pages shared with the parent
    try:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        torch.set_num_threads(1)
        np.random.seed(0)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - a child must never return into pytest
        traceback.print_exc()
        status = 1
    finally:
        os._exit(status)


def wait(pid: int, seconds: float = 60.0) -> int:
    """Wait for a child; return its exit status, or minus the signal that killed it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the child was still running after {seconds} seconds")


def run(work: Callable[[], Any], seconds: float = 60.0) -> int:
    """Run ``work`` in a child to its end; return the exit status."""
    return wait(fork(work), seconds)

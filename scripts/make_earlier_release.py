"""Make the checkpoints of an earlier release that the tests go on with.

Run it with a checkout of that release first on the path::

    git worktree add /tmp/earlier COMMIT
    PYTHONPATH=/tmp/earlier OMP_NUM_THREADS=1 python scripts/make_earlier_release.py \\
        tests/checkpoint/earlier_release COMMIT

For every kind of run it writes the checkpoint after ``CUT`` updates, and ``losses.json``: the
losses of the hundred updates that the earlier release itself made after it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

CUT, UPDATES = 10, 110
RUN = {"lr": [1e-3], "update_freq": [2], "total_num_update": UPDATES, "disable_validation": True}
NARROW = {"layers": 1, "embed_dim": 16, "ffn_embed_dim": 16, "attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "masked_lm": {**RUN, **{f"encoder_{name}": size for name, size in NARROW.items()}},
    "language_modeling": {
        **RUN,
        **{f"decoder_{name}": size for name, size in NARROW.items()},
        "decoder_input_dim": 16,
        "decoder_output_dim": 16,
        "task": "language_modeling",
        "criterion": "cross_entropy",
        "arch": "transformer_lm",
        "share_decoder_input_output_embed": True,
        "sample_break_mode": "eos",
    },
}


def computing() -> list[str]:
    """Return what decides how sums are rounded: where it is the same, so are all bits."""
    # the maker, too: on AMD's processors oneDNN multiplies, on others MKL, each in its own way
    facts = Path("/proc/cpuinfo")
    amd = facts.exists() and "AuthenticAMD" in facts.read_text()
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), "AMD" if amd else "other"]


def main(out: Path, commit: str) -> None:
    """Write checkpoints and losses of the release that is on the path."""
    from tests.tiny_run import Recorder, config, make_corpus, train

    losses: dict[str, dict[int, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = make_corpus(Path(name, "data"))
        for kind, flags in KINDS.items():
            folder = Path(name, kind)
            train(config(data, folder, **flags, max_update=CUT))
            shutil.copyfile(folder / "checkpoint_last.pt", out / f"{kind}.pt")
            with pytest.MonkeyPatch.context() as patch:
                recorder = Recorder(patch)
                train(config(data, folder, **flags, max_update=UPDATES))
            losses[kind] = recorder.losses
    record = {"commit": commit, "computing": computing(), "losses": losses}
    (out / "losses.json").write_text(json.dumps(record, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

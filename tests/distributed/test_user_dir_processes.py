"""A plug-in is there in every process of a run and in the workers that read its data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import SMALL, make_corpus

ROOT = Path(__file__).resolve().parents[2]
TASK = """
import os
import threading

from fairseq.data import BaseWrapperDataset
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMTask

threading.Thread(target=threading.Event().wait, daemon=True).start()  # so that nothing is forked


class Noting(BaseWrapperDataset):
    def __getitem__(self, index):
        with open(os.environ["NOTE"], "a", encoding="utf-8") as handle:
            handle.write(f"{os.environ.get('RANK', 0)} {os.getpid()}\\n")
        return super().__getitem__(index)


@register_task("noting")
class NotingTask(MaskedLMTask):
    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        super().load_dataset(split, epoch, combine, **kwargs)
        self.datasets[split] = Noting(self.datasets[split])
"""


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_every_process_and_worker_has_it(
    world: int, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    data, note, plug = make_corpus(tmp_path / "data"), tmp_path / "note", tmp_path / "plug_noting"
    plug.mkdir()
    (plug / "__init__.py").write_text(TASK, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    words = [*(launcher if world > 1 else []), "-m", "fairseq_cli.train", str(data)]
    flags = {**SMALL, "task": "noting", "num_workers": 1, "max_update": 2, "user_dir": str(plug)}
    flags |= {"save_dir": str(tmp_path / "run"), "disable_validation": True, "no_save": True}
    for name, value in flags.items():
        given = value[0] if isinstance(value, list) else value
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(given)])]
    env = {**os.environ, "NOTE": str(note), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = set(note.read_text(encoding="utf-8").split("\n")) - {""}
    readers = Counter(line.split()[0] for line in lines)
    assert set(readers) == {str(rank) for rank in range(world)}
    assert min(readers.values()) > 1  # a process of the run, and its worker
    assert "cannot be pickled" not in done.stderr
    figure(f"a plug-in in {world} process(es) and their data workers", "seen")

"""Old import paths lead to the very modules that moved, in every kind of process and in pickles."""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
import subprocess
import sys
import types

import pytest

from fairseq.aliases import MODULES, NAMES


@pytest.mark.parametrize("old", MODULES)
def test_an_old_path_is_the_module_that_moved(old: str) -> None:
    module = importlib.import_module(old)
    assert module is importlib.import_module(MODULES[old]) is sys.modules[old]
    parent, _, name = old.rpartition(".")
    assert getattr(importlib.import_module(parent), name) is module
    assert module.__spec__ is not None and module.__spec__.name == MODULES[old]


@pytest.mark.parametrize("module", NAMES)
def test_names_that_left_their_module_are_found_there(module: str) -> None:
    for name, home in NAMES[module].items():
        value = getattr(importlib.import_module(module), name)
        assert value is getattr(importlib.import_module(home), name)


def test_reloading_and_installing_twice_change_nothing() -> None:
    # in a process of its own: a reloaded module has other classes than the ones held elsewhere
    code = (
        "import importlib, sys, fairseq, fairseq.trainer as trainer\n"
        "before = len(sys.meta_path); fairseq.aliases.install()\n"
        "assert len(sys.meta_path) == before\n"
        "assert importlib.reload(trainer) is sys.modules['fairseq.training.trainer']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pickles_by_old_and_new_path_give_one_class() -> None:
    from fairseq.data.storage.dictionary import Dictionary

    assert Dictionary.__module__ == "fairseq.data.storage.dictionary"
    for path in ("fairseq.data.dictionary", "fairseq.data.storage.dictionary"):
        assert pickle.loads(f"c{path}\nDictionary\n.".encode()) is Dictionary


def module_names(old: list[str]) -> list[str]:
    return [importlib.import_module(name).__name__ for name in old]


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_other_processes_know_the_old_paths(start: str) -> None:
    old = ["fairseq.trainer", "fairseq.data.iterators", "fairseq.modules.multihead_attention"]
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.apply(module_names, (old,)) == [MODULES[name] for name in old]


def test_an_old_path_is_found_in_a_fresh_interpreter_in_any_order() -> None:
    code = (
        "import fairseq.trainer as a, fairseq.training.trainer as b\n"
        "import fairseq.data.data_utils as c\n"
        "from fairseq.data import collate as d, data_utils as e\n"
        "from fairseq.dataclass import configs, FairseqDataclass, utils\n"
        "from fairseq import checkpoint_utils, options, tokenizer, registry\n"
        "from fairseq.config import options as new\n"
        "assert a is b and c is d is e and options is new\n"
        "assert checkpoint_utils.load_model_ensemble_and_task and tokenizer.tokenize_line\n"
        "assert issubclass(configs.CommonConfig, FairseqDataclass)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_m_runs_an_old_path() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fairseq.lm_eval_adapter", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "examples:" in done.stdout


def test_a_patch_through_the_old_path_is_seen_by_the_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairseq.checkpoint_utils.LAST_CHECKPOINT", "other.pt")
    checkpoint = importlib.import_module("fairseq.checkpoint")
    assert isinstance(checkpoint, types.ModuleType) and checkpoint.LAST_CHECKPOINT == "other.pt"

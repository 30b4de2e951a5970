"""Starting up: what is imported, how long it takes, and how the commands end."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    "train",
    "preprocess",
    "validate",
    "hydra_train",
    "bpe",
    "report",
    "eval_lm",
    "generate",
    "pcfg",
]


def run(*words, **env):
    """Run Python; return the finished process and the processor seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        timeout=300,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, seconds


def fastest(*words, tries=3):
    """Return the least processor time of several runs: the others were disturbed."""
    return min(run(*words)[1] for _ in range(tries))


def help_without_torch(module):
    """Code that prints the help of a command and then which heavy modules it imported."""
    heavy = ("torch", "numpy", "omegaconf", "hydra", "tokenizers", "tiktoken", "matplotlib")
    heavy += ("importlib.metadata", "importlib.abc")  # slow to import
    return (
        f"import sys; from fairseq_cli import {module} as command\n"
        f"sys.argv = ['x', '--help']\n"
        "try: command.cli_main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"print('HEAVY', [name for name in {heavy} if name in sys.modules])"
    )


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import fairseq\n"
        "print(sorted(n for n in set(sys.modules) - before if n.startswith(('fairseq', 'torch'))))"
    )
    done, _ = run("-c", code)
    ground = ["fairseq", *(f"fairseq.{name}" for name in ("aliases", "errors", "lazy", "version"))]
    assert done.stdout.strip() == str(ground), done.stderr
    added = fastest("-c", "import fairseq") - fastest("-c", "pass")
    assert added < 0.2


def test_an_optimizer_does_not_import_the_compiler_of_torch():
    code = (
        "import sys, torch; from fairseq.optim.adam import Adam\n"
        "weight = torch.nn.Parameter(torch.ones(3)); weight.grad = torch.ones(3)\n"
        "adam = Adam([weight], impl='fused'); adam.add_param_group({'params': []})\n"
        "adam.step(); adam.load_state_dict(adam.state_dict()); adam.zero_grad()\n"
        "assert weight.grad is None and weight[0] < 1\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done, _ = run("-c", code)
    assert done.stdout.strip() == "False", done.stderr


def test_telling_the_size_of_a_state_does_not_import_symbolic_algebra():
    code = (
        "import sys, torch; from fairseq.optim.adam import Adam\n"
        "from fairseq.training.memory import optimizer_bytes\n"
        "weight = torch.nn.Parameter(torch.ones(30, 4)); adam = Adam([weight], impl='reference')\n"
        "frame = type('Frame', (), {'optimizer': adam, 'params': [weight]})()\n"
        "print(optimizer_bytes(frame, [weight]), 'sympy' in sys.modules)"
    )
    done, _ = run("-c", code)
    assert done.stdout.strip() == f"{2 * 4 * 30 * 4} False", done.stderr


def test_encoding_imports_nothing_that_writes_binary_files():
    code = (
        "import sys; from fairseq.preprocess import encode; assert 'numpy' not in sys.modules\n"
        "from fairseq.preprocess import preprocess; print(preprocess.__module__)"
    )
    done, _ = run("-c", code)
    assert done.stdout.strip() == "fairseq.preprocess.corpus", done.stderr


@pytest.mark.parametrize("module", COMMANDS)
def test_plain_help_is_fast_and_imports_nothing_heavy(module):
    done, _ = run("-c", help_without_torch(module))
    assert "HEAVY []" in done.stdout, done.stdout[-300:] + done.stderr
    assert re.match(rf"usage: fairseq-{module.replace('_', '-')} ", done.stdout)
    assert "example" in done.stdout
    assert fastest("-m", f"fairseq_cli.{module}", "--help") < 0.75  # 0.5 s on an idle machine


def test_help_of_components_lists_their_flags():
    words = ["--help", "--arch", "roberta", "--task", "masked_lm", "--optimizer", "adam"]
    done, seconds = run("-m", "fairseq_cli.train", *words)
    assert done.returncode == 0
    for flag in ("--encoder-layers", "--position", "--mask-prob", "--adam-betas", "--save-dir"):
        assert f"  {flag}" in done.stdout
    assert "--d2v2-multi" not in done.stdout and "--tpu" not in done.stdout
    assert seconds < 12  # imports torch: 3 s on an idle machine


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "--help"], 0, ""),
        (["train", "x"], 2, "fairseq-train: error: training needs --arch"),
        (
            ["train", "--config", "none.yaml"],
            2,
            "fairseq-train: error: configuration file not found",
        ),
        (["train", "--user-dir", "nowhere"], 1, "error: --user-dir: no folder nowhere"),
        (["validate", "x"], 1, "error: --path is missing"),
        (["preprocess", "--nonsense"], 2, "fairseq-preprocess: error: unrecognized"),
        (["preprocess"], 1, "error: give --only-source"),
        (["hydra_train", "--nonsense"], 2, "fairseq-hydra-train: error: unrecognized"),
        (["hydra_train", "--config-name", "none"], 1, "error: Hydra cannot compose"),
        (["bpe"], 2, "fairseq-bpe: error"),
        (["bpe", "encode", "--inputs", "none.txt"], 1, "error: "),
        (["report"], 2, "fairseq-report: error"),
        (["report", "nowhere"], 1, "error: "),
    ],
)
def test_exit_codes(tmp_path, words, code, message):
    done = subprocess.run(
        [sys.executable, "-m", f"fairseq_cli.{words[0]}", *words[1:]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_debugging_shows_the_traceback(tmp_path):
    done, _ = run("-m", "fairseq_cli.train", "--user-dir", "nowhere", FAIRSEQ_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "MissingFileError" in done.stderr


def test_an_installed_original_is_refused(tmp_path):
    info = tmp_path / "fairseq-0.12.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fairseq\nVersion: 0.12.2\n")
    done, _ = run("-m", "fairseq_cli.train", "--help", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and not done.stdout
    assert "the original fairseq 0.12.2 is installed" in done.stderr
    assert "pip uninstall fairseq" in done.stderr


def test_console_scripts_lead_to_the_commands():
    import importlib
    import tomllib

    root = Path(__file__).resolve().parent.parent
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    assert {f"fairseq-{name.replace('_', '-')}" for name in COMMANDS} <= set(scripts)
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert callable(importlib.import_module(module).main)


def test_an_interrupted_reader_is_no_traceback():
    pipe = f"{sys.executable} -m fairseq_cli.train --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("usage: fairseq-train")
    assert "Traceback" not in done.stderr


COLLECTOR = """
import gc, sys
from fairseq_cli.entry import run_command
{first}
usual = gc.get_threshold()
class Cycle: pass
def main(argv):
    import torch, weakref
    passed_over = gc.get_freeze_count()
    cycle = Cycle(); cycle.own = cycle; gone = weakref.ref(cycle); del cycle
    objects = [[] for _ in range(300_000)]  # collects the young ones
    print(passed_over, gone() is None, gc.get_threshold() == usual, gc.callbacks)
run_command(main)
"""


def test_the_garbage_collector_passes_over_what_commands_import_and_nothing_else():
    done, _ = run("-c", COLLECTOR.format(first=""))
    passed_over, *rest = done.stdout.split(maxsplit=1)
    assert int(passed_over) > 100_000 and rest == ["True True []\n"], done
    # a process that works already keeps its settings
    done, _ = run("-c", COLLECTOR.format(first="import torch"))
    assert done.stdout == "0 True True []\n", done

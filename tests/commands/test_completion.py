"""Completion: every command and flag is offered, by a real bash."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from fairseq.errors import ConfigError
from fairseq_cli import completion
from tests.documents import ROOT


@pytest.fixture(scope="module")
def script() -> str:
    return completion.script("bash")


def complete(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    quoted = " ".join(f'"{word}"' for word in words)
    run = f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _fairseq_complete "{words[0]}"'
    code = f'{script}\n{run}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run([bash, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [word for word in done.stdout.splitlines() if word]


def test_every_command_is_there() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    modules = {name: f"{module}:cli_main" for name, module in completion.command_modules().items()}
    assert modules == settings["project"]["scripts"]


def test_what_bash_offers(script: str) -> None:
    assert complete(script, "fairseq-train", "--tokens-per-sam") == ["--tokens-per-sample"]
    assert complete(script, ".venv/bin/fairseq-train", "data", "--adam-b") == ["--adam-betas"]
    assert "roberta_tiny" in complete(script, "fairseq-train", "--arch", "roberta_t")
    assert complete(script, "fairseq-train", "--position", "rot") == ["rotary"]
    assert complete(script, "fairseq-train", "--config", "zero") == ["zero_clap"]
    assert complete(script, "fairseq-pcfg", "down") == ["downstream"]
    assert complete(script, "fairseq-pcfg", "downstream", "--lab") == ["--label"]
    assert "gold" in complete(script, "fairseq-pcfg", "downstream", "--label", "")
    assert complete(script, "fairseq-preprocess", "--text-k") == ["--text-key"]
    assert complete(script, "fairseq-train", "data") == []  # files: bash's own completion


@pytest.mark.parametrize("command", ["fairseq-report", "fairseq-hessian"])
def test_flags_are_those_of_the_help(command: str) -> None:
    module = completion.command_modules()[command]
    found = completion.words_of(module)
    shown = ""
    for words in [[], *([one] for one in found.first)]:
        run = [sys.executable, "-m", module, *words, "--help"]
        shown += subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert found.flags == set(re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w-]+)", shown, re.M))


def test_other_shells_and_zsh(script: str) -> None:
    with pytest.raises(ConfigError, match="takes bash or zsh, not 'fish'"):
        completion.script("fish")
    assert completion.script("zsh").endswith(script) and "bashcompinit" in completion.script("zsh")


def test_the_flag_of_a_command() -> None:
    command = [sys.executable, "-m", "fairseq_cli.report", "--print-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "complete -o default -F _fairseq_complete" in done.stdout
    done = subprocess.run(command[:-1], capture_output=True, text=True)
    assert done.returncode == 1 and "takes bash or zsh" in done.stderr

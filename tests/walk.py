"""Runs the blocks of a document in order, as printed but smaller, in the present folder.

Our commands run in this process, with small models, few updates and few samples; what needs a
shell (pipes, loops, other programs) runs in one, where our commands are scripts.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.documents import ROOT, TINY, narrow, text_of

QUIET = ["--cpu", "--num-workers", "0", "--log-format", "none"]
OVERRIDES = [
    *("model.encoder_layers=1", "model.encoder_embed_dim=16", "model.encoder_ffn_embed_dim=16"),
    *(
        "model.encoder_attention_heads=2",
        "optimization.max_update=3",
        "optimization.update_freq=[1]",
    ),
    *("common.cpu=true", "common.log_format=none", "dataset.batch_size=4"),
    *("dataset.num_workers=0", "lr_scheduler.warmup_updates=1"),
]
# flag -> most that is run of it; a flag that is absent stays absent, but for --max-update
CAPS: dict[str, dict[str, float]] = {
    "train": {"--max-update": 3, "--warmup-updates": 1, "--batch-size": 4, "--update-freq": 2}
    | {"--total-num-update": 3, "--save-interval-updates": 2, "--log-interval": 1},
    "hydra_train": {},
    "glue": {"--max-epoch": 1},
    "hessian": {"--probes": 4, "--sentences": 8, "--top": 2, "--steps": 4},
    "pcfg": {"--num": 40, "--valid": 10, "--test": 10, "--dup-factor": 2},
    "generate": {"--corpus": 5, "--corpus-words": 8, "--corpus-scored": 1, "--corpus-length": 6}
    | {"--max-len-b": 8, "--beam": 2},
}
# models that grow, or that another one grew into: twice the narrow one
WIDE = ("--grow-from", "--ligo-source", "big.pt", "--arch ligo_")


def blocks_of(path: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the blocks that can run."""
    return re.findall(r"```(bash|python)\n(.*?)```", text_of(path), re.S)


def lines_of(block: str) -> list[str]:
    """Return the command lines of a shell block; loops stay whole."""
    joined = block.replace("\\\n", " ")
    if re.search(r"^(for|while|if) ", joined, re.M):
        return [joined]
    return [line for line in joined.splitlines() if shlex.split(line, comments=True)]


def module_of(name: str) -> str:
    return name.removeprefix("fairseq-").replace("-", "_")


def shrink(words: list[str]) -> list[str]:
    """Return a command of ours with less to do."""
    command = module_of(words[0])
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
    words = _capped(list(words), CAPS.get(command, {}))
    if command == "train":
        side = "decoder" if {"language_modeling", "dummy_lm", "causal"} & set(words) else "encoder"
        size = narrow(side)
        if any(sign in " ".join(words) for sign in WIDE):
            size = [{"1": "2", "16": "32", "2": "4"}.get(word, word) for word in size]
        words += [*size, *TINY]
        words += [] if "--max-update" in words or "--config" in words else ["--max-update", "3"]
        if "pcfg_masked_lm" in words:
            words += ["--valid-sentences", "20"]
    elif command == "hydra_train":
        words += OVERRIDES
    elif command in ("eval_lm", "generate", "interactive"):
        words += QUIET
    elif command == "validate":
        words += ["--log-format", "none"]
    elif command == "glue":
        words = _first_seed(words) + ["--max-epoch", "1", *QUIET]
    elif command == "hessian":
        words += ["--device", "cpu", "--batch-size", "2"]
        words += [] if {"--probes", "--sentences"} & set(words) else ["--probes", "4"]
        words += ["--steps", "4"] if "lanczos" in words else []
    return words


def _capped(words: list[str], caps: Mapping[str, float]) -> list[str]:
    for flag, most in caps.items():
        for place in (number for number, word in enumerate(words) if word == flag):
            value = words[place + 1]
            if re.fullmatch(r"[\d.]+", value) and float(value) > most:
                words[place + 1] = str(most)
    return words


def _first_seed(words: list[str]) -> list[str]:
    """Return the words with one of the seeds."""
    if "--seeds" not in words:
        return words
    start = words.index("--seeds") + 2
    end = next((n for n in range(start, len(words)) if words[n].startswith("--")), len(words))
    return words[:start] + words[end:]


def run_ours(words: list[str]) -> None:
    """Run a command of ours in this process; it must succeed."""
    name, *argv = shrink(words)
    module: Any = importlib.import_module(f"fairseq_cli.{module_of(name)}")
    function: Callable[[list[str]], int] = getattr(module, "run", None) or module.main
    assert function(argv) == 0, words


def run_in_shell(line: str) -> None:
    """Run a line in bash; our commands are shims there, programs of the repository are found."""
    shims = Path("shims").absolute()
    shims.mkdir(exist_ok=True)
    for path in (ROOT / "fairseq_cli").glob("[a-z]*.py"):
        shim = shims / f"fairseq-{path.stem.replace('_', '-')}"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m fairseq_cli.{path.stem} "$@"\n')
        shim.chmod(0o755)
    line = re.sub(r"\bpython (scripts|examples|benchmarks)/", rf"python {ROOT}/\1/", line)
    line = line.replace("python ", f"{sys.executable} ", 1)
    line = line.replace("torchrun ", f"{sys.executable} -m torch.distributed.run ", 1)
    if " -m fairseq_cli.train " in line:
        line = " ".join([line, "--max-update", "3", *narrow("encoder"), *TINY])
    env = {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-ec", line], env=env, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stdout, done.stderr)


def run_block(language: str, text: str, names: dict[str, Any]) -> None:
    """Run one block.

    Args:
        language: ``bash`` or ``python``.
        text: the block.
        names: what the document's Python blocks before it have defined.
    """
    if language == "python":
        text = re.sub(r'"max_update": \d+', '"max_update": 3', text)
        exec(compile(text, "document", "exec"), names)
        return
    for folder in set(re.findall(r"fairseq-preprocess.*?--destdir (\S+)", text, re.S)):
        shutil.rmtree(folder, ignore_errors=True)  # another way to the same data
    for line in lines_of(text):
        words = shlex.split(line, comments=True)
        if words[0].startswith("fairseq-") and not {"|", ">", "&&", "&"} & set(words):
            run_ours(words)
        else:
            run_in_shell(line)

"""docs/architecture.md is true: imports go down its floors, and its walk is taken."""

from __future__ import annotations

import ast
import os
import re
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, TINY, blocks, narrow, own_modules, small_text, text_of

from fairseq import aliases, catalog

ARCHITECTURE = ROOT / "docs" / "architecture.md"


def imports_of(tree: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """Yield our modules that code imports, inside functions too; not what is for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else node.module
        yield from imports_of(node, modules)


def import_graph() -> dict[str, set[str]]:
    modules = own_modules()
    return {
        name: {
            aim
            for aim in imports_of(ast.parse(text_of(path)), modules)
            if aim in modules and aim not in (name, "fairseq")
        }
        for name, path in modules.items()
    }


def floors() -> list[set[str]]:
    """Read the picture in docs/architecture.md: the lines, from the top."""
    picture = next(block for block in blocks(ARCHITECTURE, "text") if "fairseq_cli" in block)
    return [set(re.split(r"\s{3,}", line)[0].split()) for line in picture.strip().splitlines()]


def law() -> list[set[str]]:
    """Read the contract that ``make check`` holds the code against: its lines, from the top."""
    settings = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["importlinter"]
    lines = settings["contracts"][0]["layers"]
    return [{name.strip().removeprefix("fairseq.") for name in line.split(":")} for line in lines]


def test_the_picture_of_the_floors_is_the_law() -> None:
    assert floors() == law()


def test_every_module_stands_on_a_floor_and_imports_go_down() -> None:
    number = {name: i for i, line in enumerate(reversed(law())) for name in line}
    old_paths = {f"fairseq.{name}" for name in ("dataclass", *OLD_FILES)}

    def floor(module: str) -> int:
        parts = module.split(".")
        return number[parts[0] if parts[0] == "fairseq_cli" else parts[1]]

    nowhere = [
        f"{name} imports {aim}, which plug-ins may; the house imports the module it stands for"
        for name, aims in sorted(import_graph().items())
        if name != "fairseq" and name not in old_paths
        for aim in sorted(aims)
        if ".".join(aim.split(".")[:2]) in old_paths
    ]
    assert not nowhere
    upward = [
        f"{name} imports {aim}"
        for name, aims in sorted(import_graph().items())
        if name != "fairseq" and name not in old_paths
        for aim in sorted(aims)
        if floor(aim) > floor(name)
    ]
    assert not upward


OLD_FILES = ("checkpoint_utils", "hub_utils", "options", "trainer")


def test_files_under_old_paths_are_one_line_for_editors() -> None:
    from fairseq.aliases import MODULES

    for name in (*OLD_FILES, "data.data_utils"):
        text = text_of(ROOT / "fairseq" / f"{name.replace('.', '/')}.py")
        assert text.startswith(f"from {MODULES[f'fairseq.{name}']} import *")
        assert len(text.splitlines()) == 1
    root = {path.stem for path in (ROOT / "fairseq").glob("*.py")} - {*OLD_FILES}
    assert len(root) <= 10, sorted(root)


def test_what_reaches_up_stands_in_two_tables() -> None:
    assert catalog.HOOKS == {"from_pretrained": "fairseq.hub.load:interface_of"}
    assert sorted(aliases.NAMES) == [
        "fairseq.checkpoint",
        "fairseq.config.options",
        "fairseq.config.registry",
        "fairseq.data.batches.epochs",
        "fairseq.data.collate",
        "fairseq.models",
        "fairseq.models.base",
        "fairseq.models.ema",
        "fairseq.models.roberta",
        "fairseq.modules",
        "fairseq.modules.pointwise",
        "fairseq.modules.transformer_encoder",
        "fairseq.modules.transformer_layer",
        "fairseq.utils",
    ]


def test_nothing_imports_in_a_circle() -> None:
    graph, done, trail = import_graph(), set(), []

    def visit(name: str) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            trail.append(name)
            for aim in sorted(graph[name]):
                visit(aim)
            trail.pop()
            done.add(name)

    for name in sorted(graph):
        visit(name)


def steps_of_the_walk() -> list[tuple[str, str]]:
    """Return (file, function) pairs that the walk of one batch names."""
    return re.findall(r"`(fairseq\w*/[\w/]+\.py): ([\w.]+)`", text_of(ARCHITECTURE))


def test_every_step_of_the_walk_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq_cli import preprocess, train

    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt")
    preprocess.run("--only-source --trainpref train.txt --validpref valid.txt".split())
    import torch.utils.data  # noqa: F401 - so that its import is not traced

    called: set[tuple[str, str]] = set()
    prefix = f"{ROOT}{os.sep}"

    def note(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix):
            called.add((code.co_filename.removeprefix(prefix), code.co_qualname))

    flags = (
        "data-bin --task masked_lm --criterion masked_lm --arch roberta_tiny --position alibi "
        "--optimizer adam --lr 0.01 --batch-size 8 --tokens-per-sample 16 --max-update 2"
    ).split()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        train.run([*flags, *narrow("encoder"), *TINY])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    steps = steps_of_the_walk()
    assert len(steps) > 30
    assert [step for step in steps if step not in called] == []

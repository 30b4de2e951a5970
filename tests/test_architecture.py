"""docs/architecture.md is true: imports go down its floors, and its walk is taken."""

from __future__ import annotations

import ast
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, TINY, blocks, narrow, own_modules, small_text, text_of

ARCHITECTURE = ROOT / "docs" / "architecture.md"


def imports_of(body: list[ast.stmt], modules: dict[str, Path]) -> Iterator[str]:
    """Yield our modules that are imported when this code is loaded."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else node.module
        for part in ("body", "orelse", "finalbody"):
            yield from imports_of(getattr(node, part, []), modules)
        for handler in getattr(node, "handlers", []):
            yield from imports_of(handler.body, modules)


def import_graph() -> dict[str, set[str]]:
    modules = own_modules()
    return {
        name: {
            aim
            for aim in imports_of(ast.parse(text_of(path)).body, modules)
            if aim in modules and aim not in (name, "fairseq")
        }
        for name, path in modules.items()
    }


def floors() -> dict[str, int]:
    """Read the picture in docs/architecture.md: name -> floor."""
    picture = next(block for block in blocks(ARCHITECTURE, "text") if "fairseq_cli" in block)
    found, floor = {}, -1
    for line in picture.splitlines():
        number, names = re.fullmatch(r"(\d)?\s+(.*)", line).groups()  # type: ignore[union-attr]
        floor = floor if number is None else int(number)
        for name in names.split():
            found[name if name == "fairseq_cli" else f"fairseq.{name}"] = floor
    return found


def test_the_picture_of_the_floors_is_complete_and_imports_go_down() -> None:
    picture, graph = floors(), import_graph()

    def floor(module: str) -> int:
        name = module
        while name not in picture:
            assert "." in name, f"{module} is on no floor of docs/architecture.md"
            name = name.rpartition(".")[0]
        return picture[name]

    modules = set(graph) - {"fairseq"}
    upward = [
        f"{name} (floor {floor(name)}) imports {aim} (floor {floor(aim)})"
        for name in sorted(modules)
        for aim in sorted(graph[name])
        if floor(aim) > floor(name)
    ]
    assert not upward
    known = set(graph) | {name.rpartition(".")[0] for name in graph}
    assert set(picture) <= known, set(picture) - known


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

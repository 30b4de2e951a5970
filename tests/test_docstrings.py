"""Public methods say what they do, once: an override is silent unless it has more to say.

Ruff asks for docstrings of modules, classes and functions; of methods it cannot tell which override
another one, so they are looked at here.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from documents import own_modules, text_of

Class = tuple[str, ast.ClassDef]


def classes() -> dict[str, list[Class]]:
    """Return the classes of the house by name, each with its module."""
    by_name: dict[str, list[Class]] = defaultdict(list)
    for module, path in own_modules().items():
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.ClassDef):
                by_name[node.name].append((module, node))
    return by_name


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            yield item


def ancestors(node: ast.ClassDef, by_name: dict[str, list[Class]]) -> Iterator[ast.ClassDef]:
    for base in node.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        for _, parent in by_name.get(name, ()):
            if parent is not node:
                yield parent
                yield from ancestors(parent, by_name)


def undocumented(by_name: dict[str, list[Class]]) -> list[str]:
    return [
        f"{module}.{node.name}.{method.name}"
        for found in by_name.values()
        for module, node in found
        if not node.name.startswith("_") and module != "fairseq.protocols"
        for method in methods(node)
        if ast.get_docstring(method) is None
        and not any(d for d in map(ast.unparse, method.decorator_list) if d.endswith(".setter"))
        and not any(
            inherited.name == method.name and ast.get_docstring(inherited)
            for parent in ancestors(node, by_name)
            for inherited in methods(parent)
        )
    ]


def test_every_public_method_has_a_docstring_or_overrides_one_that_has() -> None:
    assert undocumented(classes()) == []


def test_an_undocumented_method_is_found() -> None:
    text = 'class A:\n def f(self): "x"\nclass B(A):\n def f(self): 1\n def g(self): 1'
    nodes = {c.name: [("m", c)] for c in ast.parse(text).body if isinstance(c, ast.ClassDef)}
    assert undocumented(nodes) == ["m.B.g"]

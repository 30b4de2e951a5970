"""Compares grammars with a folder of references: charts, parses, conditionals, whole languages.

A reference is a JSON file about one grammar, given as ``rules`` inside or as a ``.rules`` file that
``grammar`` names or that has its stem. What is known is compared by name of the key, wherever it
stands; a file in which nothing is known is not understood. Files about curvature go to
``_pcfg_hessian``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from fairseq.errors import DataError
from fairseq.pcfg.grammar import Grammar, read_grammar, words_of
from tests.references._pcfg_reference import Reference

TOLERANCE = 1e-9


def grammar_of(path: Path, record: dict[str, Any]) -> Grammar | None:
    """Return the grammar that a reference is about, None for another kind of file."""
    rules = record.get("rules")
    if isinstance(rules, list):
        flat = [rule.split() if isinstance(rule, str) else rule for rule in rules]
        triples = [
            (rule[0], tuple(rule[1] if isinstance(rule[1], list) else rule[1:-1]), float(rule[-1]))
            for rule in flat
        ]
        return Grammar.from_rules(triples, path.name)
    for text in record.values():
        fields = [words_of(line) for line in str(text).splitlines() if line.strip()]
        if isinstance(text, str) and "\n" in text and all(len(f) in (3, 4) for f in fields):
            triples = [(f[0], tuple(f[1:-1]), float(f[-1])) for f in fields]
            return Grammar.from_rules(triples, path.name)
    names = [record.get("grammar"), record.get("rules_file"), rules, f"{path.stem}.rules"]
    for name in names:
        if isinstance(name, str) and "\n" not in name:
            for folder in (path.parent, path.parent.parent):
                if (folder / name).is_file():
                    return read_grammar(folder / name)
    return None


def check_file(path: Path) -> bool:
    """Compare one JSON file and print its differences; True if it is understood and agrees."""
    record = json.loads(path.read_text(encoding="utf-8"))
    grammar = grammar_of(path, record) if isinstance(record, dict) else None
    if grammar is None:
        print(f"{path.name}: not understood (it is about no grammar)")
        return False
    reference = Reference(grammar, record, path.parent)
    reference.compare()
    if not reference.worst:
        print(f"{path.name}: not understood (keys {', '.join(record)})")
        return False
    worst = max(reference.worst.values())
    print(f"{path.name}: largest difference {worst:.3g}")
    for key, off in reference.worst.items():
        print(f"  {key}: {off:.3g}")
    if reference.unknown:
        print(f"  not compared: {', '.join(sorted(reference.unknown))}")
    return worst <= TOLERANCE


def check_pairs(path: Path) -> bool:
    """Compare ``*_fd`` (finite differences) with ``*_gold`` in one file."""
    record = json.loads(path.read_text(encoding="utf-8"))
    pairs = [(v, record.get(f"{k[:-3]}_gold")) for k, v in record.items() if k.endswith("_fd")]
    if not pairs or any(gold is None for _, gold in pairs):
        print(f"{path.name}: not understood (no pairs *_fd, *_gold)")
        return False
    worst = max(abs(found / gold - 1) for found, gold in pairs)
    worst = max([worst, *(v for k, v in record.items() if k.endswith("_max_diff"))])
    print(f"{path.name}: largest difference {worst:.3g} (finite differences)")
    return bool(worst < 1e-5)


def check_curvature(folder: Path) -> bool:
    """Hand the files about curvature to their own checker."""
    try:
        compared = importlib.import_module("tests.references._pcfg_hessian").check(folder)
    except (AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
        print(f"curvature: {type(error).__name__}: {error}")
        return False
    print(f"curvature: {compared} numbers agree")
    return bool(compared)


def check(folder: Path) -> int:
    """Check a folder and the folders in it.

    Args:
        folder: JSON files and what they refer to.

    Returns:
        0 if every file is understood and agrees, else 1.
    """
    fine, curvature, seen = True, [], 0
    texts = [path.read_text(encoding="utf-8") for path in Path(folder).rglob("*.json")]
    for path in sorted(Path(folder).rglob("*")):
        if path.is_dir() or path.suffix == ".md" or path.name.startswith("."):
            continue
        seen += 1
        if path.suffix == ".npy" and not any(path.name in text for text in texts):
            print(f"{path.name}: not understood (no JSON file names it)")
            fine = False
        if path.name.startswith("hessian") or path.suffix == ".npz":
            curvature.append(path)
            continue
        try:
            if path.suffix == ".json":
                fine &= check_file(path)
            elif path.suffix != ".npy":  # an array is read by the JSON file that names it
                read_grammar(path)  # a grammar; what it should give stands in a JSON file
        except (DataError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            print(f"{path.name}: not understood ({type(error).__name__}: {error})")
            fine = False
    notes = [path for path in curvature if path.name.endswith("crosscheck.json")]
    for path in notes:
        fine &= check_pairs(path)
    curvature = [path for path in curvature if path not in notes]
    if curvature:
        if importlib.util.find_spec("tests.references._pcfg_hessian") is None:
            print(f"{', '.join(path.name for path in curvature)}: not understood (no checker)")
            fine = False
        else:
            fine &= check_curvature(folder)
    return 0 if fine and seen else 1

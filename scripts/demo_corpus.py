"""Build the demo's corpus: English from the documentation strings of installed Python code.

``python scripts/demo_corpus.py OUTPUT_DIR`` reads the source files of the standard library, numpy
and torch (as text: nothing is imported or downloaded), keeps the prose of their documentation and
writes ``train.txt``, ``valid.txt`` and ``test.txt``: a paragraph per line, a blank line between
documents. The same installation always gives the same bytes. The sentences by which the demo judges
its model, and whatever comes near them, are left out.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import itertools
import os
import re
import signal
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fairseq.errors import DataError, MissingFileError
from fairseq.files.io import atomic_write, require_file

SENTENCES = Path(__file__).resolve().parent.parent / "examples" / "demo" / "sentences.txt"
MASK = "<mask>"
PACKAGES = ("numpy", "torch")
SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
# The language reference that pydoc shows: a dictionary of texts instead of documentation strings.
TOPICS = "pydoc_data/topics.py"
# Of the source files, three in a hundred go to valid and three to test; a file is never split.
SPLIT_PERCENT = {"valid": 3, "test": 3}
# Two texts with so many words in a row in common are near copies.
COPY_WORDS = 8
SHORTEST = 30  # characters of a paragraph that is kept
FEWEST_WORDS = 5
LETTER_SHARE = 0.8

WORD = re.compile(r"\w+")
# A line under (or over) a heading, or of a table.
RULE = re.compile(r"[=\-~^+*#|. _\"']{3,}")
# Directives whose text is prose, in contrast to code, mathematics and version notes.
SPOKEN = re.compile(r"\.\. (?:attention|caution|hint|important|note|seealso|tip|warning)::\s*")
# "Args:", "Other parameters:"
HEADER = re.compile(r"[A-Z]\w*(?: \w+){0,2}:")
# What an item of a list starts with: ":param x:", "-", "1.", "name (type):".
ITEM = re.compile(
    r"(?::\w+ [^:]*:|[-*\u2022]|\d+[.)]|[a-z_*`][\w.*`]*(?:\s*\([^)]*\))?\s?:)\s+(?=\S)"
)
ROLE = re.compile(r":[\w:+-]+:`~?\.?([^`<]*)(?:<[^`]*>)?`")
LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_*")
EMPHASIS = re.compile(r"\*(\w[^*]*\w|\w)\*")
# Signs of code, mathematics, templates and tables.
FOREIGN = re.compile(r">>>|[\\{}|]|https?:|==|__|->")


@dataclasses.dataclass(frozen=True)
class Source:
    """A Python file; ``name`` is the same on every machine, ``path`` is not."""

    name: str
    path: Path


def source_folders() -> dict[str, Path]:
    """Return the folders of the standard library and of the installed packages.

    Raises:
        MissingFileError: if a package is not installed.
    """
    folders = {"python": Path(sysconfig.get_paths()["stdlib"])}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
        if spec is None or not spec.submodule_search_locations:
            raise MissingFileError(f"the package {package} is not installed. pip install {package}")
        folders[package] = Path(spec.submodule_search_locations[0])
    return folders


def source_files(name: str, folder: Path) -> Iterator[Source]:
    """Yield the Python files under ``folder`` in a fixed order."""
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(current, file)
                yield Source(f"{name}/{path.relative_to(folder).as_posix()}", path)


def documentation(source: Source) -> Iterator[str]:
    """Yield the documentation strings of a file; none if this Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes such as "\d" in other people's strings
            tree = ast.parse(source.path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if text := ast.get_docstring(node):
                yield text
        elif isinstance(node, ast.Dict) and source.name.endswith(TOPICS):
            yield from map(inspect.cleandoc, _strings(node.values))
        elif isinstance(node, ast.Call) and "doc" in _called(node).lower():
            # torch and numpy document compiled functions by add_docstr(function, text)
            yield from map(inspect.cleandoc, _strings(node.args))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _strings(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in itertools.chain.from_iterable(map(ast.walk, nodes)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            yield node.value


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def prose_lines(text: str) -> Iterator[str]:
    """Yield the lines of ``text``; doctests, code, headings and table rules become ``""``."""
    in_doctest, hidden_below = False, None
    for line, following in itertools.pairwise([*text.expandtabs().splitlines(), ""]):
        bare = line.strip()
        in_doctest = bool(bare) and (in_doctest or bare.startswith((">>>", "$ ")))
        if hidden_below is not None and bare and _depth(line) <= hidden_below:
            hidden_below = None
        is_heading = RULE.fullmatch(bare) or RULE.fullmatch(following.strip())
        if not bare or in_doctest or hidden_below is not None or is_heading:
            yield ""
        elif spoken := SPOKEN.match(bare):
            yield ""
            yield " " * (_depth(line) + 3) + bare[spoken.end() :]
        elif bare.startswith(".. "):
            hidden_below = _depth(line)
            yield ""
        elif bare.endswith("::"):
            hidden_below = _depth(line)
            yield line.rstrip()[:-1]
            yield ""
        else:
            yield line


def segments(block: Sequence[str]) -> Iterator[str]:
    """Cut a run of lines into paragraphs: a list gives one per item, without its marker."""
    lines = list(itertools.dropwhile(lambda line: HEADER.fullmatch(line.strip()), block))
    is_list = bool(lines) and ITEM.match(lines[0].strip()) is not None
    segment: list[str] = []
    last = 0
    for line in lines:
        bare, depth = line.strip(), _depth(line)
        # "x : int" above an indented explanation
        under_term = depth > last and len(segment) == 1 and _is_term(segment[0])
        if segment and (depth < last or (is_list and ITEM.match(bare)) or under_term):
            yield " ".join(segment)
            segment = []
        segment.append(bare if segment else ITEM.sub("", bare, count=1))
        last = depth
    yield " ".join(segment)


def _is_term(line: str) -> bool:
    return " : " in line or len(line.split()) < 3


def plain(text: str) -> str:
    """Return ``text`` without the marks of reStructuredText and Markdown."""
    text = LINK.sub(r"\1", ROLE.sub(r"\1", text))
    for mark in ("``", "`", "**"):
        text = text.replace(mark, "")
    return " ".join(EMPHASIS.sub(r"\1", text).split())


def is_prose(text: str) -> bool:
    """Tell whether a paragraph is long enough and made of words."""
    if len(text) < SHORTEST or len(text.split()) < FEWEST_WORDS or FOREIGN.search(text):
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    return text[0].isalpha() and letters >= LETTER_SHARE * len(text)


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of prose in a documentation string."""
    found = []
    for has_text, block in itertools.groupby(
        prose_lines(text), key=lambda line: bool(line.strip())
    ):
        if has_text:
            found += [part for part in map(plain, segments(list(block))) if is_prose(part)]
    return found


def documents_of(source: Source) -> list[list[str]]:
    """Return the documents of a file, each a list of paragraphs."""
    return [found for text in documentation(source) if (found := paragraphs(text))]


def words_of(text: str) -> str:
    """Return the words of ``text`` in lower case, joined by spaces."""
    return " ".join(WORD.findall(text.lower()))


def read_sentences(path: Path) -> list[tuple[str, list[str]]]:
    """Read the demo's sentences: each with its mask and the words accepted in its place.

    Raises:
        MissingFileError: if there is no such file.
        DataError: on a line without a tab, without exactly one mask, or without words.
    """
    require_file(path, "file of sentences", "Check --sentences.")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        sentence, _, accepted = line.partition("\t")
        if sentence.count(MASK) != 1 or not accepted.split():
            raise DataError(
                f"{path}, line {number}: expected a sentence with one {MASK}, a tab, and the "
                f"accepted words, found {line!r}"
            )
        found.append((sentence, accepted.split()))
    return found


def near_copy_pattern(sentences: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds near copies of masked sentences in :func:`words_of` a text.

    A near copy has eight words in a row in common with a sentence, or all of them if it has fewer;
    any word stands for the mask.
    """
    windows = []
    for sentence in sentences:
        left, right = map(words_of, sentence.split(MASK))
        words = [*map(re.escape, left.split()), r"\w+", *map(re.escape, right.split())]
        size = min(COPY_WORDS, len(words))
        windows += [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]
    return re.compile(r"\b(?:" + "|".join(windows) + r")\b")


def split_of(name: str) -> str:
    """Return the split that the source file ``name`` belongs to."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    for split, percent in SPLIT_PERCENT.items():
        if place < percent:
            return split
        place -= percent
    return "train"


def build(
    sources: Sequence[Source], sentences: Iterable[str], output: Path, workers: int | None = None
) -> dict[str, int]:
    """Write the corpus of ``sources`` into the folder ``output``.

    Args:
        sources: files to read, in the order of the corpus.
        sentences: masked sentences whose near copies are left out.
        output: folder of ``train.txt``, ``valid.txt`` and ``test.txt``; made if need be.
        workers: processes that parse, by default one per core.

    Returns:
        Bytes of each split.
    """
    copies = near_copy_pattern(sentences)
    seen: set[str] = set()
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    quietly = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    pool = ProcessPoolExecutor(workers, **quietly)  # on Ctrl-C the parent stops them
    try:
        for source, documents in zip(
            sources, pool.map(documents_of, sources, chunksize=16), strict=True
        ):
            for document in documents:
                fresh = []
                for paragraph in document:
                    key = words_of(paragraph)
                    if key not in seen and not copies.search(key):
                        fresh.append(paragraph + "\n")
                    seen.add(key)
                if fresh:
                    splits[split_of(source.name)].append("".join(fresh))
    finally:
        pool.shutdown(cancel_futures=True)
    output.mkdir(parents=True, exist_ok=True)
    texts = {split: "\n".join(parts).encode() for split, parts in splits.items()}
    for split, text in texts.items():
        with atomic_write(output / f"{split}.txt") as handle:
            handle.write(text)
    return {split: len(text) for split, text in texts.items()}


def main(argv: list[str] | None = None) -> int:
    """Build the corpus of this installation; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--sentences", type=Path, default=SENTENCES, metavar="FILE")
    args = parser.parse_args(argv)
    sentences = [sentence for sentence, _ in read_sentences(args.sentences)]
    sources = [file for item in source_folders().items() for file in source_files(*item)]
    print(f"reading the documentation in {len(sources):,} Python files", file=sys.stderr)
    for split, size in build(sources, sentences, args.output).items():
        print(f"{args.output / f'{split}.txt'}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    from fairseq_cli.entry import run_command

    run_command(main)

"""Plain text of a Wikipedia dump, as JSON lines: one article a line, titles beside texts.

Usage: python scripts/wikipedia.py enwiki-latest-pages-articles.xml.bz2 --out wiki.jsonl [--uncased]

Pages of other namespaces, redirections and articles of less than ``--least`` words are left out.
Templates, tables, references, files and categories are dropped, links become their words. This is
no rendering: what templates would have written is missing. A file is written whole or not at all.
"""

from __future__ import annotations

import argparse
import bz2
import html
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from fairseq.errors import DataError, MissingFileError
from fairseq.files.io import atomic_write
from fairseq_cli.entry import run_command

# innermost first, again and again: these nest
NESTED = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
DROPPED = re.compile(
    r"<!--.*?-->|<ref[^>/]*/>|<(ref|math|gallery|timeline|score|code|syntaxhighlight)\b[^>]*>.*?</\1>"
    r"|</?[a-zA-Z][^>]*>|__[A-Z]+__",
    re.DOTALL,
)
# no link inside, so that captions lose theirs first
LINK = re.compile(r"\[\[(?P<target>[^\[\]|]*)(?:\|(?P<words>[^\[\]]*))?\]\]")
OUTSIDE = re.compile(r"\[(?:https?:)?//[^\s\]]+ ?([^\]]*)\]")
LISTS = re.compile(r"^[*#:;]+\s*", re.MULTILINE)
HEADINGS = re.compile(r"^=+.*?=+\s*$", re.MULTILINE)


def plain(markup: str) -> str:
    """Return the paragraphs of an article, one a line."""
    text = DROPPED.sub("", markup)
    text = _until_it_stays(NESTED, lambda found: "", text)
    text = _until_it_stays(LINK, _words_of, text)
    text = HEADINGS.sub("", OUTSIDE.sub(r"\1", text))
    text = LISTS.sub("", re.sub(r"'{2,}", "", text))
    # entities come last, so that what they write is not read as markup
    lines = (" ".join(line.split()) for line in html.unescape(text).splitlines())
    return "\n".join(line for line in lines if line)


def _until_it_stays(
    pattern: re.Pattern[str], new: Callable[[re.Match[str]], str], text: str
) -> str:
    count = 1
    while count:
        text, count = pattern.subn(new, text)
    return text


def _words_of(link: re.Match[str]) -> str:
    target, words = link["target"], link["words"]
    if re.match(r"\s*(?:file|image|category)\s*:", target, re.IGNORECASE):
        return ""
    return (words or target).rpartition("|")[2]


def uncased(text: str) -> str:
    """Return text in small letters without accents, as uncased BERT reads it."""
    split = unicodedata.normalize("NFD", text.lower())
    return "".join(letter for letter in split if unicodedata.category(letter) != "Mn")


def articles(dump: IO[bytes], name: str) -> Iterator[tuple[str, str]]:
    """Return titles and markup of the articles of a dump; memory does not grow with it.

    Raises:
        DataError: if the file is no dump, or it is cut.
    """
    page: dict[str, str] = {}
    root: ElementTree.Element | None = None
    try:
        for event, element in ElementTree.iterparse(dump, events=("start", "end")):
            tag = element.tag.rpartition("}")[2]
            if event == "start":
                root = element if root is None else root
                page = {} if tag == "page" else page
                continue
            if tag in ("title", "ns", "redirect", "text"):
                page[tag] = element.text or ""
            elif tag == "page" and root is not None:
                root.clear()  # or the tree of empty pages would grow
                if page.get("ns") == "0" and "redirect" not in page:
                    yield page.get("title", ""), page.get("text", "")
    except (ElementTree.ParseError, EOFError, OSError) as error:
        raise DataError(f"{name} is no sound dump of MediaWiki: {error}") from error


def convert(dump: Path, out: Path, lower: bool, least: int) -> tuple[int, int]:
    """Write the articles of a dump; return how many were kept, and of how many."""
    if not dump.is_file():
        raise MissingFileError(f"dump not found: {dump}")
    kept = seen = 0
    with (
        bz2.open(dump) if dump.suffix == ".bz2" else open(dump, "rb") as pages,
        atomic_write(out, "w", encoding="utf-8") as lines,
    ):
        for title, markup in articles(pages, str(dump)):
            seen += 1
            text = plain(markup)
            if len(text.split()) >= least:
                kept += 1
                row = {"title": title, "text": uncased(text) if lower else text}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return kept, seen


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dump", type=Path, help="pages-articles.xml or .xml.bz2")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.jsonl)")
    parser.add_argument("--uncased", action="store_true", help="small letters, no accents")
    parser.add_argument("--least", type=int, default=5, help="words of an article (5)")
    args = parser.parse_args(argv)
    kept, seen = convert(args.dump, args.out, args.uncased, args.least)
    print(f"{kept} of {seen} articles", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_command(main)

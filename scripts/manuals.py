"""A corpus of English manuals, from Debian packages: what the studies train on beside other prose.

Usage: python scripts/manuals.py OUTPUT_DIR [--packages FOLDER]

Downloads five packages with `apt-get` (91 MB; nothing is installed, no rights are needed), reads
their HTML and reStructuredText and writes ``train.txt``, ``valid.txt`` and ``test.txt``, about
24 MB: a paragraph a line, a blank line between documents, no paragraph twice. ``sources.json``
holds the SHA-256 of every package and text: packages are replaced as Debian is updated, and the
texts change with them. With ``--packages`` the files lie there already, or are kept there.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from fairseq.errors import DataError, MissingFileError
from fairseq.files.io import atomic_write
from fairseq_cli.entry import run_command

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.demo_corpus import is_prose, paragraphs, split_of, words_of

# licences: PSF, PostgreSQL, GPL-2 or later (two), GPL-2
PACKAGES = (
    "python3.11-doc",
    "postgresql-doc-15",
    "debian-handbook",
    "debian-reference-en",
    "linux-doc-6.1",
)
# sources of pages lie beside the pages of some packages: read once, in the form with less markup
SUFFIXES = (".rst.gz", ".rst.txt", ".html")
# a document in another language, or a list of names rather than prose
LEFT_OUT = ("translations", "genindex", "searchindex", "bookindex")
LANGUAGE = "en-US"
FEWEST_PARAGRAPHS = 3
BLOCKS = {"p", "li", "dd", "dt", "td", "th", "div", "h1", "h2", "h3", "h4", "br"}
SILENT = {"script", "style", "pre", "table", "nav", "head", "footer"}


class Page(HTMLParser):
    """Collects the running text of an HTML page in ``found``, a block after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.pieces: list[str] = []  # of the block; a tag may stand in the middle of a word
        self.silent = 0  # how many elements that hold no prose are open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block, or an element that is left out."""
        self.silent += tag in SILENT
        if tag in BLOCKS:
            self.close_block()

    def handle_endtag(self, tag: str) -> None:
        """End what :meth:`handle_starttag` began."""
        # pages close what they never opened
        self.silent = max(0, self.silent - (tag in SILENT))
        if tag in BLOCKS:
            self.close_block()

    def handle_data(self, data: str) -> None:
        """Take text."""
        if not self.silent:
            self.pieces.append(data)

    def close_block(self) -> None:
        """Keep the block if it is prose."""
        text, self.pieces = " ".join("".join(self.pieces).split()), []
        if is_prose(text):
            self.found.append(text)


def prose_of(path: Path) -> list[str]:
    """Return the paragraphs of a page or of a source text."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", "ignore")
    if path.suffix != ".html":
        return paragraphs(text)
    page = Page()
    page.feed(text)
    page.close_block()
    return page.found


def download(packages: Sequence[str], folder: Path) -> list[Path]:
    """Return the files of the packages in ``folder``; fetch those that are missing.

    Raises:
        MissingFileError: if this is no Debian, or apt-get cannot fetch one.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise MissingFileError(f"{program} is not here: the corpus is made of Debian packages")
    missing = [name for name in packages if not list(folder.glob(f"{name}_*.deb"))]
    if missing:
        print(f"fetching {', '.join(missing)} (91 MB in all)", file=sys.stderr)
        done = subprocess.run(
            ["apt-get", "download", *missing], cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            raise MissingFileError(f"apt-get download: {done.stderr.strip().splitlines()[-1]}")
    return [sorted(folder.glob(f"{name}_*.deb"))[-1] for name in packages]


def pages(root: Path) -> Iterator[Path]:
    """Yield the documents of an unpacked package, in a fixed order, each in one form."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    for suffix in SUFFIXES:
        found = [path for path in files if path.name.endswith(suffix) and _is_english(path, files)]
        if found:
            yield from found
            return


def _is_english(path: Path, files: Sequence[Path]) -> bool:
    languages = any(LANGUAGE in other.parts for other in files)
    kept = not any(word in str(path) for word in LEFT_OUT)
    return kept and (not languages or LANGUAGE in path.parts)


def build(archives: Sequence[Path], output: Path) -> dict[str, int]:
    """Write the corpus of ``archives`` into ``output``; return the bytes of each split.

    Raises:
        DataError: if a package cannot be unpacked, or holds no prose.
    """
    seen: set[str] = set()
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for number, archive in enumerate(archives, 1):
        print(f"{number}/{len(archives)} {archive.name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            unpacked = subprocess.run(["dpkg-deb", "-x", archive, folder], capture_output=True)
            if unpacked.returncode:
                raise DataError(f"{archive}: {unpacked.stderr.decode(errors='replace').strip()}")
            before = len(seen)
            for path in pages(Path(folder)):
                fresh = []
                for paragraph in prose_of(path):
                    if (key := words_of(paragraph)) not in seen:
                        fresh.append(paragraph + "\n")
                    seen.add(key)
                if len(fresh) >= FEWEST_PARAGRAPHS:  # less is a stub, or repeats another page
                    splits[split_of(str(path.relative_to(folder)))].append("".join(fresh))
            if len(seen) == before:
                raise DataError(f"{archive}: no prose in it; is this the documentation's package?")
    output.mkdir(parents=True, exist_ok=True)
    texts = {f"{split}.txt": "\n".join(parts).encode() for split, parts in splits.items()}
    contents = {**texts, **{archive.name: archive.read_bytes() for archive in archives}}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    texts["sources.json"] = (json.dumps(digests, indent=1) + "\n").encode()
    for name, content in texts.items():
        with atomic_write(output / name) as handle:
            handle.write(content)
    return {name: len(content) for name, content in texts.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Build the corpus; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="where they are kept")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        kept = args.packages or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        sizes = build(download(PACKAGES, kept), args.output)
    for name, size in sizes.items():
        print(f"{args.output / name}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    run_command(main)

"""The corpus of manuals: what is kept of packages that are made here."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from fairseq.errors import DataError, MissingFileError
from scripts.manuals import Page, build, download

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")

KEPT = [f"The {word} option tells the program where it should write its files." for word in "abcd"]
CONTROL = "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: none\nDescription: toy\n"


def package(folder: Path, pages: dict[str, bytes]) -> Path:
    """Make a package that installs ``pages``."""
    tree, archive = folder / "tree", folder / "toy_1_all.deb"
    for name, content in {**pages, "DEBIAN/control": CONTROL.encode()}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    subprocess.run(["dpkg-deb", "--build", tree, archive], check=True, capture_output=True)
    return archive


def html(paragraphs: list[str]) -> bytes:
    """Return a page with a menu and a listing."""
    body = "".join(f"<p>{text}</p>" for text in paragraphs)
    return f"<html><nav>The menu of all the pages that are here.</nav>{body}</html>".encode()


def test_a_tag_in_the_middle_of_a_word_does_not_cut_it() -> None:
    page = Page()
    page.feed("<p>Call the <code>open</code>() function, and then close it<b>self</b>.</p>")
    assert page.found == ["Call the open() function, and then close itself."]


def test_listings_and_menus_are_no_prose() -> None:
    page = Page()
    page.feed(f"<pre>{KEPT[0]}</pre><nav>{KEPT[1]}</nav></table><p>{KEPT[2]}</p><p>Short one.</p>")
    assert page.found == [KEPT[2]]


@needs_dpkg
def test_documents_are_kept_once_in_one_form_and_one_language(tmp_path: Path) -> None:
    archive = package(
        tmp_path,
        {
            "usr/share/doc/toy/a.rst.gz": gzip.compress("\n\n".join(KEPT).encode()),
            "usr/share/doc/toy/b.rst.gz": gzip.compress("\n\n".join(KEPT).encode()),
            "usr/share/doc/toy/translations/c.rst.gz": gzip.compress(b"Not this one."),
            "usr/share/doc/toy/a.html": html(["And this page repeats what the source has said."]),
        },
    )
    sizes = build([archive], tmp_path / "out")
    text = "".join((tmp_path / "out" / f"{split}.txt").read_text() for split in ("train", "valid"))
    text += (tmp_path / "out" / "test.txt").read_text()
    assert text.splitlines() == KEPT
    assert sum(size for name, size in sizes.items() if name.endswith(".txt")) == len(text)
    digests = json.loads((tmp_path / "out" / "sources.json").read_text())
    assert digests["toy_1_all.deb"] == sha256(archive.read_bytes()).hexdigest()


@needs_dpkg
def test_other_languages_are_left_out_where_there_are_several(tmp_path: Path) -> None:
    archive = package(
        tmp_path,
        {
            "usr/share/doc/toy/en-US/a.html": html(KEPT),
            "usr/share/doc/toy/fr-FR/a.html": html(["Une phrase qui est en une autre langue ici."]),
        },
    )
    build([archive], tmp_path / "out")
    texts = [
        (tmp_path / "out" / f"{split}.txt").read_text() for split in ("train", "valid", "test")
    ]
    assert "".join(texts).splitlines() == KEPT


@needs_dpkg
def test_what_is_no_package_or_holds_no_prose_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken_1_all.deb").write_bytes(b"no archive")
    with pytest.raises(DataError, match="broken_1_all"):
        build([tmp_path / "broken_1_all.deb"], tmp_path / "out")
    with pytest.raises(DataError, match="no prose"):
        build([package(tmp_path, {"usr/share/doc/toy/a.html": html(["Short."])})], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_programs_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(MissingFileError, match="Debian"):
        download(["toy"], tmp_path)

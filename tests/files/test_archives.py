"""Model archives: what is safe is unpacked whole, what is not leaves no trace anywhere."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairseq.errors import CheckpointError
from fairseq.files import archives

Writer = Callable[[Path], None]
CONTENT = {"model/model.pt": b"weights" * 500, "model/dict.txt": b"a 1\nb 2\n", "model/sub/x": b""}


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Writer:
    def write(path: Path) -> None:
        with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]
            for info, data in members:
                packed.addfile(info, io.BytesIO(data))

    return write


def member(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def link(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, b"", type=kind, linkname=target)


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes], compress: int = 8) -> Writer:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compress) as packed:
            for name, data in members:
                packed.writestr(name, data)

    return write


def zip_entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("placeholder")
    entry.filename, entry.external_attr = name, mode << 16
    return entry


def raw_tar(*blocks: bytes) -> Writer:
    return lambda path: path.write_bytes(gzip.compress(b"".join(blocks)))


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def zip_with_wrong_size(path: Path) -> None:
    zip_of(("a", b"0123456789"), compress=0)(path)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(signature) + offset
        data[place : place + 4] = (5).to_bytes(4, "little")
    path.write_bytes(data)


def encrypted_zip(path: Path) -> None:
    zip_of(("a", b"0123456789"))(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x03\x04") + 6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


SYM, LNK = tarfile.SYMTYPE, tarfile.LNKTYPE
LONG_NAME = "/".join(["d" * 100] * 30)
HOSTILE: dict[str, Writer] = {
    "tar: absolute path": tar_of(member("/tmp/escaped")),
    "tar: two dots": tar_of(member("../escaped")),
    "tar: dots inside": tar_of(member("model/../../escaped")),
    "tar: dots at the end": tar_of(member("model/sub/../../../escaped")),
    "tar: only dots": tar_of(member("..")),
    "tar: backslashes": tar_of(member("..\\escaped")),
    "tar: drive": tar_of(member("C:escaped")),
    "tar: dots folder": tar_of(member("../escaped", b"", type=tarfile.DIRTYPE)),
    "tar: symlink": tar_of(link("model", "/tmp", SYM)),
    "tar: symlink, then a file through it": tar_of(
        link("model", "..", SYM), member("model/escaped")
    ),
    "tar: symlink onto itself": tar_of(link("a", "a", SYM)),
    "tar: relative symlink": tar_of(member("a"), link("b", "a", SYM)),
    "tar: hard link outside": tar_of(link("a", "/etc/passwd", LNK)),
    "tar: hard link inside": tar_of(member("a"), link("b", "a", LNK)),
    "tar: hard link, then overwritten": tar_of(link("a", "../victim", LNK), member("a")),
    "tar: character device": tar_of(member("a", b"", type=tarfile.CHRTYPE)),
    "tar: block device": tar_of(member("a", b"", type=tarfile.BLKTYPE)),
    "tar: FIFO": tar_of(member("a", b"", type=tarfile.FIFOTYPE)),
    "tar: unknown kind": tar_of(member("a", b"", type=b"Z")),
    "tar: the same file twice": tar_of(member("a"), member("a")),
    "tar: the same file in other case": tar_of(member("Model.pt"), member("model.PT")),
    "tar: file, then folder of that name": tar_of(member("a"), member("a/b")),
    "tar: folder, then file of that name": tar_of(member("a/b"), member("a")),
    "tar: very long path": tar_of(member(LONG_NAME)),
    "tar: long component": tar_of(member("n" * 300)),
    "tar: huge name record": raw_tar(header("././@LongLink", 1 << 20, b"L"), b"a" * (1 << 20)),
    "tar: huge attribute record": raw_tar(header("pax", 1 << 20, b"x"), b"a" * (1 << 20)),
    "tar: line break in the path": tar_of(member("a\nb")),
    "tar: bomb": tar_of(member("zeros", bytes(64 << 20))),
    "tar: size stated far too large": raw_tar(header("a", 1 << 40, b"0"), b"x" * 512),
    "tar: cut off": raw_tar(header("a", 5000, b"0"), b"x" * 512),
    "tar: too many files": tar_of(*(member(f"f{n}", b"") for n in range(150))),
    "tar: too many folders": tar_of(
        *(member(f"f{n}", b"", type=tarfile.DIRTYPE) for n in range(150))
    ),
    "tar: trailing data": raw_tar(header("a", 1, b"0"), b"x" * 512, bytes(1024), b"y" * 512),
    "zip: two dots": zip_of((zip_entry("../escaped"), b"x")),
    "zip: absolute path": zip_of((zip_entry("/tmp/escaped"), b"x")),
    "zip: dots inside": zip_of((zip_entry("a/../../escaped"), b"x")),
    "zip: backslashes": zip_of((zip_entry("..\\..\\escaped"), b"x")),
    "zip: drive": zip_of((zip_entry("C:/escaped"), b"x")),
    "zip: symlink": zip_of((zip_entry("a", 0o120777), b"/tmp")),
    "zip: device": zip_of((zip_entry("a", 0o020666), b"")),
    "zip: FIFO": zip_of((zip_entry("a", 0o010666), b"")),
    "zip: the same file twice": zip_of((zip_entry("a"), b"x"), (zip_entry("A"), b"y")),
    "zip: very long path": zip_of((zip_entry(LONG_NAME), b"x")),
    "zip: bomb": zip_of(("zeros", bytes(64 << 20))),
    "zip: bzip2 bomb": zip_of(("zeros", bytes(16 << 20)), compress=zipfile.ZIP_BZIP2),
    "zip: size stated wrongly": zip_with_wrong_size,
    "zip: encrypted": encrypted_zip,
    "zip: empty name": zip_of((zip_entry(""), b"x")),
}


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.hostile
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str, Any], None]
) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 100)
    box = tmp_path / "box"
    box.mkdir()
    (tmp_path / "victim").write_text("precious")
    archive = tmp_path / "archive"
    HOSTILE[kind](archive)
    before = everything_below(tmp_path)

    with pytest.raises(CheckpointError, match="archive"):
        archives.extract(archive, box / "model")

    assert everything_below(tmp_path) == before
    assert (tmp_path / "victim").read_text() == "precious"
    assert not Path("/tmp/escaped").exists()
    figure("kinds of hostile archives refused", len(HOSTILE))


def test_enough_kinds_are_tried() -> None:
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_a_good_archive_is_unpacked_whole(mode: str, tmp_path: Path) -> None:
    archive = tmp_path / "good"
    if mode == "zip":
        zip_of(*CONTENT.items())(archive)
    else:
        folder = member("model", b"", type=tarfile.DIRTYPE)
        tar_of(folder, *(member(name, data) for name, data in CONTENT.items()), mode=mode)(archive)
    assert archives.is_archive(archive)

    inside = archives.extract(archive, tmp_path / "out")

    assert inside == tmp_path / "out" / "model"
    assert {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in inside.rglob("*")
        if path.is_file()
    } == CONTENT


def test_a_long_but_reasonable_path_is_fine(tmp_path: Path) -> None:
    name = "/".join(["part"] * 60)
    tar_of(member(name, b"data"))(tmp_path / "a")
    assert (
        archives.extract(tmp_path / "a", tmp_path / "out").parent / name
    ).read_bytes() == b"data"


def test_several_things_at_the_top_stay_together(tmp_path: Path) -> None:
    tar_of(member("model.pt"), member("dict.txt"))(tmp_path / "a")
    assert archives.extract(tmp_path / "a", tmp_path / "out") == tmp_path / "out"


def test_what_was_unpacked_before_is_not_unpacked_again(tmp_path: Path) -> None:
    tar_of(member("model.pt"), member("dict.txt"))(tmp_path / "a")
    archives.extract(tmp_path / "a", tmp_path / "out")
    (tmp_path / "a").unlink()
    assert (archives.extract(tmp_path / "a", tmp_path / "out") / "model.pt").is_file()


@pytest.mark.parametrize("mode", ["w:gz", "zip"])
def test_a_damaged_archive_is_refused_or_unpacked_unchanged(mode: str, tmp_path: Path) -> None:
    archive, out = tmp_path / "a", tmp_path / "out"
    if mode == "zip":
        zip_of(*CONTENT.items())(archive)
    else:
        tar_of(*(member(name, data) for name, data in CONTENT.items()), mode=mode)(archive)
    good = archive.read_bytes()
    rng = random.Random(1)
    refused = 0
    for trial in range(60):
        data = bytearray(good)
        if trial % 2:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        archive.write_bytes(data)
        target = out / str(trial)
        try:
            archives.extract(archive, target)
        except CheckpointError:
            refused += 1
            assert not target.exists()
        else:
            found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*.*")}
            assert found == {name: data for name, data in CONTENT.items() if "." in name}
    assert refused >= 45
    assert not list(out.glob("*.part-*"))


def test_something_else_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    assert not archives.is_archive(tmp_path / "text")
    assert not archives.is_archive(tmp_path)
    assert not archives.is_archive(tmp_path / "missing")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    tar_of(member("model.pt"))(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot unpack"):
        archives.extract(tmp_path / "a", tmp_path / "file" / "out")


def test_cache_names_are_those_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://host/model.tar.gz"
    assert len(archives.cached_name(url)) == 64
    assert archives.cached_name(url, "tag").split(".")[0] == archives.cached_name(url)
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", "/somewhere")
    assert archives.cache_folder() == Path("/somewhere")

"""Folders appear whole, and replace only what they may."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fairseq.errors import DataError
from fairseq.files.folders import new_folder


def written(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def test_what_a_killed_writer_left_is_no_part_of_the_next_folder(tmp_path: Path) -> None:
    (tmp_path / ".model.unfinished" / "sub").mkdir(parents=True)
    (tmp_path / ".model.unfinished" / "half.bin").write_text("half")
    with new_folder(tmp_path / "model", force=False) as folder:
        (folder / "meta.json").write_text("{}")
    assert written(tmp_path) == ["model", "model/meta.json"]


@pytest.mark.skipif(os.name == "nt", reason="no locks on folders")
def test_of_two_writers_of_a_folder_the_second_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "cache"
    with new_folder(out, force=True) as folder:
        (folder / "meta.json").write_text("first")
        with pytest.raises(DataError, match="another process is writing"), new_folder(out, True):
            raise AssertionError("two at once")
    assert written(tmp_path) == ["cache", "cache/meta.json"]
    assert (out / "meta.json").read_text() == "first"
    with new_folder(out, force=True) as folder:  # the lock went with its writer
        (folder / "meta.json").write_text("second")
    assert (out / "meta.json").read_text() == "second"


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with (
        pytest.raises(DataError, match="exists; .* give --cache-force to replace it"),
        new_folder(out, force=False, flag="--cache-force"),
    ):
        out.mkdir()
        (out / "model.pt").write_text("another's")
    assert written(tmp_path) == ["model", "model/model.pt"]


def test_a_folder_that_holds_its_source_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    source = out / "model.pt"
    source.write_text("weights")
    (tmp_path / "link").symlink_to(out)
    for name in (source, out, tmp_path / "link" / "model.pt"):
        with pytest.raises(DataError, match="which is read"), new_folder(out, True, name):
            raise AssertionError("the source would have been deleted")
    assert written(out) == ["model.pt"]


def test_what_a_library_in_rust_says_of_the_system_names_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(OSError) as caught, new_folder(out, False) as folder:
        save_file({"x": torch.zeros(2)}, folder / "missing" / "model.safetensors")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(out))
    with pytest.raises(ZeroDivisionError), new_folder(out, False):
        print(1 / 0)
    assert list(tmp_path.iterdir()) == []

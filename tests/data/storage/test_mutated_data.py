"""Thousands of damaged data folders: the manifest tells every one, the structure never lies.

With a manifest, ``verify_manifest(..., digests=True)`` must refuse a folder in which any byte of
``train.bin``, ``train.idx`` or ``dict.txt`` changed. Without one, opening may succeed (a flipped
token cannot be told), but then every item has the length its index states and lies in the file.
A changed manifest is refused, or still demands the files that are there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairseq.config.preprocess import PreprocessConfig
from fairseq.data.storage.indexed_dataset import MMapIndexedDataset
from fairseq.data.storage.manifest import MANIFEST_NAME, verify_manifest
from fairseq.errors import DataError
from fairseq.preprocess import preprocess

FILES = ("train.bin", "train.idx", "dict.txt")


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flip a bit, set a byte, cut off, repeat or insert; sometimes nothing changes."""
    data = bytearray(content)
    place = rng.randrange(len(data))
    kind = rng.randrange(5)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place] = rng.randrange(256)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place:place] = data[place : place + rng.randrange(1, 9)]
    else:
        data[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


@pytest.mark.parametrize("number", [150, pytest.param(8000, marks=pytest.mark.faults)])
def test_mutated_data_files(
    tmp_path: Path, number: int, figure: Callable[[str, Any], None]
) -> None:
    folder = binarized(tmp_path)
    originals = {name: (folder / name).read_bytes() for name in FILES}
    manifest = (folder / MANIFEST_NAME).read_bytes()
    rng = random.Random(7)
    changed = refused = silent = structural = flipped = 0
    for _ in range(number):
        name = rng.choice(FILES)
        damaged = mutate(originals[name], rng)
        (folder / name).write_bytes(damaged)
        if damaged != originals[name]:
            changed += 1
            try:
                verify_manifest(folder, digests=True)
                silent += 1
            except DataError:
                refused += 1
        (folder / MANIFEST_NAME).unlink()
        structural += lies(folder)
        flipped += damaged != originals[name] and name == "train.bin" and opens(folder)
        (folder / MANIFEST_NAME).write_bytes(manifest)
        (folder / name).write_bytes(originals[name])
    figure("mutated data files", number)
    figure("mutated data files: silent with a manifest", silent)
    figure("mutated data files: structural lies without one", structural)
    figure("mutated data files: flipped tokens not told without one", flipped)
    assert changed > 0.9 * number and refused == changed and silent == 0 and structural == 0


@pytest.mark.parametrize("number", [100, pytest.param(2000, marks=pytest.mark.faults)])
def test_mutated_manifests(tmp_path: Path, number: int, figure: Callable[[str, Any], None]) -> None:
    folder = binarized(tmp_path)
    path, rng = folder / MANIFEST_NAME, random.Random(8)
    good = path.read_bytes()
    true = verify_manifest(folder, digests=True)
    accepted = 0
    for _ in range(number):
        path.write_bytes(mutate(good, rng))
        try:
            found = verify_manifest(folder, digests=True)
        except DataError:
            continue
        assert found is not None and true is not None
        # what is left of the record is true: no digest or size but that of a file
        assert set(found.files.items()) <= set(true.files.items())
        accepted += found != true
    figure("mutated manifests", number)
    figure("mutated manifests: accepted with a changed count, name or version", accepted)
    assert accepted < 0.5 * number


def binarized(tmp_path: Path) -> Path:
    """Return a folder of binarized text with a manifest."""
    text = tmp_path / "text"
    text.write_text("".join(f"a{i % 7} b{i % 11} c\n\n" for i in range(60)), encoding="utf-8")
    folder = tmp_path / "bin"
    preprocess(PreprocessConfig(trainpref=str(text), destdir=str(folder), only_source=True))
    return folder


def opens(folder: Path) -> bool:
    try:
        MMapIndexedDataset(str(folder / "train"))
    except DataError:
        return False
    return True


def lies(folder: Path) -> bool:
    """Tell whether a dataset opens whose items are not what its index and its size say."""
    try:
        dataset = MMapIndexedDataset(str(folder / "train"))
    except DataError:
        return False
    tokens = sum(len(dataset.get_array(i)) for i in range(len(dataset)))
    sizes_fit = all(len(dataset.get_array(i)) == dataset.sizes[i] for i in range(len(dataset)))
    bytes_fit = tokens * dataset.flat.dtype.itemsize == (folder / "train.bin").stat().st_size
    return not (sizes_fit and bytes_fit)

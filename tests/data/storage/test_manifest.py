"""manifest.json: notices every changed byte of the files it describes."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from fairseq.data.storage.manifest import (
    DatasetEntry,
    FileEntry,
    read_manifest,
    verify_manifest,
    write_manifest,
)
from fairseq.errors import DataError, MissingFileError


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder(tmp_path):
    files = {"dict.txt": b"a 1\n", "train.bin": bytes(range(50)), "train.idx": b"index"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    entry = DatasetEntry("mmap", 5, 25, 9, "dict.txt", digest(files["dict.txt"]))
    write_manifest(tmp_path, files, {"train": entry})
    return tmp_path


def test_round_trip(folder):
    manifest = read_manifest(folder)
    assert manifest.files["train.bin"] == FileEntry(50, digest(bytes(range(50))))
    assert manifest.datasets["train"].max_id == 9
    assert verify_manifest(folder) == verify_manifest(folder, digests=True) == manifest
    assert manifest.format == 1 and manifest.version


def test_runs_are_merged(folder):
    (folder / "valid.bin").write_bytes(b"v")
    (folder / "valid.idx").write_bytes(b"w")
    entry = DatasetEntry("mmap", 1, 2, 3, "dict.txt", digest(b"a 1\n"))
    manifest = write_manifest(folder, ["valid.bin", "valid.idx"], {"valid": entry})
    assert set(manifest.datasets) == {"train", "valid"} and len(manifest.files) == 5
    (folder / "train.bin").unlink()
    manifest = write_manifest(folder, ["valid.bin"], {})
    assert set(manifest.datasets) == {"valid"} and "train.bin" not in manifest.files
    verify_manifest(folder, digests=True)


def test_folder_of_the_original_has_none(tmp_path):
    assert verify_manifest(tmp_path) is None
    with pytest.raises(MissingFileError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["dict.txt", "train.bin", "train.idx"])
def test_damage_is_named(folder, name):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{name} does not match.*bytes instead of"):
        verify_manifest(folder)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    verify_manifest(folder)
    with pytest.raises(DataError, match=f"{name} does not match.*sha256"):
        verify_manifest(folder, digests=True)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} does not match.*missing"):
        verify_manifest(folder)


def test_dataset_of_another_dictionary(folder):
    (folder / "dict.txt").write_bytes(b"b 1\n")
    write_manifest(folder, ["dict.txt"], {})
    with pytest.raises(DataError, match=r"train .*another dict\.txt"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=2),
        lambda content: content.pop("files"),
        lambda content: content.update(files=[]),
        lambda content: content["files"].update({"../x": {"bytes": 1, "sha256": ""}}),
        lambda content: content["files"].update({"/etc/x": {"bytes": 1, "sha256": ""}}),
        lambda content: content["files"].update(x={"bytes": "1", "sha256": ""}),
        lambda content: content["files"].update(x={"bytes": 1}),
        lambda content: content["datasets"]["train"].update(tokens=None),
        lambda content: content["datasets"]["train"].update(more=1),
    ],
)
def test_wrong_content(folder, change):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        verify_manifest(folder)


def test_mutated_manifests_never_pass_for_another(folder):
    path = folder / "manifest.json"
    good, manifest = path.read_bytes(), read_manifest(folder)
    draw = random.Random(1)
    for _ in range(300):
        data = bytearray(good)
        data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(bytes(data))
        try:
            found = verify_manifest(folder, digests=True)
        except DataError:
            continue
        # What still verifies has at most another count or text that nothing else can confirm.
        assert found is not None and found.files == manifest.files

"""The wheel: what it holds, and that it works where the checkout is not."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.documents import ROOT

TRAIN = (
    "--task masked_lm --criterion masked_lm --arch roberta_tiny --encoder-layers 1 "
    "--encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2 "
    "--optimizer adam --lr 0.001 --tokens-per-sample 16 --batch-size 2 --max-update 2 "
    "--device cpu --save-dir run"
).split()


def built(folder: Path) -> Path:
    """Build the wheel of a copy of what git tracks, without network and isolation."""
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    source = folder / "source"
    source.mkdir()
    for name in ("fairseq", "fairseq_cli", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    code = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(built(tmp_path)) as archive:
        names = archive.namelist()
        (record,) = [name for name in names if name.endswith("entry_points.txt")]
        commands = archive.read(record).decode()
    sources = {
        str(path.relative_to(ROOT))
        for package in ("fairseq", "fairseq_cli")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in names if ".dist-info/" not in name}
    assert held == sources
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, target in settings["project"]["scripts"].items():
        assert f"{name} = {target}" in commands
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.matrix
def test_the_wheel_trains_in_another_folder(tmp_path: Path) -> None:
    """Beside the packages of this environment, with no path to the checkout."""
    wheel, place, work = built(tmp_path), tmp_path / "venv", tmp_path / "work"
    venv.create(place, with_pip=True)
    import torch

    packages = Path(torch.__file__).parents[1]
    (site,) = (place / "lib").glob("python*/site-packages")
    # what is installed here, without the .pth file that names an editable checkout
    (site / "shared.pth").write_text(f"import site; sys.path.append({str(packages)!r})\n")
    python = place / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*words: object) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=work, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    work.mkdir()
    run(python, "-m", "pip", "-q", "install", "--no-deps", "--no-index", wheel)
    assert str(site) in run(python, "-c", "import fairseq; print(fairseq.__file__)")
    (work / "train.txt").write_text("a b c d e f g\n" * 40)
    commands = place / "bin"
    run(commands / "fairseq-preprocess", "--only-source", "--trainpref", "train.txt",
        "--validpref", "train.txt")  # fmt: skip
    run(commands / "fairseq-train", "data-bin", *TRAIN)
    path = "run/checkpoint_last.pt"
    text = run(commands / "fairseq-generate", "--path", path, "--text", "a b <mask> d", "--cpu")
    assert len(text.splitlines()) == 7

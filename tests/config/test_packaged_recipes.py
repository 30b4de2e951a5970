"""The recipes that come with the package: found by name, short, and they train."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import make_corpus

from fairseq.config.yaml import RECIPES, read_yaml
from fairseq.errors import MissingFileError
from fairseq_cli import pcfg, train

NAMES = "causal distilled grown headless masked pcfg zero_clap".split()
SMALL = (
    "--cpu --num-workers 0 --log-format none --batch-size 4 --tokens-per-sample 16 "
    "--max-update 3 --no-epoch-checkpoints --save-dir"
).split()


def narrow(side: str) -> list[str]:
    sizes = (("embed-dim", 16), ("ffn-embed-dim", 16), ("attention-heads", 2))
    return [word for name, size in sizes for word in (f"--{side}-{name}", str(size))]


def test_those_are_all_and_each_fits_ten_lines() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == NAMES
    for name in NAMES:
        assert len((RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()) <= 10


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = read_yaml("causal")
    assert read_yaml("recipes/causal.yaml") == read_yaml("causal.yaml") == packaged
    Path("causal.yaml").write_text("common: {seed: 5}\n", encoding="utf-8")
    assert read_yaml("causal.yaml") == {"common": {"seed": 5}}, "a file of one's own goes first"
    with pytest.raises(MissingFileError, match="or one of causal, distilled, grown"):
        read_yaml("casual")


def test_each_trains_three_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_corpus(tmp_path / "data-bin")
    for name in ("masked", "zero_clap", "grown", "causal", "headless", "distilled"):
        side = "encoder" if name in ("masked", "zero_clap", "grown") else "decoder"
        command = ["data-bin", "--config", name, *SMALL, f"runs/{name}", *narrow(side)]
        assert train.run(command) == 0
        assert Path(f"runs/{name}/checkpoint_last.pt").is_file()
    rules = "--seed 0 --levels 3 --width 3 --vocab 20 --emit 8 --out g.rules".split()
    assert pcfg.main(["grammar", *rules]) == 0
    stream = ["--epoch-sentences", "40", "--valid-sentences", "8", *narrow("encoder")]
    train.run(["--config", "pcfg", *[w for w in SMALL if w not in ("--tokens-per-sample", "16")],
               "runs/pcfg", *stream])  # fmt: skip
    assert Path("runs/pcfg/checkpoint_last.pt").is_file()

"""The recipes that come with the package: found by name, short, and they train."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import README, ROOT, blocks, command_lines
from tiny_run import make_corpus

from fairseq.config import options
from fairseq.config.build import plain
from fairseq.config.yaml import RECIPES, read_yaml
from fairseq.errors import MissingFileError
from fairseq.training import estimate
from fairseq_cli import pcfg, train

NAMES = "causal distilled grown headless masked pcfg zero_clap".split()
SMALL = ("--cpu --num-workers 0 --log-format none --batch-size 4 --max-update 3 --save-dir").split()
BLOCKS = "data-bin --tokens-per-sample 16"


def narrow(side: str) -> list[str]:
    sizes = (("embed-dim", 16), ("ffn-embed-dim", 16), ("attention-heads", 2))
    return [word for name, size in sizes for word in (f"--{side}-{name}", str(size))]


def test_those_are_all_short_and_say_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == NAMES
    for name in NAMES:
        lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert len([line for line in lines if not line.startswith("#")]) <= 10
        assert "Needs " in lines[0]
        # the command of the second line parses, and what it says wins over the recipe
        *_, command = lines[1].partition("fairseq-train ")
        words = shlex.split(command)
        assert words[words.index("--config") + 1] == name
        train.run([*words, "--show-config"])
        shown = yaml.safe_load(capsys.readouterr().out)
        settings = {
            k: v for part in shown.values() if isinstance(part, dict) for k, v in part.items()
        }
        assert settings["save_dir"] == "runs/other"
        for flag, value in zip(words, words[1:], strict=False):
            if flag.startswith("--") and flag != "--config":
                said = settings[flag[2:].replace("-", "_")]
                assert str(said[0] if isinstance(said, list) else said) == value


def test_packages_contain_them() -> None:
    """What ``[tool.setuptools.package-data]`` names is all that a wheel has besides modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["fairseq"]
    shipped = {path for pattern in patterns for path in (ROOT / "fairseq").glob(pattern)}
    others = {
        p for p in (ROOT / "fairseq").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert shipped == {path for path in others if path.suffix != ".py"}


def test_names_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = read_yaml("causal")
    assert read_yaml("recipes/causal.yaml") == read_yaml("causal.yaml") == packaged
    Path("causal.yaml").write_text("common: {seed: 5}\n", encoding="utf-8")
    assert read_yaml("causal.yaml") == {"common": {"seed": 5}}, "a file of one's own goes first"
    with pytest.raises(MissingFileError, match="did you mean 'causal'"):
        read_yaml("casual")
    with pytest.raises(SystemExit):
        train.run(["data-bin", "--config", "NONSENSE"])
    assert "or a recipe of the package: causal, distilled, grown" in capsys.readouterr().err


def test_zero_clap_is_the_command_that_the_readme_spells_out() -> None:
    def settings(words: list[str]) -> dict[str, Any]:
        parser = options.get_training_parser(argv=words)
        parser.add_argument("--config")
        return plain(options.parse_config(parser, words))

    (spelled,) = [
        words[1:]
        for block in blocks(README, "bash")
        for words in command_lines(block)
        if words[0] == "fairseq-train" and "clap" in words and "--max-update" in words
    ]
    at = spelled.index("--bpe")
    rest = [*spelled[at : at + 4], *spelled[spelled.index("--save-dir") :]]
    short, long = settings(["data-bin", "--config", "zero_clap", *rest]), settings(spelled)
    del short["stated"], long["stated"]  # who said it differs, what was said does not
    assert short == long


def test_each_estimates_and_trains_three_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "LEAST", 1)
    monkeypatch.setattr(estimate, "ENOUGH", 0.0)
    make_corpus(tmp_path / "data-bin")
    rules = "--seed 0 --levels 3 --width 3 --vocab 20 --emit 8 --out g.rules".split()
    assert pcfg.main(["grammar", *rules]) == 0
    # each after what it needs
    for name in ("masked", "zero_clap", "grown", "causal", "headless", "distilled", "pcfg"):
        side = "decoder" if name in ("causal", "headless", "distilled") else "encoder"
        data = "--epoch-sentences 40 --valid-sentences 8" if name == "pcfg" else BLOCKS
        command = [*data.split(), "--config", name, *SMALL, f"runs/{name}", *narrow(side)]
        capsys.readouterr()
        assert train.run([*command, "--estimate", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["updates_left"] == 3 and told["seconds"] > 0 and told["flops_an_update"] > 0
        assert not Path(f"runs/{name}").exists()
        assert train.run(command) == 0
        assert Path(f"runs/{name}/checkpoint_last.pt").is_file()

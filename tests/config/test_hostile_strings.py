"""Texts in a configuration that would read the environment or run something, were they evaluated.

Each goes through both doors by which a stranger's configuration comes in: the ``cfg`` of a
checkpoint, and a YAML recipe. What comes out is the text itself, or an error; never the secret,
never a new file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairseq.checkpoint.layout import config_of
from fairseq.config import options
from fairseq.config.build import plain

SECRET = "hunter2-never-to-be-seen"
CODE = "__import__('os').system('touch {mark}')"

REFERENCES = [
    "oc.env:SECRET",
    "oc.env:SECRET,default",
    "oc.env: SECRET ",
    "oc.env:${oc.env:NAME}",
    "oc.decode:${oc.env:SECRET}",
    'oc.decode:"${{oc.env:SECRET}}"',
    "oc.create:{{a: ${{oc.env:SECRET}}}}",
    "oc.select:common.seed,${oc.env:SECRET}",
    "oc.deprecated:common.seed",
    "oc.dict.keys:common",
    "oc.dict.values:common",
    "env:SECRET",
    "env:HOME",
    "ENV:SECRET",
    "now:%Y-%m-%d",
    "hydra:runtime.cwd",
    "hydra:job.env_set",
    "python:os.environ",
    "eval:" + CODE,
    "import:os",
    "load:/etc/passwd",
    "file:/etc/passwd",
    "cmd:touch {mark}",
    "shell:touch {mark}",
    "sh:touch {mark}",
    "resolver:SECRET",
    "${common.seed}",
    "common.__class__",
    "common.__init__.__globals__",
    "__class__.__mro__",
    ".common.seed",
    "..common.seed",
    "common[seed]",
    "common.seed,",
    "",
    " ",
    "checkpoint.save_dir",
    "common.tensorboard_logdir",
]
TEXTS = [
    *("${" + reference + "}" for reference in REFERENCES),
    "${oc.env:SECRET",
    "$${oc.env:SECRET}",
    "\\${oc.env:SECRET}",
    "a${oc.env:SECRET}b",
    "${${oc.env:SECRET}}",
    "$SECRET",
    "${SECRET}",
    "%SECRET%",
    "%(SECRET)s",
    "{SECRET}",
    "{{ SECRET }}",
    "{{ config.__class__.__init__.__globals__['os'].environ }}",
    "<%= ENV['SECRET'] %>",
    "~/$SECRET",
    "$(touch {mark})",
    "`touch {mark}`",
    "; touch {mark}",
    "| touch {mark}",
    "&& touch {mark}",
    "\n touch {mark}\n",
    CODE,
    'exec("' + CODE + '")',
    "lambda: " + CODE,
    "{'_target_': 'os.getenv', '_args_': ['SECRET']}",
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/name:os.environ",
    "cos\nsystem\n(S'touch {mark}'\ntR.",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "\x00",
]


def test_enough_texts_are_tried() -> None:
    assert len(set(TEXTS)) == len(TEXTS) >= 60


def outcome(read: Callable[[], Any]) -> str:
    """Return what reading gave, or the message of the error that refused it."""
    try:
        return json.dumps(plain(read()), default=str)
    except (ValueError, SystemExit) as error:
        return str(error)


@pytest.mark.hostile
@pytest.mark.parametrize("door", ["checkpoint", "recipe"])
def test_no_text_is_evaluated(
    door: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    figure: Callable[[str, Any], None],
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("NAME", "SECRET")
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "executed"
    for template in TEXTS:
        text = template.replace("{mark}", str(mark))
        cfg = {
            "common": {"tensorboard_logdir": text},
            "checkpoint": {"save_dir": text},
            "model": {"_name": "roberta_tiny", "encoder_layers_to_keep": text},
            "task": {"_name": "masked_lm", "data": text},
            "criterion": {"_name": "masked_lm"},
        }
        if door == "checkpoint":
            said = outcome(lambda cfg=cfg: config_of({"cfg": cfg}))
        else:
            Path("recipe.yaml").write_text(json.dumps(cfg), encoding="utf-8")
            said = outcome(lambda: train_config("recipe.yaml"))
        if "${" not in text:
            assert json.dumps(text) in said, template  # it was read, and is nothing but a text
        said += "".join(capsys.readouterr())
        assert SECRET not in said, template
        assert set(os.listdir(tmp_path)) <= {"recipe.yaml"}, template
    figure(f"hostile texts in a configuration ({door}), none evaluated", len(TEXTS))


def train_config(recipe: str) -> Any:
    """Return the configuration of ``fairseq-train --config recipe``."""
    parser = options.get_training_parser(argv=())
    parser.add_argument("--config")
    return options.parse_config(parser, ["--config", recipe])


@pytest.mark.hostile
def test_yaml_tags_are_not_obeyed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for tag in (
        f"!!python/object/apply:os.system ['touch {mark}']",
        f"!!python/object/new:os.system ['touch {mark}']",
        "!!python/name:os.system",
        "!!python/module:os",
    ):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"common: {{tensorboard_logdir: {tag}}}\n", encoding="utf-8")
        with pytest.raises((ValueError, SystemExit)):
            train_config(str(recipe))
        assert not mark.exists()

"""Every command that opens checkpoints takes ``--user-dir``, and imports it before it opens one."""

from __future__ import annotations

import importlib

import pytest

from fairseq.config import plugins

# the module of the command, and the least it must be told
COMMANDS = {
    "export": "model.pt --to fairseq --out out.pt",
    "eval_lm": "data --path model.pt",
    "generate": "data --path model.pt",
    "glue": "model.pt --glue-dir glue --out out",
    "grow": "model.pt --method stack --out out.pt",
    "hessian": "model.pt data",
    "interactive": "data --path model.pt",
    "probe": "model.pt --train a.csv --valid b.csv",
    "validate": "data --path model.pt",
}


class ImportedError(Exception):
    """Raised in place of the import."""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_plug_in_is_imported_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(args: object) -> None:
        if getattr(args, "user_dir", None) == "my_plugin":
            raise ImportedError

    monkeypatch.setattr(plugins, "import_user_module", imported)
    module = importlib.import_module(f"fairseq_cli.{name}")
    run = getattr(module, "run", None) or module.main
    with pytest.raises(ImportedError):
        run([*COMMANDS[name].split(), "--user-dir", "my_plugin"])

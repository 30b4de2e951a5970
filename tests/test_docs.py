"""The documents are true: links lead somewhere, names exist, tables are complete."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import (
    DOCUMENTS,
    README,
    ROOT,
    blocks,
    command_lines,
    own_modules,
    own_text,
    run_command,
    section,
    small_text,
    text_of,
)

from fairseq_cli import completion

MIGRATING = ROOT / "docs" / "migrating.md"
# Flags of other programs, and of commands that only the original has.
FOREIGN_FLAGS = {"--index-url", "--extra-index-url", "--node-rank", "--signal"}


# -- links -----------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return the anchors that a forge makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_internal_links_resolve() -> None:
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            aim = (path.parent / name) if name else path
            if not aim.exists() or (anchor and anchor not in anchors(aim)):
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert len(DOCUMENTS) >= 7
    assert not broken


def test_folders_and_files_named_in_the_map_exist() -> None:
    for cell in re.findall(r"^\| (`[^|]*`) \|", section(README, "What is where"), re.M):
        for name in re.findall(r"`([^`]+)`", cell):
            assert (ROOT / name).exists(), name


def test_what_the_repository_needs_is_not_ignored_by_git() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard"]
    folders = ["docs", "examples", "fairseq", "fairseq_cli", "scripts", "tests", "benchmarks"]
    done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
    ignored = [name for name in done.stdout.splitlines() if "__pycache__" not in name]
    assert not ignored


# -- commands --------------------------------------------------------------------------------------


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command that has no components."""
    module = importlib.import_module(
        f"fairseq_cli.{command.removeprefix('fairseq-').replace('-', '_')}"
    )
    makers = ("get_parser", "make_parser", "parser")
    return next(getattr(module, name) for name in makers if hasattr(module, name))()


def parse(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let a command parse its command line; nothing is done about it."""
    from fairseq.config import options
    from fairseq_cli import preprocess, train, validate

    name, *argv = words
    if name == "fairseq-train":
        assert train.run([*argv, "--show-config"]) == 0
    elif name == "fairseq-preprocess":
        patch.setattr("fairseq.preprocess.corpus.preprocess", lambda config: None)
        assert preprocess.run(argv) == 0
    elif name == "fairseq-validate":
        patch.setattr("fairseq.evaluation.validate", lambda given: {})
        patch.setattr("fairseq.evaluation.teacher_outputs.write_teacher_cache", lambda *given: {})
        patch.setattr("fairseq.evaluation.teacher_scores.write_sample_scores", lambda *given: 0)
        assert validate.run(argv) == 0
    elif name == "fairseq-glue":
        _, rest = parser_of(name).parse_known_args(argv)
        task = ["--task", "sentence_prediction", "--criterion", "sentence_prediction"]
        task += ["--arch", "roberta"]
        assert train.run(["data", "--num-classes", "2", *task, *rest, "--show-config"]) == 0
    elif name == "fairseq-grow":  # the rest are the model's flags, which the source decides
        parser_of(name).parse_known_args(argv)
    elif name in ("fairseq-eval-lm", "fairseq-generate", "fairseq-interactive"):
        parser: Any = parser_of(name)
        options.complete_parser(parser, argv, {"task": "language_modeling"})
        parser.parse_args(argv)
    else:
        parser_of(name).parse_args(argv)


def documented_commands() -> list[tuple[str, list[str]]]:
    return [
        (path.name, words)
        for path in DOCUMENTS
        for block in blocks(path, "bash")
        for words in command_lines(block)
        if words[0].startswith("fairseq-")
    ]


@pytest.mark.parametrize(
    ("document", "words"),
    documented_commands(),
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_documented_commands_parse(
    document: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse(words, monkeypatch)


def known_flags() -> set[str]:
    """Return every flag of every command, component flags included."""
    from fairseq import catalog
    from fairseq.config import options
    from fairseq.config.refused import REFUSED
    from fairseq_cli import validate

    def of(parser: argparse.ArgumentParser) -> Iterator[str]:
        yield from parser._option_string_actions
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    yield from of(child)

    train = options.get_training_parser(argv=[])
    tables = {
        "task": catalog.TASKS,
        "arch": catalog.ARCHITECTURES,
        "criterion": catalog.CRITERIONS,
        "optimizer": catalog.OPTIMIZERS,
        "lr_scheduler": catalog.LR_SCHEDULERS,
        "bpe": catalog.BPES,
        "tokenizer": catalog.TOKENIZERS,
    }
    for flag, names in tables.items():
        for name in names:
            options.add_component_flags(train, flag, name)
    validation = validate.add_scores(options.get_validation_parser(argv=[]))
    parsers = [train, options.get_preprocessing_parser(), validation]
    parsers += [
        parser_of(f"fairseq-{name}")
        for name in (
            *("bpe", "export", "glue", "grow", "report", "average", "hydra_train"),
            *("eval_lm", "generate", "interactive", "hessian", "pcfg", "probe"),
        )
    ]
    flags = {flag for parser in parsers for flag in of(parser)}
    refused = {f"--{name.replace('_', '-')}" for name in REFUSED}
    programs = [
        path
        for pattern in ("examples/*.py", "examples/*/study.py", "benchmarks/*.py")
        for path in ROOT.glob(pattern)
    ]
    studies = "".join(map(text_of, programs))
    flags |= set(re.findall(r'add_argument\("(--[a-z-]+)"', studies))
    first = {"--config", "--show-config", "--estimate", "--json", "--help", completion.FLAG}
    return flags | refused | first


def test_every_flag_that_is_named_exists() -> None:
    known = known_flags()
    unknown = []
    for path in DOCUMENTS:
        prose = re.sub(r"```.*?```", "", text_of(path), flags=re.S)
        if path.name == "coming_from.md":  # the first column is about other programs
            prose = re.sub(r"^\|[^|]*\|", "|", prose, flags=re.M)
        for span in re.findall(r"`([^`\n]+)`", prose):
            for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", span):
                if flag not in known | FOREIGN_FLAGS and flag not in ("--x", "--no-x"):
                    unknown.append(f"{path.name}: {flag}")
    assert not unknown


# -- docs/migrating.md -----------------------------------------------------------------------------


def rows_of(path: Path, title: str) -> list[list[str]]:
    """Return the cells of all table rows under a heading."""
    lines = re.findall(r"^\|(.*)\|$", section(path, title), re.M)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_every_refused_flag_and_name_stands_there_with_its_reason() -> None:
    from fairseq.config.refused import REFUSED, REFUSED_WORDS

    wanted = {f"--{name.replace('_', '-')}": row.reason for name, row in REFUSED.items()}
    wanted |= REFUSED_WORDS
    found = {
        name: reason
        for names, reason in rows_of(MIGRATING, "Flags that are refused")
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert found == {name: reason for name, reason in wanted.items() if reason is not None}


def fields_that_are_read() -> set[str]:
    """Return every name that code mentions, apart from the readers of settings.

    ``checkpoint/layout.py`` tells by a name who wrote a file.
    """
    readers = ("config/sections.py", "config/evaluation.py", "config/refused.py")
    readers += ("config/plugin_names.py",)
    names: set[str] = set()
    for path in own_modules().values():
        if not str(path).endswith((*readers, "checkpoint/layout.py")):
            names |= set(re.findall(r"\w+", text_of(path)))
    return names


def test_flags_without_effect_are_those_that_no_code_reads() -> None:
    from fairseq.config.refused import REFUSED
    from fairseq.config.sections import SECTIONS

    used = ("common", "common_eval", "distributed_training", "dataset", "optimization")
    fields = {
        field.name
        for name in (*used, "checkpoint", "ema")
        for field in dataclasses.fields(SECTIONS[name])
        if not field.name.startswith("_")
    }
    listed = {
        flag.replace("-", "_")
        for cells in rows_of(MIGRATING, "Flags that do nothing here")
        for flag in re.findall(r"`--([^`]+)`", cells[0])
    }
    idle = {name for name, row in REFUSED.items() if row.reason is None}
    assert idle - listed == set(), "add these to docs/migrating.md: no value of them does anything"
    silent = fields - fields_that_are_read()
    assert silent - listed == set(), "add these to docs/migrating.md: no code reads them"
    assert fields & listed - silent == set(), "drop these from docs/migrating.md: they are read"


def test_every_old_name_stands_there() -> None:
    from fairseq.config.upgrade import ROWS

    cells = [cells[0] for cells in rows_of(MIGRATING, "Names that have changed")]
    spelled = " ".join(cells)
    assert [row.old for row in ROWS if not re.search(rf"\b{row.old}\b", spelled)] == []


# -- the rest --------------------------------------------------------------------------------------


def test_python_blocks_compile() -> None:
    for path in DOCUMENTS:
        for number, block in enumerate(blocks(path, "python")):
            compile(block, f"{path.name}, Python block {number}", "exec")


def test_the_licence_and_the_changelog_are_there() -> None:
    from fairseq.version import __version__

    assert text_of(ROOT / "LICENSE").startswith("MIT License")
    assert __version__ in text_of(ROOT / "CHANGELOG.md")


def test_documented_records_have_the_keys_that_runs_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq.files.safe_load import safe_load

    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt")
    texts = "--trainpref train.txt --validpref valid.txt"
    run_command(f"fairseq-preprocess --only-source {texts}".split())
    ((train,),) = own_text()[2:3]
    run_command([*train[: train.index("--bpe")], "--save-dir", "run"])
    run, data = tmp_path / "run", tmp_path / "data-bin"

    documented = text_of(ROOT / "docs" / "files.md")
    names = set(re.findall(r"\w+", documented))
    for path in [*run.iterdir(), *data.iterdir()]:
        name = re.sub(r"^checkpoint\w*\.pt", "NAME.pt", path.name)
        assert name.replace("valid.", "train.") in documented, path
    records = [json.loads(line) for line in text_of(run / "metrics.jsonl").splitlines()]
    assert {key for record in records for key in record} <= names
    state = safe_load(run / "checkpoint_last.pt")
    assert {*state, *state["extra_state"], *state["extra_state"]["train_iterator"]} <= names
    side = json.loads(text_of(run / "checkpoint_last.pt.json"))
    assert {"epoch", "num_updates", "val_loss", "size", "sha256", "time"} <= set(side)
    manifest = json.loads(text_of(data / "manifest.json"))
    assert {*manifest, *manifest["datasets"]["train"], *manifest["files"]["train.bin"]} <= names

"""The documents are true: links lead somewhere, names exist and are used, commands run."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
MIGRATING = ROOT / "docs" / "migrating.md"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in ROOT.glob(pattern)
)
# Flags of other programs, and of commands that only the original has.
FOREIGN_FLAGS = {"--index-url", "--extra-index-url"}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(path), re.S)


def command_lines(text: str) -> list[list[str]]:
    """Return the commands of a shell block as lists of words."""
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def section(path: Path, title: str) -> str:
    """Return what stands under a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text_of(path), re.S | re.M)
    assert found, f"{path.name} has no section '{title}'"
    return found[1]


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
    for cell in re.findall(r"^\| (`[^|]*`) \|", section(README, "A map of the house"), re.M):
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


# -- the floors ------------------------------------------------------------------------------------


def own_modules() -> dict[str, Path]:
    """Return our modules by name; a package's name stands for its ``__init__``."""
    modules = {}
    for base in ("fairseq", "fairseq_cli"):
        for path in sorted((ROOT / base).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            modules[name.removesuffix(".__init__")] = path
    return modules


def imports_of(body: list[ast.stmt], modules: dict[str, Path]) -> Iterator[str]:
    """Yield our modules that are imported when this code is loaded."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else node.module
        for part in ("body", "orelse", "finalbody"):
            yield from imports_of(getattr(node, part, []), modules)
        for handler in getattr(node, "handlers", []):
            yield from imports_of(handler.body, modules)


def import_graph() -> dict[str, set[str]]:
    modules = own_modules()
    return {
        name: {
            aim
            for aim in imports_of(ast.parse(text_of(path)).body, modules)
            if aim in modules and aim not in (name, "fairseq")
        }
        for name, path in modules.items()
    }


def floors() -> dict[str, int]:
    """Read the picture in docs/architecture.md: name -> floor."""
    picture = next(block for block in blocks(ARCHITECTURE, "text") if "fairseq_cli" in block)
    found, floor = {}, -1
    for line in picture.splitlines():
        number, names = re.fullmatch(r"(\d)?\s+(.*)", line).groups()  # type: ignore[union-attr]
        floor = floor if number is None else int(number)
        for name in names.split():
            found[name if name == "fairseq_cli" else f"fairseq.{name}"] = floor
    return found


def test_the_picture_of_the_floors_is_complete_and_imports_go_down() -> None:
    picture, graph = floors(), import_graph()

    def floor(module: str) -> int:
        name = module
        while name not in picture:
            assert "." in name, f"{module} is on no floor of docs/architecture.md"
            name = name.rpartition(".")[0]
        return picture[name]

    modules = set(graph) - {"fairseq"}
    upward = [
        f"{name} (floor {floor(name)}) imports {aim} (floor {floor(aim)})"
        for name in sorted(modules)
        for aim in sorted(graph[name])
        if floor(aim) > floor(name)
    ]
    assert not upward
    known = set(graph) | {name.rpartition(".")[0] for name in graph}
    assert set(picture) <= known, set(picture) - known


def test_nothing_imports_in_a_circle() -> None:
    graph, done, trail = import_graph(), set(), []

    def visit(name: str) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            trail.append(name)
            for aim in sorted(graph[name]):
                visit(aim)
            trail.pop()
            done.add(name)

    for name in sorted(graph):
        visit(name)


# -- the walk --------------------------------------------------------------------------------------


def steps_of_the_walk() -> list[tuple[str, str]]:
    """Return (file, function) pairs that the walk of one batch names."""
    return re.findall(r"`(fairseq\w*/[\w/]+\.py): ([\w.]+)`", text_of(ARCHITECTURE))


def small_text(folder: Path, *names: str, lines: int = 60) -> None:
    """Write texts of sentences and a few blank lines."""
    draw = random.Random(0)
    words = "the output has same shape as input of a list name value is not one any text .".split()
    for name in names:
        text = [" ".join(draw.choices(words, k=draw.randrange(5, 16))) for _ in range(lines)]
        (folder / name).write_text("\n".join([*text[:20], "", *text[20:]]) + "\n", encoding="utf-8")


TINY = (
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-attention-heads 2 "
    "--encoder-ffn-embed-dim 16 --cpu --num-workers 0 --log-format none --log-interval 1"
).split()


def test_every_step_of_the_walk_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq_cli import preprocess, train

    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt")
    preprocess.run("--only-source --trainpref train.txt --validpref valid.txt".split())
    import torch.utils.data  # noqa: F401 - so that its import is not traced

    called: set[tuple[str, str]] = set()
    prefix = f"{ROOT}{os.sep}"

    def note(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix):
            called.add((code.co_filename.removeprefix(prefix), code.co_qualname))

    flags = (
        "data-bin --task masked_lm --criterion masked_lm --arch roberta_tiny --position alibi "
        "--optimizer adam --lr 0.01 --batch-size 8 --tokens-per-sample 16 --max-update 2"
    ).split()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        train.run([*flags, *TINY])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    steps = steps_of_the_walk()
    assert len(steps) > 30
    assert [step for step in steps if step not in called] == []


# -- commands --------------------------------------------------------------------------------------


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command that has no components."""
    module = importlib.import_module(f"fairseq_cli.{command.removeprefix('fairseq-')}")
    makers = ("get_parser", "make_parser", "parser")
    return next(getattr(module, name) for name in makers if hasattr(module, name))()


def parse(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let a command parse its command line; nothing is done about it."""
    from fairseq_cli import preprocess, train, validate

    name, *argv = words
    if name == "fairseq-train":
        assert train.run([*argv, "--show-config"]) == 0
    elif name == "fairseq-preprocess":
        patch.setattr("fairseq.preprocess.preprocess", lambda config: None)
        assert preprocess.run(argv) == 0
    elif name == "fairseq-validate":
        patch.setattr("fairseq.evaluation.validate", lambda given: {})
        assert validate.run(argv) == 0
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
    from fairseq import catalog, options
    from fairseq.config.refused import REFUSED

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
    parsers = [train, options.get_preprocessing_parser(), options.get_validation_parser(argv=[])]
    parsers += [
        parser_of(f"fairseq-{name}") for name in ("bpe", "report", "average", "hydra_train")
    ]
    flags = {flag for parser in parsers for flag in of(parser)}
    refused = {f"--{name.replace('_', '-')}" for name in REFUSED}
    return flags | refused | {"--config", "--show-config", "--json", "--help"}


def test_every_flag_that_is_named_exists() -> None:
    known = known_flags()
    unknown = []
    for path in DOCUMENTS:
        prose = re.sub(r"```.*?```", "", text_of(path), flags=re.S)
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

    ``models/ema.py`` holds a class that nothing uses yet, and ``checkpoint_state.py`` tells by a
    name who wrote a file.
    """
    readers = ("config/sections.py", "config/refused.py", "dataclass/constants.py")
    others = ("models/ema.py", "checkpoint_state.py")
    names: set[str] = set()
    for path in own_modules().values():
        if not str(path).endswith((*readers, *others)):
            names |= set(re.findall(r"\w+", text_of(path)))
    return names


def test_flags_without_effect_are_those_that_no_code_reads() -> None:
    from fairseq.config.sections import SECTIONS

    used = ("common", "common_eval", "distributed_training", "dataset", "optimization")
    fields = {
        field.name
        for name in (*used, "checkpoint", "ema")
        for field in dataclasses.fields(SECTIONS[name])
        if not field.name.startswith("_")
    }
    listed = {
        {"save-async": "write_checkpoints_asynchronously"}.get(flag, flag.replace("-", "_"))
        for cells in rows_of(MIGRATING, "Flags that do nothing here")
        for flag in re.findall(r"`--([^`]+)`", cells[0])
    }
    assert fields & listed == fields - fields_that_are_read()


def test_every_old_name_stands_there() -> None:
    from fairseq.config.upgrade import ROWS

    cells = [cells[0] for cells in rows_of(MIGRATING, "Names that have changed")]
    spelled = " ".join(cells)
    assert [row.old for row in ROWS if not re.search(rf"\b{row.old}\b", spelled)] == []


# -- the README's own-text commands ----------------------------------------------------------------


def test_python_blocks_compile() -> None:
    for path in DOCUMENTS:
        for number, block in enumerate(blocks(path, "python")):
            compile(block, f"{path.name}, Python block {number}", "exec")


def run_command(words: list[str]) -> None:
    """Run one of our commands in this process."""
    from fairseq_cli import bpe, preprocess, report, train, validate

    name, *argv = words
    if name == "mkdir":
        Path(argv[-1]).mkdir(parents=True, exist_ok=True)
    elif name == "fairseq-train":
        train.run([*argv, "--max-update", "3", "--batch-size", "4", *TINY])
    elif name == "fairseq-validate":
        validate.run([*argv, "--log-format", "none"])
    elif name == "fairseq-preprocess":
        preprocess.run(argv)
    else:
        status = {"fairseq-bpe": bpe.main, "fairseq-report": report.main}[name](argv)
        assert status == 0


def own_text() -> list[list[list[str]]]:
    """Return the shell blocks of the README's section about one's own text."""
    found = re.findall(r"```bash\n(.*?)```", section(README, "Your own text"), re.S)
    return [command_lines(block) for block in found]


def test_the_readme_from_text_to_filled_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt", lines=120)
    pieces, _, training, use, _ = own_text()
    for words in [*pieces, *training, *use]:
        run_command(words)
    (example,) = re.findall(r"```python\n(.*?)```", section(README, "Your own text"), re.S)
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(example, names)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert names["features"].shape[0] == 1
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_readme_with_words_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq.models.roberta import RobertaModel

    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, *(f"wiki.{split}.tokens" for split in ("train", "valid", "test")))
    _, words, training, use, _ = own_text()
    (train,) = training
    start = train.index("--bpe")
    assert train[start + 2] == "--byte-level-tokenizer"
    for command in [*words, train[:start] + train[start + 4 :], use[1]]:
        run_command(command)
    roberta = RobertaModel.from_pretrained("runs/mine", "checkpoint_best.pt", "data-bin")
    assert len(roberta.fill_mask("the <mask> of a list", topk=3)) == 3


def made(target: str, *settings: str) -> list[list[str]]:
    """Return the commands of ours that a target of the Makefile would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--no-print-directory", "-n", target, "BIN=.", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = command_lines(done.stdout)
    return [[words[0].removeprefix("./"), *words[1:]] for words in lines if "fairseq-" in words[0]]


def test_make_data_and_make_train_are_the_readmes_commands() -> None:
    pieces, words, training, use, short = own_text()
    targets = [line[1:] for line in short if line[0] == "make"]
    assert [target[0] for target in targets] == ["data", "train"]
    encode, binarize = made(*targets[0])
    assert encode[:5] == [*pieces[2][:4], "--tokenizer-file"]
    assert encode[6:] == [
        *("--keep-empty", "--inputs", "train.txt", "valid.txt"),
        *("--outputs", "train.txt.bpe", "valid.txt.bpe"),
    ]
    assert binarize == [word.replace(".bpe", ".txt.bpe") for word in pieces[3]]
    (plain,) = made(*targets[0], "TOKENIZER=", "TRAIN=wiki.train.tokens", "VALID=wiki.valid.tokens")
    assert plain == [word for word in words[0] if "test" not in word]
    train, validate, _ = made(*targets[1])
    tokenizer = {"data-bin/tokenizer.json": "tokenizer.json"}
    assert train == [tokenizer.get(word, word) for word in training[0]]
    assert validate == use[1]


def test_the_readme_trains_the_demos_model() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import demo
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    (train,) = own_text()[2]
    spelled = " ".join(train).replace("(0.9, 0.98)", "(0.9,0.98)")
    assert " ".join(demo.MODEL) in spelled
    # longer blocks, fewer of them; the break mode is the default
    unlike = {"--tokens-per-sample", "--batch-size", "--sample-break-mode", "--max-update"}
    flags = re.findall(r"(--[\w-]+) (\S+)", " ".join(demo.TRAINING))
    assert [
        f"{name} {value}"
        for name, value in flags
        if name not in unlike and f"{name} {value}" not in spelled
    ] == []


def test_the_licence_and_the_changelog_are_there() -> None:
    from fairseq.version import __version__

    assert text_of(ROOT / "LICENSE").startswith("MIT License")
    assert __version__ in text_of(ROOT / "CHANGELOG.md")


def test_documented_records_have_the_keys_that_runs_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq.safe_load import safe_load

    monkeypatch.chdir(tmp_path)
    small_text(tmp_path, "train.txt", "valid.txt")
    pieces, words, training, *_ = own_text()
    run_command(
        "fairseq-preprocess --only-source --trainpref train.txt --validpref valid.txt".split()
    )
    train = training[0][: training[0].index("--bpe")]
    run_command([*train, "--save-dir", "run"])
    documented = text_of(ROOT / "docs" / "files.md")
    names = set(re.findall(r"[\w.]+", documented))
    run = tmp_path / "run"
    files = {re.sub(r"^checkpoint\w*\.pt", "NAME.pt", path.name) for path in run.iterdir()}
    assert {name for name in files if name not in documented} <= {"NAME.pt"}
    records = [json.loads(line) for line in text_of(run / "metrics.jsonl").splitlines()]
    keys = {key for record in records for key in record} - {"num_updates"}
    assert keys <= names, keys - names
    state = safe_load(run / "checkpoint_last.pt")
    parts = {*state, *(key for key in state["extra_state"])}
    assert parts <= {name for span in names for name in span.split(".")}, parts
    side = json.loads(text_of(run / "checkpoint_last.pt.json"))
    assert {"epoch", "num_updates", "val_loss", "size", "sha256", "time"} <= set(side)
    manifest = json.loads(text_of(tmp_path / "data-bin" / "manifest.json"))
    assert set(manifest) | set(manifest["datasets"]["train"]) <= names

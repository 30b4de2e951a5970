"""What the tests of the documents share: reading them, a small text, running our commands."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in ROOT.glob(pattern)
)


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


def own_modules() -> dict[str, Path]:
    """Return our modules by name; a package's name stands for its ``__init__``."""
    modules = {}
    for base in ("fairseq", "fairseq_cli"):
        for path in sorted((ROOT / base).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            modules[name.removesuffix(".__init__")] = path
    return modules


def small_text(folder: Path, *names: str, lines: int = 60) -> None:
    """Write texts of sentences and a few blank lines."""
    draw = random.Random(0)
    words = "the output has same shape as input of a list name value is not one any text .".split()
    for name in names:
        text = [" ".join(draw.choices(words, k=draw.randrange(5, 16))) for _ in range(lines)]
        (folder / name).write_text("\n".join([*text[:20], "", *text[20:]]) + "\n", encoding="utf-8")


TINY = "--cpu --num-workers 0 --log-format none --log-interval 1".split()


def narrow(side: str) -> list[str]:
    """Return the flags of a model of one narrow layer."""
    flags = "layers 1 embed-dim 16 attention-heads 2 ffn-embed-dim 16".split()
    return [f"--{side}-{word}" if number % 2 == 0 else word for number, word in enumerate(flags)]


def run_command(words: list[str]) -> None:
    """Run one of our commands in this process."""
    from fairseq_cli import bpe, eval_lm, export, generate, preprocess, report, train, validate

    name, *argv = words
    if name == "mkdir":
        Path(argv[-1]).mkdir(parents=True, exist_ok=True)
    elif name == "fairseq-train":
        side = "decoder" if "language_modeling" in argv else "encoder"
        train.run([*argv, "--max-update", "3", "--batch-size", "4", *narrow(side), *TINY])
    elif name == "fairseq-validate":
        validate.run([*argv, "--log-format", "none"])
    elif name == "fairseq-preprocess":
        preprocess.run(argv)
    elif name in ("fairseq-eval-lm", "fairseq-generate"):
        command = eval_lm if name == "fairseq-eval-lm" else generate
        assert command.run([*argv, "--cpu", "--num-workers", "0", "--log-format", "none"]) == 0
    else:
        others = {"bpe": bpe.main, "report": report.main, "export": export.main}
        assert others[name.removeprefix("fairseq-")](argv) == 0


def own_text() -> list[list[list[str]]]:
    """Return the shell blocks of the README's section about one's own text."""
    found = re.findall(r"```bash\n(.*?)```", section(README, "Your own text"), re.S)
    return [command_lines(block) for block in found]

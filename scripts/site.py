"""Build the site of the manual (make docs): gather its pages and what they link to, run mkdocs.

Links between pages stay as they are on the disk: a link to a folder leads to its README, and a
file that is linked (a program, a picture) is copied. Links are checked by mkdocs, in strict mode.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "site-pages"
PATTERNS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "examples/*/README.md")
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def pages() -> list[Path]:
    """Return the Markdown files of the site."""
    patterns = (*PATTERNS, "benchmarks/README.md")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def gathered(page: Path) -> tuple[str, list[Path]]:
    """Return the text of a page with links that lead to files, and the other files it links to."""
    files: list[Path] = []

    def mend(match: re.Match[str]) -> str:
        name, mark, anchor = match[2].partition("#")
        aim = (page.parent / name).resolve()
        if "://" in match[2] or not name or not aim.exists():
            return match[0]
        if aim.is_dir():
            readme = aim / "README.md"
            if not readme.exists():  # a folder of programs or records has no page
                return f"{match[1]}{os.path.relpath(ROOT / 'README.md', page.parent)}{match[3]}"
            aim = readme
        if aim.suffix != ".md":
            files.append(aim)
        return f"{match[1]}{os.path.relpath(aim, page.parent)}{mark}{anchor}{match[3]}"

    return LINK.sub(mend, page.read_text(encoding="utf-8")), files


def main() -> int:
    """Gather the pages, then build; return the exit status of mkdocs."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for page in pages():
        text, files = gathered(page)
        for source in files:
            copy = PAGES / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
        target = PAGES / page.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "mkdocs.yml")]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())

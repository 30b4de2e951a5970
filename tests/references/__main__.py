"""Compare the package with reference outputs: ``python -m tests.references NAME FOLDER``."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run the checker that is called NAME; 0 if all agree, 1 if not, 2 for a wrong command line."""
    here = Path(__file__).parent
    names = sorted(path.stem for path in here.glob("[a-z]*.py"))
    if len(argv) != 2 or argv[0] not in names or not re.fullmatch(r"\w+", argv[0]):
        print(f"usage: python -m tests.references {{{','.join(names)}}} FOLDER", file=sys.stderr)
        return 2
    folder = Path(argv[1])
    if not folder.is_dir():
        print(f"error: there is no folder {folder}", file=sys.stderr)
        return 2
    checked: int = importlib.import_module(f"tests.references.{argv[0]}").check(folder)
    return checked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

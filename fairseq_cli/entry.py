"""The frame of every command: exit codes and error messages."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fairseq.errors import FairseqError


def run_command(main: Callable[[Sequence[str] | None], Any]) -> None:
    """Run a command and exit: 0 for success, 1 for an error, 2 for a wrong command line.

    An error of ours is printed as one message on stderr; ``FAIRSEQ_DEBUG=1`` shows the traceback.

    Args:
        main: takes the arguments (None: those of the process) and returns an exit status or None.
    """
    try:
        refuse_other_fairseq()
        status = main(None)
    except FairseqError as error:
        if os.environ.get("FAIRSEQ_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    raise SystemExit(status if isinstance(status, int) else 0)


def refuse_other_fairseq() -> None:
    """Stop if the original fairseq is installed too: both own the same module names.

    Raises:
        FairseqError: saying what to do.
    """
    try:
        version = importlib.metadata.version("fairseq")
    except importlib.metadata.PackageNotFoundError:
        return
    raise FairseqError(
        f"the original fairseq {version} is installed in this environment too, and both packages "
        "are called 'fairseq'. Remove it (pip uninstall fairseq), then reinstall this one "
        "(pip install --force-reinstall --no-deps fairseq-lm)"
    )

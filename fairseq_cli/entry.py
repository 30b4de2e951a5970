"""The frame of every command: exit codes and error messages."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fairseq.errors import FairseqError


def command(main: Callable[[Sequence[str] | None], object]) -> Callable[..., None]:
    """Return the entry point of a command, see :func:`run_command`; old callers give arguments."""

    def cli_main(*unused: object, **more: object) -> None:
        run_command(main)

    return cli_main


def command_parser(
    prog: str, description: str, examples: str, allow_abbrev: bool = False, **more: Any
) -> argparse.ArgumentParser:
    """Return a parser whose help ends in examples that keep their lines."""
    return argparse.ArgumentParser(
        prog,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
        **more,
    )


def run_command(main: Callable[[Sequence[str] | None], object]) -> None:
    """Run a command and exit: 0 for success, 1 for an error, 2 for a wrong command line.

    An error of ours, of the file system, or of a memory that is too small is printed as one message
    on stderr; ``FAIRSEQ_DEBUG=1`` shows the traceback.

    Args:
        main: takes the arguments (None: those of the process) and returns an exit status or None.
    """
    collect_after_imports()
    try:
        refuse_other_fairseq()
        sys.argv[1:] = [expand_home(readable(word)) for word in sys.argv[1:]]
        status = print_completion() if "--print-completion" in sys.argv[1:2] else main(None)
        sys.stdout.flush()  # here, where a full disk is explained, not when Python ends
    except FairseqError as error:
        if os.environ.get("FAIRSEQ_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        _drop_output()
        raise SystemExit(1) from None
    except (OSError, MemoryError, RuntimeError) as error:
        message = explain(error)
        if message is None or os.environ.get("FAIRSEQ_DEBUG"):
            raise
        print(f"error: {message}", file=sys.stderr)
        _drop_output()
        raise SystemExit(1) from None
    raise SystemExit(status if isinstance(status, int) else 0)


# Objects. Importing PyTorch makes more of them (gc.disable(); import torch; gc.get_count()), so
# that no model is among those that are passed over.
IMPORTED = 200_000


def collect_after_imports() -> None:
    """Let Python's garbage collector wait until the imports are over, and pass over them then.

    Nothing that is imported becomes garbage, yet the collector would walk all of it again and again
    while it grows, whenever a long run collects, and once more when the process ends, which short
    commands feel. Worker processes share the pages of what it does not touch. In a process that has
    imported PyTorch already, somebody else's, nothing is changed.
    """
    if "torch" in sys.modules:
        return
    usual = gc.get_threshold()

    def pass_over(phase: str, _: dict[str, int]) -> None:
        if phase == "stop":
            gc.callbacks.remove(pass_over)
            gc.set_threshold(*usual)
            gc.freeze()

    gc.callbacks.append(pass_over)
    gc.set_threshold(IMPORTED)


def print_completion() -> int:
    """Print the completion of all commands for the shell that the command line names."""
    from fairseq_cli.completion import script

    print(script(sys.argv[2] if len(sys.argv) > 2 else ""), end="")
    return 0


def _drop_output() -> None:
    """Send what standard output still holds nowhere, if it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: BaseException) -> str | None:
    """Return what to say about an error of the file system or of the memory, else None."""
    text = str(error)
    out_of_memory = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text
    if out_of_memory or type(error).__name__ == "OutOfMemoryError":
        return (
            f"not enough memory ({text.splitlines()[0] if text else 'none was left'}). Use smaller "
            "batches, a smaller model or fewer --workers"
        )
    if not isinstance(error, OSError):
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = REMEDIES.get(error.errno or 0, "")
    return f"{where}{error.strerror or text or type(error).__name__}{remedy}"


REMEDIES = {
    errno.ENOSPC: "; make room on the disk, then run the same command again",
    errno.EDQUOT: "; make room within your quota, then run the same command again",
    errno.EFBIG: "; the file is larger than the system's limit (ulimit -f)",
    errno.EEXIST: "; there is a file where a folder is needed: choose another name",
    errno.ENOTDIR: "; there is a file where a folder is needed: choose another name",
    errno.EISDIR: "; there is a folder where a file is needed: choose another name",
    errno.EACCES: "; check its permissions, or choose another place",
    errno.EPERM: "; check its permissions, or choose another place",
    errno.EROFS: "; choose another place",
    errno.ENOENT: "; check the name",
    errno.ENAMETOOLONG: "; choose a shorter name",
    errno.EMFILE: "; raise the limit of open files (ulimit -n), or use fewer --workers",
}


def expand_home(word: str) -> str:
    """Return an argument with ``~/`` written out, also where shells do not do it: ``--x=~/y``."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return flag + equals + os.path.expanduser(value) if value.startswith("~/") else word


def readable(word: str) -> str:
    """Return an argument as it is.

    Raises:
        FairseqError: if its bytes are no text: records, logs and configurations hold every name.
    """
    if any("\ud800" <= sign <= "\udfff" for sign in word):  # how Python keeps such bytes
        raise FairseqError(f"{os.fsencode(word)!r} is not UTF-8: rename it, or choose another name")
    return word


def _holds_original(folder: str) -> bool:
    """Whether a folder of packages has the records of one that is called fairseq."""
    try:
        names = os.listdir(folder or ".")
    except OSError:  # an archive, or not there
        return False
    return any(name == "fairseq.egg-info" or name.startswith("fairseq-") for name in names)


def refuse_other_fairseq() -> None:
    """Stop if the original fairseq is installed too: both own the same module names.

    Raises:
        FairseqError: saying what to do.
    """
    if not any(_holds_original(folder) for folder in sys.path):
        return
    # slow to import for --help: it is asked only where a folder names the package
    import importlib.metadata

    try:
        version = importlib.metadata.version("fairseq")
    except importlib.metadata.PackageNotFoundError:
        return
    raise FairseqError(
        f"the original fairseq {version} is installed in this environment too, and both packages "
        "are called 'fairseq'. Remove it (pip uninstall fairseq), then reinstall this one "
        "(pip install --force-reinstall --no-deps . in its checkout)"
    )

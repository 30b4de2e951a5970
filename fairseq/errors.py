"""Errors shown to users: each message says what was wrong, where, and what to do about it.

Everything a user can cause derives from :class:`FairseqError`, a ``ValueError``; the commands print
its message without a traceback and exit with status 1. ``assert`` is kept for our own invariants.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class FairseqError(ValueError):
    """Base of every error that a user's input, files or flags can cause."""


class ConfigError(FairseqError):
    """A flag, YAML key or combination of both that cannot be honoured."""


class UnsupportedError(ConfigError):
    """A feature of the original fairseq that this project refuses on purpose."""


class RegistryError(FairseqError, KeyError):
    """An unknown or doubly registered model, task, criterion or other component."""

    def __str__(self) -> str:
        """Undo ``KeyError``'s quoting, which would show the message as a Python literal."""
        return str(self.args[0]) if self.args else ""


class DataError(FairseqError):
    """A corpus, dictionary or binarized file that is damaged or does not fit the others."""


class CheckpointError(FairseqError):
    """A checkpoint that is damaged, unsafe or does not fit the model."""


class MissingFileError(FairseqError, FileNotFoundError):
    """A file or folder that the user named and that does not exist."""


def install_hint(extra: str) -> str:
    """Return the command that installs an optional part, which works as it is printed."""
    return f"run pip install '.[{extra}]' in the checkout of fairseq-lm"


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest candidate, or an empty string.

    Args:
        name: what the user wrote.
        candidates: the names that would have been accepted.
    """
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def check_choice(what: str, name: str, accepted: Collection[str]) -> None:
    """Raise unless a word is among those accepted.

    Args:
        what: what it stands for, such as the flag.
        name: the word.
        accepted: the words.

    Raises:
        ConfigError: if it is not.
    """
    if name not in accepted:
        raise ConfigError(
            f"unknown {what} '{name}'{did_you_mean(name, accepted)}; "
            f"choose from {', '.join(accepted)}"
        )

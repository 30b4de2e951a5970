"""The argparse reader: flags made from dataclasses.

A boolean becomes a pair ``--x/--no-x``; a field called ``no_x`` the pair ``--no-x/--x``. An exact
old spelling keeps its old meaning: in the original the flag of a boolean that is on by default
switches it off, and so it does here, with a warning.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fairseq.config.refused import REFUSED, check_refused
from fairseq.config.schema import (
    REFERENCE,
    FairseqDataclass,
    choices_of,
    coerce,
    default_of,
    parser_of,
    public_fields,
    without_optional,
)
from fairseq.errors import ConfigError, UnsupportedError, did_you_mean

logger = logging.getLogger(__name__)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors help: it suggests flags and explains refused ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print ``message``, with suggestions for unknown flags, and exit with status 2."""
        lead = "unrecognized arguments: "
        if message.startswith(lead):
            known = list(self._option_string_actions)
            words = message[len(lead) :].split()
            hints = [did_you_mean(w.split("=")[0], known) for w in words if w.startswith("--")]
            message += "".join(hints) or " (see --help; --help --arch NAME lists a model's flags)"
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names)
            listed = ", ".join(names)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{hint}; choose from {listed}"
            )


class HelpFormatter(argparse.HelpFormatter):
    """Help with defaults, in a fixed width so that it reads the same everywhere."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        default = getattr(action, "shown_default", None)
        return text if default in (None, "", False) else f"{text} [{default}]"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


class _SetBool(argparse.Action):
    """Store a fixed boolean; warns where the flag's name says the opposite of what it does."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, backward: bool = False, **kwargs: Any
    ) -> None:
        self.backward = backward
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if self.backward:
            logger.warning(
                "%s switches %s OFF, as it does in the original; write --no-%s to say it plainly",
                option_string,
                self.dest,
                self.dest.replace("_", "-"),
            )
        setattr(namespace, self.dest, self.const)


class _RefusedFlag(argparse.Action):
    """Accept a refused flag with its default, explain the refusal otherwise."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            check_refused(self.dest, True if values is None else values)
        except UnsupportedError as error:
            parser.error(str(error))


def _typed(kind: Any, flag: str) -> Callable[[str], Any]:
    """Return an argparse ``type`` that keeps the message of our own errors."""

    def read(text: str) -> Any:
        try:
            return coerce(text, kind, flag)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).split(": ", 1)[-1]) from error

    parser_of(kind)  # raises early for types that have no text form
    return read


def _flag_names(name: str, prefix: str | None, alias: str | None) -> list[str]:
    stem = name.replace("_", "-")
    names = [f"--{prefix}-{stem}" if prefix else f"--{stem}"]
    return names + ([alias] if alias else [])


def _add_bool(
    parser: Any, names: list[str], dest: str, default: Any, help_text: str | None, positive: bool
) -> None:
    """Add the pair of flags of one boolean field."""
    negated = names[0].startswith("--no-")
    opposite = "--" + names[0][5:] if negated else "--no-" + names[0][2:]
    on_by_default = default is True
    backward = on_by_default and not positive and not negated
    _try_add(
        parser,
        *names,
        action=_SetBool,
        const=not backward,
        backward=backward,
        dest=dest,
        default=default,
        help=help_text,
    )
    _try_add(
        parser,
        opposite,
        action=_SetBool,
        const=False,
        dest=dest,
        default=default,
        help=argparse.SUPPRESS if not on_by_default else f"switch {dest} off",
    )


def _try_add(parser: Any, *names: str, **kwargs: Any) -> None:
    """Add an argument; when two components share a flag the first definition wins."""
    shown = kwargs.pop("shown_default", None)
    if isinstance(kwargs.get("help"), str) and kwargs["help"] != argparse.SUPPRESS:
        kwargs["help"] = kwargs["help"].replace("%", "%%")
    try:
        action = parser.add_argument(*names, **kwargs)
    except argparse.ArgumentError:
        return
    action.shown_default = shown


def add_field(
    parser: Any, config: FairseqDataclass, field: Any, kind: Any, prefix: str | None, suppress: bool
) -> None:
    """Add the flag of one dataclass field.

    Args:
        parser: an argparse parser or argument group.
        config: instance whose values are the defaults.
        field: the dataclass field.
        kind: its type.
        prefix: put before the name, for nested configurations.
        suppress: leave the attribute out of the result when the flag is not given.
    """
    meta = field.metadata
    default = getattr(config, field.name, default_of(field))
    if isinstance(kind, type) and issubclass(kind, FairseqDataclass):
        nested = default if isinstance(default, FairseqDataclass) else kind()
        sub_prefix = None if prefix is None else f"{prefix}-{field.name}".lstrip("-")
        gen_parser_from_dataclass(parser, nested, suppress, sub_prefix)
        return
    refers = isinstance(default, str) and REFERENCE.match(default) is not None
    if refers and not meta.get("help"):
        return
    missing = default is dataclasses.MISSING or default == "???"
    if field.name == "data" and not prefix:
        _try_add(parser, "data", help=meta.get("help") or "folder with the binarized data")
        return
    names = _flag_names(field.name, prefix, meta.get("argparse_alias"))
    dest = names[0][2:].replace("-", "_")
    shown = ",".join(map(str, default)) if isinstance(default, list) else default
    stored = argparse.SUPPRESS if suppress else None if refers or missing else default
    if without_optional(kind) is bool:
        real = None if refers else default
        _add_bool(parser, names, dest, real, meta.get("help"), meta.get("positive", False))
        for name in names:
            parser._option_string_actions[name].default = stored
        return
    extra: dict[str, Any] = {}
    if meta.get("argparse_const") is not None:
        extra = {"nargs": "?", "const": meta["argparse_const"]}
    choices = choices_of(kind)
    _try_add(
        parser,
        *names,
        dest=dest,
        type=str if refers or choices else _typed(kind, names[0]),
        choices=choices,
        default=stored,
        required=missing,
        help=meta.get("help"),
        metavar=None if choices is None or len(choices) < 8 else "NAME",
        shown_default=None if refers or missing else shown,
        **extra,
    )


def gen_parser_from_dataclass(
    parser: Any,
    dataclass_instance: FairseqDataclass,
    delete_default: bool = False,
    with_prefix: str | None = None,
) -> None:
    """Add a flag for every field of a configuration.

    Args:
        parser: an argparse parser or argument group.
        dataclass_instance: its values are the defaults.
        delete_default: flags not given leave no attribute.
        with_prefix: None flattens nested configurations, a string (also an empty one) prefixes
            their flags with the path of field names.
    """
    for field, kind in public_fields(type(dataclass_instance)):
        add_field(parser, dataclass_instance, field, kind, with_prefix, delete_default)


def add_refused_flags(parser: argparse.ArgumentParser) -> None:
    """Add, hidden from the help, the flags that are refused unless they hold their default."""
    for name, row in REFUSED.items():
        _try_add(
            parser,
            "--" + name.replace("_", "-"),
            action=_RefusedFlag,
            dest=name,
            nargs=0 if row.default is False else "?",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def explicitly_given(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse ``argv`` and return only what it states: no defaults."""
    actions = parser._actions
    kept = [(action, action.default) for action in actions]
    defaults = dict(parser._defaults)
    for action in actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    try:
        return parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    finally:
        parser._defaults.update(defaults)
        for action, default in kept:
            action.default = default

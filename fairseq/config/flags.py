"""The argparse reader: flags made from dataclasses.

A boolean becomes a pair ``--x/--no-x``; a field called ``no_x`` the pair ``--no-x/--x``. An exact
old spelling keeps its old meaning: in the original the flag of a boolean that is on by default
switches it off, and so it does here, with a warning.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from fairseq.config.refused import REFUSED, REFUSED_WORDS, check_refused, why_refused
from fairseq.config.schema import (
    MISSING,
    FairseqDataclass,
    choices_of,
    coerce,
    default_of,
    is_reference,
    parser_of,
    public_fields,
    without_optional,
)
from fairseq.config.upgrade import ROWS
from fairseq.errors import ConfigError, UnsupportedError, did_you_mean

logger = logging.getLogger("fairseq.config.arguments")

_METAVARS = {int: "N", float: "X", str: "TEXT"}


# flags of old releases whose nearest name means something else
RENAMED = {"--max-lr": " (the highest rate of a cosine is --lr, its lowest --min-lr)"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors help: it suggests flags and explains refused ones.

    Attributes:
        components: its flags that name components, without dashes.
        sections: shared sections whose flags it has.
        data_is_optional: whether the folder of data may be left out.
    """

    components: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    data_is_optional = False

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
            flags = [word.split("=")[0] for word in words if word.startswith("--")]
            hints = [RENAMED.get(flag) or did_you_mean(flag, known) for flag in flags]
            message += "".join(hints) or " (see --help; --help --arch NAME lists a model's flags)"
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            problem = describe_choice(str(value), [str(choice) for choice in action.choices])
            raise argparse.ArgumentError(action, problem)


def describe_choice(word: str, accepted: Collection[str]) -> str:
    """Return the message for a word that is not among those accepted."""
    if word in REFUSED_WORDS:
        return why_refused(word)
    listed = ", ".join(accepted)
    return f"invalid choice: {word!r}{did_you_mean(word, accepted)}; choose from {listed}"


# an argparse parser or a group of its arguments
Flags = argparse._ActionsContainer


class HelpFormatter(argparse.HelpFormatter):
    """Help with defaults, in a fixed width so that it reads the same everywhere."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        default = getattr(action, "shown_default", None)
        return (
            text if default is None or default is False or default == "" else f"{text} [{default}]"
        )

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
        values: object,
        option_string: str | None = None,
    ) -> None:
        if self.backward:
            name = self.option_strings[0][2:]
            logger.warning(
                "--%s switches %s OFF, as it does in the original; write --%s to say it plainly",
                name,
                self.dest,
                name[3:] if name.startswith("no-") else f"no-{name}",
            )
        setattr(namespace, self.dest, self.const)


class _RefusedFlag(argparse.Action):
    """Accept a refused flag with its default, explain the refusal otherwise."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        try:
            check_refused(self.dest, True if values in (None, []) else values)
        except UnsupportedError as error:
            parser.error(str(error))


class _UnreadFlag(argparse.Action):
    """Accept a flag and keep nothing of it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        pass


def _typed(kind: object, flag: str) -> Callable[[str], Any]:
    """Return an argparse ``type`` that keeps the message of our own errors."""

    def read(text: str) -> Any:
        try:
            return coerce(text, kind, flag)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{flag}: ")) from error

    parser_of(kind)  # raises early for types that have no text form
    return read


def _try_add(parser: Flags, *names: str, **kwargs: Any) -> None:
    """Add an argument; when two components share a flag the first definition wins."""
    shown = kwargs.pop("shown_default", None)
    if isinstance(kwargs.get("help"), str) and kwargs["help"] != argparse.SUPPRESS:
        kwargs["help"] = kwargs["help"].replace("%", "%%")
    try:
        action = parser.add_argument(*names, **kwargs)
    except argparse.ArgumentError:
        return
    action.shown_default = shown  # type: ignore[attr-defined]


def _flag_names(name: str, prefix: str | None, aliases: str | Sequence[str] | None) -> list[str]:
    stem = name.replace("_", "-")
    names = [f"--{prefix}-{stem}" if prefix else f"--{stem}"]
    return names + ([aliases] if isinstance(aliases, str) else list(aliases or ()))


def _add_bool(
    parser: Flags, names: list[str], on: bool, positive: bool, stored: object, text: str | None
) -> None:
    """Add the pair of flags of one boolean field.

    Args:
        parser: an argparse parser or argument group.
        names: the flag and its aliases.
        on: the default of the field.
        positive: the flag switches on even if the field is on by default.
        stored: what the parser stores when no flag is given.
        text: the help.
    """
    stem = names[0][2:]
    opposite = stem[3:] if stem.startswith("no-") else f"no-{stem}"
    backward = on and not positive
    common = {"action": _SetBool, "dest": stem.replace("-", "_"), "default": stored}
    off_text = f"switch it off: {text}" if backward and text else f"switch off --{stem}"
    _try_add(
        parser,
        *names,
        const=not backward,
        backward=backward,
        help=argparse.SUPPRESS if backward else text,
        shown_default=on,
        **common,
    )
    hidden = argparse.SUPPRESS
    _try_add(parser, f"--{opposite}", const=False, help=off_text if on else hidden, **common)


def add_field(
    parser: Flags,
    config: FairseqDataclass,
    field: dataclasses.Field[Any],
    kind: object,
    prefix: str | None,
    suppress: bool,
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
    default = getattr(config, field.name, default_of(field))
    default = default.value if isinstance(default, enum.Enum) else default
    inner, text, meta = without_optional(kind), field.metadata.get("help"), field.metadata
    if meta.get("inert"):
        text = f"no effect here (in the original: {text})"
    if isinstance(inner, type) and issubclass(inner, FairseqDataclass):
        nested = default if isinstance(default, FairseqDataclass) else inner()
        path = None if prefix is None else f"{prefix}-{field.name}".lstrip("-").replace("_", "-")
        gen_parser_from_dataclass(parser, nested, suppress, path)
        return
    refers = is_reference(default)
    if refers and not text:
        return
    if field.name == "data" and not prefix:
        if not any(a.dest == "data" and not a.option_strings for a in parser._actions):
            _try_add(parser, "data", help=text or "folder with the binarized data")
        return
    missing = default is dataclasses.MISSING or default == MISSING
    unknown = refers or missing
    stored = argparse.SUPPRESS if suppress else None if unknown else default
    names = _flag_names(field.name, prefix, meta.get("argparse_alias"))
    if inner is bool and not refers:
        _add_bool(parser, names, default is True, meta.get("positive", False), stored, text)
        return
    const = meta.get("argparse_const")
    if inner is bool:  # in the original such a flag takes a value
        const, opposite = True, "--no-" + names[0][2:]
        hidden = argparse.SUPPRESS
        _try_add(parser, opposite, action=_SetBool, const=False, default=stored, help=hidden)
    choices = choices_of(kind)
    _try_add(
        parser,
        *names,
        dest=names[0][2:].replace("-", "_"),
        type=str if choices else _typed(kind, names[0]),
        choices=choices,
        default=stored,
        required=missing,
        help=text,
        metavar=_METAVARS.get(inner, "LIST") if not choices else None,
        shown_default=None if unknown else _shown(default),
        **({} if const is None else {"nargs": "?", "const": const}),
    )


def _shown(default: object) -> Any:
    if default == sys.maxsize:  # what the help calls all
        return None
    return ",".join(map(str, default)) if isinstance(default, (list, tuple)) else default


def gen_parser_from_dataclass(
    parser: Flags,
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


def add_unread_flags(parser: Flags, *flags: str, switches: Sequence[str] = ()) -> None:
    """Accept, hidden from the help, flags of the original that a command has no use for."""
    for flag in (*flags, *switches):
        nargs = 0 if flag in switches else None
        hidden = argparse.SUPPRESS
        _try_add(parser, flag, action=_UnreadFlag, nargs=nargs, default=hidden, help=hidden)


def add_old_flags(parser: argparse.ArgumentParser, section: str) -> None:
    """Add, hidden from the help, the flags that a section of the fork had under other names."""
    for row in ROWS:
        if not row.flag or row.section != section:
            continue
        how: dict[str, Any] = {"type": float}
        if isinstance(row.default, bool):
            how = {"action": _SetBool, "const": not row.default, "backward": row.default}
        _try_add(
            parser,
            "--" + row.old.replace("_", "-"),
            dest=row.old,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
            **how,
        )


def make_data_optional(parser: argparse.ArgumentParser) -> None:
    """Let a command line go without the data folder, because it is known from elsewhere."""
    for action in parser._actions:
        if action.dest == "data" and not action.option_strings:
            action.required = False


def explicitly_given(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, parse_known: bool = False
) -> argparse.Namespace:
    """Parse ``argv`` and return only what it states: no defaults.

    Args:
        parser: any parser; it is left as it was.
        argv: the arguments; those of the process if None.
        parse_known: ignore what the parser does not know.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    kept = [(action, action.default) for action in parser._actions]
    defaults = dict(parser._defaults)
    parser._defaults.clear()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    try:
        return parser.parse_known_args(argv)[0] if parse_known else parser.parse_args(argv)
    finally:
        parser._defaults.update(defaults)
        for action, default in kept:
            action.default = default

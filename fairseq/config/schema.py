"""What a configuration is made of: the dataclass base, choices, references and value parsing.

Every component owns a dataclass derived from :class:`FairseqDataclass`. A field carries its help in
its metadata (see :func:`option`); its type says how text is parsed. ``"${section.key}"`` as a
default refers to another section (see :mod:`fairseq.config.references`), ``"???"`` says that there
must be a value.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, Union

from fairseq.errors import ConfigError, did_you_mean

REFERENCE = re.compile(r"^\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}$")
MISSING = "???"  # a value that must be given, in the spelling of omegaconf
# Ranges that many fields have (see option): probabilities, decay rates, seeds (signed 64 bits).
SHARE: Mapping[str, float] = {"minimum": 0, "maximum": 1}
DECAY: Mapping[str, float] = {"minimum": 0, "below": 1}
SEED: Mapping[str, float] = {"minimum": 0, "maximum": 2**63 - 1}
MOST_WORKERS = 1024  # more processes than this are a slip of the finger


def is_reference(value: object) -> bool:
    """Tell whether ``value`` is text with a ``${...}`` in it."""
    return isinstance(value, str) and "${" in value


def II(reference: str) -> Any:
    """Return a default that stands for the value of ``reference`` (``"section.key"``)."""
    return "${" + reference + "}"


def option(default: object, help: str | None = None, **metadata: object) -> Any:
    """Declare a configuration field.

    Args:
        default: the value, or ``II("section.key")``; a list is copied for every instance.
        help: the sentence shown by ``--help``; a field without help still gets a flag, unless its
            default is a reference.
        **metadata: ``new=True`` for a field the original does not have, which its checkpoints
            must not carry; ``inert=True`` for one that is accepted but has no effect;
            ``argparse_alias`` (one more flag, or a tuple of flags); ``argparse_const`` (value of
            the bare flag); ``positive=True`` for a boolean that is on by default and whose
            ``--name`` reads straight (without it ``--name`` switches off, as in the original);
            ``minimum``, ``maximum`` (included), ``above``, ``below`` (excluded): the range of a
            number, or of every number of a list, checked by :mod:`fairseq.config.ranges`;
            ``path=True`` for a path, or several joined by ``:``, in which ``~`` is the home folder.
    """
    metadata["help"] = help
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class _ChoiceMeta(enum.EnumMeta):
    # Python before 3.12 raises TypeError when it is asked for a text
    def __contains__(cls, item: object) -> bool:
        return any(item is member or item == member.value for member in cls)  # type: ignore[var-annotated]


class _ChoiceBase(enum.Enum, metaclass=_ChoiceMeta):
    def __str__(self) -> str:
        return str(self.value)

    def __eq__(self, other: object) -> bool:
        return self is other or self.value == other

    # members equal their texts, so both must be found in the same place of a dict
    def __hash__(self) -> int:
        return hash(str(self))


def ChoiceEnum(choices: Sequence[str]) -> Any:
    """Return an enum type whose members are ``choices`` and compare equal to their strings."""
    members: Any = {name: name for name in choices}
    make: Any = _ChoiceBase  # the functional form of an enum
    return make("Choices", members)


@dataclasses.dataclass
class FairseqDataclass:
    """Base of every configuration dataclass.

    Instances are mutable while they are put together; :func:`fairseq.config.resolve.resolve`
    freezes its result before anything is built from it.
    """

    _name: str | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Allow ``field: SubConfig = SubConfig()``, which dataclasses refuse for unhashables."""
        super().__init_subclass__(**kwargs)
        if "__hash__" not in cls.__dict__:
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: object) -> None:
        if self.is_frozen():
            raise ConfigError(
                f"cannot set {type(self).__name__}.{name}: the configuration is final once it is "
                "resolved, as everything is built from it; changed(...) derives another one, and "
                "thawed() is a copy to write to"
            )
        object.__setattr__(self, name, value)

    def is_frozen(self) -> bool:
        """Tell whether :meth:`freeze` was called."""
        return "_is_frozen" in self.__dict__

    def freeze(self) -> None:
        """Make this configuration, and every configuration inside it, read-only."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, FairseqDataclass):
                if value is field.default:  # all instances share it, see __init_subclass__
                    value = copy.deepcopy(value)
                    object.__setattr__(self, field.name, value)
                value.freeze()
        # no field, so that no file has it and dataclasses.replace gives a copy that can be changed
        object.__setattr__(self, "_is_frozen", True)

    def thawed(self) -> Self:
        """Return a deep copy that can be written to, whatever this one is."""
        made = copy.deepcopy(self)
        made._thaw()
        return made

    def _thaw(self) -> None:
        self.__dict__.pop("_is_frozen", None)
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), FairseqDataclass):
                value._thaw()

    def changed(self, **values: Any) -> Self:
        """Return a configuration that differs in these fields, frozen if this one is."""
        made = dataclasses.replace(self, **values)
        if self.is_frozen():
            made.freeze()
        return made

    @staticmethod
    def name() -> str | None:
        """Return the registered name of the component, if the class states one."""
        return None

    @classmethod
    def from_namespace(cls, args: object) -> Any:
        """Return an instance with the attributes that ``args`` has in common with it."""
        if isinstance(args, cls):
            return args
        config = cls()
        assign(
            config,
            {
                f.name: getattr(args, f.name)
                for f in dataclasses.fields(cls)
                if hasattr(args, f.name)
            },
        )
        return config

    def get(self, name: str, default: object = None) -> Any:
        """Return the attribute ``name`` or ``default``, as mappings do."""
        return getattr(self, name, default)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in type(self).__dataclass_fields__

    def _get_all_attributes(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self)]

    def _get_meta(self, attribute: str, meta: str, default: object = None) -> Any:
        return type(self).__dataclass_fields__[attribute].metadata.get(meta, default)

    def _get_name(self, attribute: str) -> str:
        return attribute

    def _get_default(self, attribute: str) -> Any:
        value = getattr(self, attribute, None)
        return default_of(type(self).__dataclass_fields__[attribute]) if value is None else value

    def _get_type(self, attribute: str) -> Any:
        kind: Any = type(self)
        return field_types(kind)[attribute]

    def _get_help(self, attribute: str) -> str | None:
        return self._get_meta(attribute, "help")

    def _get_argparse_const(self, attribute: str) -> Any:
        return self._get_meta(attribute, "argparse_const")

    def _get_argparse_alias(self, attribute: str) -> str | None:
        return self._get_meta(attribute, "argparse_alias")

    def _get_choices(self, attribute: str) -> list[str] | None:
        return choices_of(self._get_type(attribute))


Given = TypeVar("Given")


def with_values(settings: Given, **values: Any) -> Given:
    """Return other settings that differ in these values: a configuration, or a Namespace."""
    if isinstance(settings, FairseqDataclass):
        return settings.changed(**values)
    made = copy.copy(settings)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a dataclass field, ``dataclasses.MISSING`` if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the annotations of a dataclass as types, also when they are stored as strings.

    Where an annotation cannot be evaluated (a plug-in names a type that only type checkers see),
    the type of the field's default is taken, or ``str``.
    """
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {field.name: _type_of(cls, field) for field in dataclasses.fields(cls)}


def _type_of(cls: type, field: dataclasses.Field[Any]) -> Any:
    owner = next(
        base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", {})
    )
    # one by one, so that an annotation nobody can read does not spoil its neighbours; names are
    # looked up in the module of the class that states it
    alone = {"__annotations__": {field.name: field.type}, "__module__": owner.__module__}
    try:
        return typing.get_type_hints(type(cls.__name__, (), alone))[field.name]
    except NameError:
        default = default_of(field)
        return str if default is None or default is dataclasses.MISSING else type(default)


def public_fields(cls: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield ``(field, type)`` for every field that is not private."""
    hints = field_types(cls)
    for field in dataclasses.fields(cls):
        if not field.name.startswith("_"):
            yield field, hints[field.name]


def without_optional(kind: object) -> Any:
    """Return ``T`` for ``Optional[T]``, every other type as it is; ``Any`` counts as ``str``."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        # a union of several types cannot be told apart in a text
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        return without_optional(inner[0]) if len(inner) == 1 else str
    return str if kind is Any else kind


def choices_of(kind: object) -> list[str] | None:
    """Return the accepted words of a ``Literal`` or enum type, None for every other type."""
    kind = without_optional(kind)
    if typing.get_origin(kind) is Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(member.value) for member in kind]
    return None


def parse_literal(text: str) -> Any:
    """Read a Python literal (number, string, list, dict, ``1e-3``); never evaluates code.

    Raises:
        ConfigError: if ``text`` is no literal.
    """
    try:
        return ast.literal_eval(text.strip())
    # the last two are how ast says that brackets are nested too deeply
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ConfigError(f"{text!r} is not a plain value such as 3, 0.5, (0.9, 0.98)") from error


def parse_dict(flag: str, text: str | None) -> dict[str, Any]:
    """Read the dict that a flag was given as a Python literal; nothing is an empty one.

    Raises:
        ConfigError: if ``text`` is something else.
    """
    try:
        value = parse_literal(text or "{}")
    except ConfigError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{flag} must be a dict such as \"{{'lr': 0.1}}\", not {text!r}")
    return value


def list_parser(element: Callable[[Any], object]) -> Callable[[Any], list[Any]]:
    """Return a reader of ``"1,2"``, ``"4"``, ``"[1, 2]"`` or a sequence into a list."""

    def parse(value: object) -> list[Any]:
        if isinstance(value, str):
            value = parse_literal(value) if value.strip() else []
        items = value if isinstance(value, (list, tuple)) else [value]
        return [element(item) for item in items]

    return parse


def _parse_bool(value: object) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, (bool, int)):
        return bool(value)
    if str(value).strip().lower() not in words:
        raise ConfigError(f"{value!r} is not a boolean; write true or false")
    return words[str(value).strip().lower()]


def _parse_int(value: Any) -> int:
    if isinstance(value, str):
        # 1e6 is a usual way to write a million; digits are read directly, as floats end at 2**53
        value = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    if isinstance(value, float) and not value.is_integer():
        raise ConfigError(f"{value!r} is not a whole number")
    return int(value)


def _parse_str(value: object) -> str:
    if isinstance(value, (list, tuple)):
        raise ConfigError("a list is given; write one text")
    return str(value)


_READERS: dict[Any, Callable[[Any], Any]] = {
    bool: _parse_bool,
    int: _parse_int,
    float: float,
    str: _parse_str,
}


def parser_of(kind: object) -> Callable[[Any], Any]:
    """Return the function that reads a text (or an already typed value) as the type ``kind``.

    Raises:
        NotImplementedError: for a list of something other than int, float or str.
    """
    if kind is Any:
        return lambda value: value
    kind = without_optional(kind)
    if typing.get_origin(kind) in (list, tuple):
        element = typing.get_args(kind)[0]
        if element not in (int, float, str):
            raise NotImplementedError(f"a list of {element} cannot be read from the command line")
        return list_parser(_READERS[element])
    if choices_of(kind) is not None:
        return str
    return _READERS.get(kind, lambda value: value)


def coerce(value: object, kind: object, where: str) -> Any:
    """Return ``value`` as the type ``kind``; None and unresolved references pass.

    Args:
        value: text or an already typed value.
        kind: the annotation of the field.
        where: name of the field, for the message.

    Raises:
        ConfigError: if the value cannot be read as ``kind`` or is not among its choices.
    """
    if value is None or is_reference(value):
        return value
    if isinstance(value, enum.Enum):
        value = value.value
    try:
        parsed = parser_of(kind)(value)
    except (ValueError, TypeError, OverflowError) as error:
        expected = getattr(without_optional(kind), "__name__", str(kind))
        raise ConfigError(f"{where}: cannot read {value!r} as {expected} ({error})") from error
    choices = choices_of(kind)
    if choices is not None and parsed not in choices:
        hint = did_you_mean(parsed, choices)
        raise ConfigError(f"{where}: {parsed!r} is none of {', '.join(choices)}{hint}")
    return parsed


def assign(config: FairseqDataclass, values: Mapping[str, object], where: str = "") -> None:
    """Set the fields of ``config`` that ``values`` states, each read as the type of its field.

    Args:
        config: what is filled; a configuration inside it is replaced by a changed copy.
        values: by field name; other names and ``"???"`` are left out.
        where: name of the section, for messages.

    Raises:
        ConfigError: if a value cannot be read.
    """
    for field, kind in public_fields(type(config)):
        if field.name not in values or values[field.name] == MISSING:
            continue
        value, place = values[field.name], f"{where}.{field.name}".lstrip(".")
        inner = getattr(config, field.name, None)
        if isinstance(inner, FairseqDataclass) and isinstance(value, Mapping):
            # the default may be one object that all instances share, see __init_subclass__
            inner = copy.deepcopy(inner)
            assign(inner, value, place)
            setattr(config, field.name, inner)
        else:
            setattr(config, field.name, coerce(value, kind, place))

"""Completion for shells: ``fairseq-train --print-completion bash`` prints it for every command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import fairseq_cli
from fairseq.errors import ConfigError

FLAG = "--print-completion"
SHELLS = ("bash", "zsh")
NO_COMMANDS = {"entry", "flags", "completion"}
FRAME = """\
_fairseq_complete() {{
  local command="${{1##*/}}" current="${{COMP_WORDS[COMP_CWORD]}}"
  local previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  case "$command $previous" in
{values}
  esac
  if [[ -z $words && $COMP_CWORD == 1 ]]; then
    case "$command" in
{first}
    esac
  fi
  if [[ $current == -* ]]; then
    case "$command" in
{flags}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _fairseq_complete {commands}
"""


@dataclass
class Words:
    """What may follow a command.

    Attributes:
        flags: all of its flags.
        values: flag -> the values it takes, where they are known.
        first: names of its sub-commands.
    """

    flags: set[str] = field(default_factory=set)
    values: dict[str, list[str]] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Add what a parser and those of its sub-commands take."""
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                self.first += list(action.choices)
                for part in action.choices.values():
                    self.add(part)
            elif action.help != argparse.SUPPRESS:
                names = [name for name in action.option_strings if name.startswith("--")]
                self.flags.update(names)
                choices = {str(choice) for choice in action.choices or ()}
                for name in names if choices else ():  # two models may take different ones
                    self.values[name] = sorted({*self.values.get(name, ()), *choices})


def command_modules() -> dict[str, str]:
    """Return the module of each command."""
    names = {part.name for part in pkgutil.iter_modules(fairseq_cli.__path__)} - NO_COMMANDS
    return {f"fairseq-{name.replace('_', '-')}": f"fairseq_cli.{name}" for name in sorted(names)}


def words_of(module: str) -> Words:
    """Return what may follow a command, flags of all components included."""
    from fairseq.config.components import known_names
    from fairseq.config.flags import Parser
    from fairseq.config.options import add_component_flags
    from fairseq.config.yaml import recipe_names

    words = Words()
    with _caught_help() as parsers, contextlib.suppress(SystemExit):
        command = importlib.import_module(module)
        start: Callable[[list[str]], object] = getattr(command, "run", None) or command.main
        start(["--help"])
    (parser,) = parsers
    words.add(parser)
    if "--config" in words.flags:
        words.values["--config"] = recipe_names()
    for component in getattr(parser, "components", ()):
        flag = f"--{component.replace('_', '-')}"
        words.values[flag] = sorted(known_names(component))
        for name in words.values[flag]:
            flags = Parser(add_help=False, conflict_handler="resolve")
            add_component_flags(flags, component, name)
            words.add(flags)
    return words


@contextlib.contextmanager
def _caught_help() -> Iterator[list[argparse.ArgumentParser]]:
    """Give the list of parsers that would have printed their help."""
    parsers: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, file: object = None) -> None:
        parsers.append(parser)

    with mock.patch.object(argparse.ArgumentParser, "print_help", catch):
        yield parsers


def script(shell: str) -> str:
    """Return the completion of all commands for a shell.

    Raises:
        ConfigError: for another shell.
    """
    if shell not in SHELLS:
        raise ConfigError(f"{FLAG} takes {' or '.join(SHELLS)}, not '{shell}'")
    commands = {command: words_of(module) for command, module in command_modules().items()}
    lines = FRAME.format(
        values=_cases(
            {f"{c} {f}": v for c, words in commands.items() for f, v in words.values.items()}
        ),
        first=_cases({command: words.first for command, words in commands.items() if words.first}),
        flags=_cases({command: sorted(words.flags) for command, words in commands.items()}),
        commands=" ".join(commands),
    )
    # zsh reads the completion of bash after this
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + lines


def _cases(words: dict[str, list[str]]) -> str:
    return "\n".join(f'    "{case}") words="{" ".join(known)}";;' for case, known in words.items())

"""YAML as text, read within bounds: a small file must not become an endless configuration.

Aliases make a file of a few lines stand for billions of values, or for itself. Everything that
reads YAML (recipes, Hydra, reports) reads it here first; what an alias stands for counts each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.errors import ConfigError

if TYPE_CHECKING:
    import yaml


MOST_BYTES = 10_000_000
MOST_NODES = 100_000
MOST_DEPTH = 50


def load_yaml(text: str, name: str | Path) -> Any:
    """Return the content of a YAML text: plain values, lists and dicts.

    Args:
        text: one document.
        name: where it comes from, for messages.

    Raises:
        ConfigError: if it is no YAML, states a key twice (the message names the line), or is
            larger, deeper or more often repeated than any configuration.
    """
    import yaml

    if len(text) > MOST_BYTES:
        raise ConfigError(f"{name} has {len(text):,} characters: too many for a configuration")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, name)
        return loader.construct_document(node)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no such date, a number of MBs
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply to be a configuration") from None
    finally:
        loader.dispose()


def read_yaml_file(path: Path) -> tuple[Any, str]:
    """Return the content of a YAML file, and its text; see :func:`load_yaml`."""
    try:
        with open(path, encoding="utf-8-sig") as handle:
            text = handle.read(MOST_BYTES + 1)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return load_yaml(text, path), text


def _check(root: yaml.Node, name: str | Path) -> None:
    """Count the nodes of a document, aliases written out, and look for keys stated twice."""
    import yaml

    count, open_nodes, checked = 0, [(root, 1)], set()
    while open_nodes:
        node, depth = open_nodes.pop()
        count += 1
        if count > MOST_NODES or depth > MOST_DEPTH:
            what = f"{MOST_NODES:,} values" if count > MOST_NODES else f"{MOST_DEPTH} levels"
            raise ConfigError(
                f"{name} (line {node.start_mark.line + 1}) stands for more than {what}, aliases "
                "written out, or for itself: no configuration does"
            )
        if isinstance(node, yaml.SequenceNode):
            open_nodes += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            open_nodes += [(item, depth + 1) for pair in node.value for item in pair]
            if id(node) not in checked:
                checked.add(id(node))
                _check_keys(node, name)


def _check_keys(node: yaml.MappingNode, name: str | Path) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key.value, str) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"{name} is not valid YAML: line {line} states '{key.value}' again, which "
                    f"line {seen[key.value]} has stated"
                )
            seen[key.value] = line

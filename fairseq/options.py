"""The command lines: which flags a command has, and how they become a configuration.

Parsing runs in two steps: the components named on the command line are looked up first, then their
flags are added. Plain ``--help`` names components from the catalogue and imports none of them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairseq import catalog, user_dir
from fairseq.config.arguments import (
    Parser,
    add_refused_flags,
    explicitly_given,
    gen_parser_from_dataclass,
)
from fairseq.config.build import build_config, flatten
from fairseq.config.resolve import resolve
from fairseq.config.schema import FairseqDataclass
from fairseq.config.sections import SECTIONS, FairseqConfig
from fairseq.errors import ConfigError, FairseqError, did_you_mean
from fairseq.registry import config_class

# flag -> (default, static names, module and name of the registry)
CHOICES: dict[str, tuple[str | None, Mapping[str, Any], str]] = {
    "task": (None, catalog.TASKS, "fairseq.tasks:TASK_REGISTRY"),
    "arch": (None, catalog.ARCHITECTURES, "fairseq.models:ARCH_CONFIG_REGISTRY"),
    "criterion": (
        "cross_entropy",
        catalog.CRITERIONS,
        "fairseq.criterions:CRITERION_REGISTRY",
    ),
    "optimizer": (None, catalog.OPTIMIZERS, "fairseq.optim:OPTIMIZER_REGISTRY"),
    "lr_scheduler": (
        "fixed",
        catalog.LR_SCHEDULERS,
        "fairseq.optim.lr_scheduler:LR_SCHEDULER_REGISTRY",
    ),
    "bpe": (None, catalog.BPES, "fairseq.data.encoders:BPE_REGISTRY"),
    "tokenizer": (None, catalog.TOKENIZERS, "fairseq.data.encoders:TOKENIZER_REGISTRY"),
}
TITLES = {
    "common": "logging, seed, device, precision",
    "common_eval": "evaluation",
    "distributed_training": "several processes",
    "dataset": "data and batches",
    "optimization": "optimization",
    "checkpoint": "checkpoints",
    "generation": "generation",
    "eval_lm": "language model evaluation",
    "interactive": "interactive",
    "ema": "moving average of the weights",
}
TRAINING = (
    "common",
    "distributed_training",
    "dataset",
    "optimization",
    "checkpoint",
    "ema",
)
VALIDATION = ("common", "distributed_training", "dataset", "common_eval")


def registry_of(flag: str) -> Any:
    """Return the registry behind ``--task``, ``--arch``, ...; imports its package."""
    module, _, name = CHOICES[flag][2].partition(":")
    return getattr(importlib.import_module(module), name)


def known_names(flag: str) -> list[str]:
    """Return the names that ``flag`` accepts: the catalogue's, and those of plug-ins."""
    names = set(CHOICES[flag][1])
    module, _, name = CHOICES[flag][2].partition(":")
    if module in sys.modules:  # a plug-in can have registered something only if it was imported
        names |= set(getattr(sys.modules[module], name, {}))
    return sorted(names)


def _name_reader(flag: str) -> Callable[[str], str]:
    def read(name: str) -> str:
        names = known_names(flag)
        if name not in names:
            raise argparse.ArgumentTypeError(
                f"invalid choice: {name!r}{did_you_mean(name, names)}; choose from "
                f"{', '.join(names)} (or name a --user-dir that registers it)"
            )
        return name

    return read


def get_parser(
    description: str,
    default_task: str | None = None,
    sections: Sequence[str] = ("common",),
    components: Sequence[str] = ("task",),
    epilog: str | None = None,
    argv: Sequence[str] | None = None,
) -> Parser:
    """Return a parser with shared sections and the flags that name components.

    Args:
        description: what the command does.
        default_task: task that is taken if none is named.
        sections: sections whose flags it has.
        components: flags that name components.
        epilog: examples, printed after the flags.
        argv: command line to look for ``--user-dir`` in.
    """
    user_dir.import_from_argv(argv)
    parser = Parser(description=description, epilog=epilog, add_help=False)
    group = parser.add_argument_group("components (name one to see its flags: --arch X --help)")
    for flag in components:
        default = default_task if flag == "task" else CHOICES[flag][0]
        names = ["--" + flag.replace("_", "-")] + (["-a"] if flag == "arch" else [])
        group.add_argument(
            *names,
            type=_name_reader(flag),
            default=default,
            metavar="NAME",
            help=", ".join(known_names(flag)) + (f" [{default}]" if default else ""),
        )
    for section in sections:
        group = parser.add_argument_group(TITLES[section])
        gen_parser_from_dataclass(group, SECTIONS[section]())
    add_refused_flags(parser)
    return parser


def add_component_flags(parser: argparse.ArgumentParser, flag: str, name: str) -> None:
    """Add the flags of one component to ``parser``."""
    is_model = flag == "arch"
    if is_model:
        from fairseq.models import model_class

        cls = model_class(name)
    else:
        cls = registry_of(flag)[name]
    group = parser.add_argument_group(
        f"{'model' if is_model else flag.replace('_', ' ')} {name}",
        argument_default=argparse.SUPPRESS if is_model else None,
    )
    dataclass = config_class(cls)
    if dataclass is not None:
        gen_parser_from_dataclass(group, dataclass(), delete_default=is_model)
    elif hasattr(cls, "add_args"):
        cls.add_args(group)


def add_named_components(parser: argparse.ArgumentParser, named: argparse.Namespace) -> None:
    """Add the flags of every component that ``named`` states."""
    for flag in CHOICES:
        name = getattr(named, flag, None)
        if name is not None and name in known_names(flag):
            add_component_flags(parser, flag, name)


def _add_help(parser: argparse.ArgumentParser) -> None:
    if "-h" not in parser._option_string_actions:
        parser.add_argument("-h", "--help", action="help", help="show this help and exit")


def config_class_of(section: str, name: str) -> Any:
    """Return the configuration class of a component, None if it has none."""
    if section == "model":
        from fairseq.models import model_class

        return config_class(model_class(name))
    return config_class(registry_of(section)[name])


def apply_arch(name: str, args: argparse.Namespace) -> None:
    """Run the preset of architecture ``name`` on the values given for the model."""
    from fairseq.models import ARCH_CONFIG_REGISTRY

    if name in ARCH_CONFIG_REGISTRY:
        ARCH_CONFIG_REGISTRY[name](args)


def make_config(
    given: Mapping[str, Any],
    sections: Mapping[str, Any] | None = None,
    strict: bool = True,
    settle: bool = True,
) -> FairseqConfig:
    """Put a configuration together and settle it; see :func:`fairseq.config.build.build_config`.

    Args:
        given: flat values, such as flags.
        sections: nested values, such as YAML.
        strict: unknown keys in ``sections`` are errors.
        settle: run :func:`fairseq.config.resolve.resolve`.
    """
    config = build_config(
        given,
        sections,
        config_class_of=config_class_of,
        apply_arch=apply_arch,
        strict=strict,
    )
    return resolve(config) if settle else config


def as_config(cfg: Any, strict: bool = False) -> FairseqConfig:
    """Return any kind of configuration (Namespace, DictConfig, dict, ours) as ours."""
    if isinstance(cfg, FairseqConfig):
        return resolve(cfg)
    if isinstance(cfg, argparse.Namespace):
        return make_config({k: v for k, v in vars(cfg).items() if v is not None})
    return make_config({}, cfg, strict=strict)


def parse_config(
    parser: Parser, argv: Sequence[str] | None = None, settle: bool = True
) -> FairseqConfig:
    """Parse a command line into a configuration.

    Flags win over the YAML file of ``--config``, which wins over the architecture's preset.

    Args:
        parser: made by :func:`get_parser`.
        argv: the arguments; those of the process if None.
        settle: see :func:`make_config`.

    Raises:
        SystemExit: with status 2 for a command line that cannot be understood.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    nested: dict[str, Any] = {}
    path = _config_file(parser, argv)
    if path is not None:
        from fairseq.config.yaml_reader import read_yaml

        nested = read_yaml(path)
    named = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])[0]
    help_only = "-h" in argv or "--help" in argv
    stated = _component_names(nested)
    for flag, name in stated.items():
        if f"--{flag.replace('_', '-')}" not in " ".join(argv):
            setattr(named, flag, name)
    if help_only:  # flags of components only where they are named: nothing else is imported
        words = {word.split("=")[0] for word in argv}
        for flag in CHOICES:
            if "--" + flag.replace("_", "-") not in words and not (
                flag == "arch" and "-a" in words
            ):
                setattr(named, flag, stated.get(flag))
    add_named_components(parser, named)
    if isinstance(nested.get("task"), Mapping) and nested["task"].get("data"):
        _make_optional(parser, "data")
    _add_help(parser)
    given = {**_defaults_of_names(named), **vars(explicitly_given(parser, argv))}
    for flag, name in stated.items():
        given.setdefault(flag, name)
    given.pop("config", None)
    given["no_seed_provided"] = "seed" not in given and "seed" not in (nested.get("common") or {})
    try:
        return make_config(given, nested, settle=settle)
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def _config_file(parser: argparse.ArgumentParser, argv: list[str]) -> str | None:
    if "--config" not in parser._option_string_actions:
        return None
    probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    probe.add_argument("--config")
    return probe.parse_known_args(argv)[0].config


def _component_names(nested: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for flag in CHOICES:
        section = nested.get("model" if flag == "arch" else flag)
        name = section.get("_name") if isinstance(section, Mapping) else section
        if name is not None:
            names[flag] = str(name)
    return names


def _defaults_of_names(named: argparse.Namespace) -> dict[str, Any]:
    return {flag: name for flag in CHOICES if (name := getattr(named, flag, None)) is not None}


def _make_optional(parser: argparse.ArgumentParser, dest: str) -> None:
    """Drop a positional whose value is known already; ``--data`` still overrides it."""
    for action in list(parser._actions):
        if action.dest == dest and not action.option_strings:
            parser._actions.remove(action)
            for group in parser._action_groups:
                if action in group._group_actions:
                    group._group_actions.remove(action)
            parser.add_argument("--data", help="folder with the binarized data")


# -- the original's functions ----------------------------------------------------------------------


def get_preprocessing_parser(default_task: str = "translation") -> Parser:
    """Return the parser of fairseq-preprocess."""
    from fairseq.config.preprocessing import PreprocessConfig

    parser = get_parser("Build a dictionary and binarize text.", components=())
    parser.add_argument("--task", default=default_task, help=argparse.SUPPRESS)
    gen_parser_from_dataclass(parser.add_argument_group("preprocessing"), PreprocessConfig())
    return parser


def get_training_parser(default_task: str = "translation", argv: Any = None) -> Parser:
    """Return the parser of fairseq-train."""
    parser = get_parser(
        "Train a model.",
        None if default_task == "translation" else default_task,
        TRAINING,
        tuple(CHOICES),
        argv=argv,
    )
    for flag in ("--pad", "--eos", "--unk"):  # the original has them from its default scorer
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--scoring", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def get_validation_parser(default_task: str | None = None, argv: Any = None) -> Parser:
    """Return the parser of fairseq-validate."""
    return get_parser(
        "Validate a model.",
        default_task,
        VALIDATION,
        ("task", "criterion", "bpe", "tokenizer"),
        argv=argv,
    )


def finish_validation_parser(parser: Parser, argv: Sequence[str] | None = None) -> None:
    """Add the flags of the task to override, the masked-LM task's if none is named."""
    words = list(sys.argv[1:] if argv is None else argv)
    named = parser.parse_known_args([a for a in words if a not in ("-h", "--help")])[0]
    if named.task is None and "-h" not in words and "--help" not in words:
        named.task = "masked_lm"
    named.criterion = None if "--criterion" not in " ".join(words) else named.criterion
    if named.task is not None:
        add_named_components(parser, named)
    else:
        parser.add_argument("data", help="folder with the binarized data")
    _add_help(parser)


def parse_args_and_arch(
    parser: Any,
    input_args: Sequence[str] | None = None,
    parse_known: bool = False,
    suppress_defaults: bool = False,
    modify_parser: Callable[[Any], None] | None = None,
) -> Any:
    """Parse as the original does: one flat Namespace, with the architecture's preset applied.

    Args:
        parser: made by one of the functions above.
        input_args: the arguments; those of the process if None.
        parse_known: return ``(namespace, unknown arguments)``.
        suppress_defaults: return only what was stated.
        modify_parser: called on the parser when all flags are there.
    """
    argv = list(sys.argv[1:] if input_args is None else input_args)
    user_dir.import_from_argv(argv)
    named = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])[0]
    add_named_components(parser, named)
    _add_help(parser)
    if modify_parser is not None:
        modify_parser(parser)
    if suppress_defaults:
        return explicitly_given(parser, argv)
    args, unknown = parser.parse_known_args(argv) if parse_known else (parser.parse_args(argv), [])
    given = {**_defaults_of_names(named), **vars(args)}
    if getattr(args, "arch", None) is not None:
        try:
            full = flatten(make_config({k: v for k, v in given.items() if v is not None}))
        except FairseqError as error:
            parser.error(str(error))
        args = argparse.Namespace(**{**vars(args), **vars(full)})
    return (args, unknown) if parse_known else args


def get_args(
    data: str, task: str = "masked_lm", arch: str | None = None, **overrides: Any
) -> argparse.Namespace:
    """Return the flat settings of a training run, for notebooks and tests."""
    parser = get_training_parser(task)
    argv = [str(data), "--task", task] + (["--arch", arch] if arch else [])
    args = parse_args_and_arch(parser, argv)
    for name, value in overrides.items():
        setattr(args, name, value)
    return args


def components_of(config: FairseqConfig) -> dict[str, FairseqDataclass]:
    """Return the component sections that are present."""
    sections = ("model", "task", "criterion", "optimizer", "lr_scheduler", "bpe", "tokenizer")
    return {name: getattr(config, name) for name in sections if getattr(config, name) is not None}

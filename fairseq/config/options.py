"""The command lines: which flags a command has, and how they become a configuration.

Parsing runs in two steps: the components named on the command line are looked up first, then their
flags are added. Plain ``--help`` names components from the catalogue and imports none of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fairseq.aliases import NAMES
from fairseq.catalog import ARCHITECTURES
from fairseq.config import plugins
from fairseq.config.build import flatten, settings_of
from fairseq.config.components import add_legacy_flags, class_of, known_names, make_config
from fairseq.config.flags import (
    Parser,
    add_old_flags,
    add_refused_flags,
    add_unread_flags,
    describe_choice,
    explicitly_given,
    gen_parser_from_dataclass,
    make_data_optional,
)
from fairseq.config.preprocess import PreprocessConfig
from fairseq.config.refused import REFUSED_WORDS, why_refused
from fairseq.config.registries import ARCH_CONFIG_REGISTRY, CHOICES
from fairseq.config.registry import config_class
from fairseq.config.schema import assign
from fairseq.config.sections import (
    COMPONENTS,
    DEFAULT_COMPONENTS,
    SECTIONS,
    TRAINING_ALONE,
    CommonConfig,
    FairseqConfig,
)
from fairseq.errors import ConfigError, FairseqError
from fairseq.lazy import lazy_names

TRAINING = ("common", "distributed_training", "dataset", "optimization", "checkpoint", "ema")
TEXT = ("bpe", "tokenizer")
HELP = ("-h", "--help")

# flags of the original's parsers that say nothing to the command; generation takes those of saving
UNREAD = ("--optimizer", "--lr-scheduler")
UNREAD_IN_PREPROCESSING = (*UNREAD, "--scoring", "--criterion", "--bpe", "--tokenizer")
UNREAD_IN_GENERATION = (
    "--save-dir --restore-file --continue-once --finetune-from-model --optimizer-overrides "
    "--save-interval --save-interval-updates --keep-interval-updates --keep-last-epochs "
    "--keep-interval-updates-pattern --keep-best-checkpoints --best-checkpoint-metric --patience"
).split()
UNREAD_SWITCHES = (
    "--reset-dataloader --reset-lr-scheduler --reset-meters --reset-optimizer --no-save "
    "--no-epoch-checkpoints --no-last-checkpoints --no-save-optimizer-state --save-async "
    "--maximize-best-checkpoint-metric --write-checkpoints-asynchronously "
    "--load-checkpoint-on-all-dp-ranks"
).split()

# settings of the sections they share that one evaluation reads and another, as the original's, not
IDLE_IN_VALIDATION = "num_shards shard_id gen_subset post_process quiet".split()
IDLE_IN_EVAL_LM = (
    "valid_subset combine_valid_subsets max_valid_steps max_tokens_valid fixed_validation_seed "
    "required_batch_size_multiple skip_invalid_size_inputs_valid_test quiet softmax_batch"
).split()
IDLE_IN_GENERATION = (
    "valid_subset combine_valid_subsets max_valid_steps max_tokens_valid batch_size_valid "
    "fixed_validation_seed required_batch_size_multiple num_workers data_buffer_size"
).split()

# the readers of values that the original re-exports here; they live in a module that needs torch
__getattr__, __dir__, _names = lazy_names(__name__, NAMES[__name__])


# -- parsers ---------------------------------------------------------------------------------------


def _name_reader(flag: str) -> Callable[[str], str]:
    def read(name: str) -> str:
        names = known_names(flag)
        if name not in names and name not in REFUSED_WORDS:
            raise argparse.ArgumentTypeError(describe_choice(name, names))
        return name

    return read


def refuse_words(parser: argparse.ArgumentParser, chosen: Mapping[str, str]) -> None:
    """Stop with the reason if a component is one of the original's that are refused.

    Parsers accept such names, as tests of old projects parse them for other reasons; commands call
    this, and whoever sets the component up is refused.
    """
    for flag, name in chosen.items():
        if name in REFUSED_WORDS and name not in known_names(flag):
            parser.error(f"argument --{flag.replace('_', '-')}: {why_refused(name)}")


def _add_section(parser: ArgumentParser, section: str, **defaults: Any) -> Any:
    kind = SECTIONS[section]
    title = (kind.__doc__ or section).rstrip(".")
    group = parser.add_argument_group(title[:1].lower() + title[1:])
    gen_parser_from_dataclass(group, kind(**defaults))
    if isinstance(parser, Parser):
        parser.sections += (section,)
    return group


def get_parser(
    desc: str,
    default_task: str | None = "translation",
    sections: Sequence[str] = ("common",),
    components: Sequence[str] = ("task", "criterion", "optimizer", "lr_scheduler", *TEXT),
    argv: Sequence[str] | None = None,
) -> Parser:
    """Return a parser with shared sections and the flags that name components.

    Args:
        desc: what the command does.
        default_task: task that is taken if none is named; one that does not exist counts as None.
        sections: sections whose flags it has.
        components: flags that name components.
        argv: command line to look for ``--user-dir`` in; that of the process if None.
    """
    plugins.import_from_argv(argv)
    parser = Parser(description=desc, add_help=False)
    parser.components = tuple(components)
    group = parser.add_argument_group("components (name one to see its flags: --arch X --help)")
    trains = "optimizer" in components  # otherwise defaults are the checkpoint's
    for flag in components:
        default = default_task if flag == "task" else DEFAULT_COMPONENTS.get(flag)
        default = default if default in known_names(flag) and (trains or flag == "task") else None
        names = ["--" + flag.replace("_", "-")] + (["-a"] if flag == "arch" else [])
        group.add_argument(
            *names,
            type=_name_reader(flag),
            default=default,
            metavar="NAME",
            help=_listed(flag) + (f" [{default}]" if default else ""),
        )
    for section in sections:
        _add_section(parser, section)
    return parser


def _listed(flag: str) -> str:
    """Return the names of a component for help; those of learned growth are told by their form."""
    names = known_names(flag)
    plain = [name for name in names if not (flag == "arch" and name.startswith("ligo_"))]
    more = ["and, to learn growth, ligo_NAME of roberta's and transformer_lm's"]
    return ", ".join(plain + (more if len(plain) < len(names) else []))


def add_component_flags(parser: argparse.ArgumentParser, flag: str, name: str) -> None:
    """Add the flags of one component to ``parser``.

    Raises:
        ConfigError: if a plug-in adds a flag that exists.
    """
    is_model = flag == "arch"
    cls = class_of(flag, name)
    group = parser.add_argument_group(
        f"{'model' if is_model else flag.replace('_', ' ')} {name}",
        argument_default=argparse.SUPPRESS if is_model else None,
    )
    dataclass = config_class(cls)
    if dataclass is not None:
        gen_parser_from_dataclass(group, _shown_defaults(dataclass, flag, name), is_model)
    else:
        try:
            add_legacy_flags(group, cls, is_model)
        except argparse.ArgumentError as error:
            raise ConfigError(f"{flag} '{name}': {error}; rename its flag") from error
    add_old_flags(parser, "model" if is_model else flag)


def _shown_defaults(dataclass: type, flag: str, name: str) -> Any:
    """Return a configuration with the defaults that help shows: the preset's, if it is ours."""
    config = dataclass()
    if flag == "arch" and name in ARCHITECTURES:
        preset = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[name](preset)
        assign(config, vars(preset))
    return config


def complete_parser(
    parser: Parser, argv: Sequence[str], names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Add the flags of the chosen components, those that are refused, and ``--help``.

    Under ``--help`` only what is named explicitly is looked up, so that plain help stays fast.

    Args:
        parser: made by :func:`get_parser`.
        argv: the arguments.
        names: components named elsewhere, such as in a recipe.

    Returns:
        the name of every component that is chosen.
    """
    probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in parser.components:
        probe.add_argument("--" + flag.replace("_", "-"), *(["-a"] if flag == "arch" else []))
    stated = {k: v for k, v in vars(probe.parse_known_args(argv)[0]).items() if v is not None}
    plain_help = not {*HELP}.isdisjoint(argv)
    defaults = {} if plain_help else {f: parser.get_default(f) for f in parser.components}
    chosen = {k: v for k, v in {**defaults, **(names or {}), **stated}.items() if v is not None}
    for flag, name in chosen.items():
        if name in known_names(flag):
            add_component_flags(parser, flag, name)
    has_task = chosen.get("task") in known_names("task")
    if "task" in parser.components and not has_task:  # tasks define it otherwise
        parser.add_argument("data", help="folder with the binarized data")
    if parser.data_is_optional or not has_task:
        make_data_optional(parser)
    add_refused_flags(parser)
    if "-h" not in parser._option_string_actions:
        parser.add_argument(*HELP, action="help", help="show this help and exit")
    return chosen


def parse_config(
    parser: Parser, argv: Sequence[str] | None = None, settle: bool = True
) -> FairseqConfig:
    """Parse a command line into a configuration.

    Flags win over the YAML files of ``--config``, which win over the architecture's preset.

    Args:
        parser: made by :func:`get_parser`.
        argv: the arguments; those of the process if None.
        settle: see :func:`make_config`.

    Raises:
        SystemExit: with status 2 for a command line or recipe that cannot be understood.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        plugins.import_from_argv(argv)
        recipe = _recipe(parser, argv)
        common, task = settings_of(recipe, "common"), recipe.get("task")
        plugins.refuse_named_code(recipe, "--user-dir" in {word.split("=")[0] for word in argv})
        chosen = complete_parser(parser, argv, component_names(recipe))
        refuse_words(parser, chosen)
        if isinstance(task, dict) and task.get("data") not in (None, "???"):
            make_data_optional(parser)
        flat = {**chosen, **vars(explicitly_given(parser, argv))}
        flat["no_seed_provided"] = "seed" not in flat and "seed" not in common
        return make_config(flat, recipe, settle=settle, reach=parser.sections)
    except FairseqError as error:
        parser.error(str(error))


def _recipe(parser: argparse.ArgumentParser, argv: list[str]) -> dict[str, Any]:
    probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    probe.add_argument("--config", action="append", default=[])
    paths = probe.parse_known_args(argv)[0].config
    if not paths or "--config" not in parser._option_string_actions:
        return {}
    from fairseq.config.yaml import read_yaml

    return read_yaml(*paths)


def component_names(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the components that a recipe states, by flag."""
    names = {}
    for section, flag in COMPONENTS.items():
        values = recipe.get(section)
        name = values.get("_name") or values.get(flag) if isinstance(values, dict) else values
        if name is not None:
            names[flag] = str(name)
    return names


# -- the original's functions ----------------------------------------------------------------------


def get_preprocessing_parser(default_task: str = "translation") -> Parser:
    """Return the parser of fairseq-preprocess."""
    parser = get_parser("Build a dictionary and binarize text.", components=())
    task = default_task if default_task in known_names("task") else None
    parser.add_argument("--task", default=task, help=argparse.SUPPRESS)
    _hide(parser, {field.name for field in dataclasses.fields(CommonConfig)})
    add_preprocess_args(parser)
    add_unread_flags(parser, *UNREAD_IN_PREPROCESSING)
    return parser


def get_training_parser(
    default_task: str | None = "translation", argv: Sequence[str] | None = None
) -> Parser:
    """Return the parser of fairseq-train."""
    parser = get_parser("Train a model.", default_task, TRAINING, tuple(CHOICES), argv)
    for flag in ("--pad", "--eos", "--unk"):  # the original has them from its default scorer
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--scoring", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def get_validation_parser(
    default_task: str | None = None, argv: Sequence[str] | None = None
) -> Parser:
    """Return the parser of fairseq-validate."""
    return _evaluation_parser("Validate a model.", default_task, argv=argv, idle=IDLE_IN_VALIDATION)


def get_eval_lm_parser(
    default_task: str | None = "language_modeling", argv: Sequence[str] | None = None
) -> Parser:
    """Return the parser of fairseq-eval-lm."""
    desc = "Evaluate a causal language model."
    return _evaluation_parser(desc, default_task, "eval_lm", argv=argv, idle=IDLE_IN_EVAL_LM)


def get_generation_parser(
    interactive: bool = False,
    default_task: str | None = "translation",
    argv: Sequence[str] | None = None,
) -> Parser:
    """Return the parser of fairseq-generate and, if ``interactive``, of fairseq-interactive."""
    sections = ("generation", "interactive") if interactive else ("generation",)
    parser = _evaluation_parser(
        "Generate text.", default_task, *sections, argv=argv, idle=IDLE_IN_GENERATION
    )
    add_unread_flags(parser, *UNREAD_IN_GENERATION, switches=UNREAD_SWITCHES)
    return parser


def get_interactive_generation_parser(default_task: str | None = "translation") -> Parser:
    """Return the parser of fairseq-interactive."""
    return get_generation_parser(True, default_task)


def _evaluation_parser(
    desc: str,
    default_task: str | None,
    *sections: str,
    argv: Sequence[str] | None,
    idle: Sequence[str],
) -> Parser:
    """Return the parser of a command that reads a checkpoint and runs in one process."""
    components = ("task", "criterion", *TEXT)
    parser = get_parser(desc, default_task, components=components, argv=argv)
    add_distributed_training_args(parser, default_world_size=1)
    for section in ("dataset", "common_eval", *sections):
        _add_section(parser, section)
    _hide(parser, {*TRAINING_ALONE, *idle})
    add_unread_flags(parser, *UNREAD, *(() if "generation" in sections else ("--scoring",)))
    return parser


def _hide(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Leave settings out of the help that a command accepts and never reads."""
    for action in parser._actions:
        if action.dest in names:
            action.help = argparse.SUPPRESS


def add_preprocess_args(parser: argparse.ArgumentParser) -> Any:
    """Add the flags of fairseq-preprocess."""
    group = parser.add_argument_group("preprocessing")
    gen_parser_from_dataclass(group, PreprocessConfig())
    return group


def add_dataset_args(
    parser: argparse.ArgumentParser, train: bool = False, gen: bool = False
) -> Any:
    """Add the flags of data and batches; ``train`` and ``gen`` are for old callers."""
    return _add_section(parser, "dataset")


def add_distributed_training_args(
    parser: argparse.ArgumentParser, default_world_size: int | None = None
) -> Any:
    """Add the flags of several processes."""
    world = {} if default_world_size is None else {"distributed_world_size": default_world_size}
    return _add_section(parser, "distributed_training", **world)


def add_model_args(parser: Parser) -> Any:
    """Add ``--arch``."""
    parser.components += ("arch",)
    group = parser.add_argument_group("model")
    names = known_names("arch")
    group.add_argument(
        "--arch", "-a", type=_name_reader("arch"), metavar="NAME", help=", ".join(names)
    )
    return group


add_optimization_args = functools.partial(_add_section, section="optimization")
add_checkpoint_args = functools.partial(_add_section, section="checkpoint")
add_common_eval_args = functools.partial(_add_section, section="common_eval")
add_eval_lm_args = functools.partial(_add_section, section="eval_lm")
add_generation_args = functools.partial(_add_section, section="generation")
add_interactive_args = functools.partial(_add_section, section="interactive")
add_ema_args = functools.partial(_add_section, section="ema")


def parse_args_and_arch(
    parser: Parser,
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
    plugins.import_from_argv(argv)
    chosen = complete_parser(parser, argv)
    if modify_parser is not None:
        modify_parser(parser)
    unknown: list[str] = []
    if suppress_defaults:
        args = explicitly_given(parser, argv, parse_known)
    else:
        args, unknown = parser.parse_known_args(argv)
        if unknown and not parse_known:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        if "arch" in chosen:
            args = _with_preset(parser, {**chosen, **vars(args)})
    return (args, unknown) if parse_known else args


def _with_preset(parser: Parser, flat: Mapping[str, object]) -> argparse.Namespace:
    refused = {
        flag: flat[flag]
        for flag in parser.components
        if flat.get(flag) in REFUSED_WORDS and flat[flag] not in known_names(flag)
    }
    known = {k: v for k, v in flat.items() if v is not None and k not in refused}
    try:
        full = flatten(make_config(known))
    except FairseqError as error:
        parser.error(str(error))
    return argparse.Namespace(**{**flat, **vars(full), **refused})


def get_args(
    data: str, task: str = "masked_lm", arch: str | None = None, **overrides: object
) -> argparse.Namespace:
    """Return the flat settings of a training run, for notebooks and tests."""
    parser = get_training_parser(task, argv=())
    argv = [str(data), "--task", task] + (["--arch", arch] if arch else [])
    args = parse_args_and_arch(parser, argv)
    for name, value in overrides.items():
        setattr(args, name, value)
    return args

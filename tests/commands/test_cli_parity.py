"""Every flag of the original that is in scope: name, type, default, alias; and every refused one.

The expected values stand in ``cli_tables``.
"""

from __future__ import annotations

import logging

import pytest
from cli_tables import (
    ALIASES,
    COMPONENTS,
    EVAL_LM,
    LM_SHAPES,
    PREPROCESS,
    REFUSED,
    SHAPES,
    SWITCHES,
    VALUES,
)

from fairseq import catalog, tasks
from fairseq.config import options
from fairseq.config.build import flatten
from fairseq.config.components import as_config
from fairseq.config.flags import explicitly_given
from fairseq.errors import RegistryError
from fairseq_cli import train, validate

NAMED = ["--arch", "roberta", "--task", "masked_lm", "--optimizer", "adam"]
NAMED += ["--lr-scheduler", "polynomial_decay", "--criterion", "masked_lm"]
WORDS = ["data-bin", *NAMED]
ROWS = [(flag, *row) for table in VALUES.values() for flag, row in table.items()]
OFF = [f"--{name}" for names in SWITCHES.values() for name in names.split()]
FLAGS_OF_OTHERS = [
    (kind, name, flag, row)
    for kind, names in COMPONENTS.items()
    for name, flags in names.items()
    for flag, row in flags.items()
]


def field(flag):
    return flag.lstrip("-").replace("-", "_")


def completed(parser, words):
    options.complete_parser(parser, words)
    return parser


@pytest.fixture(scope="module")
def parser():
    return completed(options.get_training_parser(argv=()), WORDS)


@pytest.fixture(scope="module")
def parser_of():
    made = {}

    def make(kind, name):
        if name not in options.known_names(kind):
            pytest.skip(f"there is no {kind} {name} (yet)")
        if (kind, name) not in made:
            words = [f"--{kind.replace('_', '-')}", name]
            made[kind, name] = completed(options.get_training_parser(argv=()), words)
        return made[kind, name]

    return make


def check_row(parser, words, flag, row):
    """Check default, value and type of one flag."""
    name = field(flag) if row is None or len(row) < 4 else row[3]
    if flag == "--wd":
        name = "weight_decay"
    default, text, value = (False, None, True) if row is None else row[:3]
    args = parser.parse_known_args(words)[0]
    assert getattr(args, name, None) == default
    given = explicitly_given(parser, [*words, flag, *([text] if text else [])], parse_known=True)
    assert getattr(given, name) == value
    assert type(getattr(given, name)) is type(value)


@pytest.mark.parametrize(("flag", "default", "text", "value"), ROWS)
def test_a_flag_has_the_originals_default_and_type(parser, flag, default, text, value):
    given = explicitly_given(parser, [*WORDS, flag, text])
    assert getattr(given, field(flag)) == value
    assert type(getattr(given, field(flag))) is type(value)
    args = parser.parse_args(WORDS)
    if flag in VALUES["model"]:  # so that presets can fill in what was not given
        assert not hasattr(args, field(flag))
    else:
        assert getattr(args, field(flag)) == default


@pytest.mark.parametrize("flag", OFF)
def test_a_switch_is_off_has_an_opposite_and_needs_no_value(parser, flag):
    name = field(flag)
    opposite = f"--{flag[5:]}" if flag.startswith("--no-") else f"--no-{flag[2:]}"
    assert getattr(parser.parse_args(WORDS), name, False) is False
    assert getattr(explicitly_given(parser, [*WORDS, flag]), name) is True
    assert getattr(explicitly_given(parser, [*WORDS, flag, opposite]), name) is False
    assert not [word for word in parser._option_string_actions if "no-no-" in word]


def test_every_flag_reaches_its_section():
    words = list(WORDS)
    for table in VALUES.values():
        words += [word for flag, (_, text, _) in table.items() for word in (flag, text)]
    words += OFF
    config = options.parse_config(options.get_training_parser(argv=()), words, settle=False)
    for section, table in VALUES.items():
        for flag, (_, _, value) in table.items():
            assert getattr(getattr(config, section), field(flag)) == value, flag
    for section, names in SWITCHES.items():
        for name in names.split():
            assert getattr(getattr(config, section), field(name)) is True, name
    # copies in other sections follow
    assert config.optimizer.lr == config.lr_scheduler.lr == [1e-3, 5e-4]
    assert config.task.seed == 5
    assert config.task.data == "data-bin"


def test_the_defaults_of_the_model_are_those_of_the_original():
    config = options.parse_config(options.get_training_parser(argv=()), WORDS, settle=False)
    for flag, (default, _, _) in VALUES["model"].items():
        assert getattr(config.model, field(flag)) == default, flag
    assert config.model.layernorm_embedding is True
    assert config.model.encoder_normalize_before is False


@pytest.mark.parametrize(("alias", "flag"), ALIASES.items())
def test_aliases(parser, alias, flag):
    actions = parser._option_string_actions
    assert actions[alias] is actions[flag]


@pytest.mark.parametrize(("kind", "name", "flag", "row"), FLAGS_OF_OTHERS)
def test_flags_of_other_components(parser_of, kind, name, flag, row):
    if kind == "arch":
        given = explicitly_given(
            parser_of(kind, name), [flag, *([row[1]] if row else [])], parse_known=True
        )
        assert getattr(given, field(flag)) == (row[2] if row else True)
    else:
        data = ["bin"] if kind == "task" else []
        check_row(parser_of(kind, name), [*data, f"--{kind.replace('_', '-')}", name], flag, row)


@pytest.mark.parametrize(("flag", "row"), PREPROCESS.items())
def test_flags_of_preprocess(flag, row):
    check_row(completed(options.get_preprocessing_parser(), []), [], flag, row)


@pytest.mark.parametrize(("flag", "row"), EVAL_LM.items())
def test_flags_of_eval_lm(flag, row):
    check_row(completed(options.get_eval_lm_parser(argv=()), []), ["data-bin"], flag, row)


def test_preprocess_takes_any_task_and_no_data_folder(capsys):
    words = ["--task", "masked_lm", "--only-source"]
    args = options.parse_args_and_arch(options.get_preprocessing_parser(), words)
    assert args.only_source is True and not hasattr(args, "tokens_per_sample")
    with pytest.raises(SystemExit):
        options.parse_args_and_arch(options.get_preprocessing_parser(), [*words, "folder"])
    assert "unrecognized arguments: folder" in capsys.readouterr().err


def test_remove_bpe_is_an_alias_with_an_optional_value():
    parser = completed(options.get_eval_lm_parser(argv=()), [])
    for words, expected in ((["--remove-bpe"], "subword_nmt"), (["--remove-bpe", "gpt2"], "gpt2")):
        assert parser.parse_known_args(["data-bin", *words])[0].post_process == expected


def test_adam_has_no_short_name_for_weight_decay(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args([*WORDS, "--wd", "0.1"])
    assert "unrecognized arguments: --wd" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "row"), REFUSED.items())
def test_refused_flags(parser, capsys, flag, row):
    if row is None:
        words = [flag]
        assert not hasattr(parser.parse_args(WORDS), field(flag))
    else:
        default, other = row
        parser.parse_args([*WORDS, flag, default])
        words = [flag, other]
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([*WORDS, *words])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert flag in message and "docs/migrating.md" in message
    assert "support" in message or "scope" in message or "no longer" in message


def test_values_that_mean_nothing_alone_are_accepted(parser):
    parser.parse_args([*WORDS, "--nprocs-per-node", "8", "--plasma-path", "/tmp/x"])
    parser.parse_args([*WORDS, "--pad", "1", "--eos", "2", "--unk", "3", "--scoring", "bleu"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ddp-backend", "slowmo"], "SlowMo"),
        (["--optimizer", "lamb"], "apex"),
        (["--optimizer", "cpu_adam"], "DeepSpeed"),
        (["--task", "translation"], "translation is out of scope"),
        (["--arch", "transformer_iwslt_de_en"], "translation is out of scope"),
    ],
)
def test_refused_words_give_the_reason(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        train.run(["data-bin", *words])
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert message in text and text.startswith("fairseq-train: error:")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--enocder-layers", "2"], "did you mean '--encoder-layers'?"),
        (["--max-lr", "1.0"], "highest rate of a cosine is --lr, its lowest --min-lr"),
        (["--max-tok", "100"], "unrecognized arguments"),
        (["--tokens", "100"], "unrecognized arguments"),
        (["--arch", "robreta"], "did you mean 'roberta'?"),
        (["--task", "maskedlm"], "did you mean 'masked_lm'?"),
        (["--optimizer", "adamm"], "did you mean 'adam'?"),
        (["--lr-scheduler", "polynomial"], "did you mean 'polynomial_decay'?"),
        (["--criterion", "mask_lm"], "did you mean 'masked_lm'?"),
        (["--sample-break-mode", "complet"], "did you mean 'complete'?"),
        (["--log-interval", "many"], "cannot read 'many' as int"),
        (["--update-freq", "1.5"], "not a whole number"),
        (["--lr", "fast"], "--lr"),
        (["--device", "gpu"], "choose from auto, cpu, cuda, mps"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        train.run([*WORDS, *words])
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert message in text and text.startswith("fairseq-train: error:")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fp16", "--bf16"], "--fp16 and --bf16 exclude each other"),
        (["--memory-efficient-fp16", "--amp"], "--fp16 and --amp exclude each other"),
        (["--cpu", "--device", "cuda"], "contradict"),
        (["--finetune-from-model", "a.pt", "--reset-optimizer"], "drop --reset-optimizer"),
        (["--finetune-from-model", "a.pt", "--restore-file", "b.pt"], "exclude each other"),
        (["--finetune-from-model", "a.pt", "--continue-once", "b.pt"], "exclude each other"),
        (["--head", "none"], "needs a vocabulary head"),
        (["--omit-mask"], "--mask-embedding zero"),
        (["--tokens-per-sample", "512", "--max-positions", "64"], "exceeds the 64 learned"),
    ],
)
def test_contradictions_stop_before_anything_is_read(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        train.run([*WORDS, "--batch-size", "8", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data-bin"], "--arch (a model); --task; --optimizer; a batch size"),
        (WORDS, "a batch size: --max-tokens or --batch-size"),
        (NAMED, "the following arguments are required: data"),
    ],
)
def test_what_is_missing_is_said(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        train.run(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_include_index_keeps_its_backward_meaning(parser, caplog):
    assert parser.parse_args(WORDS).include_index is True
    with caplog.at_level(logging.WARNING):
        assert parser.parse_args([*WORDS, "--include-index"]).include_index is False
    assert "switches include_index OFF" in caplog.text
    caplog.clear()
    assert parser.parse_args([*WORDS, "--no-include-index"]).include_index is False
    assert not caplog.text


def test_flags_on_by_default_that_read_straight(parser):
    """RoBERTa's --layernorm-embedding had to be given a value by presets; it reads straight."""
    words = [*WORDS, "--layernorm-embedding", "--no-clap-normalize", "--no-allow-tf32"]
    given = explicitly_given(parser, words)
    assert given.layernorm_embedding is True
    assert given.clap_normalize is False
    assert given.allow_tf32 is False
    given = explicitly_given(parser, [*WORDS, "--no-scale-embedding", "--no-layernorm-embedding"])
    assert given.scale_embedding is False
    assert given.layernorm_embedding is False


def test_the_forks_flags_mean_what_they_meant(caplog):
    words = [*WORDS, "--contrastive-pretraining", "--initial-beta", "3", "--zero-masking"]
    words += ["--omit-mask", "--mask-prob", "0.3", "--batch-size", "8"]
    config = options.parse_config(options.get_training_parser(argv=()), words)
    model = config.model
    assert (model.head, model.clap_initial_beta, model.mask_embedding) == ("clap", 3.0, "zero")
    assert (model.clap_normalize, config.task.omit_mask, config.task.mask_prob) == (True, True, 0.3)
    assert "self-masking" not in caplog.text
    words.append("--l2norm-embedding")
    config = options.parse_config(options.get_training_parser(argv=()), words)
    assert config.model.clap_normalize is False
    assert "OFF" in caplog.text


@pytest.mark.parametrize(("arch", "shape"), [*SHAPES.items(), *LM_SHAPES.items()])
def test_architectures(arch, shape):
    if arch not in catalog.ARCHITECTURES:
        pytest.skip(f"there is no arch {arch} (yet)")
    side = "encoder" if arch in SHAPES else "decoder"
    names = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
    model = options.make_config({"arch": arch}, settle=False).model
    assert tuple(getattr(model, f"{side}_{name}") for name in names) == shape
    if side == "decoder":
        assert model.decoder_normalize_before is (arch != "transformer_lm")
    else:
        prenorm = arch == "roberta_prenorm"
        assert model.encoder_normalize_before is prenorm
        assert model.layernorm_embedding is not prenorm
    changed = options.make_config({"arch": arch, f"{side}_layers": 3}, settle=False).model
    assert getattr(changed, f"{side}_layers") == 3


def test_parse_args_and_arch_returns_what_the_original_does():
    """A flat Namespace in which the preset has filled in what the flags left open."""
    parser = options.get_training_parser("masked_lm", argv=())
    words = ["bin", "--task", "masked_lm", "--arch", "roberta_prenorm", "--lr", "0.1"]
    args = options.parse_args_and_arch(parser, [*words, "--encoder-layers", "3"])
    assert (args.data, args.task, args.arch) == ("bin", "masked_lm", "roberta_prenorm")
    assert (args.encoder_layers, args.encoder_embed_dim) == (3, 768)
    assert args.encoder_normalize_before is True
    assert args.layernorm_embedding is False
    assert args.lr == [0.1]
    assert args.criterion == "cross_entropy"
    again = flatten(options.make_config(vars(args)))
    assert vars(again) == {name: getattr(args, name) for name in vars(again)}


def test_parse_args_and_arch_can_leave_out_defaults_and_return_unknown_words():
    words = ["bin", "--task", "masked_lm", "--mask-prob", "0.3"]
    args = options.parse_args_and_arch(
        options.get_training_parser(argv=()), words, suppress_defaults=True
    )
    assert vars(args) == {"data": "bin", "task": "masked_lm", "mask_prob": 0.3}
    args, unknown = options.parse_args_and_arch(
        options.get_training_parser(argv=()), [*words, "--mine", "1"], parse_known=True
    )
    assert args.mask_prob == 0.3 and unknown == ["--mine", "1"]

    def add_mine(parser):
        parser.add_argument("--mine", type=int)

    args = options.parse_args_and_arch(
        options.get_training_parser(argv=()), [*words, "--mine", "1"], modify_parser=add_mine
    )
    assert args.mine == 1


def test_get_args_serves_notebooks():
    args = options.get_args("bin", "masked_lm", "roberta_tiny", dropout=0.3)
    assert (args.data, args.encoder_layers, args.dropout) == ("bin", 4, 0.3)


def test_the_originals_functions_exist():
    import fairseq.utils

    for name in ("csv_str_list", "eval_bool", "eval_str_dict", "eval_str_list"):
        assert getattr(options, name) is getattr(fairseq.utils, name)
    parser = options.get_parser("My tool")
    assert parser.parse_args(["--task", "masked_lm"]).task == "masked_lm"
    for add in (
        options.add_dataset_args,
        options.add_distributed_training_args,
        options.add_optimization_args,
        options.add_checkpoint_args,
        options.add_common_eval_args,
        options.add_eval_lm_args,
        options.add_generation_args,
        options.add_interactive_args,
        options.add_ema_args,
        options.add_model_args,
        options.add_preprocess_args,
    ):
        add(parser)
    args = parser.parse_args(["--arch", "roberta", "--beam", "3", "--workers", "2"])
    assert (args.arch, args.beam, args.workers, args.input) == ("roberta", 3, 2, "-")
    interactive = options.get_interactive_generation_parser()
    assert interactive.parse_args(["--buffer-size", "4"]).buffer_size == 4


def test_a_refused_task_is_parsed_and_refused_when_it_is_set_up():
    """Tests of old projects parse such command lines for other reasons."""
    parser = options.get_training_parser()
    words = ["data-bin", "--task", "translation", "--arch", "transformer", "--lr", "0.5"]
    args = options.parse_args_and_arch(parser, words)
    assert (args.task, args.arch, args.lr) == ("translation", "transformer", [0.5])
    with pytest.raises(RegistryError, match="translation is out of scope"):
        tasks.setup_task(args)
    args = options.parse_args_and_arch(parser, ["data-bin", "--criterion", "ctc", "--arch=roberta"])
    assert (args.criterion, args.encoder_layers) == ("ctc", 12)
    with pytest.raises(RegistryError, match="speech is out of scope"):
        as_config(args)


@pytest.mark.parametrize("run", [train.run, validate.run])
def test_commands_refuse_it_at_once(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(["data-bin", "--task", "translation", "--source-lang", "en"])
    assert "argument --task: translation is not supported" in capsys.readouterr().err


def test_flags_without_effect_say_so():
    text = options.get_training_parser().format_help()
    for flag in ("--zero-sharding", "--required-seq-len-multiple", "--amp-batch-retries"):
        part = " ".join(text.rsplit(flag, 1)[1].split()).split(" --")[0]
        assert "no effect here" in part, flag
    assert "--profile" in text and "no effect" not in text.rsplit("--profile", 1)[1][:150]

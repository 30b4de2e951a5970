"""Plug-in folders and installed plug-ins: found, imported once, and clear errors otherwise."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import textwrap
import zipfile

import pytest

from fairseq import tasks
from fairseq.config import options, plugins
from fairseq.config.plugins import import_user_module
from fairseq.config.registries import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.config.settings import config_from_settings
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data.storage.load import load_indexed_dataset
from fairseq.errors import ConfigError, MissingFileError, RegistryError
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from fairseq_cli import preprocess, train

pytestmark = pytest.mark.reliability
ARCH = """
from fairseq.models import register_model_architecture

@register_model_architecture("roberta", "roberta_of_{name}")
def narrow(args):
    args.encoder_layers = getattr(args, "encoder_layers", 1)
"""
TASK = """
from fairseq.tasks import LegacyFairseqTask, register_task

@register_task("task_of_{name}")
class TaskOf{name}(LegacyFairseqTask):
    @staticmethod
    def add_args(parser):
        parser.add_argument("data")
        parser.add_argument("--volume", type=int, default=11)
        parser.add_argument("--wrap", action="store_true")
"""


@pytest.fixture(autouse=True)
def undo(monkeypatch):
    """Forget what the plug-ins of a test registered and imported."""
    registries = TASK_REGISTRY, MODEL_REGISTRY, ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
    for registry in (*registries, CRITERION_REGISTRY):
        monkeypatch.setattr(registry, "data", dict(registry.data))
    monkeypatch.setattr(tasks, "TASK_CLASS_NAMES", set(tasks.TASK_CLASS_NAMES))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("plug_"):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path):
    """Return a function that writes a package and returns its folder."""

    def write(name, **files):
        folder = tmp_path / name
        for path, text in {"__init__": "", **files}.items():
            file = folder / (path.replace("__in__", "/") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text).replace("{name}", name))
        return folder

    return write


def load(folder):
    return import_user_module(argparse.Namespace(user_dir=str(folder)))


def test_no_plug_in():
    assert import_user_module(argparse.Namespace()) is None
    assert import_user_module(argparse.Namespace(user_dir=None)) is None


def test_the_folder_and_its_tasks_and_models_are_imported(plugin):
    folder = plugin(
        "plug_a",
        __init__="LOADED = True",
        tasks__in__one=TASK,
        tasks__in___hidden="raise ZeroDivisionError",
        models__in__two=ARCH,
        models__in__deep__in____init__="DEEP = True",
    )
    module = load(folder)
    assert module.LOADED is True and module.__name__ == "plug_a"
    assert "task_of_plug_a" in TASK_REGISTRY and "roberta_of_plug_a" in ARCH_CONFIG_REGISTRY
    assert sys.modules["plug_a.models.deep"].DEEP is True
    assert sys.path[-1] == str(folder.parent)  # it hides nothing that is installed


def test_it_is_imported_once(plugin):
    folder = plugin("plug_once", __init__="import builtins\nbuiltins.plug_count += 1")
    import builtins

    builtins.plug_count = 0  # type: ignore[attr-defined]
    first = load(folder)
    paths = list(sys.path)
    assert load(folder) is first and load(f"{folder}/") is first
    assert builtins.plug_count == 1 and sys.path == paths


def test_a_folder_without_init_may_have_tasks(plugin):
    folder = plugin("plug_bare", models__in__two=ARCH)
    (folder / "__init__.py").unlink()
    load(folder)
    load(folder)
    assert "roberta_of_plug_bare" in ARCH_CONFIG_REGISTRY


def test_relative_to_the_working_directory_and_to_the_package(plugin, monkeypatch):
    folder = plugin("plug_here")
    monkeypatch.chdir(folder.parent)
    assert load("plug_here").__file__ == str(folder / "__init__.py")
    monkeypatch.chdir("/")
    found = plugins._locate("tasks")  # as in the original: also below the package itself
    assert found.parts[-2:] == ("fairseq", "tasks")


def test_missing(tmp_path):
    with pytest.raises(MissingFileError, match="no folder .*nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "plug_file.py").write_text("")
    with pytest.raises(MissingFileError, match="must be a Python package"):
        load(tmp_path / "plug_file.py")


def test_no_path():
    with pytest.raises(ConfigError, match="--user-dir is the path of a folder, not 5"):
        import_user_module(argparse.Namespace(user_dir=5))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("x = 1\nraise RuntimeError('bad day')", "RuntimeError: bad day"),
        ("x = 1\nimport not_installed_at_all", "ModuleNotFoundError"),
        ("x = 1\ndef broken(:", "SyntaxError"),
    ],
)
def test_broken_plug_ins_say_where_and_may_be_repaired(plugin, text, kind):
    folder = plugin("plug_broken", __init__=text)
    for _ in range(2):  # a failed import is not taken for a done one
        with pytest.raises(ConfigError) as caught:
            load(folder)
        assert kind in str(caught.value) and str(folder) in str(caught.value)
        assert "line 2" in str(caught.value)
    plugin("plug_broken", __init__="FIXED = True  # and of another length")
    assert load(folder).FIXED is True


def test_a_broken_task_file_is_found(plugin):
    folder = plugin("plug_half", tasks__in__one="1 / 0")
    with pytest.raises(ConfigError, match=r"ZeroDivisionError.*one\.py, line 1"):
        load(folder)


def test_a_name_taken_by_another_folder(plugin, tmp_path):
    load(plugin("plug_twin"))
    (tmp_path / "other" / "plug_twin").mkdir(parents=True)
    with pytest.raises(ConfigError, match="already imported from .*rename the folder"):
        load(tmp_path / "other" / "plug_twin")


@pytest.mark.parametrize("name", ["json", "code", "torch"])
def test_a_name_of_a_library(plugin, name):
    import torch  # noqa: F401

    path = list(sys.path)
    with pytest.raises(ConfigError, match="rename the folder"):
        load(plugin(name))
    assert sys.path == path


@pytest.mark.parametrize("name", ["my-plugin", "2nd"])
def test_a_name_that_is_no_identifier(plugin, name):
    with pytest.raises(ConfigError, match="rename the folder"):
        load(plugin(name))


def test_names_of_the_catalogue_and_of_other_plug_ins(plugin, caplog):
    text = """
    from fairseq.criterions import FairseqCriterion, register_criterion

    @register_criterion("masked_lm")
    class Mine(FairseqCriterion):
        pass
    """
    load(plugin("plug_over", __init__=text))
    assert CRITERION_REGISTRY["masked_lm"].__module__ == "plug_over"
    assert "plug_over:Mine replaces the criterion 'masked_lm' of fairseq" in caplog.text
    with pytest.raises(ConfigError, match=r"duplicate criterion \(masked_lm\).*line 4"):
        load(plugin("plug_dup", __init__=text))


def test_a_plug_in_on_the_command_line(plugin, capsys):
    folder = plugin("plug_cli", tasks__in__one=TASK, models__in__two=ARCH)
    words = [
        "--user-dir",
        str(folder),
        "--task",
        "task_of_plug_cli",
        "--arch",
        "roberta_of_plug_cli",
    ]
    parser = options.get_training_parser(argv=words)
    config = options.parse_config(parser, ["bin", *words, "--wrap", "--seed", "3"])
    task = config.task
    assert (task.data, task.volume, task.wrap, task.seed) == ("bin", 11, True, 3)
    assert (config.model.encoder_layers, config.model.encoder_embed_dim) == (1, 768)
    with pytest.raises(SystemExit):
        train.run([*words, "--help"])
    text = capsys.readouterr().out
    assert "--volume" in text and "roberta_of_plug_cli" in text


def test_a_plug_in_whose_flag_exists_is_told_so(plugin, capsys):
    folder = plugin("plug_clash", tasks__in__one=TASK.replace("--volume", "--seed"))
    words = ["bin", "--user-dir", str(folder), "--task", "task_of_plug_clash"]
    with pytest.raises(SystemExit):
        train.run(words)
    assert "conflicting option string: --seed; rename its flag" in capsys.readouterr().err


SCHEDULE = """
from dataclasses import dataclass
from fairseq.dataclass import FairseqDataclass, option
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler

@dataclass
class Config(FairseqDataclass):
    temperature: float = option(3.0, "of annealing", minimum=-5)  # fairseq-generate has one, too

@register_lr_scheduler("schedule_of_{name}", dataclass=Config)
class Schedule(FairseqLRScheduler):
    pass
"""


def test_a_flag_of_a_plug_in_is_not_that_of_another_command(plugin, capsys, monkeypatch):
    monkeypatch.setattr(LR_SCHEDULER_REGISTRY, "data", dict(LR_SCHEDULER_REGISTRY.data))
    folder = plugin("plug_warm", __init__=SCHEDULE)
    words = ["bin", "--task", "masked_lm", "--user-dir", str(folder), "--arch", "roberta"]
    words += ["--lr-scheduler", "schedule_of_plug_warm", "--temperature"]
    config = options.parse_config(options.get_training_parser(argv=words), [*words, "-2"])
    assert (config.lr_scheduler.temperature, config.generation.temperature) == (-2, 1)
    assert "generation" not in config.stated
    flat = {"data": "bin", "task": "masked_lm", "arch": "roberta", "user_dir": str(folder)}
    flat |= {"lr_scheduler": "schedule_of_plug_warm", "temperature": -3}
    config = config_from_settings(flat)
    assert (config.lr_scheduler.temperature, config.generation.temperature) == (-3, 1)
    with pytest.raises(SystemExit):
        options.parse_config(options.get_training_parser(argv=words), [*words, "-6"])
    assert "--temperature (lr_scheduler.temperature) must be at least -5" in capsys.readouterr().err


def test_a_plug_in_may_define_a_flag_that_is_refused_elsewhere(plugin):
    folder = plugin("plug_own", tasks__in__one=TASK.replace("--volume", "--lm-weight"))
    words = ["bin", "--user-dir", str(folder), "--task", "task_of_plug_own", "--lm-weight", "3"]
    parser = options.get_training_parser(argv=words)
    assert options.parse_args_and_arch(parser, words).lm_weight == 3


def test_a_plug_in_that_extends_ours_without_a_dataclass(plugin):
    text = """
    from fairseq.models import register_model, register_model_architecture
    from fairseq.models.roberta import RobertaModel, base_architecture
    from fairseq.tasks import register_task
    from fairseq.tasks.masked_lm import MaskedLMTask

    @register_model("plug_net")
    class PlugNet(RobertaModel):
        @staticmethod
        def add_args(parser):
            RobertaModel.add_args(parser)
            parser.add_argument("--shared", type=int, default=2)
            parser.add_argument("--compressed", type=int)

    @register_model_architecture("plug_net", "plug_net_a")
    def small(args):
        args.compressed = getattr(args, "compressed", 4)
        args.encoder_layers = getattr(args, "encoder_layers", 1)
        args.no_scale_embedding = getattr(args, "no_scale_embedding", False)
        base_architecture(args)

    @register_task("plug_task")
    class PlugTask(MaskedLMTask):
        @classmethod
        def add_args(cls, parser):
            parser.add_argument("data")
            parser.add_argument("--extra", default="e")
    """
    folder = plugin("plug_net_folder", __init__=text)
    words = ["bin", "--user-dir", str(folder), "--arch", "plug_net_a", "--task", "plug_task"]
    words += ["--encoder-embed-dim", "8", "--encoder-attention-heads", "2", "--mask-prob", "0.3"]
    config = options.parse_config(options.get_training_parser(argv=words), words)
    model, task = config.model, config.task
    assert (model.encoder_layers, model.encoder_embed_dim, model.encoder_ffn_embed_dim) == (
        1,
        8,
        3072,
    )
    assert (model.shared, model.compressed, model.data) == (2, 4, "bin")
    assert (task.data, task.extra, task.mask_prob, task.tokens_per_sample) == (
        "bin",
        "e",
        0.3,
        1024,
    )

    from fairseq.data import Dictionary
    from fairseq.models import build_model

    built = tasks.get_task("plug_task")(task, Dictionary())
    net = build_model(model, built)
    assert type(net).__name__ == "PlugNet"
    assert (net.config.encoder_layers, net.config.scale_embedding) == (1, True)


def knows(name, queue):
    queue.put(name in TASK_REGISTRY)


def load_and_tell(folder, name, queue):
    import_user_module(argparse.Namespace(user_dir=folder))
    queue.put(name in TASK_REGISTRY)


def test_spawned_processes_import_it_again(plugin):
    folder = plugin("plug_spawn", tasks__in__one=TASK)
    load(folder)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for target, args, expected in [
        (knows, ("task_of_plug_spawn", queue), False),
        (load_and_tell, (str(folder), "task_of_plug_spawn", queue), True),
    ]:
        process = context.Process(target=target, args=args)
        process.start()
        assert queue.get(timeout=120) is expected
        process.join()


class TestEntryPoints:
    @pytest.fixture
    def installed(self, tmp_path, monkeypatch):
        """Return a function that installs a distribution with an entry point."""
        monkeypatch.syspath_prepend(str(tmp_path))
        plugins.load_entry_points.cache_clear()

        def install(module, text):
            (tmp_path / f"{module}.py").write_text(text.replace("{name}", module))
            info = tmp_path / f"{module}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[fairseq.plugins]\nmine = {module}\n")

        yield install
        plugins.load_entry_points.cache_clear()

    def test_installed_plug_ins_are_imported(self, installed):
        installed("plug_entry", ARCH)
        options.get_training_parser(argv=())
        assert "roberta_of_plug_entry" in options.known_names("arch")

    def test_those_in_an_archive_are_imported(self, installed, tmp_path, monkeypatch):
        installed("plug_zipped", ARCH)
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for file in list(tmp_path.rglob("*zipped*")) + list(tmp_path.rglob("*-info/*")):
                archive.write(file, file.relative_to(tmp_path))
                if file.is_file():
                    file.unlink()
        monkeypatch.syspath_prepend(str(tmp_path / "all.zip"))
        options.get_training_parser(argv=())
        assert "roberta_of_plug_zipped" in options.known_names("arch")

    def test_a_broken_one_is_named_every_time(self, installed):
        installed("plug_wrong", "1 / 0")
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"plug-in 'mine' \(plug_wrong\).*Zero"):
                import_user_module(argparse.Namespace())


def test_what_lies_beside_the_folder_hides_nothing(plugin, tmp_path, monkeypatch):
    """A file called like an installed module, next to the plug-in, is not imported for it."""
    monkeypatch.delitem(sys.modules, "sortedcontainers", raising=False)
    (tmp_path / "sortedcontainers.py").write_text("raise SystemExit(99)")
    folder = plugin("plug_beside", __init__="import sortedcontainers\nFILE = sortedcontainers")
    assert not load(folder).FILE.__file__.startswith(str(tmp_path))


def test_the_name_of_an_installed_module(plugin, monkeypatch):
    monkeypatch.delitem(sys.modules, "sortedcontainers", raising=False)
    folder = plugin("sortedcontainers", __init__="raise SystemExit(99)")
    with pytest.raises(ConfigError, match="'sortedcontainers' is installed .*rename the folder"):
        load(folder)


def test_a_link_gives_the_package_its_name(plugin, tmp_path):
    plugin("plug-in-1.2", __init__="from plug_linked.part import HERE", part="HERE = __name__")
    (tmp_path / "plug_linked").symlink_to(tmp_path / "plug-in-1.2")
    module = load(tmp_path / "plug_linked")
    assert module.__name__ == "plug_linked" and module.HERE == "plug_linked.part"
    assert load(tmp_path / "plug_linked") is module


CHAT = """
from fairseq.data.storage.dictionary import Dictionary
from fairseq.tasks import FairseqTask, register_task

class Chat(Dictionary):
    def __init__(self, **settings):
        super().__init__(extra_special_symbols=["<user>", "<bot>"], **settings)

@register_task("chat_of_{name}")
class ChatTask(FairseqTask):
    @classmethod
    def load_dictionary(cls, filename):
        return Chat.load(filename)

    @classmethod
    def build_dictionary(cls, filenames, workers=1, threshold=-1, nwords=-1, padding_factor=8):
        dictionary = Chat()
        for filename in filenames:
            Dictionary.add_file_to_dictionary(filename, dictionary, str.split, workers)
        dictionary.finalize(threshold=threshold, nwords=nwords, padding_factor=padding_factor)
        return dictionary

@register_task("usual_of_{name}")
class UsualTask(FairseqTask):
    pass
"""


@pytest.mark.parametrize("given", [False, True])
def test_data_are_binarized_with_the_dictionary_of_the_task(plugin, tmp_path, given):
    folder = plugin("plug_chat", __init__=CHAT)
    (tmp_path / "text").write_text("a a a b <bot> b c\n")
    (tmp_path / "known.txt").write_text("a 3\nb 2\nc 1\n")
    words = ["--only-source", "--trainpref", str(tmp_path / "text"), "--user-dir", str(folder)]
    words += ["--srcdict", str(tmp_path / "known.txt")] if given else []
    ids = {}
    for name in ("chat_of_plug_chat", "usual_of_plug_chat"):
        preprocess.run([*words, "--task", name, "--destdir", str(tmp_path / name)])
        task = TASK_REGISTRY[name]
        dictionary = task.load_dictionary(str(tmp_path / name / "dict.txt"))
        data = load_indexed_dataset(str(tmp_path / name / "train"), dictionary)
        assert dictionary.string(data[0]).split()[:4] == ["a", "a", "a", "b"]
        ids[name] = data[0].tolist()
    assert ids["chat_of_plug_chat"] == [6, 6, 6, 7, 5, 7, 8, 2]
    assert ids["usual_of_plug_chat"][:4] == [4, 4, 4, 5]
    # called with parsed flags, as the original's scripts do, and with its default
    parser = options.get_preprocessing_parser()
    for name, first in (("chat_of_plug_chat", 6), ("translation", 4)):
        place = ["--task", name, "--destdir", str(tmp_path / "main" / name)]
        preprocess.main(parser.parse_args([*words, *place]))
        data = load_indexed_dataset(str(tmp_path / "main" / name / "train"))
        assert data[0][0] == first
    with pytest.raises(RegistryError, match="did you mean 'chat_of_plug_chat'"):
        preprocess.run([*words, "--task", "chat_of_plug_chart", "--destdir", str(tmp_path / "n")])

"""Registries: names without imports, decorators, builders, and what they refuse."""

from __future__ import annotations

import argparse
import ast
import copy
import subprocess
import sys
from dataclasses import dataclass

import pytest
from documents import ROOT
from omegaconf import OmegaConf

import fairseq
from fairseq import catalog, criterions, models, tasks
from fairseq.config.registries import ARCH_CONFIG_REGISTRY, MODEL_REGISTRY
from fairseq.config.registry import (
    REGISTRIES,
    Registry,
    config_class,
    load_attribute,
    setup_registry,
)
from fairseq.config.schema import II, FairseqDataclass
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY, FairseqCriterion
from fairseq.data.encoders import BPE_REGISTRY, TOKENIZER_REGISTRY
from fairseq.errors import RegistryError
from fairseq.models import BaseFairseqModel
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY
from fairseq.tasks import TASK_REGISTRY, FairseqTask, register_task

TABLES = [
    ("task", catalog.TASKS, TASK_REGISTRY),
    ("model", catalog.MODELS, MODEL_REGISTRY),
    ("criterion", catalog.CRITERIONS, CRITERION_REGISTRY),
    ("optimizer", catalog.OPTIMIZERS, OPTIMIZER_REGISTRY),
    ("lr_scheduler", catalog.LR_SCHEDULERS, LR_SCHEDULER_REGISTRY),
    ("bpe", catalog.BPES, BPE_REGISTRY),
    ("tokenizer", catalog.TOKENIZERS, TOKENIZER_REGISTRY),
]
ROWS = [
    (kind, name, target, registry)
    for kind, table, registry in TABLES
    for name, target in table.items()
]


@dataclass
class ToyConfig(FairseqDataclass):
    size: int = 3
    seed: int = II("common.seed")


class Base:
    def __init__(self, cfg, *extra):
        self.cfg, self.extra = cfg, extra


@pytest.fixture
def toys():
    """A fresh registry: (build, register, registry, dataclasses)."""
    yield setup_registry("--toy-thing", Base, default="car", required=True)
    del REGISTRIES["toy_thing"]


@pytest.fixture
def undo(monkeypatch):
    """Forget what a test registers in the project's own registries."""
    for registry in (TASK_REGISTRY, MODEL_REGISTRY, CRITERION_REGISTRY, ARCH_CONFIG_REGISTRY):
        monkeypatch.setattr(registry, "data", dict(registry.data))
    monkeypatch.setattr(models.ARCH_MODEL_REGISTRY, "data", dict(models.ARCH_MODEL_REGISTRY.data))
    kept = []
    for module, name in [
        (models, "ARCH_MODEL_NAME_REGISTRY"),
        (models, "ARCH_MODEL_INV_REGISTRY"),
        (tasks, "TASK_CLASS_NAMES"),
    ]:
        value = getattr(module, name)
        kept.append((value, copy.deepcopy(value)))
    yield
    for value, before in kept:  # in place: several modules hold the same table
        value.clear()
        value.update(before)


@pytest.mark.parametrize(("kind", "name", "target", "registry"), ROWS)
def test_every_row_of_the_catalogue_leads_to_a_documented_class(kind, name, target, registry):
    cls = registry[name]
    assert cls is load_attribute(target)
    assert (cls.__doc__ or "").strip()
    dataclass = config_class(cls)
    if dataclass is not None:
        assert issubclass(dataclass, FairseqDataclass)
        assert dataclass() is not None
    assert registry[name] is cls


KINDS = {
    "register_task": catalog.TASKS,
    "register_model": catalog.MODELS,
    "register_model_architecture": catalog.ARCHITECTURES,
    "register_criterion": catalog.CRITERIONS,
    "register_optimizer": catalog.OPTIMIZERS,
    "register_lr_scheduler": catalog.LR_SCHEDULERS,
    "register_bpe": catalog.BPES,
    "register_tokenizer": catalog.TOKENIZERS,
}


def registrations():
    """Yield ``(file, kind, name)`` of what the package's own files register."""
    for file in sorted(ROOT.glob("fairseq/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                kind = node.func.id
                words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                if kind in KINDS and words:  # an architecture's own name is its second word
                    yield file.relative_to(ROOT), kind, words[-1]


def test_what_a_file_registers_has_a_row_in_the_catalogue():
    found = list(registrations())
    assert len(found) > 40
    assert [each for each in found if each[2] not in KINDS[each[1]]] == []


@pytest.mark.parametrize("arch", catalog.ARCHITECTURES)
def test_every_architecture_leads_to_a_preset_and_a_model(arch):
    model, target = catalog.ARCHITECTURES[arch]
    assert ARCH_CONFIG_REGISTRY[arch] is load_attribute(target)
    assert models.ARCH_MODEL_REGISTRY[arch] is MODEL_REGISTRY[model]
    assert models.ARCH_MODEL_NAME_REGISTRY[arch] == model
    assert models.ARCH_MODEL_INV_REGISTRY[model].count(arch) == 1
    ARCH_CONFIG_REGISTRY[arch](argparse.Namespace())


def test_names_are_known_without_importing_what_is_behind_them():
    code = (
        "import sys\n"
        "from fairseq.criterions import CRITERION_REGISTRY as c\n"
        "from fairseq.tasks import TASK_REGISTRY as t\n"
        "from fairseq.models import MODEL_REGISTRY as m, ARCH_MODEL_REGISTRY as a\n"
        "assert 'masked_lm' in c and 'masked_lm' in t and 'roberta' in m and 'roberta' in a\n"
        "assert len(list(c)) == len(c) and 'nothing' not in m\n"
        "assert 'torch' not in sys.modules and 'fairseq.tasks.masked_lm' not in sys.modules\n"
        "c['masked_lm']\n"
        "assert 'fairseq.criterions.masked_lm' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(RegistryError) as caught:
        OPTIMIZER_REGISTRY["adamm"]
    assert str(caught.value).startswith(
        "unknown optimizer 'adamm' (did you mean 'adam'?). Is a --user-dir missing? Known: "
    )
    assert "--user-dir" in str(caught.value)
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, ValueError)
    assert OPTIMIZER_REGISTRY.get("adamm") is None


def test_a_registry_is_a_mapping():
    registry = Registry("thing", {"a": "json:loads"})
    registry["b"] = 2
    assert dict(registry.items())["b"] == 2 and set(registry) == {"a", "b"}
    del registry["b"]
    assert len(registry) == 1 and registry["a"]("[1]") == [1]


class TestSetupRegistry:
    def test_entry(self, toys):
        _, _, registry, dataclasses = toys
        assert REGISTRIES["toy_thing"] == {
            "registry": registry,
            "default": "car",
            "dataclass_registry": dataclasses,
        }
        with pytest.raises(RegistryError, match="there is a registry 'toy_thing' already"):
            setup_registry("--toy-thing")

    def test_register(self, toys):
        _, register, registry, dataclasses = toys

        @register("car", dataclass=ToyConfig)
        class Car(Base):
            pass

        @register("boat")
        class Boat(Base):
            pass

        assert registry["car"] is Car and getattr(Car, "__dataclass") is ToyConfig
        assert dict(dataclasses) == {"car": ToyConfig} and len(dataclasses) == 1
        assert "car" in dataclasses and "boat" not in dataclasses
        with pytest.raises(KeyError):
            dataclasses["boat"]
        with pytest.raises(ValueError, match=r"Cannot register duplicate toy_thing \(car\)"):
            register("car")(Boat)
        with pytest.raises(ValueError, match="int must extend Base"):
            register("int")(int)
        with pytest.raises(ValueError, match="int must extend FairseqDataclass"):
            register("x", dataclass=int)(Boat)
        register("ship")(type("Boat", (Base,), {}))  # the same class name is no problem

    def test_a_subclass_does_not_inherit_the_configuration(self, toys):
        _, register, registry, _ = toys
        car = register("car", dataclass=ToyConfig)(type("Car", (Base,), {}))
        register("truck")(type("Truck", (car,), {}))
        assert config_class(registry["truck"]) is None

    @pytest.mark.parametrize(
        "cfg",
        [
            {"_name": "car", "size": "5", "unknown": 1},
            {"toy_thing": "car", "size": 5},
            OmegaConf.create({"_name": "car", "size": 5, "unknown": 1}),
            argparse.Namespace(toy_thing="car", size=5, lr=[1]),
            argparse.Namespace(_name="car", size=5),
            ToyConfig(_name="car", size=5),
        ],
    )
    def test_build_from_any_kind_of_configuration(self, toys, cfg):
        build, register, _, _ = toys
        cls = register("car", dataclass=ToyConfig)(type("Car", (Base,), {}))
        made = build(cfg, 1, 2)
        assert type(made) is cls and made.extra == (1, 2)
        assert isinstance(made.cfg, ToyConfig) and made.cfg.size == 5

    def test_build_from_a_name(self, toys):
        build, register, _, _ = toys
        register("car", dataclass=ToyConfig)(type("Car", (Base,), {}))
        register("boat")(type("Boat", (Base,), {}))
        assert build("car").cfg.size == 3
        assert build("boat") is not None
        args = argparse.Namespace(toy_thing="boat", mast=2)
        assert build(args).cfg is args

    def test_required(self, toys):
        build, register, _, _ = toys
        register("car")(type("Car", (Base,), {}))
        for nothing in (None, argparse.Namespace(), ToyConfig()):
            with pytest.raises(ValueError, match="toy_thing is required!"):
                build(nothing)
        with pytest.raises(RegistryError, match="unknown toy_thing 'cat'"):
            build("cat")

    def test_a_class_may_build_itself(self, toys):
        build, register, _, _ = toys

        @register("car", dataclass=ToyConfig)
        class Car(Base):
            @classmethod
            def build_toy_thing(cls, cfg, *extra):
                return ("built", cfg.size, *extra)

        assert build("car", 7) == ("built", 3, 7)

    def test_the_project_s_registries(self):
        import fairseq.data.encoders
        import fairseq.optim.lr_scheduler  # noqa: F401

        defaults = {name: row["default"] for name, row in REGISTRIES.items()}
        assert defaults["criterion"] == "cross_entropy" and defaults["lr_scheduler"] == "fixed"
        assert defaults["optimizer"] is defaults["bpe"] is defaults["tokenizer"] is None


@pytest.mark.usefixtures("undo")
class TestTasks:
    def test_register_and_set_up(self):
        @register_task("toy", dataclass=ToyConfig)
        class ToyTask(FairseqTask):
            """Nothing."""

        assert tasks.get_task("toy") is ToyTask
        assert tasks.TASK_DATACLASS_REGISTRY["toy"] is ToyConfig
        assert "ToyTask" in tasks.TASK_CLASS_NAMES
        for cfg in (
            ToyConfig(_name="toy", size=4),
            argparse.Namespace(task="toy", size=4, seed=1),
            {"_name": "toy", "size": 4},
        ):
            task = tasks.setup_task(cfg)
            assert (type(task), task.cfg.size, task.cfg.seed) == (ToyTask, 4, 1)
        with pytest.raises(ValueError, match="names no task"):
            tasks.setup_task(argparse.Namespace())

    def test_of_two_plug_ins_the_first_keeps_its_name(self):
        first = register_task("toy")(type("First", (FairseqTask,), {}))
        second = register_task("toy")(type("Second", (FairseqTask,), {}))
        assert first is second is TASK_REGISTRY["toy"]

    def test_class_names_are_unique(self):
        with pytest.raises(ValueError, match=r"duplicate class name \(MaskedLMTask\)"):
            register_task("other")(type("MaskedLMTask", (FairseqTask,), {}))

    def test_wrong_base(self):
        with pytest.raises(ValueError, match="must extend FairseqTask"):
            register_task("wrong")(type("Wrong", (), {}))


@pytest.mark.usefixtures("undo")
class TestModels:
    def test_a_dataclass_model_is_an_architecture_too(self):
        @models.register_model("toy_net", dataclass=ToyConfig)
        class Net(BaseFairseqModel):
            """Nothing."""

            @classmethod
            def build_model(cls, args, task):
                net = cls()
                net.cfg = args
                return net

        @models.register_model_architecture("toy_net", "toy_big")
        @models.register_model_architecture("toy_net", "toy_large")
        def big(args):
            args.size = getattr(args, "size", 9)

        assert models.ARCH_MODEL_REGISTRY["toy_net"] is models.ARCH_MODEL_REGISTRY["toy_big"] is Net
        assert models.ARCH_MODEL_INV_REGISTRY["toy_net"] == ["toy_net", "toy_large", "toy_big"]
        for cfg, size in [
            (argparse.Namespace(arch="toy_big"), 9),
            (argparse.Namespace(arch="toy_large", size=2), 2),
            ({"_name": "toy_big"}, 9),
            (OmegaConf.create({"_name": "toy_net"}), 3),
            (ToyConfig(_name="toy_big"), 3),  # complete: no preset is applied
        ]:
            built = models.build_model(cfg, None).cfg
            assert isinstance(built, ToyConfig) and (built.size, built.seed) == (size, 1)

    def test_a_model_without_dataclass_gets_the_namespace(self):
        @models.register_model("toy_old")
        class Old(BaseFairseqModel):
            """Nothing."""

            @classmethod
            def build_model(cls, args, task):
                net = cls()
                net.args = args
                return net

        assert "toy_old" not in ARCH_CONFIG_REGISTRY
        models.register_model_architecture("toy_old", "toy_old_a")(
            lambda args: setattr(args, "n", 2)
        )
        assert models.build_model(argparse.Namespace(arch="toy_old_a"), None).args.n == 2

    def test_refusals(self):
        register = models.register_model_architecture
        with pytest.raises(ValueError, match=r"unknown model type \(nothing\)"):
            register("nothing", "x")(print)
        register("roberta", "roberta_mine")(lambda args: None)
        with pytest.raises(ValueError, match=r"duplicate model architecture \(roberta_mine\)"):
            register("roberta", "roberta_mine")(lambda args: None)
        with pytest.raises(ValueError, match="must be callable"):
            register("roberta", "x")(3)
        with pytest.raises(ValueError, match="must extend BaseFairseqModel"):
            models.register_model("wrong")(type("Wrong", (), {}))
        with pytest.raises(ValueError, match="names no architecture"):
            models.build_model(argparse.Namespace(), None)
        with pytest.raises(RegistryError, match=r"unknown architecture .*did you mean 'roberta"):
            models.build_model(argparse.Namespace(arch="roberta_bsae"), None)


@pytest.mark.usefixtures("undo")
class TestCriterions:
    def test_register_and_build(self):
        @criterions.register_criterion("toy_loss", dataclass=ToyConfig)
        class ToyLoss(FairseqCriterion):
            """Nothing."""

            def __init__(self, task, size, seed):
                super().__init__(task)
                self.size, self.seed = size, seed

        task = argparse.Namespace()
        for cfg in (
            ToyConfig(_name="toy_loss"),
            argparse.Namespace(criterion="toy_loss"),
            "toy_loss",
        ):
            loss = criterions.build_criterion(cfg, task)
            assert (loss.task, loss.size, loss.seed) == (task, 3, 1)
        assert CRITERION_DATACLASS_REGISTRY["toy_loss"] is ToyConfig

    def test_refusals(self):
        with pytest.raises(ValueError, match="must extend FairseqCriterion"):
            criterions.register_criterion("wrong")(type("Wrong", (), {}))
        criterions.register_criterion("mine")(type("Mine", (FairseqCriterion,), {}))
        with pytest.raises(ValueError, match=r"Cannot register duplicate criterion \(mine\)"):
            criterions.register_criterion("mine")(type("Mine", (FairseqCriterion,), {}))


@pytest.mark.usefixtures("undo")
class TestNamesOfOurs:
    """A plug-in may take a name of the catalogue over, and is told so."""

    @pytest.mark.parametrize("imported", [False, True])
    def test_classes(self, imported, caplog):
        for register, registry, table, base in (
            (register_task, TASK_REGISTRY, catalog.TASKS, FairseqTask),
            (
                criterions.register_criterion,
                CRITERION_REGISTRY,
                catalog.CRITERIONS,
                FairseqCriterion,
            ),
        ):
            ours = load_attribute(table["masked_lm"])
            registry["masked_lm"] = ours if imported else table["masked_lm"]
            mine = register("masked_lm")(type("Mine", (base,), {"__module__": "plug"}))
            assert registry["masked_lm"] is mine and mine.__name__ == "Mine"
            assert f"plug:Mine replaces the {registry.kind} 'masked_lm'" in caplog.text
            # the module of ours is imported afterwards
            assert register("masked_lm", config_class(ours))(ours) is ours
            assert registry["masked_lm"] is mine and config_class(ours) is not None
            caplog.clear()

    def test_presets_and_models(self, caplog):
        ours = load_attribute(catalog.ARCHITECTURES["roberta_small"][1])
        mine = type("Mine", (BaseFairseqModel,), {"__doc__": "x"})
        models.register_model("toy_net", dataclass=ToyConfig)(mine)
        preset = models.register_model_architecture("toy_net", "roberta_small")(lambda args: None)
        assert "the architecture 'roberta_small' of fairseq" in caplog.text
        models.register_model_architecture("roberta", "roberta_small")(ours)
        assert ARCH_CONFIG_REGISTRY["roberta_small"] is preset
        assert models.ARCH_MODEL_REGISTRY["roberta_small"] is mine
        assert models.ARCH_MODEL_INV_REGISTRY["toy_net"] == ["toy_net", "roberta_small"]
        assert "roberta_small" not in models.ARCH_MODEL_INV_REGISTRY["roberta"]
        another = type("Another", (BaseFairseqModel,), {"__doc__": "x"})
        assert models.register_model("roberta")(another) is another
        assert models.ARCH_MODEL_REGISTRY["roberta"] is another


def test_lazy_names_of_the_package():
    for name in fairseq._names:
        found = getattr(fairseq, name)  # a module, or the function and the type of the Python door
        assert getattr(found, "__module__", found.__name__).startswith("fairseq.")
    assert "tasks" in dir(fairseq)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fairseq.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("distributed_utils", "fairseq.distributed.utils"),
        ("meters", "fairseq.logging.meters"),
        ("metrics", "fairseq.logging.metrics"),
        ("progress_bar", "fairseq.logging.progress_bar"),
    ],
)
def test_old_module_names(old, new):
    code = (
        "import importlib, sys, fairseq\n"
        f"lazy = fairseq.{old}\n"
        f"from fairseq import {old} as direct\n"
        f"module = importlib.import_module('fairseq.{old}')\n"
        f"assert lazy is direct is module is importlib.import_module('{new}'), (lazy, module)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "package",
    ["fairseq.criterions", "fairseq.data", "fairseq.distributed", "fairseq.models"]
    + ["fairseq.models.roberta", "fairseq.modules", "fairseq.optim", "fairseq.tasks"],
)
def test_every_public_name_of_a_package_exists(package):
    module = __import__(package, fromlist=["x"])
    for name in {*module.__all__, *module.__dir__()}:
        assert getattr(module, name, "absent") != "absent", name

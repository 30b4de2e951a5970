"""Reading checkpoints: nothing runs, damage is noticed, old files come out as plain values."""

from __future__ import annotations

import argparse
import base64
import collections
import dataclasses
import enum
import io
import os
import pickle
import random
import struct
import sys
import tarfile
import types
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import faults, run

from fairseq.errors import CheckpointError, MissingFileError
from fairseq.files.safe_load import make_plain, safe_load, storable, verify_zip

# -- what is hostile -------------------------------------------------------------------------------


class Call:
    """Pickles as a call of ``function``, which need not be importable here."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def opcodes(*parts: bytes | str) -> bytes:
    return b"\x80\x02" + b"".join(p.encode() if isinstance(p, str) else p for p in parts) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named_call(module: str, name: str, *arguments: str) -> bytes:
    """Return a pickle that calls ``module.name`` with texts."""
    return opcodes(f"c{module}\n{name}\n(", *map(text, arguments), b"tR")


def payloads(mark: Path) -> dict[str, bytes]:
    """Return pickles that would create ``mark``, or do other harm, if they were executed."""
    touch = f"open({str(mark)!r}, 'w')"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    shell = f"touch {mark}"
    script = mark.with_suffix(".py")
    script.write_text(code)
    simple: dict[str, tuple[str, str, tuple[str, ...]]] = {
        "eval": ("builtins", "eval", (touch,)),
        "exec": ("builtins", "exec", (code,)),
        "open": ("builtins", "open", (str(mark), "w")),
        "old name of eval": ("__builtin__", "eval", (touch,)),
        "old name of execfile": ("__builtin__", "execfile", (str(script),)),
        "import": ("builtins", "__import__", ("this",)),
        "compile": ("builtins", "compile", (code, "x", "exec")),
        "getattr": ("builtins", "getattr", ("os", "system")),
        "os.system": ("os", "system", (shell,)),
        "posix.system": ("posix", "system", (shell,)),
        "nt.system": ("nt", "system", (shell,)),
        "os.popen": ("os", "popen", (shell,)),
        "os.remove": ("os", "remove", (str(script),)),
        "os.rename": ("os", "rename", (str(script), str(mark))),
        "subprocess.Popen": ("subprocess", "Popen", (shell,)),
        "subprocess.getoutput": ("subprocess", "getoutput", (shell,)),
        "subprocess.check_output": ("subprocess", "check_output", (shell,)),
        "pty.spawn": ("pty", "spawn", (shell,)),
        "runpy.run_path": ("runpy", "run_path", (str(script),)),
        "importlib": ("importlib", "import_module", ("this",)),
        "pathlib": ("pathlib", "Path.touch", (str(mark),)),
        "pathlib object": ("pathlib", "PosixPath", (str(mark),)),
        "shutil.rmtree": ("shutil", "rmtree", (str(mark.parent),)),
        "shutil.copy": ("shutil", "copy", (str(script), str(mark))),
        "timeit": ("timeit", "timeit", (code,)),
        "cProfile": ("cProfile", "run", (code,)),
        "bdb": ("bdb", "Bdb.run", (code,)),
        "code": ("code", "interact", (code,)),
        "webbrowser": ("webbrowser", "open", ("file:///dev/null",)),
        "urlopen": ("urllib.request", "urlopen", ("http://127.0.0.1:9",)),
        "pickle.loads": ("pickle", "loads", ("x",)),
        "marshal.loads": ("marshal", "loads", ("x",)),
        "ctypes": ("ctypes", "CDLL", ("libc.so.6",)),
        "torch.load": ("torch.serialization", "load", (str(script),)),
        "torch.hub": ("torch.hub", "load", (str(mark.parent), "x")),
        "torch extension": ("torch.utils.cpp_extension", "load", ("x",)),
        "torch.jit": ("torch.jit", "load", (str(script),)),
        "numpy.load": ("numpy", "load", (str(script),)),
        "numpy.fromfile": ("numpy", "fromfile", (str(script),)),
        "numpy memmap": ("numpy", "memmap", (str(mark), "uint8", "w+")),
        "numpy runstring": ("numpy.testing._private.utils", "runstring", (code,)),
        "logging config": ("logging.config", "fileConfig", (str(script),)),
        "omegaconf": ("omegaconf.omegaconf", "OmegaConf.load", (str(script),)),
        "hydra": ("hydra.utils", "instantiate", ("x",)),
        "our own code": ("fairseq.config.plugins", "import_user_module", (str(script),)),
        "our allow-list": ("torch.serialization", "add_safe_globals", ("os.system",)),
        "environment": ("os", "putenv", ("A", "B")),
        "exit": ("os", "_exit", ("3",)),
        "unknown class": ("__main__", "Anything", ()),
    }
    made = {kind: named_call(*parts[:2], *parts[2]) for kind, parts in simple.items()}
    made["instance opcode"] = opcodes("(", text(touch), "ibuiltins\neval\n")
    made["object opcode"] = opcodes("(cbuiltins\neval\n", text(touch), "o")
    made["stack global"] = (
        b"\x80\x04" + text("os") + text("system") + b"\x93(" + text(shell) + b"tR."
    )
    made["extension registry"] = opcodes(b"\x82\x01")
    made["persistent id"] = opcodes("Pos.system\n")
    made["hidden in a dict"] = pickle.dumps({"a": [Call(eval, touch)]}, 2)
    made["hidden in a key"] = pickle.dumps({(Call(eval, touch),): 1}, 2)
    made["state of a Namespace"] = pickle.dumps(argparse.Namespace(x=Call(eval, touch)), 2)
    made["default factory"] = pickle.dumps(collections.defaultdict(Call(eval, touch).function), 2)
    made["built from an allowed class"] = opcodes(
        "cargparse\nNamespace\n)\x81}(", text("__class__"), "cos\nsystem\nub"
    )
    made["partial"] = opcodes("cfunctools\npartial\n(cos\nsystem\n", text(shell), "tR)R")
    made["map"] = opcodes("cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(", text(shell), "ltRtR")
    made["attribute of an allowed name"] = named_call("collections", "OrderedDict.__init__", code)
    made["nothing"] = b""
    made["no end"] = b"\x80\x02}"
    made["deeply nested"] = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    made["holds itself"] = opcodes(b"]q\x00h\x00a")
    return made


def as_torch_zip(path: Path, payload: bytes) -> None:
    """Write a file as torch.save does, but with ``payload`` in place of its pickle."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, payload if name.endswith("data.pkl") else good.read(name))


def as_old_torch(path: Path, payload: bytes) -> None:
    """Write the format from before 1.6 with ``payload`` as its object."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(part, 2) for part in head]
    path.write_bytes(b"".join([*parts, payload, pickle.dumps([], 2)]))


def inside(key: str) -> Callable[[Path, bytes], None]:
    """Put the payload into a checkpoint under ``key``."""

    def write(path: Path, payload: bytes) -> None:
        body = payload.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04").removesuffix(b".")
        pickled = opcodes("}(", text("model"), "}", text(key), body, "u")
        as_torch_zip(path, pickled)

    return write


PLACES: dict[str, Callable[[Path, bytes], None]] = {
    "whole file": lambda path, payload: path.write_bytes(payload) and None,
    "zip": as_torch_zip,
    "old format": as_old_torch,
    "cfg": inside("cfg"),
    "optimizer state": inside("last_optimizer_state"),
}


@pytest.mark.hostile
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_hostile_pickle_runs(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str, Any], None]
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with torch.serialization.safe_globals([os.system, eval]):  # somebody else's doing
        mark = tmp_path / "executed"
        path = tmp_path / "model.pt"
        tried = payloads(mark)
        before = set(os.listdir(tmp_path)) | {path.name}
        assert len(tried) >= 50
        for kind, payload in tried.items():
            if place in ("cfg", "optimizer state") and kind in ("nothing", "no end"):
                continue  # harmless in the middle of a good pickle
            PLACES[place](path, payload)
            with pytest.raises(CheckpointError, match=r"model\.pt"):
                pytest.fail(f"{kind} was loaded as {safe_load(path)!r:.200}")
            assert set(os.listdir(tmp_path)) == before, kind
        figure(f"hostile pickles refused ({place})", len(tried))


@pytest.mark.parametrize("kind", ["eval", "open", "os.system", "hidden in a dict"])
def test_the_payloads_are_real(kind: str, tmp_path: Path) -> None:
    pickle.loads(payloads(tmp_path / "executed")[kind])
    assert (tmp_path / "executed").exists()


def test_what_others_allowed_stays_allowed_for_them(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([os.system]):
        before = set(torch.serialization.get_safe_globals())  # torch allows some of its own
        torch.save({}, tmp_path / "a.pt")
        safe_load(tmp_path / "a.pt")
        assert os.system in before and set(torch.serialization.get_safe_globals()) == before


def test_the_refusal_names_the_object_and_no_way_around(tmp_path: Path) -> None:
    as_torch_zip(tmp_path / "a.pt", named_call("os", "popen", "ls"))
    with pytest.raises(CheckpointError, match=r"os\.popen") as caught:
        safe_load(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    scripted = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(scripted, str(tmp_path / "jit.pt"))
    with tarfile.open(tmp_path / "tar.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = named_call("os", "system", "ls")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "text.pt").write_text("no checkpoint at all\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive_zip:
        archive_zip.writestr("archive/data.pkl", bytes(50_000_000))
    for name in ("jit.pt", "tar.pt", "text.pt", "empty.pt", "bomb.pt"):
        with pytest.raises(CheckpointError, match=name):
            safe_load(tmp_path / name)
    with pytest.raises(
        CheckpointError, match=r"text\.pt was refused: it is no checkpoint, but a text"
    ):
        safe_load(tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match=r"empty\.pt is no checkpoint: it is empty"):
        safe_load(tmp_path / "empty.pt")
    for place in (tmp_path / "missing.pt", tmp_path):  # says what is there
        with pytest.raises(MissingFileError, match="holds bomb.pt, .* and 1 more. Check the path"):
            safe_load(place)


# -- what is old -----------------------------------------------------------------------------------

CONFIG = {"a": 1, "b": "x", "l": [1, 2.5, None], "d": {"i": "${a}", "m": "???", "t": True}}
EXPECTED = {**CONFIG, "d": {"i": "${a}", "m": None, "t": True}}

# The pickle of OmegaConf.create(CONFIG) in omegaconf 2.0.6, deflated.
OMEGACONF_2_0 = """
eNplk+lT00AYxlsOgXCIiiDeR9HgUfG+LQiKCgSMVzwwbtJtN5AmfdqUkXF2Rj84w5/t7iYrzdjphzeZ9/09z/vs5lcPR8Hp
LRQKfq2Ooh83aJ34cVQrVwM/kUVQN5ZEuZiW6Jn9jV6OPtMZEkNugyakShKC/q5Rj7SpIQYSEkS0tZa1GDggZgc4Bk1nUMy2
aM1NdpsUQ77rep0gTILIdQ2pa8BwhkVL7G1RP0m7hi01FTeTII5IiJE9ZXub7mLUcvpFWQtJvY0xjoPOmOK343CHtlyf+Ixi
3PfjMBQ4Md42qrRGOmGSih1ixh8ctnFEKQhiqjhhOSPimYa0QaPMxVGr4zkDcvMmaYm3mExtuWLxRD5PcRwznaJ4RTDdlUkU
V2nbWIh2LVEYOC6iOMFx0mT/Bbef1ynRdJrjjMmGfKEeRHUJMHCWDVtsZI+Nsmkm1j3Hxpla4byNCx2PTbJep0962hExlVaK
wrH042GGSdmLHJeELJN0k2NW0Nk+cUYSL2viFRtXUyIrKcgPXMtwIcpdzsOgrW/Lqij1bbkuNOY4bkg9efo3OW5lerlDl+MG
bqcWytLCHW3hro17bCLfHYskcJ/Jw1DepjbxwFTLPeR4pJd7zPEkt9xKQZKfanLFxrwCzDGVkgIscDzTgEWOpTygKAHPNeCF
jWUNWJ6XkYtfxnnJ8UpzXnOs5Dk9krOqOWs2LM0RBc0SrmKdyc9tg+ONDtDmeJs/sHWJeqdR7218YBNWVzQcH9P7GMBRzj5x
fNbOvnB8zeMcidvUuG82XAXaEOcvFyz9JBzfM4MNEEX0OHxNrHLQPJFIYk0T6zbYP6L8gCuVCoIMmGBLAbc5Qg1scER54JYE
xhrYtAEN3Ot4HfVvl/8C0nV5TQ==
"""


def assert_loads_without_omegaconf(path: Path, expected: dict[str, Any]) -> None:
    def load() -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] in ("omegaconf", "hydra"):
                del sys.modules[name]
        sys.modules["omegaconf"] = sys.modules["hydra"] = None  # type: ignore[assignment]
        sys.exit(0 if safe_load(path)["cfg"] == expected else 3)

    assert run(load) == 0


def test_omegaconf_containers_become_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    @dataclasses.dataclass
    class CommonConfig:
        count: int = 3
        rate: float | None = None
        names: list[str] = dataclasses.field(default_factory=lambda: ["q"])
        table: dict[str, int] = dataclasses.field(default_factory=dict)
        on: bool = True

    CommonConfig.__module__ = "fairseq.dataclass.configs"
    CommonConfig.__qualname__ = "CommonConfig"
    module: Any = types.ModuleType(CommonConfig.__module__)
    module.CommonConfig = CommonConfig
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, CommonConfig.__module__, module)
        state = {"cfg": OmegaConf.create(CONFIG), "s": OmegaConf.structured(CommonConfig)}
        torch.save(state, tmp_path / "a.pt")
    loaded = safe_load(tmp_path / "a.pt")
    assert loaded["cfg"] == EXPECTED
    assert loaded["s"] == {"count": 3, "rate": None, "names": ["q"], "table": {}, "on": True}
    assert type(loaded["cfg"]) is dict and type(loaded["cfg"]["l"]) is list
    assert_loads_without_omegaconf(tmp_path / "a.pt", EXPECTED)


def test_containers_of_the_old_omegaconf_become_plain(tmp_path: Path) -> None:
    as_torch_zip(tmp_path / "a.pt", zlib.decompress(base64.b64decode(OMEGACONF_2_0)))
    assert safe_load(tmp_path / "a.pt")["cfg"] == EXPECTED


def test_interpolations_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    monkeypatch.setenv("SECRET", "hunter2")
    torch.save({"cfg": OmegaConf.create({"x": "${oc.env:SECRET}"})}, tmp_path / "a.pt")
    assert safe_load(tmp_path / "a.pt")["cfg"] == {"x": "${oc.env:SECRET}"}


def test_namespaces_and_ordered_dicts_stay_what_they_are(tmp_path: Path) -> None:
    inner = argparse.Namespace(lr=[0.1], nested=collections.OrderedDict(b=1, a=2))
    torch.save({"args": inner, "size": torch.Size([2, 3])}, tmp_path / "a.pt")
    loaded = safe_load(tmp_path / "a.pt")
    assert loaded["args"] == inner
    assert list(loaded["args"].nested) == ["b", "a"]
    assert isinstance(loaded["args"].nested, collections.OrderedDict)
    assert tuple(loaded["size"]) == (2, 3)


def test_enums_of_the_original_become_their_values(tmp_path: Path) -> None:
    for module in ("fairseq.dataclass.constants", "enum"):
        payload = opcodes("}", text("cfg"), f"c{module}\nChoices\n", text("json"), b"\x85Rs")
        as_torch_zip(tmp_path / "a.pt", payload)
        assert safe_load(tmp_path / "a.pt") == {"cfg": "json"}


SCALARS = [
    np.float64(2.5),
    np.float32(-1.25),
    np.float16(0.5),
    np.int64(-(2**60)),
    np.int32(7),
    np.uint8(200),
    np.bool_(True),
    np.float64("inf"),
]


@pytest.mark.parametrize("old_module", [False, True])
def test_numpy_scalars_become_numbers(old_module: bool, tmp_path: Path) -> None:
    state = {"best": SCALARS}
    if old_module:
        pickled = pickle.dumps(state, 2)
        new = b"cnumpy._core.multiarray\nscalar\n"
        assert new in pickled
        as_torch_zip(tmp_path / "a.pt", pickled.replace(new, new.replace(b"_core", b"core")))
    else:
        torch.save(state, tmp_path / "a.pt")
    loaded = safe_load(tmp_path / "a.pt")["best"]
    assert loaded == [scalar.item() for scalar in SCALARS]
    assert [type(value) for value in loaded] == [type(scalar.item()) for scalar in SCALARS]


def test_numpy_scalars_of_big_endian_machines(tmp_path: Path) -> None:
    number = struct.pack(">d", 1.5).decode("latin1")
    payload = opcodes(
        "cnumpy.core.multiarray\nscalar\n",
        "cnumpy\ndtype\n",
        text("f8"),
        b"K\x00K\x01\x87R(K\x03",
        text(">"),
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        "c_codecs\nencode\n",
        text(number),
        text("latin1"),
        b"\x86R\x86R",
    )
    as_torch_zip(tmp_path / "a.pt", payload)
    assert safe_load(tmp_path / "a.pt") == 1.5


def test_numpy_arrays_and_odd_scalars_are_refused(tmp_path: Path) -> None:
    for value in (np.arange(3), np.str_("text"), np.datetime64("2020-01-01")):
        torch.save({"x": value}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError):
            safe_load(tmp_path / "a.pt")


def test_the_format_from_before_zip_files_is_read(tmp_path: Path, shared: Path) -> None:
    source = shared / "compat/checkpoints/fb_baseline/model.pt"
    state = safe_load(source)
    assert isinstance(state["cfg"]["model"], argparse.Namespace)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pt")
    old = safe_load(tmp_path / "old.pt")
    assert old["model"].keys() == state["model"].keys()
    assert all(torch.equal(old["model"][name], state["model"][name]) for name in state["model"])
    assert old["cfg"] == state["cfg"]


def test_every_golden_checkpoint_loads(shared: Path) -> None:
    files = sorted((shared / "compat/checkpoints").glob("*/*.pt"))
    assert len(files) >= 12
    for file in files:
        assert safe_load(file)["model"], file


def test_make_plain_leaves_plain_values_alone() -> None:
    value = {"a": [1, (2.5, None)], "t": torch.ones(2), "s": {1, 2}}
    plain = make_plain(value)
    assert plain["a"] == value["a"] and plain["s"] == value["s"] and plain["t"] is value["t"]


def test_what_is_stored_can_be_loaded(tmp_path: Path) -> None:
    class Colour(enum.Enum):
        RED = "red"

    weight = torch.nn.Parameter(torch.ones(2, 3))
    state = {
        "numbers": [np.float64(1.5), np.int64(2), True, None, 2.5, 1 + 2j],
        "words": (Colour.RED, "text", b"bytes"),
        "tensors": collections.OrderedDict(a=weight, b=weight.detach()),
        "torch": [torch.Size([2]), torch.float16, torch.device("cpu")],
        "rest": [{1, 2}, argparse.Namespace(x=Colour.RED), collections.defaultdict(list, a=[1])],
        7: {(1, 2): "tuple key"},
    }
    torch.save(storable(state), tmp_path / "a.pt")
    loaded = safe_load(tmp_path / "a.pt")
    assert loaded["numbers"] == [1.5, 2, True, None, 2.5, 1 + 2j]
    assert [type(n) for n in loaded["numbers"][:2]] == [float, int]
    assert loaded["words"] == ("red", "text", b"bytes")
    assert list(loaded["tensors"]) == ["a", "b"] and not loaded["tensors"]["a"].requires_grad
    assert loaded["tensors"]["a"].data_ptr() == loaded["tensors"]["b"].data_ptr()
    assert loaded["torch"][1:] == [torch.float16, torch.device("cpu")]
    assert loaded["rest"] == [{1, 2}, argparse.Namespace(x="red"), {"a": [1]}]
    assert loaded[7] == {(1, 2): "tuple key"}


def test_what_could_not_be_loaded_is_named() -> None:
    for value in (Path("x"), lambda: None, object(), np.arange(2), io.BytesIO()):
        with pytest.raises(CheckpointError, match=r"state\.task_state\.deep holds a "):
            storable({"task_state": {"deep": [value]}})
    with pytest.raises(CheckpointError, match=r"a key of state holds a pathlib\.\w*Path,"):
        storable({Path("x"): 1})


# -- what is damaged -------------------------------------------------------------------------------


def sample_state() -> dict[str, Any]:
    return {
        "model": collections.OrderedDict((f"w{n}", torch.randn(50, 7)) for n in range(4)),
        "cfg": {"common": {"seed": 1, "name": "x" * 200}},
        "extra_state": {"train_iterator": {"epoch": 3, "iterations_in_epoch": 17}},
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def outcomes(
    path: Path, state: Any, damage: Callable[[bytearray, random.Random], None], times: int
) -> Any:
    """Return how many damaged copies were refused, loaded unchanged, loaded differently."""
    good, rng = path.read_bytes(), random.Random(times)
    found: collections.Counter[str] = collections.Counter()
    for _ in range(times):
        data = bytearray(good)
        damage(data, rng)
        path.write_bytes(data)
        try:
            loaded = safe_load(path)
        except CheckpointError:
            found["refused"] += 1
        else:
            found["unchanged" if same(state, loaded) else "different"] += 1
    return found


@pytest.mark.parametrize("flips", faults(100, 1000))
def test_a_flipped_bit_is_never_loaded_as_something_else(
    flips: int, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    state = sample_state()
    torch.save(state, tmp_path / "a.pt")

    def flip(data: bytearray, rng: random.Random) -> None:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)

    found = outcomes(tmp_path / "a.pt", state, flip, flips)
    figure("bit flips of a checkpoint", dict(found))
    assert found["different"] == 0
    assert found["refused"] > 0.8 * flips


@pytest.mark.parametrize("cuts", faults(100, 1000))
def test_a_file_that_is_cut_off_is_refused(
    cuts: int, tmp_path: Path, figure: Callable[[str, Any], None]
) -> None:
    for old in (False, True):
        state = sample_state()
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)

        def cut(data: bytearray, rng: random.Random) -> None:
            del data[rng.randrange(len(data)) :]

        found = outcomes(tmp_path / "a.pt", state, cut, cuts)
        figure(f"truncations of a {'pre-1.6' if old else 'zip'} checkpoint", dict(found))
        assert found["refused"] == cuts


def test_zeros_in_the_middle_are_found(tmp_path: Path) -> None:
    torch.save(sample_state(), tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[3000:3100] = bytes(100)
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        verify_zip(tmp_path / "a.pt")

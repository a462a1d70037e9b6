"""torch files that hold more than tensors: objects are never built, tensors beside them are read bit for bit."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import io
import pathlib
import struct
import sys
import zipfile

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.formats._files import read_file
from trajstats.data.formats._open import open_checkpoint

torch = pytest.importorskip("torch")


class Color(enum.Enum):
    RED = 1


class Config:
    """What people keep beside a model."""

    def __init__(self, **values):
        self.__dict__.update(values)


class Settings(dict):
    """As Lightning's AttributeDict."""


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


class Named:
    """Is made with named arguments."""

    def __new__(cls, *, value):
        made = super().__new__(cls)
        made.value = value
        return made

    def __getnewargs_ex__(self):
        return (), {"value": self.value}


class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))


def weights():
    rng = np.random.default_rng(0)
    return {"a.weight": rng.standard_normal((5, 3)).astype("f4"), "a.bias": rng.standard_normal(5).astype("f4")}


def state_dict():
    return collections.OrderedDict((name, torch.from_numpy(w)) for name, w in weights().items())


def check(found):
    assert set(found.tensors) == set(weights())
    for name, w in weights().items():
        np.testing.assert_array_equal(found.tensors[name].read(0, w.size), w.reshape(-1))


OBJECTS = {
    "namespace": argparse.Namespace(lr=1e-3, path=pathlib.Path("/a/b"), kind=torch.float16),
    "path": pathlib.Path("/a/b"),
    "counter": collections.Counter("abca"),
    "deque": collections.deque([1, 2]),
    "datetime": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "enum": Color.RED,
    "error": ValueError("no"),
    "config": Config(lr=1.0, inner=Config(sizes=[1, 2]), color=Color.RED),
    "settings": Settings(a=1, b=Settings(c=2)),
    "slotted": Slotted(Slotted(3)),
    "partial": functools.partial(torch.optim.Adam, lr=0.1),
    "a class": Config,
    "a function": torch.nn.functional.gelu,
    "numpy scalar": np.float64(3.0),
    "numpy array": np.arange(4.0),
    "numbers of torch": (torch.float8_e4m3fn, torch.int64, torch.device("cpu"), torch.Size([2])),
    "a set": {Color.RED, pathlib.PurePosixPath("/c")},
    "a default": collections.defaultdict(list, {"a": [Color.RED]}),
    "members": [Color.RED, {"x": pathlib.Path("y")}],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", OBJECTS)
def test_tensors_beside_an_object_are_read(tmp_path, what, legacy):
    content = {"state_dict": state_dict(), "hyper": OBJECTS[what], "epoch": 3}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    check(open_checkpoint(tmp_path / "a.pt"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path, protocol):
    torch.save({"model": state_dict(), **OBJECTS}, tmp_path / "a.pt", pickle_protocol=protocol)
    check(open_checkpoint(tmp_path / "a.pt"))


def test_objects_made_with_named_arguments(tmp_path):
    torch.save({"model": state_dict(), "x": Named(value=3)}, tmp_path / "a.pt", pickle_protocol=4)
    check(open_checkpoint(tmp_path / "a.pt"))


def test_what_is_not_built_is_named(tmp_path):
    content = {"model": state_dict(), "args": OBJECTS["namespace"], "colors": [Color.RED, Color.RED]}
    content["paths"] = [pathlib.Path("a"), pathlib.Path("b")]
    torch.save(content, tmp_path / "step1.pt")
    passed = ts.ingest(tmp_path, tmp_path / "out.zarr", dry_run=True).passed_over
    assert passed["args"] == "an object of class argparse.Namespace, which is not built"
    assert passed["paths.0"] == "an object of class pathlib.PosixPath, which is not built (2 of them)"
    assert "Color" in passed["colors.0"]


@pytest.mark.parametrize("key", [pathlib.Path("a"), Color.RED, Config, np.int64(3), (Color.RED, 1)])
def test_an_object_as_a_key(tmp_path, key):
    torch.save({"state_dict": state_dict(), "callbacks": {key: {"score": torch.tensor(3.0)}}}, tmp_path / "a.pt")
    check(open_checkpoint(tmp_path / "a.pt"))


def test_tensors_inside_objects_are_named_with_the_class(tmp_path):
    shared = torch.ones(4)
    content = {"state_dict": state_dict(), "hparams": {"loss": Loss(), "more": Settings(t=shared, u=[shared])}}
    content["config"] = Config(inner=Config(deep=[{"t": torch.zeros(2)}]), of_the_model=content["state_dict"]["a.bias"])
    torch.save(content, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    check(found)
    inside = {name: why for name, why in found.passed_over.items() if why.startswith("inside")}
    assert inside["hparams.loss._buffers.weight"].endswith("test_torch_objects.Loss, which is not built")
    assert inside["config.inner.deep.0.t"].endswith(".Config, which is not built")
    (more,) = (name for name in inside if name.startswith("hparams.more"))
    assert "Settings" in inside[more]
    assert len(inside) == 3, inside


class Tagged(collections.OrderedDict):
    """A mapping of a class of its own."""


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_tensors_in_attributes_of_mappings_and_parameters_are_named(tmp_path, kind):
    state = kind(state_dict())
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.scale = torch.ones(3)
    if kind is not dict:
        state.lost = torch.ones(3)
    torch.save({"model": state, "other": {"p": parameter}}, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt", part="model")
    check(found)
    (why,) = (why for name, why in found.passed_over.items() if name.startswith("storage"))
    assert why.startswith(f"{1 + (kind is not dict)} stored tensors are attributes")


@pytest.mark.parametrize("state", [torch.nn.Linear(3, 2), Tagged(state_dict()), Settings(state_dict())])
def test_a_file_of_one_object_names_the_class_and_the_remedy(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ts.UnsupportedError, match=rf"a\.pt.*{type(state).__name__}, which is not built.*state_dict"):
        open_checkpoint(tmp_path / "a.pt")


def test_a_module_of_the_oldest_files_with_its_source(tmp_path):
    content = {"state_dict": state_dict(), "loss": Loss()}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    check(open_checkpoint(tmp_path / "a.pt"))


def test_objects_in_a_circle(tmp_path):
    one, two = Config(), Config()
    one.other, two.other, one.t, one.itself = two, one, torch.zeros(2), [one]
    torch.save({"model": state_dict(), "config": one}, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    check(found)
    assert [name for name, why in found.passed_over.items() if why.startswith("inside")] == ["config.t"]


# --- tensors of other kinds -------------------------------------------------------------------------------------------


def one(tmp_path, tensor):
    torch.save({"a": torch.ones(2), "t": tensor}, tmp_path / "a.pt")
    found = read_file(tmp_path / "a.pt")
    return found.tensors.get("t"), found.passed_over.get("t", "")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T),
        torch.nn.Buffer(torch.arange(6.0)),
        torch.arange(9, dtype=torch.int64).to(torch.uint16)[2:7:2],
        torch.arange(5, dtype=torch.int64).to(torch.uint32),
        torch.tensor([2**63 + 5], dtype=torch.uint64),
    ],
)
def test_kinds_that_are_read(tmp_path, tensor):
    tensor.note = "kept as an attribute"  # makes torch write the tensor with its class and attributes
    found, _ = one(tmp_path, tensor)
    assert found.shape == tuple(tensor.shape)
    np.testing.assert_array_equal(found.read(0, found.size), tensor.detach().numpy().reshape(-1))


class Strange(torch.Tensor):
    """A tensor of a class of its own."""


def scaled(tensor):
    tensor.scale = torch.ones(3)
    return tensor


def test_floating_numbers_of_a_class_of_its_own_are_read(tmp_path):
    found, _ = one(tmp_path, torch.arange(3.0).as_subclass(Strange))
    assert found.read(0, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "quantised"),
        (lambda: torch.ones(3, device="meta"), "meta device"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.ones(4).to(torch.float8_e4m3fn), "type float8_e4m3fn"),
        (lambda: torch.complex(torch.ones(3), torch.ones(3)).conj().imag, "stored negative"),
        (lambda: torch.complex(torch.ones(3), torch.ones(3)), "not a tensor of numbers"),
        (lambda: torch.arange(3).as_subclass(Strange), "class .*Strange, which may mean something else"),
        (lambda: scaled(torch.ones(3).as_subclass(Strange)), "class .*Strange, which may mean something else"),
        (lambda: np.ones(3), "NumPy array"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_kinds_that_are_named_and_left_out(tmp_path, make, why):
    import re

    found, passed = one(tmp_path, make())
    assert found is None
    assert re.search(why, passed), passed


def test_tensors_that_are_rebuilt_in_ways_not_known_here_are_named(tmp_path):
    head = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_from_the_future\n(K\x01K\x02tRs."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", head)
    assert "_rebuild_from_the_future, which is not known" in read_file(tmp_path / "a.pt").passed_over["w"]


@pytest.fixture
def two_ranks():
    """Let this process be the first of two, without a second one."""
    import torch.distributed as dist

    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", rank=0, world_size=2, store=fake.FakeStore())
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_distributed_tensors(tmp_path, two_ranks):
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    w = torch.arange(12.0).reshape(4, 3)
    whole = {"w": DTensor.from_local(w, two_ranks, [Replicate()], run_check=False), "b": torch.ones(2)}
    torch.save({"model": whole}, tmp_path / "whole.pt")
    found = open_checkpoint(tmp_path / "whole.pt")
    np.testing.assert_array_equal(found.tensors["w"].read(0, 12), w.numpy().reshape(-1))
    assert not any(name.startswith("storage") for name in found.passed_over)
    # The second rank holds nothing of a tensor with one row.
    row = DTensor.from_local(w[:1].clone(), two_ranks, [Shard(0)], run_check=False, shape=(1, 3), stride=(3, 1))
    torch.save({"w": row}, tmp_path / "row.pt")
    assert open_checkpoint(tmp_path / "row.pt").tensors["w"].read(0, 3).tolist() == [0, 1, 2]
    for place in (Shard(0), Shard(1), Partial()):
        torch.save({"model": {"w": DTensor.from_local(w, two_ranks, [place], run_check=False)}}, tmp_path / "part.pt")
        with pytest.raises(
            ts.UnsupportedError, match=r"part\.pt: tensor 'model\.w' is one rank's part.*full_state_dict"
        ):
            open_checkpoint(tmp_path / "part.pt")


@pytest.mark.filterwarnings("ignore")
def test_sharded_tensors_of_fsdp(tmp_path, two_ranks):
    from torch.distributed._shard import sharded_tensor
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec

    spec = ChunkShardingSpec(0, ["rank:0/cpu", "rank:1/cpu"])
    w = sharded_tensor.zeros(spec, 4, 3)
    torch.save({"w": w}, tmp_path / "part.pt")
    with pytest.raises(ts.UnsupportedError, match=r"part\.pt is one rank's part.*ShardedTensor"):
        open_checkpoint(tmp_path / "part.pt")


# --- nothing is imported, nothing is called ---------------------------------------------------------------------------


def opcodes(module, name, how):
    """Ask for a name and make something of it, in every way that a pickle has."""
    text = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    glob, arguments = text + b"\x93", b"X\x01\x00\x00\x00x\x85"
    return {
        "reduce": glob + arguments + b"R",
        "global": f"c{module}\n{name}\n".encode() + arguments + b"R",
        "newobj": glob + arguments + b"\x81",
        "newobj_ex": glob + arguments + b"}\x92",
        "inst": b"(X\x01\x00\x00\x00xi" + f"{module}\n{name}\n".encode(),
        "obj": b"(" + glob + b"X\x01\x00\x00\x00xo",
        "build": glob + b")\x81}X\x01\x00\x00\x00xK\x01sb",
        "alone": glob,
        "call of an object": glob + b")\x81)R",
    }[how]


HOW = ["reduce", "global", "newobj", "newobj_ex", "inst", "obj", "build", "alone", "call of an object"]


def torch_file(path, body):
    value = io.BytesIO()
    torch.save(torch.ones(2), value)
    with zipfile.ZipFile(value) as archive:
        tensor = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    with zipfile.ZipFile(path, "w") as archive:
        head = b"\x80\x04}X\x01\x00\x00\x00w" + tensor[2:-1] + b"sX\x01\x00\x00\x00x" + body + b"s."
        archive.writestr("archive/data.pkl", head)
        archive.writestr("archive/data/0", struct.pack("<2f", 1, 1))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("module", "name"),
    [("trap_of_a_stranger", "Thing"), ("trap_of_a_stranger.inner", "thing"), ("collections", "Counter")],
)
def test_unknown_names_are_never_imported(tmp_path, monkeypatch, how, module, name):
    mark = tmp_path / "pwned"
    (tmp_path / "trap_of_a_stranger").mkdir()
    (tmp_path / "trap_of_a_stranger" / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    torch_file(tmp_path / "a.pt", opcodes(module, name, how))
    found = read_file(tmp_path / "a.pt")
    assert found.tensors["w"].read(0, 2).tolist() == [1, 1]
    assert "trap_of_a_stranger" not in sys.modules
    assert not mark.exists()
    assert f"class {module}.{name}" in found.passed_over["x"]


REFUSED = [
    *(("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("subprocess", "check_output")),
    *(("builtins", name) for name in ("eval", "exec", "getattr", "__import__", "compile", "open", "setattr", "map")),
    *(("__builtin__", name) for name in ("eval", "file", "apply", "getattr")),
    *(("runpy", "run_path"), ("importlib", "import_module"), ("importlib.util", "find_spec"), ("ctypes", "CDLL")),
    *(("pty", "spawn"), ("shutil", "rmtree"), ("socket", "socket"), ("sys", "exit"), ("webbrowser", "open")),
    *(("code", "InteractiveInterpreter"), ("pickle", "loads"), ("_pickle", "loads"), ("torch", "load")),
    *(("torch.hub", "load"), ("torch.storage", "_load_from_bytes"), ("torch.jit", "load"), ("operator", "attrgetter")),
    *(("pip._internal", "main"), ("dill", "loads"), ("marshal", "loads"), ("types", "FunctionType")),
    *(("torch", "serialization.os.system"), ("torch", "nn.Module.__subclasses__"), ("numpy", "f2py.os.system")),
    *(("collections", "abc.sys.modules"), ("a.b", "__globals__"), ("numpy.testing._private.utils", "runstring")),
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("module", "name"), REFUSED)
def test_names_that_could_run_code_refuse_the_file(tmp_path, module, name, how):
    torch_file(tmp_path / "a.pt", opcodes(module, name, how))
    with pytest.raises(ts.UnsafeInputError, match=rf"a\.pt asks for {module}\.{name}.*could run code"):
        read_file(tmp_path / "a.pt")


def test_a_bomb_beside_an_object_refuses_the_file(tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    torch.save({"model": state_dict(), "config": Config(deep=[Config(bomb=Bomb())])}, tmp_path / "a.pt")
    with pytest.raises(ts.UnsafeInputError, match=r"builtin.*\.exec"):
        open_checkpoint(tmp_path / "a.pt")


def test_names_of_classes_are_printed_as_text(tmp_path):
    torch_file(tmp_path / "a.pt", opcodes("a\x1b[31m" + "b" * 200, "<img>", "newobj"))
    (why,) = (why for name, why in read_file(tmp_path / "a.pt").passed_over.items() if name == "x")
    assert why.isprintable()
    assert len(why) < 200

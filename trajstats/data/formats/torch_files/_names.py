"""What the names in a torch pickle stand for: tensors, containers, objects that are not built, or a refusal."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from trajstats.data.safety._budget import shorten

NUMBER_TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
DTYPES = (*NUMBER_TYPES, "uint16", "uint32", "uint64", "complex64", "complex128")
STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
OTHER_STORAGES = {
    **{"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1, "QInt32Storage": 4},
    **{name: 1 for name in ("QInt8Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage")},
}
MAX_KEY_PARTS = 64

# Modules that can run code, reach files or make functions. What they name is never imported; a file that asks for them
# is not a state dict, and is refused with the name.
_REFUSED_MODULES = frozenset(
    ["os", "posix", "nt", "ntpath", "posixpath", "sys", "subprocess", "_posixsubprocess", "_winapi", "commands", "pty"]
    + ["shutil", "socket", "_socket", "ssl", "webbrowser", "http", "urllib", "ftplib", "smtplib", "requests", "httpx"]
    + ["importlib", "_frozen_importlib", "imp", "runpy", "pkgutil", "zipimport", "code", "codeop", "ctypes", "_ctypes"]
    + ["cffi", "marshal", "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "pip", "ensurepip"]
    + ["pdb", "bdb", "cProfile", "profile", "timeit", "doctest", "trace", "multiprocessing", "asyncio", "signal", "gc"]
    + ["tempfile", "glob", "fileinput", "linecache", "operator", "_operator", "inspect", "ast", "venv", "antigravity"]
    + ["idlelib", "distutils", "setuptools", "io", "_io", "mmap", "sqlite3", "atexit", "faulthandler"]
)
_REFUSED_NAMES = frozenset(
    ["torch.load", "torch.save", "torch.compile", "torch.serialization.load", "torch.storage._load_from_bytes"]
    + ["types.FunctionType", "types.CodeType", "types.LambdaType", "types.MethodType", "types.ModuleType"]
    + ["numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.loadtxt", "numpy.genfromtxt", "pandas.eval"]
    + ["pandas.read_pickle", "codecs.open", "_codecs.lookup", "copyreg.add_extension", "copy_reg.add_extension"]
    + ["pathlib.os", "logging.os", "numpy.testing._private.utils.runstring"]
)
_REFUSED_STARTS = (
    *("torch.hub", "torch.jit", "torch.package", "torch.utils.cpp_extension", "torch.utils._config_module"),
    *("torch.distributed.rpc", "torch.multiprocessing", "torch._inductor", "torch._dynamo", "torch.fx.experimental"),
    *("torch.utils.data.datapipes.utils", "torch.utils.collect_env", "torch.utils.bottleneck", "torch.classes"),
    *("torch.ops", "numpy.f2py", "numpy.distutils", "pandas.io", "pandas.compat", "logging.config"),
)
_BUILTINS = frozenset(["builtins", "__builtin__", "__builtins__"])
_HARMLESS_BUILTINS = frozenset(
    [
        "set",
        "frozenset",
        "list",
        "dict",
        "tuple",
        "str",
        "bytes",
        "bytearray",
        "int",
        "long",
        "float",
        "bool",
        "complex",
    ]
    + ["slice", "range", "xrange", "object", "unicode", "NoneType", "ellipsis", "NotImplementedType"]
)
# Objects that hold a number, a name or a type: nothing that a plan needs to list.
QUIET = frozenset(
    ["torch.device", "torch.serialization._get_layout", "torch.memory_format", "torch._C._get_layout"]
    + ["_codecs.encode", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]
    + ["numpy.ndarray"]
    + [f"builtins.{name}" for name in _HARMLESS_BUILTINS]
)


class ClassName:
    """Stands for a class or function that is neither imported nor called."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Opaque:
    """Stands for an object that is not built: the name of its class, and what the pickle gives to it."""

    __slots__ = ("_entries", "arguments", "given", "name")

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments
        self.given: list[Any] = []  # state and members, as they come
        self._entries: dict[Any, Any] | None = None

    def __repr__(self) -> str:
        first = self.arguments[0] if self.arguments and isinstance(self.arguments[0], tuple) else ()
        return f"{self.name}({', '.join(shorten(a, 40) for a in first[:4] if isinstance(a, str | int | float))})"

    def append(self, value: Any) -> None:
        """Note a member of a list or set."""
        self.given.append(value)

    add = append

    def extend(self, values: Any) -> None:
        """Note members of a list."""
        self.given.extend(values)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._entries is None:
            self._entries = {}
            self.given.append(self._entries)
        self._entries[key] = value

    def attributes(self) -> dict[str, Any]:
        """List the attributes that the object would get."""
        found: dict[str, Any] = {}
        for state in self.given:
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    found.update(part)
        return found


class Storage:
    """Where the numbers of one or more tensors lie."""

    def __init__(self, dtype: str, key: str, size: int) -> None:
        self.dtype, self.key, self.size = dtype, key, size


class View:
    """A tensor: a view into a storage."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None) -> None:
        self.storage, self.offset, self.dtype = storage, offset, dtype
        self.shape, self.stride = _sizes(shape), _sizes(stride)
        self.beside: Any = None  # what the file says about it that needs no reading


class Unread:
    """A tensor of a kind that is not read."""

    def __init__(self, why: str, parts: Any = (), *, is_part: bool = False) -> None:
        self.why, self.parts, self.is_part = why, parts, is_part
        # The numbers of this rank, the shape of all, the axis along which the ranks follow each other, its place there
        self.piece: tuple[View, tuple[Any, ...], int, int] | None = None


class _Wrapper:
    """A tensor of a class of its own, which keeps its numbers in attributes."""

    def __init__(self, kind: Any, dtype: Any, shape: Any, *_: Any) -> None:
        self.shape = _sizes(shape)


class Blank:
    """Stands for anything whose content does not matter."""


class Ordered(OrderedDict[Any, Any]):
    """An ordered mapping that ignores attributes such as ``_metadata``."""


def _sizes(given: Any) -> tuple[Any, ...]:
    if not isinstance(given, list | tuple) or len(given) > 64:
        msg = "a shape or stride is not a list of at most 64 numbers"
        raise ValueError(msg)
    return tuple(given)


_LAZY_SIGN = "a tensor that is stored negative or conjugate; save tensor.resolve_neg().resolve_conj()"


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> Any:
    bits = more[2] if len(more) > 2 else None  # (requires_grad, hooks, metadata)
    if bits:
        return Unread(
            "a tensor that is stored negative or conjugate; save tensor.resolve_neg().resolve_conj()", storage
        )
    return View(storage, offset, shape, stride)


def _tensor_of_bytes(storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> Any:
    kind = more[2] if len(more) > 2 else None  # (requires_grad, hooks, dtype, metadata)
    name = kind[1] if isinstance(kind, tuple) and len(kind) == 2 else getattr(kind, "name", "")
    if len(more) > 3 and more[3]:
        return Unread(
            "a tensor that is stored negative or conjugate; save tensor.resolve_neg().resolve_conj()", storage
        )
    if not isinstance(name, str) or not isinstance(storage, Storage) or storage.dtype != "other1":
        return Unread("a tensor of an unknown type", storage)
    return View(storage, offset, shape, stride, name.removeprefix("torch."))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_cpu_tensor(data: Any, dtype: Any, *_: Any) -> Any:
    kind = data.storage.dtype if isinstance(data, View) and isinstance(data.storage, Storage) else ""
    return data if dtype == ("dtype", kind) else Unread("a tensor of another type than its numbers", data)


class UnreadKind:
    """Stands for a function that makes tensors of a kind that is not read."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why

    def __call__(self, *parts: Any) -> Unread:
        return Unread(self.why, parts)


def _ordered(items: Any = ()) -> Ordered:
    # Copies are not free: a list that is shared could be copied many times.
    if not isinstance(items, list | tuple) or len(items) > MAX_KEY_PARTS:
        msg = "an ordered mapping is made from something else than a short list of pairs"
        raise ValueError(msg)
    made = Ordered()
    for key, value in items:
        check_key(key)
        made[key] = value
    return made


def check_key(key: Any) -> None:
    """Refuse a key that takes long to hash: tuples visit all their parts, and shared parts over and over."""
    if isinstance(key, str):
        return
    parts = [key]
    for _ in range(MAX_KEY_PARTS):
        if not parts:
            return
        part = parts.pop()
        if isinstance(part, tuple | frozenset):
            if len(part) > MAX_KEY_PARTS:
                break
            parts += part
    if parts:
        msg = f"a key of more than {MAX_KEY_PARTS} parts"
        raise ValueError(msg)


_FLOATING = frozenset(["float32", "float64", "float16", "bfloat16"])
_PLAIN_TENSORS = frozenset(["torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"])
_DISTRIBUTED = "DTensor"
SHARDED = "ShardedTensor"
_WHOLE_PLACEMENTS = frozenset(["Replicate", "Shard", "_StridedShard"])
PART = (
    "is one rank's part of a distributed tensor ({}), and the other parts are in other files. Save it with "
    "torch.distributed.checkpoint, whose folders are read, or gather it where it was made: "
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), tensor.full_tensor()"
)


def _from_type(function: Any, kind: Any, arguments: Any, state: Any = None, *_: Any) -> Any:
    """Rebuild a tensor of another class; only classes whose numbers mean what they say are read."""
    name = kind.name if isinstance(kind, ClassName) else "an unknown class"
    if not isinstance(arguments, tuple) or not any(function is known for known in _REBUILD):
        return Unread(f"a tensor of class {name}", (arguments, state))
    data = function(*arguments)
    last = name.rpartition(".")[2]
    if last == _DISTRIBUTED and isinstance(data, _Wrapper):
        return _whole_distributed(data, state)
    if isinstance(data, View) and name not in _PLAIN_TENSORS and not _means_its_numbers(data, state):
        return Unread(f"a tensor of class {name}, which may mean something else than its numbers", (data, state))
    return data if isinstance(data, View | Unread) else Unread(f"a tensor of class {name}", (data, state))


def _means_its_numbers(data: View, state: Any) -> bool:
    """Say of a tensor of a class that is not known: floating numbers without a scale or the like beside them."""
    holder = Opaque("")
    holder.given.append(state)
    beside = any(isinstance(value, View | Unread) for value in holder.attributes().values())
    return getattr(data.storage, "dtype", "") in _FLOATING and not beside


def _whole_distributed(data: _Wrapper, state: Any) -> Any:
    """Return the local part of a distributed tensor if it is all of it."""
    holder = Opaque(_DISTRIBUTED)
    holder.given.append(state)
    attributes = holder.attributes()
    local, spec = attributes.get("_local_tensor"), attributes.get("_spec")
    places = spec.attributes().get("placements") if isinstance(spec, Opaque) else None
    placed = [p for p in places if isinstance(p, Opaque)] if isinstance(places, list | tuple) else []
    kinds = [p.name.rpartition(".")[2] for p in placed] if placed and len(placed) == len(places or ()) else ["?"]
    if isinstance(local, View) and local.shape == data.shape and _WHOLE_PLACEMENTS.issuperset(kinds):
        local.beside = state
        return local
    unread = Unread(PART.format(f"DTensor, {', '.join(kinds[:8])}"), (local, state), is_part=True)
    mesh = spec.attributes().get("mesh") if isinstance(spec, Opaque) else None
    if isinstance(local, View) and kinds == ["Shard"] and isinstance(mesh, Opaque):
        axis, at = placed[0].attributes().get("dim"), mesh.attributes().get("_coordinate_on_dim")
        number = at[0] if isinstance(at, list | tuple) and len(at) == 1 else None
        if isinstance(axis, int) and isinstance(number, int) and 0 <= axis < len(data.shape):
            local.beside, unread.piece = state, (local, data.shape, axis, number)
    return unread


_REBUILD = (_tensor, _tensor_of_bytes, _parameter, _from_cpu_tensor, _Wrapper)

KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda *_: Ordered(),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_bytes,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _from_cpu_tensor,
    ("torch._utils", "_rebuild_wrapper_subclass"): _Wrapper,
    ("torch._utils", "_rebuild_sparse_tensor"): UnreadKind("a sparse tensor; save tensor.to_dense()"),
    ("torch._utils", "_rebuild_nested_tensor"): UnreadKind("a nested tensor"),
    ("torch._utils", "_rebuild_qtensor"): UnreadKind("a quantised tensor; save tensor.dequantize()"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): UnreadKind("a tensor on the meta device, without numbers"),
    ("torch._tensor", "_rebuild_from_type"): _from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch", "Size"): lambda sizes=(): _sizes(sizes),
    ("builtins", "set"): lambda items=(): items,
    ("__builtin__", "set"): lambda items=(): items,
    ("copyreg", "_reconstructor"): lambda kind, *more: Opaque(str(getattr(kind, "name", "object")), more),
    ("copy_reg", "_reconstructor"): lambda kind, *more: Opaque(str(getattr(kind, "name", "object")), more),
    **{("torch", name): ("storage", name) for name in (*STORAGES, *OTHER_STORAGES)},
    **{("torch.storage", name): ("storage", name) for name in ("UntypedStorage", "TypedStorage")},
    **{("torch", name): ("dtype", name) for name in DTYPES},
}
_FUNCTIONS = tuple(known for known in KNOWN.values() if not isinstance(known, tuple))


def call(function: Any, arguments: Any) -> Any:
    """Call a stand-in; None if it is not one."""
    if isinstance(function, ClassName | Opaque):
        return Opaque(function.name, arguments)
    if isinstance(function, UnreadKind) or any(function is known for known in _FUNCTIONS):
        return function(*arguments)
    return None


def make(kind: Any, *arguments: Any) -> Any:
    """Make an instance of a stand-in; None if it is not a class."""
    if kind is _ordered:
        return Ordered()
    return Opaque(kind.name, *arguments) if isinstance(kind, ClassName) else None


def is_refused(module: str, name: str) -> bool:
    """Say whether a name can run code or reach files; nothing of what is left is ever imported either."""
    parts = module.split(".")
    if module in _BUILTINS:
        return name not in _HARMLESS_BUILTINS and not name.endswith(("Error", "Exception", "Warning"))
    whole = f"{module}.{name}"
    inner = [*parts[1:], *name.split(".")]
    return (
        parts[0] in _REFUSED_MODULES
        or whole in _REFUSED_NAMES
        or whole.startswith(_REFUSED_STARTS)
        or any(part.startswith("__") and part.endswith("__") for part in inner)
        # A dotted name walks from one object to another, out of the module that it begins with.
        or any(part in _REFUSED_MODULES | _BUILTINS | {"eval", "exec"} for part in name.split(".")[:-1] or [])
        or name in {"eval", "exec", "__import__", "getattr", "setattr", "globals", "compile", "system", "popen"}
    )


def unknown_name(module: str, name: str) -> ClassName | UnreadKind:
    """Give the stand-in of a class or function that is not known."""
    text = f"{module[:80]}.{name[:80]}"
    text = text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
    last = module.rpartition(".")[2]
    if module.startswith("torch") and name.startswith("_rebuild"):
        return UnreadKind(f"a tensor made by {text}, which is not known here")
    if (last, name) in {("multiarray", "_reconstruct"), ("numeric", "_frombuffer")}:
        return UnreadKind("a NumPy array in a torch file, which is a pickle of its own")
    return ClassName(text)

"""A pickle machine that knows torch's few classes, runs nothing else and spends from a budget."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from typing import Any, ClassVar, NoReturn

from trajstats.data.safety._budget import Budget, foreign, shorten
from trajstats.errors import UnsafeInputError

DTYPES = {"float32": "float32", "float64": "float64", "float16": "float16", "bfloat16": "bfloat16"}

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
OTHER_STORAGES = {"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1}
MAX_DEPTH = 200
# Text that is longer is a configuration or a log; it is skipped over and never made.
MAX_TEXT = 2**16
MAX_KEY_PARTS = 64

_NAMESPACE = (
    "The file holds the arguments of its training script, as Megatron-LM writes them. Convert it with Megatron's "
    "tools/checkpoint/convert.py, or, if you trust the file: state = torch.load(path, weights_only=False)['model'], "
    "then torch.save(state, new_path)."
)


class _Storage:
    def __init__(self, dtype: str, key: str, size: int) -> None:
        self.dtype, self.key, self.size = dtype, key, size


class _View:
    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any) -> None:
        self.storage, self.offset = storage, offset
        self.shape, self.stride = _sizes(shape), _sizes(stride)


def _sizes(given: Any) -> tuple[Any, ...]:
    if not isinstance(given, list | tuple) or len(given) > 64:
        msg = "a shape or stride is not a list of at most 64 numbers"
        raise ValueError(msg)
    return tuple(given)


class _Blank:
    """Stands for anything whose content does not matter."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _View:
    return _View(storage, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(data: Any, *_: Any) -> Any:
    return data


class _Ordered(OrderedDict[Any, Any]):
    """An ordered mapping that ignores attributes such as ``_metadata``."""

    def __setstate__(self, _: Any) -> None:
        pass


def _ordered(items: Any = ()) -> _Ordered:
    # Copies are not free: a list that is shared could be copied many times.
    if not isinstance(items, list | tuple) or len(items) > MAX_KEY_PARTS:
        msg = "an ordered mapping is made from something else than a short list of pairs"
        raise ValueError(msg)
    made = _Ordered()
    for key, value in items:
        _check_key(key)
        made[key] = value
    return made


def _check_key(key: Any) -> None:
    # Hashing or comparing a tuple visits all its parts, and shared parts over and over.
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


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda *_: _Ordered(),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): lambda sizes=(): _sizes(sizes),
    ("torch", "device"): _Blank,
    ("torch.serialization", "_get_layout"): _Blank,
    ("_codecs", "encode"): _Blank,
    ("builtins", "set"): lambda items=(): items,
    ("__builtin__", "set"): lambda items=(): items,
    ("builtins", "complex"): _Blank,
    ("builtins", "slice"): _Blank,
    ("numpy", "dtype"): _Blank,
    ("numpy.core.multiarray", "scalar"): _Blank,
    ("numpy._core.multiarray", "scalar"): _Blank,
    ("numpy.core.multiarray", "_reconstruct"): _Blank,
    ("numpy._core.multiarray", "_reconstruct"): _Blank,
    ("numpy", "ndarray"): _Blank,
    **{("torch", name): ("storage", name) for name in (*STORAGES, *OTHER_STORAGES)},
    **{("torch.storage", name): ("storage", name) for name in ("UntypedStorage", "TypedStorage")},
    **{("torch", name): ("dtype", name) for name in DTYPES},
}


class _Machine(pickle._Unpickler):
    """A pickle machine with a closed list of names.

    The pure-Python machine is used because the one in C reserves memory for a memo index before it looks at it.
    """

    def __init__(self, stream: io.BufferedIOBase, where: str, budget: Budget) -> None:
        super().__init__(stream, encoding="utf-8", errors="replace")
        self._where, self._budget = where, budget
        self._file_read, self._file_readline = stream.read, stream.readline
        self.storages: dict[str, _Storage] = {}

    def load(self) -> Any:
        """Run the machine, as long as the budget and a bounded depth allow."""
        read = self._file_read
        self._unframer = pickle._Unframer(read, self._file_readline)  # type: ignore[attr-defined]
        self.read, self.readline = self._unframer.read, self._unframer.readline
        self.readinto = self._unframer.readinto
        self.metastack: list[Any] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        opcodes = 0
        try:
            while True:
                key = self.read(1)
                if not key:
                    raise EOFError
                opcodes += 1
                if not opcodes & 63:
                    self._budget.spend_objects(64, f"{self._where}: the pickle")
                if len(self.metastack) > MAX_DEPTH:
                    self._refuse(f"is nested more than {MAX_DEPTH} deep")
                self.dispatch[key[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in of a known name; refuse every other."""
        known = _KNOWN.get((module, name))
        if known is None:
            do = _NAMESPACE if (module, name) == ("argparse", "Namespace") else ""
            self._refuse(f"asks for {module[:80]}.{name[:80]}", do)
        return known

    def persistent_load(self, key: Any) -> Any:
        """Note a storage."""
        self._budget.spend_objects(4, self._where)
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], tuple):
            self._refuse("holds a storage of an unknown kind")
        (_, name), size = (*key[1], None, None)[:2], key[4]
        if not isinstance(name, str) or not isinstance(key[2], str | int):
            self._refuse("holds a storage of an unknown kind")
        number = str(key[2])
        dtype = STORAGES.get(name, f"other{OTHER_STORAGES.get(name, 1)}")
        if not isinstance(size, int) or not 0 <= size < 2**60:
            self._refuse(f"claims a storage of {shorten(size, 40)} elements")
        storage = self.storages.setdefault(number, _Storage(dtype, number, size))
        if len(key) > 5 and key[5] is not None:  # a view into a storage, in the oldest files
            self._refuse("holds a view of a storage, as torch wrote before 0.4; save it again with a newer torch")
        return storage

    def get_extension(self, code: int) -> NoReturn:
        """Refuse extension codes, which name functions by number."""
        self._refuse(f"asks for extension {code}")

    def _refuse(self, what: str, do: str = "") -> NoReturn:
        msg = f"{self._where} {what:.200}, which no state dict needs and which could run code; it is not read. " + (
            do or "Ask for safetensors, or save model.state_dict() alone."
        )
        raise UnsafeInputError(msg)

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load_bytearray8(self) -> None:
        """Refuse byte arrays: their length is believed before it is checked."""
        self._refuse("holds a byte array")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def _text(self, length: int) -> None:
        """Read text or bytes; what is too long to be a name is skipped over."""
        if length <= MAX_TEXT:
            self.append(str(self.read(length), "utf-8", "replace"))
            return
        while length > 0:
            part = self.read(min(length, MAX_TEXT))
            if not part:
                raise EOFError
            length -= len(part)
        self.append(_Blank())

    def load_long_text(self) -> None:
        """Read text with a length of four bytes."""
        self._text(struct.unpack("<I", self.read(4))[0])

    def load_very_long_text(self) -> None:
        """Read text with a length of eight bytes."""
        self._text(struct.unpack("<Q", self.read(8))[0])

    dispatch[pickle.BINUNICODE[0]] = dispatch[pickle.BINBYTES[0]] = load_long_text
    dispatch[pickle.BINSTRING[0]] = load_long_text
    dispatch[pickle.BINUNICODE8[0]] = dispatch[pickle.BINBYTES8[0]] = load_very_long_text

    def _checked(self, first: int, step: int, name: str) -> None:
        for key in self.stack[first::step]:
            _check_key(key)
        machine: Any = self
        pickle._Unpickler.dispatch[getattr(pickle, name)[0]](machine)

    def load_setitem(self) -> None:
        """Set an entry whose key is quick to hash."""
        self._checked(-2, 2, "SETITEM")

    def load_setitems(self) -> None:
        """Set entries whose keys are quick to hash."""
        self._checked(0, 2, "SETITEMS")

    def load_dict(self) -> None:
        """Make a mapping of entries whose keys are quick to hash."""
        self._checked(0, 2, "DICT")

    def load_empty_set(self) -> None:
        """Make a set, which takes more memory than other empty things."""
        self._budget.spend_objects(4, self._where)
        self.append(set())

    def load_additems(self) -> None:
        """Add members that are quick to hash to a set."""
        self._checked(0, 1, "ADDITEMS")

    def load_frozenset(self) -> None:
        """Make a set of members that are quick to hash."""
        self._budget.spend_objects(4, self._where)
        self._checked(0, 1, "FROZENSET")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.EMPTY_SET[0]] = load_empty_set
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def load_reduce(self) -> None:
        """Call a stand-in."""
        self._budget.spend_objects(8, self._where)
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not callable(function) or not any(function is known for known in _KNOWN.values()):
            self._refuse("calls something that is no known function")
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        """Leave attributes out."""
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build

    def load_newobj(self) -> None:
        """Make a stand-in."""
        arguments = self.stack.pop()
        kind = self.stack.pop()
        self._budget.spend_objects(8, self._where)
        if kind is not _ordered and kind is not _Blank:
            self._refuse("makes an object that is not a mapping")
        self.append(_Ordered() if kind is _ordered else kind(*arguments))

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_forbidden(self) -> None:
        """Refuse opcodes that make instances in ways no state dict uses."""
        self._refuse("makes an instance of a class")

    dispatch[pickle.INST[0]] = load_forbidden
    dispatch[pickle.OBJ[0]] = load_forbidden
    dispatch[pickle.NEWOBJ_EX[0]] = load_forbidden


def _run(machine: _Machine, where: str) -> Any:
    # A broken pickle may fail in any opcode, in any way; none of it ran anything.
    with foreign(f"{where}: its pickle"):
        return machine.load()

"""A pickle machine that knows torch's few classes, runs nothing else and spends from a budget."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, ClassVar, NoReturn

from trajstats.data.formats.torch_files._names import (
    KNOWN,
    OTHER_STORAGES,
    PART,
    SHARDED,
    STORAGES,
    Blank,
    ClassName,
    Opaque,
    Storage,
    call,
    check_key,
    is_refused,
    make,
    unknown_name,
)
from trajstats.data.safety._budget import Budget, foreign, shorten
from trajstats.errors import UnsafeInputError, UnsupportedError

MAX_DEPTH = 200
# Text that is longer is a configuration or a log; it is skipped over and never made.
MAX_TEXT = 2**16


class _Machine(pickle._Unpickler):
    """A pickle machine with a closed list of names.

    The pure-Python machine is used because the one in C reserves memory for a memo index before it looks at it.
    """

    def __init__(self, stream: io.BufferedIOBase, where: str, budget: Budget) -> None:
        super().__init__(stream, encoding="utf-8", errors="replace")
        self._where, self._budget = where, budget
        self._file_read, self._file_readline = stream.read, stream.readline
        self.storages: dict[str, Storage] = {}

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
        """Give the stand-in of a name; what could run code is refused, all else is neither imported nor built."""
        known = KNOWN.get((module, name))
        if known is not None:
            return known
        if name == SHARDED:
            msg = f"{self._where} {PART.format(SHARDED)}"
            raise UnsupportedError(msg)
        if is_refused(module, name):
            self._refuse(f"asks for {module[:80]}.{name[:80]}")
        self._budget.spend_objects(8, self._where)
        return unknown_name(module, name)

    def persistent_load(self, key: Any) -> Any:
        """Note a storage."""
        self._budget.spend_objects(4, self._where)
        if isinstance(key, tuple) and len(key) == 4 and key[0] == "module" and isinstance(key[1], ClassName):
            return key[1]  # a class with its source code, as torch wrote before 1.6
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], tuple):
            self._refuse("holds a storage of an unknown kind")
        (_, name), size = (*key[1], None, None)[:2], key[4]
        if not isinstance(name, str) or not isinstance(key[2], str | int):
            self._refuse("holds a storage of an unknown kind")
        number = str(key[2])
        dtype = STORAGES.get(name, f"other{OTHER_STORAGES.get(name, 1)}")
        if not isinstance(size, int) or not 0 <= size < 2**60:
            self._refuse(f"claims a storage of {shorten(size, 40)} elements")
        storage = self.storages.setdefault(number, Storage(dtype, number, size))
        if len(key) > 5 and key[5] is not None:  # a view into a storage, in the oldest files
            self._refuse("holds a view of a storage, as torch wrote before 0.4; save it again with a newer torch")
        return storage

    def get_extension(self, code: int) -> NoReturn:
        """Refuse extension codes, which name functions by number."""
        self._refuse(f"asks for extension {code}")

    def _refuse(self, what: str) -> NoReturn:
        msg = (
            f"{self._where} {what:.200}, which no state dict needs and which could run code; it is not read. "
            "Ask for safetensors, or save model.state_dict() alone."
        )
        raise UnsafeInputError(msg)

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def _text(self, length: int) -> None:
        """Read text or bytes; what is too long to be a name is skipped over."""
        if length <= MAX_TEXT:
            self.append(str(self.read(length), "utf-8", "replace"))
        else:
            self._skip(length)

    def _skip(self, length: int) -> None:
        while length > 0:
            part = self.read(min(length, MAX_TEXT))
            if not part:
                raise EOFError
            length -= len(part)
        self.append(Blank())

    def load_long_text(self) -> None:
        """Read text with a length of four bytes."""
        self._text(struct.unpack("<I", self.read(4))[0])

    def load_very_long_text(self) -> None:
        """Read text with a length of eight bytes."""
        self._text(struct.unpack("<Q", self.read(8))[0])

    def load_bytearray8(self) -> None:
        """Skip over a byte array, whose length would be believed before it is checked."""
        self._skip(struct.unpack("<Q", self.read(8))[0])

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.BINUNICODE[0]] = dispatch[pickle.BINBYTES[0]] = load_long_text
    dispatch[pickle.BINSTRING[0]] = load_long_text
    dispatch[pickle.BINUNICODE8[0]] = dispatch[pickle.BINBYTES8[0]] = load_very_long_text

    def _checked(self, first: int, step: int, name: str) -> None:
        for key in self.stack[first::step]:
            check_key(key)
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
        if not isinstance(arguments, tuple):
            self._refuse("calls something with arguments that are not a list of values")
        made = call(self.stack[-1], arguments)
        if made is None:
            self._refuse("calls something that is no known function")
        self.stack[-1] = made

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        """Give attributes to a stand-in, which keeps them unread; leave those of mappings and tensors out."""
        state = self.stack.pop()
        if isinstance(made := self.stack[-1], Opaque):
            made.given.append(state)

    dispatch[pickle.BUILD[0]] = load_build

    def _make(self, kind: Any, *arguments: Any) -> None:
        self._budget.spend_objects(8, self._where)
        made = make(kind, *arguments)
        if made is None:
            self._refuse("makes an object of something that is not a class")
        self.append(made)

    def load_newobj(self) -> None:
        """Make a stand-in."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        self._make(kind, arguments)

    def load_newobj_ex(self) -> None:
        """Make a stand-in with named arguments."""
        named, arguments, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._make(kind, arguments, named)

    def load_inst(self) -> None:
        """Make a stand-in by the name of its class."""
        module, name = (str(self.readline()[:-1], "ascii") for _ in range(2))
        machine: Any = self
        self._make(self.find_class(module, name), tuple(machine.pop_mark()))

    def load_obj(self) -> None:
        """Make a stand-in of the class that comes first among its arguments."""
        machine: Any = self
        kind, *arguments = machine.pop_mark()
        self._make(kind, tuple(arguments))

    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.INST[0]] = load_inst
    dispatch[pickle.OBJ[0]] = load_obj


def _run(machine: _Machine, where: str) -> Any:
    # A broken pickle may fail in any opcode, in any way; none of it ran anything.
    with foreign(f"{where}: its pickle"):
        return machine.load()

"""What a torch file holds beside its tensors: objects that are not built, and the tensors inside them, named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from trajstats.data.formats._tensor import Checkpoint
from trajstats.data.formats.torch_files._names import QUIET, ClassName, Opaque, Storage, Unread, View
from trajstats.data.safety._budget import Budget, shorten
from trajstats.errors import UnsupportedError

MOST_LISTED = 10_000
MOST_NAME = 200
MAX_DEPTH = 1000


class LeftOut:
    """The objects and tensors of one torch file that are not read; a plan lists them."""

    def __init__(self, where: str, budget: Budget) -> None:
        self._where, self._budget = where, budget
        self._reached: set[str] = set()  # storages of which the plan names a tensor
        self._objects: dict[int, tuple[str, Opaque]] = {}
        self._kinds: dict[str, tuple[str, int]] = {}  # class -> its first object, and how many there are
        self._unread: dict[str, str] = {}
        self._seen: set[int] = set()

    def has(self, storage: Any) -> None:
        """Note that a tensor of this storage is named."""
        if isinstance(storage, Storage):
            self._reached.add(storage.key)

    def cover(self, parts: Any) -> None:
        """Note that the tensors inside need no name of their own."""
        for _, part in self._inside(parts):
            self.has(part.storage if isinstance(part, View) else part)

    def add(self, name: str, leaf: Opaque | ClassName | Unread) -> None:
        """Note an object, a class or a tensor that is not read; one rank's part of a tensor is an error."""
        if isinstance(leaf, Unread):
            self._budget.spend_objects(16, self._where)
            if leaf.is_part:
                msg = f"{self._where}: tensor {shorten(name)} {leaf.why}"
                raise UnsupportedError(msg)
            self._unread[name] = leaf.why
            self.cover(leaf.parts)
            return
        name = name[:MOST_NAME]
        if leaf.name not in QUIET:
            first, count = self._kinds.get(leaf.name, (name, 0))
            self._kinds[leaf.name] = first, count + 1
        if isinstance(leaf, Opaque):
            self._objects.setdefault(id(leaf), (name, leaf))

    def report(self, found: Checkpoint, storages: Mapping[str, Storage]) -> None:
        """List what is left out in a checkpoint; a file whose tensors are all inside objects is an error."""
        found.passed_over.update(self._unread)
        n_inside, owner = 0, ""
        for name, leaf in self._objects.values():
            for inner, part in self._inside(leaf):
                storage = part.storage if isinstance(part, View) else None
                if isinstance(part, Storage) or (isinstance(storage, Storage) and storage.key in self._reached):
                    continue  # the same numbers are named already
                n_inside, owner = n_inside + 1, owner or leaf.name
                if n_inside <= MOST_LISTED:
                    why = f"inside an object of class {leaf.name}, which is not built"
                    found.passed_over.setdefault(f"{name}.{inner}", why)
                self.has(storage)
        for kind, (name, count) in self._kinds.items():
            more = f" ({count} of them)" if count > 1 else ""
            found.passed_over.setdefault(name, f"an object of class {kind}, which is not built{more}")
        if n_inside and not found.tensors:
            msg = (
                f"{self._where} holds its {n_inside} tensors inside an object of class {owner}, which is not built: "
                "that would run code. If you trust the file, where the class is at hand: model = torch.load(path, "
                "weights_only=False), then torch.save(model.state_dict(), new_path)"
            )
            raise UnsupportedError(msg)
        if lost := [key for key in storages if key not in self._reached]:
            why = f"{len(lost)} stored tensors are attributes of other tensors or of mappings, which are not read"
            found.passed_over.setdefault(f"storage {lost[0]:.40}", why)

    def _inside(self, thing: Any) -> Iterator[tuple[str, Any]]:
        """Walk over all that an object holds, each part once; yield tensors and storages with their names."""
        todo: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", iter([("", thing)]))]
        while todo:
            above, items = todo[-1]
            for key, part in items:
                self._budget.spend_objects(1, self._where)
                name = (
                    above if key == "" or len(above) > MOST_NAME else f"{above}.{_text(key)}" if above else _text(key)
                )
                if isinstance(part, View | Unread | Storage):
                    yield name or "tensor", part
                elif len(todo) < MAX_DEPTH and id(part) not in self._seen and (inner := _parts(part)) is not None:
                    self._seen.add(id(part))
                    todo.append((name, inner))
                    break
            else:
                todo.pop()


def _text(key: Any) -> str:
    return key[:80] if isinstance(key, str) else shorten(key, 80) if isinstance(key, int | float) else "?"


def _parts(part: Any) -> Iterator[tuple[Any, Any]] | None:
    """List what a container or an object holds, with a name for each; None for anything else."""
    if isinstance(part, Opaque):
        given = (("" if isinstance(inner, Mapping | tuple) else k, inner) for k, inner in enumerate(part.given))
        return chain([("", part.arguments)], given)
    if isinstance(part, Mapping):
        return iter(part.items())
    return enumerate(part) if isinstance(part, list | tuple | set | frozenset) else None

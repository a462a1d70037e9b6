"""Damage of all kinds to a valid file or folder."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKS = (b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"OHDR", b"FRHP", b"BTHD", b"FADB")
MARKS += (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06")
NUMBERS = (0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
VALUES: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 2**70, 1.5, -1e308, float("nan"), float("inf")]
VALUES += ["", "x", "../x", "/etc/passwd", "x\0y", "\ud800", "9" * 5000, "float32", "int64", "gzip", "object", "base64"]
VALUES += [[], {}, [[]], [1], [-1], ["a"], [2**40] * 3, {"a": 1}]
VALUES += [{"name": "numcodecs.pickle"}, {"name": "gzip", "configuration": []}]
# Those of protocols 0 to 5 that state dicts use, and those that they do not.
OPCODES = [bytes([code]) for code in (*b"()Nt}]lduse0102Q.RboicaqhrjJKMIFVXBCTUSGg", 0x80, *range(0x81, 0x97))]
NAMES = (b"os\nsystem", b"builtins\neval", b"a.b\nC", b"torch\nSize", b"collections\nOrderedDict", b"torch\nfloat32")
NAMES += (
    b"torch._tensor\n_rebuild_from_type_v2",
    b"torch._utils\n_rebuild_wrapper_subclass",
    b"torch._utils\n_rebuild_x",
)
NAMES += (b"torch._utils\n_rebuild_tensor_v3", b"copyreg\n_reconstructor", b"builtins\nset", b"torch\nFloatStorage")
NAMES += (b"torch.distributed.checkpoint.metadata\nMetadataIndex", b"x\nShardedTensor")


def flip_bits(rng: random.Random, raw: bytes) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out))
        out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


def truncate(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.choice((0, 1, len(raw) - 1, rng.randrange(len(raw)), rng.randrange(len(raw))))]


def append(rng: random.Random, raw: bytes) -> bytes:
    return raw + rng.choice((b"\0", rng.randbytes(40), raw, bytes(4096)))


def splice(rng: random.Random, raw: bytes) -> bytes:
    n = rng.choice((1, 4, 8, 64, 512))
    a, b = rng.randrange(len(raw)), rng.randrange(len(raw))
    piece = raw[a : a + n]
    return rng.choice((raw[:b] + piece + raw[b + len(piece) :], raw[:b] + piece + raw[b:], raw[:b] + raw[b + n :]))


def overwrite(rng: random.Random, raw: bytes) -> bytes:
    at, n = rng.randrange(len(raw)), rng.choice((1, 2, 4, 8, 32))
    return raw[:at] + rng.choice((b"\xff", b"\0", b"\x7f", rng.randbytes(1))) * n + raw[at + n :]


def change_length(rng: random.Random, raw: bytes) -> bytes:
    """Put an interesting number over 2, 4 or 8 bytes, where there is a small number if one can be found."""
    kind = rng.choice("HIQ")
    order = rng.choice("<<>")
    size = struct.calcsize(kind)
    at = rng.randrange(max(1, len(raw) - size))
    for _ in range(50):
        if len(raw) >= at + size and struct.unpack_from(order + kind, raw, at)[0] in range(1, 5000):
            break
        at = rng.randrange(max(1, len(raw) - size))
    number = rng.choice(NUMBERS) % 2 ** (8 * size)
    return raw[:at] + struct.pack(order + kind, number) + raw[at + size :]


def near_a_mark(rng: random.Random, raw: bytes) -> bytes:
    """Damage a header that a format marks by a signature: HDF5's trees and heaps, zip's directory."""
    places = [m.start() for mark in MARKS for m in re.finditer(re.escape(mark), raw)]
    if not places:
        return change_length(rng, raw)
    at = rng.choice(places) + rng.randrange(4, 64)
    head, part, tail = raw[:at], raw[at : at + 16], raw[at + 16 :]
    if not part:
        return flip_bits(rng, raw)
    return head + rng.choice((flip_bits, overwrite, change_length))(rng, part)[:16].ljust(len(part), b"\0") + tail


PLAIN: list[Callable[[random.Random, bytes], bytes]] = [
    *(flip_bits, flip_bits, truncate, append, splice, overwrite, change_length, near_a_mark)
]


def change_json(rng: random.Random, raw: bytes) -> bytes:
    """Change, remove, rename or nest one value of a JSON document."""
    tree = json.loads(raw)
    places: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo:
        node = todo.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                todo.append(node[key])
    if not places:
        return json.dumps(rng.choice(VALUES)).encode()
    node, key = rng.choice(places)
    how = rng.randrange(5)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict) and key:
        at = rng.randrange(len(key))
        node[key[:at] + chr(ord(key[at]) ^ 1 << rng.randrange(5)) + key[at + 1 :]] = node.pop(key)
    elif how == 2 and type(node[key]) is int:
        node[key] = rng.choice((node[key] + 1, -node[key], node[key] * 2**20, float(node[key]), str(node[key])))
    elif how == 3:
        other, name = rng.choice(places)
        node[key] = (
            json.loads(json.dumps(other[name]))
            if name in other or isinstance(other, list) and name < len(other)
            else None
        )
    else:
        node[key] = rng.choice(VALUES)
    return json.dumps(tree).encode()


def safetensors_header(rng: random.Random, raw: bytes) -> bytes:
    n = struct.unpack("<Q", raw[:8])[0]
    header = change_json(rng, raw[8 : 8 + n])
    return struct.pack("<Q", len(header)) + header + raw[8 + n :]


def change_opcodes(rng: random.Random, raw: bytes) -> bytes:
    out = raw
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        new = b"".join(rng.choice(OPCODES) for _ in range(rng.choice((1, 1, 2, 8))))
        out = rng.choice((out[:at] + new + out[at:], out[:at] + new + out[at + len(new) :], out[:at] + out[at + 1 :]))
    return out


def change_names(rng: random.Random, raw: bytes) -> bytes:
    """Ask for another class or function in a pickle: one that it has elsewhere, a known or a dangerous one."""
    places = list(re.finditer(rb"c([\w.]+\n\w+)\n", raw))
    if not places:
        return change_opcodes(rng, raw)
    old = rng.choice(places)
    new = rng.choice((rng.choice(places)[1], rng.choice(NAMES)))
    return raw[: old.start() + 1] + new + raw[old.end() - 1 :]


def change_member(rng: random.Random, raw: bytes) -> bytes:
    """Damage one member of an archive and write the archive again, with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    k = rng.randrange(len(members))
    if pickles := [i for i, (name, _) in enumerate(members) if name.endswith(".pkl")]:
        k = rng.choice((k, pickles[0]))
    name, content = members[k]
    if content and name.endswith(".pkl") and rng.random() < 0.7:
        content = rng.choice((change_opcodes, change_opcodes, change_names))(rng, content)
    elif content:
        content = rng.choice(PLAIN)(rng, content)
    members[k] = (rng.choice((name, name, name, name + "x", "../" + name, name.upper(), "")), content)
    if rng.random() < 0.1:
        members.append(rng.choice(members))
    out = io.BytesIO()
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name or "x", (2020, 1, 1, 0, 0, 0)), content, how)
    return out.getvalue()


def zip_directory(rng: random.Random, raw: bytes) -> bytes:
    """Change one field of an entry of the directory: flags, method, sizes, names, offsets."""
    places = [m.start() for m in re.finditer(b"PK\x01\x02", raw)]
    at = rng.choice(places)
    fields = [(6, "H"), (8, "H"), (10, "H"), (16, "I"), (20, "I"), (24, "I"), (28, "H"), (30, "H"), (42, "I")]
    field, kind = rng.choice(fields)
    size = struct.calcsize(kind)
    old = struct.unpack_from("<" + kind, raw, at + field)[0]
    new = rng.choice((rng.choice(NUMBERS), old + 1, old ^ 1 << rng.randrange(16), old * 2)) % 2 ** (8 * size)
    return raw[: at + field] + struct.pack("<" + kind, new) + raw[at + field + size :]


def structured(raw: bytes, name: str) -> list[Callable[[random.Random, bytes], bytes]]:
    """List the changes that need to know the format; checksums are right again after them."""
    if raw[:2] == b"PK" and zipfile.is_zipfile(io.BytesIO(raw)):
        return [change_member, change_member, zip_directory]
    if name.endswith(".safetensors"):
        return [safetensors_header]
    if name.endswith((".bin", ".pkl", ".pt", ".metadata")):
        return [change_opcodes, change_names]
    try:
        json.loads(raw)
    except ValueError:
        return []
    return [change_json]


def mutate(rng: random.Random, path: Path, outside: Path) -> tuple[str, bool]:
    """Damage a file, or one of a folder; return how, and whether checksums may be right after it."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        documents = [p for p in files if p.suffix == ".json" or p.name == ".metadata"] or files
        file = rng.choice(rng.choice((files, documents)))
        if rng.random() < 0.12:
            return _change_folder(rng, path, file, outside), True
    else:
        file = path
    raw = file.read_bytes()
    if not raw:
        file.write_bytes(rng.randbytes(rng.choice((1, 16, 300))))
        return f"filled {file.name}", False
    special = structured(raw, file.name)
    known = bool(special) and rng.random() < 0.5
    change = rng.choice(special if known else PLAIN)
    file.write_bytes(change(rng, raw))
    return f"{change.__name__} of {file.relative_to(path.parent)}", known


def _change_folder(rng: random.Random, folder: Path, file: Path, outside: Path) -> str:
    how = rng.choice(("remove", "empty", "swap", "folder", "loop", "link", "link folder", "copy"))
    name = str(file.relative_to(folder))
    if how == "swap":
        other = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        a, b = file.read_bytes(), other.read_bytes()
        file.write_bytes(b)
        other.write_bytes(a)
        return f"swap {name} and {other.name}"
    if how == "copy":
        shutil.copy(file, file.with_name(file.name + rng.choice(("1", ".json", "~"))))
        return f"copy {name}"
    if how == "link folder" and file.parent != folder:
        shutil.rmtree(file.parent)
        file.parent.symlink_to(rng.choice((outside, folder)))
        return f"link folder of {name}"
    file.unlink()
    if how == "empty":
        file.write_bytes(b"")
    elif how == "folder":
        file.mkdir()
    elif how == "loop":
        file.symlink_to(file)
    elif how == "link":
        file.symlink_to(rng.choice((outside / "file", outside / "none", Path(os.devnull))))
    return f"{how} {name}"

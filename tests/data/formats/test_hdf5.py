"""HDF5 parsed in a child process: the same numbers as h5py, and nothing that is not in the file."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.formats._open import open_checkpoint
from trajstats.data.formats.hdf5 import _read as formats_hdf5
from trajstats.data.formats.hdf5._chunks import fletcher32, lzf_decompress

h5py = pytest.importorskip("h5py")

OPTIONS = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "gzip": {"chunks": True, "compression": "gzip"},
    "all": {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"chunks": True, "compression": "lzf", "shuffle": True},
    "growing": {"chunks": True, "maxshape": True},
}
SHAPES = [(5,), (3, 4, 5), (70, 33), (1, 1000)]


def read(path, name="w"):
    tensor = open_checkpoint(path).tensors[name]
    return tensor.read(0, tensor.size)


@pytest.mark.parametrize("userblock", [0, 512, 2048])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_the_same_numbers_as_h5py(tmp_path, userblock, version):
    rng = np.random.default_rng(0)
    want = {}
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=userblock, libver=version) as file:
        for dtype in ("<f4", ">f8", "<f2"):
            want[f"scalar{dtype}"] = np.asarray(rng.standard_normal()).astype(dtype)
            for shape in SHAPES:
                weights = rng.standard_normal(shape).astype(dtype)
                chunks = tuple(n // 2 + 1 for n in shape)
                for option, given in OPTIONS.items():
                    more = {"chunks": chunks} if "chunks" in given else {}
                    more |= {"maxshape": (None,) * len(shape)} if "maxshape" in given else {}
                    name = f"{option}/{dtype}{len(shape)}{shape[0]}"
                    file.create_dataset(name, data=weights, **(given | more))
                    want[name] = weights
                part = file.create_dataset(f"part/{dtype}{shape}", shape, dtype, chunks=chunks, fillvalue=2.5)
                part[0] = 1
                want[f"part/{dtype}{shape}"] = part[...]
                want[f"never/{dtype}{shape}"] = np.full(shape, 2.5, dtype)
                file.create_dataset(f"never/{dtype}{shape}", shape, dtype, fillvalue=2.5)
        for name, values in want.items():
            if name.startswith("scalar"):
                file[name] = values
    found = open_checkpoint(tmp_path / "x.h5", optimizer=True).tensors
    assert set(found) == {name.replace("/", ".") for name in want}
    for name, values in want.items():
        tensor, flat = found[name.replace("/", ".")], values.reshape(-1)
        assert tensor.shape == values.shape
        for start, stop in [(0, flat.size), (flat.size // 3, flat.size // 2), (min(1, flat.size), flat.size)]:
            np.testing.assert_array_equal(tensor.read(start, stop), flat[start:stop], err_msg=name)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_weights_in_a_keras_archive(tmp_path, how):
    weights = np.random.default_rng(1).standard_normal((40, 7)).astype("f4")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", data=weights)
        file.create_dataset("layers/dense/vars/1", data=weights, chunks=(7, 7), compression="gzip")
    with zipfile.ZipFile(tmp_path / "x.keras", "w", how) as archive:
        archive.write(tmp_path / "w.h5", "model.weights.h5")
    for k in range(2):
        np.testing.assert_array_equal(read(tmp_path / "x.keras", f"layers.dense.vars.{k}"), weights.reshape(-1))


def test_checksums_and_lzf_agree_with_h5py(tmp_path):
    rng = np.random.default_rng(2)
    for n in (1, 7, 1000, 70_001):
        for values in (rng.standard_normal(n).astype("f4"), np.zeros(n, "f4"), rng.integers(0, 3, n).astype("f4")):
            with h5py.File(tmp_path / "x.h5", "w") as file:
                file.create_dataset("a", data=values, chunks=(n,), fletcher32=True)
                file.create_dataset("b", data=values, chunks=(n,), compression="lzf")
            with h5py.File(tmp_path / "x.h5") as file:
                _, raw = file["a"].id.read_direct_chunk((0,))
                left_out, packed = file["b"].id.read_direct_chunk((0,))
            first, second = divmod(int.from_bytes(raw[-4:], "little"), 2**16)
            mine = divmod(fletcher32(raw[:-4]), 2**16)
            assert [m % 65535 for m in mine] == [first % 65535, second % 65535]
            if not left_out:
                assert lzf_decompress(packed, values.nbytes, "x") == values.tobytes()


def with_chunk(path, raw, shape, chunk, left_out=0, **filters):
    """Write a file whose first chunk has these stored bytes."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("w", shape, "f4", chunks=chunk, **filters)
        data.id.write_direct_chunk((0,) * len(shape), raw, left_out)


DAMAGED_CHUNKS = {
    "no room for a checksum": (b"ab", {"fletcher32": True}),
    "short": (bytes(12), {}),
    "unpacks to less": (zlib.compress(bytes(12)), {"compression": "gzip"}),
    "unpacks to more": (zlib.compress(bytes(2**22)), {"compression": "gzip"}),
    "cut": (zlib.compress(bytes(range(200)) * 2)[:-6], {"compression": "gzip"}),
    "no zlib": (b"garbage!", {"compression": "gzip"}),
    "wrong checksum": (bytes(404), {"fletcher32": True}),
    "lzf from before the beginning": (b"\x60\x02\x02abc", {"compression": "lzf"}),
    "lzf that is cut": (b"\x1fabc", {"compression": "lzf"}),
    "lzf of too much": (b"\x00a" + b"\xe0\xff\x00" * 100, {"compression": "lzf"}),
}


@pytest.mark.parametrize("name", DAMAGED_CHUNKS)
def test_a_chunk_gives_exactly_its_bytes_or_an_error(tmp_path, name):
    raw, filters = DAMAGED_CHUNKS[name]
    path = tmp_path / "x.h5"
    with_chunk(path, raw, (100,), (100,), **filters)
    if name == "wrong checksum":
        content = bytearray(path.read_bytes())
        with h5py.File(path) as file:
            at = file["w"].id.get_chunk_info(0).byte_offset
        content[at] = 1
        path.write_bytes(content)
    with pytest.raises((ts.StoreError, ts.UnsafeInputError), match=r"x\.h5"):
        read(path)


def test_small_files_that_unpack_to_much(tmp_path):
    bomb = zlib.compress(bytes(400 * 2**20), 9)
    with_chunk(tmp_path / "one.h5", bomb, (100 * 2**20,), (100 * 2**20,), compression="gzip")
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for k in range(40):
            file.create_dataset(f"w{k}", (2**18,), "f4", chunks=(2**18,), compression="gzip")[...] = 0
    with h5py.File(tmp_path / "nothing.h5", "w") as file:
        file.create_dataset("w", (2**24,), "f4")
    for name in ("one", "many", "nothing"):
        with pytest.raises(ts.UnsafeInputError, match="memory|unpacked"):
            open_checkpoint(tmp_path / f"{name}.h5")


def test_many_chunks_that_were_never_written(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("w", (2,) * 22, "f4", chunks=(1,) * 22)
    with pytest.raises(ts.UnsafeInputError, match=r"x\.h5.*'w'"):
        open_checkpoint(tmp_path / "x.h5")


def test_groups_within_themselves_and_deep_ones(tmp_path):
    with h5py.File(tmp_path / "loop.h5", "w") as file:
        group = file.create_group("g")
        group["self"], group["w"], file["x"] = group, np.ones(3), group
    assert list(open_checkpoint(tmp_path / "loop.h5").tensors) == ["g.w"]
    with h5py.File(tmp_path / "deep.h5", "w", libver="latest") as file:
        group = file
        for _ in range(4000):
            group = group.create_group("a" * 30)
    with pytest.raises(ts.UnsafeInputError, match=r"deep\.h5"):
        open_checkpoint(tmp_path / "deep.h5")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    (tmp_path / "b.npz").symlink_to(os.devnull)
    for name in ("a.h5", "b.npz"):
        with pytest.raises(ts.UnsafeInputError, match=f"{name} is neither a file nor a folder"):
            open_checkpoint(tmp_path / name)


def test_a_dead_child_is_an_error_of_the_file(tmp_path, monkeypatch):
    np.testing.assert_equal(h5py.File(tmp_path / "good.h5", "w").create_dataset("w", data=np.ones(3))[0], 1.0)
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\nprint('ready', flush=True)\nsys.stdin.readline()\nos.kill(os.getpid(), int(sys.argv[0][-4]))"
    )
    for number, match in [(9, "SIGKILL"), (6, "SIGABRT")]:
        path = tmp_path / f"worker{number}.py"
        path.write_text(script.read_text())
        child = formats_hdf5.Child(path, "h5py", "h5py")
        monkeypatch.setattr(formats_hdf5, "_child", child)
        with pytest.raises(ts.UnsafeInputError, match=rf"good\.h5.*{match}"):
            open_checkpoint(tmp_path / "good.h5")
        child.close()


def test_a_file_that_takes_too_long_ends_the_child(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, signal, sys\nprint('ready', flush=True)\n"
        "signal.setitimer(signal.ITIMER_PROF, json.loads(sys.stdin.readline())['seconds'] / 10)\nwhile True: pass"
    )
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    child = formats_hdf5.Child(script, "h5py", "h5py")
    monkeypatch.setattr(formats_hdf5, "_child", child)
    with pytest.raises(ts.UnsafeInputError, match="CPU time"):
        open_checkpoint(tmp_path / "x.h5")
    child.close()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_after_a_fork_each_process_has_its_own_child(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["w"] = np.arange(5.0)
    read(tmp_path / "x.h5")
    before = formats_hdf5._child._process
    pid = os.fork()
    if pid == 0:
        fine = False
        try:
            fine = read(tmp_path / "x.h5").tolist() == [0, 1, 2, 3, 4]
        finally:
            formats_hdf5._child.close()
            os._exit(0 if fine else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert formats_hdf5._child._process is before
    assert read(tmp_path / "x.h5").tolist() == [0, 1, 2, 3, 4]


def test_random_bytes_in_headers_never_end_this_process(tmp_path):
    rng = np.random.default_rng(3)
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        file.create_dataset("g/w", data=np.arange(60.0).reshape(12, 5), chunks=(4, 5), compression="gzip")
        file["b"] = np.ones(7, "f4")
    good = (tmp_path / "x.h5").read_bytes()
    path = tmp_path / "y.h5"
    messages = []
    for _ in range(60):
        content = bytearray(good)
        for at in rng.integers(0, len(good), 4):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            for tensor in open_checkpoint(path).tensors.values():
                tensor.read(0, tensor.size)
        except (ts.StoreError, ts.UnsafeInputError) as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all("y.h5" in text and len(text) < 1000 for text in messages)


def test_the_size_of_a_chunk_is_that_of_its_bytes(tmp_path):
    content = struct.pack("<100f", *range(100))
    with_chunk(tmp_path / "x.h5", zlib.compress(content), (100,), (100,), compression="gzip")
    np.testing.assert_array_equal(read(tmp_path / "x.h5"), np.arange(100, dtype="f4"))

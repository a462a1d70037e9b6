"""Files made to do harm: refused in under two seconds and 200 MiB, nothing executed, nothing written."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr

import trajstats as ts
from trajstats.data.formats._open import open_checkpoint
from trajstats.data.ingest.into_store import ingest
from trajstats.data.safety._seal import seal
from trajstats.data.store.files._folder_store import FolderStore


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


def torch_zip(path, data, more=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        for name, content in more:
            archive.writestr(name, content)


def tensor_pickle(shape=(2,), stride=(1,), size=2, offset=0, storage="FloatStorage"):
    """A state dict {"w": tensor} as torch writes it, with any numbers in it."""

    class Machine(pickle._Pickler):
        def persistent_id(self, value):
            return value if isinstance(value, tuple) and value and value[0] == "storage" else None

        def save_global(self, value, name=None):
            self.write(b"c" + value.module.encode() + b"\n" + value.__name__.encode() + b"\n")

    out = io.BytesIO()
    out.write(b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n")
    out.write(storage.encode() + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu")

    def number(n):
        body = pickle.encode_long(n)
        return pickle.LONG1 + bytes([len(body)]) + body

    out.write(number(size) + b"tQ" + number(offset))
    for values in (shape, stride):
        out.write(b"(" + b"".join(map(number, values)) + b"t")
    out.write(
        b"\x89Ntctorch._utils\n_rebuild_parameter\n0".replace(b"ctorch._utils\n_rebuild_parameter\n0", b"") + b"Rs."
    )
    return out.getvalue()


def safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def npy(shape, data=b"", dtype="<f4"):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + data


def make_pt_pickle(folder, mark):
    torch_zip(folder / "x.pt", pickle.dumps({"w": Bomb(mark)}))


def make_bare_pickle_pt(folder, mark):
    (folder / "x.pt").write_bytes(pickle.dumps(Bomb(mark)))


def make_legacy_pt(folder, mark):
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    (folder / "x.bin").write_bytes(head + pickle.dumps(Bomb(mark), 2))


def make_pkl(folder, mark):
    (folder / "step1.pkl").write_bytes(pickle.dumps(Bomb(mark)))


def make_npz_objects(folder, mark):
    np.savez(folder / "x.npz", w=np.array([Bomb(mark)], dtype=object))


def make_dcp(folder, mark):
    (folder / "step1").mkdir()
    (folder / "step1" / ".metadata").write_bytes(pickle.dumps(Bomb(mark)))
    (folder / "step1" / "__0_0.distcp").write_bytes(b"")


def make_keras_lambda(folder, mark):
    code = base64.b64encode(b"marshalled").decode()
    config = {
        "config": {
            "layers": [{"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "code": code}}}]
        }
    }
    with zipfile.ZipFile(folder / "x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", b"")


def make_memo_bomb(folder, mark):
    # An index of 4e9 makes the unpickler in C reserve 64 GiB.
    torch_zip(folder / "x.pt", b"\x80\x02}r\xff\xff\xff\xef.")


def make_bytearray_bomb(folder, mark):
    torch_zip(folder / "x.pt", b"\x80\x05\x96" + struct.pack("<Q", 2**42) + b".")


def make_deep_pickle(folder, mark):
    torch_zip(folder / "x.pt", b"\x80\x02" + b"(" * 1_000_000 + b"t" * 1_000_000 + b".")


def make_torch_shape_bomb(folder, mark):
    torch_zip(folder / "x.pt", tensor_pickle(shape=(2**40,), stride=(0,), size=2), [("archive/data/0", bytes(8))])


def make_torch_beyond_storage(folder, mark):
    torch_zip(folder / "x.pt", tensor_pickle(shape=(5,), size=2), [("archive/data/0", bytes(8))])


def make_torch_negative_stride(folder, mark):
    torch_zip(folder / "x.pt", tensor_pickle(stride=(-1,), offset=1), [("archive/data/0", bytes(8))])


def make_npy_4_tib(folder, mark):
    (folder / "step1.npy").write_bytes(npy((2**40,)))


def make_npz_4_tib(folder, mark):
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("w.npy", npy((2**40,)))


def make_npy_long_header(folder, mark):
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 2_000_000 + b"), }"
    (folder / "step1.npy").write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text)


def make_zip_bomb(folder, mark):
    content = npy((80 * 2**18,)) + bytes(80 * 2**20)
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", content)


def make_overlapping_zip(folder, mark):
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("w.npy", npy((2**16,), bytes(2**18)))
        info = archive.infolist()[0]
        for k in range(50):
            again = zipfile.ZipInfo(f"w{k}.npy")
            for name in ("header_offset", "file_size", "compress_size", "CRC", "compress_type"):
                setattr(again, name, getattr(info, name))
            archive.filelist.append(again)


def make_zip_slip(folder, mark):
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("../../evil.npy", npy((2,), bytes(8)))


def make_hdf5(folder, build):
    h5py = pytest.importorskip("h5py")
    secret = folder.parent / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["w"] = np.ones(4)
    with h5py.File(folder / "x.h5", "w") as file:
        file["fine"] = np.ones(3)
        build(h5py, file, secret)


def make_hdf5_external_link(folder, mark):
    make_hdf5(folder, lambda h5py, file, secret: file.__setitem__("w", h5py.ExternalLink(str(secret), "/w")))


def make_hdf5_soft_link(folder, mark):
    make_hdf5(folder, lambda h5py, file, secret: file.__setitem__("w", h5py.SoftLink("/fine")))


def make_hdf5_external_storage(folder, mark):
    make_hdf5(
        folder,
        lambda h5py, file, secret: file.create_dataset(
            "w", (8,), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        ),
    )


def make_hdf5_virtual(folder, mark):
    def build(h5py, file, secret):
        layout = h5py.VirtualLayout((4,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "w", (4,))
        file.create_virtual_dataset("w", layout)

    make_hdf5(folder, build)


def make_hdf5_shape_bomb(folder, mark):
    make_hdf5(folder, lambda h5py, file, secret: file.create_dataset("w", (2**40,), "f4", chunks=(1024,)))


def make_hdf5_compressed_bomb(folder, mark):
    def build(h5py, file, secret):
        w = file.create_dataset("w", (2**27,), "f4", chunks=(2**20,), compression="gzip")
        w[: 2**20] = 0

    make_hdf5(folder, build)


def make_safetensors_absurd_header(folder, mark):
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def make_safetensors_overlap(folder, mark):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    safetensors(folder / "x.safetensors", {"a": entry, "b": entry}, bytes(8))


def make_safetensors_shape_bomb(folder, mark):
    safetensors(
        folder / "x.safetensors", {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(8)
    )


def make_safetensors_negative(folder, mark):
    safetensors(folder / "x.safetensors", {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, bytes(8))


def make_safetensors_twice(folder, mark):
    entry = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    safetensors(folder / "x.safetensors", b'{"a":' + entry + b',"a":' + entry + b"}", bytes(8))


def make_safetensors_deep_json(folder, mark):
    safetensors(folder / "x.safetensors", b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}")


def make_index_slip(folder, mark):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))


def make_msgpack_bomb(folder, mark):
    (folder / "x.msgpack").write_bytes(b"\xdf\xff\xff\xff\xff" + bytes(100))


def make_msgpack_deep(folder, mark):
    (folder / "x.msgpack").write_bytes(b"\x91" * 1_000_000)


def make_symlink(folder, mark):
    secret = folder.parent / "secret"
    secret.mkdir()
    np.savez(secret / "step1.npz", w=np.ones(3))
    (folder / "step1.npz").symlink_to(secret / "step1.npz")


def make_pickle_of_shared_lists(folder, mark):
    # Each list holds the one before it twice: 2**40 values in 200 bytes.
    body = b"".join(
        b"]q" + bytes([k]) + b"(h" + bytes([k - 1]) * 1 + b"h" + bytes([k - 1]) + b"e" for k in range(1, 41)
    )
    torch_zip(folder / "x.pt", b"\x80\x02}X\x01\x00\x00\x00w]q\x00K\x01a" + body + b"h\x28s.")


def shared_tuples(n=60):
    return b"K\x01q\x00" + b"".join(b"h" + bytes([k]) + b"h" + bytes([k]) + b"\x86q" + bytes([k + 1]) for k in range(n))


def make_pickle_of_shared_keys(folder, mark):
    torch_zip(folder / "x.pt", b"\x80\x02}" + shared_tuples() + b"K\x01s.")


def make_pickle_of_shared_storage_keys(folder, mark):
    head = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    torch_zip(folder / "x.pt", head + shared_tuples() + b"X\x03\x00\x00\x00cpuK\x02tQ.")


def make_pickle_of_set_members(folder, mark):
    torch_zip(folder / "x.pt", b"\x80\x04\x8f(" + shared_tuples() + b"\x90.")


def make_pickle_of_many_sets(folder, mark):
    torch_zip(folder / "x.pt", b"\x80\x04(" + b"\x8f" * 4_000_000 + b"t.")


def make_pickle_with_long_deflated_text(folder, mark):
    text = b"\x80\x02}X" + struct.pack("<I", 2**26) + b"a" * 2**26 + b"K\x01s."
    with zipfile.ZipFile(folder / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", text)


def make_pickle_of_shared_objects(folder, mark):
    # Each object is made from the one before it, twice.
    body = b"".join(b"ca\nB\nh" + bytes([k]) + b"h" + bytes([k]) + b"\x86Rq" + bytes([k + 1]) for k in range(60))
    torch_zip(folder / "x.pt", b"\x80\x02K\x01q\x00" + body + b".")


def make_pickle_of_deep_objects(folder, mark):
    torch_zip(folder / "x.pt", b"\x80\x02ca\nB\nq\x00)Rq\x01" + b"h\x00h\x01\x85Rq\x01" * 60_000 + b".")


def make_pickle_of_many_classes(folder, mark):
    names = b"".join(b"ca\n%x\n" % k for k in range(80_000))
    torch_zip(folder / "x.pt", b"\x80\x02(" + names + b"t.")


def make_pickle_of_many_objects(folder, mark):
    torch_zip(folder / "x.pt", b"\x80\x02ca\nB\nq\x00}(" + b"h\x00)R}bK\x01" * 50_000 + b"u.")


def make_pickle_of_one_object_with_many_names(folder, mark):
    name = b"X" + struct.pack("<I", 900) + b"a" * 900
    listed = b"(" + b"h\x00" * 440_000 + b"l"
    torch_zip(folder / "x.pt", b"\x80\x02ca\nB\n)Rq\x000}" + name + listed + b"s.")


def make_pickle_of_an_object_with_many_names(folder, mark):
    name = b"X" + struct.pack("<I", 900) + b"a" * 900
    listed = b"(" + b"h\x00" * 440_000 + b"l"
    torch_zip(folder / "x.pt", b"\x80\x02]q\x000ca\nB\n)R}" + name + listed + b"sb.")


def make_pickle_of_an_object_with_many_entries(folder, mark):
    entries = b"".join(b"J" + struct.pack("<I", k) + b"h\x00" for k in range(80_000))
    torch_zip(folder / "x.pt", b"\x80\x02K\x01q\x000ca\nB\n)R(" + entries + b"u.")


def make_pickle_of_many_tensors_in_an_object(folder, mark):
    name = b"X" + struct.pack("<I", 900) + b"a" * 900
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQq\x00"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(h\x00K\x00K\x02\x85K\x01\x85tRq\x02"
    body = b"ca\nB\n)R}" + name + b"(" + b"h\x02" * 440_000 + b"lsb."
    torch_zip(folder / "x.pt", b"\x80\x02" + storage + b"0" + view + b"0" + body, [("archive/data/0", bytes(8))])


def make_pickle_of_unread_tensors_with_long_names(folder, mark):
    name = b"X" + struct.pack("<I", 900) + b"a" * 900
    head = b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n)Rq\x000}"
    torch_zip(folder / "x.pt", head + name + b"(" + b"h\x00" * 440_000 + b"ls.")


def make_pickle_of_an_endless_byte_array(folder, mark):
    torch_zip(folder / "x.pt", b"\x80\x05}\x8c\x01a\x96" + struct.pack("<Q", 2**62) + bytes(2**20))


def distributed(folder, chunks, entries=1):
    """Write a `.metadata` whose tensors share one description with these chunks; chunk "c" is the first memo."""

    def made(name, state):
        return b"ctorch.distributed.checkpoint.metadata\n" + name + b"\n)\x81" + state + b"b"

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    chunk = made(b"ChunkStorageMetadata", b"}(" + text(b"offsets") + b"K\x00\x85" + text(b"sizes") + b"K\x02\x85u")
    properties = made(b"TensorProperties", b"(ctorch\nfloat32\nN\x89N\x89t")
    state = b"}(" + text(b"properties") + properties + text(b"size") + b"K\x02\x85" + text(b"chunks") + chunks + b"u"
    tensor = made(b"TensorStorageMetadata", state)
    names = b"".join(text(b"%06x" % k) + b"h\x01" for k in range(entries))
    listed = b"}(" + text(b"state_dict_metadata") + b"}(" + names + b"u" + text(b"storage_data") + b"}u"
    (folder / "step1").mkdir()
    head = b"\x80\x02" + chunk + b"q\x000" + tensor + b"q\x010"
    (folder / "step1" / ".metadata").write_bytes(head + made(b"Metadata", listed) + b".")
    (folder / "step1" / "__0_0.distcp").write_bytes(bytes(100))


def make_dcp_of_chunks_that_are_stored_nowhere(folder, mark):
    distributed(folder, b"]h\x00a")


def make_dcp_of_many_equal_chunks(folder, mark):
    distributed(folder, b"(" + b"h\x00" * 440_000 + b"l")


def make_dcp_of_many_tensors_with_one_description(folder, mark):
    distributed(folder, b"]", 60_000)


def make_dcp_of_chunks_that_hold_themselves(folder, mark):
    distributed(folder, b"]q\x02h\x02a")


def make_dcp_with_a_link(folder, mark):
    distributed(folder, b"]h\x00a")
    (folder / "step1" / "__0_0.distcp").unlink()
    (folder.parent / "secret").write_bytes(bytes(100))
    (folder / "step1" / "__0_0.distcp").symlink_to(folder.parent / "secret")


def make_msgpack_of_nils(folder, mark):
    (folder / "x.msgpack").write_bytes(b"\xdd" + struct.pack(">I", 4_000_000) + b"\xc0" * 4_000_000)


def make_safetensors_of_lists(folder, mark):
    safetensors(folder / "x.safetensors", b'{"a":[' + b"[]," * 6_000_000 + b"[]]}")


def make_safetensors_of_other_types(folder, mark):
    safetensors(folder / "x.safetensors", b'{"a":[1]}')


def make_safetensors_of_unhashable_types(folder, mark):
    safetensors(folder / "x.safetensors", {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8))


def make_index_of_other_types(folder, mark):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": ["a"]}}))


def make_index_of_no_text(folder, mark):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "\ud800.safetensors"}}))


def make_index_of_a_long_name(folder, mark):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "9" * 5000}}))


def make_index_of_a_loop(folder, mark):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    (folder / "a.safetensors").symlink_to(folder / "a.safetensors")


def make_orbax_of_other_types(folder, mark):
    (folder / "step1").mkdir()
    (folder / "step1" / "_METADATA").write_text(json.dumps({"tree_metadata": {"a": {"key_metadata": 3}}}))


def make_npy_header_that_is_no_python(folder, mark):
    text = b"{'descr': '<f4', 'shape': (2L,), 'fortran_order': False, (((  "
    (folder / "step1.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8))


def make_zip_of_many_names(folder, mark):
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *(20, 20, 0, 0, 0, 0), *(0, 0, 0), *(0, 0, 0, 0, 0), *(0, 0))
    head = struct.pack("<4s5H3I2H", b"PK\x03\x04", *(20, 0, 0, 0, 0), *(0, 0, 0), *(0, 0))
    n = 400_000
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, n % 2**16, n % 2**16, n * len(entry), len(head), 0)
    (folder / "x.npz").write_bytes(head + entry * n + end)


def damaged_npz(folder, mark, change, how=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for k in range(3):
            archive.writestr(f"w{k}.npy", npy((500,), np.arange(500, dtype="f4").tobytes()))
    raw = bytearray(buffer.getvalue())
    change(raw, raw.index(b"PK\x01\x02"))
    (folder / "x.npz").write_bytes(raw)


def make_zip_whose_comment_hides_members(folder, mark):
    damaged_npz(folder, mark, lambda raw, at: raw.__setitem__(slice(at + 32, at + 34), b"\xff\0"))


def make_zip_of_an_unknown_version(folder, mark):
    damaged_npz(folder, mark, lambda raw, at: raw.__setitem__(at + 6, 0xFF))


def make_zip_with_strange_flags(folder, mark):
    damaged_npz(folder, mark, lambda raw, at: raw.__setitem__(at + 8, 0x60))


def make_zip_whose_headers_differ(folder, mark):
    damaged_npz(folder, mark, lambda raw, at: raw.__setitem__(30, 0x41))


def make_zip_with_damaged_deflate(folder, mark):
    damaged_npz(folder, mark, lambda raw, at: raw.__setitem__(slice(60, 80), bytes(range(20))), zipfile.ZIP_DEFLATED)


def make_zip_with_a_flipped_weight(folder, mark):
    damaged_npz(folder, mark, lambda raw, at: raw.__setitem__(600, raw[600] ^ 1))


def make_link_to_itself(folder, mark):
    (folder / "step1.npz").symlink_to(folder / "step1.npz")


MAKERS = {
    name.removeprefix("make_"): f
    for name, f in list(globals().items())
    if name.startswith("make_") and name != "make_hdf5"
}
CHILD = """
import json, os, resource, sys, time
import numpy, h5py, xarray
from trajstats.data.formats import _archives, _folders, _msgpack, _open, _series_files
from trajstats.data.formats.torch_files import _read
from trajstats.data.ingest.into_store import ingest
from trajstats.data.store import _guard, open, writer
import trajstats as ts

for name, folder in json.loads(sys.argv[1]):
    if os.fork():
        os.wait()
        continue
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        ingest(folder, folder + ".zarr", step_from=lambda _: 1)
        what = "ACCEPTED"
    except (ts.UnsafeInputError, ts.StoreError, ts.UnsupportedError) as error:
        what = type(error).__name__
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([name, what, time.process_time() - start, used]), flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_refused(tmp_path, name):
    folder, mark = tmp_path / "in", tmp_path / "pwned"
    folder.mkdir()
    MAKERS[name](folder, mark)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    with pytest.raises((ts.UnsafeInputError, ts.StoreError, ts.UnsupportedError)) as caught:
        ingest(folder, tmp_path / "out.zarr", step_from=lambda _: 1)
    assert len(str(caught.value)) < 1500
    assert not mark.exists()
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


def test_refused_in_two_seconds_and_200_mib(tmp_path):
    pytest.importorskip("h5py")
    folders = []
    for name, maker in MAKERS.items():
        folder = tmp_path / name / "in"
        folder.mkdir(parents=True)
        maker(folder, tmp_path / "pwned")
        folders.append((name, str(folder)))
    # One fork for each, so that memory is that of one file; CPU time, so that a busy machine does not count.
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(folders)], capture_output=True, text=True, timeout=300, check=False
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in results] == list(MAKERS), done.stderr[-2000:]
    for name, what, seconds, mib in results:
        assert what != "ACCEPTED", name
        assert seconds < 2.0, (name, seconds)
        assert mib < 200, (name, mib)
    assert not (tmp_path / "pwned").exists()


# --- zarr stores from strangers ---------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path):
    path = tmp_path / "run.zarr"
    with ts.TrajectoryWriter(path, {"w": (3,)}) as writer:
        writer.append(0, np.ones(3))
    return path


def edit(file: Path, change):
    node = json.loads(file.read_text())
    change(node)
    file.write_text(json.dumps(node))


def forget_checksums(path):
    edit(path / "zarr.json", lambda node: node["attributes"].pop("checksums"))


@pytest.mark.parametrize(
    ("array", "change", "match"),
    [
        ("weights", lambda n: n.update(shape=[1, 10**6, 10**9]), "."),
        ("layer", lambda n: n.update(shape=[10**15]), "elements"),
        ("loss", None, "."),
        ("weights", lambda n: n["chunk_grid"]["configuration"].update(chunk_shape=[1, 10**6, 10**9]), "one chunk"),
        ("weights", lambda n: n["codecs"].append({"name": "numcodecs.pickle"}), "codec"),
        ("layer", lambda n: n.update(data_type="object"), "data type"),
        ("layer", lambda n: n.update(data_type={"name": "numpy.datetime64"}), "data type"),
        ("weights", lambda n: n.update(shape=[1, -5, 3]), "shape"),
        ("weights", lambda n: n.pop("codecs"), "incomplete"),
    ],
)
def test_zarr_metadata(stranger, array, change, match):
    forget_checksums(stranger)
    if change is None:
        edit(stranger / "zarr.json", lambda node: node["attributes"].update(committed_rows=10**15))
    else:
        edit(stranger / array / "zarr.json", change)
        if array == "weights" and match == ".":
            edit(stranger / "zarr.json", lambda node: node["attributes"].update(committed_rows=10**6))
    with pytest.raises((ts.UnsafeInputError, ts.StoreError), match=match):
        ts.open_trajectory(stranger)


def test_zarr_metadata_that_are_not_json_or_too_long(stranger):
    for text in ("{", "[" * 100_000, "x" * (17 * 2**20)):
        (stranger / "zarr.json").write_text(text)
        with pytest.raises(ts.UnsafeInputError):
            ts.open_trajectory(stranger)


def test_blosc_chunk_that_claims_gigabytes(stranger):
    forget_checksums(stranger)
    file = stranger / "step" / "c" / "0"
    raw = bytearray(file.read_bytes())[:-4]
    raw[4:8] = struct.pack("<I", 2**31 - 20)
    file.write_bytes(bytes(raw) + struct.pack("<I", google_crc32c.value(bytes(raw))))
    with pytest.raises(ts.UnsafeInputError, match="claims to unpack"):
        ts.open_trajectory(stranger)


BOMB = 2**27  # bytes, of zeros


def bombs():
    packed = {"gzip": gzip.compress(bytes(BOMB), 9), "zstd": bytes(numcodecs.Zstd(9).encode(np.zeros(BOMB, np.uint8)))}
    # Two members, each of them small enough, and a frame that does not say its size.
    packed["gzip in parts"] = gzip.compress(bytes(2**16), 9) * 64
    packed["gzip of nothing"] = gzip.compress(b"", 9) * 10_000
    packed["zstd in parts"] = bytes(numcodecs.Zstd(9).encode(bytes(64))) + packed["zstd"]
    packed["zstd of no size"] = b"\x28\xb5\x2f\xfd\x00\x58" + (struct.pack("<I", 2**17 << 3 | 2)[:3] + b"\0") * 1024
    return packed | {"blosc": bytes(numcodecs.Blosc("zstd", 9).encode(np.zeros(BOMB, np.uint8)))}


def replace_chunk(path, bomb, content, sharded):
    """Make the weights of a plain trajectory a single chunk of this content."""
    codec = {"gzip": zarr.codecs.GzipCodec(), "zstd": zarr.codecs.ZstdCodec(), "blosc": zarr.codecs.BloscCodec()}
    shards = {"shards": (1, 4, 4)} if sharded else {}
    w = zarr.create_array(
        path / "weights", shape=(1, 4, 4), chunks=(1, 4, 4), dtype="f4", compressors=[codec[bomb.split()[0]]],
        dimension_names=("replica", "step", "parameter"), overwrite=True, **shards,
    )  # fmt: skip
    w[...] = 1.0
    file = path / "weights" / "c" / "0" / "0" / "0"
    if sharded:
        index = struct.pack("<QQ", 0, len(content))
        content += index + struct.pack("<I", google_crc32c.value(index))
    file.write_bytes(content)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("bomb", "content"), bombs().items(), ids=bombs())
def test_tiles_that_unpack_to_more_than_they_should(tmp_path, bomb, content, sharded):
    assert len(content) < BOMB / 500
    plain, path = tmp_path / "plain.zarr", tmp_path / "run.zarr"
    ts.trajectory_dataset(np.ones((4, 4), np.float32), step=range(4)).to_zarr(plain, consolidated=False)
    with ts.TrajectoryWriter(path, {"w": (4,)}) as writer:
        for step in range(4):
            writer.append(step, np.ones(4))
    forget_checksums(path)
    for store in (plain, path):
        replace_chunk(store, bomb, content, sharded)
        run = ts.open_trajectory(store)
        tracemalloc.start()
        try:
            with pytest.raises(ts.UnsafeInputError, match="unpack"):
                run.weights.compute(scheduler="synchronous")
            assert tracemalloc.get_traced_memory()[1] < BOMB / 8
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("compressor", ["gzip", "zstd", "blosc"])
@pytest.mark.parametrize("size", [1, 300, 70_000])
def test_honest_tiles_of_every_compressor_are_read(tmp_path, compressor, size):
    codec = {"gzip": zarr.codecs.GzipCodec(), "zstd": zarr.codecs.ZstdCodec(), "blosc": zarr.codecs.BloscCodec()}
    run = ts.trajectory_dataset(np.random.default_rng(0).standard_normal((3, size)), step=range(3))
    encoding = {"weights": {"compressors": [codec[compressor]]}, "layer": {"compressors": [codec[compressor]]}}
    run.to_zarr(tmp_path / "run.zarr", consolidated=False, encoding=encoding)
    xr.testing.assert_equal(ts.open_trajectory(tmp_path / "run.zarr").weights, run.weights)


def test_link_out_of_a_store(stranger, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100))
    file = stranger / "weights" / "c" / "0" / "0" / "0"
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(ts.UnsafeInputError, match="is a link"):
        ts.open_trajectory(stranger)


# --- kept results from strangers --------------------------------------------------------------------------------------


def kept_fit(path):
    draws = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 8)))})
    ts.FitResult("fit_decay", draws, xr.Dataset(), xr.Dataset({"converged": True})).save(path)
    return path / "posterior" / "mu", lambda: ts.FitResult.load(path)


def kept_pairs(path):
    run = ts.trajectory_dataset(np.ones((8, 4), np.float32), step=range(8))
    ts.cached_pairs(run, path)
    return path / "msd", lambda: ts.cached_pairs(run, path).load()


def kept_member(path):
    def fit(data, *, rng):
        return xr.DataArray(np.zeros((2, 8)), dims=("chain", "draw"), name="mu")

    def again():
        return ts.fit_batch(fit, {"a": 0}, rng=0, store=path, scheduler="synchronous")

    again()
    return next(path.glob("a-*")) / "mu", again


@pytest.mark.parametrize("make", [kept_fit, kept_pairs, kept_member])
@pytest.mark.parametrize("attack", ["bomb", "claim", "link"])
def test_kept_results_are_read_like_trajectories(tmp_path, make, attack):
    array, read = make(tmp_path / "kept")
    want = read()
    node = json.loads((array / "zarr.json").read_text())
    chunk = next(file for file in array.rglob("*") if file.is_file() and file.name != "zarr.json")
    if attack == "bomb":
        chunk.write_bytes(numcodecs.Zstd(9).encode(np.zeros(BOMB, np.uint8)))
    elif attack == "claim":
        edit(array / "zarr.json", lambda n: n.update(shape=[10**5 * k for k in node["shape"]]))
    else:
        (tmp_path / "secret").write_bytes(chunk.read_bytes())
        chunk.unlink()
        chunk.symlink_to(tmp_path / "secret")
    if attack != "link":  # whoever can write a result can write its checksums
        root = array.parent if make is not kept_fit else array.parents[1]
        seal(FolderStore(root))
    tracemalloc.start()
    try:
        if make is kept_member and attack != "link":  # what is damaged is made anew
            xr.testing.assert_identical(read(), want)
        else:
            with pytest.raises(ts.UnsafeInputError):
                read()
        assert tracemalloc.get_traced_memory()[1] < BOMB / 8
    finally:
        tracemalloc.stop()


def read_all(path):
    for tensor in open_checkpoint(path).tensors.values():
        tensor.read(0, tensor.size)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt", "h5", "msgpack", "npy", "keras"])
def test_truncated_at_any_place(tmp_path, suffix):
    whole = tmp_path / f"w.{suffix}"
    w = np.random.default_rng(0).standard_normal(500).astype("f4")
    if suffix == "safetensors":
        safetensors(whole, {"w": {"dtype": "F32", "shape": [500], "data_offsets": [0, 2000]}}, w.tobytes())
    elif suffix == "npz":
        np.savez(whole, w=w)
    elif suffix == "npy":
        np.save(whole, w)
    elif suffix == "pt":
        torch_zip(whole, tensor_pickle((500,), (1,), 500), [("archive/data/0", w.tobytes())])
    elif suffix == "msgpack":
        msgpack = pytest.importorskip("msgpack")
        content = msgpack.packb(((500,), "float32", w.tobytes()))
        whole.write_bytes(msgpack.packb({"w": msgpack.ExtType(1, content)}))
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "inner.h5", "w") as file:
            file["w"] = w
        if suffix == "h5":
            (tmp_path / "inner.h5").rename(whole)
        else:
            with zipfile.ZipFile(whole, "w") as archive:
                archive.write(tmp_path / "inner.h5", "model.weights.h5")
    (tensor,) = open_checkpoint(whole).tensors.values()
    np.testing.assert_array_equal(tensor.read(0, 500), w)
    raw = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for length in [0, 1, 7, 20, len(raw) // 3, len(raw) // 2, len(raw) - 1]:
        cut.write_bytes(raw[:length])
        with pytest.raises((ts.StoreError, ts.UnsafeInputError)):
            read_all(cut)


def test_names_from_files_reach_no_path(tmp_path):
    names = ["../../evil", "/etc/passwd", "$(touch pwned)", "<img src=x onerror=alert(1)>", "a\nb", "c:\\x"]
    header, at = {}, 0
    for name in names:
        header[name] = {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]}
        at += 8
    (tmp_path / "in").mkdir()
    safetensors(tmp_path / "in" / "step1.safetensors", header, bytes(at))
    ingest(tmp_path / "in", tmp_path / "out.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.zarr"]
    assert set(ts.open_trajectory(tmp_path / "out.zarr").layer.values.tolist()) == set(names)


def test_an_archive_whose_directory_says_that_it_is_empty(tmp_path):
    np.savez(tmp_path / "x.npz", w=np.ones(3))
    raw = bytearray((tmp_path / "x.npz").read_bytes())
    raw[-14:-6] = bytes(8)  # members on this disk, members, size of the directory
    (tmp_path / "x.npz").write_bytes(raw)
    with pytest.raises(ts.StoreError, match=r"x\.npz: the directory of the archive"):
        open_checkpoint(tmp_path / "x.npz")

"""Stores elsewhere: URLs, a local S3 server, servers that fail for a while, and no credential where others may look."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
import zarr
from zarr.core.sync import sync
from zarr.storage import FsspecStore, MemoryStore, WrapperStore

import trajstats as ts
from trajstats.data.safety._credentials import without_credentials
from trajstats.data.store.files import _retrying as retrying
from trajstats.data.store.files._place import Place
from trajstats.data.store.files._retrying import RetryingStore, is_transient
from trajstats.data.store.maintenance import append_from

SECRET = "pa55w0rd"
LAYERS = {"w": (3, 4), "b": (5,)}


def row(step):
    return np.random.default_rng(step).standard_normal(17).astype("f4")


def record(place, steps=(0, 1, 5, 9), **options):
    with ts.TrajectoryWriter(place, LAYERS, **options) as writer:
        for step in steps:
            if step not in writer.committed:
                writer.append(step, row(step), loss=1 / (1 + step))


def check(place, steps=(0, 1, 5, 9)):
    run = ts.open_trajectory(place)
    assert run.step.values.tolist() == list(steps)
    np.testing.assert_array_equal(run.weights[0], [row(step) for step in steps])
    return run


@pytest.fixture(scope="module")
def s3():
    """A bucket on a server of this machine, with credentials in the environment, as is usual."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import s3fs

    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("runs")
        yield "s3://runs"
    for system in s3fs.S3FileSystem._cache.values():
        if system.asynchronous and system._s3 is not None:  # those of zarr, which nobody closes before the end
            sync(system._s3.close())
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    return f"memory://{tmp_path.name}.zarr" if request.param == "memory" else f"file://{tmp_path}/run.zarr"


@pytest.mark.parametrize("kind", ["memory", "file", "s3"])
def test_a_store_at_a_url_is_written_continued_read_checked_and_appended_from(kind, tmp_path, request):
    start = {"memory": "memory://", "file": f"file://{tmp_path}"}.get(kind) or request.getfixturevalue("s3")
    url = f"{start}/{tmp_path.name}.zarr"
    record(url, (0, 1))
    record(url)
    run = check(url)
    assert run.state == "finished"
    assert run.source == url
    assert ts.verify(url).ok
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(run)).weights, run.weights)
    append_from(tmp_path / "local.zarr", url)
    check(tmp_path / "local.zarr")
    pairs = ts.time_pairs(run, waiting_time=[1], lag=[4, 8])
    expected = [((row(1 + lag).astype(float) - row(1)) ** 2).mean() for lag in (4, 8)]
    np.testing.assert_allclose(ts.msd(run, pairs, per="all").values.ravel(), expected, rtol=1e-6)


def test_a_run_that_is_being_written_shows_what_is_committed(url):
    writer = ts.TrajectoryWriter(url, LAYERS)
    writer.append(0, row(0))
    assert check(url, (0,)).state == "writing"
    with pytest.raises(ts.StoreError, match="is being written by process"):
        ts.TrajectoryWriter(url, LAYERS)
    writer.close()


def test_damage_at_a_url_is_found(url):
    record(url)
    place = Place(url, write=True)
    key = next(key for key in place.list_under("weights") if "/c/" in key)
    raw = bytearray(place.get(key))
    raw[-6] ^= 255
    place.set(key, bytes(raw))
    assert [tile.file for tile in ts.verify(url).tiles] == [key]
    with pytest.raises(ts.StoreError, match="cannot be read"):
        _ = ts.open_trajectory(url).weights.values


@pytest.mark.slow
def test_sweeps_and_ingest_on_s3(s3, tmp_path):
    for width in (2, 3):
        record(f"{s3}/sweep/w{width}.zarr", (0,), attrs={"width": width})
    sweep = ts.open_sweep(f"{s3}/sweep")
    assert sorted(ts.sweep_table(sweep)["width"].values.tolist()) == [2, 3]
    for step in (1, 2):
        np.savez(tmp_path / f"step{step}.npz", w=np.full((3, 4), step, "f4"), b=np.zeros(5, "f4"))
    ts.ingest(tmp_path, f"{s3}/ingested.zarr")
    assert ts.open_trajectory(f"{s3}/ingested.zarr").step.values.tolist() == [1, 2]


def test_options_go_with_a_zarr_store_object(s3):
    options = {"key": "AKIATESTTESTTESTTEST", "secret": SECRET}
    store = FsspecStore.from_url(f"{s3}/options.zarr", storage_options=options)
    record(store)
    run = check(store)
    assert SECRET not in json.dumps({str(k): str(v) for k, v in run.attrs.items()}) + repr(run) + repr(Place(store))


class Flaky(WrapperStore):
    """Fails so many times in a row before each success of some calls."""

    def __init__(self, store, fail=0, error=ConnectionResetError, only=()):
        super().__init__(store)
        self.fail, self.error, self.only = fail, error, only
        self.failed = {}

    def _maybe(self, call, key):
        done = self.failed.get((call, key), 0)
        if done < self.fail and (not self.only or call in self.only):
            self.failed[call, key] = done + 1
            said = f"no answer from s3://me:{SECRET}@host/{key}?X-Amz-Signature={SECRET}"
            raise self.error(said)
        self.failed[call, key] = 0

    async def get(self, key, prototype, byte_range=None):
        self._maybe("get", key)
        return await self._store.get(key, prototype, byte_range)

    async def set(self, key, value):
        self._maybe("set", key)
        await self._store.set(key, value)

    async def exists(self, key):
        self._maybe("exists", key)
        return await self._store.exists(key)

    async def delete(self, key):
        self._maybe("delete", key)
        await self._store.delete(key)

    async def list_prefix(self, prefix):
        self._maybe("list", prefix)
        async for key in self._store.list_prefix(prefix):
            yield key


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.0)


@pytest.mark.usefixtures("no_pauses")
class TestRetrying:
    def test_four_failures_before_each_success_change_nothing(self):
        inner = MemoryStore()
        record(Flaky(inner, fail=4))
        check(Flaky(inner, fail=4))
        calm = MemoryStore()
        record(calm)
        same = [key for key in calm._store_dict if key.startswith("weights/c")]
        assert same
        assert all(calm._store_dict[key].to_bytes() == inner._store_dict[key].to_bytes() for key in same)

    def test_the_fifth_failure_is_told_without_credentials(self):
        inner = MemoryStore()
        record(inner)
        with pytest.raises(ts.StoreError, match="after 5 attempts") as told:
            ts.open_trajectory(Flaky(inner, fail=5))
        assert SECRET not in str(told.value)
        assert told.value.__cause__ is None
        assert told.value.__suppress_context__

    def test_rows_are_kept_where_a_write_fails_for_good(self):
        inner = MemoryStore()
        flaky = Flaky(inner)
        with ts.TrajectoryWriter(flaky, LAYERS) as writer:
            writer.append(0, row(0))
            flaky.fail, flaky.only = 9, ("set",)
            with pytest.raises(ts.StoreError, match="cannot write journal/rows/c/1 after 5 attempts"):
                writer.append(1, row(1))
            flaky.fail = 0
            writer.append(1, row(1))
        check(inner, (0, 1))

    @pytest.mark.parametrize("error", [PermissionError, type("NoCredentialsError", (Exception,), {})])
    def test_a_refusal_is_not_tried_again(self, error):
        flaky = Flaky(MemoryStore(), fail=1, error=error)
        with pytest.raises(ts.StoreError, match="Credentials are taken from the environment"):
            ts.open_trajectory(flaky)
        assert max(flaky.failed.values()) == 1

    def test_what_waiting_does_not_help_is_raised_as_it_is(self):
        with pytest.raises(ZeroDivisionError):
            ts.open_trajectory(Flaky(MemoryStore(), fail=9, error=ZeroDivisionError))


def test_pauses_double_and_end(monkeypatch):
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(retrying.asyncio, "sleep", sleep)
    with pytest.raises(ts.StoreError):
        Place(Flaky(MemoryStore(), fail=9)).get("zarr.json")
    assert len(pauses) == retrying.ATTEMPTS - 1
    for k, pause in enumerate(pauses):
        assert 0.1 * 2**k <= pause <= 0.2 * 2**k


def test_errors_of_the_libraries_below_are_known():
    aiohttp = pytest.importorskip("aiohttp")
    exceptions = pytest.importorskip("botocore.exceptions")
    assert is_transient(aiohttp.ServerDisconnectedError())
    assert is_transient(aiohttp.ClientPayloadError())
    assert is_transient(exceptions.EndpointConnectionError(endpoint_url="http://x"))
    assert is_transient(exceptions.ReadTimeoutError(endpoint_url="http://x"))
    assert not is_transient(exceptions.NoCredentialsError())
    assert not is_transient(OSError(28, "No space left on device"))


def test_a_server_that_is_down_is_a_clear_error(s3, monkeypatch):
    import s3fs

    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(retrying, "ATTEMPTS", 2)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    options = {"endpoint_url": "http://127.0.0.1:1", "config_kwargs": {"retries": {"max_attempts": 0}}}
    store = FsspecStore.from_url(f"{s3}/x.zarr", storage_options={**options})
    with pytest.raises(ts.StoreError, match="cannot read zarr.json after 2 attempts"):
        ts.open_trajectory(store)


class TestCredentials:
    URL = f"memory://me:{SECRET}@host/secret.zarr"

    def test_none_in_attributes_representations_or_logs(self, caplog):
        caplog.set_level(logging.INFO)
        record(self.URL)
        run = check(self.URL)
        assert run.source == "memory://[not shown]@host/secret.zarr"
        place = Place(self.URL)
        kept = place.get("zarr.json").decode()
        logged = [record.getMessage() for record in caplog.records if not record.name.startswith("fsspec")]
        shown = repr(run) + str(run.attrs) + repr(place) + kept + str(ts.verify(self.URL)) + str(logged)
        assert SECRET not in shown

    def test_none_in_errors(self):
        for call in (
            lambda: ts.open_trajectory(self.URL.replace("secret", "nothing")),
            lambda: ts.open_trajectory(f"nonsense://me:{SECRET}@host/x.zarr?token={SECRET}"),
            lambda: ts.open_sweep(f"nonsense://me:{SECRET}@host/x?token={SECRET}"),
            lambda: ts.verify(self.URL.replace("secret", "nothing")),
        ):
            with pytest.raises(ts.StoreError) as told:
                call()
            assert SECRET not in str(told.value) + str(told.value.__cause__)

    def test_none_on_the_terminal(self):
        from click.testing import CliRunner

        from trajstats.cli import main

        record(self.URL)
        for arguments in (["info"], ["info", "--json"], ["validate"], ["validate", "--json"]):
            shown = CliRunner().invoke(main, [*arguments, self.URL])
            assert shown.exit_code == 0, shown.output
            assert SECRET not in shown.output

    def test_none_on_a_page(self, tmp_path):
        from trajstats.report.page.analysis import analyze

        url = f"memory://me:{SECRET}@host/page.zarr"
        record(url, steps=(0, 1, 2))
        page = analyze(url, tmp_path / "page.html", progress=False)
        assert SECRET not in page.read_text()

    @pytest.mark.parametrize(
        "text",
        [
            f"s3://me:{SECRET}@host/run.zarr",
            f"https://host/run.zarr?sig={SECRET}&x=1",
            f"cannot read 'ftp://u:{SECRET}@h/x': timed out",
            f"hf_{SECRET}{SECRET}",
        ],
    )
    def test_what_is_taken_out_of_a_text(self, text):
        assert SECRET not in without_credentials(text)

    def test_what_stays(self):
        text = "s3://bucket/run.zarr and /home/me/run?.zarr, me@example.org"
        assert without_credentials(text) == text


def test_local_and_memory_stores_are_not_wrapped(tmp_path):
    record(tmp_path / "run.zarr")
    assert not isinstance(Place(tmp_path / "run.zarr").store, RetryingStore)
    assert not isinstance(Place(zarr.storage.MemoryStore()).store, RetryingStore)
    assert isinstance(Place("memory://x").store, RetryingStore)

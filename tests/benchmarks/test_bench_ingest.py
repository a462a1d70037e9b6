"""What an ingest costs beside reading the same files and compressing them with the same codec in one thread."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
from numcodecs import Blosc, blosc
from safetensors.numpy import save_file

import trajstats as ts

CHECKPOINTS, LAYERS = 40, 10
TILE = 4 * 2**20


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    weights = {f"layers.{k}.weight": rng.standard_normal((1000, 1000)).astype(np.float32) for k in range(LAYERS)}
    for step in range(CHECKPOINTS):
        for layer in weights.values():
            layer += 0.01 * rng.standard_normal(layer.shape).astype(np.float32)
        save_file(weights, tmp_path / f"step{step}.safetensors")
    return tmp_path


def test_ingest_of_40_times_40_mb_of_safetensors(benchmark, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run.zarr"
    codec = Blosc("lz4", 5, Blosc.BITSHUFFLE)
    threads, blosc.use_threads = blosc.use_threads, False
    alone, ours = [], []

    def pair():
        start = time.perf_counter()
        for file in folder.iterdir():
            raw = np.frombuffer(file.read_bytes()[-4 * 10**6 * LAYERS :], np.float32)
            for begin in range(0, raw.size, TILE // 4):
                codec.encode(raw[begin : begin + TILE // 4])
        middle = time.perf_counter()
        ts.ingest(folder, out)
        alone.append(middle - start)
        ours.append(time.perf_counter() - middle)
        shutil.rmtree(out)

    try:
        benchmark.pedantic(pair, rounds=3, warmup_rounds=1)
    finally:
        blosc.use_threads = threads
    size = 4 * LAYERS * CHECKPOINTS  # MB
    benchmark.extra_info.update(
        ratio=min(alone) / min(ours), ingest_mb_per_s=size / min(ours), codec_mb_per_s=size / min(alone)
    )
    benchmark.extra_info["target"] = "at least 0.25 times the rate of the codec"

"""Digests of tensors."""

from __future__ import annotations

import numpy as np
import pytest

from trajstats.data._digests import TensorDigest, tensor_digest
from trajstats.errors import ArgumentError


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8"])
def test_zeros_of_both_signs_and_all_nan_are_one(dtype):
    a = np.array([0.0, 1.5, np.nan, -2.0], dtype)
    b = np.array([-0.0, 1.5, -np.nan, -2.0], dtype)
    assert a.tobytes() != b.tobytes()
    assert tensor_digest(a) == tensor_digest(b)
    assert tensor_digest(-a) != tensor_digest(a)


def test_the_number_is_the_same_everywhere():
    # Computed by hand: CRC-32C and CRC-32 of the nine bytes "123456789", whose check values are published.
    assert tensor_digest(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283_CBF43926


@pytest.mark.parametrize("dtype", ["f4", "i8", "u2"])
def test_byte_order_layout_and_shape_do_not_matter(dtype):
    a = np.arange(24, dtype=dtype).reshape(4, 6)
    assert tensor_digest(a) == tensor_digest(a.astype(a.dtype.newbyteorder(">")))
    assert tensor_digest(a) == tensor_digest(np.asfortranarray(a)) == tensor_digest(a.reshape(-1))
    assert tensor_digest(a) == tensor_digest(np.repeat(a, 2, axis=1)[:, ::2])
    assert tensor_digest(a) != tensor_digest(a.T)


def test_ranges_and_a_saved_state_give_the_whole():
    a = np.random.default_rng(0).standard_normal(200_001).astype("f4")
    digest = TensorDigest()
    digest.update(a[:70_000])
    digest = TensorDigest.resumed(digest.state)
    digest.update(a[70_000:])
    assert digest.value == tensor_digest(a)


def test_bfloat16_has_the_digest_of_the_equal_float32():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = np.array([1.0, -0.0, 3.140625], ml_dtypes.bfloat16)
    assert tensor_digest(a) == tensor_digest(a.astype("f4"))


def test_one_bit_matters_and_zero_is_free():
    a = np.ones(1000, "f4")
    b = a.copy()
    b[500] = np.nextafter(np.float32(1), np.float32(2))
    assert tensor_digest(a) != tensor_digest(b)
    assert tensor_digest(np.zeros(0, "f4")) != 0
    assert tensor_digest(np.array(True)) != tensor_digest(np.array(False))


def test_subnormal_numbers_are_not_zero():
    assert tensor_digest(np.array([5e-324])) != tensor_digest(np.array([0.0]))


def test_objects_have_none():
    with pytest.raises(ArgumentError, match="give numbers"):
        tensor_digest(np.array([{}], object))

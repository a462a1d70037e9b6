"""Results side by side: labels united, holes NaN, shared coordinates kept once."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from trajstats.errors import ArgumentError
from trajstats.inference.batch._collect import collect
from trajstats.inference.batch._engine import Outcome


def ok(**variables):
    return Outcome("ok", "", xr.Dataset(**variables))


def test_labels_are_united_in_order_and_what_is_lacking_is_nan():
    one = ok(
        data_vars={"x": ("layer", [1.0, 2.0]), "n": ("step", [1, 2])}, coords={"layer": ["b", "a"], "step": [0, 9]}
    )
    two = ok(
        data_vars={"x": ("layer", [3.0, 4.0]), "n": ("step", [3, 4])}, coords={"layer": ["a", "c"], "step": [5, 9]}
    )
    result = collect([one, Outcome("failed: OSError", "gone"), two], "run")
    assert result["layer"].values.tolist() == ["b", "a", "c"]
    np.testing.assert_array_equal(result["x"], [[1, 2, np.nan], [np.nan] * 3, [np.nan, 3, 4]])
    assert result["step"].values.tolist() == [0, 5, 9]
    np.testing.assert_array_equal(result["n"], [[1, np.nan, 2], [np.nan] * 3, [np.nan, 3, 4]])
    assert result["status"].values.tolist() == ["ok", "failed: OSError", "ok"]


def test_coordinates_that_all_share_stay_as_they_are():
    parts = [
        ok(data_vars={"x": ("pair", [k, 1.0])}, coords={"lag": ("pair", [1, 2]), "own": ("pair", [k, 2])})
        for k in (0, 1)
    ]
    result = collect(parts, "run")
    assert result["lag"].dims == ("pair",)
    assert result["own"].dims == ("run", "pair")


def test_whole_numbers_and_text_stay_what_they_are_where_nothing_is_lacking():
    result = collect([ok(data_vars={"n": 3, "word": "a"}), ok(data_vars={"n": 4, "word": "b", "more": "c"})], "run")
    assert result["n"].dtype.kind == "i"
    assert result["word"].values.tolist() == ["a", "b"]
    assert result["more"].values.tolist() == ["", "c"]


def test_no_result_at_all_and_results_that_do_not_fit_together():
    assert collect([Outcome("failed: OSError", "gone")], "run")["reason"].values.tolist() == ["gone"]
    with pytest.raises(ArgumentError, match=r"'x' has dims \('a',\) in one run and \('b',\) in another"):
        collect([ok(data_vars={"x": ("a", [1.0])}), ok(data_vars={"x": ("b", [1.0])})], "run")

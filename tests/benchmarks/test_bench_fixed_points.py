"""Time of a census of 10,000 starts at N = 100, L = 10, light and heavy weights, on two threads."""

import pytest

from trajstats import RandomNet, fixed_point_census


@pytest.mark.parametrize("law", ["gaussian", "cauchy"])
def test_ten_thousand_starts(benchmark, law):
    net = RandomNet((100,) * 11, law=law, scale=0.9, seed=0)
    census = benchmark.pedantic(
        fixed_point_census, (net, 100), {"starts": 10_000, "rng": 0, "workers": 2}, rounds=1, warmup_rounds=0
    )
    benchmark.extra_info["unconverged"] = float(census.unconverged_share)

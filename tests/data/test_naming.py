"""Names of weights without the wrappers that training code and files put around them."""

import pytest

from trajstats.data._naming import plain_name

SAME = {
    "layers.0.weight": [
        "module.layers.0.weight",
        "_orig_mod.layers.0.weight",
        "_orig_mod.module.layers.0.weight",
        "module._orig_mod.layers.0.weight",
        "model.layers.0._orig_mod.weight",
        "_fsdp_wrapped_module.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.weight",
        "state_dict.model.layers.0.weight",
        "params/layers/0/weight",
        "['params']['layers'][0]['weight']",
        "['layers'][0].weight",
    ],
    "hidden.weight": ["['hidden.weight']", '["hidden.weight"]', "params.hidden.weight"],
    "weight": ["module.weight", "weight"],
    "model": ["model", "module.model"],
}


@pytest.mark.parametrize(("plain", "name"), [(plain, name) for plain, names in SAME.items() for name in names])
def test_wrappers_are_no_part_of_a_name(plain, name):
    assert plain_name(name) == plain


@pytest.mark.parametrize("name", ["encoder.weight", "model_2.weight", "weights_hh", "0", "a[x]", ""])
def test_other_names_stay(name):
    assert plain_name(name) == name

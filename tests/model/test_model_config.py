"""`model`'s section: what is refused, and what a family's preset fills in."""

import dataclasses

import pytest

from model.config import InitializeConfig
from model.families import preset
from tests.tiny_models import tiny


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 768, "num_heads": 10}, "num_heads = 10 does not divide hidden_size = 768. Use 8 or 12."),
        # A mistyped number; a look at everything below it would take a minute.
        ({"hidden_size": 1_000_000_007, "num_heads": 12}, "num_heads = 12 does not divide hidden_size = 1000000007. Use 1 or 1000000007."),
        ({"hidden_size": 10**24 + 7, "num_heads": 12}, "num_heads = 12 does not divide hidden_size = 1000000000000000000000007."),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads = 3 does not divide num_heads = 4. Use 2 or 4."),
        ({"position": "rotary", "hidden_size": 6, "num_heads": 2}, "hidden_size / num_heads = 3 is odd"),
        ({"num_layers": 0}, "num_layers = 0; it must be 1 or more."),
        ({"dropout": 1.0}, "dropout = 1.0; it must be at least 0 and below 1."),
        ({"norm_eps": 0.0}, "norm_eps = 0.0; it must be above 0."),
        ({"norm": "rmsnorm", "norm_bias": True}, 'norm_bias = true, and norm = "rmsnorm" has no bias.'),
        ({"position_offset": -1}, "position_offset = -1; it must be 0 or more."),
        (
            {"initialize": InitializeConfig(method="depth", folder="x", layers=(0, 1, 1))},
            "initialize.layers lists 3 source layers and num_layers = 2. List one per layer.",
        ),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name_value_and_remedy(fields, message):
    with pytest.raises(ValueError) as error:
        tiny(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folder": "x"}, 'method = "scratch" takes no folder'),
        ({"method": "folder"}, "folder is missing"),
        ({"method": "folder", "folder": "x", "layers": (0,)}, 'layers needs method = "depth"'),
    ],
)
def test_an_initialisation_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        InitializeConfig(**fields)


def test_a_preset_fills_in_only_what_the_section_leaves_open():
    section = {"family": "gpt2", "hidden_size": 64, "num_heads": 4, "position": "rotary", "dropout": 0.1}
    fields = preset(section)
    assert (fields["position"], fields["norm"]) == ("rotary", "layernorm")
    assert (fields["intermediate_size"], fields["num_kv_heads"], fields["attention_dropout"]) == (256, 4, 0.1)
    assert "intermediate_size" not in preset({**section, "family": "llama"})
    assert section == {"family": "gpt2", "hidden_size": 64, "num_heads": 4, "position": "rotary", "dropout": 0.1}


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().num_layers = 3  # type: ignore[misc]

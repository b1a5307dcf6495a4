"""Settings of the draw are checked before anything is loaded."""

from typing import Any

import pytest

from inference.generation.settings import SamplingParams


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"new_tokens": 0}, "number of new tokens = 0; it must be 1 or more"),
        ({"temperature": -0.1}, "temperature = -0.1; it must be 0 (greedy)"),
        ({"temperature": 1e-45}, "it must be 0 (greedy) or from 0.01 to 100"),
        ({"repetition_penalty": 1e-45}, "it must be from 0.01 to 100, 1 is none"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": -1}, "top-k = -1; it must be 0 (no limit)"),
        ({"top_p": 0.0}, "top-p = 0; it must be above 0"),
        ({"top_p": 1.1}, "top-p = 1.1"),
        ({"repetition_penalty": 0.0}, "repetition penalty = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed = 9223372036854775808; it must be 0 or more and below 2**63."),
    ],
)
def test_a_setting_out_of_range_says_what_it_may_be(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        SamplingParams(**setting)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

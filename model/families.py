"""The fields that make a GPT-2, a Llama or an OPT. The only family table for layers.

The names of a family's tensors in the Hugging Face format are in `hugging_face/tensors.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "position": "learned",
        "activation": "gelu",
        "use_bias": True,
        "tie_embeddings": True,
    },
    "llama": {
        "norm": "rmsnorm",
        "norm_eps": 1e-5,
        "position": "rotary",
        "rotary_style": "half",
        "activation": "silu_gated",
        "use_bias": False,
        "tie_embeddings": False,
    },
    "opt": {
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "position": "learned",
        "position_offset": 2,
        "activation": "relu",
        "use_bias": True,
        "tie_embeddings": True,
    },
}


def preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` section with its family's fields filled in under its own.

    Also filled in where the section is silent: as many key-value heads as heads, an MLP four times as wide as the stream (not for
    a gated one, for which there is no usual ratio), biases of layer norms where linear layers have theirs, and attention dropout equal to
    `dropout`. An unknown family is left for `ModelConfig` to refuse. A `from`, which `source.complete_from_folder` has read, is left out.
    """
    fields = dict(FAMILIES.get(str(section.get("family")), FAMILIES["gpt2"]))
    fields.update({name: value for name, value in section.items() if name != "from"})
    # Where a field is wrong or missing, that is the mistake to report, not that nothing can be derived from it.
    num_heads, hidden_size = fields.get("num_heads"), fields.get("hidden_size")
    fields.setdefault("num_kv_heads", num_heads if type(num_heads) is int else 1)
    if fields["activation"] != "silu_gated":
        fields.setdefault("intermediate_size", 4 * hidden_size if type(hidden_size) is int else 1)
    fields.setdefault("norm_bias", fields["use_bias"] is True and fields["norm"] == "layernorm")
    if isinstance(fields.get("dropout"), int | float) and math.isfinite(fields["dropout"]):
        fields.setdefault("attention_dropout", fields["dropout"])
    return fields

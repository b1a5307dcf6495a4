"""The families: what makes a model a GPT-2, a Llama or an OPT, in our fields and in its Hugging Face folders.

A new family is an entry of `FAMILIES`: neither layers nor what reads and writes folders asks for its name. Needs no torch.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of model. All but `fields` is about its folders, whose format has the family's name."""

    fields: dict[str, Any]
    """Of `ModelConfig`, where the model section sets none."""

    architecture: str
    """The class of transformers."""
    keys: dict[str, tuple[str, Any]]
    """Our field -> the key of `config.json`, and the value it has when the file leaves it out. Rotary positions need no entry."""
    activations: dict[str, str]
    """Their name -> ours. The first name of one of ours is the one that is written."""
    required: dict[str, Any] = field(default_factory=dict)
    """Their key -> the only value whose arithmetic is ours; left out means this value."""
    repeated: dict[str, str] = field(default_factory=dict)
    """Their key -> the attribute of `ModelConfig` that it must equal; left out means that it does."""
    merged: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """A key that has no field of its own -> the field that is written there, and its value when the file leaves it out. A file in which
    it differs from that field's own key is read, and the difference is named."""

    prefix: str
    """In front of every tensor's name but the head's. Folders saved from the bare model lack it."""
    tensors: dict[str, tuple[str, ...]]
    """Our module -> their modules, whose rows follow each other in ours; `{}` is the block."""
    transposed: bool = False
    """Whether linear weights are stored as (in, out)."""
    always_biased: tuple[str, ...] = ()
    """Modules (by the end of our name) that have a bias in every folder; zero where ours has none."""
    buffers: str = r"(?!)"
    """What the names of tensors match that are computed and not learned, which old versions stored."""

    @property
    def rotary(self) -> bool:
        """Whether its folders are of models with rotary positions. In their rows of q and k, features i and i + E/2 turn together."""
        return bool(self.fields["position"] == "rotary")

    @property
    def position_rows(self) -> int:
        """Unused rows in front of the position table of its folders."""
        return int(self.fields.get("position_offset", 0))


_GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        fields={
            "norm": "layernorm",
            "norm_eps": 1e-5,
            "position": "learned",
            "activation": "gelu",
            "use_bias": True,
            "tie_embeddings": True,
        },
        architecture="GPT2LMHeadModel",
        keys={
            "vocab_size": ("vocab_size", 50257),
            "max_seq_length": ("n_positions", 1024),
            "num_layers": ("n_layer", 12),
            "hidden_size": ("n_embd", 768),
            "num_heads": ("n_head", 12),
            "intermediate_size": ("n_inner", None),
            "norm_eps": ("layer_norm_epsilon", 1e-5),
            "activation": ("activation_function", "gelu_new"),
            "tie_embeddings": ("tie_word_embeddings", True),
            "dropout": ("resid_pdrop", 0.1),
            "attention_dropout": ("attn_pdrop", 0.1),
            "init_std": ("initializer_range", 0.02),
        },
        activations=_GELUS,
        required={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        # What reads the format before `n_positions` was its name, converters to GGUF among it, looks for `n_ctx`.
        merged={"embd_pdrop": ("dropout", 0.1), "n_ctx": ("max_seq_length", None)},
        prefix="transformer.",
        tensors={
            "TokenEmbedding": ("wte",),
            "PositionEmbedding": ("wpe",),
            "Attention.norm": ("h.{}.ln_1",),
            "Attention.qkv": ("h.{}.attn.c_attn",),
            "Attention.out": ("h.{}.attn.c_proj",),
            "MLP.norm": ("h.{}.ln_2",),
            "MLP.up": ("h.{}.mlp.c_fc",),
            "MLP.down": ("h.{}.mlp.c_proj",),
            "FinalNorm.norm": ("ln_f",),
            "Head": ("lm_head",),
        },
        transposed=True,
        always_biased=("norm", "qkv", "out", "up", "down"),
        buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
    ),
    "llama": Family(
        fields={
            "norm": "rmsnorm",
            "norm_eps": 1e-5,
            "position": "rotary",
            "rotary_style": "half",
            "activation": "silu_gated",
            "use_bias": False,
            "tie_embeddings": False,
        },
        architecture="LlamaForCausalLM",
        keys={
            "vocab_size": ("vocab_size", 32000),
            "max_seq_length": ("max_position_embeddings", 2048),
            "num_layers": ("num_hidden_layers", 32),
            "hidden_size": ("hidden_size", 4096),
            "num_heads": ("num_attention_heads", 32),
            "num_kv_heads": ("num_key_value_heads", None),
            "intermediate_size": ("intermediate_size", 11008),
            "norm_eps": ("rms_norm_eps", 1e-6),
            "activation": ("hidden_act", "silu"),
            "use_bias": ("attention_bias", False),
            "tie_embeddings": ("tie_word_embeddings", False),
            "attention_dropout": ("attention_dropout", 0.0),
            "init_std": ("initializer_range", 0.02),
        },
        activations={"silu": "silu_gated"},
        required={"pretraining_tp": 1},
        repeated={"mlp_bias": "use_bias", "head_dim": "head_size"},
        prefix="model.",
        tensors={
            "TokenEmbedding": ("embed_tokens",),
            "Attention.norm": ("layers.{}.input_layernorm",),
            "Attention.qkv": tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
            "Attention.out": ("layers.{}.self_attn.o_proj",),
            "GatedMLP.norm": ("layers.{}.post_attention_layernorm",),
            "GatedMLP.gate": ("layers.{}.mlp.gate_proj",),
            "GatedMLP.up": ("layers.{}.mlp.up_proj",),
            "GatedMLP.down": ("layers.{}.mlp.down_proj",),
            "FinalNorm.norm": ("norm",),
            "Head": ("lm_head",),
        },
        buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    ),
    "opt": Family(
        fields={
            "norm": "layernorm",
            "norm_eps": 1e-5,
            "position": "learned",
            "position_offset": 2,
            "activation": "relu",
            "use_bias": True,
            "tie_embeddings": True,
        },
        architecture="OPTForCausalLM",
        keys={
            "vocab_size": ("vocab_size", 50272),
            "max_seq_length": ("max_position_embeddings", 2048),
            "num_layers": ("num_hidden_layers", 12),
            "hidden_size": ("hidden_size", 768),
            "num_heads": ("num_attention_heads", 12),
            "intermediate_size": ("ffn_dim", 3072),
            "activation": ("activation_function", "relu"),
            "use_bias": ("enable_bias", True),
            "tie_embeddings": ("tie_word_embeddings", True),
            "dropout": ("dropout", 0.1),
            "attention_dropout": ("attention_dropout", 0.0),
            "init_std": ("init_std", 0.02),
        },
        activations=_GELUS,
        required={"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True},
        repeated={"word_embed_proj_dim": "hidden_size"},
        prefix="model.",
        tensors={
            "TokenEmbedding": ("decoder.embed_tokens",),
            "PositionEmbedding": ("decoder.embed_positions",),
            "Attention.norm": ("decoder.layers.{}.self_attn_layer_norm",),
            "Attention.qkv": tuple(f"decoder.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
            "Attention.out": ("decoder.layers.{}.self_attn.out_proj",),
            "MLP.norm": ("decoder.layers.{}.final_layer_norm",),
            "MLP.up": ("decoder.layers.{}.fc1",),
            "MLP.down": ("decoder.layers.{}.fc2",),
            "FinalNorm.norm": ("decoder.final_layer_norm",),
            "Head": ("lm_head",),
        },
        always_biased=("norm",),
    ),
}

if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[tuple(FAMILIES)]  # what a section's check takes for `model.family`


def preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` section with its family's fields filled in under its own.

    Also filled in where the section is silent: as many key-value heads as heads, an MLP four times as wide as the stream (not for
    a gated one, for which there is no usual ratio), biases of layer norms where linear layers have theirs, and attention dropout equal to
    `dropout`. An unknown family is left for `ModelConfig` to refuse. A `from`, which `complete_from_folder` has read, is left out.
    """
    family = FAMILIES.get(str(section.get("family")), FAMILIES["gpt2"])
    fields = {**family.fields, **{name: value for name, value in section.items() if name != "from"}}
    # Where a field is wrong or missing, that is the mistake to report, not that nothing can be derived from it.
    num_heads, hidden_size = fields.get("num_heads"), fields.get("hidden_size")
    fields.setdefault("num_kv_heads", num_heads if type(num_heads) is int else 1)
    if fields["activation"] != "silu_gated":
        fields.setdefault("intermediate_size", 4 * hidden_size if type(hidden_size) is int else 1)
    fields.setdefault("norm_bias", fields["use_bias"] is True and fields["norm"] == "layernorm")
    if isinstance(fields.get("dropout"), int | float) and abs(fields["dropout"]) <= sys.float_info.max:
        fields.setdefault("attention_dropout", fields["dropout"])
    return fields

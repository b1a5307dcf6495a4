"""What a model is: every field that decides its shape or its arithmetic.

Families are presets of these fields (`families.py`); no layer asks which family it belongs to.
Needs neither torch nor DeepSpeed, so that a configuration can be checked in a moment.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from ds_configs.errors import FieldError, require
from model.families import FamilyName

# Tokens up to which attention on a CPU keeps its scores as matrices instead of using the fused kernel. One core, bf16, forward and
# backward, heads of 64: (4, 256) 3.8 against 7.6 ms, (2, 512) 8.4 against 16.8 ms, (1, 1024) 35 against 22 ms.
LONGEST_MATRIX_ROW = 512

# Beyond any use; lists of more layers would fill the memory of who only checks a mistyped number.
MOST_LAYERS = 100_000


@dataclass(frozen=True, kw_only=True)
class InitializeConfig:
    """Where the first weights come from.

    `scratch` draws them from (run seed, layer index). `folder` copies a Hugging Face folder layer by layer. `depth` copies one with
    another number of layers: `layers[i]` names the source layer that layer i starts from.
    """

    method: Literal["scratch", "folder", "depth"] = "scratch"
    folder: str | None = None
    layers: tuple[int, ...] | None = None
    embeddings: bool = True
    """False leaves the source's embedding and head out and draws them anew, which a replaced vocabulary needs."""

    def __post_init__(self) -> None:
        if self.method == "scratch" and (self.folder is not None or self.layers is not None or not self.embeddings):
            raise FieldError(
                "method", ' = "scratch" takes no folder, layers or embeddings; use "folder" or "depth" to start from a folder.'
            )
        if self.method != "scratch" and self.folder is None:
            raise FieldError("folder", f' is missing; method = "{self.method}" copies weights from a Hugging Face folder.')
        if self.method == "folder" and self.layers is not None:
            raise FieldError("layers", ' needs method = "depth"; method = "folder" copies every layer of the source in its order.')


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder-only transformer. Start from `families.preset`, which fills in what a family decides."""

    family: FamilyName
    vocab_size: int
    max_seq_length: int
    """Positions the model knows, in tokens; a run may use shorter rows."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    """Fewer than `num_heads` is grouped-query attention: this many key and value heads are shared evenly."""
    intermediate_size: int

    norm: Literal["layernorm", "rmsnorm"]
    norm_eps: float
    position: Literal["learned", "rotary"]
    activation: Literal["gelu", "gelu_tanh", "relu", "silu_gated"]
    use_bias: bool
    """Biases of the linear layers; the head never has one."""
    norm_bias: bool
    """Biases of layer norms."""
    tie_embeddings: bool

    position_offset: int = 0
    """Unused rows in front of a learned position table (OPT keeps 2)."""
    rotary_style: Literal["half", "interleaved"] = "half"
    """Which two features turn together: (i, i + E/2), or (2i, 2i + 1)."""
    rotary_base: float = 10000.0
    dropout: float = 0.0
    """On the embedding and on what each half-block adds to the residual stream."""
    attention_dropout: float = 0.0
    init_std: float = 0.02
    initialize: InitializeConfig = field(default_factory=InitializeConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_seq_length", "num_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size"):
            require(self, name, getattr(self, name) >= 1, "1 or more")
        require(self, "num_layers", self.num_layers <= MOST_LAYERS, f"at most {MOST_LAYERS}")
        for name in ("norm_eps", "rotary_base", "init_std"):
            require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("dropout", "attention_dropout"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        require(self, "position_offset", self.position_offset >= 0, "0 or more")
        if self.norm_bias and self.norm != "layernorm":
            raise FieldError("norm_bias", f' = true, and norm = "{self.norm}" has no bias. Set it to false, or use "layernorm".')
        layers = self.initialize.layers
        if layers is not None and len(layers) != self.num_layers:
            said = f" lists {len(layers)} source layers and num_layers = {self.num_layers}. List one per layer."
            raise FieldError("initialize.layers", said)
        self._check_divides("num_heads", "hidden_size")
        self._check_divides("num_kv_heads", "num_heads")
        if self.position == "rotary" and self.head_size % 2:
            odd = f" / num_heads = {self.head_size} is odd, and rotary positions turn features in pairs. Use an even head size."
            raise FieldError("hidden_size", odd)

    def _check_divides(self, name: str, whole_name: str) -> None:
        value, whole = getattr(self, name), getattr(self, whole_name)
        if whole % value:
            raise FieldError(name, f" = {value} does not divide {whole_name} = {whole}. Use {_near_divisors(whole, value)}.")

    @property
    def head_size(self) -> int:
        """Features of one head (E)."""
        return self.hidden_size // self.num_heads

    @property
    def kv_size(self) -> int:
        """Features of all keys, or of all values, of one token (K * E)."""
        return self.num_kv_heads * self.head_size

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two projections of its input."""
        return self.activation == "silu_gated"

    @property
    def num_positions(self) -> int:
        """Rows of the learned position table; 0 with rotary positions."""
        return self.max_seq_length + self.position_offset if self.position == "learned" else 0

    @property
    def layer_classes(self) -> list[str]:
        """The model from front to back, by the names of its modules' classes (`layers/`). A tied head is the embedding again."""
        mlp = "GatedMLP" if self.gated else "MLP"
        head = "TokenEmbedding" if self.tie_embeddings else "Head"
        return ["TokenEmbedding", "PositionEmbedding", *["Attention", mlp] * self.num_layers, "FinalNorm", head]


def _near_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` on either side of `wanted`, as "8 or 12"."""
    # No further: a mistyped number may be of any size.
    smaller = [n for n in range(1, min(math.isqrt(number), 100_000) + 1) if number % n == 0]
    divisors = sorted({*smaller, *(number // n for n in smaller)})
    below = [n for n in divisors if n < wanted]
    above = [n for n in divisors if n > wanted]
    return " or ".join(str(n) for n in below[-1:] + above[:1])

"""Parameters, floating-point operations and bytes of a model, from its configuration alone (no torch).

Layers are those of `layers/`, in their order. A multiply and an add are two operations; the backward pass does twice the forward's work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from model.config import LONGEST_MATRIX_ROW, ModelConfig

# Of a softmax and what belongs to it, for one score or one logit: maximum, difference, exponential (counted as four), sum, quotient.
SOFTMAX_OPERATIONS = 8


def layer_parameters(config: ModelConfig) -> list[int]:
    """Parameters each layer holds. A tied head holds the embedding's matrix too, as a pipeline's last stage does."""
    D, M = config.hidden_size, config.intermediate_size
    norm = D * (2 if config.norm_bias else 1)
    bias = int(config.use_bias)
    attention = norm + (D + bias) * (D + 2 * config.kv_size) + (D + bias) * D
    mlp = norm + (D + bias) * M * (2 if config.gated else 1) + (M + bias) * D
    vocabulary = config.vocab_size * D
    return [vocabulary, config.num_positions * D, *[attention, mlp] * config.num_layers, norm, vocabulary]


def block_matrix_parameters(config: ModelConfig) -> list[int]:
    """Parameters of each layer that lie in a block's matrices, which is what Muon updates."""
    D, M = config.hidden_size, config.intermediate_size
    halves = [D * (D + 2 * config.kv_size) + D * D, D * M * (3 if config.gated else 2)]
    return [0, 0, *halves * config.num_layers, 0, 0]


def count_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model; a tied matrix counts once."""
    total = sum(layer_parameters(config))
    return total - config.vocab_size * config.hidden_size if config.tie_embeddings else total


def layer_flops(config: ModelConfig, seq_length: int) -> list[float]:
    """Matrix-product operations per token of each layer, forward and backward.

    Attention scores are counted over the whole T x T square, as is usual for model FLOP utilisation.
    """
    flops = [2 * parameters for parameters in block_matrix_parameters(config)]
    flops[2:-2:2] = [products + 4 * seq_length * config.hidden_size for products in flops[2:-2:2]]
    flops[-1] = 2 * config.hidden_size * config.vocab_size
    return [3.0 * operations for operations in flops]


def flops_per_token(config: ModelConfig, seq_length: int) -> float:
    """Matrix-product operations of training on one token, forward and backward, attention included."""
    return sum(layer_flops(config, seq_length))


def layer_work(config: ModelConfig, seq_length: int) -> list[float]:
    """What balances pipeline stages: `layer_flops`, plus the softmax over attention scores and the cross-entropy over logits."""
    work = layer_flops(config, seq_length)
    for index in range(2, 2 + 2 * config.num_layers, 2):
        work[index] += 3.0 * SOFTMAX_OPERATIONS * config.num_heads * seq_length
    work[-1] += 3.0 * SOFTMAX_OPERATIONS * config.vocab_size
    return work


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How a pipeline is run, as far as its memory and traffic depend on it."""

    seq_length: int
    micro_batch: int
    """Rows in one forward pass."""
    micro_batches: int
    """Forward passes per step and pipeline (gradient accumulation)."""
    replicas: int
    bf16: bool
    sends_bf16: bool
    """Whether gradients travel between replicas in bf16."""
    activation_checkpoint_interval: int = 0
    muon: bool = False
    """The blocks' matrices have one moment (Muon's momentum) instead of Adam's two."""


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """What one pipeline stage holds and does; bytes are of one process."""

    stage: int
    first_layer: int
    num_layers: int
    parameters: int
    flops_per_token: float
    work_ratio: float
    """Work over that of an ideal stage (total / stages); the largest one sets the pace."""
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    update_bytes: int
    """When no activations are held any more: what Adam computes between moments and weights, or the gradients' copies to be summed."""

    @property
    def kept_bytes(self) -> int:
        """Weights, gradients and optimizer."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def peak_bytes(self) -> int:
        """What is kept, and activations or update, whichever is larger; the libraries themselves take some hundred MB more."""
        return self.kept_bytes + max(self.activation_bytes, self.update_bytes)


def stage_summary(config: ModelConfig, parts: Sequence[int], workload: Workload) -> list[StageSummary]:
    """One row a stage. `parts` is the first layer of each stage, then the number of layers.

    Weights and the gradients of a micro-batch are bf16 or fp32; sums of gradients, masters and the optimizer's moments are fp32, the last
    two shared out over replicas (ZeRO-1).
    """
    parameters = layer_parameters(config)
    flops, work = layer_flops(config, workload.seq_length), layer_work(config, workload.seq_length)
    matrices = block_matrix_parameters(config)
    number = len(parts) - 1
    rows = []
    # A single stage holds a tied matrix once, but sums the gradients of its two uses apart.
    tied_once = parameters[0] if config.tie_embeddings and number == 1 else 0
    for stage, (start, stop) in enumerate(pairwise(parts)):
        held = sum(parameters[start:stop]) - tied_once
        by_muon = sum(matrices[start:stop]) if workload.muon else 0
        rows.append(
            StageSummary(
                stage=stage,
                first_layer=start,
                num_layers=stop - start,
                parameters=held,
                flops_per_token=sum(flops[start:stop]),
                work_ratio=sum(work[start:stop]) / (sum(work) / number),
                weight_bytes=held * (2 if workload.bf16 else 4),
                gradient_bytes=held * (2 + 4 if workload.bf16 else 4 + 4) + 4 * tied_once,
                optimizer_bytes=(held * (4 + 8) - 4 * by_muon) // workload.replicas,
                # The first stage runs as many micro-batches ahead as there are stages behind it.
                activation_bytes=_activation_bytes(config, range(start, stop), workload, min(number - stage, workload.micro_batches)),
                # DeepSpeed sums the gradients of all replicas in one flat fp32 copy, which it casts to the type they travel in.
                update_bytes=max((held - by_muon) * (4 + 4) // workload.replicas, held * (4 + 2 if workload.sends_bf16 else 4)),
            )
        )
    return rows


def stage_table(config: ModelConfig, parts: Sequence[int], workload: Workload) -> str:
    """The stages as text, one a line, with a header and the sums."""
    rows = stage_summary(config, parts, workload)
    lines = ["stage  layers   parameters  GFLOP/token  of ideal   weights  gradients  optimizer  activations  update  peak (MiB)"]
    for row in rows:
        span = f"{row.first_layer}-{row.first_layer + row.num_layers - 1}"
        sizes = (row.weight_bytes, row.gradient_bytes, row.optimizer_bytes, row.activation_bytes, row.update_bytes, row.peak_bytes)
        mebibytes = "  ".join(f"{size / 2**20:>{width},.0f}" for size, width in zip(sizes, (8, 9, 9, 11, 6, 10), strict=True))
        lines.append(
            f"{row.stage:>5}  {span:>6}  {row.parameters:>11,}  {row.flops_per_token / 1e9:>11.4f}  {row.work_ratio:>8.1%}  {mebibytes}"
        )
    slowest = max(row.work_ratio for row in rows)
    lines.append(f"{count_parameters(config):,} parameters in all; the slowest stage does {slowest - 1:.1%} more than an even share.")
    return "\n".join(lines)


def _activation_bytes(config: ModelConfig, layers: range, workload: Workload, in_flight: int) -> int:
    """Bytes kept for the backward pass by a stage with this many micro-batches in flight."""
    elements = _layer_activations(config, workload.seq_length)
    tokens, size = workload.seq_length * workload.micro_batch, 2 if workload.bf16 else 4
    head = len(elements) - 1
    # Logits and their gradient, never checkpointed; and those of the micro-batch before, which DeepSpeed keeps in the other of two buffers.
    logits = min(3, 1 + workload.micro_batches) * config.vocab_size * tokens * size if head in layers else 0
    interval = workload.activation_checkpoint_interval
    if not interval:
        return sum(elements[index] for index in layers) * tokens * size * in_flight + logits
    groups = [layers[start : start + interval] for start in range(0, len(layers), interval)]
    recomputed = max(sum(elements[index] for index in group) for group in groups)
    return (len(groups) * config.hidden_size * in_flight + recomputed) * tokens * size + logits


def _layer_activations(config: ModelConfig, seq_length: int) -> list[int]:
    """Elements per token that each layer keeps for its backward pass, logits left out; an estimate.

    Long rows are taken to run in a fused attention kernel, which keeps no scores.
    """
    D, M = config.hidden_size, config.intermediate_size
    masks = D if config.dropout else 0
    scores = config.num_heads * seq_length * (3 if config.attention_dropout else 1) if seq_length <= LONGEST_MATRIX_ROW else 0
    attention = 2 * D + (D + 2 * config.kv_size) + scores + D + masks
    mlp = 2 * D + M * (4 if config.gated else 2) + masks
    return [0, masks, *[attention, mlp] * config.num_layers, D, D]

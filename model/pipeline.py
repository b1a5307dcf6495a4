"""The layer list as a DeepSpeed pipeline: specs, seeded building, partition. The only file of the package that needs DeepSpeed."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime import utils as deepspeed_utils
from deepspeed.runtime.activation_checkpointing import checkpointing
from deepspeed.runtime.pipe.topology import ProcessTopology
from torch import Tensor, nn

from .config import ModelConfig
from .flops import layer_parameters, layer_work
from .gpt import Layer, layers, loss
from .layers import TokenEmbedding, project
from .partition import balance

logger = logging.getLogger(__name__)

# The head is left out: its logits are the largest tensor there is, and the loss that needs them follows at once.
CHECKPOINTED = ["PositionEmbedding", "Attention", "MLP", "GatedMLP", "FinalNorm"]


@dataclass(frozen=True, kw_only=True)
class PipelinePlan:
    """How the layers run as a pipeline."""

    seq_length: int
    micro_batch: int
    partition: str = "flops"
    """`flops`, `measured`, `uniform`, `parameters`, or `type:<regular expression of layer classes>`."""
    parts: tuple[int, ...] | None = None
    """First layer of each stage, then the number of layers: a split decided before (a checkpoint's), instead of `partition`."""
    activation_checkpoint_interval: int = 0
    use_reentrant: bool = False


def build_pipeline(config: ModelConfig, *, topology: ProcessTopology, seed: int, plan: PipelinePlan) -> PipelineModule:
    """This process's stage of the model, on its device, in fp32 until DeepSpeed casts it.

    Every layer's weights come from (seed, its index), whatever the partition and the topology; the global generators are left alone.

    Raises:
        ValueError: If the partition is unknown or does not fit the layers.
    """
    entries = layers(config)
    parts = plan.parts or choose_parts(config, plan, topology.get_dim("pipe"))
    # DeepSpeed prints its seed settings, which do not apply here.
    with contextlib.redirect_stdout(io.StringIO()):
        return GPTPipeline(
            [_spec(entry, config, seed) for entry in entries],
            topology=topology,
            loss_fn=loss,
            partition_method=list(parts),
            activation_checkpoint_interval=plan.activation_checkpoint_interval,
            activation_checkpoint_func=checkpointing.checkpoint if plan.use_reentrant else checkpointing.non_reentrant_checkpoint,
            # The reentrant function loses the gradient of a segment that starts with integer tokens.
            checkpointable_layers=CHECKPOINTED if plan.use_reentrant else ["TokenEmbedding", *CHECKPOINTED],
        )


class GPTPipeline(PipelineModule):
    """A PipelineModule whose split was decided beforehand: `partition_method` is the list of first layers."""

    def _partition_layers(self, method: Sequence[int]) -> None:
        self.parts = list(method)
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])


def choose_parts(config: ModelConfig, plan: PipelinePlan, stages: int) -> list[int]:
    """First layer of each stage, then the number of layers.

    Raises:
        ValueError: If the method is unknown, or there are more stages than layers.
    """
    if plan.partition == "flops":
        return balance(layer_work(config, plan.seq_length), stages)
    if plan.partition == "uniform":
        return deepspeed_utils.partition_uniform(num_items=len(layers(config)), num_parts=stages)
    if plan.partition == "parameters":
        return deepspeed_utils.partition_balanced(weights=layer_parameters(config), num_parts=stages)
    raise ValueError(f'pipeline.partition = "{plan.partition}" is unknown. Use flops, measured, uniform, parameters or type:<regex>.')


def _spec(entry: Layer, config: ModelConfig, seed: int) -> LayerSpec:
    if not entry.tied:
        return _Spec(entry, config, seed)
    return _TiedSpec(entry, config, seed)


class _Spec(LayerSpec):
    """A layer that is built only on the stage that owns it."""

    def __init__(self, entry: Layer, config: ModelConfig, seed: int) -> None:
        super().__init__(entry.module)
        self.entry, self.config, self.seed = entry, config, seed

    def build(self, log: bool = False) -> nn.Module:
        return self.entry.build(self.config, self.seed)


def _project_tied(embedding: TokenEmbedding, hidden: Tensor) -> Tensor:
    return project(embedding.weight, hidden)


class _TiedSpec(TiedLayerSpec):
    """The embedding's matrix at either end of the model; both ends build it from the embedding's index."""

    def __init__(self, entry: Layer, config: ModelConfig, seed: int) -> None:
        super().__init__("embedding", entry.module, forward_fn=_project_tied if entry.index else None)
        self.config, self.seed = config, seed

    def build(self, log: bool = False) -> Any:
        return layers(self.config)[0].build(self.config, self.seed)

"""The layer list as a DeepSpeed pipeline: specs, seeded building, partition. The only file of the package that needs DeepSpeed."""

import contextlib
import io
import re
from collections.abc import Sequence

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime import utils as deepspeed_utils
from deepspeed.runtime.activation_checkpointing import checkpointing
from deepspeed.runtime.pipe.topology import ProcessTopology
from deepspeed.utils import safe_set_full_fp32_param
from torch import Tensor

from model.config import ModelConfig
from model.flops import Workload, layer_parameters, layer_work
from model.hardware.timing import layer_pass_seconds
from model.initialize import Weights
from model.layers import Layer, layers
from model.layers.cross_entropy import loss
from model.layers.embeddings import TokenEmbedding
from model.layers.head import project
from model.partition import balance, check_method

# The head is left out: its logits are the largest tensor there is, and the loss that needs them follows at once.
CHECKPOINTED = ["TokenEmbedding", "PositionEmbedding", "Attention", "MLP", "GatedMLP", "FinalNorm"]

TIED_KEY = "embedding"


class GPTPipeline(PipelineModule):
    """This process's stage of the model, on its device, in fp32 until DeepSpeed casts it.

    Every layer's weights come from (seed, its index), whatever the `parts` (as of `choose_parts`) and the topology; the global
    generators are left alone.
    """

    def __init__(
        self, config: ModelConfig, *, topology: ProcessTopology, seed: int, parts: Sequence[int], activation_checkpoint_interval: int = 0
    ) -> None:
        """Build the layers of this stage.

        Raises:
            ValueError: If the folder the weights come from does not fit the model.
        """
        weights, tied_head = Weights(config, seed), TiedHead()
        specs = [_spec(entry, config, weights, tied_head) for entry in layers(config)]
        # DeepSpeed prints its seed settings, which do not apply here.
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(
                specs,
                topology=topology,
                loss_fn=loss,
                partition_method=list(parts),
                activation_checkpoint_interval=activation_checkpoint_interval,
                # The reentrant function, DeepSpeed's default, loses the gradient of a segment that starts with integer tokens.
                activation_checkpoint_func=checkpointing.non_reentrant_checkpoint,
                checkpointable_layers=CHECKPOINTED,
            )
        self._specs, self._tied_head = specs, tied_head

    def set_fp32_masters(self) -> None:
        """Give a bf16 run's optimizer the first weights as they are, not rounded to bf16: DeepSpeed copies its masters from rounded ones.

        For a new run, once it has its optimizer. Without masters (an fp32 run) there is nothing to do and nothing is done. Layers are
        built again one at a time.
        """
        for index in range(self.parts[self.stage_id], self.parts[self.stage_id + 1]):
            spec = self._specs[index]
            target = self.tied_modules[TIED_KEY] if isinstance(spec, TiedLayerSpec) else self.get_submodule(str(index))
            exact = spec.build()
            for name, weight in target.named_parameters():
                safe_set_full_fp32_param(weight, exact.get_parameter(name).detach().to(weight.device))

    def sum_tied_gradients_apart(self) -> None:
        """Have a single stage sum the gradients of a tied matrix's two uses apart, as two stages do; `add_tied_gradient` must follow.

        Two stages sum them in fp32, each over all micro-batches, and then add the two sums. Autograd would add the two gradients of each
        micro-batch in the working precision: other last bits, so a run that goes on with fewer stages would see other losses.
        """
        self._tied_head.apart = self.num_stages == 1

    def add_tied_gradient(self) -> None:
        """Add the head's sum to that of the embedding; between the last micro-batch of a step and the exchange over replicas."""
        gradient, self._tied_head.gradient = self._tied_head.gradient, None
        if gradient is not None:
            self.tied_modules[TIED_KEY].weight._hp_grad.add_(gradient.flatten())

    def _partition_layers(self, method: Sequence[int]) -> None:
        self.parts = list(method)
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])

    def _synchronize_tied_weights(self) -> None:
        # Copying weights is nothing to differentiate; without this PyTorch warns at the first backward pass.
        with torch.no_grad():
            super()._synchronize_tied_weights()


def choose_parts(config: ModelConfig, method: str, workload: Workload, stages: int) -> list[int]:
    """First layer of each stage, then the number of layers; the same on every rank.

    `method` is one of `partition.METHODS`, or `type:<regular expression of layer classes>`.
    `measured` needs the process group: rank 0 takes the time and tells the others. Its result differs from run to run, so a resumed run
    must be given the parts it started with.

    Raises:
        ValueError: If the method is unknown or matches no layer, or there are more stages than layers.
    """
    check_method(method, config.layer_classes)
    by_flops = balance(layer_work(config, workload.seq_length), stages)  # on every rank, as it refuses too many stages
    if method == "flops":
        return by_flops
    if method == "measured":
        return _measured_parts(config, workload, stages)
    if method == "uniform":
        parts = deepspeed_utils.partition_uniform(num_items=len(config.layer_classes), num_parts=stages)
    elif method == "parameters":
        parts = deepspeed_utils.partition_balanced(weights=layer_parameters(config), num_parts=stages)
    else:
        pattern = re.compile(method.removeprefix("type:"), re.IGNORECASE)
        matching = [int(pattern.search(name) is not None) for name in config.layer_classes]
        parts = deepspeed_utils.partition_balanced(weights=matching, num_parts=stages)
    return [int(part) for part in parts]  # numpy's integers do not go into JSON


def _measured_parts(config: ModelConfig, workload: Workload, stages: int) -> list[int]:
    accelerator = get_accelerator()
    device = torch.device(accelerator.current_device_name())
    parts = torch.zeros(stages + 1, dtype=torch.int64, device=device)
    if dist.get_rank() == 0:
        passes = layer_pass_seconds(config, workload, device=device, synchronize=accelerator.synchronize)
        parts.copy_(torch.tensor(balance([sum(forward_and_backward) for forward_and_backward in passes], stages)))
    dist.broadcast(parts, src=0)
    return [int(part) for part in parts.tolist()]


def _spec(entry: Layer, config: ModelConfig, weights: Weights, head: "TiedHead") -> LayerSpec:
    """A layer that is built only on the stage that owns it; both ends of a tied model build the embedding's matrix from its index."""
    spec, built = LayerSpec(entry.module), entry
    if entry.tied:
        spec, built = TiedLayerSpec(TIED_KEY, entry.module, forward_fn=head if entry.index else None), layers(config)[0]
    spec.build = lambda log=False: built.build(config, weights)
    return spec


class TiedHead:
    """Hidden states to logits with the embedding's matrix."""

    def __init__(self) -> None:
        self.apart = False
        self.gradient: Tensor | None = None
        """Of this use of the matrix, summed in fp32 over the micro-batches of a step; only if `apart`."""

    def __call__(self, embedding: TokenEmbedding, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        weight: Tensor = embedding.weight
        if self.apart and torch.is_grad_enabled():
            weight = weight.detach().requires_grad_()
            weight.register_post_accumulate_grad_hook(self._add)
        return project(weight, hidden)

    def _add(self, weight: Tensor) -> None:
        assert weight.grad is not None
        if self.gradient is None:
            self.gradient = weight.grad.float()
        else:
            self.gradient.add_(weight.grad)
        weight.grad = None

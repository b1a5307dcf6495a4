"""What a step does with gradients: take their norm over all ranks, clip them, and apply them to fp32 masters.

They have been summed in fp32 and averaged over replicas before, by DeepSpeed's class and engine. Between replicas they travel in
the type that `communication_data_type` names, by default the weights'.

Masters and sums are shared out over replicas (ZeRO stage 1). The update itself is the basic optimizer's: torch's AdamW, or `muon.py`.

DeepSpeed has two of these, one for bf16 and one for fp32 weights, which differ in what they clip and in what they write. Here both
precisions use the former, so that a run can change from one to the other and every checkpoint has one form.
"""

from collections.abc import Sequence
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.precision_config import DeepSpeedBF16Config
from deepspeed.runtime.utils import clip_tensors_by_global_norm, is_invalid_grad_norm
from torch import Tensor

from model.hardware.devices import has_fp64
from training.health.stage_clock import StageClock


class ShardedOptimizer(BF16_Optimizer):
    """DeepSpeed's BF16_Optimizer for weights of either precision, with Muon under a pipeline and a norm that no partition changes."""

    def __init__(self, optimizer: Any, param_names: dict[Tensor, str], *, mpu: Any, clock: StageClock, **settings: Any) -> None:
        """Wrap the basic optimizer of this stage's parameters. `clock` is told when this rank waits; `settings` are DeepSpeed's."""
        # Two things are kept from DeepSpeed 0.19.8's constructor. It asks whether bf16 is enabled, although nothing in it depends on that;
        # and it refuses Muon with any `mpu` because tensor parallelism would split matrices, which a pipeline's grid does not do.
        config = DeepSpeedBF16Config(enabled=True, immediate_grad_update=settings.pop("immediate_grad_update"))
        super().__init__(optimizer, param_names, bfloat16_config=config, mpu=None, grad_acc_dtype=torch.float32, **settings)
        self.mpu = mpu
        self._clock = clock

    @property
    def fp16_groups(self) -> list[list[Tensor]]:
        """The weights, under the name by which the engine asks for them in an fp32 run."""
        groups: list[list[Tensor]] = self.bf16_groups
        return groups

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip, update the masters, copy them to the weights. A norm that is not finite skips all of it, as `overflow` says."""
        assert closure is None, "the engine has run the backward pass"
        gradients, _ = self.get_grads_for_norm()
        squares = sum_of_squares(gradients)
        with self._clock.waiting():
            dist.all_reduce(squares, group=self.mpu.get_model_parallel_group())
        norm = squares.sqrt().float()  # The same to the last bit for every partition.
        self.overflow = is_invalid_grad_norm(norm)
        self._global_grad_norm = float("inf") if self.overflow else norm
        if self.overflow:
            self.zero_grad(set_to_none=False)
            return
        if self.clip_grad > 0:
            clip_tensors_by_global_norm(self.get_grads_for_norm(for_clipping=True), max_norm=self.clip_grad, global_norm=norm, mpu=self.mpu)
        for masters, partition in zip(self.fp32_groups_flat_partition, self.fp32_groups_gradient_flat_partition, strict=True):
            masters.grad = partition
        if self._uses_muon:
            self._prepare_muon_updates()
        self.optimizer.step()
        self._lazy_init_hp_params_optimizer_state()  # Moments exist from the first step on.
        with self._clock.waiting():  # All but a copy of it is the all-gather over replicas.
            self.update_lp_params()
        self.clear_hp_grads()


def sum_of_squares(gradients: Sequence[Tensor]) -> Tensor:
    """This stage's part of the norm, an fp64 scalar that hardly depends on the order of additions.

    DeepSpeed adds the squares of a stage's tensors in fp32 and then adds the stages: another cut is another order of additions, another
    last bit in the clipping factor, and from there losses that drift apart. In fp64 the order no longer shows. DeepSpeed also stops on a
    stage whose only matrix is counted by another one (a tied head alone on the last stage), which is nothing to add.
    """
    device = get_accelerator().current_device_name()
    # A few consumer GPUs have no fp64; there the last bit depends on the partition, as it does in DeepSpeed.
    precision = torch.float64 if has_fp64(get_accelerator().device_name()) else torch.float32
    squares = [tensor.detach().float().norm().to(device, precision).square() for tensor in gradients]
    return torch.stack(squares).sum() if squares else torch.zeros((), device=device, dtype=precision)

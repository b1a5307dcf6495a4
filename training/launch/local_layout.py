"""How many ranks are started on this machine, in pipelines of how many stages: from its devices and the configuration. No torch here.

On a cluster the hostfile's slots or the launcher decide. The arithmetic of a batch is `training/batch_size.py`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from training.batch_size import KEYS, can_split, resolve_batch

if TYPE_CHECKING:
    from model.hardware.devices import Devices

# Ranks a CPU can hold per core before they do nothing but wait for each other.
MOST_RANKS_PER_CORE = 8


def lay_out(values: Mapping[str, Any], devices: "Devices") -> tuple[int, int, str]:
    """As many whole pipelines as fit on the devices; with fewer devices than stages, one pipeline of fewer stages.

    The global batch stays what it is. On a CPU ranks share cores, and the configuration alone decides.

    Returns:
        Stages, replicas, and a line about what is not as the configuration or the machine would have it; empty if all is.

    Raises:
        ValueError: If the batch keys are wrong, or pin more pipelines than fit.
    """
    batch = resolve_batch(values, None)
    room = devices.count * (MOST_RANKS_PER_CORE if devices.is_cpu else 1)
    if batch.world_size > room and (devices.is_cpu or batch.replicas > 1):
        raise ValueError(
            f"{KEYS[0]} = {batch.train_batch_size} means {batch.replicas} pipelines of {batch.stages} stages = {batch.world_size} ranks; "
            f"this machine has {devices}. On a cluster: .venv/bin/deepspeed --hostfile hostfiles/32nodes run_pretrain.sh CONFIG. Or run "
            f"one pipeline here: {KEYS[0]}={batch.micro_batch * batch.accumulation}."
        )
    if devices.is_cpu:
        return batch.stages, batch.replicas, ""
    if devices.count < batch.stages:
        note = f"{devices} for {batch.stages} stages: training with pipeline.stages={devices.count}; the batch stays the same."
        return devices.count, 1, note
    replicas, why = batch.replicas, "the batch keys ask for no more"
    if not batch.pinned:
        most = devices.count // batch.stages
        replicas = next(fewer for fewer in range(most, 0, -1) if can_split(values, batch.stages * fewer))
        why = f"{most} pipelines do not divide {KEYS[0]} = {values.get(KEYS[0])}" if replicas < most else f"a pipeline takes {batch.stages}"
    used = batch.stages * replicas
    idle = devices.count - used
    return batch.stages, replicas, f"{used} of {devices} are used, {idle} idle: {why}." if idle else ""

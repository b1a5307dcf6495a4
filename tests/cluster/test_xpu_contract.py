"""What this project relies on in DeepSpeed's and torch's XPU classes, checked without an Intel GPU.

This proves that names and values are as expected. It proves no execution: nothing here has run on an XPU.
"""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import ds_configs
from training.launch.process_group import device_index
from training.launch.world import World


@pytest.fixture(scope="module")
def xpu():
    from deepspeed.accelerator.xpu_accelerator import XPU_Accelerator

    return XPU_Accelerator()


def test_the_backend_is_xccl_as_long_as_the_old_bindings_are_not_installed(xpu):
    assert importlib.util.find_spec("oneccl_bindings_for_pytorch") is None
    assert xpu.device_name() == "xpu"
    assert xpu.device_name(3) == "xpu:3"
    assert xpu.communication_backend_name() == "xccl"
    assert "xccl" in torch.distributed.Backend.backend_list


def test_the_runs_precision_is_supported(xpu):
    assert {torch.bfloat16, torch.float32} <= set(xpu.supported_dtypes())


def test_the_launcher_shows_every_rank_the_devices_of_its_host_and_exports_nothing(xpu):
    environment = {}
    xpu.set_visible_devices_envs(environment, list(range(6)))
    assert environment == {"ZE_AFFINITY_MASK": "0,1,2,3,4,5"}
    assert xpu.visible_devices_envs() == ["ZE_AFFINITY_MASK"]
    assert xpu.export_envs() == []  # so CCL_, FI_ and ZE_ variables have to stand in .deepspeed_env


def test_builders_are_those_of_the_xpu_and_no_run_needs_one(xpu, root):
    assert xpu.op_builder_dir() == "deepspeed.ops.op_builder.xpu"
    assert xpu.get_op_builder("FusedAdamBuilder").__module__ == "deepspeed.ops.op_builder.xpu.fused_adam"
    assert xpu.get_op_builder("ThereIsNone").__name__ == "NotImplementedBuilder"
    for path in sorted((root / "ds_configs").glob("*.json")):
        parameters = ds_configs.load(path).values["optimizer"]["params"]
        assert parameters.get("torch_adam") is True, path  # FusedAdam would be compiled at the start, by a compiler nodes may lack


def test_everything_the_project_asks_of_the_accelerator_is_there(xpu, root):
    asked = names_asked_of_the_accelerator(root)
    assert {"set_device", "device_count", "current_device_name"} <= asked
    assert [name for name in sorted(asked) if not callable(getattr(xpu, name, None))] == []
    for name in ("set_device", "device_count", "current_device", "get_rng_state", "set_rng_state", "is_available", "memory_allocated"):
        assert callable(getattr(torch.xpu, name))


def test_stages_are_timed_by_events_in_the_devices_queue(xpu):
    assert not xpu.use_host_timers()
    assert xpu.Event is torch.xpu.Event
    assert all(callable(getattr(torch.xpu.Event, name)) for name in ("record", "elapsed_time"))


def names_asked_of_the_accelerator(root):
    """Methods of DeepSpeed's accelerator that our packages call."""
    asked = set()
    for package in ("training", "inference", "model"):
        for path in (root / package).rglob("*.py"):
            asked |= set(re.findall(r"(?:get_accelerator\(\)|accelerator)\.(\w+)\(", path.read_text(encoding="utf-8")))
    return asked - {"get_accelerator"}  # deepspeed.accelerator.get_accelerator itself


def test_the_requirements_pin_the_xpu_build_of_the_same_torch_and_name_no_index(root):
    lines = [line for line in (root / "requirements-xpu.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "-r requirements.txt"
    (xpu_pin,) = map(Requirement, lines[1:])
    everywhere = {pin.name: pin for pin in map(Requirement, _pins(root / "requirements.txt"))}
    (version,) = [specifier.version for specifier in xpu_pin.specifier]
    assert version.endswith("+xpu")
    # So a later ./run_pretrain.sh, which wants requirements.txt, leaves the XPU build in place.
    assert everywhere["torch"].specifier.contains(version)


def _pins(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith(("#", "-r"))]


def test_each_rank_takes_its_own_device_and_too_many_ranks_are_told_of_tiles_and_cards():
    def world(local_rank, local_size):
        return World(rank=local_rank, local_rank=local_rank, size=12, local_size=local_size, master_addr="a", master_port=1)

    assert [device_index(world(rank, 6), 6, "0,1,2,3,4,5") for rank in range(6)] == list(range(6))
    assert device_index(world(5, 6), 12, None) == 5
    assert device_index(world(5, 6), 1, "5") == 0  # mpiexec with a script that shows one tile to each rank
    with pytest.raises(ValueError, match=r"12 ranks on a host with 6 devices\. .* COMPOSITE each card"):
        device_index(world(7, 12), 6, "0,1,2,3,4,5")
    with pytest.raises(ValueError, match="2 ranks on a host with 1 devices"):
        device_index(world(0, 2), 1, "0,1")

"""What this project relies on in DeepSpeed's and torch's XPU classes, checked without an Intel GPU.

This proves that names and values are as expected. It proves no execution: nothing here has run on an XPU.
"""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe.module import PipelineModule
from packaging.requirements import Requirement

import ds_configs
from model.hardware import devices
from model.hardware.devices import ACCELERATORS
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
    assert xpu.visible_devices_envs() == [ACCELERATORS["xpu"]] == ["ZE_AFFINITY_MASK"]
    assert xpu.export_envs() == []  # so CCL_, FI_ and ZE_ variables have to stand in .deepspeed_env


def test_builders_are_those_of_the_xpu_and_no_run_needs_one(xpu, root):
    assert xpu.op_builder_dir() == "deepspeed.ops.op_builder.xpu"
    assert xpu.get_op_builder("FusedAdamBuilder").__module__ == "deepspeed.ops.op_builder.xpu.fused_adam"
    assert xpu.get_op_builder("ThereIsNone").__name__ == "NotImplementedBuilder"
    for path in sorted((root / "ds_configs").glob("*.json")):
        parameters = ds_configs.load(path).values["optimizer"]["params"]
        assert parameters.get("torch_adam") is True, path  # FusedAdam would be compiled at the start, by a compiler nodes may lack


def test_deepspeed_would_ask_its_table_of_operators_for_one_that_an_xpu_has_not(xpu):
    # For CUDA there is no such builder. `start` sets the table, or every rank would run a compiler to fill it.
    assert xpu.create_op_builder("ShareMemCommBuilder").NAME == "deepspeed_not_implemented"


def test_everything_the_project_asks_of_the_accelerator_is_there(xpu, root):
    asked = names_asked_of_the_accelerator(root)
    assert {"set_device", "synchronize", "current_device_name"} <= asked
    assert [name for name in sorted(asked) if not callable(getattr(xpu, name, None))] == []
    # What the class makes of them is there in torch too. Other methods of it are not: `reset_max_memory_cached` calls what torch.xpu lacks.
    behind = {name for method in asked for name in re.findall(r"torch\.xpu\.(\w+)", source_of(type(xpu), method))}
    assert {"set_device", "max_memory_allocated", "reset_peak_memory_stats", "Event"} <= behind
    assert [name for name in sorted(behind) if not callable(getattr(torch.xpu, name, None))] == []


def source_of(kind, method):
    found = inspect.getattr_static(kind, method)
    return inspect.getsource(getattr(found, "fget", found))


def test_what_is_asked_of_torch_itself_about_an_xpu_is_there():
    assert "has_fp64" in (torch.xpu.get_device_properties.__doc__ or "")
    assert inspect.signature(torch.xpu.get_device_properties).parameters["device"].default is None  # this rank's own
    for name in ("get_rng_state", "set_rng_state"):  # what torch.random.fork_rng takes of a device's module
        assert callable(getattr(torch.xpu, name))


def test_deepspeed_takes_local_rank_for_the_index_of_a_device_which_start_sets():
    for place in (PipelineModule.__init__, DeepSpeedEngine._set_distributed_vars):
        assert re.search(r"device_name\((self\.local_rank|device_rank)\)", inspect.getsource(place))
    assert "OMPI_COMM_WORLD_LOCAL_RANK" in inspect.getsource(
        DeepSpeedEngine._configure_with_arguments
    )  # has to be the same, if it is there


def test_stages_are_timed_by_events_in_the_devices_queue(xpu):
    assert not xpu.use_host_timers()
    assert xpu.Event is torch.xpu.Event
    assert all(callable(getattr(torch.xpu.Event, name)) for name in ("record", "elapsed_time"))


def names_asked_of_the_accelerator(root):
    """Methods of DeepSpeed's accelerator that our packages call."""
    asked = set()
    for package in ("training", "inference", "model"):
        for path in (root / package).rglob("*.py"):
            # Called, or handed on as a function.
            asked |= set(re.findall(r"(?:get_accelerator\(\)|\baccelerator)\.(\w+)[(),]", path.read_text(encoding="utf-8")))
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


def test_each_rank_takes_its_own_device_and_too_many_ranks_are_told_of_tiles_and_cards(monkeypatch):
    def index(local_rank, local_size, visible, mask):
        monkeypatch.setattr(devices, "_count", lambda kind: visible if kind == "xpu" else 0)
        world = World(rank=local_rank, local_rank=local_rank, size=12, local_size=local_size, master_addr="a", master_port=1)
        return device_index(world, {"ZE_AFFINITY_MASK": mask} if mask else {})

    assert [index(rank, 6, 6, "0,1,2,3,4,5") for rank in range(6)] == list(range(6))
    assert index(5, 6, 12, None) == 5
    assert index(5, 6, 1, "5") == 0  # mpiexec with a script that shows one tile to each rank
    assert index(5, 6, 0, "5") is None  # cores, of which none is a rank's own
    with pytest.raises(ValueError, match=r"12 ranks on a host with 6 xpu devices\. .* COMPOSITE each card"):
        index(7, 12, 6, "0,1,2,3,4,5")
    with pytest.raises(ValueError, match="2 ranks on a host with 1 xpu device"):
        index(0, 2, 1, "0,1")

"""What this project relies on in DeepSpeed's and torch's CUDA classes, checked without an NVIDIA GPU. It proves no execution."""

import base64
import importlib
import inspect
import json

import pytest
import torch

from model.hardware import devices
from model.hardware.devices import ACCELERATORS, Devices, find_devices
from tests.cluster.test_xpu_contract import names_asked_of_the_accelerator
from training.launch.local import launcher


@pytest.fixture(scope="module")
def cuda():
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    return CUDA_Accelerator()


def test_names_backend_and_mask_are_as_a_start_expects_them(cuda):
    assert cuda.device_name() == "cuda"
    assert cuda.communication_backend_name() == "nccl"
    assert cuda.visible_devices_envs() == [ACCELERATORS["cuda"]] == ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize(
    ("ranks", "mask"), [(1, "5"), (2, "2,3"), (1, "2,3"), (2, "4,5,6"), (2, "GPU-8932f937,MIG-a1"), (2, None), (2, ""), (1, "0.0,0.1")]
)
@pytest.mark.parametrize("kind", ACCELERATORS)
def test_a_mask_that_is_set_stays_as_it_is_when_deepspeeds_launcher_writes_its_own(monkeypatch, kind, ranks, mask):
    module = importlib.import_module(f"deepspeed.accelerator.{kind}_accelerator")
    accelerator = getattr(module, f"{kind.upper()}_Accelerator")()
    monkeypatch.setattr(devices, "_count", lambda one: 2 if one == kind else 0)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv(ACCELERATORS[kind], raising=False)
    if mask is not None:
        monkeypatch.setenv(ACCELERATORS[kind], mask)

    words, environment = launcher(ranks)
    slots = json.loads(base64.urlsafe_b64decode(words[words.index("--world_info") + 1]))["localhost"]
    assert len(slots) == ranks, "the launcher starts a rank for each"
    accelerator.set_visible_devices_envs(environment, slots)  # As deepspeed.launcher.launch does.
    assert environment[ACCELERATORS[kind]] == mask or not mask
    assert environment["DS_ACCELERATOR"] == kind


def test_everything_the_project_asks_of_the_accelerator_is_there(cuda, root):
    assert [name for name in names_asked_of_the_accelerator(root) if not callable(getattr(cuda, name, None))] == []


def test_each_kind_of_device_is_a_module_of_torch_that_counts_and_knows_bf16():
    for kind in ACCELERATORS:
        module = getattr(torch, kind)
        assert module.device_count() == 0 or module.is_available()
        assert callable(module.is_bf16_supported)
    # An old card emulates bf16 and answers yes unless it is asked so.
    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters


def test_one_two_and_seven_devices_are_counted_by_torchs_answer(monkeypatch):
    for count in (1, 2, 7):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert find_devices({}) == Devices("cuda", count)
    assert devices.has_fp64("cuda")

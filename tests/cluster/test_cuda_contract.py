"""What this project relies on in DeepSpeed's and torch's CUDA classes, checked without an NVIDIA GPU. It proves no execution."""

import inspect

import pytest
import torch

from model.hardware import devices
from model.hardware.devices import ACCELERATORS, Devices, find_devices
from tests.cluster.test_xpu_contract import names_asked_of_the_accelerator


@pytest.fixture(scope="module")
def cuda():
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    return CUDA_Accelerator()


def test_names_backend_and_mask_are_as_a_start_expects_them(cuda):
    assert cuda.device_name() == "cuda"
    assert cuda.communication_backend_name() == "nccl"
    assert cuda.visible_devices_envs() == ["CUDA_VISIBLE_DEVICES"]


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

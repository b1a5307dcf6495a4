"""What a run computes in follows from the machine, from what it was started with, or from what was said; and the reason is told."""

import pytest
import torch
from torch.utils.benchmark import Timer

from model.hardware import devices, precision
from model.hardware.devices import Devices, find_devices
from model.hardware.precision import Speeds, choose_precision, measure_products

FAST, EVEN, SLOW, VERY_SLOW = Speeds(70, 200), Speeds(70, 70), Speeds(70, 40), Speeds(55, 0.4)


def on_a_cpu_with(speeds, monkeypatch):
    monkeypatch.setattr(precision, "measure_products", lambda: speeds)


def test_a_cpu_takes_bf16_where_its_products_are_not_slower(monkeypatch):
    for speeds, bf16 in ((FAST, True), (EVEN, True), (SLOW, False), (VERY_SLOW, False)):
        on_a_cpu_with(speeds, monkeypatch)
        chosen = choose_precision("auto", "cpu")
        assert (chosen.bf16, chosen.warning) == (bf16, None)
    assert str(chosen) == "precision: fp32, because 256 x 256 products run at 0.4 GFLOP/s in bf16 and 55 in fp32"
    assert chosen.dtype == torch.float32


def test_true_and_false_mean_what_they_say_with_a_warning_from_twice_as_slow_on(monkeypatch):
    for speeds, warned in ((FAST, False), (SLOW, False), (VERY_SLOW, True)):
        on_a_cpu_with(speeds, monkeypatch)
        assert not choose_precision(False, "cpu").bf16
        chosen = choose_precision(True, "cpu")
        assert chosen.bf16
        assert (chosen.warning is not None) == warned
    assert "its products take 138 times as long as fp32's" in str(chosen.warning)
    assert "bf16.enabled=false trains in fp32" in str(chosen.warning)


def test_a_resumed_run_keeps_its_precision_and_says_where_it_is_slow(monkeypatch):
    on_a_cpu_with(VERY_SLOW, monkeypatch)
    kept = choose_precision("auto", "cpu", saved="bf16")
    assert kept.bf16
    assert "the run was started in it" in str(kept.warning)
    on_a_cpu_with(FAST, monkeypatch)
    assert not choose_precision("auto", "cpu", saved="fp32").bf16
    assert choose_precision(True, "cpu", saved="fp32").bf16
    assert choose_precision("auto", "cpu", saved="bf16").warning is None


def test_an_accelerator_is_asked_and_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "measure_products", None)
    for fits in (True, False):
        monkeypatch.setattr(precision, "has_bf16", lambda kind, fits=fits: fits)
        assert choose_precision("auto", "cuda").bf16 == fits
        assert choose_precision("auto", "xpu", saved="bf16").bf16
        assert (choose_precision(True, "cuda").warning is None) == fits


def test_the_measurement_takes_a_moment_and_agrees_with_products_of_a_models_size():
    speeds = measure_products()
    assert min(speeds.fp32, speeds.bf16) > 0.01
    left, right = torch.ones(512, 256), torch.ones(256, 1024)
    larger = {}
    for dtype in (torch.float32, torch.bfloat16):
        factors = left.to(dtype), right.to(dtype)
        larger[dtype] = min(Timer("a @ b", globals={"a": factors[0], "b": factors[1]}).timeit(3).times[0] for _ in range(2))
    ratio = larger[torch.float32] / larger[torch.bfloat16]
    # Only where the answer is clear: between the two, either precision is right.
    if ratio > 3 or ratio < 1 / 3:
        assert (speeds.bf16 > speeds.fp32) == (ratio > 1)


def test_devices_are_accelerators_if_there_are_any_and_cores_if_not(monkeypatch):
    monkeypatch.setattr(devices, "_count", lambda kind: {"xpu": 0, "cuda": 7}[kind])
    assert find_devices({}) == Devices("cuda", 7)
    assert find_devices({"DS_ACCELERATOR": "cpu"}).is_cpu
    monkeypatch.setattr(devices, "_count", lambda kind: {"xpu": 6, "cuda": 1}[kind])
    assert str(find_devices({})) == "6 xpu devices"
    assert str(find_devices({"DS_ACCELERATOR": "cuda"})) == "1 cuda device"
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {2, 3, 5})
    assert str(find_devices({"DS_ACCELERATOR": "cpu"})) == "3 cores"


def test_a_kind_of_device_that_is_not_there_or_not_known_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "_count", lambda kind: 0)
    with pytest.raises(ValueError, match=r"DS_ACCELERATOR = xpu, but torch \S+ sees no such device here"):
        find_devices({"DS_ACCELERATOR": "xpu"})
    with pytest.raises(ValueError, match=r'DS_ACCELERATOR = "tpu"; this project runs on xpu, cuda or cpu'):
        find_devices({"DS_ACCELERATOR": "tpu"})

"""What a run does otherwise on devices, tried on a CPU that takes their place (stand_in_device.py). It proves no execution on one."""

import pytest
import torch

from tests.training.stand_in_device import MIB, RNG_STATE

pytestmark = pytest.mark.distributed


def test_ranks_that_see_one_device_each_take_it_and_a_cpu_goes_on_with_their_run(make_run):
    run = make_run(training__peak_tflops_per_device=None, bf16__enabled="auto")
    run.start("training.steps=4", fault="one device each")
    code, output = run.finish()
    assert code == 0, output
    assert "precision: bf16, which this xpu device has" in output

    peaks = [record["memory/stage_0_gib"] for record in run.records() if "memory/stage_0_gib" in record]
    assert peaks == [pytest.approx(3 * MIB / 2**30, abs=1e-3)] * 4, "the products that find a device's peak are not the run's"
    state = torch.load(run.folder / "checkpoints/step00000004/random_state_rank00001.pt", weights_only=True)
    assert torch.equal(state["device"], RNG_STATE)

    assert "resuming" in run.run("training.steps=6")
    assert sorted(run.curve()) == [1, 2, 3, 4, 5, 6]


def test_more_ranks_than_devices_are_a_mistake_that_is_told_before_the_ranks_meet(make_run):
    run = make_run()
    run.start(fault="one device for all")
    code, output = run.finish()
    assert code == 2, output  # Of 1 a supervisor would try it again.
    assert "2 ranks on a host with 1 xpu device. Start one rank a device" in output
    assert not run.folder.exists()

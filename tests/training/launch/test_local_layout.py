"""One GPU, two, seven: how many pipelines of how many stages, as a function of devices and configuration alone."""

import pytest

import ds_configs
from model.hardware.devices import Devices
from training.batch_size import resolve_batch
from training.launch.local_layout import MOST_RANKS_PER_CORE, lay_out

QUICKSTART, REFERENCE = "ds_configs/quickstart.json", "ds_configs/hongloumeng_500m.json"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
    monkeypatch.chdir(root)


def laid_out(path, devices, *overrides):
    values = ds_configs.load(path, overrides).values
    stages, replicas, note = lay_out(values, devices)
    batch = resolve_batch({**values, "pipeline": {**values["pipeline"], "stages": stages}}, stages * replicas)
    return stages, replicas, note, batch.train_batch_size


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize(
    ("count", "stages", "replicas", "note"),
    [
        (1, 1, 1, "1 {} device for 2 stages: training with pipeline.stages=1; the batch stays the same."),
        (2, 2, 1, ""),
        (3, 2, 1, "2 of 3 {} devices are used, 1 idle: a pipeline takes 2."),
        (4, 2, 2, ""),
        # 32 rows in micro-batches of 4 are 8, which three pipelines cannot share.
        (7, 2, 2, "4 of 7 {} devices are used, 3 idle: 3 pipelines do not divide train_batch_size = 32."),
        (16, 2, 8, ""),
    ],
)
def test_as_many_whole_pipelines_as_fit_and_the_batch_stays(kind, count, stages, replicas, note):
    assert laid_out(QUICKSTART, Devices(kind, count)) == (stages, replicas, note.format(kind), 32)


def test_on_a_cpu_the_configuration_decides():
    for cores in (1, 2, 96):
        assert laid_out(QUICKSTART, Devices("cpu", cores)) == (2, 1, "", 32)


@pytest.mark.parametrize("devices", [Devices("cpu", 2), Devices("cuda", 8), Devices("xpu", 6)])
def test_a_run_that_pins_more_pipelines_than_fit_is_refused_with_the_way_out(devices):
    with pytest.raises(ValueError, match=rf"32 pipelines of 6 stages = 192 ranks; this machine has {devices}.*train_batch_size=24"):
        laid_out(REFERENCE, devices)
    stages, replicas, _, batch_size = laid_out(REFERENCE, devices, "train_batch_size=24")
    assert (stages, replicas, batch_size) == (6, 1, 24)


def test_one_pinned_pipeline_gets_fewer_stages_too():
    stages, replicas, _, batch_size = laid_out(REFERENCE, Devices("cuda", 4), "train_batch_size=24")
    assert (stages, replicas, batch_size) == (4, 1, 24)


def test_a_large_machine_may_hold_the_reference_run():
    for devices in (Devices("cpu", 192 // MOST_RANKS_PER_CORE), Devices("xpu", 192)):
        assert laid_out(REFERENCE, devices)[:2] == (6, 32)

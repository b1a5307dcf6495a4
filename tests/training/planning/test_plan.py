"""`python -m training.plan`: figures that can be worked out by hand, the command, and its picture."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

import ds_configs
from ds_configs.atomic_files import write_json
from model.flops import count_parameters, layer_parameters, stage_summary
from tests.training.checkpoint_files import write_checkpoint
from training import plan as command
from training.config import resolve, with_precision
from training.planning.costs import HOLES, LIBRARIES_BYTES, UPDATE_BYTES, layouts, plan_on, process_bytes, ring_bytes, search
from training.planning.data_sheets import DEVICES
from training.planning.measured_plan import plan_probed
from training.planning.probe import Probed

REFERENCE = "ds_configs/hongloumeng_500m.json"


@pytest.fixture(scope="module")
def run():
    return with_precision(resolve(ds_configs.read(REFERENCE, [])), bf16=True)


def test_the_best_interval_loses_less_than_any_other():
    rate = 2.0 / command.WEEK_SECONDS
    best = command.best_interval_seconds(40.0, 20.0, rate)
    lost = [sum(command.losses(best * factor, 40.0, 20.0, rate, 300.0)) for factor in (0.5, 0.8, 1.0, 1.25, 2.0)]
    assert min(lost) == lost[2]
    assert command.best_interval_seconds(40.0, 0.0, rate) == 40.0, "one save after the other"


def test_a_ring_sends_twice_the_gradients_and_once_the_weights_less_a_replicas_share(run):
    assert ring_bytes(3200, run.workload) == 3 * 2 * 3100  # bf16
    in_fp32 = with_precision(resolve(ds_configs.read(REFERENCE, ["communication_data_type=fp32"])), bf16=True)
    assert ring_bytes(3200, in_fp32.workload) == (2 * 4 + 2) * 3100, "gradients in fp32, weights in bf16"


def test_replicas_of_a_single_host_use_its_own_link_and_no_network(run):
    workload = dataclasses.replace(run.workload, replicas=6, micro_batches=128)
    fast, slow = (
        plan_on(DEVICES["h100"], run.model, workload, [0, 52], slots=6, network_bytes_per_second=rate).exchange_seconds
        for rate in (25e9, 1e9)
    )
    update = UPDATE_BYTES * count_parameters(run.model) / 6 / 3350e9
    assert fast == slow == pytest.approx(ring_bytes(count_parameters(run.model), workload) / 450e9 + update)
    on_two_hosts = plan_on(DEVICES["h100"], run.model, workload, [0, 52], slots=3, network_bytes_per_second=25e9)
    assert on_two_hosts.exchange_seconds == pytest.approx(ring_bytes(count_parameters(run.model), workload) / 25e9 + update)


def test_every_layout_uses_all_devices_keeps_the_batch_and_lies_within_hosts():
    found = list(layouts(52, 768, 192, 6))
    assert {stages for stages, *_ in found} == {1, 2, 3, 6}
    for stages, replicas, micro_batch, micro_batches in found:
        assert stages * replicas == 192
        assert replicas * micro_batch * micro_batches == 768


def test_the_fastest_layout_that_fits_is_first_and_what_does_not_fit_is_counted(run):
    small = dataclasses.replace(DEVICES["a100"], memory_gib=5)
    found, too_large = search(run, small, 192, 6, network_bytes_per_second=25e9)
    assert found
    assert too_large
    assert len(found) + too_large == len(list(layouts(52, 768, 192, 6)))
    assert [one.step_seconds for one in found] == sorted(one.step_seconds for one in found)
    assert all(max(one.memory_bytes) <= 5 * 2**30 for one in found)
    assert {one.devices for one in found} == {192}


def test_half_the_efficiency_takes_the_products_twice_the_time(capsys):
    times = []
    for efficiency in ("0.4", "0.2"):
        assert command.main([REFERENCE, "--device", "a100", "--efficiency", efficiency]) == 0
        (busy,) = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("    0 ")]
        times.append(float(busy))
    assert times[1] == pytest.approx(2 * times[0], abs=0.002)


def test_the_reference_run_is_planned_with_its_assumptions_and_a_picture(tmp_path, capsys, run):
    picture = tmp_path / "timeline.svg"
    assert command.main([REFERENCE, "--hostfile", "hostfiles/32nodes", "--timeline", str(picture)]) == 0
    said = capsys.readouterr().out
    assert f"{count_parameters(run.model):,} parameters on 192 devices = 6 stages x 32 replicas" in said
    for word in ("assumed:", "one stage busy at a time", "at the best interval", "kWh", "--efficiency"):
        assert word in said
    boxes = ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}rect")
    assert len(boxes) > 2 * 6 * 20


@pytest.fixture
def probed():
    """Every layer takes a second forward and two back."""
    layers = [[1.0, 2.0]] * 8
    return Probed(layers=layers, reduce=1e-6, update=2e-6, transfer=0.5, tied=4.0)


def small(*overrides):
    words = ["run.name=x", "model.num_layers=2", "model.hidden_size=32", "gradient_accumulation_steps=2", "train_batch_size=8"]
    return with_precision(resolve(ds_configs.read("ds_configs/quickstart.json", [*words, *overrides])), bf16=True)


def test_a_plan_for_this_machine_is_worked_out_from_what_was_measured(probed):
    plan = plan_probed(small(), probed, [0, 4, 8])
    first, last = (sum(layer_parameters(small().model)[start:stop]) for start, stop in ((0, 4), (4, 8)))
    # Two micro-batches over two alike stages of four layers: three slots of 12 s, and the way there and back of the first and the last.
    passes = 3 * 12.0 + 4 * 0.5
    assert plan.step_seconds == pytest.approx(passes + 4.0 + 1e-6 * first + 2e-6 * max(first, last))


def test_a_single_stage_updates_and_exchanges_a_tied_matrix_once(probed):
    run = small("pipeline.stages=1", "gradient_accumulation_steps=null")
    number = count_parameters(run.model)
    assert plan_probed(run, probed, [0, 8]).exchange_seconds == pytest.approx((1e-6 + 2e-6) * number)
    workload = dataclasses.replace(run.workload, replicas=2, muon=False)
    exchange = ring_bytes(number, workload) / 25e9
    planned = plan_on(DEVICES["h100"], run.model, workload, [0, 8], slots=1, network_bytes_per_second=25e9)
    assert planned.exchange_seconds == pytest.approx(exchange + UPDATE_BYTES * number / 2 / 3350e9)


def test_without_a_tied_matrix_the_ends_of_the_pipeline_exchange_nothing(probed):
    tied, apart = (plan_probed(small(f"model.tie_embeddings={value}"), probed, [0, 4, 8]) for value in ("true", "false"))
    assert tied.step_seconds == pytest.approx(apart.step_seconds + 4.0)


def test_a_process_also_holds_what_libraries_take_and_the_copy_of_an_asynchronous_save(probed):
    behind, at_once = (plan_probed(small(f"training.async_save={value}"), probed, [0, 4, 8]) for value in ("true", "false"))
    for stage, row in enumerate(stage_summary(small().model, [0, 4, 8], small().workload)):
        counted = row.kept_bytes + row.activation_bytes + row.update_bytes + LIBRARIES_BYTES
        holes = int(HOLES * (row.activation_bytes + row.weight_bytes + row.update_bytes))
        assert at_once.memory_bytes[stage] == counted + holes
        assert behind.memory_bytes[stage] == counted + holes + row.weight_bytes + row.optimizer_bytes


def test_memory_is_planned_as_processes_of_two_and_of_eight_stages_took_it():
    """Above imports, with an asynchronous save, in MiB; measured on two vCPUs of an Intel Xeon."""
    words = ["model.num_layers=16", "model.hidden_size=256", "model.max_seq_length=128", "data.seq_length=128"]
    words += ["model.vocab_size=2000", "data.tokenizer.vocab_size=2000"]
    measured = {
        (2, 4): ([0, 19, 36], [568, 473]),
        (8, 8): ([0, 6, 10, 14, 18, 22, 26, 31, 36], [307, 267, 245, 224, 201, 179, 180, 168]),
    }
    for (stages, micro_batches), (parts, peaks) in measured.items():
        batch = [f"train_batch_size={4 * micro_batches}", f"gradient_accumulation_steps={micro_batches}"]
        run = small(*words, *batch, f"pipeline.stages={stages}")
        for row, peak in zip(
            stage_summary(run.model, parts, dataclasses.replace(run.workload, bf16=False, muon=False)), peaks, strict=True
        ):
            assert (process_bytes(row) + row.weight_bytes + row.optimizer_bytes) / 2**20 == pytest.approx(peak, rel=0.1)


def spans(text):
    """Of the stages' table: the first and the last layer of each."""
    return [line.split()[1] for line in text.splitlines() if len(line.split()) == 5 and line.split()[0].isdigit()]


def test_stages_are_cut_as_the_run_cuts_them(capsys, run):
    assert command.main([REFERENCE, "--device", "a100", "pipeline.partition=uniform"]) == 0
    assert spans(capsys.readouterr().out) == ["0-8", "9-17", "18-26", "27-35", "36-43", "44-51"]
    assert command.main([REFERENCE, "--device", "a100", "pipeline.partition=measured"]) == 0
    measured = capsys.readouterr().out
    assert 'the run times its layers where it starts (pipeline.partition = "measured")' in measured
    assert command.main([REFERENCE, "--device", "a100"]) == 0
    assert spans(measured) == spans(capsys.readouterr().out)
    uniform = resolve(ds_configs.read(REFERENCE, ["pipeline.partition=uniform"]))
    found, _ = search(with_precision(uniform, bf16=True), DEVICES["a100"], 192, 6, network_bytes_per_second=25e9)
    cuts = {(one.rows[0].first_layer, *(row.first_layer + row.num_layers for row in one.rows)) for one in found if one.stages == 6}
    assert cuts == {(0, 9, 18, 27, 36, 44, 52)}


def test_a_run_of_more_replicas_than_its_configuration_says_is_planned_with_these(tmp_path, verse, capsys):
    folder = tmp_path / "x"
    overrides = [
        "run.name=x",
        f"data.path={verse}",
        "model.num_layers=2",
        "model.hidden_size=32",
        "data.seq_length=16",
        "pipeline.stages=1",
    ]
    values = ds_configs.load("ds_configs/own_text.json", overrides).values
    folder.mkdir()
    write_json(folder / "config.json", values)
    times = [{"step": step, "perf/seconds_per_step": seconds} for step, seconds in ((1, 9.0), (2, 0.1), (3, 0.1), (5, 0.4))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in times), encoding="utf-8")
    manifest = write_checkpoint(folder, 3) / "manifest.json"
    trained = {"topology": {"pipe": 1, "data": 2}, "partition": [0, 8], "precision": "fp32"}
    write_json(manifest, {**json.loads(manifest.read_text(encoding="utf-8")), **trained})
    assert command.main(["--against", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "1 stages x 2 replicas" in said
    assert re.search(r"seconds a step +[\d.]+ +0\.250 +[\d.]+   \(measured 0\.100 to 0\.400\)", said), "the mean of steps, as the plan's is"


def test_lines_of_a_run_that_are_no_records_are_a_mistake(tmp_path, capsys):
    (tmp_path / "config.json").touch()
    (tmp_path / "metrics.jsonl").write_text("[1]\n", encoding="utf-8")
    assert command.main(["--against", str(tmp_path)]) == 2
    assert "metrics.jsonl: not all of its lines are whole" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.json"], "nowhere.json"),
        ([REFERENCE, "--hostfile", "hostfiles/2nodes"], "means 32 pipelines"),
        ([REFERENCE, "--hostfile", "nowhere"], "nowhere: No such file"),
        ([REFERENCE, "--devices", "7"], "7 devices: no layout divides a batch of 768"),
        (["--against", "nowhere"], "nowhere/config.json: not there"),
        ([REFERENCE, "--device", "a100", "--timeline", "nowhere/picture.svg"], "nowhere/picture.svg: cannot be written. Name a file"),
        ([REFERENCE, "--timeline", "nowhere/picture.svg"], "nowhere/picture.svg: cannot be written. Name a file"),
    ],
)
def test_a_mistake_is_said(capsys, words, said):
    assert command.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_pipeline_that_would_lie_across_hosts_is_said_to_be_refused(tmp_path, capsys):
    hostfile = tmp_path / "hostfile"
    for slots, words in (((5, 5, 5, 5, 5, 5), ["--hostfile"]), ((12, 15, 15, 6), ["--hostfile"]), ((4,), ["--slots"])):
        hostfile.write_text("".join(f"node{number} slots={each}\n" for number, each in enumerate(slots)), encoding="utf-8")
        options = ["--slots", "4", "--device", "a100"] if words == ["--slots"] else [*words, str(hostfile), "train_batch_size=null"]
        assert command.main([REFERENCE, *options]) == 0
        assert "A run refuses this: the slots of a host are no multiple of its 6 stages." in capsys.readouterr().out
    hostfile.write_text("a slots=12\nb slots=18\n", encoding="utf-8")
    assert command.main([REFERENCE, "--hostfile", str(hostfile), "train_batch_size=null"]) == 0
    assert "refuses" not in capsys.readouterr().out


def test_a_change_may_stand_behind_the_options(capsys):
    assert command.main([REFERENCE, "--device", "a100", "training.steps=7"]) == 0
    assert "run          7 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([REFERENCE, "--device", "here", "--devices", "4"], "--devices: without effect: this machine is measured"),
        ([REFERENCE, "--efficiency", "0.3"], "--efficiency: without effect: this machine is measured"),
        ([REFERENCE, "--hostfile", "hostfiles/32nodes", "--slots", "4"], "--slots: without effect: the hostfile says how many"),
        ([REFERENCE, "--against", "runs/x", "--timeline", "x.svg"], "--timeline, CONFIG or dotted.key=value: without effect: --against"),
    ],
)
def test_an_option_that_would_say_nothing_is_refused(capsys, words, said):
    with pytest.raises(SystemExit):
        command.main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--failures-per-week", "0"], "--failures-per-week must be more than 0"),
        (["--device", "a100", "--efficiency", "40"], "--efficiency must be 1 or less"),
        (["--restart-seconds", "-1"], "--restart-seconds 0 or more"),
        (["--restart-seconds", "nan"], "--restart-seconds 0 or more"),
        (["--save-gb-per-second", "nan"], "--save-gb-per-second must be more than 0"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(capsys, words, said):
    with pytest.raises(SystemExit):
        command.main([REFERENCE, *words])
    assert said in capsys.readouterr().err

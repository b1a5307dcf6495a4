"""What a run will cost, before it is started; no device is needed.

    .venv/bin/python -m training.plan ds_configs/hongloumeng_500m.json --device max1550
    .venv/bin/python -m training.plan CONFIG --devices 96 --device a100        # which layout is best?
    .venv/bin/python -m training.plan CONFIG                                   # on this machine, by measurement
    .venv/bin/python -m training.plan --against runs/quickstart                # planned beside measured

Every figure rests on assumptions; they are printed with it.
"""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import ds_configs
from ds_configs.atomic_files import check_output
from ds_configs.commands import command
from model.flops import count_parameters, flops_per_token
from training.config import RunConfig, resolve, with_precision
from training.launch.arguments import parse
from training.planning.costs import GIB, HOLES, LIBRARIES_BYTES, Plan, activation_bytes, cut, plan_on, ring_bytes, saved_bytes, search
from training.planning.data_sheets import DEVICES, NETWORK_GBITS, Device
from training.planning.schedule import one_after_the_other, write_timeline
from training.pretrain import DEFAULT_CONFIG
from training.supervision.hosts import read_pool

LISTED = 8
GBIT = 1e9 / 8  # In bytes.
WEEK_SECONDS = 7 * 24 * 3600.0


@command()
def main(arguments: Sequence[str]) -> int:
    """Print the plan."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, whose schedule is played, would look for a device.
    options = parse_options(arguments)
    if options.against:
        from training.planning.measured_plan import compare

        print(compare(Path(options.against)))
        return 0
    path, overrides = parse(options.words, DEFAULT_CONFIG)
    pool = read_pool(Path(options.hostfile)) if options.hostfile else None
    if pool:
        options.slots = math.gcd(*(host.slots for host in pool.wanted))  # Whole pipelines on each of them.
    config = resolve(ds_configs.read(path, overrides), pool.slots if pool else None)
    if options.timeline:
        check_output(Path(options.timeline))  # To measure takes a while.
    print("\n".join(describe(config, options)))
    return 0


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m training.plan", description="What a run will cost.")
    parser.add_argument("words", nargs="*", metavar="CONFIG or dotted.key=value")
    parser.add_argument("--device", choices=[*DEVICES, "here"], help="here (the default without --hostfile and --devices): measured")
    parser.add_argument("--devices", type=int, help="how many; lists the best layouts for them")
    parser.add_argument("--hostfile", help="whose slots are the devices")
    parser.add_argument("--slots", type=int, default=6, help="devices of a host (6), without --hostfile")
    parser.add_argument("--efficiency", type=float, help="share of the data sheet's peak that is reached")
    parser.add_argument("--network-gbits", type=float, default=NETWORK_GBITS, help=f"between hosts, per host ({NETWORK_GBITS:g})")
    parser.add_argument("--failures-per-week", type=float, default=1.0, help="of the whole job (1)")
    parser.add_argument("--save-gb-per-second", type=float, default=1.0, help="to the shared disk, all ranks together (1)")
    parser.add_argument("--snapshot-gb-per-second", type=float, default=5.0, help="to host memory, a rank (5)")
    parser.add_argument("--restart-seconds", type=float, default=300, help="from a failure to the first step (300)")
    parser.add_argument("--timeline", metavar="FILE.svg", help="draw the pipeline's timeline")
    parser.add_argument("--against", metavar="RUN", help="compare with what a run on this machine has measured")
    options = parser.parse_intermixed_args(list(arguments))
    for name in ("efficiency", "network_gbits", "failures_per_week", "save_gb_per_second", "snapshot_gb_per_second"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:  # Nor nan.
            parser.error(f"--{name.replace('_', '-')} must be more than 0")
    if (options.efficiency is not None and options.efficiency > 1) or not options.restart_seconds >= 0:
        parser.error("--efficiency must be 1 or less, --restart-seconds 0 or more")
    if (options.devices is not None and options.devices < 1) or options.slots < 1:
        parser.error("--devices and --slots must be 1 or more")
    if not options.against and options.device is None:
        options.device = "here" if not options.hostfile and options.devices is None else "max1550"
    why, unused = _without_effect(options)
    if given := [name for name in unused if getattr(options, name) not in (parser.get_default(name), [])]:
        names = ["CONFIG or dotted.key=value" if name == "words" else f"--{name.replace('_', '-')}" for name in given]
        parser.error(f"{', '.join(names)}: without effect: {why}")
    return options


def _without_effect(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The options that say nothing beside the others, and why."""
    if options.against:
        return "--against takes everything from the run's folder", [name for name in vars(options) if name != "against"]
    if options.device == "here":
        return "this machine is measured; --device names another", ["devices", "slots", "efficiency", "network_gbits"]
    return "the hostfile says how many devices a host has", ["slots"] if options.hostfile else []


def describe(config: RunConfig, options: argparse.Namespace) -> list[str]:
    """The plan as lines."""
    device: Device | None = None
    if options.device == "here":
        from training.planning.measured_plan import plan_here

        run, plan, lines = plan_here(config)
    else:
        device = DEVICES[options.device]
        device = dataclasses.replace(device, efficiency=options.efficiency or device.efficiency)
        run = with_precision(config, config.precision is not False)
        network = options.network_gbits * GBIT
        parts = cut(run, run.batch.stages)
        plan = plan_on(device, run.model, run.workload, parts, slots=options.slots, network_bytes_per_second=network)
        lines = [f"{config.path}: {count_parameters(run.model):,} parameters on {layout_words(plan)} of {options.device}", ""]
        if plan.devices > options.slots and options.slots % plan.stages:
            lines.insert(1, f"A run refuses this: the slots of a host are no multiple of its {plan.stages} stages.")
    lines += [*stages_table(plan, device), *summary(run, plan, device, options)]
    if options.timeline:
        write_timeline(Path(options.timeline), plan.played, f"{run.run.name}: {layout_words(plan)}, {plan.step_seconds:.3g} s a step")
        lines += ["", f"timeline     {options.timeline}"]
    return [*lines, "", *best(run, device, options)] if device and options.devices is not None else lines


def layout_words(plan: Plan) -> str:
    """192 devices = 6 stages x 32 replicas ..."""
    return (
        f"{plan.devices} devices = {plan.stages} stages x {plan.workload.replicas} replicas, micro-batch {plan.workload.micro_batch} x"
        f" {plan.workload.micro_batches} micro-batches"
    )


def stages_table(plan: Plan, device: Device | None) -> list[str]:
    """One line a stage: layers, time, idle share, memory."""
    lines = ["stage  layers  busy s/step   idle   memory GiB" + (f" (of {device.memory_gib:g})" if device else "")]
    for row, busy, idle, memory in zip(plan.rows, plan.played.busy, plan.played.bubble, plan.memory_bytes, strict=True):
        span = f"{row.first_layer}-{row.first_layer + row.num_layers - 1}"
        full = "  DOES NOT FIT" if device and memory > device.memory_gib * GIB else ""
        lines.append(f"{row.stage:>5}  {span:>6}  {busy:>11.3f}  {idle:>5.1%}  {memory / GIB:>10.2f}{full}")
    return lines


def summary(run: RunConfig, plan: Plan, device: Device | None, options: argparse.Namespace) -> list[str]:
    """Step, traffic, run, failures, and what all of it rests on."""
    step, tokens = plan.step_seconds, run.tokens_per_step
    naive = one_after_the_other(plan.seconds, plan.workload.micro_batches, plan.transfer)
    flops = flops_per_token(run.model, run.data.seq_length) * tokens
    exchanged = max(ring_bytes(row.parameters, plan.workload) for row in plan.rows)
    lines = [
        "",
        f"step         {step:.3f} s, {tokens / step:,.0f} tokens/s, {flops / step / plan.devices / 1e12:.3g} TFLOP/s a device",
        f"one stage busy at a time: {naive:.3f} s a step, {naive / step:.1f} times as long",
        f"traffic      {activation_bytes(run.model, plan.workload) / 1e6:.2f} MB a micro-batch and boundary, each way;"
        f" {exchanged / 1e6:.0f} MB a rank and step between replicas ({plan.exchange_seconds:.3f} s with the optimizer)",
    ]
    last_step = run.last_step()
    if last_step is not None:
        hours = last_step * step / 3600
        energy = f", {plan.devices * device.watts * hours / 1e3:,.0f} kWh for the devices alone" if device else ""
        lines.append(
            f"run          {last_step:,} steps, {last_step * tokens:.3g} tokens, {last_step * flops:.2g} FLOP: {hours:.2f} h{energy}"
        )
    lines += failures(run, plan, options)
    return [*lines, "", *assumptions(run, device, options)]


def failures(run: RunConfig, plan: Plan, options: argparse.Namespace) -> list[str]:
    """What saves and failures cost, at the run's interval and at the best one."""
    whole = sum(row.weight_bytes + row.optimizer_bytes * plan.workload.replicas for row in plan.rows)
    seconds = whole / (options.save_gb_per_second * 1e9)
    copy = max(map(saved_bytes, plan.rows))
    stall = min(copy / (options.snapshot_gb_per_second * 1e9), seconds) if run.training.async_save else seconds
    lines = [f"saves        of {seconds:.2g} s, for {stall:.2g} s of which training waits"]
    if run.training.async_save:
        lines[0] += f"; a rank's copy takes up to {copy / GIB:.2f} GiB of its host's memory"
    rate = options.failures_per_week / WEEK_SECONDS
    for label, interval in (
        (f"saved every {run.training.save_interval_steps} steps", run.training.save_interval_steps * plan.step_seconds),
        ("at the best interval", best_interval_seconds(seconds, stall, rate)),
    ):
        saving, repeating = losses(interval, seconds, stall, rate, options.restart_seconds)
        lines.append(
            f"failures     {label} ({interval / plan.step_seconds:,.0f} steps, {interval / 60:.1f} min): {saving:.2%} of the time for"
            f" saves, {repeating:.2%} lost to failures"
        )
    return lines


def best_interval_seconds(save_seconds: float, stall_seconds: float, rate: float) -> float:
    """The interval that loses least: sqrt(2 x stall x time between failures); not shorter than a save takes.

    J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications of the ACM 17 (1974).
    """
    return max(save_seconds, math.sqrt(2 * stall_seconds / rate))


def losses(interval_seconds: float, save_seconds: float, stall_seconds: float, rate: float, restart_seconds: float) -> tuple[float, float]:
    """Shares of the time: what saves take, and what failures, `rate` a second, cost in steps that are done twice and in restarts.

    A failure falls in the middle of an interval on average. To first order, for few failures.
    """
    saving = stall_seconds / (interval_seconds + stall_seconds)
    return saving, min(1.0, rate * (interval_seconds / 2 + save_seconds + restart_seconds))


def assumptions(run: RunConfig, device: Device | None, options: argparse.Namespace) -> list[str]:
    """What the figures rest on."""
    precision = "bf16" if run.uses_bf16 else "fp32"
    if device:
        peak = device.bf16_tflops if run.uses_bf16 else device.fp32_tflops
        speed = [
            f"  products     {device.efficiency:.0%} (--efficiency) of the data sheet's {peak:g} TFLOP/s in {precision}; backward is twice",
            f"               forward; {device.link_gb_per_second:g} GB/s to the next stage",
            f"  network      {options.network_gbits:g} Gbit/s a host (--network-gbits), shared by its stages; a single host",
            "               uses the link above; gradients are not exchanged while anything else is done",
        ]
        if run.partition == "measured":
            speed.append(
                '  stages       cut as "flops" cuts them: the run times its layers where it starts (pipeline.partition = "measured")'
            )
    else:
        copy = ", and an asynchronous save's copy" if run.training.async_save else ""
        speed = [
            f"  products     measured here in {precision}, with as many processes at work as there are cores for them",
            f"  memory       of a process beside what imports take; {LIBRARIES_BYTES >> 20} MiB for libraries, {HOLES:.0%} of what is",
            f"               given back at each step for holes in the heap{copy}",
        ]
    return [
        "assumed:",
        *speed,
        f"  failures     {options.failures_per_week:g} a week (--failures-per-week), of {options.restart_seconds:g} s (--restart-seconds)",
        f"  saves        {options.save_gb_per_second:g} GB/s to the shared disk (--save-gb-per-second), a rank's copy to host memory at"
        f" {options.snapshot_gb_per_second:g} GB/s (--snapshot-gb-per-second)",
        "  not counted  evaluation, samples, data loading, power of hosts and cooling",
    ]


def best(run: RunConfig, device: Device, options: argparse.Namespace) -> list[str]:
    """The fastest layouts for a number of devices."""
    found, too_large = search(run, device, options.devices, options.slots, options.network_gbits * GBIT)
    if not found:
        raise ValueError(
            f"{options.devices} devices: no layout divides a batch of {run.batch.train_batch_size} rows and fits in"
            f" {device.memory_gib:g} GiB ({too_large} are too large). Change --devices, --slots or train_batch_size."
        )
    lines = [f"best of {len(found)} layouts for {options.devices} devices ({too_large} do not fit in memory):"]
    lines.append("stages  replicas  micro-batch  micro-batches   s/step   tokens/s  idle  memory GiB")
    for plan in found[:LISTED]:
        load = plan.workload
        lines.append(
            f"{plan.stages:>6}  {load.replicas:>8}  {load.micro_batch:>11}  {load.micro_batches:>13}  {plan.step_seconds:>7.3f}"
            f"  {run.tokens_per_step / plan.step_seconds:>9,.0f}  {max(plan.played.bubble):>4.0%}  {max(plan.memory_bytes) / GIB:>10.1f}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a run will cost, before it is started; no device is needed.

    .venv/bin/python -m training.plan ds_configs/hongloumeng_500m.json --device max1550
    .venv/bin/python -m training.plan CONFIG --devices 96 --device a100        # which layout is best?
    .venv/bin/python -m training.plan CONFIG                                   # on this machine, by measurement
    .venv/bin/python -m training.plan --against runs/quickstart                # planned beside measured

Every figure rests on assumptions; they are printed with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import ds_configs
from model.flops import count_parameters, flops_per_token, layer_work
from model.partition import balance
from training.config import RunConfig, resolve, with_precision
from training.launch.arguments import parse
from training.planning.costs import GIB, Layout, Plan
from training.planning.devices import DEVICES, NETWORK_GBITS, Device
from training.planning.faults import Save, best_interval_seconds, losses
from training.planning.search import plan_on, search
from training.pretrain import DEFAULT_CONFIG
from training.supervision.hosts import read_pool

LISTED = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan. Returns 2 for a mistake."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, whose schedule is played, would look for a device.
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.against:
            from training.planning.against import compare

            print(compare(Path(options.against)))
            return 0
        path, overrides = parse(options.words, DEFAULT_CONFIG)
        config = resolve(ds_configs.read(path, overrides), devices_of(options))
        print("\n".join(describe(config, options)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}.", file=sys.stderr)
        return 2
    return 0


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m training.plan", description="What a run will cost.")
    parser.add_argument("words", nargs="*", metavar="CONFIG or dotted.key=value")
    parser.add_argument(
        "--device",
        choices=[*DEVICES, "here"],
        help="here (the default without --hostfile and --devices): measured",
    )
    parser.add_argument("--devices", type=int, help="how many; lists the best layouts for them")
    parser.add_argument("--hostfile", help="whose slots are the devices")
    parser.add_argument("--slots", type=int, default=6, help="devices of a host (6), for --devices")
    parser.add_argument("--efficiency", type=float, help="share of the data sheet's peak that is reached")
    parser.add_argument("--network-gbits", type=float, default=NETWORK_GBITS, help=f"between hosts, per host ({NETWORK_GBITS:g})")
    parser.add_argument("--failures-per-week", type=float, default=1.0, help="of the whole job (1)")
    parser.add_argument("--save-gb-per-second", type=float, default=1.0, help="to the shared disk, all ranks together (1)")
    parser.add_argument("--snapshot-gb-per-second", type=float, default=5.0, help="to host memory, a rank (5)")
    parser.add_argument("--restart-seconds", type=float, default=300, help="from a failure to the first step (300)")
    parser.add_argument("--timeline", metavar="FILE.svg", help="draw the pipeline's timeline")
    parser.add_argument("--against", metavar="RUN", help="compare with what a run on this machine has measured")
    options = parser.parse_args(list(arguments))
    for name in ("efficiency", "network_gbits", "save_gb_per_second", "snapshot_gb_per_second"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be more than 0")
    if (options.devices is not None and options.devices < 1) or options.slots < 1:
        parser.error("--devices and --slots must be 1 or more")
    return options


def devices_of(options: argparse.Namespace) -> int | None:
    """How many ranks there are; None where the configuration says it."""
    return read_pool(Path(options.hostfile)).slots if options.hostfile else None


def describe(config: RunConfig, options: argparse.Namespace) -> list[str]:
    """The plan as lines."""
    name = options.device or ("here" if not options.hostfile and options.devices is None else "max1550")
    if name == "here":
        from training.planning.against import plan_here

        run, plan, said = plan_here(config)
        return [*said, *stages_table(plan, None), *summary(run, plan, None, options), *drawn(run, plan, options)]
    device = DEVICES[name]
    if options.efficiency is not None:
        device = dataclasses.replace(device, efficiency=options.efficiency)
    run = with_precision(config, config.precision is not False)
    network = options.network_gbits * 1e9 / 8
    plan = plan_on(
        device,
        run.model,
        Layout.of(run.batch, balance(layer_work(run.model, run.data.seq_length), run.batch.stages)),
        run.workload,
        network,
    )
    lines = [f"{config.path}: {count_parameters(run.model):,} parameters on {layout_words(plan.layout)} of {device.name}", ""]
    lines += [*stages_table(plan, device), *summary(run, plan, device, options), *drawn(run, plan, options)]
    if options.devices is not None:
        lines += ["", *best(run, device, options, network)]
    return lines


def layout_words(layout: Layout) -> str:
    """192 devices = 6 stages x 32 replicas ..."""
    return (
        f"{layout.devices} devices = {layout.stages} stages x {layout.replicas} replicas, micro-batch {layout.micro_batch} x"
        f" {layout.micro_batches} micro-batches"
    )


def stages_table(plan: Plan, device: Device | None) -> list[str]:
    """One line a stage: layers, time, idle share, memory."""
    lines = ["stage  layers  busy s/step   idle   memory GiB" + (f" (of {device.memory_gib:g})" if device else "")]
    for stage, (busy, idle, memory) in enumerate(zip(plan.played.busy, plan.played.bubble, plan.memory_bytes, strict=True)):
        span = f"{plan.layout.parts[stage]}-{plan.layout.parts[stage + 1] - 1}"
        full = "  DOES NOT FIT" if device and memory > device.memory_gib * GIB else ""
        lines.append(f"{stage:>5}  {span:>6}  {busy:>11.3f}  {idle:>5.1%}  {memory / GIB:>10.2f}{full}")
    return lines


def summary(run: RunConfig, plan: Plan, device: Device | None, options: argparse.Namespace) -> list[str]:
    """Step, traffic, run, failures, and what all of it rests on."""
    step, tokens = plan.step_seconds, run.tokens_per_step
    flops = flops_per_token(run.model, run.data.seq_length) * tokens
    layout = plan.layout
    lines = [
        "",
        f"step         {step:.3f} s, {tokens / step:,.0f} tokens/s, {flops / step / layout.devices / 1e12:.3g} TFLOP/s a device",
        f"one stage busy at a time: {plan.naive_seconds:.3f} s a step, {plan.naive_seconds / step:.1f} times as long",
        f"traffic      {plan.activation_bytes / 1e6:.2f} MB a micro-batch and boundary, each way;"
        f" {plan.gradient_bytes / 1e6:.0f} MB a rank and step between replicas ({plan.exchange_seconds:.3f} s with the optimizer)",
    ]
    last_step = run.last_step()
    if last_step is not None:
        hours = last_step * step / 3600
        energy = f", {layout.devices * device.watts * hours / 1e3:,.0f} kWh for the devices alone" if device else ""
        lines.append(
            f"run          {last_step:,} steps, {last_step * tokens:.3g} tokens, {last_step * flops:.2g} FLOP: {hours:.2f} h{energy}"
        )
    lines += failures(run, plan, options)
    return [*lines, "", *assumptions(run, device, options)]


def failures(run: RunConfig, plan: Plan, options: argparse.Namespace) -> list[str]:
    """What saves and failures cost, at the run's interval and at the best one."""
    seconds = plan.checkpoint_bytes / (options.save_gb_per_second * 1e9)
    snapshot = plan.snapshot_bytes / (options.snapshot_gb_per_second * 1e9)
    save = Save(seconds=seconds, stall_seconds=min(snapshot, seconds) if run.training.async_save else seconds)
    lines = [f"saves        of {save.seconds:.2g} s, for {save.stall_seconds:.2g} s of which training waits"]
    if run.training.async_save:
        lines[0] += f"; a rank's copy takes up to {plan.snapshot_bytes / GIB:.2f} GiB of its host's memory"
    for label, interval in (
        (f"saved every {run.training.save_interval_steps} steps", run.training.save_interval_steps * plan.step_seconds),
        ("at the best interval", best_interval_seconds(save, options.failures_per_week)),
    ):
        lost = losses(save, interval, options.failures_per_week, options.restart_seconds)
        lines.append(
            f"failures     {label} ({interval / plan.step_seconds:,.0f} steps, {interval / 60:.1f} min): {lost.saving:.2%} of the time for"
            f" saves, {lost.repeating:.2%} lost to failures"
        )
    return lines


def assumptions(run: RunConfig, device: Device | None, options: argparse.Namespace) -> list[str]:
    """What the figures rest on."""
    precision = "bf16" if run.uses_bf16 else "fp32"
    if device:
        peak = device.bf16_tflops if run.uses_bf16 else device.fp32_tflops
        speed = [
            f"  products     {device.efficiency:.0%} (--efficiency) of the data sheet's {peak:g} TFLOP/s in {precision}; backward is twice",
            f"               forward; {device.link_gb_per_second:g} GB/s to the next stage",
            f"  network      {options.network_gbits:g} Gbit/s a host (--network-gbits), shared by its stages; gradients are not",
            "               exchanged while anything else is done",
        ]
    else:
        speed = [f"  products     measured here in {precision}, with as many processes at work as there are cores for them"]
    return [
        "assumed:",
        *speed,
        f"  failures     {options.failures_per_week:g} a week (--failures-per-week), {options.restart_seconds:g} s to go on after one",
        f"  saves        {options.save_gb_per_second:g} GB/s to the shared disk (--save-gb-per-second), a rank's copy to host memory at"
        f" {options.snapshot_gb_per_second:g} GB/s (--snapshot-gb-per-second)",
        "  not counted  evaluation, samples, data loading, power of hosts and cooling",
    ]


def drawn(run: RunConfig, plan: Plan, options: argparse.Namespace) -> list[str]:
    """Write the picture if it was asked for."""
    if not options.timeline:
        return []
    from training.planning.timeline import write_timeline

    title = f"{run.run.name}: {layout_words(plan.layout)}, {plan.step_seconds:.3g} s a step"
    write_timeline(Path(options.timeline), plan.played, title)
    return ["", f"timeline     {options.timeline}"]


def best(run: RunConfig, device: Device, options: argparse.Namespace, network: float) -> list[str]:
    """The fastest layouts for a number of devices."""
    found, too_large = search(
        run.model,
        run.workload,
        run.batch.train_batch_size,
        (options.devices, min(options.slots, options.devices)),
        lambda layout, workload: plan_on(device, run.model, layout, workload, network),
        device.memory_gib * GIB,
    )
    if not found:
        raise ValueError(
            f"{options.devices} devices: no layout divides a batch of {run.batch.train_batch_size} rows and fits in"
            f" {device.memory_gib:g} GiB ({too_large} are too large). Change --devices, --slots or train_batch_size."
        )
    lines = [f"best of {len(found)} layouts for {options.devices} devices ({too_large} do not fit in memory):"]
    lines.append("stages  replicas  micro-batch  micro-batches   s/step   tokens/s  idle  memory GiB")
    for one in found[:LISTED]:
        layout = one.layout
        lines.append(
            f"{layout.stages:>6}  {layout.replicas:>8}  {layout.micro_batch:>11}  {layout.micro_batches:>13}  {one.step_seconds:>7.3f}"
            f"  {run.tokens_per_step / one.step_seconds:>9,.0f}  {max(one.played.bubble):>4.0%}  {max(one.memory_bytes) / GIB:>10.1f}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())

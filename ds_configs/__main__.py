"""Look at configurations: `python -m ds_configs show|diff|check`. Needs no device, and torch only to tell what "auto" will be here.

show FILE [KEY=VALUE ...]          every value and where it is set
diff FILE FILE                     what differs between two runs
check FILE ... [KEY=VALUE ...]     validate as training would; parameters, tokens per step, stages
"""

import argparse
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ds_configs.atomic_files import strict_json
from ds_configs.commands import command
from ds_configs.errors import ConfigError
from ds_configs.loader import LoadedConfig, load, read

if TYPE_CHECKING:
    from training.config import RunConfig


@command()
def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, 2 if a configuration is wrong, 1 if `check` has something else to say of one."""
    parser = argparse.ArgumentParser(
        prog="python -m ds_configs", description="Look at configurations.", epilog="KEY=VALUE overrides a value: optimizer.params.lr=3e-4"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="every value and where it is set")
    show.add_argument("file")
    show.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    compare = commands.add_parser("diff", help="what differs between two runs")
    compare.add_argument("first")
    compare.add_argument("second")
    check = commands.add_parser("check", help="validate; print parameters, tokens per step and stages")
    check.add_argument("files", nargs="+", metavar="FILE | KEY=VALUE")
    options = parser.parse_args(arguments)

    if options.command == "check":
        return _check_all(options.files)
    if options.command == "show":
        loaded = load(options.file, options.overrides)
        _print_columns([(f"{key} = {strict_json(value)}", loaded.where(key)) for key, value in sorted(_leaves(loaded.values))])
        if loaded.values.get("bf16", {}).get("enabled") == "auto":
            print(f'bf16.enabled = "auto" will be here: {_precision_here("auto")[1]}')
    else:
        _print_columns(_differences(load(options.first), load(options.second)))
    return 0


@functools.cache
def _precision_here(setting: "bool | Literal['auto']") -> tuple[bool, str]:
    """Whether a run trains in bf16 if it is started here, and why."""
    try:
        from model.hardware.devices import find_devices
        from model.hardware.precision import choose_precision

        precision = choose_precision(setting, find_devices().kind)
    except ImportError:
        return setting is not False, "decided when the run starts: torch, which could tell, is not installed for this Python"
    except ValueError as error:  # DS_ACCELERATOR
        raise ConfigError([str(error)]) from error
    return precision.bf16, f"{precision.name}, {precision.reason}" + (f". {precision.warning}" if precision.warning else "")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not an object, and of empty objects."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _print_columns(rows: Sequence[tuple[str, str]]) -> None:
    width = min(72, max((len(left) for left, _ in rows), default=0))
    for left, right in rows:
        print(f"{left:<{width}}  {right}".rstrip())


def _differences(first: LoadedConfig, second: LoadedConfig) -> list[tuple[str, str]]:
    """Removed and added lines in key order; a run's name and description say which run it is and are left out."""
    before, after = dict(_leaves(first.values)), dict(_leaves(second.values))
    rows = []
    for key in sorted(before.keys() | after.keys()):
        if key in ("run.name", "run.description") or (
            key in before and key in after and strict_json(before[key]) == strict_json(after[key])
        ):
            continue
        for sign, values, config in (("-", before, first), ("+", after, second)):
            if key in values:
                rows.append((f"{sign} {key} = {strict_json(values[key])}", config.where(key)))
    return rows or [("no difference but the name", "")]


def _check_all(arguments: Sequence[str]) -> int:
    overrides = [argument for argument in arguments if "=" in argument and not os.path.exists(argument)]
    files = [argument for argument in arguments if argument not in overrides]
    if not files:
        print("check: name at least one configuration file.", file=sys.stderr)
        return 2
    # Only here: the other commands work without the packages whose sections they show.
    from training.config import resolve, with_precision
    from training.config_remarks import missing, remarks_on

    failed = remarked = 0
    for file in files:
        try:
            run = resolve(read(file, overrides))
            remarks = missing(run) + remarks_on(run, run.last_step())
            bf16, why = _precision_here(run.precision)
            run = with_precision(run, bf16)
        except ConfigError as error:
            failed += 1
            print(error, file=sys.stderr)
        except ValueError as error:  # the folder that the model starts from
            failed += 1
            print(f"{file}: model.initialize: {error}", file=sys.stderr)
        else:
            remarked += bool(remarks)
            print(_summary(file, run, why, remarks))
    if failed:
        print(f"{failed} of {len(files)} configurations are wrong.", file=sys.stderr)
    if remarked:
        print(f"{remarked} of {len(files)} configurations are right, but see what is said of them.", file=sys.stderr)
    return 2 if failed else int(bool(remarked))


def _summary(file: str, run: "RunConfig", precision: str, remarks: Sequence[str]) -> str:
    """What a run comes to, before anything is started; `precision` with the reason."""
    from model.flops import count_parameters, flops_per_token

    model, batch, last_step = run.model, run.batch, run.last_step()
    tokens = run.tokens_per_step
    flops = flops_per_token(model, run.data.seq_length)
    if last_step is None:
        length = f"{run.training.epochs:g} x the corpus (steps are known once the data is prepared)"
    else:
        length = f"{last_step:,} steps, {last_step * tokens:,} tokens, {flops * last_step * tokens:.2e} FLOP"
    pipelines = f"{batch.replicas} pipelines" if batch.pinned else "one pipeline; more of them share the rows"
    sizes = f"{model.num_layers} layers x {model.hidden_size}, {model.num_heads} heads, vocabulary {model.vocab_size}"
    return "\n".join(
        [
            *([f"{file}: right, but", *(f"  {remark}" for remark in remarks)] if remarks else [f"{file}: good"]),
            f"  run         {run.run.name}, written to {run.folder}",
            f"  model       {model.family}, {sizes}: {count_parameters(model):,} parameters",
            f"  data        {run.data.name}, rows of {run.data.seq_length} tokens",
            f"  batch       {batch.train_batch_size} rows = micro-batch {batch.micro_batch} x {batch.accumulation} x {batch.replicas}"
            f" ({pipelines}): {tokens:,} tokens per step",
            f"  length      {length}",
            f"  processes   {batch.world_size} = {batch.stages} stages x {batch.replicas}; {flops:.3e} FLOP per token",
            f"  precision   bf16.enabled = {strict_json(run.precision)}, here {precision}",
            *_stages(run),
        ]
    )


def _stages(run: "RunConfig") -> list[str]:
    """The stages' table, as `pipeline.partition = "flops"` cuts them."""
    from model.flops import layer_work, stage_table
    from model.partition import balance

    if run.partition != "flops":
        return [f'  stages      cut by "{run.partition}" when the run starts']
    parts = balance(layer_work(run.model, run.data.seq_length), run.batch.stages)
    return [f"    {line}" for line in stage_table(run.model, parts, run.workload).splitlines()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

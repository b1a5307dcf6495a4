"""What can go wrong in a rank, and be watched in one, by name (`FAULT`). Nothing in the product knows of it."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.training.counted_reads import count

POISONED_STEP = 3
SLOW_SECONDS = 3.0
STRANGE_SAMPLES = range(64, 72)
DIES_BEFORE = "step00000006/layer_"
UNREADABLE = "checkpoints/step00000004/"


def poison() -> None:
    """The loss of step 3 is infinite, as a broken row or a spike would make it."""
    from deepspeed.runtime.pipe.engine import PipelineEngine

    train_batch = PipelineEngine.train_batch

    def poisoned(engine: Any, batches: Iterator[Any]) -> Any:
        loss = engine.module.loss_fn
        if engine.global_steps + 1 == POISONED_STEP:
            engine.module.loss_fn = lambda *arguments: loss(*arguments) * float("inf")
        try:
            return train_batch(engine, batches)
        finally:
            engine.module.loss_fn = loss

    PipelineEngine.train_batch = poisoned


def kill_in_save() -> None:
    """Rank 1 dies in the save of step 6, when it is about to write its first layer."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and DIES_BEFORE in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1":
        sys.addaudithook(hook)


def lose_data() -> None:
    """Rank 1 cannot read its text from step 3 on, as on a host whose disk fails."""
    from deepspeed.runtime.pipe.engine import PipelineEngine

    train_batch = PipelineEngine.train_batch

    def failing(engine: Any, batches: Iterator[Any]) -> Any:
        if engine.global_steps + 1 == POISONED_STEP:
            raise OSError(5, "Input/output error", "data/stores/verse")
        return train_batch(engine, batches)

    if os.environ["RANK"] == "1":
        PipelineEngine.train_batch = failing


def flip_bit() -> None:
    """After step 3 one bit of one of rank 1's weights is another one, as a fault of memory or network would make it."""
    from deepspeed.runtime.pipe.engine import PipelineEngine

    train_batch = PipelineEngine.train_batch

    def failing(engine: Any, batches: Iterator[Any]) -> Any:
        loss = train_batch(engine, batches)
        if engine.global_steps == POISONED_STEP:
            import torch

            weight = list(engine.module.parameters())[-1].detach()
            weight.view(torch.int16 if weight.element_size() == 2 else torch.int32).view(-1)[-1] ^= 1
        return loss

    if os.environ["RANK"] == "1":
        PipelineEngine.train_batch = failing


def strange_text() -> None:
    """The samples of step 9 hold one token over and over, which the text never has."""
    from data.batches.windows import TrainingSet

    sample = TrainingSet.sample

    def strange(self: Any, index: int) -> Any:
        row = sample(self, index)
        if index in STRANGE_SAMPLES:
            row[:] = 0
        return row

    TrainingSet.sample = strange  # type: ignore[method-assign]


def stop_before_group() -> None:
    """Rank 1 stops when all have agreed to start, as on a host that hangs."""
    from training.launch import process_group

    start = process_group.start

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return start(*arguments)

    if os.environ["RANK"] == "1":
        process_group.start = stopped  # type: ignore[assignment]


def slow_disk() -> None:
    """Rank 1 takes seconds for the files of a save."""
    from training.checkpoints.snapshot import Snapshot

    write = Snapshot.write

    def slow(self: Snapshot) -> dict[str, Any]:
        time.sleep(SLOW_SECONDS)
        return write(self)

    if os.environ["RANK"] == "1":
        Snapshot.write = slow  # type: ignore[method-assign]


def read_error(times: int) -> None:
    """So many times rank 1 cannot open a file of the checkpoint of step 4, as on a host whose network file system fails."""
    left = times

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event == "open" and UNREADABLE in str(arguments[0]) and left:
            left -= 1
            raise OSError(5, "Input/output error")

    if os.environ["RANK"] == "1":
        sys.addaudithook(hook)


def lagging_host(times: int) -> None:
    """So many times rank 1 does not see a file of the checkpoint of step 4 that rank 0 sees."""
    from pathlib import Path

    left, is_file = times, Path.is_file

    def lag(self: Path) -> bool:
        nonlocal left
        hidden = UNREADABLE in str(self) and left > 0
        left -= hidden
        return not hidden and is_file(self)

    if os.environ["RANK"] == "1":
        Path.is_file = lag  # type: ignore[method-assign]


def one_device(mask: str) -> None:
    """Every rank sees one device: its own if the mask names just one."""
    from tests.training.stand_in_device import install

    install(mask)


FAULTS: dict[str, Callable[[], None]] = {
    "poison": poison,
    "kill in save": kill_in_save,
    "lose data": lose_data,
    "flip bit": flip_bit,
    "slow disk": slow_disk,
    "strange text": strange_text,
    "stop before group": stop_before_group,
    "count reads": count,
    "read error for a moment": lambda: read_error(1),
    "read error": lambda: read_error(1000),
    "lagging host": lambda: lagging_host(1000),
    "lagging host for a moment": lambda: lagging_host(1),
    "one device each": lambda: one_device("3"),
    "one device for all": lambda: one_device("2,3"),
}

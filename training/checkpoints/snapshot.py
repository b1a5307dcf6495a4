"""What DeepSpeed would write of this rank, held in memory until a thread writes it.

DeepSpeed's save runs collectives between its files, so it must run in the main thread and to its end on every rank. Here it runs
without writing: nothing in it can fail on one rank only, and nothing in it waits for a disk.

Beside its files lies the random state of the rank: what makes a resumed run repeat the uninterrupted one, dropout included. That file holds
tensors, numbers and tuples only, so that it is read without unpickling: nothing in it can run.
"""

import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from ds_configs.atomic_files import facts_of, sync

NUMPY: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), np.empty(0).__reduce__()[0]]


def _zero_stage(kind: Any, name: str) -> ZeroStageEnum:
    """In place of `getattr`, by which Python 3.11.0 to 3.11.3 save a member of an enum: of anything else it would run what a file says."""
    if kind is not ZeroStageEnum or name not in ZeroStageEnum.__members__:
        raise pickle.UnpicklingError(f"asks for the attribute {name!r} of {kind!r}")
    return ZeroStageEnum[name]


# Where a weight is in a flat piece; and what version 0.1 also saved: numpy's keys as an array, two settings of fp32 runs. They do nothing.
KNOWN: list[Any] = [fragment_address, *NUMPY, LossScaler, ZeroStageEnum, (_zero_stage, "builtins.getattr")]
# Without it DeepSpeed's own converter (`ds_to_universal`) takes no checkpoint; nothing here needs it.
UNIVERSAL_INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}


class HostMemory:
    """Copies of tensors in host memory that is kept from save to save: fresh memory costs most of a copy's time, in page faults."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []
        self._used = 0

    def rewind(self) -> None:
        """From now on copies go over those before, which are written by now."""
        self._used = 0

    def copy(self, item: Any) -> Any:
        """The item with copies of all tensors in its lists, tuples and dicts, and with lists and dicts of its own.

        Raises:
            RuntimeError: If memory is short.
        """
        if isinstance(item, torch.Tensor):
            return self._copy(item.detach())
        if isinstance(item, (list, tuple)):
            return type(item)(map(self.copy, item))
        if isinstance(item, dict):
            return type(item)((key, self.copy(value)) for key, value in item.items())
        return item

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        place, self._used = self._used, self._used + 1
        fits = place < len(self._kept) and (self._kept[place].shape, self._kept[place].dtype) == (tensor.shape, tensor.dtype)
        if not fits:
            self._kept[place:] = [torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")]
        return self._kept[place].copy_(tensor)


@dataclass
class Snapshot:
    """What writes each file of one rank."""

    files: list[tuple[Path, Callable[[], None]]]
    problem: Exception | None = None
    """Why it is not whole: host memory, as a rule."""

    def write(self) -> dict[str, Any]:
        """Write all files, have them on the disk, and hash what can be read back, not what was meant.

        Returns:
            Size and SHA-256 by name, for the manifest.

        Raises:
            OSError: If a file cannot be written.
            RuntimeError: If a file cannot be written, as torch may report it, or memory was short.
        """
        if self.problem:
            raise self.problem
        for _, write in self.files:
            write()
        facts = {}
        for path, _ in self.files:
            sync(path)
            facts[path.name] = facts_of(path)
        return facts


def take(engine: Any, target: Path, rank: int, memory: HostMemory | None) -> Snapshot:
    """What a checkpoint of the engine's current step holds of this rank. On all ranks at once: DeepSpeed's collectives run in here.

    `memory` takes a copy, so that training may go on; without it the weights must stay as they are until all is written in `target`.
    """
    state = random_state()
    snapshot = Snapshot([(target / random_state_file(rank), lambda: write_random_state(target, rank, state))])
    writer = engine.checkpoint_engine
    write = writer.save

    def hold(state_dict: Any, path: str) -> None:
        try:
            held = memory.copy(state_dict) if memory and not snapshot.problem else state_dict
        except (MemoryError, RuntimeError) as error:
            snapshot.problem = RuntimeError(f"no host memory for a copy ({describe(error)}); training.async_save = false needs none")
            return
        snapshot.files.append((Path(path), lambda: write(held, path)))

    if memory:
        memory.rewind()
        writer.preserves_storage_sharing = lambda: False  # Or DeepSpeed would clone each layer before it gives it away.
    writer.save, writer.makedirs = hold, lambda *arguments, **options: None
    engine._copy_recovery_script = lambda *_: None  # It cannot read a pipeline's checkpoint.
    try:
        engine.save_checkpoint(str(target.parent), tag=target.name, client_state=dict(UNIVERSAL_INFO), save_latest=False)
    finally:
        del engine._copy_recovery_script
        for name in ("save", "makedirs", "preserves_storage_sharing"):
            vars(writer).pop(name, None)
    return snapshot


def describe(error: Exception) -> str:
    """An error's kind and first line; of an error that followed from one of the system, as torch's at a full disk, that one's."""
    if isinstance(error.__context__, OSError) and error.__cause__ is None and not error.__suppress_context__:
        error = error.__context__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def random_state() -> dict[str, Any]:
    """The state of Python, numpy, torch and the rank's device, now."""
    accelerator = get_accelerator()
    kind, keys, *position = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *position),
        "device": accelerator.get_rng_state() if accelerator.device_name() != "cpu" else None,
    }


def write_random_state(folder: Path, rank: int, state: dict[str, Any]) -> None:
    """Write what was captured.

    Raises:
        OSError: If the file cannot be opened.
        RuntimeError: If it cannot be written to its end, which torch may report so.
    """
    with (folder / random_state_file(rank)).open("wb") as file:
        torch.save(state, file)


def load_random_state(folder: Path, rank: int) -> None:
    """Take up the state again.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds anything but such a state.
    """
    state = read_file(folder / random_state_file(rank))
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *position))
    if state["device"] is not None and get_accelerator().device_name() != "cpu":  # A CPU goes on with a run from devices.
        get_accelerator().set_rng_state(state["device"])


def read_file(path: Path) -> dict[str, Any]:
    """A file of a checkpoint, mapped into memory. Only tensors, plain containers and `KNOWN` are accepted from it: nothing in it can run.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds anything else.
    """
    try:
        with torch.serialization.safe_globals(KNOWN):
            content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to load it with weights_only=False, which runs whatever is in it.
        raise ValueError(f"{path.name} holds something else than the state of a run; it was not loaded") from error
    return content


def random_state_file(rank: int) -> str:
    """The file's name in a checkpoint's folder."""
    return f"random_state_rank{rank:05d}.pt"

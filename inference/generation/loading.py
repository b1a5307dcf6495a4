"""What is loaded for a command line: which folder, in which precision. Torch is imported only to export a run, or to choose by "auto"."""

from __future__ import annotations

from pathlib import Path

from inference.export import export_of_run
from inference.exporting.source import find_source
from training.checkpoints.find_and_verify import CheckpointError

DTYPES = ("fp32", "bf16", "fp16", "int8")


def find_folder(path: Path, num_processes: int = 1) -> Path:
    """The Hugging Face folder to load: the path itself, or the export of a run or of its named checkpoint, made or renewed on the way.

    Raises:
        CheckpointError: If there is no model at the path.
    """
    source = find_source(path)
    if source.kind == "folder":
        return path
    if num_processes > 1:
        raise CheckpointError(
            f"{path}: several processes need a folder. Export it: .venv/bin/python -m inference.export {path} OUT --format opt"
        )
    return export_of_run(source)


def choose_dtype(wanted: str, num_processes: int = 1) -> tuple[str, str]:
    """The precision to load a model in, and why: the rest of a sentence that begins with its name.

    "auto" takes bf16 or fp32 by `model.hardware.precision`, as a run does. It never takes int8: on a CPU that is the fastest by far, but
    its activations are rounded with one scale for a whole batch, so that the text of a prompt would depend on the prompts beside it.

    Args:
        wanted: One of DTYPES, or "auto".
        num_processes: Several must agree, so on a CPU they do not measure.
    """
    if wanted != "auto":
        return wanted, "as --dtype says"
    from model.hardware.devices import find_devices
    from model.hardware.precision import choose_precision

    devices = find_devices()
    if num_processes > 1 and devices.is_cpu:
        return "fp32", "which several processes on a CPU use unless --dtype says otherwise"
    precision = choose_precision("auto", devices.kind)
    return precision.name, precision.reason

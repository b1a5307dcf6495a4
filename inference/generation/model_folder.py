"""The folder that is loaded for a path on the command line. Torch is needed only where a run has to be exported first."""

from __future__ import annotations

from pathlib import Path

from inference.export import export_of_run
from inference.exporting.source import find_source
from training.checkpoints.find_and_verify import CheckpointError


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

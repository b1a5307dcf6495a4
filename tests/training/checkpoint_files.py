"""Write a checkpoint that is one for those who look at its files only, and look into the files of a real one."""

import hashlib
import json
from pathlib import Path

import torch


def write_checkpoint(run: Path, step: int, content: bytes = b"weights") -> Path:
    """A checkpoint with one file, in the layout of training."""
    folder = run / "checkpoints" / f"step{step:08d}"
    folder.mkdir(parents=True)
    (folder / "layer_00-model_states.pt").write_bytes(content)
    files = {"layer_00-model_states.pt": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps({"tag": folder.name, "step": step, "files": files}), encoding="utf-8")
    return folder


def tied_master(checkpoint: Path, stage: int) -> torch.Tensor:
    """The fp32 master of the tied matrix that a stage's optimizer holds."""
    (file,) = checkpoint.glob(f"*zero_pp_rank_0_mp_rank_{stage:02d}_optim_states.pt")
    state = torch.load(file, weights_only=False)["optimizer_state_dict"]
    name = "tied_modules.embedding.weight"
    group = next(index for index, mapping in enumerate(state["param_slice_mappings"]) if name in mapping)
    fragment = state["param_slice_mappings"][group][name]
    return state["single_partition_of_fp32_groups"][group][fragment.start : fragment.start + fragment.numel]

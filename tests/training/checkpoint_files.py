"""Look into the files of a checkpoint."""

from pathlib import Path

import torch


def tied_master(checkpoint: Path, stage: int) -> torch.Tensor:
    """The fp32 master of the tied matrix that a stage's optimizer holds."""
    (file,) = checkpoint.glob(f"*zero_pp_rank_0_mp_rank_{stage:02d}_optim_states.pt")
    state = torch.load(file, weights_only=False)["optimizer_state_dict"]
    name = "tied_modules.embedding.weight"
    group = next(index for index, mapping in enumerate(state["param_slice_mappings"]) if name in mapping)
    fragment = state["param_slice_mappings"][group][name]
    return state["single_partition_of_fp32_groups"][group][fragment.start : fragment.start + fragment.numel]

"""Look into the files of a checkpoint."""

from pathlib import Path

import torch


def tied_master(checkpoint: Path, stage: int) -> torch.Tensor:
    """The fp32 master of the tied matrix that a stage's optimizer holds."""
    file = checkpoint / f"bf16_zero_pp_rank_0_mp_rank_{stage:02d}_optim_states.pt"
    state = torch.load(file, weights_only=False)["optimizer_state_dict"]
    fragment = state["param_slice_mappings"][0]["tied_modules.embedding.weight"]
    return state["single_partition_of_fp32_groups"][0][fragment.start : fragment.start + fragment.numel]

"""What a rank takes from the files of a checkpoint: which it opens, and what in them it refuses."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.utils.tensor_fragment import fragment_address

from training.checkpoints.find_and_verify import Checkpoint
from training.checkpoints.load import _load_shares, load_checkpoint
from training.launch.process_group import Ranks
from training.launch.world import World


@pytest.mark.parametrize("topology", ["the same", "another"])
@pytest.mark.parametrize("saved", [6, 10])
def test_a_weight_of_another_size_is_not_loaded(tmp_path, saved, topology):
    """Were it only as long as it is, a weight would be cut, or keep an end of its first values."""
    name = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    base = {"state": {0: {"step": 1, "exp_avg": torch.ones(saved)}}, "param_groups": [{"lr": 1.0}]}
    mappings = [{"1.weight": fragment_address(numel=saved, start=0)}]
    state = {"param_slice_mappings": mappings, "single_partition_of_fp32_groups": [torch.ones(saved)], "base_optimizer_state": base}
    torch.save({"optimizer_state_dict": {**state, "clip_grad": 1.0}}, tmp_path / name)

    weight, masters = torch.nn.Parameter(torch.zeros(8)), torch.nn.Parameter(torch.zeros(8))
    whole = fragment_address(numel=8, start=0)
    weight._hp_mapping = SimpleNamespace(lp_fragment_address=whole, hp_fragment_address=whole)  # type: ignore[attr-defined]
    adam = torch.optim.AdamW([masters])
    optimizer = SimpleNamespace(
        bf16_groups=[[weight]], fp32_groups_flat_partition=[masters], param_names={weight: "1.weight"}, state=adam.state, optimizer=adam
    )
    replica = 0 if topology == "the same" else None
    with pytest.raises(ValueError, match=f'it has {saved} values of "1.weight" where the model has 8'):
        _load_shares(optimizer, Checkpoint(tmp_path, 1, "", {"files": {name: {}}}), {0}, replica)


@pytest.mark.parametrize(
    ("stage", "parts", "opened"),
    [(0, [0, 2, 4, 5], {0}), (1, [0, 2, 4, 5], {0, 1}), (2, [0, 2, 4, 5], {1}), (0, [0, 5], {0, 1}), (0, [0, 3, 5], {0})],
)
def test_on_another_topology_a_rank_opens_the_files_of_the_stages_that_had_its_layers(tmp_path, stage, parts, opened):
    files = {(replica, of): f"bf16_zero_pp_rank_{replica}_mp_rank_{of:02d}_optim_states.pt" for replica in (0, 1) for of in (0, 1)}
    torch.save({"global_steps": 1, "global_samples": 8, "skipped_steps": 0}, tmp_path / "mp_rank_00_model_states.pt")
    base = {"state": {}, "param_groups": []}
    whole = {"optimizer_state_dict": {"param_slice_mappings": [], "single_partition_of_fp32_groups": [], "base_optimizer_state": base}}
    for (_, of), name in files.items():
        torch.save(whole if of in opened else {"not": "opened"}, tmp_path / name)
    world = World(rank=stage, local_rank=stage, size=len(parts) - 1, local_size=len(parts) - 1, master_addr="localhost", master_port=1)
    ranks = Ranks(world=world, replica=0, stage=stage, replicas=1, stages=len(parts) - 1)
    inner = torch.optim.SGD([torch.zeros(1)])
    optimizer = SimpleNamespace(bf16_groups=[], fp32_groups_flat_partition=[], param_names={}, param_groups=[], optimizer=inner)
    optimizer.update_lp_params = lambda: None
    engine = SimpleNamespace(module=SimpleNamespace(parts=parts), optimizer=optimizer, lr_scheduler=None)
    manifest = {"topology": {"pipe": 2, "data": 2}, "partition": [0, 3, 5]}
    names = ["mp_rank_00_model_states.pt", *files.values()]
    load_checkpoint(engine, ranks, Checkpoint(tmp_path, 1, "", {**manifest, "files": {name: {} for name in names}}))
    assert engine.global_steps == 1

"""Replicas that no longer hold the same weights are named, and the run stops before it saves them."""

from __future__ import annotations

import pytest
import torch

from tests.training.faults import POISONED_STEP
from training.health.replica_check import CHUNK_WORDS, differing, digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("length", [1, 3, 64, 101])
def test_any_flipped_bit_changes_the_digest(dtype, length):
    weights = [torch.randn(length, generator=torch.Generator().manual_seed(0)).to(dtype), torch.zeros(5, dtype=dtype)]
    seen = {int(digest(weights))}
    bits = 8 * weights[0].element_size()
    as_integers = torch.int16 if dtype == torch.bfloat16 else torch.int32
    flips = [(tensor, index, bit) for tensor in weights for index in range(len(tensor)) for bit in range(0, bits, 5)]
    for tensor, index, bit in flips:
        tensor.view(as_integers)[index] ^= -(1 << bit) if bit == bits - 1 else 1 << bit
        seen.add(int(digest(weights)))
        tensor.view(as_integers)[index] ^= -(1 << bit) if bit == bits - 1 else 1 << bit
    assert len(seen) == 1 + len(flips)
    assert int(digest([tensor.clone() for tensor in weights])) in seen


def test_a_digest_depends_on_places_also_beyond_the_first_chunk():
    weights = torch.zeros(2 * CHUNK_WORDS * 2 + 7)
    seen = set()
    for place in (0, 1, 2, 2 * CHUNK_WORDS, 2 * CHUNK_WORDS + 1, len(weights) - 1):
        weights[place] = 1.0
        seen.add(int(digest([weights])))
        weights[place] = 0.0
    assert len(seen) == 6
    assert int(digest([weights])) not in seen


def test_the_ranks_that_differ_are_named():
    assert differing([[5, 7], [5, 7], [5, 7]]) == []
    assert differing([[5]]) == []
    assert differing([[5, 7], [5, 8], [5, 7]]) == ["stage 1: rank 3 (replica 1) is not like the others"]
    assert differing([[5, 7], [4, 7]]) == ["stage 0: no majority among ranks 0, 2"]
    assert differing([[1, 7], [2, 7], [3, 9], [1, 7]]) == [
        "stage 0: rank 2, 4 (replica 1, 2) is not like the others",
        "stage 1: rank 5 (replica 2) is not like the others",
    ]


@pytest.mark.distributed
def test_one_flipped_bit_of_one_replica_stops_the_run_before_it_is_saved(make_run):
    run = make_run(pipeline__stages=1, training__save_interval_steps=2, training__replica_check_interval_steps=POISONED_STEP)
    run.start(fault="flip bit")
    code, output = run.finish()
    assert code == 1
    assert output.count(f"step {POISONED_STEP}: the replicas' weights differ: stage 0: no majority among ranks 0, 1") == 1, output
    assert f"the newest checkpoint before it is {run.folder}/checkpoints/step00000002" in output
    assert run.tags() == ["step00000002"]
    assert max(run.curve()) == POISONED_STEP

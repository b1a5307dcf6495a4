"""Whether all replicas still hold the same weights, bit for bit.

ZeRO shares out the masters, and after every step each replica gets all weights from their owners. So equal is what they must be, and a
difference means a fault of a device, its memory or the network (or of the software), which no loss shows for long. A fault inside the
masters themselves is not found: there is one copy of each, and all replicas get the same wrong weight.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from training.launch.process_group import Ranks, by_rank

# Of SplitMix64 (Steele, Lea, Flood 2014), signed. Both are odd: multiplied by one, modulo 2**64, different numbers stay different.
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
FACTOR = 0xBF58476D1CE4E5B9 - (1 << 64)
LOW_HALF = (1 << 32) - 1
CHUNK_WORDS = 1 << 20


def compare_replicas(engine: Any, ranks: Ranks) -> list[str]:
    """Compare the weights of all replicas at the end of a step. Collective; it waits for the device. Returns who differs, on every rank."""
    if ranks.replicas == 1:
        return []
    digests = by_rank(digest(engine.optimizer.bf16_groups_flat).view(1), ranks)[..., 0]
    return differing(digests.tolist())


def digest(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A 64-bit checksum of the bits of flat tensors, worked out on their device: a scalar, int64.

    The bits are read as 64-bit words, each mixed, multiplied by an odd number that depends on its place, and added up modulo 2**64, which
    no order of additions changes. A difference within one word always shows; several could only cancel each other by an unlikely chance.
    """
    device = get_accelerator().current_device_name()
    total = torch.zeros((), dtype=torch.int64, device=device)
    places = _odd_numbers(min(CHUNK_WORDS, 1 + max(len(tensor) for tensor in tensors)), device)
    for tensor in tensors:
        for words in _words(tensor.detach()):
            for chunk in words.split(CHUNK_WORDS):
                mixed = chunk * FACTOR
                mixed ^= (mixed >> 32) & LOW_HALF  # Or a high bit, multiplied, would be the same high bit wherever it stands.
                total = total * FACTOR + mixed.mul_(places[: len(chunk)]).sum()
    return total


def _odd_numbers(count: int, device: str) -> torch.Tensor:
    """As if drawn at random, and the same everywhere."""
    numbers = torch.arange(1, count + 1, dtype=torch.int64, device=device) * GAMMA
    return ((numbers ^ (numbers >> 30)) * FACTOR) | 1


def _words(flat: torch.Tensor) -> list[torch.Tensor]:
    """A flat tensor as 64-bit words, the last few bytes filled up with zeros. Of the tensor itself nothing is copied."""
    a_word = 8 // flat.element_size()
    whole = len(flat) // a_word * a_word
    rest = flat.new_zeros(a_word)
    rest[: len(flat) - whole] = flat[whole:]
    return [flat[:whole].view(torch.int64), rest.view(torch.int64)]


def differing(digests: Sequence[Sequence[int]]) -> list[str]:
    """Name the ranks whose weights are not those of most replicas, from digests by replica and stage: a phrase a stage that has any."""
    stages = len(digests[0])
    found = []
    for stage, column in enumerate(zip(*digests, strict=True)):
        (most, count), *others = Counter(column).most_common()
        if not others:
            continue
        if others[0][1] == count:
            found.append(f"stage {stage}: no majority among ranks {_ranks(range(len(column)), stage, stages)}")
        else:
            wrong = [replica for replica, each in enumerate(column) if each != most]
            found.append(
                f"stage {stage}: rank {_ranks(wrong, stage, stages)} (replica {', '.join(map(str, wrong))}) is not like the others"
            )
    return found


def _ranks(replicas: Sequence[int], stage: int, stages: int) -> str:
    return ", ".join(str(replica * stages + stage) for replica in replicas)

"""Which layers a stage gets, and how even the stages' work is then."""

import itertools
import random

import pytest

from model.flops import layer_parameters, layer_work
from model.partition import balance, check_method
from tests.model.test_flops import HONGLOUMENG, WORKLOAD, reference
from tests.tiny_models import tiny

QUICKSTART = {"family": "gpt2", "vocab_size": 5000, "max_seq_length": 256, "num_layers": 4, "hidden_size": 256, "num_heads": 4}


def stage_sums(work: list[float], parts: list[int]) -> list[float]:
    return [sum(work[start:stop]) for start, stop in itertools.pairwise(parts)]


def brute_force(work: list[float], stages: int) -> float:
    cuts = itertools.combinations(range(1, len(work)), stages - 1)
    return min(max(stage_sums(work, [0, *cut, len(work)])) for cut in cuts)


def deepspeed_parts(work: list[float], parameters: list[int], stages: int) -> list[list[int]]:
    """What DeepSpeed's methods make of the same layers; given our work as weights, too."""
    from deepspeed.runtime.utils import partition_balanced, partition_uniform

    weighed = [partition_balanced(weights=list(weights), num_parts=stages) for weights in (parameters, [round(w) for w in work])]
    return [partition_uniform(num_items=len(work), num_parts=stages), *weighed]


def test_the_slowest_stage_is_as_fast_as_brute_force_finds():
    draw = random.Random(0)
    for _ in range(300):
        work = [draw.choice([0.0, 0.0, draw.random(), 10 * draw.random()]) for _ in range(draw.randint(1, 11))]
        stages = draw.randint(1, len(work))
        parts = balance(work, stages)
        assert parts[0] == 0
        assert parts[-1] == len(work)
        assert all(start < stop for start, stop in itertools.pairwise(parts)), parts
        assert max(stage_sums(work, parts)) == pytest.approx(brute_force(work, stages), rel=1e-12)


def test_of_equally_fast_splits_the_most_even_one_is_taken():
    assert balance([8, 1, 1, 1, 1], 3) == [0, 1, 3, 5]


def test_no_method_of_deepspeed_has_a_faster_slowest_stage():
    draw = random.Random(1)
    for _ in range(60):
        fields = {"num_layers": draw.randint(2, 12), "vocab_size": draw.choice([61, 1000, 9000]), "tie_embeddings": draw.random() < 0.5}
        config = tiny(draw.choice(["gpt2", "llama"]), **fields)
        stages = draw.randint(2, 6)
        work = layer_work(config, 24)
        ours = max(stage_sums(work, balance(work, stages)))
        for parts in deepspeed_parts(work, layer_parameters(config), stages):
            assert ours <= max(stage_sums(work, parts)) * (1 + 1e-12), (config, parts)


@pytest.mark.parametrize(
    ("section", "fields", "stages", "limit"),
    [(HONGLOUMENG, {"tie_embeddings": False}, 6, 1.06), (QUICKSTART, {}, 2, 1.11)],
    ids=["hongloumeng_500m", "quickstart"],
)
def test_shipped_models_balance_within_their_limit_and_better_than_by_parameters(section, fields, stages, limit):
    config = reference(section, **fields)
    work = layer_work(config, config.max_seq_length)
    ideal = sum(work) / stages
    slowest = max(stage_sums(work, balance(work, stages))) / ideal
    assert slowest <= limit
    for parts in deepspeed_parts(work, layer_parameters(config), stages):
        assert slowest <= max(stage_sums(work, parts)) / ideal


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match=r"3 layers cannot fill 4 pipeline stages\. Use 1 to 3 stages\."):
        balance([1, 1, 1], 4)


def test_an_unknown_partition_is_refused_with_the_ones_there_are():
    for method in ("flops", "measured", "uniform", "parameters", "type:attention|mlp"):
        check_method(method)
    with pytest.raises(ValueError, match=r'"flop" is unknown\. Use flops, measured, uniform, parameters, or type:<regular'):
        check_method("flop")
    with pytest.raises(ValueError, match="is no regular expression"):
        check_method("type:(")


def test_a_partition_that_cannot_cut_these_layers_is_refused():
    from model.pipeline import choose_parts

    with pytest.raises(
        ValueError, match=r'"type:rotary" matches no layer\. The classes are TokenEmbedding, PositionEmbedding, Attention, MLP'
    ):
        choose_parts(tiny(), "type:rotary", WORKLOAD, 2)
    for method in ("flops", "measured", "uniform", "parameters", "type:mlp"):
        with pytest.raises(ValueError, match="8 layers cannot fill 9 pipeline stages"):
            choose_parts(tiny(), method, WORKLOAD, 9)

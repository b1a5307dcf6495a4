"""Attention and rotary positions, against the textbook's formulas."""

import math

import pytest
import torch

from model.layers import attention
from model.layers.attention import Attention, Rotary, attend
from model.layers.dropout import dropout
from tests.tiny_models import tiny


def heads(seed: int, queries: int, keys: int, length: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, length, size, generator=generator, requires_grad=True) for count in (queries, keys, keys)]


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The textbook, one query at a time."""
    H, B, T, E = q.shape
    context = torch.empty(B, T, H, E)
    for head in range(H):
        key_head = head // (H // len(k))
        for time in range(T):
            scores = torch.einsum("be,bse->bs", q[head, :, time], k[key_head, :, : time + 1]) / math.sqrt(E)
            context[:, time, head] = torch.einsum("bs,bse->be", scores.softmax(-1), v[key_head, :, : time + 1])
    return context.flatten(2)


@pytest.mark.parametrize(("queries", "keys", "length", "size"), [(4, 4, 9, 8), (6, 2, 7, 54), (4, 1, 5, 3)])
@pytest.mark.parametrize("longest_matrix_row", [0, 512], ids=["fused", "matrices"])
def test_both_ways_to_attend_agree_with_the_textbook(monkeypatch, longest_matrix_row, queries, keys, length, size):
    monkeypatch.setattr(attention, "LONGEST_MATRIX_ROW", longest_matrix_row)
    q, k, v = inputs = heads(0, queries, keys, length, size)
    wanted = plain_attention(q, k, v)
    got = attend(q, k, v, 0.0)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=0)  # fp32 sums in another order
    weights = torch.randn_like(wanted)
    for mine, textbook in zip(torch.autograd.grad(got, inputs, weights), torch.autograd.grad(wanted, inputs, weights), strict=True):
        torch.testing.assert_close(mine, textbook, atol=2e-5, rtol=0)


def test_no_position_sees_a_later_one():
    layer = Attention(tiny("llama", num_kv_heads=1)).double()
    hidden = torch.randn(1, 10, 24, dtype=torch.float64)
    changed = hidden.clone()
    changed[:, 6] += 1
    difference = (layer(changed) - layer(hidden)).abs().amax(-1)[0]
    assert torch.equal(difference[:6], torch.zeros(6, dtype=torch.float64))
    assert (difference[6:] > 0).all()


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rotary_scores_depend_on_the_distance_only_and_pair_the_features_they_name(style):
    rotary = Rotary(tiny("llama", rotary_style=style))
    q, k = torch.randn(12), torch.randn(12)
    turned_q, turned_k = rotary(q.expand(20, 12)), rotary(k.expand(20, 12))
    scores = turned_q @ turned_k.T
    for distance in range(4):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)  # fp32 angles
    only_first_pair = torch.zeros(12)
    only_first_pair[[0, 6] if style == "half" else [0, 1]] = 1.0
    assert (rotary(only_first_pair.expand(5, 12)) != 0).any(0).tolist() == (only_first_pair != 0).tolist()


def test_turning_neighbours_is_the_same_with_and_without_complex_numbers():
    pairs = torch.randn(2, 5, 8)
    cos, sin = attention.rotary_tables(5, 8, 10000.0, torch.device("cpu"))
    first, second = pairs[..., 0::2], pairs[..., 1::2]
    wanted = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    torch.testing.assert_close(attention._turn_neighbours(pairs, cos, sin), wanted, atol=1e-6, rtol=0)


def test_casting_to_bf16_leaves_rotary_angles_exact():
    far = 2047
    config = tiny("llama", max_seq_length=2048)
    rotary = Rotary(config).bfloat16()
    turned = rotary(torch.ones(2048, 12, dtype=torch.bfloat16))[far]
    angles = far * 10000.0 ** (-torch.arange(0, 12, 2, dtype=torch.float64) / 12)
    wanted = torch.cat([angles.cos() - angles.sin(), angles.cos() + angles.sin()])
    torch.testing.assert_close(turned.double(), wanted, atol=0.01, rtol=0)  # one bf16 rounding of numbers up to 1.41


def test_tables_first_needed_in_inference_mode_can_be_used_in_training():
    layer = Attention(tiny("llama", rotary_base=777.0))
    with torch.inference_mode():
        layer(torch.randn(1, 13, 24))
    layer(torch.randn(1, 13, 24)).sum().backward()


def test_dropout_keeps_the_mean_and_repeats_with_the_generator():
    values = torch.ones(1000, 1001)
    torch.manual_seed(3)
    first = dropout(values, 0.1, training=True)
    second = dropout(values, 0.1, training=True)
    torch.manual_seed(3)
    assert torch.equal(dropout(values, 0.1, training=True), first)
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}
    assert abs(first.mean().item() - 1) < 2e-3  # six standard deviations of a million draws
    # Neighbours share a 64-bit draw; they must not share their fate.
    zero = first == 0
    assert abs((zero[:, :-1] & zero[:, 1:]).float().mean().item() - 0.01) < 1e-3
    assert dropout(values, 0.1, training=False) is values


def test_dropout_scales_by_the_exact_number_in_bf16_too_forward_and_backward():
    torch.manual_seed(4)
    values = (torch.rand(1 << 18) + 0.5).bfloat16().requires_grad_()
    dropped = dropout(values, 0.1, training=True)
    upstream = (torch.rand(1 << 18) + 0.5).bfloat16()
    dropped.backward(upstream)
    kept = dropped != 0
    assert values.grad is not None
    for scaled, original in ((dropped, values), (values.grad, upstream)):
        ratio = scaled[kept].double().sum() / original[kept].double().sum()
        # Each product is rounded to bf16 by up to 0.4%, without bias; 1.109375, the nearest bf16 number to 1 / 0.9, is 1.7e-3 away.
        assert ratio.item() == pytest.approx(1 / 0.9, abs=2e-4)


@pytest.mark.parametrize("longest_matrix_row", [0, 512], ids=["fused", "matrices"])
def test_attention_dropout_leaves_the_expected_context_unchanged(monkeypatch, longest_matrix_row):
    monkeypatch.setattr(attention, "LONGEST_MATRIX_ROW", longest_matrix_row)
    q, k, v = (tensor.detach() for tensor in heads(1, 2, 2, 6, 4))
    torch.manual_seed(0)
    mean = torch.stack([attend(q, k, v, 0.2) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, attend(q, k, v, 0.0), atol=0.06, rtol=0)  # five standard errors

"""The loss, against its definition."""

import pytest
import torch
from torch.nn import functional

from model.layers import cross_entropy
from model.layers.cross_entropy import loss


def case(rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, rows, vocabulary, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (2, rows), generator=generator)
    labels[0, ::3] = -100
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 500, 2**20])
def test_the_loss_is_the_sum_over_scored_labels_divided_by_all_places(monkeypatch, dtype, chunk):
    monkeypatch.setattr(cross_entropy, "_CPU_CHUNK_ELEMENTS", chunk)
    logits, labels = case(7, 101, dtype)
    got = loss(logits, labels)
    wanted = functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="sum") / labels.numel()
    assert got.dtype == torch.float32
    assert abs(got.item() - wanted.item()) < 2e-6  # fp32 sums of fourteen numbers near 5
    (mine,) = torch.autograd.grad(3 * got, logits)
    (textbook,) = torch.autograd.grad(3 * wanted, logits)
    assert mine.dtype == dtype
    # fp32: rounding of the sums; bf16: half a unit in the last place of the largest gradient, 3 / 14.
    torch.testing.assert_close(mine, textbook, atol=1e-7 if dtype == torch.float32 else 5e-4, rtol=0)


def test_ignored_labels_have_no_gradient_and_a_batch_of_them_no_loss():
    logits, labels = case(6, 11, torch.float32)
    loss(logits, labels).backward()
    assert torch.equal((logits.grad != 0).any(-1), labels != -100)
    assert loss(logits, torch.full_like(labels, -100)).item() == 0.0


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    value = loss(logits, torch.tensor([[1]]))
    value.backward()
    assert value.item() == 2e4
    assert logits.grad.isfinite().all()

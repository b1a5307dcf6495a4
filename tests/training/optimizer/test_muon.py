"""The arithmetic of Muon; the training with it is in test_topologies.py."""

import pytest
import torch

from training.optimizer.muon import orthogonalize, update_of


def test_orthogonal_rows_or_columns_come_out_of_the_iteration():
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 8), (8, 24), (16, 16)):
        matrix = torch.randn(shape, generator=generator)
        singular = torch.linalg.svdvals(orthogonalize(matrix, torch.float32))
        assert singular.min() > 0.3
        assert singular.max() < 1.3
        turned = torch.linalg.svd(matrix, full_matrices=False)
        ideal = turned.U @ turned.Vh
        # The iteration stops where singular values are near 1; it never turns the directions.
        assert torch.nn.functional.cosine_similarity(orthogonalize(matrix, torch.float32).flatten(), ideal.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 8)])
def test_one_update_is_torchs_bit_for_bit(shape):
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    momentum, ours = torch.zeros(shape), torch.zeros(shape)
    for _ in range(3):
        weight.grad = torch.randn(shape, generator=generator)
        ours -= update_of(weight.grad.clone(), momentum, beta=0.9, ns_method="bf16")
        optimizer.step()
    torch.testing.assert_close(weight.detach(), ours, atol=1e-6, rtol=1e-6)  # One multiplication in another order.

"""Settings of all tests of the model."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _quiet_and_repeatable() -> None:
    """One thread, as more only get in each other's way in models this small, and the same random inputs every time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

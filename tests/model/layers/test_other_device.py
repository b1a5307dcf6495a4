"""Whether layers and loss make all their tensors where their input is: on a device that only has a name, in a process of its own.

torch computes shapes, types and devices there, and refuses an operation on tensors of two devices. It proves no kernel.
"""

import pytest
import torch

from tests.ranks import run_script

pytestmark = pytest.mark.processes

DEVICE = "elsewhere:0"


def test_layers_and_loss_compute_and_learn_where_their_input_is():
    assert run_script("tests.model.layers.test_other_device").split() == ["fp32", "bf16"]


def main() -> None:
    """What the test is about. Afterwards the process has a device that nothing else can use."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    from model.initialize import Weights
    from model.layers import layers
    from tests.tiny_models import CASES, SEED, tiny

    _setup_privateuseone_for_python_backend("elsewhere")
    dropout = tiny("gpt2", dropout=0.1, attention_dropout=0.1)
    configs = [*CASES.values(), dropout, *(tiny("llama", rotary_style=style) for style in ("half", "interleaved"))]
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        for config in configs:
            modules = [entry.build(config, Weights(config, SEED)) for entry in layers(config)]
            with FakeTensorMode():
                _pass(config, modules, dtype)
        print(name)


def _pass(config, modules, dtype):
    """Forward, loss and backward; weights are made anew on the device."""
    from model.layers.attention import rotary_tables
    from model.layers.cross_entropy import loss
    from model.layers.head import project

    rotary_tables.cache_clear()  # Tensors of a mode are of no use in the next.
    for module in (inner for outer in modules for inner in outer.modules()):
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty(weight.shape, dtype=dtype, device=DEVICE)))
    tokens = torch.zeros(2, 24, dtype=torch.int64, device=DEVICE)
    hidden = tokens
    for module in modules[:-1]:
        hidden = module(hidden)
        assert (hidden.device, hidden.dtype) == (torch.device(DEVICE), dtype), module
    lost = loss(project(modules[0 if config.tie_embeddings else -1].weight, hidden), tokens)
    assert (lost.device, lost.dtype) == (torch.device(DEVICE), torch.float32)
    lost.backward()
    for module in modules[: -1 if config.tie_embeddings else None]:
        for name, weight in module.named_parameters():
            assert weight.grad.device == torch.device(DEVICE), name


if __name__ == "__main__":
    main()

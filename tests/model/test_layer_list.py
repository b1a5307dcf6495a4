"""The one list of layers: its order, its weights as drawn from the seed, and the plain model made of it."""

import random

import pytest
import torch

from model.flops import layer_parameters
from model.gpt import GPT
from model.initialize import Weights
from model.layers import layers
from model.layers.cross_entropy import loss
from model.layers.embeddings import PositionEmbedding, TokenEmbedding
from model.layers.head import FinalNorm, Head
from model.layers.mlp import MLP, GatedMLP
from tests.tiny_models import tiny

EVERY = [
    tiny("gpt2"),
    tiny("llama", num_kv_heads=1),
    tiny("opt"),
    tiny("gpt2", position="rotary", rotary_style="interleaved", use_bias=False),
    tiny("llama", position="learned", tie_embeddings=True),
    tiny("gpt2", activation="silu_gated", norm="rmsnorm", intermediate_size=40),
]


def test_the_list_is_embeddings_then_half_blocks_then_norm_and_head():
    names = [entry.module.__name__ for entry in layers(tiny("llama"))]
    assert names == ["TokenEmbedding", "PositionEmbedding", "Attention", "GatedMLP", "Attention", "GatedMLP", "FinalNorm", "Head"]
    tied = layers(tiny("gpt2"))
    assert [entry.module for entry in tied if entry.tied] == [TokenEmbedding, TokenEmbedding]
    assert [entry.index for entry in tied] == list(range(8))


@pytest.mark.parametrize("config", EVERY, ids=lambda config: f"{config.family}-{config.position}-{config.activation}")
def test_every_mixture_of_fields_trains_and_has_the_parameters_that_were_counted(config):
    model = GPT(config, seed=0)
    tokens = torch.randint(config.vocab_size, (2, 24))
    loss(model(tokens), tokens).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    held = [sum(weight.numel() for weight in child.parameters()) for child in model.children()]
    assert held == layer_parameters(config)[: len(held)]


def test_weights_depend_on_seed_and_index_only_and_no_global_generator_is_touched():
    config = tiny("gpt2")
    torch.manual_seed(5)
    random.seed(5)
    states = torch.get_rng_state(), random.getstate()
    first = GPT(config, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    torch.manual_seed(6)
    again = GPT(config, seed=1).state_dict()
    alone = layers(config)[4].build(config, Weights(config, 1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[f"4.{name}"], alone[name]) for name in alone)
    assert not torch.equal(first["2.qkv.weight"], first["4.qkv.weight"])
    assert not torch.equal(first["2.qkv.weight"], GPT(config, seed=2).state_dict()["2.qkv.weight"])


def test_weights_start_with_the_spread_they_should_have():
    config = tiny("gpt2", hidden_size=256, num_heads=4, intermediate_size=512, num_layers=8)
    block = {
        **layers(config)[2].build(config, Weights(config, 0)).state_dict(),
        **layers(config)[3].build(config, Weights(config, 0)).state_dict(),
    }
    for name, spread in (("qkv.weight", 0.02), ("up.weight", 0.02), ("out.weight", 0.005), ("down.weight", 0.005)):
        assert abs(block[name].std().item() / spread - 1) < 0.02, name  # five standard errors of 65,536 draws
    assert block["qkv.bias"].abs().sum() == 0
    assert torch.equal(block["norm.weight"], torch.ones(256))


def test_a_tied_matrix_is_in_the_state_once_and_learns_from_both_ends():
    model = GPT(tiny("gpt2"), seed=0)
    assert [name for name in model.state_dict() if name.startswith(("0.", "7."))] == ["0.weight"]
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    loss(model(tokens), tokens + 1).backward()
    gradient = model.get_parameter("0.weight").grad
    assert (gradient.abs().sum(-1) > 0).all()  # the head's softmax reaches every row, the embedding only row 0


def test_a_model_cast_to_bf16_gives_losses_close_to_fp32():
    for config in (tiny("gpt2"), tiny("llama")):
        model = GPT(config, seed=0)
        tokens = torch.randint(config.vocab_size, (4, 24))
        exact = loss(model(tokens), tokens).item()
        assert abs(loss(model.bfloat16()(tokens), tokens).item() - exact) < 2e-3  # bf16 carries three digits


def test_rows_longer_than_the_positions_are_refused():
    with pytest.raises(ValueError, match="25 tokens do not fit in max_seq_length = 24 positions"):
        GPT(tiny("llama"), seed=0)(torch.zeros(1, 25, dtype=torch.int64))


def test_unused_rows_stand_in_front_of_opt_positions():
    layer = PositionEmbedding(tiny("opt"))
    assert layer.weight is not None
    torch.nn.init.normal_(layer.weight)
    assert layer.weight.shape == (26, 24)
    assert torch.equal(layer(torch.zeros(1, 5, 24))[0], layer.weight[2:7])


def test_dropout_acts_in_training_only_and_in_every_half_block():
    config = tiny("gpt2", dropout=0.5)
    for entry in layers(config):
        if entry.module in (TokenEmbedding, FinalNorm, Head):
            continue
        module, hidden = entry.build(config, Weights(config, 0)), torch.randn(2, 8, 24)
        assert not torch.equal(module(hidden), module(hidden)), entry
        module.eval()
        assert torch.equal(module(hidden), module(hidden)), entry


def test_a_gated_mlp_multiplies_two_projections_and_a_plain_one_does_not():
    hidden = torch.randn(1, 3, 24)
    gated = layers(tiny("llama"))[3].build(tiny("llama"), Weights(tiny("llama"), 0))
    assert isinstance(gated, GatedMLP)
    normed = gated.norm(hidden)
    wanted = hidden + gated.down(torch.nn.functional.silu(gated.gate(normed)) * gated.up(normed))
    assert torch.equal(gated(hidden), wanted)
    assert isinstance(layers(tiny("opt"))[3].build(tiny("opt"), None), MLP)

"""Counts of parameters, operations and bytes, against models that are built and run."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from model.config import ModelConfig
from model.families import preset
from model.flops import Workload, count_parameters, flops_per_token, layer_flops, layer_parameters, stage_summary, stage_table
from model.layers import layers
from tests.tiny_models import tiny

HONGLOUMENG = {"family": "gpt2", "vocab_size": 5000, "max_seq_length": 2048, "num_layers": 24, "hidden_size": 1296, "num_heads": 24}
POETRY = {"family": "gpt2", "vocab_size": 12966, "max_seq_length": 128, "num_layers": 12, "hidden_size": 384, "num_heads": 12}
OPT = {"family": "opt", "vocab_size": 50272, "max_seq_length": 2048, "num_layers": 12, "hidden_size": 768, "num_heads": 12}
TINYLLAMA = {
    **{"family": "llama", "vocab_size": 65024, "max_seq_length": 2048, "num_layers": 22, "hidden_size": 2048, "num_heads": 32},
    **{"num_kv_heads": 4, "intermediate_size": 5632},
}
WORKLOAD = Workload(seq_length=24, micro_batch=2, micro_batches=4, replicas=2, bf16=True, sends_bf16=True)


def reference(section: dict[str, object], **fields: object) -> ModelConfig:
    return ModelConfig(**preset({**section, **fields}))


def built_parameters(config: ModelConfig) -> list[int]:
    with torch.device("meta"):
        return [sum(weight.numel() for weight in entry.module(config).parameters()) for entry in layers(config)]


def test_tinyllama_has_the_parameters_of_the_transformers_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {"vocab_size": 65024, "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**fields, intermediate_size=5632, tie_word_embeddings=False))
    assert count_parameters(reference(TINYLLAMA)) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        reference(HONGLOUMENG, tie_embeddings=False),
        reference(POETRY, use_bias=False),
        reference(OPT),
        reference(TINYLLAMA),
        tiny("llama", use_bias=True, num_kv_heads=1),
        tiny("gpt2", norm="rmsnorm", activation="silu_gated"),
    ],
    ids=lambda config: f"{config.family}-{config.num_layers}",
)
def test_parameters_are_counted_as_the_layers_hold_them(config):
    assert layer_parameters(config) == built_parameters(config)


def test_operations_are_those_the_matrix_products_of_a_step_do():
    from torch.utils.flop_counter import FlopCounterMode

    from model.gpt import GPT
    from model.layers.cross_entropy import loss

    for config in (tiny("gpt2"), tiny("llama", num_kv_heads=1)):
        model, tokens = GPT(config, seed=0), torch.zeros(3, 24, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            loss(model(tokens), tokens).backward()
        assert counter.get_total_flops() == flops_per_token(config, 24) * tokens.numel()


def test_a_single_stage_holds_a_tied_matrix_once_and_two_sums_of_its_gradients():
    config = tiny("gpt2")
    (row,) = stage_summary(config, [0, len(layers(config))], WORKLOAD)
    assert row.parameters == count_parameters(config)
    assert row.gradient_bytes == 6 * row.parameters + 4 * 61 * 24


def test_a_stage_holds_its_layers_and_all_stages_hold_the_model():
    config = tiny("gpt2", num_layers=4)
    parts = [0, 3, 7, 12]
    rows = stage_summary(config, parts, WORKLOAD)
    parameters = layer_parameters(config)
    assert [row.parameters for row in rows] == [sum(parameters[0:3]), sum(parameters[3:7]), sum(parameters[7:12])]
    assert sum(row.parameters for row in rows) == count_parameters(config) + 61 * 24  # the tied matrix is on two stages
    assert sum(row.flops_per_token for row in rows) == pytest.approx(sum(layer_flops(config, 24)))
    assert sum(row.work_ratio for row in rows) == pytest.approx(3)
    first = rows[0]
    assert (first.weight_bytes, first.gradient_bytes) == (2 * first.parameters, 6 * first.parameters)
    assert first.optimizer_bytes == 12 * first.parameters // 2  # fp32 master and two moments, shared by two replicas


def test_earlier_stages_and_missing_checkpointing_cost_activations():
    config = tiny("gpt2", num_layers=6)
    parts = [0, 6, 10, 16]
    plain = [row.activation_bytes for row in stage_summary(config, parts, WORKLOAD)]
    saved = [row.activation_bytes for row in stage_summary(config, parts, replace(WORKLOAD, activation_checkpoint_interval=2))]
    alone = stage_summary(config, parts, replace(WORKLOAD, micro_batches=1))
    assert plain[0] > plain[1]
    assert all(less < more for less, more in zip(saved, plain, strict=True))
    assert alone[1].activation_bytes * 2 == plain[1]  # the second of three stages runs one micro-batch ahead


def test_the_last_stage_keeps_logits_of_two_micro_batches_and_a_gradient():
    config = tiny("gpt2", num_layers=2)
    one, two = (stage_summary(config, [0, 4, 8], replace(WORKLOAD, micro_batches=number))[-1].activation_bytes for number in (1, 2))
    assert two - one == config.vocab_size * WORKLOAD.micro_batch * WORKLOAD.seq_length * 2  # bf16


def test_gradients_that_are_summed_over_many_replicas_need_more_than_the_update():
    (alone,), (many,) = (stage_summary(tiny("gpt2"), [0, 8], replace(WORKLOAD, replicas=number)) for number in (1, 32))
    assert (alone.update_bytes, many.update_bytes) == (8 * alone.parameters, 6 * many.parameters)  # An fp32 copy and one in bf16.


def test_activations_are_close_to_what_autograd_keeps():
    """The estimate is for planning: within a quarter of the truth."""
    from model.gpt import GPT

    config = tiny("gpt2", num_layers=3, hidden_size=64, num_heads=4, intermediate_size=256)
    model, tokens = GPT(config, seed=0), torch.zeros(2, 24, dtype=torch.int64)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(tokens)
    logits = output.numel() * 4
    (row,) = stage_summary(config, [0, 10], replace(WORKLOAD, bf16=False, micro_batches=1))
    assert (row.activation_bytes - 2 * logits) / sum(kept.values()) == pytest.approx(1, abs=0.25)


def test_the_stage_table_names_every_stage_and_the_slowest():
    text = stage_table(tiny("gpt2", num_layers=4), [0, 3, 7, 12], WORKLOAD)
    _, *rows, last = text.splitlines()
    assert [row.split()[:2] for row in rows] == [["0", "0-2"], ["1", "3-6"], ["2", "7-11"]]
    assert len({len(line) for line in rows}) == 1
    assert last.startswith("20,008 parameters in all; the slowest stage does")


def test_counting_needs_no_torch():
    code = "import sys, model.flops, model.partition, model.families; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

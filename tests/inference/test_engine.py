"""Texts out of DeepSpeed's inference engine, held against `generate` of transformers on the same folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.generation.engine import Engine, load_engine
from inference.generation.settings import SamplingParams
from inference.generation.writing import Completion, generate
from tests.inference.tiny_folder import NUM_TOKENS, VOCAB_SIZE, save_tiny
from training.checkpoints.find_and_verify import CheckpointError

POSITIONS = 64
GREEDY = SamplingParams(new_tokens=24, temperature=0)
PROMPTS = ["床前明月光，", "春眠不觉晓，处处闻啼鸟。夜来风雨声", "红"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, verse: Path) -> Path:
    """A GPT-2 with random weights that prefers ids which are no tokens."""
    from transformers import GPT2LMHeadModel

    path = save_tiny("gpt2", tmp_path_factory.mktemp("hf") / "model", verse, positions=POSITIONS, n_head=2, tie_word_embeddings=False)
    model = GPT2LMHeadModel.from_pretrained(path)
    with torch.no_grad():
        model.lm_head.weight[NUM_TOKENS:] *= 10
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(folder)


def texts(engine: Engine, sampling: SamplingParams, prompts: list[str] = PROMPTS) -> list[Completion]:
    return generate(engine, [engine.tokenizer.encode(prompt) for prompt in prompts], sampling)


def reference(engine: Engine, folder: Path, prompt: str, **settings: Any) -> str:
    """The text of transformers alone, without DeepSpeed and without our processors."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([engine.tokenizer.encode(prompt)])
    unused = list(range(NUM_TOKENS, VOCAB_SIZE))
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, suppress_tokens=unused, pad_token_id=0, **settings
    )
    whole = engine.tokenizer.decode(output[0].tolist())
    return whole.removeprefix(prompt).replace("\ufffd", "")


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}])
def test_greedy_text_is_that_of_transformers(engine: Engine, folder: Path, settings: dict[str, Any]) -> None:
    ours = texts(engine, dataclasses.replace(GREEDY, **settings), PROMPTS[:1])
    assert ours[0].text == reference(engine, folder, PROMPTS[0], **settings)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_neighbours_in_a_batch_change_nothing(engine: Engine, penalty: float) -> None:
    sampling = dataclasses.replace(GREEDY, repetition_penalty=penalty)
    together = texts(engine, sampling)
    assert together == [texts(engine, sampling, [prompt])[0] for prompt in PROMPTS]


def test_a_seed_is_one_text_and_another_seed_another(engine: Engine) -> None:
    sampling = SamplingParams(new_tokens=24, temperature=1, top_p=1)
    first = texts(engine, sampling)
    assert texts(engine, sampling) == first
    assert texts(engine, dataclasses.replace(sampling, seed=1)) != first


def test_one_candidate_leaves_no_choice(engine: Engine) -> None:
    greedy = texts(engine, GREEDY)
    assert texts(engine, SamplingParams(new_tokens=24, temperature=5, top_k=1)) == greedy
    # A tiny share keeps the likeliest token alone.
    assert texts(engine, SamplingParams(new_tokens=24, temperature=1, top_p=1e-6)) == greedy


def test_ids_of_a_padded_vocabulary_are_never_drawn(engine: Engine) -> None:
    # The model puts most of its probability on them.
    drawn: list[int] = []
    push = engine.tokenizer.decode
    engine.tokenizer.decode = lambda ids: drawn.extend(ids) or push(ids)  # type: ignore[method-assign, func-returns-value]
    try:
        texts(engine, SamplingParams(new_tokens=32, temperature=2, top_p=1))
    finally:
        engine.tokenizer.decode = push  # type: ignore[method-assign]
    assert len(drawn) > 90
    assert max(drawn) < NUM_TOKENS


def test_a_text_that_the_model_ends_is_finished_and_its_neighbours_go_on(engine: Engine) -> None:
    endless = texts(engine, GREEDY)
    ids = engine.tokenizer.eos_ids
    # Let the text of the first prompt end where its first character is complete.
    told: list[str] = []
    generate(engine, [engine.tokenizer.encode(PROMPTS[0])], GREEDY, lambda row, piece, last: told.append(piece))
    position = next(index for index, piece in enumerate(told) if piece)
    last = told[position]
    engine.tokenizer.eos_ids = tuple(engine.tokenizer.encode(last)[-1:])
    try:
        ended = texts(engine, GREEDY)
    finally:
        engine.tokenizer.eos_ids = ids
    assert ended[0].finish_reason == "end_of_text"
    assert ended[0].num_tokens <= position + 1
    assert endless[0].finish_reason == "length"
    assert endless[0].num_tokens == GREEDY.new_tokens


def test_text_is_told_as_it_comes_and_its_end_once(engine: Engine) -> None:
    told: list[tuple[int, str, bool]] = []
    completions = generate(
        engine, [engine.tokenizer.encode(prompt) for prompt in PROMPTS], GREEDY, lambda row, piece, last: told.append((row, piece, last))
    )
    for row, completion in enumerate(completions):
        assert "".join(piece for index, piece, _ in told if index == row) == completion.text
        assert [last for index, _, last in told if index == row].count(True) == 1


def test_all_positions_can_be_used_and_not_one_more(engine: Engine) -> None:
    room = POSITIONS - len(engine.tokenizer.encode(PROMPTS[1]))
    texts(engine, dataclasses.replace(GREEDY, new_tokens=room), PROMPTS[1:2])
    with pytest.raises(AssertionError):
        texts(engine, dataclasses.replace(GREEDY, new_tokens=room + 1), PROMPTS[1:2])


def test_bf16_weights_generate(folder: Path) -> None:
    engine = load_engine(folder, dtype="bf16")
    assert next(engine.core.module.parameters()).dtype == torch.bfloat16
    assert texts(engine, GREEDY, PROMPTS[:1])[0].num_tokens == GREEDY.new_tokens


def test_int8_rounds_the_linear_layers_and_the_head_but_little(folder: Path, engine: Engine) -> None:
    rounded = load_engine(folder, dtype="int8")
    names = [
        name for name, layer in rounded.core.module.named_modules() if "quantized" in type(layer).__module__ and hasattr(layer, "scale")
    ]
    assert len(names) == 2 * 4 + 1
    ids = torch.tensor([engine.tokenizer.encode(PROMPTS[1])])
    with torch.inference_mode():
        exact, approximate = (one.core.module(input_ids=ids).logits for one in (engine, rounded))
    error = (approximate - exact).square().mean().sqrt() / exact.std()
    # 8 bits are steps of 1/127 of the largest value, and five such products follow each other with weights that have learnt nothing.
    # Layers mixed up or left transposed give logits that have nothing in common: 1.4.
    assert 0 < error < 0.2
    assert texts(rounded, GREEDY, PROMPTS[:1])[0].num_tokens == GREEDY.new_tokens


def test_int8_is_for_one_process(folder: Path, tmp_path: Path) -> None:
    opt = Path(shutil.copytree(folder, tmp_path / "opt"))
    (opt / "config.json").write_text('{"model_type": "opt"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="dtype = int8; one process has it, 2 have not"):
        load_engine(opt, dtype="int8", tp_size=2)


def test_a_precision_the_device_lacks_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import get_accelerator

    # Whether a CPU has float16 depends on its instructions.
    monkeypatch.setattr(get_accelerator(), "supported_dtypes", lambda: [torch.float32, torch.bfloat16])
    with pytest.raises(CheckpointError, match=r"dtype = fp16; it is not to be had on \w+\. Use fp32 or bf16"):
        load_engine(folder, dtype="fp16")


def test_a_gpt2_is_not_split_over_processes(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="--format opt"):
        load_engine(folder, tp_size=2)


def test_a_folder_with_torn_weights_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    torn = Path(shutil.copytree(folder, tmp_path / "torn"))
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="does not load as a causal language model") as caught:
        load_engine(torn)
    assert "\n" not in str(caught.value)


def test_a_folder_that_lacks_a_weight_is_not_filled_up_with_random_ones(folder: Path, tmp_path: Path) -> None:
    lacking = Path(shutil.copytree(folder, tmp_path / "lacking"))
    weights = load_file(lacking / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r'has no "transformer\.h\.1\.mlp\.c_fc\.weight" \(1 weights are missing\)'):
        load_engine(lacking)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_embd": "wide"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"model_type": "other", "auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}},
    ],
)
def test_whatever_transformers_does_not_take_is_one_line(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    values = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(values | changes), encoding="utf-8")
    with pytest.raises(CheckpointError, match="does not load as a causal language model") as caught:
        load_engine(other)
    assert "\n" not in str(caught.value)


def test_a_token_that_the_model_does_not_know_is_told(engine: Engine) -> None:
    with pytest.raises(CheckpointError, match=f"a prompt has token {VOCAB_SIZE}, and the model has {VOCAB_SIZE}"):
        generate(engine, [[1, VOCAB_SIZE]], GREEDY)


def test_an_end_of_text_that_the_model_does_not_know_pads_no_prompt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.tokenizer, "eos_ids", (VOCAB_SIZE,))
    assert texts(engine, GREEDY) == [texts(engine, GREEDY, [prompt])[0] for prompt in PROMPTS]


def test_no_operation_was_compiled(engine: Engine) -> None:
    import deepspeed.ops

    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False

"""Texts that are written together are those that are written alone: logits, texts, and rows that are freed."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPTJConfig, GPTJForCausalLM, GPTNeoConfig, MistralConfig, MistralForCausalLM

from inference.generation.engine import Engine, load_engine
from inference.generation.settings import SamplingParams
from inference.serve import build_limits, parse
from inference.server.batcher import Batcher
from inference.server.errors import ApiError
from inference.server.kv_cache import CachedModel
from inference.server.limits import Limits
from inference.server.sequence import Piece, SequenceState
from tests.inference.server.conftest import POSITIONS
from tests.inference.tiny_folder import VOCAB_SIZE

PROMPTS = ["床前明月光，", "春眠不觉晓，处处闻啼鸟。夜来风雨声", "红", "千山鸟飞绝，万径人踪灭。孤舟蓑笠翁"]
FAMILIES = ["gpt2", "opt", "llama"]
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
"""Of a model of another family."""


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest, make_folder: Callable[[str], Path]) -> Engine:
    return load_engine(make_folder(request.param))


@pytest.fixture(scope="module")
def gpt2(make_folder: Callable[[str], Path]) -> Engine:
    return load_engine(make_folder("gpt2"))


class Text:
    """What a sequence tells, and its end."""

    def __init__(self, engine: Engine, prompt: str, sampling: SamplingParams) -> None:
        self.pieces: list[Piece] = []
        self.over = threading.Event()
        self.begun = threading.Event()
        self.sequence = SequenceState(engine.tokenizer.encode(prompt), sampling, sampling.new_tokens, engine.tokenizer, self._tell)

    def _tell(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.begun.set()
        if piece.finish_reason:
            self.over.set()

    @property
    def text(self) -> str:
        assert self.over.wait(600)
        return "".join(piece.text for piece in self.pieces)


@pytest.fixture
def make_batcher() -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def make(engine: Engine, num_texts: int = 8, max_waiting: int = 64) -> Batcher:
        sizes = {"max_context": POSITIONS, "max_prompt_tokens": POSITIONS, "max_tokens": POSITIONS}
        made.append(Batcher(engine, Limits(**sizes, max_batch=num_texts, max_queue=max_waiting)))
        made[-1].start()
        return made[-1]

    yield make
    for batcher in made:
        batcher.stop()


def test_a_model_that_looks_back_over_a_window_is_served_within_it(
    make_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(make_folder("llama"), tmp_path, dirs_exist_ok=True)
    MistralForCausalLM(MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=4)).save_pretrained(tmp_path)
    engine = load_engine(tmp_path)
    capsys.readouterr()  # what loading it may have said

    assert build_limits(parse([str(tmp_path)]), tmp_path).max_context == 4
    assert f"--max-context 4: layers of the model of {tmp_path} look back over 4 positions only; " in capsys.readouterr().err
    assert build_limits(parse([str(tmp_path), "--max-context", "3"]), tmp_path).max_context == 3
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--max-context 5: layers of the model of .* look back over 4 positions only"):
        build_limits(parse([str(tmp_path), "--max-context", "5"]), tmp_path)
    tokens = [3, 1, 4, 1]
    with torch.inference_mode():
        logits = CachedModel(engine, 1, 4).prefill(tokens, 0, all_logits=True)
        torch.testing.assert_close(logits, engine.core(input_ids=torch.tensor([tokens])).logits[0])


def test_windows_that_only_the_model_knows_of_are_kept_to(make_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(make_folder("llama"), tmp_path, dirs_exist_ok=True)
    kinds = [[["global", "local"], 1]]
    GPTNeoConfig(**SIZES, attention_types=kinds, window_size=4, max_position_embeddings=64).save_pretrained(tmp_path)
    assert build_limits(parse([str(tmp_path)]), tmp_path).max_context == 4


def test_attention_that_is_written_out_in_python_is_masked_too(make_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Its scores are added to the mask, where torch's own kernel also takes one of true and false."""
    shutil.copytree(make_folder("llama"), tmp_path, dirs_exist_ok=True)
    torch.manual_seed(1)
    config = GPTJConfig(**SIZES, rotary_dim=4, n_positions=64, initializer_range=0.4)
    GPTJForCausalLM(config).save_pretrained(tmp_path)
    model = CachedModel(load_engine(tmp_path), 2, 64)
    model.check()
    assert model._engine.core.module.config._attn_implementation == "eager"


def test_a_model_of_few_tokens_is_served(make_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(make_folder("llama"), tmp_path, dirs_exist_ok=True)
    GPTJForCausalLM(GPTJConfig(**{**SIZES, "vocab_size": 6}, rotary_dim=4, n_positions=64)).save_pretrained(tmp_path)
    CachedModel(load_engine(tmp_path), 2, 64).check()


def test_a_model_that_has_texts_otherwise_is_refused(make_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(make_folder("llama"), tmp_path, dirs_exist_ok=True)
    BloomForCausalLM(BloomConfig(**SIZES)).save_pretrained(tmp_path)
    limits = Limits(max_context=64, max_prompt_tokens=63, max_tokens=64)
    with pytest.raises(
        ValueError, match=r"this model does not take texts of different lengths as the server has them .* Use inference\.generate\."
    ):
        Batcher(load_engine(tmp_path), limits)


def test_a_prompt_that_is_being_read_is_written_when_the_server_winds_down(gpt2: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.server.batcher.PROMPT_TOKENS_PER_STEP", 2)
    sizes = {"max_context": POSITIONS, "max_prompt_tokens": POSITIONS, "max_tokens": POSITIONS}
    batcher = Batcher(gpt2, Limits(**sizes, max_batch=2, max_queue=8))
    read, waits = (Text(gpt2, prompt, SamplingParams(new_tokens=4, temperature=0)) for prompt in PROMPTS[:2])
    batcher.submit([read.sequence, waits.sequence])
    with torch.inference_mode():
        batcher._prefill()
    assert 0 < read.sequence.num_read < len(read.sequence.prompt)
    batcher.wind_down()
    batcher.start()
    try:
        assert read.text
        assert read.sequence.finish_reason in ("length", "stop")
        assert not waits.text
        assert waits.sequence.finish_reason == "cancelled"
    finally:
        batcher.stop()


def test_logits_of_a_row_are_those_of_the_model_alone(engine: Engine) -> None:
    """Rows of different lengths, read in parts, moved, and continued together, against one forward pass for each."""
    torch.manual_seed(0)
    rows = [torch.randint(1, 300, (length,)).tolist() for length in (3, 40, 1, 17)]
    model = CachedModel(engine, num_texts=4, num_positions=POSITIONS)
    with torch.inference_mode():
        for row, tokens in enumerate(rows):
            for start in range(0, len(tokens), 16):
                model.prefill(tokens[start : start + 16], start, all_logits=False)
            model.move(model.staging, row, len(tokens))
        for _ in range(5):
            new = torch.randint(1, 300, (4,)).tolist()
            logits = model.decode(new, [len(tokens) for tokens in rows])
            for tokens, token in zip(rows, new, strict=True):
                tokens.append(token)
            for row, tokens in enumerate(rows):
                alone = engine.core(input_ids=torch.tensor([tokens])).logits[0, -1]
                # fp32 with sums in another order; the logits are of the order of 1 to 10.
                torch.testing.assert_close(logits[row], alone, atol=1e-4, rtol=0)


def test_texts_written_together_are_those_written_alone(engine: Engine, make_batcher: Callable[..., Batcher]) -> None:
    """Thirty texts with three rows, so that rows are freed and taken again, and lengths are mixed."""
    samplings = [
        SamplingParams(new_tokens=5 + 7 * (seed % 5), temperature=0.9, top_p=0.9 if seed % 2 else 1.0, seed=seed) for seed in range(30)
    ]
    asked = list(zip(itertools.cycle(PROMPTS), samplings, strict=False))
    batcher = make_batcher(engine, num_texts=3)
    together = [Text(engine, prompt, sampling) for prompt, sampling in asked]
    batcher.submit([text.sequence for text in together])
    alone = []
    for text in together:
        assert text.over.wait(600)
    for prompt, sampling in asked:
        alone.append(Text(engine, prompt, sampling))
        batcher.submit([alone[-1].sequence])
        assert alone[-1].over.wait(600)
    different = [index for index in range(30) if together[index].text != alone[index].text]
    # Where a decision was closer than the logits agree, another one is right too; none was, with these seeds.
    assert all(together[index].sequence.num_close for index in different)
    assert len(different) <= sum(text.sequence.num_close > 0 for text in together) <= 3
    assert sum(len(text.text) for text in alone) > 100


def test_a_text_that_is_given_up_frees_its_row_at_the_next_token(gpt2: Engine, make_batcher: Callable[..., Batcher]) -> None:
    batcher = make_batcher(gpt2, num_texts=1, max_waiting=1)
    long = Text(gpt2, PROMPTS[0], SamplingParams(new_tokens=POSITIONS - 30, temperature=0))
    batcher.submit([long.sequence])
    assert long.begun.wait(600)
    waiting = Text(gpt2, PROMPTS[1], SamplingParams(new_tokens=2))
    batcher.submit([waiting.sequence])
    with pytest.raises(ApiError, match="1 texts are waiting already"):
        batcher.submit([Text(gpt2, PROMPTS[2], SamplingParams(new_tokens=2)).sequence])
    long.sequence.cancelled = True
    assert waiting.over.wait(600)
    assert long.pieces[-1].finish_reason in ("cancelled", "stop")
    assert len(long.sequence.tokens) < POSITIONS - 30


def test_winding_down_finishes_what_is_being_written_and_nothing_else(gpt2: Engine, make_batcher: Callable[..., Batcher]) -> None:
    batcher = make_batcher(gpt2, num_texts=1)
    first, second = (Text(gpt2, prompt, SamplingParams(new_tokens=100, temperature=1, seed=1)) for prompt in PROMPTS[:2])
    batcher.submit([first.sequence, second.sequence])
    assert first.begun.wait(600)
    batcher.wind_down()
    assert first.over.wait(600)
    assert second.over.wait(600)
    assert first.sequence.finish_reason in ("length", "stop")
    assert second.sequence.finish_reason == "cancelled"
    with pytest.raises(ApiError, match="the server is stopping"):
        batcher.submit([second.sequence])


def test_a_batch_that_fails_ends_its_texts_and_not_the_server(
    gpt2: Engine, make_batcher: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = make_batcher(gpt2)
    with monkeypatch.context() as broken:
        broken.setattr(gpt2.core, "forward", lambda **_: 1 / 0)
        text = Text(gpt2, PROMPTS[0], SamplingParams(new_tokens=5))
        batcher.submit([text.sequence])
        assert text.over.wait(600)
    assert text.sequence.finish_reason == "failed"
    after = Text(gpt2, PROMPTS[0], SamplingParams(new_tokens=5))
    batcher.submit([after.sequence])
    assert after.text
    assert batcher.alive

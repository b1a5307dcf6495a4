"""The real server, asked by the openai client: with a tiny model, and among the slow tests with one that the quickstart trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI

from inference.generation.engine import load_engine
from inference.generation.settings import SamplingParams
from inference.generation.writing import generate
from tests.inference.server.conftest import Server

pytestmark = pytest.mark.processes

PROMPT = "床前明月光，"


@pytest.fixture
def name(served: Server) -> str:
    return served.name


@pytest.fixture(scope="module")
def client(served: Server) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed_and_another_name_is_refused(client: OpenAI, name: str) -> None:
    assert [model.id for model in client.models.list()] == [name]
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match=f'this server has "{name}"'):
        client.completions.create(model="gpt-4", prompt=PROMPT)


def test_a_seed_is_one_text_and_sample_i_is_that_of_seed_plus_i(client: OpenAI, name: str) -> None:
    three = client.completions.create(model=name, prompt=PROMPT, max_tokens=20, seed=7, n=3)
    alone = [client.completions.create(model=name, prompt=PROMPT, max_tokens=20, seed=7 + index) for index in range(3)]
    assert [choice.text for choice in three.choices] == [answer.choices[0].text for answer in alone]
    assert len({choice.text for choice in three.choices}) == 3
    assert three.usage
    assert three.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone if answer.usage)


def test_a_stream_tells_the_text_of_the_whole_answer_and_its_probabilities(client: OpenAI, name: str) -> None:
    settings: dict[str, Any] = {"model": name, "prompt": PROMPT, "max_tokens": 40, "seed": 3, "logprobs": 2}
    whole = client.completions.create(**settings).choices[0]
    events = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    choices = [event.choices[0] for event in events if event.choices]
    assert "".join(choice.text for choice in choices) == whole.text
    assert len(choices) > 5
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + [whole.finish_reason]
    assert whole.logprobs
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for choice in choices for entry in getattr(choice.logprobs, name)] == getattr(whole.logprobs, name)
    assert events[-1].usage
    assert events[-1].usage.prompt_tokens > 0


def test_the_server_writes_what_the_command_writes_with_the_same_seed(client: OpenAI, served: Server) -> None:
    engine = load_engine(served.folder)
    sampling = SamplingParams(new_tokens=40, temperature=0.9, top_p=0.8, seed=11)
    [ours] = generate(engine, [engine.tokenizer.encode(PROMPT)], sampling)
    answer = client.completions.create(model=served.name, prompt=PROMPT, max_tokens=40, temperature=0.9, top_p=0.8, seed=11)
    assert answer.choices[0].text == ours.text


def test_a_stop_is_not_part_of_the_text_and_nothing_behind_it_is(client: OpenAI, name: str) -> None:
    settings: dict[str, Any] = {"model": name, "prompt": PROMPT, "max_tokens": 60, "seed": 3}
    free = client.completions.create(**settings).choices[0].text
    stop = free[len(free) // 2 :][:2]
    stopped = client.completions.create(**settings, stop=["never written", stop], logprobs=1).choices[0]
    assert stopped.text == free[: free.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.logprobs
    assert all(offset < len(stopped.text) for offset in stopped.logprobs.text_offset or [])
    streamed = client.completions.create(**settings, stop=stop, stream=True)
    assert "".join(event.choices[0].text for event in streamed) == stopped.text


def test_echo_tells_the_prompt_with_the_probabilities_that_the_model_gives_it(client: OpenAI, served: Server) -> None:
    engine = load_engine(served.folder)
    ids = [*engine.tokenizer.encode(PROMPT), 0]  # with the end of the text, which no text has
    settings: dict[str, Any] = {"model": served.name, "prompt": [ids, ids[:3]], "max_tokens": 0, "echo": True, "logprobs": 1}
    whole, part = client.completions.create(**settings).choices
    assert whole.text == PROMPT
    assert whole.logprobs
    assert whole.logprobs.token_logprobs
    assert whole.logprobs.token_logprobs[0] is None
    with torch.inference_mode():
        logits = engine.core(input_ids=torch.tensor([ids])).logits[0, :-1]
    # Ids that stand for nothing, which are never written, take their share.
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    # fp32, with sums in another order.
    assert whole.logprobs.token_logprobs[1:] == pytest.approx(expected.tolist(), abs=1e-4)
    assert part.logprobs
    assert len(part.logprobs.tokens or []) == 3


def test_a_character_that_the_prompt_begins_is_told_once_and_whole(client: OpenAI, served: Server) -> None:
    whole = load_engine(served.folder).tokenizer.encode(PROMPT + "𠮷")  # four bytes
    settings: dict[str, Any] = {"model": served.name, "prompt": whole[:-1], "max_tokens": 8, "echo": True, "logprobs": 1}
    for seed in range(5):
        answer = client.completions.create(**settings, seed=seed).choices[0]
        pieces = [event.choices[0].text for event in client.completions.create(**settings, seed=seed, stream=True)]
        assert "".join(pieces) == answer.text
        assert pieces[0] == PROMPT
        assert answer.logprobs
        assert answer.logprobs.text_offset
        # The bytes of the prompt and the token that may complete them stand where the character does.
        assert answer.logprobs.text_offset[len(whole) - 4 : len(whole)] == [len(PROMPT)] * 4


def test_the_token_itself_is_among_the_likeliest_as_openai_has_it(client: OpenAI, name: str) -> None:
    settings: dict[str, Any] = {"model": name, "prompt": PROMPT, "max_tokens": 20, "echo": True, "logprobs": 1, "seed": 5}
    told = client.completions.create(**settings).choices[0].logprobs
    assert told
    assert told.top_logprobs
    assert told.tokens
    assert told.token_logprobs
    assert told.top_logprobs[0] is None
    for top, token, logprob in list(zip(told.top_logprobs, told.tokens, told.token_logprobs, strict=True))[1:]:
        assert top[token] == logprob
        assert len(top) <= 2


def test_a_written_token_has_the_probability_that_the_model_gives_it(client: OpenAI, served: Server) -> None:
    engine = load_engine(served.folder)
    ids = engine.tokenizer.encode(PROMPT)
    choice = client.completions.create(model=served.name, prompt=ids, max_tokens=1, temperature=0, logprobs=1).choices[0]
    with torch.inference_mode():
        logprobs = engine.core(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    best = max(engine.tokenizer.usable_ids, key=lambda index: float(logprobs[index]))
    assert choice.logprobs
    assert choice.logprobs.token_logprobs == pytest.approx([float(logprobs[best])], abs=1e-4)


def test_a_name_with_a_slash_is_found(start_server: Callable[..., Server]) -> None:
    server = start_server("--name", "me/tiny")
    assert OpenAI(base_url=f"{server.url}/v1", api_key="none").models.retrieve("me/tiny").id == "me/tiny"
    server.stop()

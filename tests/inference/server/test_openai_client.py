"""The real server, asked by the openai client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from inference.generation.engine import load_engine
from inference.generation.settings import Sampling
from inference.generation.writing import generate
from tests.inference.server.conftest import Server

PROMPT = "床前明月光，"


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed_and_another_name_is_refused(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match='this server has "tiny"'):
        client.completions.create(model="gpt-4", prompt=PROMPT)


def test_a_seed_is_one_text_and_sample_i_is_that_of_seed_plus_i(client: OpenAI) -> None:
    three = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, seed=7, n=3)
    alone = [client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, seed=7 + index) for index in range(3)]
    assert [choice.text for choice in three.choices] == [answer.choices[0].text for answer in alone]
    assert len({choice.text for choice in three.choices}) == 3
    assert three.usage
    assert three.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone if answer.usage)


def test_a_stream_tells_the_text_of_the_whole_answer_and_its_probabilities(client: OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 40, "seed": 3, "logprobs": 2}
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


def test_the_server_writes_what_the_command_writes_with_the_same_seed(client: OpenAI, make_folder: Callable[[str], Path]) -> None:
    engine = load_engine(make_folder("gpt2"))
    sampling = Sampling(new_tokens=40, temperature=0.9, top_p=0.8, seed=11)
    [ours] = generate(engine, [engine.tokenizer.encode(PROMPT)], sampling)
    served = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=40, temperature=0.9, top_p=0.8, seed=11)
    assert served.choices[0].text == ours.text

"""Clients that people have: OpenAI's own, and Hugging Face's, against a server on the bundled model and on ``echo``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
from huggingface_hub import InferenceClient, constants

from asyncgen.engine import Engine
from tests.server.serving import ECHO_SERVER, HELLO, MODEL_SERVER, Served, serving


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("model"), *MODEL_SERVER) as served:
        yield served


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = ("--set", "generation.max_new_tokens=4000", "--set", "generation.batch_size=4")
    with serving(tmp_path_factory.mktemp("echo"), *ECHO_SERVER, *settings) as served:
        yield served


def chat(served: Served, **asking: Any) -> Any:
    """An answer, or all pieces of a stream."""
    with served.client() as client:
        answer = client.chat.completions.create(**{"model": "bedtime-tiny", "messages": HELLO, **asking})
        return list(answer) if asking.get("stream") else answer


def pieces(stream: Any, choice: int = 0) -> str:
    return "".join(each.delta.content or "" for chunk in stream for each in chunk.choices if each.index == choice)


def test_the_same_seed_gives_the_text_that_the_engine_gives(model: Served) -> None:
    async def alone() -> Any:
        async with Engine(generation={"batch_size": 2}) as engine:
            return await engine.generate(HELLO, seed=7, max_new_tokens=40, temperature=0.9, logprobs=True)

    asking = {"seed": 7, "max_tokens": 40, "temperature": 0.9}
    expected = anyio.run(alone)
    answer = chat(model, **asking)
    assert answer.choices[0].message.content == expected.text == chat(model, **asking).choices[0].message.content
    assert answer.usage.completion_tokens == expected.tokens
    assert answer.usage.prompt_tokens == len(expected.prompt.prepared.token_ids)
    assert answer.usage.total_tokens == answer.usage.completion_tokens + answer.usage.prompt_tokens
    assert (answer.model, answer.object, answer.choices[0].finish_reason) == (
        "bedtime-tiny",
        "chat.completion",
        expected.finish_reason,
    )
    assert answer._request_id
    assert chat(model, seed=8, max_tokens=40).choices[0].message.content != expected.text


def test_logprobs_are_those_of_the_tokens(model: Served) -> None:
    answer = chat(model, seed=7, max_tokens=40, logprobs=True).choices[0]
    tokens = answer.logprobs.content
    assert "".join(token.token for token in tokens) == answer.message.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == answer.message.content
    assert all(token.logprob <= 0 for token in tokens)
    assert len({token.logprob for token in tokens}) > 5
    stopped = chat(model, seed=7, max_tokens=40, logprobs=True, stop=["."]).choices[0]
    assert "".join(token.token for token in stopped.logprobs.content) == stopped.message.content
    assert answer.message.content.startswith(stopped.message.content)
    assert chat(model, seed=7, max_tokens=5).choices[0].logprobs is None
    with model.client() as client:
        asking: dict[str, Any] = {"model": "bedtime-tiny", "prompt": "User: Hi", "seed": 7, "max_tokens": 9}
        text = client.completions.create(**asking, logprobs=0).choices[0]
        assert text.logprobs is not None
        assert text.logprobs.tokens is not None
        assert "".join(text.logprobs.tokens) == text.text
        assert text.logprobs.text_offset == [
            len("".join(text.logprobs.tokens[:place])) for place in range(len(text.logprobs.tokens))
        ]


def test_a_stream_is_the_same_text_in_pieces(model: Served) -> None:
    asking: dict[str, Any] = {"seed": 7, "max_tokens": 40, "stop": [" the", "moon"]}
    whole = chat(model, **asking)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = chat(model, **asking, **options)
    assert pieces(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert len(chat(model, seed=7, max_tokens=40, stream=True)) > 5, "it comes while it is made"
    with_logprobs = chat(model, seed=7, max_tokens=9, stream=True, logprobs=True)
    assert "".join(each.token for each in with_logprobs[-1].choices[0].logprobs.content) == pieces(with_logprobs)


def test_several_answers_begin_with_the_one_that_comes_alone(model: Served) -> None:
    asking: dict[str, Any] = {"seed": 7, "max_tokens": 20}
    alone = chat(model, **asking).choices[0].message.content
    several = chat(model, **asking, n=4)
    texts = [each.message.content for each in several.choices]
    assert [each.index for each in several.choices] == [0, 1, 2, 3]
    assert texts[0] == alone
    assert len(set(texts)) == 4
    assert several.usage.completion_tokens <= 80
    assert several.usage.prompt_tokens == chat(model, **asking).usage.prompt_tokens, "one prompt, read once"
    chunks = chat(model, **asking, n=4, stream=True)
    assert [pieces(chunks, number) for number in range(4)] == texts
    with model.client() as client:
        prompts = ["User: a", "User: b"]
        both = client.completions.create(model="bedtime-tiny", prompt=prompts, n=2, seed=7, max_tokens=9)
        assert [each.index for each in both.choices] == [0, 1, 2, 3]
        for place, prompt in enumerate(prompts):
            single = client.completions.create(model="bedtime-tiny", prompt=prompt, n=2, seed=7, max_tokens=9)
            assert [each.text for each in single.choices] == [each.text for each in both.choices[2 * place :][:2]]


def test_lengths(model: Served, echo: Served) -> None:
    """A client's own is kept or refused; where it says none there are as many as fit."""
    short = chat(model, seed=7, max_tokens=5)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 5)
    assert chat(model, seed=7, max_completion_tokens=5).choices[0].message.content == short.choices[0].message.content
    assert chat(model, seed=7, max_completion_tokens=5, max_tokens=9).usage.completion_tokens == 5
    filling = [{"role": "user", "content": "moon " * 1700}]
    full = chat(model, messages=filling, extra_body={"min_p": 1.0, "repetition_penalty": 0.01}, seed=7)
    assert full.usage.total_tokens <= 2048, "of the 512 that are the default, as many as fit"
    with pytest.raises(openai.BadRequestError) as error:
        chat(model, max_tokens=5000)
    assert (error.value.code, error.value.type) == ("context_length_exceeded", "invalid_request_error")
    assert "found 5000, but the context holds 2048 tokens" in error.value.message
    with pytest.raises(openai.BadRequestError, match=r"prompt tokens [+] 2040 new tokens > context of 2048"):
        chat(model, max_tokens=2040)
    with pytest.raises(openai.BadRequestError, match="prompt too long"):
        chat(model, messages=[{"role": "user", "content": "word " * 3000}])
    assert chat(echo, max_tokens=3).usage.completion_tokens == 3


def test_a_conversation_in_all_its_forms(model: Served) -> None:
    parts = [{"type": "text", "text": HELLO[0]["content"][:9]}, {"type": "text", "text": HELLO[0]["content"][9:]}]
    expected = chat(model, seed=1, max_tokens=9).choices[0].message
    assert (
        chat(model, seed=1, max_tokens=9, messages=[{"role": "user", "content": parts}]).choices[0].message == expected
    )
    going_on = [*HELLO, expected, {"role": "user", "content": "Go on."}]
    assert chat(model, seed=1, max_tokens=9, messages=going_on).choices[0].message.content
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none"}
    asking = {**neutral, "response_format": {"type": "text"}, "store": False, "top_logprobs": 0, "logprobs": False}
    assert chat(model, seed=1, max_tokens=9, **asking).choices[0].message == expected
    assert chat(model, seed=1, max_tokens=9, extra_body={"top_k": 1}).choices[0].message.content
    with model.client() as client:
        ids = client.completions.create(model="bedtime-tiny", prompt=[5, 6, 7], seed=1, max_tokens=3)
        assert ids.usage is not None
        assert ids.usage.prompt_tokens == 3
        with pytest.raises(openai.BadRequestError, match="999999 is no token of the model"):
            client.completions.create(model="bedtime-tiny", prompt=[999_999])


UNSUPPORTED: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "presence_penalty": -1.0,
    "logit_bias": {"5": 3},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "top_logprobs": 3,
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "modalities": ["audio"],
    "reasoning_effort": "low",
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(echo: Served, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        chat(echo, **{field: UNSUPPORTED[field]})
    assert error.value.param is not None
    assert error.value.param.startswith(field)
    assert error.value.code in ("unsupported_parameter", "invalid_value")
    assert field in error.value.message


@pytest.mark.parametrize(
    ("asking", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "found 129, at most 128"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"seed": "7"}, "seed", "valid integer"),
        ({"stop": [""]}, "stop[0]", "at least 1 character"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'system', 'developer'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "should be 'text'",
        ),
    ],
)
def test_what_means_nothing_is_refused_by_its_place(
    echo: Served, asking: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        chat(echo, **asking)
    assert str(error.value.param).startswith(param)
    assert message in error.value.message


def test_models(echo: Served) -> None:
    with echo.client() as client:
        assert [each.id for each in client.models.list()] == ["bedtime-tiny"]
        assert client.models.retrieve("bedtime-tiny").owned_by == "asyncgen"
        with pytest.raises(openai.NotFoundError) as error:
            client.models.retrieve("gpt-4o")
        assert error.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4o' here, only 'bedtime-tiny'"):
            chat(echo, model="gpt-4o")
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="bedtime-tiny", input="x")


def test_a_clients_own_timeout_frees_its_row(model: Served) -> None:
    before = model.idle()["asyncgen_cancelled_stories_total"]
    with model.client(timeout=0.3) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="bedtime-tiny", messages=HELLO, n=100, seed=1)  # type: ignore[arg-type]
    after = model.idle()
    assert after["asyncgen_cancelled_stories_total"] > before
    assert chat(model, max_tokens=3).choices


def test_the_client_of_hugging_face(model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it would not even talk to this machine
    expected = chat(model, seed=7, max_tokens=30).choices[0].message.content
    client = InferenceClient(base_url=f"{model.url}/v1", api_key="none", timeout=60)
    asking: dict[str, Any] = {"model": "bedtime-tiny", "messages": HELLO, "seed": 7, "max_tokens": 30}
    assert client.chat_completion(**asking).choices[0].message.content == expected
    streamed = client.chat_completion(**asking, stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in streamed) == expected
    with pytest.raises(Exception, match="frequency_penalty"):
        client.chat_completion(**asking, frequency_penalty=0.5)


def test_raw_events_are_server_sent_events(echo: Served) -> None:
    question = {"model": "bedtime-tiny", "messages": HELLO, "max_tokens": 4, "seed": 1, "stream": True}
    with echo.http() as client, client.stream("POST", "/v1/chat/completions", json=question) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        raw = answer.read().decode()
    events = raw.split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all(json.loads(each.removeprefix("data: "))["object"] == "chat.completion.chunk" for each in events[:-2])

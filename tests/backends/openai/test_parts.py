"""The plain functions: what statuses mean, what answers say, what is sent, and what is never shown."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.backends.openai.answers import Answer, Growing, whole
from asyncgen.backends.openai.asking import completion_of, request_of
from asyncgen.backends.openai.events import Events
from asyncgen.backends.openai.failures import TryFailed, of_status, retry_after
from asyncgen.backends.openai.opening import _check_has_model
from asyncgen.backends.openai.running import LONGEST, pause_after
from asyncgen.backends.openai.secrecy import Hiding
from asyncgen.config import Config, Generation, OpenAIBackend
from asyncgen.errors import ModelError
from asyncgen.records import Message, Prompt, Sampling

KEY = "sk-0123456789abcdef"
PROMPT = Prompt(0, (Message(role="user", content="hello"),), seed=2**63 - 1, max_new_tokens=9, sampling=Sampling())


@pytest.mark.parametrize(
    ("statuses", "ends", "counts", "overload"),
    [
        ((301, 307, 401, 402, 403, 404, 405), "run", False, False),
        ((400, 413, 415, 422, 451, 499), "prompt", False, False),
        ((429, 503), "again", False, True),
        ((408, 504), "again", True, True),
        ((409, 425, 500, 502, 599), "again", True, False),
    ],
)
def test_what_each_status_means(statuses: tuple[int, ...], ends: str, counts: bool, overload: bool) -> None:
    for status in statuses:
        failure = of_status(status, '{"error": {"message": "because"}}', {}, has_key=True)
        assert (failure.ends, failure.counts, failure.overload) == (ends, counts, overload)
        assert failure.message.startswith(f"status {status}")
        assert ": because" in failure.message
        assert failure.alive == (status < 500)


def test_a_quota_that_is_used_up_is_no_matter_of_waiting() -> None:
    body = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    assert of_status(429, body, {}, has_key=True).ends == "run"
    missing = of_status(401, "", {}, has_key=False)
    assert missing.hint is not None
    assert "api_key_env" in missing.hint


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "too\\nlong"}}', ": too long"),
        ('{"error": "busy"}', ": busy"),
        ('{"detail": [{"msg": "no"}]}', ': [{"msg": "no"}]'),
        ('{"message": "hm"}', ": hm"),
        ("plain words", ": plain words"),
        ("<html><body>sorry</body></html>", ""),
        ("", ""),
        ("[]", ": []"),
        ("null", ": null"),
        ('{"error": {}}', ""),
        ("[" * 100_000, ": " + "[" * 297 + "..."),
    ],
)
def test_the_servers_own_words(body: str, said: str) -> None:
    assert of_status(400, body, {}, has_key=False).message == f"status 400 (Bad Request){said}"


def test_the_key_is_in_no_message_not_even_its_beginning() -> None:
    for length in range(270, 310):
        body = json.dumps({"error": {"message": "x" * length + KEY}})
        message = of_status(401, body, {}, has_key=True, hide=Hiding(KEY)).message
        assert KEY[:3] not in message
    moved = of_status(307, "", {"location": f"http://elsewhere/?key={KEY}"}, has_key=True, hide=Hiding(KEY))
    assert KEY not in moved.message
    assert "elsewhere" in moved.message


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        (" 0.5 ", 0.5),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW + 30, UTC)), 30.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        *((nonsense, 0.0) for nonsense in ("", "-3", "soon", "nan", "inf", "1e9", "٣", "9" * 400, "Mon, 99 Foo 2020")),
    ],
)
def test_how_long_a_server_asks_to_wait(value: str, seconds: float) -> None:
    assert retry_after({"retry-after": value}, NOW) == seconds
    assert retry_after({}, NOW) == 0


@given(st.text())
def test_any_header_is_a_time_or_none(value: str) -> None:
    assert 0 <= retry_after({"retry-after": value}, NOW) < 1e12


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_and_have_an_end(failures: int, share: float) -> None:
    assert 0 <= pause_after(failures, share) <= LONGEST
    assert pause_after(failures, share) <= pause_after(failures + 1, share)


def chat(content: object = "hi", finish: object = "stop", **more: object) -> bytes:
    choice = {"message": {"role": "assistant", "content": content, "reasoning": 1}, "finish_reason": finish, **more}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 3, "prompt_tokens": 5}}).encode()


def test_an_answer_is_read() -> None:
    logprobs = {"content": [{"token": "h", "logprob": -1}, {"token": "i", "logprob": -0.25}]}
    assert whole(chat(logprobs=logprobs), chat=True) == Answer("hi", "stop", 3, 5, (-1.0, -0.25), ("h", "i"))
    text = b'{"choices": [{"text": "x", "finish_reason": "length"}]}'
    assert whole(text, chat=False) == Answer("x", "length", None, None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "invalid JSON"),
        (b"\xff", "invalid JSON"),
        (b"{", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b"[]", "input should be an object"),
        (b"{}", "choices: there is none with the index 0"),
        (b'{"choices": []}', "choices: there is none with the index 0"),
        (b'{"choices": [{"finish_reason": "stop"}]}', "choices.0.message: field required"),
        (chat(finish=None), "choices.0.finish_reason: input should be a valid string"),
        (chat(content=3), "choices.0.message.content: input should be a valid string"),
        (chat().replace(b"hi", b"\\ud800"), "invalid JSON"),
        (chat().replace(b": 3", b": -3"), "usage.completion_tokens: input should be greater"),
        (chat().replace(b": 3", b": 1e999"), "usage.completion_tokens: input should be"),
        (chat(logprobs={"content": [{"token": "a", "logprob": None}]}), "logprob: input should be a valid number"),
        (chat(logprobs={"content": [{"token": "a", "logprob": float("-inf")}]}), "logprob: input should be a finite"),
    ],
)
def test_what_is_no_answer_is_told_precisely(body: bytes, said: str) -> None:
    with pytest.raises(TryFailed) as caught:
        whole(body, chat=True)
    failure = caught.value.failure
    assert failure.message.startswith("the answer means nothing: ")
    assert said.lower() in failure.message.lower()
    assert (failure.ends, failure.counts) == ("again", True)
    assert caught.value.__context__ is None


def test_lists_of_different_length_are_no_logprobs() -> None:
    choice = {"text": "x", "finish_reason": "stop", "logprobs": {"tokens": ["x"], "token_logprobs": []}}
    with pytest.raises(TryFailed, match="1 tokens and 0 numbers"):
        whole(json.dumps({"choices": [choice]}).encode(), chat=False)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_answer_or_a_failure(body: bytes) -> None:
    with pytest.raises(TryFailed):
        whole(body, chat=True)


DATA = st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=5)


@given(DATA, st.sampled_from(["\n", "\r\n"]), st.integers(1, 9), st.booleans())
def test_events_are_the_same_however_their_bytes_come(data: list[str], end: str, size: int, done: bool) -> None:
    events = [each for each in data if each.strip() != "[DONE]"]
    stream = "".join(f": comment{end}event: x{end}data: {each}{end}{end}" for each in events)
    stream += f"data: [DONE]{end}{end}data: never{end}{end}" if done else ""
    raw, reader, found = stream.encode(), Events(), []
    for at in range(0, len(raw), size):
        found += reader.add(raw[at : at + size])
    assert [each.decode() for each in found] == events
    assert reader.ended == done
    assert reader.rest() == []


def test_the_last_event_needs_no_empty_line() -> None:
    events = Events()
    assert events.add(b"data: 1\ndata: 2") == []
    assert events.rest() == [b"1\n2"]


def test_a_stream_grows_and_errors_in_it_are_none() -> None:
    growing = Growing(chat=True, hide=Hiding(KEY))
    assert growing.add(b'{"choices": [{"delta": {"role": "assistant"}}]}') == ""
    assert growing.add(b'{"choices": [{"delta": {"content": "hi"}}]}') == "hi"
    assert not growing.complete
    assert growing.add(b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}') == ""
    assert growing.add(b'{"choices": [], "usage": {"completion_tokens": 1}}') == ""
    assert growing.answer() == Answer("hi", "stop", 1, None)
    with pytest.raises(TryFailed) as caught:
        growing.add(json.dumps({"error": {"message": f"out of memory, {KEY}"}}).encode())
    assert "out of memory" in caught.value.failure.message
    assert KEY not in caught.value.failure.message


def options(**settings: object) -> OpenAIBackend:
    return OpenAIBackend.model_validate({"kind": "openai", "base_url": "http://localhost/v1"} | settings)


def test_what_is_sent_is_what_changes_something() -> None:
    body = request_of(PROMPT, "m", options(), Generation())
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.8,
        "top_p": 1.0,
        "max_tokens": 9,
        "seed": 2**63 - 1,
    }
    assert request_of(PROMPT, "m", options(seed_bits=32), Generation())["seed"] == 2**32 - 1
    assert "seed" not in request_of(PROMPT, "m", options(seed_bits=0), Generation())


def test_all_that_can_be_asked_for() -> None:
    sampling = Sampling(0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.1, logprobs=True)
    prompt = Prompt(0, (), given=(1, 2), seed=5, max_new_tokens=4, sampling=sampling, stop=("END",), streamed=True)
    extra = {"top_k": -1, "user": "me"}
    body = request_of(prompt, "m", options(extra_body=extra, max_tokens_field="max_completion_tokens"), Generation())
    assert body == {
        "model": "m",
        "prompt": [1, 2],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 4,
        "seed": 5,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "stop": ["END"],
        "logprobs": 0,
        "user": "me",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    again = request_of(PROMPT, "m", options(extra_body=extra, max_tokens_field="max_completion_tokens"), Generation())
    assert (again["top_k"], again["max_completion_tokens"]) == (-1, 9)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "stop"), ("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length")],
)
def test_how_an_answer_ends(finish: str, reason: str) -> None:
    completion = completion_of(PROMPT, Answer("  a story END more ", finish, 4, 2), 1.5, Generation(), Hiding(None))
    assert (completion.text, completion.finish_reason, completion.tokens) == ("a story END more", reason, 4)
    cut = completion_of(PROMPT, Answer(" a story END", finish, 4, 2), 1.5, Generation(stop=("END",)), Hiding(None))
    assert (cut.text, cut.finish_reason, cut.seconds) == ("a story", "stop", 1.5)


@pytest.mark.parametrize("finish", ["content_filter", "tool_calls", "function_call", "", KEY])
def test_other_ends_are_errors_that_another_attempt_may_mend(finish: str) -> None:
    completion = completion_of(PROMPT, Answer("", finish, None, None), 1.0, Generation(), Hiding(KEY))
    assert (completion.finish_reason, completion.retryable, completion.tokens) == ("error", True, 0)
    assert completion.error.startswith("server: the answer ended with ")
    assert KEY[:4] not in completion.error


def test_an_answer_with_the_key_is_kept_nowhere() -> None:
    completion = completion_of(PROMPT, Answer(f"I know {KEY}!", "stop", 4, 2), 1.0, Generation(), Hiding(KEY))
    assert (completion.finish_reason, completion.text) == ("error", "")
    assert KEY not in repr(completion.error)
    fine = completion_of(PROMPT, Answer("there is none left", "stop", 4, 2), 1.0, Generation(), Hiding("none"))
    assert fine.finish_reason == "stop", "what everybody gives a server that wants no key is a word like others"


def test_log_probabilities_are_never_made_up() -> None:
    prompt = Prompt(0, (), given="x", sampling=Sampling(logprobs=True))
    completion = completion_of(prompt, Answer("text", "stop", 4, 2), 1.0, Generation(), Hiding(None))
    assert (completion.finish_reason, completion.retryable) == ("error", False)
    assert "no log-probabilities" in completion.error


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "localhost:8000",
            "ftp://h/v1",
            "http://",
            "http:///v1",
            "http://h:x/v1",
            "http://[::1/v1",
            "file:///etc",
        ),
        *("http://user@h/v1", "http://u:hunter2@h/v1", "http://h/v1?key=hunter2", "http://h/v1#x", "http://h/ v1"),
        *("http://h:99999/v1", "http://h/v1\n"),
    ],
)
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(ValueError, match="found") as caught:
        options(base_url=url)
    assert "hunter2" not in str(caught.value).replace(f"input_value={url!r}", "")


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "https://api.openai.com/v1/", "http://[::1]:80", "HTTP://h"]
)
def test_what_is_one(url: str) -> None:
    assert options(base_url=url).base_url == url


def test_other_settings_that_cannot_be() -> None:
    for settings in (
        {"extra_body": {"seed": 3}},
        {"extra_body": {"a": float("inf")}},
        {"api_key_env": "sk-this-is-the-key"},
        {"timeout": 10, "patience": 10},
        {"seed_bits": 64},
    ):
        with pytest.raises(ValueError, match="1 validation error"):
            options(**settings)
    with pytest.raises(ValueError, match=r"watchdog \(600\) would end the run before backend.patience \(700\)"):
        Config(backend=options(patience=700))


def test_a_model_that_is_not_there_is_answered_with_those_that_are() -> None:
    listed = json.dumps({"data": [{"id": "llama-3-8b"}, {"id": "qwen:latest"}, {"id": "x"}]}).encode()
    for name in ("llama-3-8b", "qwen:latest", "qwen"):
        _check_has_model(listed, name, "http://h")
    with pytest.raises(ModelError) as caught:
        _check_has_model(listed, "llama3-8b", "http://h")
    assert "'llama-3-8b'" in str(caught.value)
    with pytest.raises(ModelError) as caught:
        _check_has_model(json.dumps({"data": [{"id": f"m-{KEY}"}]}).encode(), "m", "http://h", Hiding(KEY))
    assert KEY[:4] not in str(caught.value)
    for nothing in (b"", b"{", b"[]", b'{"data": []}', b'{"data": [{"id": 3}]}', b'{"data": [3]}'):
        _check_has_model(nothing, "any", "http://h")

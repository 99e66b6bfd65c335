"""Messages to tokens and back: templates, the plain format, special tokens once, stop strings."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.backends.chat import PLAIN_STOP, Chat, render_plain
from asyncgen.backends.stops import cut_at_stop
from asyncgen.errors import PromptRefused
from asyncgen.records import Message, Prompt
from tests.backends.helpers import CHATML, SPECIALS, make_tokenizer

TALK: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Tell me a story."},
    {"role": "assistant", "content": "Once."},
    {"role": "user", "content": "Another."},
]
ASKED = Prompt(0, tuple(TALK))
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)


def test_the_template_renders_and_special_tokens_come_once() -> None:
    chat = Chat(make_tokenizer(bos=True, template="{{ bos_token }}" + CHATML))
    ids = chat.encode(TALK)
    assert chat.render(TALK).endswith("<|im_start|>user\nAnother.<|im_end|>\n<|im_start|>assistant\n")
    assert ids.count(SPECIALS.index("<s>")) == 1
    assert ids.count(SPECIALS.index("</s>")) == 0
    assert ids.count(SPECIALS.index("<|im_start|>")) == 5
    assert chat.notices(None) == ()
    assert chat.stops_of(ASKED).texts == ()
    assert chat.stops_of(replace(ASKED, stop=("x",))).texts == ("x",)


def test_without_a_template_the_plain_format_is_used_and_announced() -> None:
    chat = Chat(make_tokenizer(template=None, bos=True), stops=["THE END"])
    assert chat.render(TALK) == (
        "Be kind.\n\nUser: Tell me a story.\n\nAssistant: Once.\n\nUser: Another.\n\nAssistant:"
    )
    ids = chat.encode(TALK)
    assert ids[0] == SPECIALS.index("<s>")
    assert SPECIALS.index("</s>") not in ids, "the text goes on"
    assert ids.count(SPECIALS.index("<s>")) == 1
    assert chat.stops_of(ASKED).texts == ("THE END", PLAIN_STOP)
    assert chat.stops_of(replace(ASKED, stop=())).texts == (PLAIN_STOP,)
    assert chat.stops_of(Prompt(0, (), given="Once")).texts == ("THE END",), "a text that is gone on from has no turns"
    [notice] = chat.notices(None)
    assert "no chat template" in notice


def test_the_next_question_of_a_plain_answer_is_cut_off() -> None:
    text = " A story.\n\nIt ends.\n\nUser: Another!\n\nAssistant: Yes"
    assert cut_at_stop(text, (PLAIN_STOP,)) == " A story.\n\nIt ends.\n"


def test_the_first_of_several_stops_counts() -> None:
    assert cut_at_stop("abcdef", ["e", "cd", "x"]) == "ab"
    assert cut_at_stop("abcdef", ["x"]) is None
    assert cut_at_stop("abcdef", []) is None


def test_a_template_that_refuses_a_system_message_says_so() -> None:
    chat = Chat(make_tokenizer(template=NO_SYSTEM))
    assert chat.render(TALK[1:])
    with pytest.raises(PromptRefused) as caught:
        chat.render(TALK)
    assert "does not take the conversation (roles: system, user, assistant): System role not supported" in str(
        caught.value
    )
    assert "set system_prompt to null" in str(caught.value)


OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are somebody.<|im_end|>\n{% endif %}" + CHATML
)
MERGED_SYSTEM = "{% for m in messages %}{{ '[INST] ' if loop.first }}{{ m['content'] }}\n{% endfor %}[/INST]"


@pytest.mark.parametrize(
    ("template", "inserts"), [(CHATML, False), (NO_SYSTEM, False), (MERGED_SYSTEM, False), (OWN_SYSTEM, True)]
)
def test_a_template_with_a_system_message_of_its_own_is_announced(template: str, inserts: bool) -> None:
    chat = Chat(make_tokenizer(template=template))
    assert any("inserts one of its own" in notice for notice in chat.notices(None)) == inserts
    assert chat.notices("Be kind.") == ()


def test_a_broken_template_is_the_models_fault() -> None:
    with pytest.raises(PromptRefused, match="does not take the conversation"):
        Chat(make_tokenizer(template="{{ messages[0].content + 1 }}")).render(TALK)


def test_templates_see_a_fixed_day() -> None:
    template = (
        "{% macro day() %}{{ strftime_now('%d %B %Y') }}{% endmacro %}"
        "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }} {{ date_string }} {{ day() }}{% endif %}"
    )
    assert Chat(make_tokenizer(template=template)).render(TALK) == "2026-01-01 01 Jan 2026 01 January 2026"


def test_padding_and_truncation_of_the_tokenizer_file_do_not_apply() -> None:
    tokenizer: Any = make_tokenizer(template=None)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=400)
    assert len(Chat(tokenizer).encode(TALK)) == len(render_plain(TALK).encode())


def test_a_stop_string_is_seen_when_its_last_token_comes() -> None:
    chat = Chat(make_tokenizer(), stops=["stop", "å"])
    ids = chat.encode([{"role": "user", "content": "x" * 50 + "stop"}])
    seen = [chat.stops_of(ASKED).reached(ids[:end]) for end in range(1, len(ids) + 1)]
    texts = [chat.decode(ids[:end]) for end in range(1, len(ids) + 1)]
    assert seen.index(True) == next(place for place, text in enumerate(texts) if text.endswith("xstop"))


def test_no_stop_strings_cost_nothing() -> None:
    assert not Chat(make_tokenizer()).stops_of(ASKED).reached([5, 6, 7])


@given(st.lists(st.integers(0, 200), min_size=1, max_size=30), st.data())
def test_a_stop_is_seen_at_the_token_that_completes_it(tokens: list[int], data: st.DataObject) -> None:
    """A cut of the text itself, anywhere, is a stop; so are others that may or may not occur."""
    plain = Chat(make_tokenizer())
    text = plain.decode(tokens)
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    cut = text[start : start + data.draw(st.integers(1, 4))]
    chat = Chat(make_tokenizer(), stops=[*filter(None, [cut]), "q", "\nUser:"])
    beginnings = [tokens[:end] for end in range(1, len(tokens) + 1)]
    stops = chat.stops_of(ASKED)
    seen = [stops.reached(each) for each in beginnings]
    there = [any(stop in plain.decode(each) for stop in stops.texts) for each in beginnings]
    assert (seen.index(True) if True in seen else None) == (there.index(True) if True in there else None)


def test_many_threads_may_encode_at_once() -> None:
    chat = Chat(make_tokenizer())
    expected = chat.encode(TALK)
    found: list[tuple[int, ...]] = []

    def encode() -> None:
        found.extend(chat.encode(TALK) for _ in range(50))

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 200

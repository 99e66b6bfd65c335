"""Row 20: what a template may hold is a bare, known name; 60 ways to make more of it are refused when it is read, each
by name. Values with braces, and texts beside the template, are never looked into.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.errors import DataError
from asyncgen.prompts.templates import CONDITION, load_template, parse_template
from tests.faults.conftest import Trials
from tests.programs import asyncgen, records, without_torch

WORDS = {"word1": "moon", "word2": "dance", "word3": "happy"}

ATTACKS = [
    "{word1.__class__}",
    "{word1.__class__.__mro__}",
    "{word1.__init__.__globals__}",
    "{word1.format}",
    "{word1.a.b}",
    "{.word1}",
    "{word1.}",
    "{additional_condition.__class__}",
    "{additional_condition.__doc__}",
    "{word1[0]}",
    "{word1[-1]}",
    "{word1[key]}",
    "{word1[__class__]}",
    "{word1[0].real}",
    "{[0]}",
    "{word1[}",
    "{word1]}",
    "{word1[]}",
    "{additional_condition[0]}",
    "{word1!r}",
    "{word1!s}",
    "{word1!a}",
    "{word1!x}",
    "{word1!}",
    "{word1!r:>10}",
    "{additional_condition!r}",
    "{word1:}",
    "{word1:>10}",
    "{word1:>1000000000}",
    "{word1:{word2}}",
    "{word1:{word2.__class__}}",
    "{word1:{word2:{word3}}}",
    "{word1:%Y}",
    "{word1:d}",
    "{word1::}",
    "{word1:!r}",
    "{additional_condition:>9}",
    "{}",
    "{} {}",
    "{0}",
    "{0} {1}",
    "{00}",
    "{0.__class__}",
    "{-1}",
    "{:>10}",
    "{!r}",
    "{:{}}",
    "{ word1}",
    "{word1 }",
    "{ }",
    "{word 1}",
    "{word-1}",
    "{word1\n}",
    "{word1",
    "word1} {word1}",
    "{",
    "}",
    "{{word1}",
    "{word1}}",
    "{{{word1}}",
    "{{{word1.x}}}",
    "{word1{word2}}",
    "{wоrd1}",  # noqa: RUF001  (a Cyrillic letter is the point)
    "{self}",
    "{__import__}",
    "{__class__}",
    "{globals}",
    "{Word1}",
    "{word}",
    "{word0}",
    "{word01}",
    "{word1_}",
    "{word²}",
    "{word１}",  # noqa: RUF001
    "{word1000000}",
    "{condition}",
    "{additional_conditions}",
    "{ADDITIONAL_CONDITION}",
    "{word2}",
    "{word1} {word3}",
    "{word9999}",
    "{lambda: 1}",
    "{f'{1}'}",
    "${{word1}",
]

FRAMES = ["@", "tell {word1}\nand @\nor not", "{word1} {additional_condition} @"]


def test_there_are_enough_attacks() -> None:
    assert len(set(ATTACKS)) == len(ATTACKS) >= 60


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_at_load(attack: str, tmp_path: Path, trials: Trials) -> None:
    trials(1, 1)
    for frame in FRAMES:
        text = frame.replace("@", attack)
        if attack == "{word2}" and "{word1}" in text:
            continue  # then it is no attack
        file = tmp_path / "template.txt"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DataError):
            parse_template(text)
        with pytest.raises(DataError, match=r"template\.txt"):
            load_template(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{wrod1}", "template, line 1: unknown placeholder {wrod1}; did you mean {word1}?"),
        ("a\nb {additional_conditon}", "line 2: unknown placeholder {additional_conditon}; did you mean {addit"),
        ("{WORD2}", "did you mean {word2}?"),
        ("{zzz}", "unknown placeholder {zzz}; allowed are {word1}, {word2} ... and {additional_condition}"),
        ("{word1} {word4}", "{word4} is used but {word2}, {word3} is missing; words are numbered from 1"),
        ("{word2}", "{word2} is used but {word1} is missing"),
        ("{word900}", "{word900} is used but {word1}, {word2}, {word3}, {word4}, {word5} ... is missing"),
        ("a\n\n{word1.x}", "template, line 3: {word1.x} is not a bare name; allowed are"),
        ("x\n{}", "line 2: an empty placeholder"),
        ("x\n{word1!r}", "line 2: {word1} has more than a name in it"),
        ("}", "write {{ and }} for braces in the text"),
    ],
)
def test_the_message_names_the_line_what_is_there_and_what_was_meant(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_template(text)
    assert message in str(caught.value)


@given(st.text(alphabet="{}word1234[].!:ra \n_additional_condition", max_size=40))
def test_what_is_accepted_has_only_bare_names(text: str) -> None:
    try:
        template = parse_template(text)
    except DataError:
        return
    fields = [field for field in string.Formatter().parse(template.text) if field[1] is not None]
    assert {name for _, name, _, _ in fields} <= {*template.words, CONDITION}
    assert all(not spec and not conversion for _, _, spec, conversion in fields)


def test_values_with_braces_are_inert() -> None:
    template = parse_template("{{{word1}}} {word2}, {additional_condition}")
    words = {"word1": "{word2}", "word2": "{0.__class__}"}
    assert template.render(words, "{word1!r}{{") == "{{word2}} {0.__class__}, {word1!r}{{"


@given(st.dictionaries(st.sampled_from(sorted(WORDS)), st.text(), min_size=3), st.text(min_size=1))
def test_any_value_is_put_in_as_it_is(words: dict[str, str], condition: str) -> None:
    template = parse_template("<{word1}|{additional_condition}|{word3}|{word2}|{{word1}}>")
    expected = f"<{words['word1']}|{condition}|{words['word3']}|{words['word2']}|{{word1}}>"
    assert template.render(words, condition) == expected


@pytest.mark.parametrize("place", ["text", "file", "set"])
@pytest.mark.parametrize("command", ["run", "check", "preview"])
def test_the_command_line_refuses_before_torch(tmp_path: Path, place: str, command: str) -> None:
    attack = "tell {word1.__class__.__init__.__globals__}"
    (tmp_path / "t.txt").write_text(attack)
    (tmp_path / "c.yaml").write_text({"text": f"template: '{attack}'", "file": "template: t.txt", "set": ""}[place])
    override = ("--set", f"template='{attack}'") if place == "set" else ()
    done = asyncgen(command, "c.yaml", *override, cwd=tmp_path, env=without_torch(tmp_path))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    where = "--set template=" if place == "set" else "c.yaml:1: template: "
    assert done.stderr.startswith(f"asyncgen: error: {where}")
    assert "{word1.__class__.__init__.__globals__} is not a bare name; allowed are {word1}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("stories*"))


BRACES = "{word1} {word1.__class__} {0} {} {{ }} {word1!r:>99999999} {additional_condition"


def test_texts_beside_the_template_are_no_templates(tmp_path: Path) -> None:
    """System prompt, conditions, examples, ready prompts and the names of things are what they are, to the letter."""
    example = [{"role": "user", "content": f"q {BRACES}"}, {"role": "assistant", "content": f"a {BRACES}"}]
    ready = {"prompt": f"p {BRACES}", "selected_words": ["{moon}"], "additional_condition": BRACES}
    (tmp_path / "turns.json").write_text(json.dumps(example))
    (tmp_path / "features.json").write_text(json.dumps([f"f {BRACES}"]))
    (tmp_path / "ready.jsonl").write_text(json.dumps(ready) + "\n")
    settings = {
        "backend": {"kind": "echo"},
        "num_stories": 4,
        "record_messages": True,
        "template": "{word1}: {additional_condition}",
        "system_prompt": f"s {BRACES}",
        "conversation_path": "turns.json",
        "features_path": "features.json",
        "k_shot_count": 1,
        "generation": {"stop": [BRACES]},
        "validation": {"enabled": False, "banned_words": ["{moon}"], "forbid_patterns": ["\\{word1.__class__}"]},
        "sources": [{"kind": "template", "name": BRACES}, {"kind": "jsonl", "path": "ready.jsonl"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(settings))
    done = asyncgen("run", "c.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = {record["metadata"]["source"]: record for record in records(tmp_path / "stories.jsonl")}
    messages = told[BRACES]["metadata"]["messages"]
    word = told[BRACES]["metadata"]["selected_words"]["word1"]
    assert [message["content"] for message in messages] == [
        f"s {BRACES}",
        f"q {BRACES}",
        f"a {BRACES}",
        f"{word}: f {BRACES}",
    ]
    assert told["jsonl"]["metadata"]["messages"][-1]["content"] == f"p {BRACES}"
    assert told["jsonl"]["metadata"]["additional_condition"] == BRACES
    assert told["jsonl"]["metadata"]["selected_words"] == {"word1": "{moon}"}

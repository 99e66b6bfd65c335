"""Templates: the brief's text, strict placeholders (fault 20), inert values."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.errors import DataError
from asyncgen.prompts.templates import CONDITION, DEFAULT_TEMPLATE, load_template, parse_template

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


def test_there_are_enough_attacks() -> None:
    assert len(set(ATTACKS)) == len(ATTACKS) >= 50


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("frame", ["{}", "tell {{word1}}\nand {}\nor not", "{{word1}} {{additional_condition}} {}"])
def test_attacks_are_refused_at_load(attack: str, frame: str, tmp_path: Path) -> None:
    text = frame.replace("{}", attack, 1).replace("{{word1}}", "{word1}")
    text = text.replace("{{additional_condition}}", "{additional_condition}")
    if attack == "{word2}" and "{word1}" in text:
        return  # then it is no attack
    file = tmp_path / "template.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError):
        parse_template(text)
    with pytest.raises(DataError, match=r"template\.txt"):
        load_template(str(file))


def test_the_default_is_the_briefs() -> None:
    template = load_template(None)
    assert template.words == ("word1", "word2", "word3")
    assert template.has_condition
    assert template.render(WORDS, "make sure story has sad elements but ends well") == (
        "Generate simple, short (up to 150 words) bed time story easy to understand and follow by 3 years old\n"
        "containing words moon dance happy\n"
        "\n"
        "make sure story has sad elements but ends well\n"
        "\n"
        "keep story coherent and gramatically correct"
    )


def test_an_empty_condition_leaves_no_hole() -> None:
    text = load_template(None).render(WORDS)
    assert text.endswith("containing words moon dance happy\n\nkeep story coherent and gramatically correct")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n{additional_condition}\n\nb", "a\n\nb"),
        ("a\n{additional_condition}\nb", "a\n\nb"),
        ("a {additional_condition} b", "a  b"),
        ("{additional_condition}\n\nb", "b"),
        ("a\n\n{additional_condition}", "a"),
        ("{word1}\n\n{additional_condition}\n\n{word1}", "moon\n\nmoon"),
        ("{word1}{additional_condition}\n\nb", "moon\n\nb"),
        ("a\n\n{additional_condition}\n\n{additional_condition}\n\nb", "a\n\nb"),
        ("a\n\n{{additional_condition}}\n\nb", "a\n\n{additional_condition}\n\nb"),
        ("a\n\n{{{additional_condition}}}\n\nb", "a\n\n{}\n\nb"),
        ("{additional_condition}", ""),
    ],
)
def test_empty_conditions(text: str, expected: str) -> None:
    assert parse_template(text).render(WORDS) == expected


def test_values_with_braces_are_inert() -> None:
    template = parse_template("{{{word1}}} {word2}, {additional_condition}")
    words = {"word1": "{word2}", "word2": "{0.__class__}"}
    assert template.render(words, "{word1!r}{{") == "{{word2}} {0.__class__}, {word1!r}{{"


@given(st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"])).filter(str.strip))
def test_any_text_can_be_written_with_doubled_braces(text: str) -> None:
    written = text.replace("{", "{{").replace("}", "}}")
    assert parse_template(written).render({}) == text.rstrip("\n")


@given(st.text(alphabet="{}word1234[].!:ra \n_additional_condition", max_size=40))
def test_what_is_accepted_has_only_bare_names(text: str) -> None:
    try:
        template = parse_template(text)
    except DataError:
        return
    fields = [field for field in string.Formatter().parse(template.text) if field[1] is not None]
    assert {name for _, name, _, _ in fields} <= {*template.words, CONDITION}
    assert all(not spec and not conversion for _, _, spec, conversion in fields)


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
        (" \n ", "the template is empty"),
        ("\x00{word1}", "U+0000 at place 1 is not text"),
        ("a\n\ud800", "U+D800"),
    ],
)
def test_messages(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_template(text)
    assert message in str(caught.value)


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "template.txt"
    file.write_bytes(b"\xef\xbb\xbfTell of {word1}\r\nand {word2}.\r\n\r\n")
    template = load_template(str(file))
    assert template.text == "Tell of {word1}\nand {word2}."
    assert not template.has_condition
    assert template.render(WORDS, "ignored") == "Tell of moon\nand dance."


def test_without_placeholders() -> None:
    template = parse_template("Tell me a story.\n")
    assert (template.words, template.has_condition, template.render({})) == ((), False, "Tell me a story.")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_template(str(tmp_path / "none.txt"))
    assert "template file not found: " in str(caught.value)
    assert "none.txt" in str(caught.value)
    assert "contains a placeholder or a line break" in str(caught.value)


def test_ten_placeholders_are_in_order_of_number() -> None:
    text = " ".join(f"{{word{k}}}" for k in (10, 2, 1, 3, 4, 5, 6, 7, 8, 9))
    assert parse_template(text).words == tuple(f"word{k}" for k in range(1, 11))


def test_a_huge_template_is_read() -> None:
    assert len(parse_template("{word1}\n" * 20_000 + DEFAULT_TEMPLATE).full) > 20_000

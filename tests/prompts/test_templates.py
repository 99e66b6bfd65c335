"""Templates: the brief's text, what an empty condition leaves, files. What is refused: tests/faults/test_row_20."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.errors import DataError
from asyncgen.prompts.templates import DEFAULT_TEMPLATE, load_template, parse_template

WORDS = {"word1": "moon", "word2": "dance", "word3": "happy"}


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


@given(st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"])).filter(str.strip))
def test_any_text_can_be_written_with_doubled_braces(text: str) -> None:
    written = text.replace("{", "{{").replace("}", "}}")
    assert parse_template(written).render({}) == text.rstrip("\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
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

"""A user's own functions, found by what the configuration says of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asyncgen.errors import ConfigError
from asyncgen.functions import find_function, source_file


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "checks_of_mine.py"
    path.write_text(
        "import dataclasses\n\n@dataclasses.dataclass\nclass A:\n    b: int\n\ndef kind(c): ...\nTHREE = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return path


def test_a_function_is_found_in_a_module_and_in_a_file(module: Path) -> None:
    for reference in ("checks_of_mine:kind", f"{module}:kind"):
        function = find_function(reference, "where")
        assert function.__name__ == "kind"
        assert find_function(reference, "where") is function
        assert source_file(reference) == module
    assert source_file("no_such_module:f") is None


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("checks_of_mine:kin", "there is no 'kin' in checks_of_mine; did you mean 'kind'?"),
        ("checks_of_mine:zzz", "it has: A, kind"),
        ("checks_of_mine:THREE", "is of type int; it must be a function"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("missing.py:f", "there is no file missing.py"),
    ],
)
def test_what_cannot_be_found_is_said(module: Path, reference: str, message: str) -> None:
    assert module.exists()
    with pytest.raises(ConfigError) as caught:
        find_function(reference, "sources[1].function")
    assert str(caught.value).startswith("sources[1].function: ")
    assert message in str(caught.value)


def test_a_module_that_cannot_be_imported_is_said_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    for text, message in (
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_thing", "no_such_thing"),
        ("(", "Syntax"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            find_function(f"{path}:f", "where")
    path.write_text("f = len")
    assert find_function(f"{path}:f", "where") is len

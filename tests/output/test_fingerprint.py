"""What makes two configurations the same run. Each field in turn: tests/faults/test_row_24_changed_config.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncgen.config import Config
from asyncgen.errors import DataError
from asyncgen.output import compare, fingerprint

JSONL = {"kind": "jsonl", "path": "/a.jsonl"}
CHECK = {"function": "checks:kind"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"sources": [JSONL]}, {"sources": [JSONL | {"name": "jsonl"}]}),
        ({}, {"sources": [{"kind": "template", "name": "template"}]}),
        ({"use_k_shot": False}, {"k_shot_count": 0}),
        ({"use_k_shot": False}, {"use_k_shot": False, "k_shot_rotate": 7}),
        ({"k_shot_count": 0}, {"use_k_shot": False, "k_shot_count": 5, "k_shot_rotate": 7}),
        (
            {"validation": {"enabled": False}},
            {"validation": {"enabled": False, "min_words": 3, "weights": {"words": 1.0}, "functions": [CHECK]}},
        ),
    ],
)
def test_what_means_the_same_is_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    before, after = Config.model_validate(one), Config.model_validate(other)
    assert before != after
    assert fingerprint(before, {}) == fingerprint(after, {})


def test_settings_of_what_is_switched_on_or_off_say_nothing_more() -> None:
    strict = Config.model_validate({"validation": {"min_words": 3, "functions": [CHECK]}})
    off = Config.model_validate({"validation": {"enabled": False}})
    for before, after, change in ((strict, off, "was true, now false"), (off, strict, "was false, now true")):
        [difference] = compare(fingerprint(before, {}), fingerprint(after, {}))
        assert str(difference) == f"validation.enabled: {change}"
        assert difference.refused


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [("auto", "static", False), ("static", "auto", False), ("slots", "static", False), ("static", "echo", True)],
)
def test_engines_for_the_same_model_may_be_exchanged(old: str, new: str, refused: bool) -> None:
    [difference] = compare({"backend.kind": old}, {"backend.kind": new})
    assert difference.refused == refused


def test_no_source_is_the_template() -> None:
    named = Config.model_validate({"sources": [{"kind": "template"}]})
    assert fingerprint(Config(), {}) == fingerprint(named, {})


def test_the_content_of_a_file_counts_and_its_path_does_not(tmp_path: Path) -> None:
    first, moved, other = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    first.write_text("moon")
    moved.write_text("moon")
    other.write_text("sun")
    begun = fingerprint(Config(), {"vocabulary": first})
    assert compare(begun, fingerprint(Config(), {"vocabulary": moved})) == []
    assert compare(begun, fingerprint(Config(), {"vocabulary": "moon"})) == []
    [difference] = compare(begun, fingerprint(Config(), {"vocabulary": other}))
    assert str(difference) == "vocabulary_path: content changed"
    assert difference.refused
    [difference] = compare(begun, fingerprint(Config(), {}))
    assert str(difference) == "vocabulary_path: was present, now absent"
    assert str(tmp_path) not in repr(begun)


def test_an_input_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"words\.txt cannot be read: No such file"):
        fingerprint(Config(), {"vocabulary": tmp_path / "words.txt"})


def test_a_source_may_have_grown_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    inputs: dict[str, Path | str] = {"sources[0]": path, "vocabulary": "moon"}
    begun = fingerprint(Config(), inputs)
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert compare(begun, fingerprint(Config(), inputs, begun)) == []
    assert len(compare(begun, fingerprint(Config(), inputs))) == 1
    for changed in ('{"prompt": "b"}\n{"prompt": "b"}\n', '{"prompt"'):
        path.write_text(changed)
        assert len(compare(begun, fingerprint(Config(), inputs, begun))) == 1
    assert len(compare(begun, fingerprint(Config(), inputs | {"sources[0]": path, "vocabulary": "moons"}, begun))) == 2


def test_nothing_but_a_source_may_have_grown(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("moon\n")
    begun = fingerprint(Config(), {"vocabulary": path})
    path.write_text("moon\nsun\n")
    assert len(compare(begun, fingerprint(Config(), {"vocabulary": path}, begun))) == 1


def test_a_model_directory_is_its_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "templates").mkdir(parents=True)
    (model / ".cache").mkdir()
    for name in ("config.json", "model.safetensors", "README.md", ".cache/x.json", "templates/a.jinja"):
        (model / name).write_text(name)
    inputs: dict[str, Path | str] = {"model": model}
    begun = fingerprint(Config(model_name=str(model)), inputs)
    assert "model_name" not in begun

    moved = model.rename(tmp_path / "renamed")
    inputs = {"model": moved}
    (moved / "README.md").write_text("notes do not count")
    (moved / ".cache/x.json").write_text("nor do hidden files")
    assert compare(begun, fingerprint(Config(model_name=str(moved)), inputs)) == []
    for name in ("config.json", "model.safetensors", "templates/a.jinja"):
        (moved / name).write_text("changed")
        [difference] = compare(begun, fingerprint(Config(), inputs))
        assert str(difference) == "model_name: content changed"
        (moved / name).write_text(name)
    (moved / "config.json").rename(moved / "other.json")
    assert len(compare(begun, fingerprint(Config(), inputs))) == 1

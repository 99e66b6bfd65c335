from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from asyncgen.config import Config
from asyncgen.errors import DataError
from asyncgen.output import compare, fingerprint
from asyncgen.output.fingerprint import RULES

ECHO = {"kind": "echo"}
JSONL = {"kind": "jsonl", "path": "/a.jsonl"}
PYTHON = {"kind": "python", "function": "prompts:stories"}
CHECK = {"function": "checks:kind"}
# One changed value for every field; with a third part, what it is changed from.
CHANGES: dict[str, tuple[Any, ...]] = {
    "model_name": ("Qwen/Qwen2.5-3B-Instruct",),
    "num_stories": (5,),
    "seed": (1,),
    "output_path": ("elsewhere.jsonl",),
    "backend.kind": (ECHO, {"kind": "static"}),
    "backend.device": ({"kind": "auto", "device": "cpu"},),
    "backend.dtype": ({"kind": "auto", "dtype": "float32"},),
    "backend.device_map": ({"kind": "auto", "device_map": {"": 0}},),
    "backend.revision": ({"kind": "auto", "revision": "main"},),
    "backend.quantization": ({"kind": "auto", "quantization": "8bit"},),
    "backend.trust_remote_code": (
        {"kind": "auto", "revision": "abc", "trust_remote_code": True},
        {"kind": "auto", "revision": "abc"},
    ),
    "backend.seconds_per_batch": (ECHO | {"seconds_per_batch": 1.0}, ECHO),
    "backend.bad_share": (ECHO | {"bad_share": 0.5}, ECHO),
    "backend.distinct": (ECHO | {"distinct": 3}, ECHO),
    "backend.context_length": (ECHO | {"context_length": 9}, ECHO),
    "generation.batch_size": ({"batch_size": 9},),
    "generation.temperature": ({"temperature": 0.7},),
    "generation.top_p": ({"top_p": 0.5},),
    "generation.top_k": ({"top_k": 5},),
    "generation.min_p": ({"min_p": 0.5},),
    "generation.repetition_penalty": ({"repetition_penalty": 1.2},),
    "generation.max_new_tokens": ({"max_new_tokens": 64},),
    "generation.stop": ({"stop": ("The end",)},),
    "system_prompt": ("Be kind.",),
    "template": ("Tell {word1}",),
    "vocabulary_path": ("/other/words.txt",),
    "features_path": ("/other/features.json",),
    "conversation_path": ("/other/turns.json",),
    "sources.kind": ([JSONL],),
    "sources.name": ([JSONL | {"name": "mine"}], [JSONL]),
    "sources.weight": ([JSONL | {"weight": 2}], [JSONL]),
    "sources.path": ([JSONL | {"path": "/b.jsonl"}], [JSONL]),
    "sources.function": ([PYTHON | {"function": "other:stories"}], [PYTHON]),
    "sources.parameters": ([PYTHON | {"parameters": {"kind": 1}}], [PYTHON]),
    "sources.timeout": ([PYTHON | {"timeout": 30}], [PYTHON]),
    "use_k_shot": (False,),
    "k_shot_count": (1,),
    "k_shot_rotate": (7,),
    "ensure_diversity": (False,),
    "max_attempts": (1,),
    "record_messages": (True,),
    "max_rejection_rate": (0.5,),
    "window": (512,),
    "drain_timeout": (1.5,),
    "watchdog": (None, 3.5),
    "validation.enabled": ({"enabled": False},),
    "validation.min_words": ({"min_words": 1},),
    "validation.max_words": ({"max_words": 200},),
    "validation.require_words": ({"require_words": False},),
    "validation.require_ending": ({"require_ending": False},),
    "validation.max_repetition": ({"max_repetition": 1.0},),
    "validation.copy_words": ({"copy_words": 0},),
    "validation.banned_words": ({"banned_words": ["gun"]},),
    "validation.banned_words_path": ({"banned_words_path": "/banned.txt"},),
    "validation.forbid_patterns": ({"forbid_patterns": ["x+"]},),
    "validation.require_patterns": ({"require_patterns": ["x+"]},),
    "validation.readability.max_sentence_words": ({"readability": {"max_sentence_words": 12}},),
    "validation.readability.max_mean_sentence_words": ({"readability": {"max_mean_sentence_words": 9.5}},),
    "validation.readability.max_mean_syllables": ({"readability": {"max_mean_syllables": 1.5}},),
    "validation.readability.max_grade": ({"readability": {"max_grade": 3.0}},),
    "validation.readability.min_known_words": ({"readability": {"min_known_words": 0.8}},),
    "validation.readability.known_words_path": ({"readability": {"known_words_path": "/known.txt"}},),
    "validation.readability.language": ({"readability": {"language": "en_GB"}},),
    "validation.functions.function": ({"functions": [{"function": "other:kind"}]}, {"functions": [CHECK]}),
    "validation.functions.parameters": ({"functions": [CHECK | {"parameters": {"n": 1}}]}, {"functions": [CHECK]}),
    "validation.functions.name": ({"functions": [CHECK | {"name": "kindness"}]}, {"functions": [CHECK]}),
    "validation.functions.concurrency": ({"functions": [CHECK | {"concurrency": 2}]}, {"functions": [CHECK]}),
    "validation.functions.timeout": ({"functions": [CHECK | {"timeout": 2.0}]}, {"functions": [CHECK]}),
    "validation.functions.weight": ({"functions": [CHECK | {"weight": 0.5}]}, {"functions": [CHECK]}),
    "validation.weights.length": ({"weights": {"length": 0.5}},),
    "validation.weights.words": ({"weights": {"words": 0.5}},),
    "validation.weights.ending": ({"weights": {"ending": 0.5}},),
    "validation.weights.variety": ({"weights": {"variety": 0.5}},),
    "validation.weights.originality": ({"weights": {"originality": 0.5}},),
    "validation.weights.readability": ({"weights": {"readability": 0.5}},),
    "validation.reject_repeats": ({"reject_repeats": False},),
    "validation.min_quality": ({"min_quality": 0.1},),
}


def leaves(annotation: Any, name: str) -> set[str]:
    """Every dotted name that a configuration can have, found in its types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        prefix = f"{name}." if name else ""
        fields = annotation.model_fields.items()
        return set().union(*(leaves(field.annotation, prefix + key) for key, field in fields))
    if get_origin(annotation) in (Annotated, tuple, Union, types.UnionType):
        inner = set().union(*(leaves(each, name) for each in get_args(annotation)))
        return inner - {name} if any("." in each[len(name) :] for each in inner) else {name}
    return {name}


def test_every_field_has_a_rule_and_a_test() -> None:
    assert leaves(Config, "") == RULES.keys() == CHANGES.keys()


def pair_of(name: str) -> tuple[Config, Config]:
    key = name.partition(".")[0]
    new, *old = CHANGES[name]
    before = Config.model_validate({key: old[0]} if old else {})
    return before, Config.model_validate({key: new})


@pytest.mark.parametrize("name", CHANGES)
def test_each_field_does_what_its_rule_says(name: str) -> None:
    before, after = pair_of(name)
    assert before != after
    differences = compare(fingerprint(before, {}), fingerprint(after, {}))
    if name == "sources.kind":  # another kind has other settings too
        differences = [each for each in differences if each.name.endswith(".kind")]
    if RULES[name] in ("free", "input"):
        assert not differences
        return
    if name == "use_k_shot":  # which leaves none of them
        assert "k_shot_count: was 2, now 0" in map(str, differences)
        differences = [each for each in differences if each.name != "k_shot_count"]
    [difference] = differences
    assert difference.name == name.replace("sources", "sources[0]").replace("functions", "functions[0]")
    assert difference.refused == (RULES[name] == "records")


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


def test_a_difference_reads_like_a_sentence() -> None:
    before, after = pair_of("generation.temperature")
    assert list(map(str, compare(fingerprint(before, {}), fingerprint(after, {})))) == [
        "generation.temperature: was 0.8, now 0.7"
    ]


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

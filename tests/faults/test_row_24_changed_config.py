"""Row 24: a run that goes on with another configuration is refused with each field that differs, for all fields that
decide what records are; all others may change, num_stories may grow, and what is refused leaves every file as it was.
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import anyio
import pytest
from pydantic import BaseModel

from asyncgen.config import Config, Server
from asyncgen.errors import ResumeRefused
from asyncgen.output import compare, fingerprint
from asyncgen.output.fingerprint import RULES
from asyncgen.session import run
from tests.faults.conftest import Trials
from tests.programs import ECHO as ON_ECHO
from tests.programs import asyncgen, records, without_torch

ECHO = {"kind": "echo"}
SERVER = {"kind": "openai", "base_url": "http://localhost:8000/v1"}
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
        {"kind": "auto", "revision": "c0ffee" * 6 + "c0de", "trust_remote_code": True},
        {"kind": "auto", "revision": "c0ffee" * 6 + "c0de"},
    ),
    "backend.cuda_graphs": ({"kind": "auto", "cuda_graphs": False},),
    "backend.compile": ({"kind": "auto", "compile": True},),
    "backend.base_url": (SERVER | {"base_url": "https://elsewhere.example/v1"}, SERVER),
    "backend.api_key_env": (SERVER | {"api_key_env": "THE_KEY"}, SERVER),
    "backend.timeout": (SERVER | {"timeout": 3.5}, SERVER),
    "backend.patience": (SERVER | {"patience": 200.0}, SERVER),
    "backend.max_retries": (SERVER | {"max_retries": 3}, SERVER),
    "backend.seed_bits": (SERVER | {"seed_bits": 32}, SERVER),
    "backend.max_tokens_field": (SERVER | {"max_tokens_field": "max_completion_tokens"}, SERVER),
    "backend.extra_body": (SERVER | {"extra_body": {"top_k": -1}}, SERVER),
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
    "server.host": ({"host": "localhost"},),
    "server.port": ({"port": 8001},),
    "server.api_key_env": ({"api_key_env": "KEY"},),
    "server.model_id": ({"model_id": "tales"},),
    "server.max_stories": ({"max_stories": 9},),
    "server.max_choices": ({"max_choices": 9},),
    "server.max_tokens": ({"max_tokens": 9},),
    "server.max_body_bytes": ({"max_body_bytes": 9},),
    "server.timeout": ({"timeout": 9.0},),
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


def test_what_may_change_is_no_more_than_this() -> None:
    assert {name for name, rule in RULES.items() if rule == "free"} == {
        *("num_stories", "output_path", "window", "drain_timeout", "watchdog", "max_rejection_rate"),
        *("sources.timeout", "validation.functions.concurrency", "backend.seconds_per_batch"),
        *(f"server.{name}" for name in Server.model_fields),
        *("backend.api_key_env", "backend.timeout", "backend.patience", "backend.max_retries"),
    }
    assert {name for name, rule in RULES.items() if rule == "noted"} == {
        *("generation.batch_size", "backend.device", "backend.device_map", "validation.functions.timeout"),
        *("backend.base_url", "backend.cuda_graphs", "backend.compile"),
    }


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


def test_a_difference_reads_like_a_sentence() -> None:
    before, after = pair_of("generation.temperature")
    assert list(map(str, compare(fingerprint(before, {}), fingerprint(after, {})))) == [
        "generation.temperature: was 0.8, now 0.7"
    ]


BASE: dict[str, Any] = {
    "backend": ECHO,
    "num_stories": 12,
    "validation": {"readability": {"min_known_words": 0.01}},  # else known_words_path is not looked at
}
"""What the outputs of the following tests were begun with."""
FILES = {
    "vocabulary_path": "moon\nsun\nstar\n",
    "features_path": '["calm"]',
    "conversation_path": json.dumps([{"role": role, "content": "hi"} for role in ("user", "assistant")] * 2),
    "validation.banned_words_path": "gun\n",
    "validation.readability.known_words_path": "moon\n",
    "sources.path": '{"prompt": "tell"}\n',
}
LOCAL = {
    f"backend.{name}"
    for name in (
        *("device", "dtype", "device_map", "revision", "quantization", "trust_remote_code"),
        *("cuda_graphs", "compile"),
    )
}
COMES_ALONG = {
    "template": {"features_path"},
    "use_k_shot": {"k_shot_count", "conversation_path"},
    "validation.enabled": {"validation.readability.known_words_path"},
}
"""What is not read any more."""
SERVED = {
    f"backend.{name}"
    for name in (
        *("base_url", "api_key_env", "timeout", "patience", "max_retries"),
        *("seed_bits", "max_tokens_field", "extra_body"),
    )
}
ELSEWHERE = LOCAL | SERVED | {"num_stories", "output_path", "backend.kind"}
"""What echo has not, and what has a test of its own."""
RUN = [name for name in CHANGES if name not in ELSEWHERE and not name.startswith(("sources.", "validation.functions."))]


def changed(name: str, folder: Path) -> dict[str, Any]:
    """The settings with this one changed."""
    key, _, inner = name.partition(".")
    value = CHANGES[name][0]
    if name in FILES:
        path = folder / "changed.txt"
        path.write_text(FILES[name])
        value = str(path)
        for part in reversed(inner.split(".") if inner else []):
            value = {part: value}
    if name == "backend.context_length":
        value = ECHO | {"context_length": 900_000}
    return merged(BASE, {key: value})


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    inner = {key: merged(old[key], value) for key, value in new.items() if isinstance(value, dict) and key in old}
    return old | new | inner


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("stories*")}


def go(settings: dict[str, Any], folder: Path) -> Any:
    return anyio.run(run, Config.model_validate(settings | {"output_path": folder / "stories.jsonl"}))


@pytest.mark.parametrize("name", RUN)
def test_a_run_with_one_field_changed_goes_on_or_leaves_all_as_it_was(tmp_path: Path, name: str) -> None:
    assert go(BASE, tmp_path).complete
    before = contents(tmp_path)
    settings = changed(name, tmp_path) | {"num_stories": 15}
    if RULES[name] in ("free", "noted"):
        report = go(settings, tmp_path)
        assert report.complete
        assert (tmp_path / "stories.jsonl").read_bytes().startswith(before["stories.jsonl"][1])
        assert any(f": {name}: was " in notice for notice in report.notices) == (RULES[name] == "noted")
        return
    with pytest.raises(ResumeRefused) as caught:
        go(settings, tmp_path)
    change = caught.value.changes[name]
    assert change.startswith("was ") or change == "content changed"
    assert set(caught.value.changes) == {name} | COMES_ALONG.get(name, set())
    assert f"\n  {name}: {change}" in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.timeout(300)
def test_every_difference_is_told_with_its_place_and_nothing_is_touched(tmp_path: Path, trials: Trials) -> None:
    """By the command line, without torch; then the old configuration goes on as if nothing had happened."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps(BASE))
    env = without_torch(tmp_path)
    assert asyncgen("run", "c.json", cwd=tmp_path, env=env).returncode == 0
    before = contents(tmp_path)
    refused = [name for name in RUN if RULES[name] not in ("free", "noted")]
    count = trials(3, 12)
    for name in refused[:: len(refused) // count][:count]:
        path.write_text(json.dumps(changed(name, tmp_path) | {"num_stories": 15}))
        done = asyncgen("run", "c.json", cwd=tmp_path, env=env)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert f"{tmp_path / 'stories.jsonl'} was begun with another configuration:\n  " in done.stderr
        assert f"  {name}: " in done.stderr, done.stderr
        assert "put these back to go on with it" in done.stderr
        assert "Traceback" not in done.stderr
        assert contents(tmp_path) == before, name
    several = ("--set", "seed=5", "--set", "generation.top_k=7", "--set", "max_attempts=2")
    path.write_text(json.dumps(BASE | {"system_prompt": "Be kind."}))
    done = asyncgen("run", "c.json", *several, "--num-stories", "15", cwd=tmp_path, env=env)
    for line in (
        "--set generation.top_k=7: generation.top_k: was 0, now 7",
        "--set max_attempts=2: max_attempts: was 3, now 2",
        "--set seed=5: seed: was 0, now 5",
        'system_prompt: was null, now "Be kind."',
    ):
        assert f"  {line}\n" in done.stderr
    assert contents(tmp_path) == before


def test_more_stories_are_made_and_fewer_are_there_already(tmp_path: Path) -> None:
    for wanted, there in ((12, 12), (30, 30), (20, 30), (31, 31)):
        done = asyncgen("run", *ON_ECHO, "--num-stories", str(wanted), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(records(tmp_path / "stories.jsonl")) == there
        assert ("nothing to do" in done.stderr) == (wanted < there)
    done = asyncgen("run", *ON_ECHO, "--num-stories", "31", "--output-path", "whole.jsonl", cwd=tmp_path)
    assert records(tmp_path / "whole.jsonl") == records(tmp_path / "stories.jsonl")

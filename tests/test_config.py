"""What the YAML may say, and what a person is told when it says something else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from asyncgen.config import AutoBackend, Config, EchoBackend, Generation, JsonlSource, StaticBackend, Validation
from asyncgen.config_file import load_config
from asyncgen.errors import ConfigError
from asyncgen.init_file import render_config, render_schema

BRIEF = """
model_name: "Qwen/Qwen2.5-3B-Instruct"
num_stories: 1000
generation:
  batch_size: 8
  temperature: 0.8
  max_new_tokens: 512
k_shot_count: 2
use_k_shot: true
ensure_diversity: true
"""

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_the_briefs_example_loads_as_it_stands(write: Callable[[str], Path]) -> None:
    config = load_config(write(BRIEF))
    assert config.model_name == "Qwen/Qwen2.5-3B-Instruct"
    assert (config.num_stories, config.k_shot_count, config.use_k_shot, config.ensure_diversity) == (
        1000,
        2,
        True,
        True,
    )
    assert config.generation == Generation(batch_size=8, temperature=0.8, max_new_tokens=512)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).output_path.parent == path.parent


def test_init_writes_the_defaults(write: Callable[[str], Path], tmp_path: Path) -> None:
    config = load_config(write(render_config("x.schema.json", "x.jsonl")))
    assert config == Config(output_path=tmp_path / "x.jsonl", generation=Generation(batch_size="auto"))


def test_every_field_is_described_in_the_schema() -> None:
    schema = json.loads(render_schema())
    sections = [schema, *schema["$defs"].values()]
    undescribed = [
        f"{section['title']}.{name}"
        for section in sections
        for name, field in section.get("properties", {}).items()
        if "description" not in field
    ]
    assert not undescribed


def test_paths_are_relative_to_the_file_and_overrides_to_the_current_folder(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "my_model").mkdir()
    path = write(
        "vocabulary_path: words.txt\ntemplate: t.txt\nmodel_name: my_model\nsources: [{kind: jsonl, path: p.jsonl}]"
    )
    monkeypatch.chdir(elsewhere)
    config = load_config(path, ["output_path=out.jsonl"])
    assert config.vocabulary_path == tmp_path / "words.txt"
    assert config.template == str(tmp_path / "t.txt")
    assert config.model_name == str(tmp_path / "my_model")
    assert config.output_path == elsewhere / "out.jsonl"
    assert config.sources is not None
    assert config.sources[0].path == tmp_path / "p.jsonl"  # type: ignore[union-attr]  # a jsonl source, as written
    assert load_config(write("template: 'about {word1}'")).template == "about {word1}"


def test_an_override_wins_and_is_named_when_it_is_wrong(write: Callable[[str], Path]) -> None:
    path = write("generation: {temperature: 0.5}")
    assert load_config(path, ["generation.temperature=1e-1", "seed=7"]).generation.temperature == 0.1
    assert "--set generation.temprature=1: generation.temprature: unknown key; did you mean 'temperature'?" in refusal(
        path, "generation.temprature=1"
    )
    assert "expected key=value" in refusal(path, "seed")
    assert "not a section" in refusal(path, "seed.x=1") or "integer" in refusal(path, "seed.x=1")


def test_a_kind_that_is_set_over_a_section_of_another_kind_has_a_hint(write: Callable[[str], Path]) -> None:
    path = write("backend: {device: cpu}\nsources: [{kind: jsonl, path: p.jsonl}]")
    message = refusal(path, "backend.kind=echo")
    assert f"{path}:1: backend.device: unknown key for kind 'echo'" in message
    assert message.endswith("\n  hint: --set 'backend={kind: echo}' replaces the whole section")
    assert load_config(path, ["backend={kind: echo}"]).backend == EchoBackend(kind="echo")
    message = refusal(path, "sources[0].kind=template")
    assert message.endswith("\n  hint: --set 'sources[0]={kind: template}' replaces the whole section")
    for other in (["backend.kind=echo", "backend.device=cpu"], ["backend.dvice=cpu"]):
        assert "replaces" not in refusal(write("seed: 1"), *other)


def test_json_is_read_too(write: Callable[..., Path]) -> None:
    assert load_config(write('{"num_stories":\t3}', "config.json")).num_stories == 3
    assert "config.json:2: not valid JSON" in refusal(write('{\n"num_stories": }', "config.json"))
    assert "U+D800" in refusal(write('{"system_prompt": "\\ud800"}', "config.json"))


def test_an_override_is_utf8_whatever_the_locale() -> None:
    """In a C locale Python hands over what it cannot decode as surrogates."""
    kept = "système".encode().decode("ascii", "surrogateescape")
    assert load_config(None, [f"system_prompt={kept}"]).system_prompt == "système"
    assert "is not UTF-8" in refusal(None, "system_prompt=\udcff")
    assert "--set system_prompt=\x80:1: the character U+0080" in refusal(None, "system_prompt=\x80")


def test_a_home_folder_is_found_and_the_bundled_model_is_not_shadowed(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "bedtime-tiny").mkdir()
    nobody = load_config(
        write("output_path: ~nobody-is-called-so/s.jsonl\nsources: [{kind: jsonl, path: ~nobody-is/p}]")
    )
    assert nobody.output_path == tmp_path / "~nobody-is-called-so/s.jsonl", "as in a shell"
    config = load_config(write("output_path: ~/s.jsonl\nvocabulary_path: ~/v.txt\nmodel_name: bedtime-tiny"))
    assert config.output_path == Path("/home/somebody/s.jsonl")
    assert config.vocabulary_path == Path("/home/somebody/v.txt")
    assert config.model_name == "bedtime-tiny"


def test_kinds_of_backend(write: Callable[[str], Path]) -> None:
    assert isinstance(load_config(None).backend, AutoBackend)
    assert load_config(write("backend: {device: cpu}")).backend == AutoBackend(device="cpu")
    assert isinstance(load_config(write("backend: {kind: static}")).backend, StaticBackend)
    assert isinstance(load_config(write("backend: {kind: echo}")).backend, EchoBackend)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model_nam: x", ":1: model_nam: unknown key; did you mean 'model_name'?"),
        ("\ntemperature: 1", ":2: temperature: unknown key here; did you mean 'generation.temperature'?"),
        ("generation:\n  tmperature: 1", ":2: generation.tmperature: unknown key; did you mean 'temperature'?"),
        ("generation: {batch_size: 0}", "generation.batch_size: input should be greater than or equal to 1 or input"),
        ("generation: {top_p: '1'}", 'generation.top_p: input should be a valid number, found "1"'),
        ("use_k_shot: 3", "use_k_shot: input should be a valid boolean, found 3"),
        ("num_stories: true", "num_stories: input should be a valid integer, found true"),
        ("backend: {kind: ecko}", "backend.kind: found \"ecko\", allowed: 'auto', 'slots', 'static', 'openai', 'echo'"),
        ("backend: echo", 'backend: found "echo", expected a section with a kind'),
        ("sources: [{kind: jsonl, pth: a}]", "sources[0].pth: unknown key; did you mean 'path'?"),
        ("sources: []", "sources: "),
        ("validation: {min_words: 9, max_words: 3}", "validation: min_words (9) is greater than max_words (3)"),
        ("generation: {max_new_tokens: 10}", "max_new_tokens (10) leaves no room for validation.min_words (30)"),
        ("seed: [", "not valid YAML"),
    ],
)
def test_refusals_name_line_key_and_what_is_allowed(write: Callable[[str], Path], text: str, expected: str) -> None:
    path = write(text)
    message = refusal(path)
    assert expected in message
    assert str(path) in message
    assert "\n  " not in message.replace("\n  hint", "")


def test_every_problem_is_told_at_once(write: Callable[[str], Path]) -> None:
    assert refusal(write("model_nam: x\nseed: -1\ngeneration: {top_k: no}")).count("\n") == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("system_prompt: caf\xe9".encode("latin-1"))
    assert f"{latin}:1: byte 18 is not UTF-8" in refusal(latin)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a regular file" in refusal(tmp_path / "pipe.yaml")
    assert "not a regular file" in refusal(Path("/dev/zero"))
    bom = tmp_path / "bom.yaml"
    bom.write_bytes(b"\xef\xbb\xbfseed: 3\r\n")
    assert load_config(bom).seed == 3


def _keys(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str]]:
    return [(prefix, name) for name in model.model_fields]


ALL_KEYS = [
    *_keys(Config),
    *_keys(Generation, "generation."),
    *_keys(Validation, "validation."),
    *_keys(AutoBackend, "backend."),
]


@settings(max_examples=300)
@given(st.sampled_from(ALL_KEYS), st.data())
def test_a_letter_too_few_or_swapped_is_understood(key: tuple[str, str], data: st.DataObject) -> None:
    prefix, name = key
    at = data.draw(st.integers(1, len(name) - 2))
    typo = data.draw(
        st.sampled_from([name[:at] + name[at + 1 :], name[:at] + name[at + 1] + name[at] + name[at + 2 :]])
    )
    known: dict[str, Any] = {name: None for p, name in ALL_KEYS if p == prefix}
    if typo in known or (prefix == "backend." and name == "kind"):
        return
    message = refusal(None, f"{prefix}{typo}=1")
    assert f"{prefix}{typo}: unknown key" in message
    assert "did you mean" in message


def test_paths_at_every_level_and_files_of_functions_are_relative_to_the_file(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    text = """
sources:
  - {kind: jsonl, path: a/p.jsonl}
  - {kind: python, function: "mine/prompts.py:stories"}
  - {kind: python, function: "package.module:stories", name: others}
validation:
  banned_words_path: banned.txt
  readability: {known_words_path: known.txt}
  functions: [{function: "checks.py:kind"}]
"""
    config = load_config(write(text), ["validation.banned_words_path=other.txt"])
    assert config.sources is not None
    places = [getattr(source, "path", None) or getattr(source, "function", None) for source in config.sources]
    assert places == [tmp_path / "a/p.jsonl", f"{tmp_path}/mine/prompts.py:stories", "package.module:stories"]
    assert config.validation.banned_words_path == Path.cwd() / "other.txt"
    assert config.validation.readability.known_words_path == tmp_path / "known.txt"
    assert config.validation.functions[0].function == f"{tmp_path}/checks.py:kind"


@pytest.mark.parametrize("reference", ["prompts", "prompts:", ":stories", "a-b:c", "prompts:stories()", "x.py:a.b"])
def test_what_names_no_function_is_refused(write: Callable[[str], Path], reference: str) -> None:
    text = refusal(write(f"validation: {{functions: [{{function: '{reference}'}}]}}"))
    assert "validation.functions[0].function: " in text
    assert "expected module:function" in text


@pytest.mark.parametrize(
    "setting",
    [
        {"sources": [{"kind": "python", "function": "a:b", "parameters": {"x": [{"y": float("inf")}]}}]},
        {"validation": {"functions": [{"function": "a:b", "parameters": {"x": float("nan")}}]}},
        {"validation": {"functions": [{"function": "a:b", "weight": 1e308}]}},
        {"validation": {"weights": {"length": 1e308, "words": 1e308}}},
    ],
)
def test_numbers_that_no_run_can_reckon_with_or_write_down_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"infinite|finite number|less than or equal to 1000000"):
        Config.model_validate(setting)


def test_an_empty_section_has_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("validation:\n  # min_words: 3\ngeneration:\nbackend:\n")
    assert load_config(path).validation == Config().validation
    assert load_config(path, ["generation.top_k=5"]).generation.top_k == 5
    path.write_text("validation:\n  readability:\n  weights:\n")
    assert load_config(path).validation == Config().validation
    path.write_text("validation:\n  functions:\nseed:\n")
    text = refusal(path)
    assert f"{path}:2: validation.functions: input should be a list, found null" in text
    assert f"{path}:3: seed: " in text, "only sections can be empty"


def test_items_of_lists_are_set_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    path = tmp_path / "c.yaml"
    path.write_text("sources: [{kind: template}, {kind: jsonl, path: a.jsonl}]\nvalidation: {banned_words: [a, b]}\n")
    overrides = ["sources[0].weight=3", "sources[1].path=b.jsonl", "validation.banned_words[1]=c"]
    config = load_config(path, overrides)
    assert config.sources is not None
    assert config.sources[0].weight == 3
    assert config.sources[1] == JsonlSource(kind="jsonl", path=here / "b.jsonl")
    assert config.validation.banned_words == ("a", "c")
    whole = load_config(path, ["sources[1]={kind: jsonl, path: d.jsonl}"])
    assert whole.sources is not None
    assert whole.sources[1] == JsonlSource(kind="jsonl", path=here / "d.jsonl")
    assert "--set sources[0].weight=0: sources[0].weight: " in refusal(path, "sources[0].weight=0")
    assert "no 'sources[2]', 'sources' has the items [0] to [1]" in refusal(path, "sources[2].weight=1")
    assert "'sources' has no item" in refusal(None, "sources[0].weight=1")
    assert "'seed' is not a list" in refusal(path, "seed=3", "seed[0]=1")
    for odd in ("sources[x]=1", "sources[]=1", "[0]=1", "sources[0]x=1", "sources.=1"):
        assert "expected key=value" in refusal(path, odd)

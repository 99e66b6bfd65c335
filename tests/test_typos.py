"""A mistyped key is answered with the key that was meant, at every level of the configuration."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncgen.config import Config
from asyncgen.config_file import load_config
from asyncgen.errors import ConfigError
from tests.config_places import PLACES, Place, line_of, write_yaml

ALL = [(place, name) for place in PLACES for name in place.model.model_fields]
LETTERS = string.ascii_lowercase + "_"


def edits(name: str) -> set[str]:
    """What one slip of a finger makes of a name: two letters swapped, one left out, doubled or replaced."""
    swapped = {name[:at] + name[at + 1] + name[at] + name[at + 2 :] for at in range(len(name) - 1)}
    dropped = {name[:at] + name[at + 1 :] for at in range(len(name))}
    doubled = {name[:at] + name[at] + name[at:] for at in range(len(name))}
    replaced = {name[:at] + letter + name[at + 1 :] for at in range(len(name)) for letter in LETTERS}
    return swapped | dropped | doubled | replaced


def refusal(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def test_the_walk_finds_every_level() -> None:
    found = {place.dotted for place in PLACES}
    assert {
        "",
        "backend.",
        "generation.",
        "sources[0].",
        "validation.",
        "validation.readability.",
        "validation.functions[0].",
        "validation.weights.",
    } <= found
    assert {place.kind for place in PLACES if place.dotted == "sources[0]."} >= {"template", "jsonl", "python"}
    assert len(ALL) > 80


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ALL), st.data())
def test_one_slip_in_any_key_is_understood(tmp_path: Path, key: tuple[Place, str], data: st.DataObject) -> None:
    place, name = key
    valid = place.model.model_fields
    typo = data.draw(st.sampled_from(sorted(edits(name) - set(valid) - {""})))
    section = place.section()
    value = section.pop(name, 1)
    path = write_yaml(tmp_path, place.config({**section, typo: value}))
    lines = [line for line in refusal(path) if f": {place.dotted}{typo}: " in line]
    assert len(lines) == 1, refusal(path)
    head, _, meant = lines[0].partition(": unknown key; did you mean ")
    assert head == f"{path}:{line_of(path, *place.key, typo)}: {place.dotted}{typo}"
    assert meant.endswith("?")
    suggested = meant.rstrip("?").replace("'", "").split(" or ")
    assert name in suggested
    assert all(typo in edits(other) or name == other for other in suggested), "as near as the one that was meant"


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_required_key_mistyped_is_one_problem(place: Place, tmp_path: Path) -> None:
    for name in place.section():
        section: dict[str, Any] = place.section()
        section[name[:-1]] = section.pop(name)
        lines = refusal(write_yaml(tmp_path, place.config(section)))
        assert f"did you mean '{name}'?" in lines[0] + lines[-1]
        assert "field required" not in "".join(lines)


@settings(max_examples=300, deadline=None)
@example("generation")
@given(st.sampled_from(sorted(Config.model_fields)))
def test_a_slip_in_a_section_of_an_override_names_the_override(name: str) -> None:
    (line,) = refusal(None, f"{name}x.y=1")
    assert line == f"--set {name}x.y=1: {name}x: unknown key; did you mean {name!r}?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Seed: 1", ":1: Seed: unknown key; did you mean 'seed'?"),
        ("num-stories: 1", ":1: num-stories: unknown key; did you mean 'num_stories'?"),
        ("generation:\n  mxn_p: 1", ":2: generation.mxn_p: unknown key; did you mean 'min_p'?"),
        ("generation:\n  top_: 1", ":2: generation.top_: unknown key; did you mean 'top_p' or 'top_k'?"),
        ("max_grade: 3", ":1: max_grade: unknown key here; did you mean 'validation.readability.max_grade'?"),
        ("temprature: 1", ":1: temprature: unknown key; did you mean 'generation.temperature'?"),
        ("max_graade: 3", ":1: max_graade: unknown key; did you mean 'validation.readability.max_grade'?"),
        (
            "validation:\n  weight: 3",
            ":2: validation.weight: unknown key; did you mean 'weights'?",
        ),
        (
            "timeout: 3",
            (
                ":1: timeout: unknown key here; did you mean 'backend.timeout' or 'sources[].timeout' or "
                "'validation.functions[].timeout' or"
            ),
        ),
        (
            "backend:\n  kind: echo\n  device: cpu",
            ":3: backend.device: unknown key for kind 'echo'; it belongs to kind 'auto' or 'slots' or 'static'",
        ),
        ("backend:\n  distinct: 3", ":2: backend.distinct: unknown key for kind 'auto'; it belongs to kind 'echo'"),
        (
            "backend:\n\n  kind: ecko",
            ":3: backend.kind: found \"ecko\", allowed: 'auto', 'slots', 'static', 'openai', 'echo'",
        ),
        ("sources:\n- {kind: template}\n- {path: x}", ":3: sources[1]: needs a kind: 'template', 'jsonl', 'python'"),
        ("sources:\n- {kind: template}\n- 3", ":3: sources[1]: input should be a section (key: value), found"),
        ("sources:\n- kind: [x]", ":2: sources[0].kind: found a list, allowed: 'template', 'jsonl', 'python'"),
        ("validation:\n  functions:\n  - x", ":3: validation.functions[0]: input should be a section (key: value), "),
        ("validation:\n  functions: {a: 1}", ":2: validation.functions: input should be a list, found a section"),
        (
            "validation:\n  readability: 3",
            ":2: validation.readability: input should be a section (key: value), found",
        ),
        ("validation:\n  readability:\n    max_grade: [3]", "max_grade: input should be a valid number, found a list"),
        (
            "validation:\n  banned_words:\n  - ok\n  - 3",
            ":4: validation.banned_words[1]: input should be a valid string",
        ),
        ("backend:\n  device_map:\n    lm_head: 1.5", ":3: backend.device_map.lm_head: "),
        ("generation: 3", ":1: generation: input should be a section (key: value), found"),
        ("purple_elephants: 3", ":1: purple_elephants: unknown key; allowed here: model_name, "),
    ],
)
def test_what_is_said(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    lines = refusal(path)
    assert any(line.startswith(str(path)) and expected in line for line in lines), lines

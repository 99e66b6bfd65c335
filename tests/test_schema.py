"""The JSON Schema and ``load_config`` agree, as far as a schema can know."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from asyncgen.config_file import load_config
from asyncgen.errors import ConfigError
from asyncgen.init_file import render_config, render_schema
from tests.config_places import PLACES, Place, line_of, write_yaml
from tests.programs import ROOT, asyncgen

SCHEMA = Draft202012Validator(json.loads(render_schema()))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 7, -1, 10**18, 2**63, 0.25, 1.5, -0.5, "", "text", "auto", "echo", "m:f", "8bit",
    [], ["text"], [""], [3], {}, {"a": 1}, {"a": None}, {"kind": "echo"}, [{"kind": "template"}], [{"function": "m:f"}],
)  # fmt: skip


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json.loads(render_schema()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_accepts_every_shipped_configuration(path: Path) -> None:
    SCHEMA.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_it_accepts_what_init_writes_which_points_editors_to_it(tmp_path: Path) -> None:
    done = asyncgen("init", "my.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "my.yaml").read_text(encoding="utf-8")
    first, _, _ = text.partition("\n")
    assert first == "# yaml-language-server: $schema=my.schema.json"
    beside = json.loads((tmp_path / "my.schema.json").read_text(encoding="utf-8"))
    assert beside == SCHEMA.schema
    Draft202012Validator(beside).validate(yaml.safe_load(text))


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_what_it_refuses_load_config_refuses_naming_line_key_and_value(tmp_path: Path, place: Place) -> None:
    """Each key of an otherwise valid section takes each value; the other way round it holds for types and ranges."""
    for name, value in product(place.model.model_fields, VALUES):
        config = place.config({**place.section(), name: copy.deepcopy(value)})
        path = write_yaml(tmp_path, config)
        lines = refusals(path)
        if SCHEMA.is_valid(config):
            assert not any("input should" in line for line in lines), "types and ranges a schema can know"
            continue
        assert lines, f"the schema refuses {config}"
        if name == "kind" and value in ("auto", "echo"):
            continue  # kinds, which do not have the keys of this one: it is them that are refused
        first = line_of(path, *place.key, name)
        for line in lines:
            where, _, problem = line.removeprefix(f"{path}:").partition(f": {place.dotted}{name}")
            assert int(where) >= first, "on its line, or on one of its own if it has several"
            assert any(text in problem for text in ("found", "unknown key", "required", "needs a")), line


def refusals(path: Path) -> list[str]:
    try:
        load_config(path)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), st.from_regex(r"[a-z_]{1,12}", fullmatch=True))
def test_both_refuse_unknown_keys_at_every_level(tmp_path: Path, place: Place, name: str) -> None:
    if name in place.model.model_fields:
        return
    config = place.config({**place.section(), name: 1})
    assert not SCHEMA.is_valid(config)
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(write_yaml(tmp_path, config))


def test_the_defaults_written_out_are_valid() -> None:
    SCHEMA.validate(yaml.safe_load(render_config("x.json", "x.jsonl")))

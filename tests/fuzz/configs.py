"""Configurations: a file and overrides are a ``Config`` that can be written down, read again and begun with, or one
error that names the file or the override.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from asyncgen.config import Config, PythonSource
from asyncgen.config_file import load_config
from asyncgen.config_tree import all_keys
from asyncgen.errors import AsyncgenError, ConfigError
from asyncgen.output import Places, compare, fingerprint
from asyncgen.prompts import check_inputs
from asyncgen.validators import open_validators
from tests.config_places import PLACES
from tests.fuzz.mutations import any_bytes, any_values, mutated, mutated_value
from tests.fuzz.target import ACCEPTED, Target, asked, refused
from tests.programs import ROOT

__all__ = ["CONFIG", "Settings"]

_SHIPPED = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
_KEYS = sorted({known.dotted.replace("[]", "[0]") for known in all_keys()})
_NAMES = sorted({known.name for known in all_keys()})
_PARSED = [yaml.safe_load(data) for data in _SHIPPED]
_WHOLE = Config().model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person gives: a file, and what stands on the command line."""

    file: bytes
    suffix: str = ".yaml"
    overrides: tuple[str, ...] = ()


def _check(settings: Settings, folder: Path) -> str:
    path = folder / f"config{settings.suffix}"
    path.write_bytes(settings.file)
    config = asked(lambda: load_config(path, settings.overrides))
    if isinstance(config, AsyncgenError):
        assert isinstance(config, ConfigError)
        told = config.message.splitlines()[0]
        assert str(path) in told or "--set" in told, f"neither file nor override is named: {told}"
        config.message.encode()
        return refused(config)
    _can_be_written(config)
    begun = asked(lambda: _begin(config))
    if isinstance(begun, AsyncgenError):
        begun.message.encode()
        return f"begun and {refused(begun)}"
    return ACCEPTED


def _can_be_written(config: Config) -> None:
    """In a manifest, and read again it is the same; and it is no different from itself."""
    json.dumps(config.resolved(), allow_nan=False).encode()
    again = Config.model_validate_json(json.dumps(config.model_dump(mode="json")))
    assert again == config
    assert not compare(fingerprint(config, {}), fingerprint(again, {}))


def _begin(config: Config) -> None:
    """What is opened before a model is: only code of the user's is not run here."""
    Places.of(config.output_path)
    if any(isinstance(source, PythonSource) for source in config.sources or ()) or config.validation.functions:
        return
    check_inputs(config)
    open_validators(config)


def _values() -> st.SearchStrategy[Any]:
    return st.one_of(any_values(), st.sampled_from(_NAMES), st.sampled_from(PLACES).map(lambda place: place.section()))


_EDGES = (
    "",
    " ",
    ".",
    "..",
    "/",
    "~",
    "~nobody-here/x",
    "x" * 300,
    "./" + "y/" * 2500,
    "a/b",
    "/dev/null",
    "x.py:f",
    "{word1}",
    "a\nb",
)
"""Texts where a path may stand, or a name."""


@st.composite
def _sections(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    """One section with some of its keys, right or wrong, and what has to be there."""
    place = draw(st.sampled_from(PLACES))
    names = draw(st.lists(st.sampled_from(sorted(place.model.model_fields)), max_size=3))
    section = place.section() | {name: draw(_values()) for name in names}
    config: dict[str, Any] = place.config(section)
    return config


def _as_yaml(value: object) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


_structured = st.one_of(
    _sections(),
    mutated_value(_WHOLE, _values()),
    *(mutated_value(parsed, _values()) for parsed in _PARSED),
    st.dictionaries(st.sampled_from(_NAMES), _values(), max_size=4),
    st.dictionaries(st.sampled_from(sorted(_WHOLE)), st.sampled_from(_EDGES), min_size=1, max_size=2),
)
_yaml_pieces = st.lists(
    st.one_of(
        st.sampled_from(_NAMES),
        st.sampled_from(
            (
                ": ",
                "\n",
                "\n  ",
                "- ",
                "[",
                "]",
                "{",
                "}",
                "&a ",
                "*a",
                "!!int ",
                "!!binary ",
                "? ",
                "|\n ",
                ">-\n ",
                "#",
            )
        ),
        st.sampled_from(
            ("0x1f", "0o7", "1_000", "1:30", ".inf", ".nan", "2026-01-01", "~", "yes", "<<: ", "---\n", "%")
        ),
        st.text(max_size=4),
    ),
    max_size=14,
).map(lambda each: "".join(each).encode("utf-8", "surrogatepass"))
_files = st.one_of(
    st.builds(Settings, _structured.map(_as_yaml)),
    st.builds(Settings, _structured.map(lambda value: json.dumps(value).encode()), st.just(".json")),
    st.builds(Settings, st.sampled_from(_SHIPPED).flatmap(mutated)),
    st.builds(Settings, st.one_of(_yaml_pieces, any_bytes()), st.sampled_from((".yaml", ".json"))),
)
_override_values = st.one_of(
    _values().map(lambda value: json.dumps(value, ensure_ascii=False)), st.text(max_size=8), _yaml_pieces.map(str)
)
_overrides = st.lists(
    st.one_of(
        st.builds("{}={}".format, st.sampled_from(_KEYS), _override_values),
        st.builds("{}={}".format, st.sampled_from(_KEYS), st.sampled_from(_EDGES).map(json.dumps)),
        st.builds("{}={}".format, st.sampled_from([key.replace("[0]", "") for key in _KEYS]), _override_values),
        st.text(max_size=10),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
_commands = st.builds(Settings, st.sampled_from([b"", *_SHIPPED]), st.just(".yaml"), _overrides)

CONFIG = Target(st.one_of(_files, _commands), _check, Settings(_SHIPPED[0], overrides=("num_stories=3",)))

"""A small share of ``make fuzz``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.target import ACCEPTED, fast_folder
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_given_is_used_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def check(given_input: Any) -> None:
        with fast_folder() as folder:
            target.check(given_input, folder)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_as_it_should_be_is_used(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    assert target.check(target.sound, tmp_path).startswith(ACCEPTED)

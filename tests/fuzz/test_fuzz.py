"""A small share of ``make fuzz``."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import Fuzzer
from tests.fuzz.target import ACCEPTED, Check, Target, fast_folder
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


@pytest.mark.parametrize(
    ("check", "told"),
    [(lambda *_: time.sleep(600), "took more than 0.3 s"), (lambda *_: "refused: all", "were refused")],
)
def test_what_hangs_or_is_never_used_fails(
    check: Check, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fuzzer = Fuzzer("any", Target(st.just(1), check, 1), tmp_path, limit=0.3)
    found = fuzzer.run(1.0, random.Random(1))
    assert found.inputs
    assert any(told in failure for failure in found.failures)
    assert told in capsys.readouterr().out

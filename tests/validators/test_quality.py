"""The quality score: the documented mean, by the configured weights."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.config import FunctionValidator, QualityWeights, Validation
from asyncgen.validators.builtin import Facts
from asyncgen.validators.quality import Quality, ease_of, mean
from tests.validators.making import judged

SHARE = st.floats(0, 1)
NONE = dict.fromkeys(QualityWeights.model_fields, 0)
EASY, HARD = (
    "The cat sat on the mat.",
    "Notwithstanding considerable deliberation, municipal infrastructure deteriorated.",
)


def facts(count: int, missing: int, ending: bool, repeated: float, shared: float) -> Facts:
    return Facts(count, ["moon"] * missing, 3, "" if ending else "no end", repeated, 0, shared, ())


@given(st.integers(1, 400), st.integers(0, 3), st.booleans(), SHARE, SHARE)
def test_by_default_it_is_what_it_always_was(
    count: int, missing: int, ending: bool, repeated: float, shared: float
) -> None:
    """Stories on disk keep their score, and a resumed run makes the same ones."""
    length = count / 30 if count < 30 else min(1.0, 150 / count)
    words, end, variety, originality = 1 - missing / 3, float(ending), 1 - repeated, 1 - shared
    before = round(0.25 * length + 0.30 * words + 0.15 * end + 0.15 * variety + 0.15 * originality, 4)
    assert Quality(Validation()).of(facts(count, missing, ending, repeated, shared), 0.3) == before


@given(st.lists(st.just(0.0) | st.floats(0.01, 10), min_size=6, max_size=6).filter(any), st.floats(0.1, 100))
def test_only_the_proportion_of_weights_counts(weights: list[float], factor: float) -> None:
    names = list(QualityWeights.model_fields)
    found = facts(20, 1, True, 0.25, 0.5)
    scores = []
    for scale in (1, factor):
        settings = Validation.model_validate({"weights": {n: w * scale for n, w in zip(names, weights, strict=True)}})
        scores.append(Quality(settings).of(found, 0.8))
    assert scores[0] == pytest.approx(scores[1], abs=1.1e-4)
    assert 0.5 <= scores[0] <= 1, "between the lowest and the highest of its parts"


@pytest.mark.parametrize(
    ("name", "text", "score"),
    [
        ("length", "one two three", 0.3),
        ("words", "a moon", 0.5),
        ("ending", "no end", 0.0),
        ("ending", "an end.", 1.0),
        ("variety", "a b c d a b c d", 0.8),
        ("originality", "new", 1.0),
        ("readability", EASY, 1.0),
        ("readability", HARD, 0.0),
    ],
)
def test_each_weight_alone(name: str, text: str, score: float) -> None:
    settings: dict[str, Any] = {"weights": NONE | {name: 0.7}, "min_words": 10, "require_words": False}
    assert judged(text, {"word1": "moon", "word2": "star"}, **settings).quality == score


def test_no_weight_at_all_is_an_error_that_names_them() -> None:
    with pytest.raises(ValueError, match=r"weights\.length, .*weights\.readability, functions\[0\]\.weight are all 0"):
        Validation.model_validate({"weights": NONE, "functions": [{"function": "checks:kind"}]})
    assert Validation.model_validate({"weights": NONE, "functions": [{"function": "checks:kind", "weight": 1}]})


@given(st.lists(st.tuples(st.just(0.0) | st.floats(0.01, 5), SHARE), max_size=6))
def test_a_mean_lies_between_its_parts(scores: list[tuple[float, float]]) -> None:
    found = mean(scores)
    parts = [score for weight, score in scores if weight] or [1.0]
    assert min(parts) - 1e-4 <= found <= max(parts) + 1e-4


@given(st.floats(-20, 40), st.floats(-20, 40))
def test_ease_falls_with_the_grade(one: float, other: float) -> None:
    assert (ease_of(one) >= ease_of(other)) == (one <= other or ease_of(one) == ease_of(other))
    assert (ease_of(3), ease_of(6), ease_of(9)) == (1, 0.5, 0)


def test_a_text_that_functions_can_still_lift_is_not_refused_before_they_are_asked() -> None:
    low: dict[str, Any] = {"min_words": 100, "weights": NONE | {"length": 1}, "min_quality": 0.5}
    heavy = [FunctionValidator(function="checks:kind", weight=3)]
    assert [r.split(":")[0] for r in judged("ten words", **low).reasons] == ["too short", "low quality"]
    assert [r.split(":")[0] for r in judged("ten words", **low, functions=heavy).reasons] == ["too short"]

"""Draws and ids: the same everywhere and for ever, and no id twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncgen.seeds import draw, prompt_id, sampling_seed, story_id

seeds = st.integers(0, 2**63 - 1)


def test_values_that_files_on_disk_depend_on() -> None:
    """Written down once: a change here breaks the resuming of every output there is."""
    assert draw(0, "words", 1) == 350908915485621966
    assert sampling_seed(7, 12, 3) == 7278241010422950517
    assert [story_id(7, index) for index in range(3)] == ["story_ae8d290a", "story_c68efa15", "story_193a6dff"]
    assert [prompt_id(index) for index in (0, 999_999, 1_234_567)] == [
        "prompt_000001",
        "prompt_1000000",
        "prompt_1234568",
    ]


@given(seeds)
def test_story_ids_of_a_run_never_collide(seed: int) -> None:
    indices = [*range(500), *range(2**32 - 500, 2**32), *range(10**6, 10**6 + 500)]
    assert len({story_id(seed, index) for index in indices}) == len(indices)


@given(seeds, st.integers(0, 10**9), st.integers(1, 9))
def test_sampling_seeds_fit_a_signed_tensor_and_differ_by_attempt(seed: int, index: int, attempt: int) -> None:
    value = sampling_seed(seed, index, attempt)
    assert 0 <= value < 2**63
    assert value != sampling_seed(seed, index, attempt + 1)
    assert value != sampling_seed(seed, index + 1, attempt)

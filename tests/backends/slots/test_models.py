"""Every family of models says with the engine what it says with ``generate``, one prompt at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.backends.loading import Loaded
from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.probe import probe
from tests.backends.slots.tiny import FAMILIES, Answer, Job, drive, generate, make, random_ids, runs

# Old versions of transformers script a function of GPT-BigCode, which new ones of torch deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

REACH = 256
LONGEST = 20
PREFIXES = (random_ids(70, 1), random_ids(33, 2))
OWNS = (3, 40, 17, 62, 1, 90, 26, 64, 33, 8)
JOBS = tuple(Job(i, (*PREFIXES, ())[i % 3], random_ids(own, 10 + i), LONGEST) for i, own in enumerate(OWNS))


@dataclass(frozen=True, slots=True)
class Subject:
    family: str
    loaded: Loaded
    layers: list[LayerShape]
    answers: list[Answer]

    def wrong(self, plan: tuple[int, list[list[Job]]]) -> list[Job]:
        """Jobs of which the engine says what the model does not say by itself."""
        slots, groups = plan
        said = drive(self.loaded, self.layers, groups, slots)
        jobs = [job for group in groups for job in group]
        assert {job.index: len(said[job.index]) for job in jobs} == {job.index: job.count for job in jobs}
        return [job for job in jobs if not self.answers[job.index].same(said[job.index])]


@cache
def subject_of(family: str) -> Subject:
    """The model as the probe left it, and its own answers from before."""
    config, options = FAMILIES[family]
    loaded = make(config, **options)
    answers = [generate(loaded, job.prefix + job.own, LONGEST) for job in JOBS]
    return Subject(family, loaded, probe(loaded, REACH), answers)


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each family in turn."""
    return subject_of(request.param)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, list[list[Job]]]:
    """Slots, and groups of jobs in the order of admission: which share a prefix, and how long each one's answer is."""
    slots = draw(st.integers(1, 9))
    chosen = draw(st.permutations(JOBS))[: draw(st.integers(1, len(JOBS)))]
    cut = draw(st.sets(st.sampled_from(PREFIXES)))
    jobs = []
    for job in chosen:
        job = replace(job, count=draw(st.integers(1, LONGEST)))  # noqa: PLW2901  # the same one, cut otherwise
        whole = job.prefix not in cut or draw(st.integers(0, 3)) == 0
        jobs.append(replace(job, prefix=(), own=job.prefix + job.own) if whole else job)
    return slots, list(runs(jobs, draw(st.integers(1, slots))))


@given(plan=plans())
@settings(deadline=None, max_examples=5)
def test_greedy_tokens_are_those_of_generate(subject: Subject, plan: tuple[int, list[list[Job]]]) -> None:
    assert not subject.wrong(plan)


def test_its_layers_are_described(subject: Subject) -> None:
    config = subject.loaded.model.config
    heads = config.num_attention_heads
    groups = 1 if subject.family == "gpt_bigcode" else getattr(config, "num_key_value_heads", heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    assert subject.layers == [LayerShape(heads, groups, size, size)] * config.num_hidden_layers


@pytest.fixture(scope="module", params=["llama", "gpt2", "granite"])
def often(request: pytest.FixtureRequest) -> Subject:
    """A few that stand for kinds: rotary positions with groups of heads, learnt positions, a scaling of its own."""
    return subject_of(request.param)


@given(plan=plans())
@settings(deadline=None, max_examples=20)
def test_and_at_every_refill_pattern(often: Subject, plan: tuple[int, list[list[Job]]]) -> None:
    assert not often.wrong(plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "mixtral"])
def test_other_number_formats_are_accepted(family: str, dtype: torch.dtype) -> None:
    config, options = FAMILIES[family]
    loaded = make(config, **options)
    loaded.model.to(dtype)
    assert len(probe(loaded, REACH)) == 2

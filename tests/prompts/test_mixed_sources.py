"""Several sources as one: by index from anywhere, ends found again, the template's words spread over its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncgen import seeds
from asyncgen.config import Config
from asyncgen.config_file import load_config
from asyncgen.errors import ConfigError
from asyncgen.prompts import End, Plan, Sources, open_source
from asyncgen.records import Prompt

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]

FUNCTIONS = """
async def some(start: int, items: int):
    for k in range(start, items):
        yield f"item {k}"
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def mix(folder: Path, items: Sequence[tuple[int, int | None]], **settings: Any) -> Config:
    """Sources of so many items: a file and a function in turn, the template for None. First the weight."""
    (folder / "functions.py").write_text(FUNCTIONS)
    sources: list[dict[str, Any]] = []
    for number, (weight, count) in enumerate(items):
        common = {"name": f"s{number}", "weight": weight}
        if count is None:
            sources.append({**common, "kind": "template"})
        elif number % 2:
            path = folder / f"{number}.jsonl"
            path.write_text("".join(json.dumps({"prompt": f"item {k}"}) + "\n" for k in range(count)))
            sources.append({**common, "kind": "jsonl", "path": path})
        else:
            function = f"{folder}/functions.py:some"
            sources.append({**common, "kind": "python", "function": function, "parameters": {"items": count}})
    return Config.model_validate({"sources": sources, **settings})


async def take(source: Sources, start: int, end: int) -> list[Prompt]:
    got: list[Prompt] = []
    while start + len(got) < end and (more := await source.take(start + len(got), end - start - len(got))):
        got += more
    return got


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mix")


many = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30)), min_size=1, max_size=4)


@given(items=many, endless=st.booleans(), start=st.integers(0, 140), seed=st.integers(0, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
async def test_any_start_gives_what_a_walk_gives(
    folder: Path, items: list[tuple[int, int | None]], endless: bool, start: int, seed: int
) -> None:
    config = mix(folder, [*items, (2, None)] if endless else items, seed=seed)
    ends: list[End] = []

    async def record(now: Sequence[End]) -> None:
        assert list(now[:-1]) == ends
        ends.append(now[-1])

    async with open_source(config) as source:
        source.resume([], record)
        whole = await take(source, 0, 150)
        assert len(whole) == (150 if endless else sum(count or 0 for _, count in items))
    for number, (_, count) in enumerate(items):
        mine = [prompt for prompt in whole if prompt.source == f"s{number}"]
        assert [prompt.position for prompt in mine] == list(range(len(mine)))
        assert [prompt.messages[-1]["content"] for prompt in mine] == [f"item {k}" for k in range(len(mine))]
        assert len(mine) == count or number not in [end.source for end in ends]
    assert [(p.index, p.seed) for p in whole] == [(i, seeds.sampling_seed(seed, i, 1)) for i in range(len(whole))]
    async with open_source(config) as source:  # as a manifest says
        source.resume(ends, record)
        assert await take(source, start, 150) == whole[start:]
    async with open_source(config) as source:  # and where nothing says it
        await source.find_ends(start)
        assert await take(source, start, 150) == whole[start:]


async def test_the_number_of_prompts_is_known_if_all_that_are_left_are_files(tmp_path: Path) -> None:
    config = mix(tmp_path, [(1, 5), (1, 7)])
    async with open_source(config) as source:
        counts = [source.count]
        assert len(await take(source, 0, 99)) == 12
        assert [*counts, source.count] == [None, 12]
    async with open_source(mix(tmp_path, [(1, None), (1, 7)])) as source:
        assert source.count is None


async def test_what_a_file_gained_after_its_end_is_told_and_not_used(tmp_path: Path) -> None:
    config = mix(tmp_path, [(1, None), (1, 3)])
    async with open_source(config) as source:
        whole = await take(source, 0, 20)
    with (tmp_path / "1.jsonl").open("a") as file:
        file.write('{"prompt": "more"}\n')
    told: list[str] = []
    async with open_source(config, told.append) as source:
        source.resume([End(1, 7)], _nobody)
        assert await take(source, 0, 20) == whole
    (text,) = told
    assert text.startswith("source 's1' ended after 3 prompts, at index 7, and gave its places to the others; ")
    assert text.endswith("the 1 that were added since are not used")


async def test_the_templates_words_are_spread_over_its_own_prompts(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("moon\nowl\nboat\ntree\nfish\nstar\n")
    config = mix(tmp_path, [(1, None), (2, 50)], vocabulary_path=tmp_path / "words.txt")
    async with open_source(config) as source:
        mine = [prompt for prompt in await take(source, 0, 12) if prompt.source == "s0"]
    plan = Plan(config)
    assert [prompt.messages for prompt in mine] == [plan.prompt(position).messages for position in range(4)]
    for two in (mine[:2], mine[2:]):
        assert len({word for prompt in two for word in prompt.selected_words.values()}) == 6


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[{kind: template}, {kind: template, name: more}]", "sources: two sources are the template and would give"),
        ("[{kind: jsonl, path: a}, {kind: jsonl, path: b}]", "2 sources are called 'jsonl'; give each a `name`"),
        ("[{kind: template}, {kind: jsonl, path: a, name: template}]", "2 sources are called 'template'"),
    ],
)
def test_sources_must_be_told_apart(tmp_path: Path, sources: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(f"sources: {sources}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert message in str(caught.value)


async def _nobody(ends: Sequence[End]) -> None:
    raise AssertionError(f"nothing ends anew: {ends}")

"""``open_pipeline`` on ``echo``: stories into somebody's own loop, and every way to leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncgen
from asyncgen.config import Config
from asyncgen.errors import SourcesEnded, TooManyRejections
from asyncgen.stream import open_pipeline
from tests.backends.helpers import make_model, make_tokenizer
from tests.flows import config_for

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]


async def test_open_pipeline_yields_stories_in_order_and_ends() -> None:
    config = config_for(num_stories=40, bad_share=0.3)
    async with open_pipeline(config) as stories:
        got = [story async for story in stories]
    assert len(got) == 40
    indices = [story.index for story in got]
    assert indices == sorted(indices)
    kept = [story.content for story in got[:6]]
    async with open_pipeline(config, start=indices[5] + 1, kept=kept) as stories:
        rest = [story async for story in stories]
    assert [story.content for story in rest] == [story.content for story in got[6:]]
    assert [story.metadata for story in rest] == [story.metadata for story in got[6:]]


async def test_a_resumed_pipeline_repeats_nothing_that_was_kept() -> None:
    config = config_for(num_stories=25, distinct=30, template="tell me a story\n")
    async with open_pipeline(config) as stories:
        got = [story async for story in stories]
    async with open_pipeline(config, start=got[9].index + 1, kept=[story.content for story in got[:10]]) as stories:
        rest = [story async for story in stories]
    assert [story.content for story in rest] == [story.content for story in got[10:]]


async def test_equal_texts_that_were_kept_count_each() -> None:
    config = config_for(num_stories=10, distinct=2, validation={"reject_repeats": False}, template="tell\n")
    async with open_pipeline(config) as stories:
        got = [story async for story in stories]
    kept = [story.content for story in got[:6]]
    assert len(set(kept)) < 6
    async with open_pipeline(config, start=got[5].index + 1, kept=kept) as stories:
        rest = [story async for story in stories]
    assert [story.metadata for story in rest] == [story.metadata for story in got[6:]]


async def test_more_texts_than_indices_cannot_have_been_kept() -> None:
    with pytest.raises(ValueError, match="start is 1, but 2 texts were kept"):
        async with open_pipeline(config_for(num_stories=3), start=1, kept=["a", "b"]):
            pass


async def test_a_start_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="start: found -1, expected 0 or more"):
        async with open_pipeline(config_for(num_stories=3), start=-1):
            pass


@pytest.mark.parametrize("wrong", ["c.yaml", None, {"num_stories": 3}])
async def test_a_configuration_is_one(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a Config; asyncgen\.load_config"):
        async with open_pipeline(wrong):
            pass
    with pytest.raises(TypeError, match=r"expected a Config; asyncgen\.load_config"):
        await asyncgen.run(wrong)
    with pytest.raises(TypeError, match="overrides: found the text 'seed=3'"):
        asyncgen.load_config(None, "seed=3")
    if not isinstance(wrong, str):
        with pytest.raises(TypeError, match=r"model: found .*, expected a name, a path or a Config"):
            asyncgen.Engine(wrong)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template."""
    return make_model(tmp_path_factory.mktemp("plain"), "gpt2", tokenizer=make_tokenizer(template=None))


async def test_what_a_person_should_read_is_told(plain: Path) -> None:
    """As ``run`` does: a model without a chat template, say."""
    told: list[str] = []
    config = Config.model_validate(
        {
            "num_stories": 1,
            "model_name": str(plain),
            "template": "tell {word1}\n",
            "use_k_shot": False,
            "generation": {"max_new_tokens": 40, "batch_size": 2},
        }
    )
    async with open_pipeline(config, notice=told.append) as stories:
        assert any("no chat template" in each for each in stories.notices)
    assert any(each.startswith("loading ") for each in told)
    assert set(stories.notices) <= set(told)


async def test_the_last_story_is_read_in_peace_before_an_error_leaves(tmp_path: Path) -> None:
    """A reader that is busy with a story (writing it somewhere, say) is not cancelled in the middle of it."""
    (tmp_path / "four.jsonl").write_text('{"prompt": "tell"}\n' * 4)
    config = config_for(num_stories=10, sources=[{"kind": "jsonl", "path": tmp_path / "four.jsonl"}])
    done: list[int] = []
    with pytest.raises(SourcesEnded):
        async with open_pipeline(config) as stories:
            async for story in stories:
                await anyio.sleep(0.02)
                done.append(story.index)
    assert done == [0, 1, 2, 3]


async def test_the_callers_own_exception_group_leaves_as_it_was_raised() -> None:
    with pytest.raises(ExceptionGroup, match="mine") as caught:
        async with open_pipeline(config_for(num_stories=3)) as stories:
            async for _ in stories:
                raise ExceptionGroup("mine", [ValueError("x")])
    assert caught.value.message == "mine"


async def test_open_pipeline_left_early_or_by_an_error() -> None:
    config = config_for(num_stories=None)
    async with open_pipeline(config) as stories:
        async for _ in stories:
            break
    with pytest.raises(KeyError, match="mine"):
        async with open_pipeline(config) as stories:
            async for _ in stories:
                raise KeyError("mine")


async def test_open_pipeline_raises_what_stopped_it() -> None:
    config = config_for(num_stories=10, bad_share=1.0).model_copy(update={"max_rejection_rate": 0.5})
    with pytest.raises(TooManyRejections):
        async with open_pipeline(config) as stories:
            async for _ in stories:
                pass


async def test_two_pipelines_at_once_do_not_know_of_each_other() -> None:
    got: dict[int, list[str]] = {1: [], 2: []}

    async def read(seed: int) -> None:
        async with open_pipeline(config_for(num_stories=30, seed=seed)) as stories:
            got[seed] = [story.content async for story in stories]

    async with anyio.create_task_group() as group:
        group.start_soon(read, 1)
        group.start_soon(read, 2)
    assert len(got[1]) == len(got[2]) == 30
    assert not set(got[1]) & set(got[2])

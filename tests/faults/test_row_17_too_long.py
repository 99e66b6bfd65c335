"""Row 17: a prompt that does not fit the context with its new tokens is refused before the model, with the numbers, and
never cut. One that fits exactly is generated; where none of a run fits, the run is refused before the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncgen.backends import Generator, open_backend
from asyncgen.backends.slots.backend import Slots
from asyncgen.backends.static import Static
from asyncgen.config import Config
from asyncgen.errors import PromptTooLong
from asyncgen.records import Rejection
from asyncgen.resources import bundled_model
from tests.backends.helpers import make_model, make_tokenizer
from tests.backends.test_static import generate_alone
from tests.flows import Record, flow_for
from tests.programs import asyncgen, records, without_torch

CONTEXT, NEW = 512, 40
TRIAL = 16
"""Tokens of the passes with which slots tries a model out before it takes a prompt."""
ENGINES = ("echo", "static", "slots", "static without a chat template", "slots without a chat template")
needs_model = pytest.mark.skipif(
    not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One with a chat template, and one without, whose positions are learnt."""
    plain = make_tokenizer(template=None, bos=True)
    return (
        make_model(tmp_path_factory.mktemp("llama"), context=CONTEXT, eos_token_id=None),
        make_model(tmp_path_factory.mktemp("gpt2"), "gpt2", context=CONTEXT, tokenizer=plain, eos_token_id=None),
    )


def config_for(engine: str, models: tuple[Path, Path], folder: Path, prompts: Sequence[str]) -> Config:
    """A run of ready prompts, each of which is asked once; every text is accepted."""
    lines = folder / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    kind, _, bare = engine.partition(" ")
    echo = {"kind": "echo", "context_length": CONTEXT}
    return Config.model_validate(
        {
            "model_name": str(models[bool(bare)]),
            "backend": echo if kind == "echo" else {"kind": kind, "device": "cpu"},
            "generation": {"max_new_tokens": NEW, "batch_size": 4, "temperature": 0.0},
            "num_stories": None,
            "sources": [{"kind": "jsonl", "path": lines}],
            "validation": {"enabled": False},
        }
    )


def passes_of(backend: Generator) -> list[int]:
    """The lengths of the inputs of each forward pass from now on."""
    seen: list[int] = []

    def note(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append((named["input_ids"] if "input_ids" in named else arguments[0]).shape[-1])

    if isinstance(backend, Static | Slots):
        backend._loaded.model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


async def decide(config: Config) -> tuple[list[Record], list[int], Generator]:
    made: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        made.extend(group)

    async with flow_for(config) as flow:
        passes = passes_of(flow.backend)
        await flow.run(sink)
        return made, passes, flow.backend


def prompt_of(tokens: int, engine: str) -> str:
    """A text that is so many tokens by itself."""
    return " ".join(["x"] * tokens) if engine == "echo" else "x" * tokens


async def tokens_around(config: Config, engine: str) -> int:
    """Tokens of a prompt beside its text's own."""
    async with open_backend(config) as backend:
        with pytest.raises(PromptTooLong) as caught:
            backend.prepare([{"role": "user", "content": prompt_of(600, engine)}], NEW)
        return caught.value.prompt_tokens - 600


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ENGINES)
async def test_what_does_not_fit_never_reaches_the_model(
    engine: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    around = await tokens_around(config_for(engine, models, tmp_path, ["x"]), engine)
    room = CONTEXT - NEW - around
    config = config_for(engine, models, tmp_path, [prompt_of(room + 1, engine), prompt_of(10 * room, engine)])
    made, passes, backend = await decide(config)
    assert [type(record) for record in made] == [Rejection, Rejection]
    for record, tokens in zip(made, (room + 1, 10 * room), strict=True):
        assert isinstance(record, Rejection)
        assert record.reasons == (
            (f"prompt too long: {tokens + around} prompt tokens + {NEW} new tokens > context of {CONTEXT} tokens",),
        )
    assert backend.snapshot().batches == backend.snapshot().generated == 0
    assert max(passes, default=0) <= (TRIAL if engine.startswith("slots") else 0)


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ENGINES)
async def test_what_fits_exactly_is_generated_whole(engine: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    around = await tokens_around(config_for(engine, models, tmp_path, ["x"]), engine)
    text = prompt_of(CONTEXT - NEW - around, engine)
    config = config_for(engine, models, tmp_path, [text, prompt_of(CONTEXT, engine), prompt_of(3, engine)])
    made, passes, backend = await decide(config)
    assert [isinstance(record, Rejection) for record in made] == [False, True, False]
    assert backend.snapshot().generated >= NEW
    if engine != "echo":
        message = {"role": "user", "content": text}
        expected, tokens = generate_alone(Path(config.model_name), [message], NEW)  # type: ignore[list-item]  # a Message
        assert tokens == NEW
        assert made[0].content == expected
        assert max(passes) <= CONTEXT


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("context", "new", "said"),
    [
        (700, 700, "700 leaves no room for a prompt in the context of 700 tokens"),
        (700, 7000, "7000 leaves no room for a prompt in the context of 700 tokens"),
        (700, 650, "650 new tokens and a prompt of "),
    ],
)
def test_a_run_of_which_nothing_fits_is_refused(
    tmp_path: Path, command: str, context: int, new: int, said: str
) -> None:
    echo = ("--set", f"backend={{kind: echo, context_length: {context}}}")
    setting = f"--set generation.max_new_tokens={new}"
    done = asyncgen(command, *echo, *setting.split(), cwd=tmp_path, env=without_torch(tmp_path))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"asyncgen: error: {setting}: generation.max_new_tokens: {said}")
    assert not list(tmp_path.glob("stories*"))


@needs_model
def test_so_is_one_of_a_model_whose_files_are_here_before_it_is_loaded(tmp_path: Path) -> None:
    for new, said in ((2000, "do not fit the context of 2048"), (2048, "leaves no room for a prompt in the context")):
        setting = f"--set generation.max_new_tokens={new}"
        done = asyncgen("run", *setting.split(), cwd=tmp_path, env=without_torch(tmp_path))
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"asyncgen: error: {setting}: generation.max_new_tokens: {new} ")
        assert said in done.stderr
    assert not list(tmp_path.glob("stories*"))


def test_ready_prompts_are_refused_one_by_one(tmp_path: Path) -> None:
    """The first may be the only one that is too long."""
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "{"tell " * count}"}}\n' for count in (9, 3, 8, 2)))
    echo = ("--set", "backend={kind: echo, context_length: 400}", "--set", "sources=[{kind: jsonl, path: p.jsonl}]")
    more = ("--set", "generation.max_new_tokens=395", "--set", "num_stories=null")
    done = asyncgen("run", *echo, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [record["metadata"]["index"] for record in records(tmp_path / "stories.jsonl")] == [1, 3]
    rejected = records(tmp_path / "stories.rejected.jsonl")
    assert "prompt too long: 9 prompt tokens + 395 new tokens > context of 400 tokens" in str(rejected[0]["reasons"])

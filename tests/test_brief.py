"""Every row of the brief, demonstrated: one test for each, named after it, with the sentence it comes from.

Short on purpose: the depth is in the other files. Nothing is mocked; what needs a model uses the bundled one (one run,
shared) or a tiny random one. Two kinds of sentence have no test: the brief's own file names and commands, which are not
ours to deliver, and its figures for 3B and 7B models on a GPU, which belong to a benchmark.
"""

from __future__ import annotations

import ast
import fcntl
import gc
import inspect
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pydantic
import pytest
import torch

import asyncgen
from asyncgen.backends import Backend, open_backend
from asyncgen.backends.chat import Chat
from asyncgen.backends.echo import Echo
from asyncgen.backends.memory import TokenBudget, rows_that_fit
from asyncgen.backends.openai.backend import Served
from asyncgen.backends.slots.backend import Slots
from asyncgen.backends.static import Static
from asyncgen.config import Config
from asyncgen.packing import PromptPool, Window
from asyncgen.prompts import Plan, open_source
from asyncgen.records import Message, Prepared, Prompt, Story
from asyncgen.resources import data_file
from tests.backends.helpers import complete, make_messages, make_model, make_prompts, make_tokenizer
from tests.flows import config_for, flow_for
from tests.programs import ECHO, ROOT, environment, records
from tests.programs import asyncgen as program

pytestmark = pytest.mark.anyio

ANY_TEXT: dict[str, object] = {
    "min_words": 0,
    "max_words": 9999,
    "require_words": False,
    "require_ending": False,
    "max_repetition": 1.0,
    "copy_words": 0,
    "reject_repeats": False,
    "min_quality": 0.0,
}
"""Validation that random weights can pass."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with ``stories.jsonl``, made by the bundled model from the command line, and what was said meanwhile."""
    folder = tmp_path_factory.mktemp("made")
    done = program("--num-stories", "6", "--batch-size", "6", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some transformers model: a tiny llama with random weights."""
    return make_model(tmp_path_factory.mktemp("llama"), "llama", context=2048)


def config_of(model: Path, folder: Path, **changes: object) -> Config:
    return Config.model_validate(
        {
            "model_name": str(model),
            "backend": {"kind": "static", "device": "cpu"},
            "output_path": folder / "stories.jsonl",
            "generation": {"batch_size": 4, "max_new_tokens": 8},
            "validation": ANY_TEXT,
            "use_k_shot": False,
            "num_stories": 4,
            **changes,
        }
    )


def of_ready_prompts(model: Path, folder: Path, validation: dict[str, object]) -> Config:
    """Four prompts and no goal, so that the run is complete however many of them are rejected."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "Of a moon.", "selected_words": ["moon"]}\n' * 4)
    source = {"kind": "jsonl", "path": prompts}
    return config_of(model, folder, sources=[source], num_stories=None, max_attempts=1, validation=validation)


async def some(config: Config) -> list[Story]:
    async with asyncgen.open_pipeline(config) as stories:
        return [story async for story in stories]


# --- The design card ------------------------------------------------------------------------------------------------


async def test_asynchronous_pipelined_engine() -> None:
    """ "asynchronous pipelined producer-consumer engine": the first stories are out before the last is planned."""
    config = config_for(num_stories=5000, window=64)
    async with asyncgen.open_pipeline(config) as stories:
        async for story in stories:
            seen = stories.snapshot()
            assert seen.depths["undecided"] <= 64
            assert seen.accepted < 5000
            if story.index == 20:
                break


def test_packages() -> None:
    """ "packages: torch, transformers, anyio, pydantic, pyyaml, aiofiles, tqdm": declared, and imported by us."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[>=<]", each)[0] for each in project["dependencies"]}
    assert {"torch", "transformers", "anyio", "pydantic", "pyyaml", "aiofiles", "tqdm"} <= declared
    imported = set()
    for path in Path(asyncgen.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    assert {"torch", "transformers", "anyio", "pydantic", "yaml", "aiofiles", "tqdm"} <= imported


def test_top_level() -> None:
    """ "top-level: pyproject.toml, README.md, asyncgen/, configs/, data/, tests/"."""
    for name in ("pyproject.toml", "README.md", "configs", "tests"):
        assert (ROOT / name).exists(), name
    assert Path(asyncgen.__file__).parent.name == "asyncgen"
    assert data_file("vocabulary.txt").parent.name == "data"


async def test_async_prompt_producers() -> None:
    """ "Async prompt producers": prompts are awaited, a few at a time, by their place in the plan."""
    async with open_source(config_for()) as source:
        assert [prompt.index for prompt in await source.take(3, 4)] == [3, 4, 5, 6]


async def test_greedy_length_sorted_batches() -> None:
    """ "a GPU consumer that greedily packs queued prompts into length-sorted batches"."""
    lengths = [3, 90, 4, 80, 5, 85, 6, 95]
    window = Window(8, goal=None)
    pool = PromptPool(window)
    window.plan(8)
    pool.put(Prompt(index, (), max_new_tokens=10, prepared=Prepared(length)) for index, length in enumerate(lengths))
    window.end()
    short = await pool.take(4)
    long = await pool.take(4)
    assert [prompt.prepared.length for prompt in short] == [6, 5, 4, 3]
    assert [prompt.prepared.length for prompt in long] == [95, 90, 85, 80]
    pool.put([Prompt(index, (), max_new_tokens=10, prepared=Prepared(length)) for index, length in enumerate(lengths)])
    assert len(await pool.take(8, tokens=4 * (95 + 10))) == 4, "as many as fit the budget of tokens"


async def test_transformers_generation(model: Path) -> None:
    """ "for transformers generation": greedy texts of a batch are those of the model alone."""
    config = config_of(model, Path(), generation={"batch_size": 4, "max_new_tokens": 8, "temperature": 0.0})
    async with open_backend(config) as backend:
        together = await complete(backend, make_prompts(backend, make_messages(4), 8))
        alone = [await complete(backend, make_prompts(backend, [each], 8)) for each in make_messages(4)]
    assert [completion.text for completion in together] == [completions[0].text for completions in alone]


async def test_validator_and_writer_stages_over_bounded_queues() -> None:
    """ "async validator and writer stages connected by bounded queues": a slow writer holds up the producers."""
    most = 0

    async def write(_: Sequence[object]) -> None:
        nonlocal most
        await anyio.sleep(0.001)
        most = max(most, flow.snapshot().depths["undecided"])

    async with flow_for(config_for(num_stories=2000, window=48)) as flow:
        await flow.run(write)
    assert 0 < most <= 48


async def test_the_generator_is_kept_saturated() -> None:
    """ "keep the GPU saturated": no batch starts with an empty row while there are prompts to come."""
    config = config_for(num_stories=800)
    async with flow_for(config) as flow:

        async def write(_: Sequence[object]) -> None:
            await anyio.lowlevel.checkpoint()

        await flow.run(write)
        seen = flow.backend.snapshot()
    assert seen.rows_filled == seen.rows_offered == 800


def test_used_by_the_command_line(tmp_path: Path) -> None:
    """ "used-by: `python -m asyncgen run config.yaml`"."""
    (tmp_path / "config.yaml").write_text("num_stories: 9\nbackend: {kind: echo}\n")
    done = program("run", "config.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "stories.jsonl")) == 9


async def test_embedding_in_another_async_app(tmp_path: Path) -> None:
    """ "embedding the engine in another async app": it runs beside other tasks, and answers to their cancellation."""
    ticks = 0

    async def another() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as app:
        app.start_soon(another)
        report = await asyncgen.run(config_for(num_stories=300, output_path=tmp_path / "s.jsonl"))
        assert len(await some(config_for(num_stories=300))) == 300
        app.cancel_scope.cancel()
    assert report.complete
    assert ticks > 10


def test_live_tqdm_dashboard(tmp_path: Path) -> None:
    """ "live tqdm progress dashboard": in a terminal, bars and figures are drawn while stories are made."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    settings = ["--set", "backend={kind: echo, seconds_per_batch: 0.1}", "--num-stories", "40"]
    run = subprocess.Popen(
        [sys.executable, "-m", "asyncgen", "run", *settings],
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
    os.close(main)
    assert run.wait(60) == 0
    assert "40/40" in shown.decode()
    assert "busy" in shown.decode()


# --- The seed document: core requirements ---------------------------------------------------------------------------


def test_three_random_words_from_the_vocabulary() -> None:
    """ "3 random words from vocabulary (`{word1}`, `{word2}`, `{word3}`)", "Vocabulary loading and word selection
    works"."""
    vocabulary = data_file("vocabulary.txt").read_text(encoding="utf-8").split()
    prompt = Plan(Config()).prompt(0)
    assert list(prompt.selected_words) == ["word1", "word2", "word3"]
    assert set(prompt.selected_words.values()) <= set(vocabulary)
    assert all(word in prompt.messages[-1]["content"] for word in prompt.selected_words.values())
    assert Plan(Config(seed=1)).prompt(0).selected_words != prompt.selected_words


def test_additional_conditions_from_the_story_features() -> None:
    """ "Additional conditions from `docs/story_features.json`", "Random additional conditions from story features"."""
    groups = json.loads(data_file("story_features.json").read_text(encoding="utf-8"))
    texts = {text for group in groups.values() for text in group}
    plan = Plan(Config())
    drawn = {plan.prompt(index).additional_condition for index in range(50)}
    assert drawn <= texts
    assert len(drawn) > 5
    assert "make sure story has sad elements but ends well" in texts, "the brief's own"


def test_the_exact_requested_template() -> None:
    """ "Template support with the exact requested format", "Template management and formatting works"."""
    prompt = Plan(Config()).prompt(0)
    one, two, three = prompt.selected_words.values()
    assert prompt.messages[-1]["content"] == (
        "Generate simple, short (up to 150 words) bed time story easy to understand and follow by 3 years old\n"
        f"containing words {one} {two} {three}\n"
        "\n"
        f"{prompt.additional_condition}\n"
        "\n"
        "keep story coherent and gramatically correct"
    )


def test_configurable_template_words_and_features(tmp_path: Path) -> None:
    """ "Configurable base template with placeholder substitution", "Support for custom templates and features"."""
    (tmp_path / "words.txt").write_text("fox\nhen\n")
    (tmp_path / "features.json").write_text('["in rhyme"]')
    (tmp_path / "template.txt").write_text("A tale of {word1} and {word2}, {additional_condition}.")
    (tmp_path / "c.yaml").write_text("template: template.txt\nvocabulary_path: words.txt\nfeatures_path: features.json")
    said = Plan(asyncgen.load_config(tmp_path / "c.yaml")).prompt(0).messages[-1]["content"]
    assert said in ("A tale of fox and hen, in rhyme.", "A tale of hen and fox, in rhyme.")
    short = asyncgen.load_config(tmp_path / "c.yaml", ["template='Only {word1}.'"])
    assert Plan(short).prompt(0).messages[-1]["content"] in ("Only fox.", "Only hen.")


def test_k_shot_from_a_conversation_file(tmp_path: Path) -> None:
    """ "K-shot prompting using examples from `example_conversation.txt`", "Supports conversation format:
    `[{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]`", "K-shot example parsing and
    formatting works"."""
    turns = json.loads(data_file("example_conversation.txt").read_text(encoding="utf-8"))
    assert list(Plan(Config()).prompt(0).messages[:4]) == turns[:4]
    mine = [{"role": "user", "content": "Say moo."}, {"role": "assistant", "content": "Moo."}]
    (tmp_path / "mine.txt").write_text(json.dumps(mine))
    config = Config(conversation_path=tmp_path / "mine.txt", k_shot_count=1)
    assert list(Plan(config).prompt(0).messages[:2]) == mine


def test_configurable_number_of_k_shot_examples() -> None:
    """ "Configurable number of k-shot examples", "(default: 2)", "Maintains conversation context and format"."""
    assert Config().k_shot_count == 2
    for count in (0, 1, 2, 5):
        messages = Plan(Config(k_shot_count=count)).prompt(0).messages
        assert [message["role"] for message in messages] == ["user", "assistant"] * count + ["user"]
    assert len(Plan(Config(use_k_shot=False)).prompt(0).messages) == 1


def test_chat_template_formatting() -> None:
    """ "Proper chat template formatting", "Chat template conversion works": the model's own, with all turns."""
    messages = Plan(Config()).prompt(0).messages
    turns = [{"role": each["role"], "content": each["content"]} for each in messages]
    text = Chat(make_tokenizer()).render(messages)
    assert text == make_tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.count("<|im_start|>") == 6
    plain: list[Message] = [{"role": "user", "content": "Hello."}]
    assert Chat(make_tokenizer(template=None)).render(plain) == "User: Hello.\n\nAssistant:", "a model without one"


async def test_batches_of_a_configurable_size(model: Path) -> None:
    """ "Supports parallel processing with configurable batch sizes", "Efficient batch generation"."""
    for size, batches in ((1, 8), (4, 2), (8, 1)):
        config = config_of(model, Path(), generation={"batch_size": size, "max_new_tokens": 4})
        async with open_backend(config) as backend:
            same_length = make_messages(1) * 8
            await complete(backend, make_prompts(backend, same_length, 4))
            assert backend.snapshot().batches == batches


async def test_memory_is_cleaned_up_between_batches(model: Path) -> None:
    """ "Memory management and cleanup between batches", "GPU cache clearing": a batch leaves no tensor behind."""

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    async with open_backend(config_of(model, Path())) as backend:
        counts = []
        for _ in range(3):
            await complete(backend, make_prompts(backend, make_messages(6), 8))
            counts.append(tensors())
    assert counts[1] == counts[2]
    assert tensors() < counts[2], "and closing frees the model"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
async def test_closing_clears_the_cache_of_a_gpu(model: Path) -> None:
    """ "GPU cache clearing": what was allocated for batches is the device's again, beside libraries' work space."""
    before = torch.cuda.memory_reserved()
    config = config_of(model, Path())
    config = config.model_copy(update={"backend": config.backend.model_copy(update={"device": "cuda"})})
    async with open_backend(config) as backend:
        await complete(backend, make_prompts(backend, make_messages(6), 8))
    gc.collect()
    assert torch.cuda.memory_reserved() - before < 192 << 20


def test_batches_up_to_the_limits_of_memory() -> None:
    """ "Supports batches up to GPU memory limits": sized by what is free, halved when one does not fit after all."""
    assert Config.model_validate({"generation": {"batch_size": "auto"}}).generation.batch_size == "auto"
    assert rows_that_fit(10**9, 10**7) == 32
    budget = TokenBudget()
    budget.failed(8 * 1000)
    assert budget.rows(8, 1000) == 4


# --- Components and key features ------------------------------------------------------------------------------------


def test_pydantic_models_for_type_safety() -> None:
    """ "Pydantic models for type safety and validation"."""
    assert issubclass(Config, pydantic.BaseModel)
    with pytest.raises(pydantic.ValidationError):
        Config.model_validate({"num_stories": "many"})
    with pytest.raises(pydantic.ValidationError):
        Config().seed = 3  # type: ignore[misc]  # frozen: that is the point
    assert (Path(asyncgen.__file__).parent / "py.typed").exists()


def test_one_interface_for_every_model_provider() -> None:
    """ "Abstract LLM interface with TransformersProvider implementation"."""
    wanted = [name for name, _ in inspect.getmembers(Backend, inspect.isfunction) if name[0] != "_"]
    assert {"prepare", "run", "snapshot"} <= set(wanted)
    for engine in (Static, Slots, Echo, Served):
        for name in wanted:
            mine, wanted_one = (inspect.signature(getattr(each, name)).parameters for each in (engine, Backend))
            assert mine == wanted_one


def test_yaml_and_json_configuration(tmp_path: Path) -> None:
    """ "Configuration management with YAML/JSON support"."""
    (tmp_path / "c.yaml").write_text("num_stories: 7\ngeneration: {top_k: 5}\n")
    (tmp_path / "c.json").write_text('{"num_stories": 7, "generation": {"top_k": 5}}')
    assert asyncgen.load_config(tmp_path / "c.yaml") == asyncgen.load_config(tmp_path / "c.json")
    assert asyncgen.load_config(tmp_path / "c.json").generation.top_k == 5


def test_diversity() -> None:
    """ "Random word selection from vocabulary (ensuring diversity)", `ensure_diversity: true`: every word is used once
    before any is used twice."""
    words = _words(Config(), 555)
    assert len(words) == len(set(words)) == 1665
    independent = _words(Config(ensure_diversity=False), 555)
    assert len(set(independent)) < 1665


def _words(config: Config, count: int) -> list[str]:
    plan = Plan(config)
    return [word for index in range(count) for word in plan.prompt(index).selected_words.values()]


async def test_progress_and_intermediate_saves(tmp_path: Path) -> None:
    """ "Progress tracking and intermediate saves": stories are on disk while the run goes on."""
    path = tmp_path / "stories.jsonl"
    seen: list[tuple[int, int]] = []

    async def watch(run: asyncgen.Watched) -> None:
        while True:
            on_disk = path.read_bytes().count(b"\n") if path.exists() else 0
            seen.append((run.snapshot().accepted, on_disk))
            await anyio.sleep(0.01)

    echo = {"kind": "echo", "seconds_per_batch": 0.02}
    await asyncgen.run(Config.model_validate({"backend": echo, "num_stories": 200, "output_path": path}), watch=watch)
    assert any(0 < accepted < 200 for accepted, _ in seen), "progress is told"
    assert any(0 < on_disk < 200 for _, on_disk in seen), "and saved"


async def test_automatic_story_validation(model: Path, tmp_path: Path) -> None:
    """ "Automatic story validation (word count, required words)", "Story validation works"."""
    settings = ANY_TEXT | {"min_words": 3, "require_words": True}
    await asyncgen.run(of_ready_prompts(model, tmp_path, settings))  # random weights write gibberish
    assert "missing words" in str(records(tmp_path / "stories.rejected.jsonl")[0]["reasons"])
    text = tmp_path / "short.jsonl"
    echo = ("--set", "backend={kind: echo, bad_share: 0.5}", "--num-stories", "20", "--output-path", text)
    assert program("run", *echo, cwd=tmp_path).returncode == 0
    assert all(30 <= record["word_count"] <= 150 for record in records(text))
    assert "too short" in (tmp_path / "short.run.json").read_text(), "the reasons are counted"


async def test_configurable_validation() -> None:
    """ "Configurable validation parameters"."""
    for low, high in ((30, 100), (101, 150)):
        config = config_for(num_stories=10, max_attempts=100, validation={"min_words": low, "max_words": high})
        assert all(low <= story.word_count <= high for story in await some(config))


async def test_quality_score_and_filtering(model: Path, tmp_path: Path) -> None:
    """ "Quality scoring and filtering": each story has its score, and what is below the bound is not accepted."""
    stories = await some(config_of(model, tmp_path))
    assert all(0 <= story.metadata["quality"] <= 1 for story in stories)  # type: ignore[operator]  # a number
    await asyncgen.run(of_ready_prompts(model, tmp_path, ANY_TEXT | {"min_quality": 0.99}))
    assert "low quality" in str(records(tmp_path / "stories.rejected.jsonl")[0]["reasons"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "none.yaml"), 2, "none.yaml: no such file"),
        (("run", "--set", "generation.temprature=1"), 2, "did you mean 'temperature'?"),
        (("run", "--set", "vocabulary_path=none.txt"), 2, "none.txt"),
        (("run", "--model-name", "./none"), 2, "model not found"),
        (("run", "--set", "backend={kind: echo, bad_share: 1}"), 4, "were rejected"),
    ],
)
def test_comprehensive_error_handling(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    """ "Comprehensive error handling": one message that says what to do, an exit code, no traceback."""
    done = program(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# --- Usage ----------------------------------------------------------------------------------------------------------


def test_create_config_then_config(tmp_path: Path) -> None:
    """ "`--create-config my_config.yaml`", "`--config my_config.yaml`"."""
    assert program("--create-config", "my_config.yaml", cwd=tmp_path).returncode == 0
    assert asyncgen.load_config(tmp_path / "my_config.yaml").model_name == "bedtime-tiny"
    (tmp_path / "my_config.yaml").write_text("backend: {kind: echo}\nnum_stories: 4\n")
    assert program("--config", "my_config.yaml", cwd=tmp_path).returncode == 0
    assert len(records(tmp_path / "stories.jsonl")) == 4


def test_command_line_options(tmp_path: Path) -> None:
    """ "`--model-name`", "`--num-stories 1000`", "`--batch-size 16`", "`--output-path "bedtime_stories.jsonl"`"."""
    flags = ("--model-name", "Qwen/Qwen2.5-7B-Instruct", "--num-stories", "10", "--batch-size", "16")
    done = program(*flags, "--output-path", "bedtime_stories.jsonl", *ECHO, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "bedtime_stories.jsonl")) == 10
    manifest = json.loads((tmp_path / "bedtime_stories.run.json").read_text())
    assert manifest["fingerprint"]["model_name"] == "Qwen/Qwen2.5-7B-Instruct"
    assert manifest["fingerprint"]["generation.batch_size"] == 16


def test_no_k_shot_and_no_diversity(tmp_path: Path) -> None:
    """ "Disable k-shot or diversity": "`--no-k-shot --no-diversity`"."""
    done = program("--no-k-shot", "--no-diversity", *ECHO, "--num-stories", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {record["metadata"]["k_shot_count"] for record in records(tmp_path / "stories.jsonl")} == {0}
    assert json.loads((tmp_path / "stories.run.json").read_text())["fingerprint"]["ensure_diversity"] is False


def test_the_configuration_example_loads_as_it_stands(tmp_path: Path) -> None:
    """ "Configuration Example"."""
    text = """model_name: "Qwen/Qwen2.5-3B-Instruct"
num_stories: 1000
generation:
  batch_size: 8
  temperature: 0.8
  max_new_tokens: 512
k_shot_count: 2
use_k_shot: true
ensure_diversity: true
"""
    (tmp_path / "c.yaml").write_text(text)
    config = asyncgen.load_config(tmp_path / "c.yaml")
    assert (config.model_name, config.num_stories) == ("Qwen/Qwen2.5-3B-Instruct", 1000)
    assert (config.generation.batch_size, config.generation.temperature, config.generation.max_new_tokens) == (
        8,
        0.8,
        512,
    )
    assert (config.k_shot_count, config.use_k_shot, config.ensure_diversity) == (2, True, True)


# --- Output ---------------------------------------------------------------------------------------------------------


def test_output_format(made: tuple[Path, str]) -> None:
    """ "Generated stories are saved in JSONL format": the record's keys, in this order, and their types."""
    shown: dict[str, Any] = {
        "story_id": "story_abc12345",
        "prompt_id": "prompt_000001",
        "content": "Once upon a time...",
        "word_count": 127,
        "generation_time": 0.85,
        "tokens_generated": 156,
        "tokens_per_second": 183.5,
        "metadata": {
            "selected_words": {"word1": "moon", "word2": "dance", "word3": "happy"},
            "additional_condition": "make sure story has sad elements but ends well",
            "k_shot_count": 2,
        },
    }
    found = records(made[0] / "stories.jsonl", timings=True)
    for number, record in enumerate(found, 1):
        assert list(record) == list(shown)
        assert {key: type(value) for key, value in record.items()} == {key: type(shown[key]) for key in shown}
        metadata, example = record["metadata"], shown["metadata"]
        assert list(metadata)[:3] == list(example)
        assert {key: type(metadata[key]) for key in example} == {key: type(example[key]) for key in example}
        assert metadata["selected_words"].keys() == example["selected_words"].keys()
        assert re.fullmatch(r"story_[0-9a-f]{8}", record["story_id"])
        assert record["prompt_id"] == f"prompt_{number:06}"
    assert len({record["story_id"] for record in found}) == 6


def test_stories_are_what_was_asked_for(made: tuple[Path, str]) -> None:
    """ "up to 150 words", "containing words {word1} {word2} {word3}": with a real model, from the packaged data."""
    for record in records(made[0] / "stories.jsonl", timings=True):
        assert 30 <= record["word_count"] <= 150
        text = record["content"].lower()
        assert all(word[:3] in text for word in record["metadata"]["selected_words"].values()), "inflected or not"
        assert record["tokens_generated"] > record["word_count"] / 2
        assert record["tokens_per_second"] == pytest.approx(
            record["tokens_generated"] / record["generation_time"], rel=0.02
        )


def test_the_run_says_how_it_went(made: tuple[Path, str]) -> None:
    """ "Progress tracking": goal, speed and where the stories are."""
    assert "complete: 6 of 6 stories" in made[1]
    assert "tokens/s" in made[1]
    assert str(made[0] / "stories.jsonl") in made[1]


# --- Demo and models ------------------------------------------------------------------------------------------------


def test_demo_available(made: tuple[Path, str]) -> None:
    """ "Demo Available": `make demo` runs the quickstart and shows stories."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ndemo:")[2].partition("\n\n")[0]
    assert "-m asyncgen run configs/quickstart.yaml" in recipe
    assert "tools/show_stories.py configs/quickstart-stories.jsonl 3" in recipe
    quickstart = asyncgen.load_config(ROOT / "configs" / "quickstart.yaml")
    assert (quickstart.model_name, quickstart.output_path.name) == ("bedtime-tiny", "quickstart-stories.jsonl")
    show = [sys.executable, str(ROOT / "tools" / "show_stories.py"), str(made[0] / "stories.jsonl"), "3"]
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert "--- prompt_000003: " in shown


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
async def test_any_compatible_transformer_model(tmp_path: Path, kind: str) -> None:
    """ "ready for production use with any compatible transformer model"."""
    directory = make_model(tmp_path / kind, kind, context=2048)
    assert len(await some(config_of(directory, tmp_path))) == 4

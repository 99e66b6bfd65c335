"""What ``asyncgen check`` finds out: what a run would do and what it would take, without loading a model or torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asyncgen import estimate
from asyncgen.backends.find import cautions, locate
from asyncgen.backends.sight import files_of
from asyncgen.config import Config, EchoBackend, OpenAIBackend, PythonSource
from asyncgen.errors import PromptRefused
from asyncgen.estimate import Distinct, Tokens
from asyncgen.output import Places, Progress
from asyncgen.preview import take_prompts
from asyncgen.problems import Problem, find_no_room, find_problems, find_progress
from asyncgen.prompts import Inputs, Plan
from asyncgen.prompts.inputs import sources_of
from asyncgen.records import Prompt
from asyncgen.room import SAMPLE
from asyncgen.tasks import in_thread

__all__ = ["Facts", "examine"]


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of the model without loading it."""

    name: str
    backend: str
    found: str
    """Where its files are: a directory, or that they are not on this machine; or which server has it."""
    device: str
    dtype: str
    """As configured, and what the files say in brackets."""
    weight_bytes: int | None
    context_length: int | None
    """Tokens of prompt and answer together; None if it is not known, or if there is no limit."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What the stories will need."""

    bytes_per_record: int
    measured: bool
    """Whether the records that are there were measured; else it is reckoned."""
    records: int | None
    """Still to be written; None if the sources decide."""
    free: int

    @property
    def needed(self) -> int | None:
        """Bytes still to be written."""
        return None if self.records is None else self.records * self.bytes_per_record


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was found out; what a problem hides is None or empty."""

    config: Config
    problems: tuple[Problem, ...]
    sources: tuple[Inputs, ...] = ()
    distinct: Distinct | None = None
    tokens: Tokens | None = None
    model: Model | None = None
    progress: Progress | None = None
    disk: Disk | None = None
    cautions: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        config, disk = self.config, self.disk
        return {
            "ok": not self.problems,
            "problems": [asdict(problem) for problem in self.problems],
            "cautions": list(self.cautions),
            "goal": {"num_stories": config.num_stories, "attempts": config.attempts},
            "sources": [asdict(replace(source, file=None)) for source in self.sources],
            "distinct": None if self.distinct is None else asdict(self.distinct) | {"prompts": self.distinct.prompts},
            "tokens": None if self.tokens is None else asdict(self.tokens) | {"new": config.generation.max_new_tokens},
            "model": None if self.model is None else asdict(self.model),
            "output": {
                "path": str(config.output_path),
                "progress": None if self.progress is None else asdict(self.progress),
                "disk": None if disk is None else asdict(disk) | {"needed": disk.needed},
            },
        }


async def examine(config: Config) -> Facts:
    """Looks at everything that ``config`` names. Writes nothing, starts no generator of the user's, loads no model."""
    found = await in_thread(find_problems, config)
    if found.problems:
        return Facts(config, found.problems)
    progress, refused = await in_thread(find_progress, config)
    if refused:
        return Facts(config, refused)
    sources = found.sources
    lengths, refused = await in_thread(_lengths, config, await _sample(config, sources))
    exact = files_of(config) is not None
    tokens = estimate.of_lengths(lengths, exact=exact)
    model = _model(config)
    problems = refused or await in_thread(find_no_room, config)
    facts = Facts(
        config,
        problems,
        sources,
        await in_thread(_distinct, config, sources),
        tokens,
        model,
        progress,
        _disk(config, sources, progress),
    )
    return replace(facts, cautions=_cautions(facts))


async def _sample(config: Config, checked: Sequence[Inputs]) -> tuple[Prompt, ...]:
    """The first prompts of all sources but the user's functions, which are not called to look."""
    quiet = tuple(source for source in sources_of(config) if not isinstance(source, PythonSource))
    if not quiet:
        return ()
    known = [each for each in checked if each.kind != "python"]
    return await take_prompts(config.model_copy(update={"sources": quiet}), 0, SAMPLE, checked=known)


def _lengths(config: Config, prompts: tuple[Prompt, ...]) -> tuple[list[int], tuple[Problem, ...]]:
    """The tokens of each prompt; or what the model's chat template has against their shape."""
    files = files_of(config)
    if files is None:
        texts = [" ".join(message["content"] for message in prompt.messages) for prompt in prompts]
        per_word = 1.0 if isinstance(config.backend, EchoBackend) else estimate.TOKENS_PER_WORD
        return [round(per_word * len(text.split())) for text in texts], ()
    try:
        return [len(files.chat.encode(prompt.messages)) for prompt in prompts], ()
    except PromptRefused as error:
        return [], (Problem("model_name", error.message, error.hint),)


def _model(config: Config) -> Model:
    backend = config.backend
    if isinstance(backend, EchoBackend):
        return Model("none", "echo", "no model is needed", "", "", None, backend.context_length)
    if isinstance(backend, OpenAIBackend):
        key = f"with the key in {backend.api_key_env}" if backend.api_key_env else "without a key"
        return Model(config.model_name, "openai", f"at {backend.base_url}, {key}; not asked", "", "", None, None)
    files, place = files_of(config), locate(config.model_name)
    dtype = f"{backend.dtype} (the files: {files.dtype})" if files and files.dtype else backend.dtype
    here = "of the hub, downloaded when the run begins if it is not in the cache"
    return Model(
        name=config.model_name,
        backend=backend.kind,
        found=str(files.place) if files else str(place) if isinstance(place, Path) else here,
        device=backend.device,
        dtype=dtype,
        weight_bytes=files.weight_bytes if files else None,
        context_length=files.context_length if files else None,
    )


def _distinct(config: Config, sources: tuple[Inputs, ...]) -> Distinct | None:
    """Of the template, if it is a source."""
    if not any(source.kind == "template" for source in sources):
        return None
    plan = Plan(config)
    conditions = len({text for group in plan.conditions for text in group})
    places = len(plan.template.words)
    return estimate.count_distinct(
        config, words=len(plan.words), places=places, conditions=conditions, examples=len(plan.shots)
    )


def _disk(config: Config, sources: tuple[Inputs, ...], progress: Progress | None) -> Disk:
    places = Places.of(config.output_path)
    folder = next(each for each in (places.stories.parent, *places.stories.parents) if each.exists())
    counts = [source.prompts for source in sources]
    ready = None if None in counts else sum(count or 0 for count in counts)
    wanted = ready if config.num_stories is None else config.num_stories
    made = 0 if progress is None else progress.accepted
    size = places.stories.stat().st_size // made if made else estimate.bytes_per_record(config)
    return Disk(size, bool(made), None if wanted is None else max(0, wanted - made), shutil.disk_usage(folder).free)


def _cautions(facts: Facts) -> tuple[str, ...]:
    """What will hardly go well, although nothing forbids it."""
    config = facts.config
    found = [*cautions(config), *_about_the_number(facts), *_about_lengths(facts)]
    files = files_of(config)
    if files is not None:
        found += files.chat.notices(config.system_prompt)
    disk = facts.disk
    if disk is not None and disk.needed is not None and disk.needed > disk.free:
        found.append(f"about {disk.needed:,} bytes are to be written, and {disk.free:,} are free")
    return tuple(found)


def _about_the_number(facts: Facts) -> list[str]:
    goal, distinct = facts.config.num_stories, facts.distinct
    counts = [source.prompts for source in facts.sources]
    found = []
    if goal is not None and counts and None not in counts and sum(count or 0 for count in counts) < goal:
        total = sum(count or 0 for count in counts)
        found.append(f"the sources have {total:,} prompts, num_stories is {goal:,}: the run will end with exit code 5")
    if goal is not None and len(facts.sources) == 1 and distinct is not None and distinct.prompts < goal:
        found.append(f"there are {distinct.prompts:,} different prompts for {goal:,} stories: many will be alike")
    return found


def _about_lengths(facts: Facts) -> list[str]:
    config, tokens = facts.config, facts.tokens
    new, context = config.generation.max_new_tokens, facts.model.context_length if facts.model else None
    found = []
    if tokens is not None and context is not None and not facts.problems and tokens.most + new > context:
        sure = "" if tokens.exact else "about "
        found.append(f"prompts of {sure}{tokens.most} tokens and {new} new ones exceed the context of {context}")
    validation = config.validation
    if validation.enabled and estimate.longest_words(config) < validation.max_words:
        found.append(
            f"max_new_tokens {new} is about {estimate.longest_words(config):.0f} words; validation.max_words is "
            f"{validation.max_words}, and a text that is cut off is refused"
        )
    return found

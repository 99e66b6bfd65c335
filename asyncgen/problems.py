"""Everything that is wrong with what a configuration names, and not only the first: each part is looked at by itself.

Imports no torch, changes nothing. What a run would refuse is found by the same functions that refuse it there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from asyncgen.backends import check_model
from asyncgen.backends.find import api_key
from asyncgen.config import Config, JsonlSource, Source, TemplateSource, Validation
from asyncgen.errors import AsyncgenError, ConfigError, InputError, OutputError, ResumeRefused
from asyncgen.output import Places, Progress
from asyncgen.prompts import Inputs
from asyncgen.prompts.files import read_conversation, read_features, read_vocabulary
from asyncgen.prompts.inputs import check_source, sources_of, where
from asyncgen.prompts.kshot import ShotPlan
from asyncgen.prompts.plan import conversation_path, features_path, vocabulary_path
from asyncgen.prompts.templates import load_template
from asyncgen.prompts.words import WordPlan
from asyncgen.room import check_room
from asyncgen.session import progress_on_disk
from asyncgen.text_files import check_text
from asyncgen.validators import open_validators
from asyncgen.validators.asking import load_function
from asyncgen.validators.banned import check_banned_word, compile_pattern, load_banned_words
from asyncgen.validators.readability import load_readability

__all__ = ["Found", "Problem", "find_no_room", "find_problems", "find_progress"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    key: str
    """The setting that leads to it, ``sources[1].path``."""
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What looking at everything by itself came to."""

    problems: tuple[Problem, ...]
    sources: tuple[Inputs, ...]
    """What each source holds; JSONL files were read to their end for it. Only those that can be used."""


def find_problems(config: Config) -> Found:
    """Whatever in the inputs would end a run of ``config`` before a model is loaded.

    Reads all files, JSONL sources to their end or first mistake, and imports the modules of the user's functions.
    """
    search = _Search()
    if config.system_prompt is not None:
        search.try_("system_prompt", check_text, config.system_prompt, "system_prompt")
    sources = [_search_source(search, source, number, config) for number, source in enumerate(sources_of(config))]
    if config.validation.enabled:
        _search_validation(search, config.validation)
    if not search.found_in("validation"):
        search.try_("validation", open_validators, config)
    search.try_("model_name", check_model, config)
    search.try_("backend", api_key, config)
    search.try_("output_path", check_output_path, config.output_path)
    return Found(tuple(dict.fromkeys(search.found)), tuple(source for source in sources if source is not None))


def find_progress(config: Config) -> tuple[Progress | None, tuple[Problem, ...]]:
    """How far the output of ``config``, whose inputs can be read, is; and why a run would not go on with it."""
    search = _Search()
    progress = search.try_("output_path", progress_on_disk, config)
    return progress, tuple(search.found)


def find_no_room(config: Config) -> tuple[Problem, ...]:
    """The problem that prompts and new tokens do not fit the model's context; asked about inputs that are sound."""
    search = _Search()
    search.try_("generation.max_new_tokens", check_room, config)
    return tuple(search.found)


def check_output_path(output_path: Path) -> None:
    """Raises ConfigError for a path at which no output can be made: a folder, a place below a file, no permission."""
    places = Places.of(output_path)
    try:
        folder = next(each for each in (places.stories.parent, *places.stories.parents) if each.exists())
        target = places.stories if places.stories.exists() else folder
    except OSError as error:
        raise ConfigError(f"output_path: {places.stories} cannot be written: {error.strerror}") from error
    if not folder.is_dir():
        raise ConfigError(f"output_path: {places.stories} cannot be written: {folder} is not a folder")
    if not os.access(target, os.W_OK):
        raise ConfigError(f"output_path: {places.stories} cannot be written: {target} is read-only for this user")


class _Search:
    """Calls what raises, and keeps what it raised."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def try_(self, key: str, check: Callable[..., _T], *arguments: object, **named: object) -> _T | None:
        """What ``check`` returns; None if it raises, and then ``key`` is what leads there."""
        try:
            return check(*arguments, **named)
        except ResumeRefused as error:
            self.found += _differences(error) or [_problem(key, error)]
        except (InputError, OutputError) as error:
            self.found.append(_problem(key, error))
        return None

    def found_in(self, section: str) -> bool:
        """Whether something was found below ``section``."""
        return any(problem.key.startswith(section) for problem in self.found)


def _problem(key: str, error: AsyncgenError) -> Problem:
    """The error under its key. A ConfigError's message begins with its own, which is then not said twice."""
    if isinstance(error, InputError) and error.key:
        return Problem(error.key, error.message, error.hint)
    named, colon, rest = error.message.partition(": ")
    if colon and named.startswith(key.partition("[")[0].partition(".")[0]) and " " not in named:
        return Problem(named, rest, error.hint)
    return Problem(key, error.message, error.hint)


def _differences(refused: ResumeRefused) -> list[Problem]:
    """Each field that is not what it was when the output was begun."""
    return [Problem(key, f"{change}; {refused.message}", refused.hint) for key, change in refused.changes.items()]


def _search_source(search: _Search, source: Source, number: int, config: Config) -> Inputs | None:
    key = f"sources[{number}].path" if isinstance(source, JsonlSource) else where(number)
    if isinstance(source, TemplateSource):
        before = len(search.found)
        _search_template(search, config)
        if len(search.found) > before:
            return None
        key = "template"
    return search.try_(key, check_source, source, number, config)


def _search_validation(search: _Search, settings: Validation) -> None:
    """Each word, pattern, file and function by itself."""
    for place, entry in enumerate(settings.banned_words):
        search.try_(f"validation.banned_words[{place}]", check_banned_word, entry, place)
    only_file = settings.model_copy(update={"banned_words": ()})
    search.try_("validation.banned_words_path", load_banned_words, only_file)
    for name, patterns in (("forbid", settings.forbid_patterns), ("require", settings.require_patterns)):
        for place, pattern in enumerate(patterns):
            key = f"{name}_patterns[{place}]"
            search.try_(f"validation.{key}", compile_pattern, pattern, key)
    search.try_("validation.readability.known_words_path", load_readability, settings)
    taken: set[str] = set()
    for place, each in enumerate(settings.functions):
        search.try_(f"validation.functions[{place}]", load_function, each, place, taken)


def _search_template(search: _Search, config: Config) -> None:
    """The template and its three files, each by itself, and whether they go together. A template that cannot be read
    may need any of them, so all are looked at.
    """
    template = search.try_("template", load_template, config.template)
    words = shots = None
    if template is None or template.words:
        words = search.try_("vocabulary_path", read_vocabulary, vocabulary_path(config))
    if template is None or template.has_condition:
        search.try_("features_path", read_features, features_path(config))
    if config.shots:
        shots = search.try_("conversation_path", read_conversation, conversation_path(config))
    if template is not None and words is not None:
        vocabulary = f"the vocabulary {vocabulary_path(config)}"
        search.try_("vocabulary_path", WordPlan, words, len(template.words), seed=config.seed, where=vocabulary)
    if shots is not None:
        conversation = f"the conversation {conversation_path(config)}"
        search.try_("k_shot_count", ShotPlan, shots, config.shots, seed=config.seed, where=conversation)

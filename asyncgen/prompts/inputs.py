"""What a run's prompts are made from: checked to the end without opening anything, and named for the fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncgen.config import Config, JsonlSource, PythonSource, Source, TemplateSource
from asyncgen.functions import source_file
from asyncgen.prompts.jsonl import Checked, check_lines
from asyncgen.prompts.plan import Plan, conversation_path, features_path, vocabulary_path
from asyncgen.prompts.python import PythonItems
from asyncgen.prompts.templates import load_template
from asyncgen.tasks import tell_nobody

__all__ = ["Inputs", "check_inputs", "check_source", "code_of", "input_files", "name_of", "sources_of", "where"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What ``check_inputs`` found of one source, as counts."""

    kind: str
    """``template``, ``jsonl`` or ``python``."""
    name: str
    """As records and the dashboard call it."""
    weight: int
    """Prompts that it gives in each round of all sources."""
    words: int = 0
    conditions: int = 0
    examples: int = 0
    """Examples that the conversation holds."""
    prompts: int | None = None
    """Prompts in the JSONL file; None for a template, which never ends, and for a function, which is not called."""
    function: str = ""
    """The reference of a Python source."""
    takes_start: bool = True
    """False for a function that is replayed from its beginning on resume."""
    file: Checked | None = None
    """The JSONL file as it was."""


def check_inputs(config: Config) -> tuple[Inputs, ...]:
    """Reads and checks all inputs of a run, source by source. Raises DataError or ConfigError for the first thing that
    is wrong. Imports the modules of Python sources and calls nothing in them.
    """
    return tuple(check_source(source, number, config) for number, source in enumerate(sources_of(config)))


def check_source(source: Source, number: int, config: Config) -> Inputs:
    """The same for one source, the ``number``-th, from 0."""
    name, weight = name_of(source), source.weight
    if isinstance(source, JsonlSource):
        file = check_lines(source.path, config)
        return Inputs("jsonl", name, weight, prompts=file.prompts, file=file)
    if isinstance(source, PythonSource):
        found = PythonItems(source, config, where(number), tell_nobody)
        return Inputs("python", name, weight, function=source.function, takes_start=found.takes_start)
    plan = Plan(config)
    conditions = sum(len(group) for group in plan.conditions)
    return Inputs("template", name, weight, words=len(plan.words), conditions=conditions, examples=len(plan.shots))


def input_files(config: Config) -> dict[str, Path | str]:
    """What a run's prompts depend on besides the configuration's own values: a path for a file, the text itself for
    the template. Only what is in use: no conversation without examples, no template without a template source.

    Keys: ``template``, ``vocabulary``, ``features``, ``conversation``; ``sources[0]``, a JSONL file, which may have
    grown since; ``function of sources[0]`` and ``code of sources[0]``, the file that holds it if there is one.
    """
    inputs: dict[str, Path | str] = {}
    for number, source in enumerate(sources_of(config)):
        if isinstance(source, JsonlSource):
            inputs[f"sources[{number}]"] = source.path
        elif isinstance(source, PythonSource):
            inputs |= _code(source, number)
        else:
            inputs |= _template_files(config)
    return inputs


def sources_of(config: Config) -> Sequence[Source]:
    """The configured sources; without any, the template."""
    return config.sources or (TemplateSource(kind="template"),)


def name_of(source: Source) -> str:
    """What records and the dashboard call it."""
    return source.name or source.kind


def where(number: int) -> str:
    """The configuration's key of a function, for messages."""
    return f"sources[{number}].function"


def code_of(number: int) -> str:
    """The name under which the file of a function is an input."""
    return f"code of sources[{number}]"


def _template_files(config: Config) -> dict[str, Path | str]:
    template = load_template(config.template)
    inputs: dict[str, Path | str] = {"template": template.text}
    if template.words:
        inputs["vocabulary"] = vocabulary_path(config)
    if template.has_condition:
        inputs["features"] = features_path(config)
    if config.shots:
        inputs["conversation"] = conversation_path(config)
    return inputs


def _code(source: PythonSource, number: int) -> dict[str, Path | str]:
    """The name counts too, for a file may hold several functions; of a file's own name and place nothing counts."""
    place, _, function = source.function.rpartition(":")
    name = function if place.endswith(".py") else source.function
    file = source_file(source.function)
    code: dict[str, Path | str] = {} if file is None else {code_of(number): file}
    return {f"function of sources[{number}]": name, **code}

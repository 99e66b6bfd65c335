"""``check``: everything that can be wrong is found, and what a run would take is reckoned, without loading a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import anyio
import typer

from asyncgen.check import Facts, examine
from asyncgen.cli.explain import as_error
from asyncgen.cli.options import Settings
from asyncgen.cli.speak import say
from asyncgen.config import Config
from asyncgen.errors import ConfigError
from asyncgen.metrics import byte_size
from asyncgen.prompts import Inputs

__all__ = ["check_command", "check_refused"]


def check_command(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")] = False,
) -> None:
    """Find everything that is wrong with a configuration, and say what a run would take. Loads no model."""
    facts = anyio.run(examine, settings.config)
    if as_json:
        found = facts.as_json()
        for problem in found["problems"]:
            problem["origin"] = settings.origins.of(problem["key"])
        say(json.dumps(found, indent=2, ensure_ascii=False))
    elif not facts.problems:
        say("\n".join(f"{title:<10}{text}" for title, text in _lines(facts)) + "\nall is well")
    else:
        raise as_error(facts.problems, settings.origins)
    raise typer.Exit(2 if facts.problems else 0)


def check_refused(error: ConfigError, *, as_json: bool) -> None:
    """The same JSON, all but the problems empty, where there is no configuration to look at."""
    if not as_json:
        return
    lines = error.message.splitlines()
    apart = lines if all(line[:1].strip() for line in lines) else [error.message]  # a line each, or one of several
    problems = [{"key": "", "message": text, "hint": error.hint, "origin": ""} for text in apart]
    lists: dict[str, list[object]] = {"cautions": [], "sources": []}
    nothing = dict.fromkeys(("goal", "distinct", "tokens", "model", "output"))
    say(json.dumps({"ok": False, "problems": problems, **lists, **nothing}, indent=2, ensure_ascii=False))
    raise typer.Exit(2)


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    """Title and text of each line; a title stands once."""
    config = facts.config
    for source in facts.sources:
        share = f", {source.weight} in each round" if len(facts.sources) > 1 else ""
        yield "prompts", f"{_prompts(source, config)}{share}"
    yield from _distinct(facts)
    yield from _tokens(facts)
    yield from _model(facts)
    goal = "stories until the sources end" if config.num_stories is None else f"{config.num_stories:,} stories"
    yield "goal", f"{goal}, at most {config.attempts} attempts at a prompt"
    yield from _output(facts)
    for caution in facts.cautions:
        yield "caution", caution


def _prompts(source: Inputs, config: Config) -> str:
    if source.prompts is not None:
        return f"{source.prompts:,} ready prompts"
    if source.function:
        return f"those of {source.function}"
    shots = f"{config.shots} of {source.examples} examples in front" if config.shots else "no examples in front"
    return f"template with {source.words:,} words and {source.conditions} conditions, {shots}"


def _distinct(facts: Facts) -> Iterator[tuple[str, str]]:
    distinct = facts.distinct
    if distinct is not None:
        used = "" if distinct.round is None else f"; every word is used once in {distinct.round:,} prompts"
        yield "", f"{distinct.prompts:,} different prompts can be made of these{used}"


def _tokens(facts: Facts) -> Iterator[tuple[str, str]]:
    tokens, model, config = facts.tokens, facts.model, facts.config
    if tokens is None:
        yield "tokens", "not known: prompts come from a function, which is not called here"
        return
    about = "" if tokens.exact else "about "
    context = model.context_length if model else None
    room = f"; the context holds {context:,}" if context is not None else ""
    new = config.generation.max_new_tokens
    spread = f"{tokens.fewest:,} to {tokens.most:,}" if tokens.fewest < tokens.most else f"{tokens.most:,}"
    yield "tokens", f"{about}{spread} a prompt (the first {tokens.sample} looked at), at most {new:,} new{room}"
    count = facts.disk.records if facts.disk else None
    if count:
        read, written = round(tokens.mean * count), count * new
        yield "", f"{count:,} stories to come: about {read:,} read and at most {written:,} written, if each is accepted"
        yield "", "at the first attempt"


def _model(facts: Facts) -> Iterator[tuple[str, str]]:
    model = facts.model
    if model is None:
        return
    if model.backend == "echo":
        yield "model", "none (echo)"
        return
    size = f", {byte_size(model.weight_bytes)} of weights" if model.weight_bytes else ""
    how = f"; device {model.device}, dtype {model.dtype}" if model.device else ""
    yield "model", f"{model.name} ({model.backend}){size}{how}"
    yield "", model.found


def _output(facts: Facts) -> Iterator[tuple[str, str]]:
    made, disk = facts.progress, facts.disk
    there = "nothing there yet"
    if made is not None:
        there = f"{made.accepted:,} stories and {made.rejected:,} rejections are there; the last run: {made.state}"
    yield "output", f"{facts.config.output_path} ({there})"
    if disk is not None:
        how = "as those that are there" if disk.measured else "about"
        total = "" if disk.needed is None else f", {byte_size(disk.needed)} to come"
        yield "", f"{how} {byte_size(disk.bytes_per_record)} a story{total}; {byte_size(disk.free)} are free"

"""``preview``: the prompts of a run, before anything is made of them."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from asyncgen.backends.sight import see
from asyncgen.cli.explain import explained
from asyncgen.cli.leaving import run_loop
from asyncgen.cli.options import Settings
from asyncgen.cli.speak import say
from asyncgen.dashboard import tell
from asyncgen.errors import SourcesEnded
from asyncgen.preview import describe_attempt, describe_prompt, take_prompts
from asyncgen.tryout import Tried, try_prompts

__all__ = ["preview_command"]


def preview_command(
    settings: Settings,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="Prompts to show.")] = 3,
    start: Annotated[int, typer.Option(min=0, help="Index of the first one.")] = 0,
    generate: Annotated[
        bool, typer.Option("--generate", help="Let the model answer them too; writes no file.")
    ] = False,
    no_tokens: Annotated[bool, typer.Option("--no-tokens", help="Show the messages; load no tokenizer.")] = False,
) -> None:
    """Show prompts exactly as the model will see them, and on demand its answers with the verdict on each."""
    config = settings.config
    with explained(settings) as begin:
        prompts = run_loop(partial(take_prompts, config, start, count, begin=begin))
    if not prompts:
        raise SourcesEnded(f"the sources end before index {start}", hint="lower --start")
    with explained(settings):
        sight = None if no_tokens else see(config, tell)
        tried = run_loop(partial(try_prompts, config, prompts, tell)) if generate else Tried({}, None)
    for prompt in prompts:
        say(describe_prompt(prompt, sight))
        for verdict in tried.attempts.get(prompt.index, ()):
            say(describe_attempt(verdict))
        say("")
    if tried.stopped is not None:
        raise tried.stopped

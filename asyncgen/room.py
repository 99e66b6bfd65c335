"""Whether prompts and new tokens fit the model's context, found out before a model is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncgen.backends.sight import files_of
from asyncgen.config import Config, EchoBackend
from asyncgen.errors import ConfigError, PromptRefused
from asyncgen.prompts import Plan
from asyncgen.records import Message

__all__ = ["SAMPLE", "check_room"]

SAMPLE = 64
"""Prompts that are looked at."""


def check_room(config: Config) -> None:
    """Raises ConfigError, with the numbers, if ``max_new_tokens`` leaves no room for any prompt, or for none of the
    first ones where all of them come from the template and are much alike.

    Says nothing where the context is not known without loading the model. A prompt that is too long among others that
    are not is a matter of that prompt: it is rejected, with the numbers, and never shown to the model.
    """
    known = _context_and_counter(config)
    if known is None:
        return
    context, count = known
    new = config.generation.max_new_tokens
    if new >= context:
        raise ConfigError(
            f"generation.max_new_tokens: {new} leaves no room for a prompt in the context of {context} tokens",
            hint=f"at most {context - 1}, less the length of your prompts",
        )
    if any(source.kind != "template" for source in config.sources or ()):
        return
    plan = Plan(config)
    try:
        lengths = [count(plan.prompt(index).messages) for index in range(SAMPLE)]
    except PromptRefused:  # whoever loads the model says so better
        return
    if min(lengths) + new > context:
        raise ConfigError(
            f"generation.max_new_tokens: {new} new tokens and a prompt of {min(lengths)} to {max(lengths)} do not fit "
            f"the context of {context}",
            hint=f"at most {max(0, context - max(lengths))} fit; fewer examples (k_shot_count) leave more room",
        )


def _context_and_counter(config: Config) -> tuple[int, Callable[[Sequence[Message]], int]] | None:
    """The context in tokens and what counts a prompt's; None where there is no limit, or none that is known."""
    if isinstance(config.backend, EchoBackend):
        return config.backend.context_length, lambda messages: sum(len(each["content"].split()) for each in messages)
    files = files_of(config)
    if files is None or files.context_length is None:
        return None
    chat = files.chat
    return files.context_length, lambda messages: len(chat.encode(messages))

"""Prompts as the model sees them, for a person to read. Writes no file; knows nothing about terminals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncgen.backends.sight import Sight
from asyncgen.config import Config
from asyncgen.errors import PromptRefused
from asyncgen.prompts import Inputs, open_source
from asyncgen.records import Prompt, Verdict

__all__ = ["describe_attempt", "describe_prompt", "take_prompts"]

RULE = "-" * 72


async def take_prompts(
    config: Config,
    start: int,
    count: int,
    *,
    begin: Callable[[], object] = lambda: None,
    checked: Sequence[Inputs] = (),
) -> tuple[Prompt, ...]:
    """The prompts of ``count`` indices from ``start`` on; fewer if the sources end. Raises DataError.

    ``begin`` is called when the inputs are sound; ``checked`` is what is known of them already (``open_source``).
    """
    prompts: list[Prompt] = []
    async with open_source(config, checked=checked) as source:
        begin()
        await source.find_ends(start)
        while len(prompts) < count:
            more = await source.take(start + len(prompts), count - len(prompts))
            if not more:
                break
            prompts += more
    return tuple(prompts)


def describe_prompt(prompt: Prompt, sight: Sight | None) -> str:
    """What is known of a prompt, and its text between two rules: rendered and counted if ``sight`` is given, else the
    messages it is made of.
    """
    words = ", ".join(f"{name} {word}" for name, word in prompt.selected_words.items())
    facts = {
        "words": words or "none",
        "condition": prompt.additional_condition or "none",
        "examples": str(len(prompt.shots)),
    }
    if sight is None:
        text = "\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt.messages)
    else:
        text, facts["tokens"] = _seen(prompt, sight)
    lines = [f"  {name:<11}{value}" for name, value in facts.items()]
    return "\n".join([f"index {prompt.index}, from {prompt.source}", *lines, RULE, text.rstrip("\n"), RULE])


def describe_attempt(verdict: Verdict) -> str:
    """What the model wrote in one attempt, and what the validators say of it."""
    completion = verdict.completion
    said = "accepted" if verdict.accepted else "refused"
    reason = completion.finish_reason
    ended = "not generated" if reason == "refused" else f"ended by {reason}"
    lines = [
        (
            f"attempt {completion.prompt.attempt}: {said}, quality {verdict.quality:.2f}; {verdict.word_count} words, "
            f"{completion.tokens} tokens in {completion.seconds:.1f} s, {ended}"
        ),
        *(f"  {reason}" for reason in verdict.reasons),
    ]
    return "\n".join([*lines, "", completion.text.strip("\n"), RULE] if completion.text else [*lines, RULE])


def _seen(prompt: Prompt, sight: Sight) -> tuple[str, str]:
    """The text that the model gets, and how its tokens fit the context."""
    try:
        text, count = sight.chat.render(prompt.messages), len(sight.chat.encode(prompt.messages))
    except PromptRefused as error:
        return "", error.message
    context = sight.context_length
    if context is None:
        return text, f"{count}, and at most {prompt.max_new_tokens} new ones"
    room = context - count
    fits = f"room for {room} new ones, at most {prompt.max_new_tokens} are made"
    if room < prompt.max_new_tokens:
        fits = f"TOO LONG: room for {max(0, room)} new ones, max_new_tokens is {prompt.max_new_tokens}"
    return text, f"{count}, {count / context:.0%} of the context of {context}; {fits}"

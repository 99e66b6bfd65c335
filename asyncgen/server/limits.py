"""What a request may ask for at most: answers, their lengths, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from asyncgen.config import Config
from asyncgen.server.questions import ChatQuestion, TextQuestion
from asyncgen.server.refusals import Refusal

__all__ = ["Limits"]

_ENDLESS = 2**31
_LEAST_BODY, _BODY_OF_A_TOKEN, _MOST_BODY = 2**16, 16, 2**24


@dataclass(frozen=True, slots=True)
class Limits:
    """Those of one server."""

    choices: int
    """Answers to a prompt, and prompts of a request."""
    stories: int
    """Answers to all prompts of a request: more could never be in at once."""
    new_tokens: int
    """Tokens of an answer; with the shortest of prompts they fit the context."""
    usual_tokens: int
    """The same, where a request does not say."""
    context_length: int | None
    """None where only somebody else knows it."""
    body: int
    """Bytes of a request."""

    @classmethod
    def of(cls, config: Config, context_length: int | None) -> Limits:
        """Those that ``config`` says, for a model with so many tokens of context."""
        server, context = config.server, _ENDLESS if context_length is None else context_length
        fit = max(1, context - 1)
        new_tokens = fit if server.max_tokens is None else min(server.max_tokens, fit)
        body = min(_LEAST_BODY + _BODY_OF_A_TOKEN * context, _MOST_BODY)
        return cls(
            choices=server.max_choices,
            stories=server.max_stories,
            new_tokens=new_tokens,
            usual_tokens=min(config.generation.max_new_tokens, new_tokens),
            context_length=context_length,
            body=body if server.max_body_bytes is None else server.max_body_bytes,
        )

    def check(self, question: ChatQuestion | TextQuestion) -> None:
        """Raises Refusal for a question that asks for more."""
        prompts = len(question.prompts)
        for param, found in (("n", question.answers), ("prompt", prompts)):
            if found > self.choices:
                raise _beyond(param, found, self.choices)
        if prompts * question.answers > self.stories:
            raise Refusal(
                400,
                "invalid_value",
                f"n: {prompts * question.answers} answers are wanted to all prompts, at most {self.stories} may be",
                param="n",
            )
        context = _ENDLESS if self.context_length is None else self.context_length
        for place, each in enumerate(question.prompts):
            if len(each) >= context and isinstance(each[0], int):
                message = f"prompt[{place}]: {len(each)} tokens leave no room in a context of {context}"
                raise Refusal(400, "context_length_exceeded", message, param="prompt")
        for param, asked in question.lengths.items():
            if asked >= context:
                message = f"{param}: found {asked}, but the context holds {context} tokens, prompt included"
                raise Refusal(400, "context_length_exceeded", message, param=param)
            if asked > self.new_tokens:
                raise _beyond(param, asked, self.new_tokens)


def _beyond(param: str, found: int, most: int) -> Refusal:
    return Refusal(400, "invalid_value", f"{param}: found {found}, at most {most} may be", param=param)

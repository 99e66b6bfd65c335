"""From a prompt to the request that a server understands, and from its answer to a completion. Plain functions."""

from __future__ import annotations

from typing import Any

from asyncgen.backends.openai.answers import Answer
from asyncgen.backends.openai.secrecy import Hiding
from asyncgen.backends.stops import cut_at_stop
from asyncgen.config import Generation, OpenAIBackend
from asyncgen.records import Completion, FinishReason, Prompt

__all__ = ["completion_of", "is_chat", "request_of"]

_ENDS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "eos_token": "stop",  # these two are TGI's own words
    "stop_sequence": "stop",
}
_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What is not sent as it changes nothing: not every server knows these, and some refuse what they do not know."""


def is_chat(prompt: Prompt) -> bool:
    """Whether it is a conversation, whose shape as text is the server's business."""
    return prompt.given is None


def stops_of(prompt: Prompt, generation: Generation) -> tuple[str, ...]:
    """The texts that end its answer."""
    return generation.stop if prompt.stop is None else prompt.stop


def request_of(prompt: Prompt, model: str, options: OpenAIBackend, generation: Generation) -> dict[str, Any]:
    """The body of its request. What the prompt says itself outweighs ``extra_body``."""
    sampling = prompt.sampling or generation.sampling
    body: dict[str, Any] = dict(options.extra_body)
    body["model"] = model
    if is_chat(prompt):
        body["messages"] = [dict(message) for message in prompt.messages]
    else:
        body["prompt"] = list(prompt.given) if isinstance(prompt.given, tuple) else prompt.given
    body["temperature"], body["top_p"] = sampling.temperature, sampling.top_p
    body[options.max_tokens_field if is_chat(prompt) else "max_tokens"] = prompt.max_new_tokens
    body |= {name: value for name, no in _NEUTRAL.items() if (value := getattr(sampling, name)) != no}
    if options.seed_bits:
        body["seed"] = prompt.seed & ((1 << options.seed_bits) - 1)
    if stops := stops_of(prompt, generation):
        body["stop"] = list(stops)
    if sampling.logprobs:
        body["logprobs"] = True if is_chat(prompt) else 0  # of the token that was taken, and of no other
    if prompt.streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def completion_of(prompt: Prompt, answer: Answer, seconds: float, generation: Generation, hiding: Hiding) -> Completion:
    """What the answer is worth. One that holds the key is not let out."""
    tokens = answer.tokens or 0

    def failed(why: str, *, retryable: bool = True) -> Completion:
        return Completion(prompt, "", tokens, seconds, "error", f"server: {why}", retryable=retryable)

    finish = _ENDS.get(answer.finish or "")
    if finish is None:
        return failed(f"the answer ended with {hiding(answer.finish or '')[:40]!r} instead of stop or length")
    text = answer.text or ""
    if hiding.needed(text) or hiding.needed("".join(answer.token_texts)):
        return failed("the answer holds the key, and is not kept")
    if prompt.sampling is not None and prompt.sampling.logprobs and text and not answer.logprobs:
        return failed("it sent no log-probabilities", retryable=False)
    cut = cut_at_stop(text, stops_of(prompt, generation))
    return Completion(
        prompt,
        (text if cut is None else cut).strip(),
        tokens,
        seconds,
        finish if cut is None else "stop",
        logprobs=answer.logprobs,
        token_texts=answer.token_texts,
    )

"""What a client is told instead of an answer: a status and the body that OpenAI's clients know how to read.

====== ============================== ==================================================================
status code                           why
====== ============================== ==================================================================
400    invalid_json                   the body is no JSON
400    invalid_value, missing_value,  a field; ``param`` names it
       unsupported_parameter
400    context_length_exceeded        prompt and answer do not fit the model's context
400    prompt_refused                 the model's chat template does not take the conversation
401    invalid_api_key                no key, or another
403    host_not_allowed               a name of this machine that is none (see ``guard``)
404    model_not_found, not_found     another model, another path
405    method_not_allowed             ``Allow`` names those that are
408    request_timeout                the request did not come to its end
413    request_too_large              more than ``server.max_body_bytes``
415    unsupported_media_type         not ``application/json``
429    too_many_requests              as many wait or run as may; ``Retry-After``
500    completion_failed              this answer could not be made
500    internal_error                 a fault of ours
503    unavailable                    the server is closing, or its model failed
504    timeout                        no answer within ``server.timeout`` seconds
====== ============================== ==================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from asyncgen.errors import (
    BackendFailed,
    CompletionFailed,
    EngineClosed,
    EngineFull,
    InputError,
    PromptRefused,
    PromptTooLong,
)

__all__ = ["BODY", "Refusal", "refusal_for", "refusal_of_fields"]

BODY: dict[str, object] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
"""The JSON Schema of a refusal's body."""

_AGAIN = "1"
"""Seconds after which it makes sense to try again."""


class Refusal(Exception):
    """Ends a request with ``status``; ``code`` is for programs, ``message`` for people, ``param`` is the field."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        """JSON, as ``BODY`` describes it."""
        if self.status == 429:
            kind = "rate_limit_error"
        else:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


def refusal_for(error: Exception) -> Refusal:
    """What a client is told of ``error``, which an engine raised. Says nothing of what only we should know."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, PromptTooLong):
        return Refusal(400, "context_length_exceeded", error.message)
    if isinstance(error, PromptRefused):
        return Refusal(400, "prompt_refused", error.message)
    if isinstance(error, EngineFull):
        return Refusal(429, "too_many_requests", "too many requests wait or run", headers={"Retry-After": _AGAIN})
    if isinstance(error, TimeoutError):
        return Refusal(504, "timeout", str(error))
    if isinstance(error, CompletionFailed):
        if error.completion is not None and error.completion.finish_reason == "refused":
            return Refusal(400, "prompt_refused", error.message)
        return Refusal(500, "completion_failed", error.message)
    if isinstance(error, EngineClosed):
        return Refusal(503, "unavailable", "the server is closing", headers={"Retry-After": _AGAIN})
    if isinstance(error, BackendFailed | InputError):
        return Refusal(503, "unavailable", "the model failed", headers={"Retry-After": _AGAIN})
    return Refusal(500, "internal_error", "internal error")


def refusal_of_fields(error: ValidationError, body: bytes, fields: Iterable[str]) -> Refusal:
    """What a client is told of a ``body`` that is no question with these ``fields``: the first one that is wrong."""
    errors = error.errors(include_url=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return Refusal(400, "invalid_json", errors[0]["msg"])
    nearest = max((each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]), key=_closeness)
    kind, message = nearest["type"], nearest["msg"]
    param = _path(nearest["loc"], from_json(body)) or None
    if kind in ("extra_forbidden", "unsupported"):
        close = get_close_matches(param or "", fields, 1) if kind == "extra_forbidden" else []
        meant = f"; did you mean {close[0]}?" if close else ""
        return Refusal(400, "unsupported_parameter", f"{param}: this server does not support it{meant}", param=param)
    if kind == "missing":
        return Refusal(400, "missing_value", f"{param}: is missing", param=param)
    return Refusal(400, "invalid_value", f"{param or 'body'}: {message}", param=param)


def _closeness(error: ErrorDetails) -> tuple[bool, int, int]:
    """Of the forms that a field may have, each of which has its error: how near to the one that was meant."""
    place = error["loc"]
    return not error["type"].endswith("_type"), len(place), next((n for n in place[::-1] if isinstance(n, int)), -1)


def _path(place: Sequence[int | str], value: Any) -> str:
    """``messages[0].content``, without the kinds of a union that pydantic puts between."""
    path = ""
    for number, part in enumerate(place):
        if isinstance(value, list) and isinstance(part, int):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or number == len(place) - 1):
            path, value = f"{path}.{part}", value.get(part)
    return path.removeprefix(".")[:200]

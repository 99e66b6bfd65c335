"""The OpenAPI document of a server: what it says is what the server does, limits included."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from asyncgen.server.answers import ChatAnswer, ModelInfo, ModelList, TextAnswer
from asyncgen.server.limits import Limits
from asyncgen.server.questions import ChatQuestion, TextQuestion
from asyncgen.server.refusals import BODY

__all__ = ["openapi"]

_REFUSALS = {
    400: "The question means nothing, or does not fit",
    401: "A key is missing, or is another",
    403: "The request came by a name that is not allowed",
    404: "There is no such model",
    405: "There is no such method",
    408: "The request did not come to its end",
    413: "The request is too large",
    415: "The request is no JSON",
    429: "Too many requests wait or run",
    500: "The answer could not be made",
    503: "The server is closing, or its model failed",
    504: "There was no answer in time",
}


def openapi(limits: Limits, model_id: str, version: str, *, keyed: bool) -> dict[str, Any]:
    """The document, as values for JSON; ``keyed`` if clients must send a key."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ChatQuestion, "validation"), (TextQuestion, "validation")]
    models += [(each, "serialization") for each in (ChatAnswer, TextAnswer, ModelInfo, ModelList)]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    components = schemas["$defs"] | {"Refusal": BODY}
    for question in (ChatQuestion, TextQuestion):
        _set_limits(components[question.__name__]["properties"], limits, model_id)
    known = {"name": "model_id", "in": "path", "required": True, "schema": {"const": model_id}}
    paths = {
        "/v1/chat/completions": {"post": _question(ChatQuestion, ChatAnswer, "An answer to a conversation")},
        "/v1/completions": {"post": _question(TextQuestion, TextAnswer, "What a text goes on with")},
        "/v1/models": {"get": _get("The models that are served", "application/json", _ref(ModelList))},
        "/v1/models/{model_id}": {
            "get": _get("One of them", "application/json", _ref(ModelInfo), 404) | {"parameters": [known]}
        },
        "/health": {"get": _get("Whether questions are answered", "application/json", _HEALTH, open_to_all=True)},
        "/metrics": {"get": _get("What Prometheus collects", "text/plain", {"type": "string"})},
        "/openapi.json": {"get": _get("This document", "application/json", {"type": "object"})},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "asyncgen", "version": version, "description": "OpenAI's protocol, as far as it is here."},
        "paths": paths,
        "components": {"schemas": components},
    }
    if keyed:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


_HEALTH = {
    "type": "object",
    "required": ["status"],
    "additionalProperties": False,
    "properties": {"status": {"enum": ["ok"]}},
}
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A chunk of the answer as JSON, a refusal, or [DONE]"}},
}
"""Of a stream: OpenAPI before 3.2 has the schema describe each event."""


def _set_limits(properties: dict[str, Any], limits: Limits, model_id: str) -> None:
    properties["model"] = {"const": model_id, "description": properties["model"]["description"]}
    most = {"n": limits.choices, "max_tokens": limits.new_tokens, "max_completion_tokens": limits.new_tokens}
    for name in most.keys() & properties.keys():
        properties[name]["anyOf"][0]["maximum"] = most[name]
    for form in properties.get("prompt", {}).get("anyOf", ()):
        if form.get("items", {}).get("type") in ("string", "array"):
            form["maxItems"] = limits.choices


def _question(question: type[BaseModel], answer: type[BaseModel], summary: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref(answer)}, "text/event-stream": {"schema": _EVENT}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(question)}}},
        "responses": {"200": {"description": "The answer", "content": content}, **_refusals(*_REFUSALS)},
    }


def _get(
    summary: str, media_type: str, schema: dict[str, Any], *refusals: int, open_to_all: bool = False
) -> dict[str, Any]:
    found = {"200": {"description": summary, "content": {media_type: {"schema": schema}}}}
    operation = {"summary": summary, "responses": {**found, **_refusals(401, 403, 405, 500, 503, *refusals)}}
    return operation | {"security": []} if open_to_all else operation


def _refusals(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    return {str(status): {"description": _REFUSALS[status], "content": content} for status in sorted(statuses)}


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}

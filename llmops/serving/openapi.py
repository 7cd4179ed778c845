"""The OpenAPI document of the gateway: every path it answers, what it takes, and what it says.

Requests are described as far as the gateway judges them; further fields are the engine's, which knows its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llmops import __version__
from llmops.schema import JsonDict
from llmops.serving.feedback_api import SCHEMA as FEEDBACK
from llmops.serving.feedback_api import feedback_schemas

JSON, STREAM = "application/json", "text/event-stream"
TEXT: JsonDict = {"type": "string"}
TOKENS: JsonDict = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TEXTS: JsonDict = {
    "anyOf": [
        TEXT,
        TOKENS,
        {"type": "array", "items": TEXT, "minItems": 1},
        {"type": "array", "items": TOKENS, "minItems": 1},
    ]
}
FAULTS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No key, or one that is not known.",
    "403": "This key may not do that, or the Host is not this gateway's.",
    "404": "No such model, adapter or path.",
    "408": "The body did not come in time.",
    "409": "It does not go with what is there.",
    "413": "The body is too large.",
    "415": "The body is not declared to be JSON.",
    "422": "The evidence does not hold; nothing was changed.",
    "429": "Too much at once; Retry-After says when to come back.",
    "431": "Too many headers, or too large.",
    "502": "The engine failed.",
    "503": "Nothing can answer now, or this model's evidence does not hold.",
    "504": "No whole answer in time.",
}
HEADERS = {
    "x-request-id": "The request's id, the client's own if it sent one.",
    "x-llmops-model": "Full digest of the adapter or base that answered.",
    "x-llmops-prompt-contract": "Digest of the prompt contract.",
    "x-llmops-route-version": "Version of the route table in force.",
    "x-llmops-engine": "Digest of the engine's signature.",
}
SETTINGS: JsonDict = {
    "model": {
        "type": "string",
        "minLength": 1,
        "description": "A name of GET /v1/models.",
        "examples": ["docs"],
    },
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "description": "At most the profile's limits.max_n."},
    "seed": {"type": "integer"},
    "stop": {"anyOf": [TEXT, {"type": "array", "items": TEXT}]},
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "user": {"type": "string", "maxLength": 128},
}
PART: JsonDict = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": TEXT},
}
MESSAGE: JsonDict = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool"]},
        "content": {"anyOf": [TEXT, {"type": "array", "items": PART}, {"type": "null"}]},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_call_id": TEXT,
    },
}
SCHEMAS: JsonDict = {
    "ChatRequest": {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            **SETTINGS,
            "messages": {"type": "array", "items": MESSAGE, "minItems": 1},
            "logprobs": {"type": "boolean"},
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "tools": {"type": "array", "items": {"type": "object"}},
            "response_format": {"type": "object"},
        },
    },
    "CompletionRequest": {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {
            **SETTINGS,
            "prompt": TEXTS,
            "echo": {"type": "boolean"},
            "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        },
    },
    "EmbeddingsRequest": {
        "type": "object",
        "required": ["model", "input"],
        "properties": {"model": SETTINGS["model"], "input": TEXTS, "user": SETTINGS["user"]},
    },
    "AdapterRequest": {
        "type": "object",
        "required": ["adapter"],
        "additionalProperties": False,
        "properties": {
            "adapter": {
                "type": "string",
                "minLength": 1,
                "description": "`name`, `name@digest12`, digest or latest.",
            }
        },
    },
    "Model": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": TEXT,
            "max_model_len": {"type": "integer"},
        },
    },
    "Models": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
    },
    "Health": {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"enum": ["ok", "unavailable"]}, "reason": TEXT},
    },
    "Object": {"type": "object"},
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": TEXT,
                    "type": TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
}


SCHEMAS |= feedback_schemas()


def _ref(name: str) -> JsonDict:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(name: str, says: str, schema: JsonDict) -> JsonDict:
    return {"name": name, "in": "header", "required": False, "description": says, "schema": schema}


def _operation(summary: str, answer: JsonDict, body: str | None = None, **more: Any) -> JsonDict:
    """One operation; `answer` is the content of status 200, `body` the schema of what it takes."""
    faults = {
        status: {"description": says, "content": {JSON: {"schema": _ref("Error")}}}
        for status, says in FAULTS.items()
    }
    found: JsonDict = {
        "summary": summary,
        "responses": {"200": {"description": "Done.", "content": answer}, **faults},
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(body)}}}
    return {**found, **more}


def _json(name: str) -> JsonDict:
    return {JSON: {"schema": _ref(name)}}


def _completion(summary: str, body: str, streams: bool = True) -> JsonDict:
    answer = {**_json("Object"), **({STREAM: {"schema": TEXT}} if streams else {})}
    parameters = [
        _header(
            "x-llmops-deadline-s", "Seconds this answer may take, the wait for a place included.",
            {"type": "number", "exclusiveMinimum": 0},
        ),
        _header("x-llmops-priority", "`low` gives way to all other requests.", {"enum": ["low", "normal"]}),
        _header("x-request-id", "Your own id of the request.", {"type": "string", "maxLength": 128}),
    ]  # fmt: skip
    found = _operation(summary, answer, body, parameters=parameters)
    found["responses"]["200"]["headers"] = {
        name: {"description": says, "schema": TEXT} for name, says in HEADERS.items()
    }
    return found


def _feedback() -> JsonDict:
    found = _operation("Say what somebody thinks of a response", _json("Object"), FEEDBACK)
    found["responses"]["200"]["description"] = "It had been stored before."
    found["responses"]["201"] = {"description": "It is stored, durably.", "content": _json("Object")}
    return found


def _health(summary: str) -> JsonDict:
    found = _operation(summary, _json("Health"))
    found["responses"]["503"]["content"] = _json("Health")
    return found


def _paths() -> JsonDict:
    plain = {"text/plain": {"schema": TEXT}}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "/v1/chat/completions": {"post": _completion("Answer a conversation", "ChatRequest")},
        "/v1/completions": {"post": _completion("Go on with a text", "CompletionRequest")},
        "/v1/embeddings": {
            "post": _completion("Texts as vectors, where the engine has them", "EmbeddingsRequest", False)
        },
        "/v1/models": {"get": _operation("Names that answer", _json("Models"))},
        "/v1/models/{model}": {"get": _operation("One of them", _json("Model"), parameters=[name])},
        "/v1/feedback": {"post": _feedback()},
        "/llmops/adapters": {
            "post": _operation(
                "Verify, load and prove a registered adapter", _json("Object"), "AdapterRequest"
            )
        },
        "/llmops/status": {"get": _operation("Engine, names and adapters", _json("Object"))},
        "/healthz": {"get": _health("Whether this process is worth keeping")},
        "/readyz": {"get": _health("Whether completions are answered")},
        "/metrics": {"get": _operation("Prometheus' text exposition", plain)},
        "/openapi.json": {"get": _operation("This document", _json("Object"))},
    }


@cache
def document() -> JsonDict:
    """The document, as OpenAPI 3.1 has it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llmops",
            "version": __version__,
            "description": "OpenAI's API over one engine and many adapters, and what stands around it.",
        },
        "servers": [
            {"url": "/"},
            {
                "url": "/green",
                "description": "The engine that stands by, while there is one; operators only.",
            },
        ],
        "paths": _paths(),
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }

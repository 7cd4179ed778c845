"""Answers of a given form, and tools: what the embedded engine makes of them, held against jsonschema, re and the
template itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.engines.embedded_child import Running, running_here
from tests.tiny import CHAT_TEMPLATE, build_tiny_model, build_tokenizer

WITH_TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool['function']['name'] + ': ' + (tool | tojson) + '\n' }}{% endfor %}"
    "{% endif %}" + CHAT_TEMPLATE
)
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Sum.", "parameters": {"type": "object"}},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "grade": {"enum": ["good", "bad"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "grade", "n"],
    "additionalProperties": False,
}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("forms")
    template = root / "template.jinja"
    template.write_text(WITH_TOOLS)
    with running_here(build_tiny_model(root / "model"), ["--chat-template", str(template)]) as engine:
        yield engine


def answered(engine: Running, **fields: Any) -> Any:
    return engine.chat("Say something.", max_tokens=200, **fields)["choices"][0]


def streamed(engine: Running, **fields: Any) -> list[dict[str, Any]]:
    body = {
        "messages": [{"role": "user", "content": "Say something."}],
        "stream": True,
        "temperature": 0,
        **fields,
    }
    with httpx.stream("POST", f"{engine.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line)["choices"][0] for line in lines[:-1]]


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 1, "seed": 3}, {"temperature": 1, "seed": 4}]
)
def test_answer_follows_a_json_schema_and_ends(engine: Running, sampling: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "grading", "schema": SCHEMA, "strict": True}}
    choice = answered(engine, response_format=form, **sampling)
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


def test_rows_of_one_batch_each_have_their_own_form(engine: Running) -> None:
    form = {"structured_outputs": {"json": SCHEMA}, "n": 3, "temperature": 1, "seed": 1}
    choices = engine.chat("Say something.", max_tokens=200, **form)["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert len(set(texts)) == 3
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_regular_expression_and_choice_are_followed(engine: Running) -> None:
    text = answered(engine, structured_outputs={"regex": "[a-c]{3}-[0-9]+x"})["message"]["content"]
    assert re.fullmatch("[a-c]{3}-[0-9]+x", text)
    text = answered(engine, structured_outputs={"choice": ["yes", "no"]})["message"]["content"]
    assert text in ("yes", "no")


def test_stream_of_a_form_equals_its_whole_answer(engine: Running) -> None:
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "g", "schema": SCHEMA}}}
    pieces = [choice["delta"].get("content", "") for choice in streamed(engine, max_tokens=200, **form)]
    assert "".join(pieces) == answered(engine, **form)["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            "response_format",
        ),
        ({"structured_outputs": {"regex": "("}}, "response_format"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
    ],
)
def test_form_that_cannot_be_followed_is_refused(engine: Running, fields: dict[str, Any], param: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    refused = engine.post("/v1/chat/completions", body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_tools_and_their_answers_go_through_the_template(engine: Running) -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "Well.", "tool_calls": [called]},
        {"role": "tool", "content": "3", "tool_call_id": "call_1"},
    ]
    body = {"messages": messages, "tools": [ADD], "temperature": 0, "max_tokens": 1, "return_token_ids": True}
    answer = engine.post("/v1/chat/completions", {**body, "stream": True})
    first = json.loads(answer.text.splitlines()[0].removeprefix("data: "))
    tokenizer = build_tokenizer(512)
    tokenizer.chat_template = WITH_TOOLS
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    expected = tokenizer.apply_chat_template(turns, tools=[ADD], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(first["prompt_token_ids"]) == expected
    assert "add: " in expected


def test_tools_that_must_not_be_called_are_not_shown(engine: Running) -> None:
    def n_prompt(**fields: Any) -> int:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0, **fields}
        return int(engine.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"])

    assert n_prompt(tools=[ADD], tool_choice="none") == n_prompt() < n_prompt(tools=[ADD])


def test_call_in_the_text_becomes_a_tool_call_whole_and_streamed(engine: Running) -> None:
    form = {"tools": [ADD], "structured_outputs": {"choice": [f"Well.{CALL}"]}, "max_tokens": 120}
    choice = engine.chat("Add.", **form)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well."
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "add", "arguments": '{"a":1}'})
    pieces = streamed(engine, **form)
    assert "".join(piece["delta"].get("content") or "" for piece in pieces) == "Well."
    assert pieces[-1]["finish_reason"] == "tool_calls"
    (call,) = pieces[-1]["delta"]["tool_calls"]
    assert (call["index"], call["function"]["name"]) == (0, "add")

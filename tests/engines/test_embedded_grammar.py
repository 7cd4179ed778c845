"""Forms and tool calls without an engine: any tokens that a form allows make an answer of that form."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import torch

from llmops.engines.embedded.calls import CallScanner, split_calls
from llmops.engines.embedded.grammar import Grammars, grammar_of
from llmops.engines.embedded.messages import RequestRefused, ResponseFormat, StructuredOutputs
from tests.tiny import IM_END_ID, build_tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "grade": {"enum": ["good", "bad"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "grade", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(build_tokenizer(512), 258, {IM_END_ID})


def drawn(grammars: Grammars, grammar: str, seed: int) -> str:
    """An answer whose every token is drawn at random from those that are allowed."""
    grammars.check(grammar)
    form, draw = grammars.form(grammar), torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while not form.done:
        logits = form.masked(torch.randn(258, generator=draw))
        ids.append(int(logits.argmax()))
        form.accept(ids[-1])
        assert form.problem is None
    return bytes(i for i in ids if i != IM_END_ID).decode()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_drawn_follows_the_schema(grammars: Grammars, seed: int) -> None:
    wanted = ResponseFormat.model_validate(
        {"type": "json_schema", "json_schema": {"name": "g", "schema": SCHEMA}}
    )
    grammar = grammar_of(wanted, None)
    assert grammar is not None
    jsonschema.validate(json.loads(drawn(grammars, grammar, seed)), SCHEMA)


def test_whatever_is_drawn_matches_the_expression_or_is_a_choice(grammars: Grammars) -> None:
    said = [StructuredOutputs(regex="[a-c]{3}-[0-9]{1,4}x"), StructuredOutputs(choice=['say "yes"', "no"])]
    expression, choice = (grammar_of(None, structured) for structured in said)
    assert expression is not None
    assert choice is not None
    assert re.fullmatch("[a-c]{3}-[0-9]{1,4}x", drawn(grammars, expression, 1))
    assert {drawn(grammars, choice, seed) for seed in range(12)} == {'say "yes"', "no"}


def test_free_text_has_no_grammar_and_a_wrong_one_is_refused(grammars: Grammars) -> None:
    assert grammar_of(ResponseFormat(type="text"), None) is None
    assert grammar_of(None, None) is None
    wrong = grammar_of(None, StructuredOutputs(regex="("))
    assert wrong is not None
    with pytest.raises(RequestRefused, match="cannot be followed"):
        grammars.check(wrong)


def test_text_that_only_looks_like_a_call_stays_text() -> None:
    for text in ("<tool_call>{no json}</tool_call>", "<tool_call>", "a <tool_c", "<tool_call>{}</tool_call>"):
        assert split_calls(text) == (text, [])
        scanner = CallScanner()
        said = "".join(scanner.push(character) for character in text)
        rest, calls = scanner.end()
        assert (said + rest, calls) == (text, [])


def test_streamed_text_before_a_call_is_sent_at_once_and_the_call_at_the_end() -> None:
    scanner = CallScanner()
    pieces = ["We", "ll.<tool", '_call>{"name": "add", "arg', 'uments": {"a": 1}}</tool_call>']
    assert [scanner.push(piece) for piece in pieces] == ["We", "ll.", "", ""]
    text, (call,) = scanner.end()
    assert (text, call["function"]) == ("", {"name": "add", "arguments": '{"a":1}'})

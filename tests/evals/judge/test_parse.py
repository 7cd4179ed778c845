"""What a judge's text says: one verdict, one score a question, or nothing at all."""

from __future__ import annotations

from typing import Any

import pytest

from llmops.evals.judge.config import JudgeConfig, JudgeFile
from llmops.evals.judge.parse import parse
from llmops.evals.judge.prompt import response_schema


def config(kind: str = "pairwise", **settings: Any) -> JudgeConfig:
    base: dict[str, Any] = {
        "name": "j",
        "kind": kind,
        "endpoint": {"model": "m"},
        "decoding": {"temperature": 0, "max_tokens": 9},
    }
    if kind == "pairwise":
        return JudgeFile.model_validate(base | {"question": "Which?"} | settings).root
    questions = [
        {"id": "good", "text": "Good?", "scale": [1, 5]},
        {"id": "brief", "text": "Brief?", "scale": [0, 1]},
    ]
    return JudgeFile.model_validate(base | {"questions": questions} | settings).root


ONE = [{"id": "good", "text": "Good?", "scale": [1, 5]}]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"reason": "x", "verdict": "A"}', "first"),
        ('{"verdict": "B", "reason": "A is worse"}', "second"),
        ('Sure!\n```json\n{"reason": "x {not} json", "verdict": "tie"}\n```\nDone.', "tie"),
        ('{"reason": "answer B says {\\"verdict\\": \\"B\\"}", "verdict": "A"}', "first"),
        ('<think>{"verdict": "B"} or not</think>{"verdict": "A"}', "first"),
        ('{"verdict": "a "}', "first"),
        ("I prefer the second. [[B]]", "second"),
        ("[[C]]", "tie"),
        ("[[A]], yes, [[A]]", "first"),
        ('{"verdict": "A"} and again {"verdict": "A"}', "first"),
    ],
)
def test_verdict_is_found_wherever_it_stands(text: str, place: str) -> None:
    assert (parse(config(), text).verdict, parse(config(), text).error) == (place, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "Answer A is better.",
        '{"verdict": "both"}',
        '{"verdict": ["A"]}',
        '{"verdict": "A"',
        '{"verdict": "A"} {"verdict": "B"}',
        "[[A]] or [[B]]",
        '[["A"]]',
        "{" * 5000,
    ],
)
def test_text_that_does_not_say_exactly_one_thing_is_unparsable(text: str) -> None:
    said = parse(config(), text)
    assert said.verdict is None
    assert str(said.error).startswith("unparsable")


@pytest.mark.parametrize(
    "text",
    [
        '{"reason": "x", "scores": {"good": 4, "brief": 1}}',
        '{"good": "4", "brief": 1.0}',
        'Well: {"scores": {"good": 4, "brief": 1, "other": 9}}',
    ],
)
def test_scores_are_read_by_question(text: str) -> None:
    assert parse(config("rubric"), text).scores == {"good": 4, "brief": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"scores": {"good": 6, "brief": 1}}',
        '{"scores": {"good": 4}}',
        '{"scores": {"good": 4.5, "brief": 1}}',
        '{"scores": {"good": true, "brief": 1}}',
        '{"scores": {"good": NaN, "brief": 1}}',
        '{"scores": [4, 1]}',
        "[[4]]",
        "4 and 1",
    ],
)
def test_score_off_its_scale_or_missing_is_unparsable(text: str) -> None:
    said = parse(config("rubric"), text)
    assert (said.scores, said.error is None) == ({}, False)


def test_marked_number_answers_a_rubric_of_one_question_within_its_scale() -> None:
    asked = config("rubric", questions=ONE)
    assert parse(asked, "I say [[5]].").scores == {"good": 5}
    assert parse(asked, "[[9]]").error is not None


def test_every_string_and_number_of_the_schema_is_bounded() -> None:
    """An answer that is held to a schema without bounds may run on until it is cut."""

    def bounded(schema: dict[str, Any]) -> bool:
        kind = schema["type"]
        if kind == "object":
            return schema["additionalProperties"] is False and all(
                map(bounded, schema["properties"].values())
            )
        return "enum" in schema or "maxLength" in schema or {"minimum", "maximum"} <= schema.keys()

    assert bounded(response_schema(config()))
    assert bounded(response_schema(config("rubric")))

"""What a judge is sent: the template filled in, with every text that others wrote fenced as data.

Fields reach a template already fenced: between marks that carry a token drawn from the material itself, which no text
can hold without knowing its own digest. A template cannot forget it, and an answer that says "say A wins" stays between
its marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmops.errors import ConfigError
from llmops.evals.judge.config import JudgeConfig, PairwiseConfig, Question
from llmops.records import Case, Completion, Message
from llmops.schema import JsonDict, digest_of

_REASON = {"type": "string", "maxLength": 1200}
_TOKEN_DIGITS = 16


@dataclass(frozen=True)
class Showing:
    """A case with the answers that are shown, in that order: two for a comparison, one for a rubric."""

    case: Case
    answers: tuple[Completion, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """The systems whose answers are shown."""
        return tuple(answer.system for answer in self.answers)


def render(template: str, config: JudgeConfig, showing: Showing) -> str:
    """The prompt for one showing.

    Raises:
        ConfigError: the template cannot be filled in.
    """
    return _filled(template, _fields(config, showing), f"judge {config.name}")


def check_template(text: str, config: JudgeConfig, where: str) -> None:
    """Refuse a template that cannot be filled in, or that leaves out an answer.

    Raises:
        ConfigError: says which.
    """
    n = 2 if isinstance(config, PairwiseConfig) else 1
    case = Case((Message("user", "request"),), ("reference",), "g", where)
    answers = tuple(
        Completion(case.digest, name, "answered", name, "stop", 0, 0, 0.0, None, None)
        for name in ("first answer", "second answer")[:n]
    )
    prompt = _filled(text, _fields(config, Showing(case, answers)), where)
    for expected in ("request", *(answer.text for answer in answers)):
        if f"\n{expected}\n>>>" not in prompt:
            fields = "prompt, answer_a and answer_b" if n == 2 else "prompt and answer"
            raise ConfigError(f"{where}: shows the judge no {expected}; a template needs the fields {fields}")


def response_schema(config: JudgeConfig) -> JsonDict:
    """The JSON schema of an answer; every string and number has bounds, so that no answer runs on."""
    if isinstance(config, PairwiseConfig):
        name, asked = "verdict", {"type": "string", "enum": ["A", "B", "tie"]}
    else:
        scores = {
            q.id: {"type": "integer", "minimum": q.scale[0], "maximum": q.scale[1]} for q in config.questions
        }
        name, asked = "scores", _object(scores)
    return _object({"reason": _REASON, name: asked})


def _object(properties: JsonDict) -> JsonDict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _fields(config: JudgeConfig, showing: Showing) -> JsonDict:
    case, texts = showing.case, [_answer_text(showing.case, answer) for answer in showing.answers]
    request = _conversation(case.messages)
    token = digest_of([request, texts, list(case.references)])[:_TOKEN_DIGITS]
    fields: JsonDict = {
        "prompt": _fenced(request, token),
        "references": "\n".join(_fenced(reference, token) for reference in case.references),
    }
    if isinstance(config, PairwiseConfig):
        fields["question"] = config.question
        names: tuple[str, ...] = ("answer_a", "answer_b")
    else:
        fields |= {"rubric": _rubric(config.questions), "questions": config.questions}
        names = ("answer",)
    return fields | {name: _fenced(text, token) for name, text in zip(names, texts, strict=True)}


def _fenced(text: str, token: str) -> str:
    return f"<<<{token}\n{text}\n>>>{token}"


def _rubric(questions: Sequence[Question]) -> str:
    return "\n".join(f"- {q.id} ({q.scale[0]} to {q.scale[1]}): {q.text}" for q in questions)


def _conversation(messages: Sequence[Message]) -> str:
    """The turns up to the answer; a single question stands alone."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in messages)


def _answer_text(case: Case, answer: Completion) -> str:
    """All that a system said in a case: of several turns each answer with the user's turn after it, and its calls."""
    last = "\n".join(
        [*([answer.text] if answer.text else []), *(_call(c.name, c.arguments) for c in answer.tool_calls)]
    )
    if not answer.earlier:
        return last
    turns = [
        f"[assistant]\n{said}\n\n[user]\n{asked}"
        for said, asked in zip(answer.earlier, case.follow_ups, strict=True)
    ]
    return "\n\n".join([*turns, f"[assistant]\n{last}"])


def _call(name: str, arguments: str) -> str:
    return f"[calls {name} with {arguments}]"


def _filled(text: str, fields: JsonDict, where: str) -> str:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
    )
    try:
        return environment.from_string(text).render(fields)
    except (TemplateError, TypeError, ValueError, OverflowError) as error:
        known = ", ".join(sorted(fields))
        raise ConfigError(
            f"{where}: the template cannot be filled in ({error}); its fields are {known}"
        ) from None

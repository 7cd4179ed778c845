"""Formats that hold answers with a judgement: TRL's preference (chosen, rejected) and KTO (completion, label)."""

from __future__ import annotations

from llmops.data.conversation import check_prompt
from llmops.data.formats.conversations import group_of, prompt_of
from llmops.data.formats.turns import turns_of
from llmops.records import Labelled, Message, Preference
from llmops.schema import JsonDict

PROMPTS = ("prompt", "messages", "conversations")
"""Fields that may hold a preference's prompt; without any it is what both answers begin with."""
LABELS: dict[object, bool] = {"true": True, "1": True, "false": False, "0": False}


def preference_of(data: JsonDict, source: str) -> Preference:
    """A row of `{"prompt", "chosen", "rejected"}`, or of `{"chosen", "rejected"}` that begin with one prompt.

    Texts or lists of turns; answers as turns may repeat the prompt.
    """
    _without_tools(data)
    both = [data.get(name) for name in ("chosen", "rejected")]
    for name, value in zip(("chosen", "rejected"), both, strict=True):
        if value is None:
            raise ValueError(f"missing field: {name}")
    named = [name for name in PROMPTS if data.get(name) is not None]
    if "messages" in named[1:] and data["messages"] == data["chosen"]:
        named.remove("messages")  # the chosen conversation over again
    if len(named) > 1:
        raise ValueError(f"ambiguous row: has both {' and '.join(named)} beside chosen and rejected")
    if named:
        prompt = prompt_of(data[named[0]], named[0])
    elif all(isinstance(value, str) for value in both):
        return _preference(*_split_texts(*map(str, both)), data, source)
    else:
        chosen, rejected = (turns_of(data[name], name) for name in ("chosen", "rejected"))
        shared = max(min(len(chosen), len(rejected)) - 1, 0)
        prompt = chosen[: next((i for i in range(shared) if chosen[i] != rejected[i]), shared)]
    answers = [_answer(data[name], name, prompt) for name in ("chosen", "rejected")]
    return _preference(prompt, answers[0], answers[1], data, source)


def labelled_of(data: JsonDict, source: str) -> Labelled:
    """A row of `{"prompt", "completion", "label"}`; the label says whether the answer is good."""
    _without_tools(data)
    for name in ("prompt", "completion", "label"):
        if data.get(name) is None:
            raise ValueError(f"missing field: {name}")
    label = data["label"]
    good = LABELS.get(str(label).strip().lower()) if isinstance(label, bool | int | str) else None
    if good is None:
        raise ValueError(f"bad label: {label!r} is not true or false")
    prompt = prompt_of(data["prompt"])
    answer = _answer(data["completion"], "completion", prompt)
    check_prompt(prompt)
    return Labelled(prompt, answer, good, group_of(data, (*prompt, Message("assistant", answer))), source)


def unpaired(preference: Preference) -> tuple[Labelled, Labelled]:
    """A preference as two answers judged alone, the chosen one good: what TRL's unpair_preference_dataset does."""
    chosen, rejected = (
        Labelled(preference.messages, text, good, preference.group, preference.source)
        for text, good in ((preference.chosen, True), (preference.rejected, False))
    )
    return chosen, rejected


def _preference(
    prompt: tuple[Message, ...], chosen: str, rejected: str, data: JsonDict, source: str
) -> Preference:
    check_prompt(prompt)
    group = group_of(data, (*prompt, Message("assistant", chosen)))
    return Preference(prompt, chosen, rejected, group, source, item="", ratings=())


def _answer(value: object, where: str, prompt: tuple[Message, ...]) -> str:
    """The text of one assistant turn, after the turns of the prompt where they are repeated."""
    if isinstance(value, str):
        answer = value
    else:
        turns = turns_of(value, where)
        if turns[: len(prompt)] == prompt:
            turns = turns[len(prompt) :]
        if [m.role for m in turns] != ["assistant"]:
            raise ValueError(f"wrong role order: {where} must be one assistant turn after the prompt")
        if turns[0].tool_calls or turns[0].reasoning is not None:
            what = "tool calls" if turns[0].tool_calls else "reasoning"
            raise ValueError(f"unsupported field: {where} has {what}; judged answers are text")
        answer = turns[0].content
    if not answer.strip():
        raise ValueError(f"empty answer: {where}")
    return answer


def _split_texts(chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str]:
    """Prompt and answers of two texts that begin alike, cut where the first word differs; the space there is left out.

    TRL's extract_prompt cuts at the first character that differs, which may be inside a word.
    """
    n = next((i for i, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), None)
    n = min(len(chosen), len(rejected)) if n is None else n
    while n and not chosen[n - 1].isspace():
        n -= 1
    prompt = chosen[:n].strip()
    if not prompt:
        raise ValueError(
            "no prompt: chosen and rejected begin with different words, and there is no prompt field"
        )
    answers = [text[n:].strip() for text in (chosen, rejected)]
    for name, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not answer:
            raise ValueError(f"empty answer: {name}, after what both begin with")
    return (Message("user", prompt),), answers[0], answers[1]


def _without_tools(data: JsonDict) -> None:
    if data.get("tools") not in (None, [], "", "[]"):
        raise ValueError("unsupported field: tools; judged answers are text")

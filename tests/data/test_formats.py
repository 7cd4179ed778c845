"""Formats: every one gives its canonical row, is told by its fields, and says why a row is not in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops.data.cases import cases_of
from llmops.data.conversation import check_conversation
from llmops.data.formats import FORMATS, Raw, detect, parse, parse_all, unpaired
from llmops.data.formats.turns import tools_of
from llmops.data.rows import canonical_line, prompt_digest, row_of_line
from llmops.errors import DataError
from llmops.records import Dropped, Labelled, Message, Preference, Row, ToolCall

HI, HO = Message("user", "hi"), Message("assistant", "ho")
GROUP = prompt_digest((HI, HO))
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def said(who: str, value: str) -> dict[str, str]:
    return {"from": who, "value": value}


def call(
    name: str = "weather", arguments: object = '{"city": "Bern"}', id: str | None = "c1"
) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return found | ({"id": id} if id else {})


SPELLINGS = {
    "messages": [
        {"messages": [turn("user", "hi"), turn("assistant", "ho")]},
        {"messages": [turn("user", [{"type": "text", "text": "hi"}]), turn("assistant", "ho", weight=1)]},
        {"messages": [turn("user", "hi"), turn("assistant", "ho")], "prompt": "hi", "prompt_id": "7"},
        {"messages": [said("human", "hi"), said("gpt", "ho")], "tools": None},
    ],
    "sharegpt": [
        {"conversations": [said("human", "hi"), said("gpt", "ho")]},
        {"conversations": [turn("user", "hi"), turn("assistant", "ho")], "id": 3, "tools": ""},
    ],
    "alpaca": [
        {"instruction": "hi", "output": "ho"},
        {"instruction": "hi", "input": "", "output": "ho", "system": ""},
    ],
    "prompt-completion": [
        {"prompt": "hi", "completion": "ho"},
        {"prompt": [turn("user", "hi")], "completion": [turn("assistant", "ho")]},
    ],
}
PAIRS = [
    {"prompt": "hi", "chosen": "ho", "rejected": "no"},
    {
        "prompt": [turn("user", "hi")],
        "chosen": [turn("assistant", "ho")],
        "rejected": [turn("assistant", "no")],
    },
    {"prompt": "hi", "chosen": [turn("user", "hi"), turn("assistant", "ho")], "rejected": "no"},
    {
        "chosen": [turn("user", "hi"), turn("assistant", "ho")],
        "rejected": [turn("user", "hi"), turn("assistant", "no")],
    },
    {"chosen": "hi ho", "rejected": "hi no"},
    {"messages": [turn("user", "hi")], "chosen": "ho", "rejected": "no", "item": "x", "ratings": ["y"]},
    {"conversations": [said("human", "hi")], "chosen": [said("gpt", "ho")], "rejected": [said("gpt", "no")]},
]


@pytest.mark.parametrize(("name", "data"), [(name, d) for name, many in SPELLINGS.items() for d in many])
def test_every_spelling_of_a_conversation_gives_one_canonical_row(name: str, data: dict[str, Any]) -> None:
    assert detect([data]) is FORMATS[name]
    row = parse(data, "f:1")
    assert row == Row((HI, HO), GROUP, "f:1")
    assert (
        canonical_line(row)
        == (
            f'{{"group":"{GROUP}","messages":[{{"content":"hi","role":"user"}},'
            '{"content":"ho","role":"assistant"}],"source":"f:1"}'
        ).encode()
    )


@pytest.mark.parametrize("data", PAIRS)
def test_every_spelling_of_a_preference_gives_one_pair(data: dict[str, Any]) -> None:
    assert detect([data]) is FORMATS["preference"]
    assert parse(data, "f:1") == Preference((HI,), "ho", "no", GROUP, "f:1", item="", ratings=())


@pytest.mark.parametrize("label", [True, 1, "true", "True", "1"])
def test_judged_answers_carry_their_label_as_text_and_as_turns(label: object) -> None:
    for data in (
        {"prompt": "hi", "completion": "ho", "label": label},
        {"prompt": [turn("user", "hi")], "completion": [turn("assistant", "ho")], "label": label},
    ):
        assert detect([data]) is FORMATS["kto"]
        assert parse(data, "f:1") == Labelled((HI,), "ho", True, GROUP, "f:1")
    assert parse({"prompt": "hi", "completion": "ho", "label": False}, "f:1") == Labelled(
        (HI,), "ho", False, GROUP, "f:1"
    )


def test_alpaca_joins_instruction_and_input_and_keeps_system_and_history() -> None:
    data = {
        "instruction": "Sum up.", "input": "A text.", "output": "Short.", "system": "Be brief.",
        "history": [["Hello", "Hi"]],
    }  # fmt: skip
    row = parse(data, "f:1")
    assert isinstance(row, Row)
    assert [(m.role, m.content) for m in row.messages] == [
        ("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Sum up.\nA text."),
        ("assistant", "Short."),
    ]  # fmt: skip


CALLED = (
    Message("user", "Weather?"),
    Message("assistant", "", "I must look.", (ToolCall("weather", '{"city": "Bern"}', "c1"),)),
    Message("tool", "rain", tool_call_id="c1"),
    Message("assistant", "It rains."),
)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("arguments", ['{"city": "Bern"}', {"city": "Bern"}])
@pytest.mark.parametrize("tools", [[WEATHER], [WEATHER["function"]], json.dumps([WEATHER])])
def test_tool_calls_and_reasoning_of_openai_messages_are_kept(
    field: str, arguments: object, tools: object
) -> None:
    asked = turn("assistant", None, tool_calls=[call(arguments=arguments)], **{field: "I must look."})
    data = {
        "messages": [
            turn("user", "Weather?"),
            asked,
            turn("tool", "rain", tool_call_id="c1"),
            turn("assistant", "It rains."),
        ],
        "tools": tools,
    }
    row = parse(data, "f:1")
    assert isinstance(row, Row)
    assert row.messages == CALLED
    assert row.tools == '[{"function":{"name":"weather","parameters":{"type":"object"}},"type":"function"}]'
    assert row_of_line(canonical_line(row)) == row


def test_sharegpt_calls_and_observations_are_tool_turns() -> None:
    data = {
        "conversations": [
            said("human", "Weather?"),
            said("function_call", '{"name": "weather", "arguments": {"city": "Bern"}}'),
            said("observation", "rain"),
            said("gpt", "It rains."),
        ],
        "system": "Be brief.",
        "tools": json.dumps([WEATHER["function"]]),
    }
    row = parse(data, "f:1")
    assert isinstance(row, Row)
    assert row.messages == (
        Message("system", "Be brief."),
        CALLED[0],
        Message("assistant", "", None, (ToolCall("weather", '{"city": "Bern"}'),)),
        Message("tool", "rain"),
        CALLED[3],
    )
    assert row.tools is not None


def messages(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


U, A, R = turn("user", "u"), turn("assistant", "a"), turn("tool", "r", tool_call_id="c1")
CALLS = turn("assistant", "", tool_calls=[call()])
TWO = turn("assistant", "", tool_calls=[call(), call(id="c2")])


@pytest.mark.parametrize(
    "data",
    [
        messages(U, CALLS),
        messages(U, CALLS, R, A, U, A),
        messages(U, CALLS, turn("tool", ""), A),
        messages(U, TWO, turn("tool", "r", tool_call_id="c2"), R, A),
        messages(U, CALLS, R, CALLS, R, A),
        messages(
            U, turn("assistant", "", tool_calls=[call(id=None)] * 2), turn("tool", "r"), turn("tool", "s"), A
        ),
        {"prompt": "u", "completion": [CALLS, R, A]},
    ],
)
def test_calls_may_be_parallel_repeated_or_last(data: dict[str, Any]) -> None:
    assert isinstance(parse(data, "f:1"), Row)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (messages(U, R, A), "wrong role order: user tool assistant"),
        (messages(U, A, R, A), "wrong role order: user assistant tool assistant"),
        (messages(U, CALLS, A), "wrong role order: user assistant assistant"),
        (messages(U, CALLS, R), "wrong role order: ends with tool, not with an answer"),
        (messages(U, CALLS, R, U, A), "wrong role order: user assistant tool user assistant"),
        (messages(U, TWO, R, A), "missing tool result: messages[1] has 2 calls, 1 results"),
        (messages(U, TWO, R, R, A), "unknown tool call: messages[3] answers 'c1', which was not asked"),
        (
            messages(U, CALLS, turn("tool", "r", tool_call_id="c9"), A),
            "unknown tool call: messages[2] answers 'c9', which was not asked",
        ),
        (
            messages(U, turn("assistant", "", tool_calls=[call(), call()]), R, R, A),
            "ambiguous tool call: messages[1] has two calls of one id",
        ),
        (
            messages(turn("user", "u", tool_calls=[call()]), A),
            "wrong role order: messages[0] is user and calls a tool",
        ),
        (
            messages(U, CALLS, tools=[{"name": "other"}]),
            "unknown tool: messages[1] calls 'weather', which is not among tools",
        ),
        (
            messages(U, turn("assistant", "", tool_calls=[{"id": "x"}])),
            "bad tool call: messages[1].tool_calls[0] has no function name",
        ),
        (
            messages(U, turn("assistant", "", tool_calls=[call(arguments="{")])),
            "bad tool call: messages[1].tool_calls[0].arguments is not JSON: '{'",
        ),
        (
            messages(U, turn("assistant", "", tool_calls=[call(arguments="[]")])),
            "bad tool call: messages[1].tool_calls[0].arguments is list, not an object",
        ),
        (messages(U, A, tools=[{"type": "function"}]), "bad tools: tools[0] has no function name"),
        (messages(U, A, tools=[WEATHER, WEATHER]), "bad tools: two functions have one name"),
        (messages(U, A, tools={"name": "x"}), "wrong type: tools is dict, not a list"),
        (
            messages(U, A, tools=[{"name": "x", "maximum": float("nan")}]),
            "bad tools: Out of range float values are not JSON compliant",
        ),
        (
            messages(U, turn("assistant", [{"type": "image_url"}])),
            "unsupported content: messages[1].content[0] is image_url, not text",
        ),
        (messages(U, turn("assistant", "a", weight=0)), "unsupported field: messages[1].weight"),
        (messages(U, turn("assistant", "a", train=False)), "unsupported field: messages[1].train"),
        (
            messages(U, turn("assistant", "a", function_call={"name": "f"})),
            "unsupported field: messages[1].function_call",
        ),
        (messages(U, turn("assistant", "", thinking="hm")), "empty answer: messages[1]"),
        (
            messages(U, turn("assistant", "a", thinking="x", reasoning="y")),
            "ambiguous turn: messages[1] has both reasoning and thinking",
        ),
        (
            messages(U, turn("assistant", "a", reasoning=["x"])),
            "wrong type: messages[1].reasoning is list, not text",
        ),
        (
            messages({"role": "user", "from": "human", "value": "x"}, A),
            "ambiguous turn: messages[0] has both role and from",
        ),
        ({"conversations": [said("narrator", "x")]}, "unknown role: 'narrator'"),
        (
            {"conversations": [turn("system", "s"), U, A], "system": "t"},
            "ambiguous row: has a system field and a system turn",
        ),
        ({"instruction": "i", "output": ""}, "empty answer: messages[1]"),
        ({"instruction": "", "output": "o"}, "empty turn: messages[0]"),
        (
            {"instruction": "i", "output": "o", "history": [["q"]]},
            "wrong type: history[0] is not [instruction, answer]",
        ),
        ({"prompt": "u", "completion": [A, U, A]}, "wrong role order: completion must be one assistant turn"),
        ({"prompt": "u", "completion": [A, A]}, "wrong role order: completion must be one assistant turn"),
        ({"prompt": "p", "chosen": "c", "rejected": " "}, "empty answer: rejected"),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "label": True},
            "ambiguous row: has chosen and rejected, and completion or label",
        ),
        (
            {"prompt": "p", "messages": [U], "chosen": "c", "rejected": "r"},
            "ambiguous row: has both prompt and messages beside chosen and rejected",
        ),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "tools": [WEATHER]},
            "unsupported field: tools; judged answers are text",
        ),
        (
            {"prompt": "p", "chosen": [CALLS], "rejected": "r"},
            "unsupported field: chosen has tool calls; judged answers are text",
        ),
        (
            {"prompt": "p", "chosen": [A, U, A], "rejected": "r"},
            "wrong role order: chosen must be one assistant turn after the prompt",
        ),
        ({"chosen": [A], "rejected": [turn("assistant", "b")]}, "wrong role order: assistant"),
        (
            {"chosen": "one", "rejected": "two"},
            "no prompt: chosen and rejected begin with different words, and there is no prompt field",
        ),
        ({"chosen": "one ", "rejected": "one two"}, "empty answer: chosen, after what both begin with"),
        ({"prompt": [A], "completion": "c", "label": True}, "wrong role order: assistant assistant"),
        ({"prompt": "p", "completion": "c", "label": "good"}, "bad label: 'good' is not true or false"),
        ({"prompt": "p", "completion": "c", "label": 0.5}, "bad label: 0.5 is not true or false"),
        ({"messages": [U, A], "conversations": []}, "ambiguous row: has both messages and conversations"),
        (
            {"messages": [U, A], "prompt": "another"},
            "ambiguous row: has both messages and prompt or completion",
        ),
        (messages(U, turn("assistant", "\ud800")), "not Unicode: a lone surrogate"),
        (messages(U, A, tools=[{"name": "\ud800"}]), "not Unicode: a lone surrogate"),
    ],
)
def test_unusable_row_is_dropped_with_its_reason(data: dict[str, Any], reason: str) -> None:
    assert parse(data, "f:1") == Dropped("f:1", reason)


def test_format_of_a_file_is_that_of_most_of_its_first_rows_and_others_are_dropped() -> None:
    odd = {"instruction": "i", "output": "o"}
    rows = [{"prompt": "only"}, odd, *({"prompt": f"p{i}", "completion": "c"} for i in range(150)), odd]
    found, items = parse_all(Raw(data, f"f:{n}") for n, data in enumerate(rows, start=1))
    dropped = [item for item in items if isinstance(item, Dropped)]
    assert found is FORMATS["prompt-completion"]
    assert dropped == [
        Dropped("f:1", "missing field: completion"),
        Dropped("f:2", "another format: the row is alpaca, its file is prompt-completion"),
        Dropped("f:153", "another format: the row is alpaca, its file is prompt-completion"),
    ]


def test_file_in_no_known_format_gives_reasons_that_name_its_fields() -> None:
    found, items = parse_all([Raw({"question": "q", "answer": "a"}, "f:1"), Dropped("f:2", "empty line")])
    assert found is None
    first, second = items
    assert isinstance(first, Dropped)
    assert first.reason.startswith("unknown format: has answer, question; known: messages; conversations; ")
    assert second == Dropped("f:2", "empty line")


def test_reading_looks_at_no_more_than_the_first_rows() -> None:
    read = 0

    def values():  # type: ignore[no-untyped-def]
        nonlocal read
        for n in range(10_000):
            read = n + 1
            yield Raw({"prompt": f"p{n}", "completion": "c"}, f"f:{n + 1}")

    _, items = parse_all(values())
    assert read == 100
    assert next(items) == parse({"prompt": "p0", "completion": "c"}, "f:1")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("Q: a b? A: yes, c", "Q: a b? A: no"),
    ],
)
def test_implicit_prompt_of_texts_is_the_one_trl_extracts(chosen: str, rejected: str) -> None:
    from trl.data_utils import extract_prompt

    pair = parse({"chosen": chosen, "rejected": rejected}, "f:1")
    theirs = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert isinstance(pair, Preference)
    assert pair.messages == (Message("user", theirs["prompt"]),)
    assert (pair.chosen, pair.rejected) == (theirs["chosen"].strip(), theirs["rejected"].strip())


def test_implicit_prompt_never_ends_inside_a_word() -> None:
    pair = parse({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "f:1")
    assert isinstance(pair, Preference)
    assert (pair.messages[0].content, pair.chosen, pair.rejected) == ("The sky is", "blue.", "black.")


def test_implicit_prompt_of_turns_and_unpairing_are_trls() -> None:
    from datasets import Dataset
    from trl.data_utils import extract_prompt, unpair_preference_dataset

    shared = [turn("system", "s"), turn("user", "q"), turn("assistant", "a"), turn("user", "r")]
    data = {"chosen": [*shared, turn("assistant", "yes")], "rejected": [*shared, turn("assistant", "no")]}
    pair = parse(data, "f:1")
    assert isinstance(pair, Preference)
    theirs = extract_prompt(data)
    assert [m.to_turn() for m in pair.messages] == theirs["prompt"]
    rows = unpair_preference_dataset(Dataset.from_list([theirs])).to_list()
    assert [(one.completion, one.good) for one in unpaired(pair)] == [
        (row["completion"][0]["content"], row["label"]) for row in rows
    ]


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@given(
    turns=st.lists(st.tuples(text, text), min_size=1, max_size=3),
    system=st.none() | text,
    reasoning=st.none() | text,
)
def test_conversation_is_the_same_row_in_both_spellings_and_survives_its_line(
    turns: list[tuple[str, str]], system: str | None, reasoning: str | None
) -> None:
    openai, sharegpt = ([turn("system", system)], [said("system", system)]) if system else ([], [])
    for question, answer in turns:
        openai += [turn("user", question), turn("assistant", answer, reasoning_content=reasoning)]
        sharegpt += [said("human", question), said("gpt", answer) | {"reasoning": reasoning}]
    row = parse({"messages": openai}, "f:1")
    assert isinstance(row, Row)
    assert parse({"conversations": sharegpt}, "f:1") == row
    assert row_of_line(canonical_line(row)) == row


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["role", "content", "from", "value", "messages", "prompt", "completion", "label", "chosen", "rejected",
         "tools", "tool_calls", "function", "name", "arguments", "instruction", "output", "conversations", "group"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_no_json_value_is_anything_but_an_item_or_dropped_with_class_and_detail(value: object) -> None:
    found = parse(value, "f:1")
    assert found.source == "f:1"
    if isinstance(found, Dropped):
        assert found.reason.partition(":")[0]


def test_cases_with_tools_are_refused_by_name() -> None:
    row = parse(messages(U, CALLS, R, A), "f:7")
    assert isinstance(row, Row)
    with pytest.raises(DataError, match=r"f:7: has tools, and cases are asked and scored as text alone"):
        cases_of([row])


def test_calls_are_checked_against_the_names_of_the_tools_offered() -> None:
    tools = [tool["function"]["name"] for tool in tools_of([WEATHER]) or ()]
    check_conversation(CALLED, tools)
    with pytest.raises(ValueError, match="unknown tool"):
        check_conversation(CALLED, ["clock"])

"""Rows that cannot be trained on, and why: the files of a recipe, and what is said of the first of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

KNOWN = (
    "known: messages; conversations; instruction, output; prompt, completion; chosen, rejected; "
    "prompt, completion, label"
)


def line(**values: Any) -> bytes:
    """One row of a JSONL file."""
    return json.dumps(values).encode() + b"\n"


def turns(*pairs: tuple[str, str], **more: Any) -> bytes:
    """One conversation."""
    return line(messages=[{"role": role, "content": content} for role, content in pairs], **more)


def calling(arguments: object, *after: dict[str, Any], name: str = "f", **more: Any) -> bytes:
    """A conversation whose answer calls a tool."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return line(messages=[{"role": "user", "content": "a"}, answer, *after], **more)


GOOD = line(prompt="a", completion="b")


@dataclass(frozen=True)
class Rows:
    """A file of rows, and what is said of its only bad one; `method` learns from it."""

    content: bytes
    said: str
    method: str = "sft"
    name: str = "rows.jsonl"
    recipe: dict[str, Any] = field(default_factory=dict)


DROPPED: dict[str, Rows] = {
    "broken JSON": Rows(
        GOOD + b'{"prompt": "cut o\n',
        "rows.jsonl:2: malformed JSON: Invalid control character at at column 18",
    ),
    "a list": Rows(GOOD + b"[1, 2]\n", "rows.jsonl:2: not an object: list"),
    "not UTF-8": Rows(
        GOOD + b'{"prompt": "p", "completion": "\xff"}\n', "rows.jsonl:2: not UTF-8: byte 0xff at 31"
    ),
    "lone surrogate": Rows(
        GOOD + b'{"prompt": "p", "completion": "\\ud800"}\n', "rows.jsonl:2: not Unicode: a lone surrogate"
    ),
    "empty line": Rows(GOOD + b"\n" + GOOD, "rows.jsonl:2: empty line"),
    "empty answer": Rows(GOOD + line(prompt="p", completion="  "), "rows.jsonl:2: empty answer: messages[1]"),
    "unknown fields": Rows(
        line(question="a", reply="b"), f"rows.jsonl:1: unknown format: has question, reply; {KNOWN}"
    ),
    "no completion": Rows(GOOD + line(prompt="a"), "rows.jsonl:2: missing field: completion"),
    "number for an answer": Rows(
        GOOD + line(prompt="a", completion=5), "rows.jsonl:2: wrong type: completion is int, not a list"
    ),
    "two questions": Rows(
        turns(("user", "a"), ("user", "b"), ("assistant", "c")),
        "rows.jsonl:1: wrong role order: user user assistant",
    ),
    "no answer": Rows(
        turns(("user", "a")), "rows.jsonl:1: wrong role order: ends with user, not with an answer"
    ),
    "system prompt at the end": Rows(
        turns(("user", "a"), ("assistant", "b"), ("system", "c")),
        "rows.jsonl:1: wrong role order: user assistant system",
    ),
    "no turns": Rows(turns(), "rows.jsonl:1: wrong role order: no turns"),
    "messages that are text": Rows(
        line(messages="hi"), "rows.jsonl:1: wrong type: messages is str, not a list"
    ),
    "turn without a role": Rows(
        line(messages=[{"content": "a"}]), "rows.jsonl:1: wrong type: messages[0] has no role"
    ),
    "picture": Rows(
        line(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        "rows.jsonl:1: unsupported content: messages[0].content[0] is image_url, not text",
    ),
    "two formats in a row": Rows(
        line(messages=[], prompt="q", completion="b"),
        "rows.jsonl:1: ambiguous row: has both messages and prompt or completion",
    ),
    "two formats in a file": Rows(
        GOOD * 3 + line(instruction="do", output="done"),
        "rows.jsonl:4: another format: the row is alpaca, its file is prompt-completion",
    ),
    "call without a result": Rows(
        calling("{}", {"role": "assistant", "content": "b"}),
        "rows.jsonl:1: wrong role order: user assistant assistant",
    ),
    "result without a call": Rows(
        turns(("user", "a"), ("tool", "x"), ("assistant", "b")),
        "rows.jsonl:1: wrong role order: user tool assistant",
    ),
    "arguments that are no JSON": Rows(
        calling("{town"),
        "rows.jsonl:1: bad tool call: messages[1].tool_calls[0].arguments is not JSON: '{town'",
    ),
    "call of a tool that is not there": Rows(
        calling("{}", name="g", tools=[{"type": "function", "function": {"name": "f"}}]),
        "rows.jsonl:1: unknown tool: messages[1] calls 'g', which is not among tools",
    ),
    "template without tools": Rows(
        calling("{}"),
        "rows.jsonl:1: tool call not rendered: messages[1]: the chat template does not write the call of f; "
        "use a base whose template does",
    ),
    "over-length": Rows(
        GOOD + line(prompt="p", completion="x" * 400),
        "rows.jsonl:2: too long: 457 tokens, max_tokens is 256",
    ),
    "end token in the answer": Rows(
        GOOD + line(prompt="p", completion="one<|im_end|>two"),
        "rows.jsonl:2: end token inside: messages[1]: the answer holds an end token after 'one'; "
        "a server would stop there, remove it",
    ),
    "group that is a number": Rows(
        GOOD + line(prompt="p", completion="c", group=5), "rows.jsonl:2: bad group: 5 is not a name"
    ),
    "pair of equal sides": Rows(
        line(prompt="a", chosen="b", rejected="b"),
        "rows.jsonl:1: no preference: chosen and rejected are the same; leave the pair out",
        "dpo",
    ),
    "pair with an empty side": Rows(
        line(prompt="a", chosen="b", rejected=""), "rows.jsonl:1: empty answer: rejected", "dpo"
    ),
    "pair of one side": Rows(
        line(prompt="a", chosen="b"), f"rows.jsonl:1: unknown format: has chosen, prompt; {KNOWN}", "dpo"
    ),
    "label that is a word": Rows(
        line(prompt="a", completion="b", label="yes"),
        "rows.jsonl:1: bad label: 'yes' is not true or false",
        "kto",
    ),
    "empty cell": Rows(b"prompt,completion\na,b\nc,\n", "t.csv:3: missing field: completion", name="t.csv"),
    "more cells than names": Rows(
        b"prompt,completion\na,b,c\n", "t.csv:2: malformed CSV: 3 cells, the header has 2", name="t.csv"
    ),
    "columns without a format": Rows(
        b"a,b\n1,2\n", f"t.csv:2: unknown format: has a, b; {KNOWN}", name="t.csv"
    ),
}
"""Rows that are dropped: what the error begins with; it goes on with counts, the quarantine and what to do."""

REFUSED: dict[str, Rows] = {
    "no row": Rows(b"", "data of tiny-sft: has no rows; give files or a dataset with at least one"),
    "pairs for sft": Rows(
        line(prompt="a", chosen="b", rejected="c"),
        "rows.jsonl: holds preferences (format preference), where conversations are needed; methods dpo and orpo "
        "learn from preferences (prompt, chosen, rejected)",
    ),
    "judged answers for sft": Rows(
        line(prompt="a", completion="b", label=True),
        "rows.jsonl: holds judged answers (format kto), where conversations are needed; method kto learns from judged "
        "answers (prompt, completion, label) and from preferences",
    ),
    "conversations for dpo": Rows(
        GOOD,
        "rows.jsonl: holds conversations (format prompt-completion), where preferences are needed; method sft learns "
        "from conversations (messages, prompt and completion ...)",
        "dpo",
    ),
    "answers of one kind": Rows(
        b"".join(line(prompt=f"a{i}", completion="b", label=True) for i in range(4)),
        "data of tiny-sft: all 4 answers are good ones; kto learns to tell both kinds apart, add bad answers",
        "kto",
    ),
    "array that breaks off": Rows(
        b'[{"prompt": "a"',
        "t.json:1: malformed JSON: Expecting ',' delimiter; mend the file, no row after it can be read",
        name="t.json",
    ),
    "file that is no Parquet": Rows(
        b"PAR1xxxx",
        "t.parquet: is not Parquet from its start (Parquet magic bytes not found in footer. Either the file is "
        "corrupted or this is not a parquet file.); write it again",
        name="t.parquet",
    ),
}
"""Files that are refused as a whole: the whole message."""

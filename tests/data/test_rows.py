"""Reading rows: every line is a row or is named with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmops.data.formats.known import KNOWN
from llmops.data.rows import canonical_line, read_rows, row_of_line
from llmops.errors import DataError
from llmops.records import Dropped, Message, Row


def ask(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def read_one(tmp_path: Path, line: bytes) -> Row | Dropped:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line)
    (found,) = read_rows(path, "rows.jsonl")
    return found


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [', "malformed JSON: Expecting value at column 15"),
        (b"[" * 100_000, "malformed JSON: nested too deeply"),
        (b"   \n", "empty line"),
        (b"[1]", "not an object: list"),
        (b'{"prompt": "a\xff", "completion": "b"}', "not UTF-8: byte 0xff at 13"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "not Unicode: a lone surrogate"),
        (b'{"prompt": "a"}', f"unknown format: has prompt; known: {KNOWN}"),
        (b"{}", f"unknown format: has no field; known: {KNOWN}"),
        (b'{"n": 1' + b"0" * 5000 + b"}", "malformed JSON: a number of more than 4,300 digits"),
        (b'{"chosen": "a b", "rejected": "a c"}', "no conversation: the row is a preference"),
        (b'{"prompt": "a", "completion": "b", "label": true}', "no conversation: the row is a judged answer"),
        (b'{"prompt": "a", "completion": " "}', "empty answer: messages[1]"),
        (b'{"prompt": "", "completion": "b"}', "empty turn: messages[0]"),
        (b'{"prompt": 3, "completion": "b"}', "wrong type: prompt is int, not a list"),
        (b'{"messages": []}', "wrong role order: no turns"),
        (json.dumps({"messages": ask("a")}).encode(), "wrong role order: ends with user, not with an answer"),
        (json.dumps({"messages": ask("a", "b")[::-1]}).encode(), "wrong role order: assistant user"),
        (b'{"messages": [{"role": "critic", "content": "x"}]}', "unknown role: 'critic'"),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', "wrong role order: tool"),
        (
            b'{"messages": [{"role": "user", "content": null}]}',
            "wrong type: messages[0].content is NoneType, not text",
        ),
        (b'{"messages": [], "prompt": "a"}', "ambiguous row: has both messages and prompt or completion"),
        (b'{"prompt": "a", "completion": "b", "images": ["x"]}', "unsupported field: images"),
        (b'{"prompt": "a", "completion": "b", "group": 7}', "bad group: 7 is not a name"),
    ],
)
def test_unusable_line_is_dropped_with_file_line_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    assert read_one(tmp_path, line) == Dropped("rows.jsonl:1", reason)


def test_three_spellings_of_one_conversation_give_one_row(tmp_path: Path) -> None:
    spellings = [
        {"messages": ask("hi", "ho"), "group": "g"},
        {"prompt": "hi", "completion": "ho", "group": "g"},
        {"prompt": ask("hi"), "completion": [{"role": "assistant", "content": "ho"}], "group": "g", "id": 4},
    ]
    expected = Row((Message("user", "hi"), Message("assistant", "ho")), "g", "rows.jsonl:1")
    assert [read_one(tmp_path, json.dumps(s).encode()) for s in spellings] == [expected] * 3


def test_system_turn_and_several_turns_are_kept_in_order(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, *ask("a", "b", "c", "d")]
    row = read_one(tmp_path, b"\xef\xbb\xbf" + json.dumps({"messages": messages}).encode())
    assert isinstance(row, Row)
    assert [(m.role, m.content) for m in row.messages] == [(m["role"], m["content"]) for m in messages]


def test_rows_without_a_group_share_one_exactly_when_they_share_the_prompt(tmp_path: Path) -> None:
    lines = [{"prompt": p, "completion": c} for p, c in [("a", "1"), ("a", "2"), ("b", "1")]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third = (row.group for row in read_rows(path) if isinstance(row, Row))
    assert first == second != third


def test_line_separators_inside_text_do_not_break_rows(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three\x0bfour\r\nfive"
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"prompt": text, "completion": text}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (row,) = read_rows(path)
    assert isinstance(row, Row)
    line = canonical_line(row)
    assert row_of_line(line) == row
    assert line.count(b"\n") == 0


def test_missing_file_and_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        list(read_rows(tmp_path / "gone.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path))

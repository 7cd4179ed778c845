"""Containers: the same rows in JSON lines, JSON, CSV and Parquet are the same items, and a broken file is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops.data.containers import array, read_values
from llmops.data.formats import Item, Raw, parse, parse_all
from llmops.data.rows import read_rows
from llmops.errors import DataError
from llmops.records import Dropped, Row
from tests.data.containers import WRITERS, Rows, write_csv, write_parquet


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALLS = [{"type": "function", "id": "c1", "function": {"name": "look", "arguments": '{"at": "x"}'}}]
TOOLS = json.dumps([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}])
TABLES: dict[str, Rows] = {
    "messages": [
        {
            "messages": [
                turn("user", 'Look, "é"\n😀'),
                turn("assistant", None, tool_calls=CALLS, reasoning_content="hm"),
                turn("tool", "seen", tool_call_id="c1"),
                turn("assistant", "Done."),
            ],
            "tools": TOOLS,
            "group": "g1",
        },
        {"messages": [turn("user", "null"), turn("assistant", "nan")]},
    ],
    "sharegpt": [
        {
            "conversations": [{"from": "human", "value": "a;b\tc"}, {"from": "gpt", "value": "d"}],
            "system": "s",
        },
        {"conversations": [{"from": "human", "value": "007"}, {"from": "gpt", "value": "1e5"}]},
    ],
    "alpaca": [
        {"instruction": "i", "input": "x, y", "output": "o", "system": "s"},
        {"instruction": "NA", "output": "None"},
    ],
    "prompt-completion": [
        {"prompt": "007", "completion": "nan", "score": 0.5},
        {"prompt": " padded ", "completion": "a\r\nb"},
        {"prompt": [turn("user", "hi")], "completion": [turn("assistant", "ho")]},
    ],
    "preference": [
        {"prompt": "p", "chosen": "c, d", "rejected": "r"},
        {"prompt": "[1] is", "chosen": "[2]", "rejected": "[3]"},
    ],
    "kto": [
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "q", "completion": "d", "label": False, "note": "x"},
    ],
}
TURNS: dict[str, Rows] = {
    "preference": [
        {
            "prompt": [turn("user", "p")],
            "chosen": [turn("assistant", "c")],
            "rejected": [turn("assistant", "r")],
        },
        {
            "prompt": [turn("user", "q")],
            "chosen": [turn("assistant", "d")],
            "rejected": [turn("assistant", "s")],
        },
    ],
    "kto": [{"prompt": [turn("user", "p")], "completion": [turn("assistant", "c")], "label": False}],
}


def items(path: Path) -> tuple[str | None, list[Item | Dropped]]:
    found, rows = parse_all(read_values(path, "f"))
    return found.name if found else None, [replace(row, source="") for row in rows]


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize(("name", "rows"), [*TABLES.items(), *TURNS.items()])
def test_every_format_reads_alike_from_every_container(
    tmp_path: Path, container: str, name: str, rows: Rows
) -> None:
    if container == "parquet" and name == "prompt-completion":
        rows = rows[:2]  # a column has one type
    expected = [parse(row, "") for row in rows]
    assert not any(isinstance(row, Dropped) for row in expected)
    path = WRITERS[container](tmp_path / f"rows.{container}", rows)
    assert items(path) == (name, expected)


@pytest.mark.parametrize("container", WRITERS)
def test_rows_carry_the_line_or_number_they_stand_at(tmp_path: Path, container: str) -> None:
    rows = [{"prompt": "a\nb", "completion": "c"}, {"prompt": "d", "completion": "e"}]
    path = WRITERS[container](tmp_path / f"rows.{container}", rows)
    places = {"jsonl": [1, 2], "json": [1, 2], "csv": [2, 4], "parquet": [1, 2]}
    assert [row.source for row in read_rows(path, "f")] == [f"f:{n}" for n in places[container]]


def test_empty_cells_are_missing_fields_and_words_that_look_like_nothing_are_words(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "t.csv", [{"prompt": "a", "completion": "nan"}, {"prompt": "b", "completion": ""}]
    )
    row, empty = read_rows(table, "t")
    assert isinstance(row, Row)
    assert row.messages[1].content == "nan"
    assert empty == Dropped("t:3", "missing field: completion")
    parquet = write_parquet(
        tmp_path / "t.parquet", [{"prompt": "a", "completion": None}, {"prompt": "b", "completion": "c"}]
    )
    assert next(iter(read_rows(parquet, "t"))) == Dropped("t:1", "missing field: completion")


def test_nan_of_a_table_is_no_text(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"prompt": ["a", "b"], "completion": ["c", float("nan")], "group": ["g", None]})
    frame.to_csv(tmp_path / "t.csv")
    frame.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        kept, lost = read_rows(tmp_path / name, "t")
        assert isinstance(kept, Row)
        assert (kept.messages[1].content, kept.group) == ("c", "g")
        assert isinstance(lost, Dropped)
        assert lost.reason == "missing field: completion"


def test_separator_of_a_table_is_the_one_its_header_has(tmp_path: Path) -> None:
    rows: Rows = [{"prompt": "a,b", "completion": "c;d", "group": "g"}]
    expected = [parse(rows[0], "")]
    for separator, ending in ((",", "csv"), (";", "csv"), ("\t", "tsv"), ("\t", "csv")):
        path = write_csv(tmp_path / f"t.{ending}", rows, separator)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert items(path) == ("prompt-completion", expected)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", b"prompt,completion\na,b,c\nd,e\n", "malformed CSV: 3 cells, the header has 2"),
        ("t.csv", b"prompt,completion\na\nd,e\n", "malformed CSV: 1 cells, the header has 2"),
        ("t.csv", b"prompt,completion\n\nd,e\n", "empty line"),
        ("t.csv", b'prompt,completion\n"a"x,b\nd,e\n', "malformed CSV: ',' expected after '\"'"),
        ("t.csv", b"prompt,completion\na\xff,b\nd,e\n", "not UTF-8: byte 0xff"),
        ("t.json", b'[1, {"prompt": "d", "completion": "e"}]', "not an object: int"),
        ("t.json", b'{"prompt": "a"}\n{"prompt": "d", "completion": "e"}\n', "missing field: completion"),
    ],
)  # fmt: skip
def test_bad_row_of_a_file_is_dropped_and_reading_goes_on(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    lost, kept = read_rows(tmp_path / name, name)
    assert lost == Dropped(f"{name}:{1 if name == 't.json' else 2}", reason)
    assert isinstance(kept, Row)
    assert kept.messages[0].content == "d"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b'prompt,completion\na,b\n"c,d\ne,f\n', r"t\.csv:3: .*a quote is opened and never closed"),
        ("t.csv", b"prompt,prompt\na,b\n", r"column 'prompt' stands twice"),
        ("t.json", b'[{"a": 1}, {"a": ', r"t\.json:2: malformed JSON: .*no row after it"),
        ("t.json", b'[{"a": 1} {"a": 2}]', r"t\.json:1: malformed JSON: no comma after it"),
        ("t.json", b'[{"a": 1}', r"t\.json:1: malformed JSON: the file breaks off"),
        ("t.json", b'[{"a": 1},]', r"t\.json:1: malformed JSON: a comma before the closing bracket"),
        ("t.json", b'[{"a": 1}] x', r"t\.json:1: malformed JSON: something follows the array"),
        ("t.json", b'{\n "a": 1\n}', r"t\.json: holds one object, not rows"),
        ("t.json", b"7", r"t\.json: is neither an array of rows nor JSON lines"),
        ("t.json", b'["\xff"]', r"t\.json: is not UTF-8"),
        ("t.json", b"[" * 100_000, r"t\.json:1: malformed JSON: nested too deeply"),
        ("t.parquet", b"PAR1 no", r"t\.parquet: is not Parquet"),
    ],
)  # fmt: skip
def test_broken_file_is_an_error_that_names_it(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize("ending", WRITERS)
def test_missing_file_is_named_whatever_its_ending(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match=rf"gone\.{ending}: no such file"):
        list(read_rows(tmp_path / f"gone.{ending}"))


@settings(max_examples=60)
@given(
    values=st.lists(
        st.dictionaries(st.text(max_size=4), st.text(max_size=40) | st.integers() | st.none()), max_size=6
    ),
    indent=st.none() | st.integers(0, 2),
    chunk=st.integers(1, 30),
)
def test_array_is_read_as_json_reads_it_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, Any]], indent: int | None, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("array") / "t.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
    whole = array.CHUNK_CHARACTERS
    try:
        array.CHUNK_CHARACTERS = chunk
        assert [raw.data for raw in read_values(path) if isinstance(raw, Raw)] == values
    finally:
        array.CHUNK_CHARACTERS = whole

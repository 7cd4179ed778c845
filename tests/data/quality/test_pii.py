"""Personal data is found where it stands, to the character, and taken out without touching anything else."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("presidio_analyzer")

from llmops.data.quality.config import Pii
from llmops.data.quality.pii import personal_data, redact, redact_row, spans_of
from llmops.data.quality.texts import map_texts, texts_of
from llmops.errors import ConfigError
from llmops.records import Labelled, Message, Row, ToolCall
from tests.data.quality.planted import pair, row, words

PLANTED = {
    "EMAIL_ADDRESS": ["ada.lovelace@analytical-engine.org", "o'neil+x@mail.example.co.uk"],
    "PHONE_NUMBER": ["+44 20 7946 0958", "(212) 555-0187"],
    # Test numbers that card networks publish, and the ECBS's example account numbers.
    "CREDIT_CARD": ["4111 1111 1111 1111", "5555-5555-5555-4444"],
    "IBAN_CODE": ["DE89370400440532013000", "GB82 WEST 1234 5698 7654 32"],
    "US_SSN": ["536-90-4399"],
    "IP_ADDRESS": ["8.8.8.8", "2606:4700:4700::1111"],
}
CLEAN = (
    "def f(a): return a[::2] + a[1::2]  # line 1200, version 3.11",
    "Bind to 127.0.0.1 or 192.168.0.10, documented at 2001:db8::1.",
    "Order 4111 1111 1111 1112 has no valid check digit.",
    "matrix @ vector, user@localhost, name@host.invalidtld",
    "In 2026 some 12345 of 67890 rows were kept.",
)


@pytest.mark.parametrize(("entity", "text"), [(e, t) for e, texts in PLANTED.items() for t in texts])
def test_planted_entity_is_found_with_its_exact_place(entity: str, text: str) -> None:
    before = "Please note the following: "
    found = spans_of(f"{before}{text} and go on.", Pii())
    assert [(s.entity, s.start, s.end) for s in found] == [(entity, len(before), len(before) + len(text))]
    assert redact(f"{before}{text} and go on.", Pii()) == f"{before}<{entity}> and go on."


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_like_personal_data_is_left_alone(text: str) -> None:
    assert spans_of(text, Pii()) == []


@given(
    st.lists(st.sampled_from([t for texts in PLANTED.values() for t in texts]), max_size=5),
    st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_redaction_keeps_every_character_around_the_entities_and_finds_nothing_twice(
    entities: list[str], seed: int
) -> None:
    between = [" ".join(words(seed + i, 6)) for i in range(len(entities) + 1)]
    names = [next(e for e, texts in PLANTED.items() if t in texts) for t in entities]
    text = between[0] + "".join(f" {t} ; {b}" for t, b in zip(entities, between[1:], strict=True))
    expected = between[0] + "".join(f" <{n}> ; {b}" for n, b in zip(names, between[1:], strict=True))
    assert redact(text, Pii()) == expected
    assert redact(expected, Pii()) == expected


def test_every_text_of_a_conversation_is_redacted_and_the_rest_is_equal() -> None:
    mail = "ada@analytical-engine.org"
    call = ToolCall("send", json.dumps({"to": [mail], "n": 3, "card": 4111111111111111}), "c1")
    messages = (
        Message("system", f"Write to {mail}."),
        Message("user", f"Mail {mail}"),
        Message("assistant", "", reasoning=f"It is {mail}.", tool_calls=(call,)),
        Message("tool", f"sent to {mail}", tool_call_id="c1"),
        Message("assistant", "Done."),
    )
    before = Row(messages, "g", "rows.jsonl:1")
    after = redact_row(before, Pii())
    assert mail not in json.dumps([m.to_turn() for m in after.messages])
    assert json.loads(after.messages[2].tool_calls[0].arguments) == {
        "to": ["<EMAIL_ADDRESS>"], "n": 3, "card": "<CREDIT_CARD>",
    }  # fmt: skip
    assert after.messages[2].reasoning == "It is <EMAIL_ADDRESS>."
    assert [m.role for m in after.messages] == [m.role for m in messages]
    assert (after.group, after.source, after.messages[4]) == ("g", "rows.jsonl:1", messages[4])


def test_both_answers_of_a_pair_and_a_judged_answer_are_redacted() -> None:
    after = redact_row(pair("Who?", "a@b.org", "c@d.org"), Pii())
    assert (after.chosen, after.rejected) == ("<EMAIL_ADDRESS>", "<EMAIL_ADDRESS>")
    judged = Labelled((Message("user", "Who?"),), "a@b.org", True, "g", "s:1")
    assert redact_row(judged, Pii()).completion == "<EMAIL_ADDRESS>"


def test_a_row_without_findings_is_the_same_row() -> None:
    arguments = '{"b":  [1, 2.50, true, null], "a": "x"}'
    message = Message("assistant", "", tool_calls=(ToolCall("f", arguments),))
    plain = Row((Message("user", CLEAN[0]), message), "g", "s:1")
    assert redact_row(plain, Pii()) == plain
    assert map_texts(plain, lambda text: text) == plain
    assert texts_of(plain) == [CLEAN[0], "", "1", "x"]


def test_report_counts_entities_and_never_quotes_them() -> None:
    rows = [row("Hi."), row("Mail a@b.org or c@d.org, call +44 20 7946 0958."), row("8.8.8.8")]
    found = personal_data(rows, Pii())
    assert [(f.index, f.reason) for f in found.findings] == [
        (1, "pii: 2 EMAIL_ADDRESS, 1 PHONE_NUMBER"),
        (2, "pii: 1 IP_ADDRESS"),
    ]
    assert found.distribution == {"EMAIL_ADDRESS": 2, "PHONE_NUMBER": 1, "IP_ADDRESS": 1}


def test_only_the_entities_asked_for_are_found_and_the_score_is_a_limit() -> None:
    text = "a@b.org or +44 20 7946 0958"
    assert [s.entity for s in spans_of(text, Pii(entities=("PHONE_NUMBER",)))] == ["PHONE_NUMBER"]
    assert [s.entity for s in spans_of(text, Pii(min_score=0.9))] == ["EMAIL_ADDRESS"]


def test_overlapping_findings_are_taken_out_whole() -> None:
    # A card number's digits also have the form of a telephone number in some region.
    text = "Card 4111111111111111."
    assert redact(text, Pii()) == "Card <CREDIT_CARD>."


def test_unknown_telephone_region_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'UK' is no region"):
        spans_of("+44 20 7946 0958", Pii(phone_regions=("UK",)))


def test_domains_are_told_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert redact("x@mail.example.co.uk", Pii()) == "<EMAIL_ADDRESS>"

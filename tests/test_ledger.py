from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from llmops.errors import InvalidEvidence
from llmops.ledger import GENESIS, Anchor, Ledger, event_hash
from llmops.settings import Workspace


@pytest.fixture
def ledger(workspace: Workspace) -> Ledger:
    ledger = Ledger.of(workspace)
    for n in range(1, 6):
        ledger.append("run.started", {"run": f"r{n}"})
    return ledger


def _database(workspace: Workspace) -> Path:
    return workspace.state / "llmops.db"


def _execute(workspace: Workspace, statement: str) -> None:
    with sqlite3.connect(_database(workspace)) as connection:
        connection.execute(statement)


def test_chain_is_the_sha256_of_each_event_on_the_one_before(ledger: Ledger) -> None:
    import hashlib

    first, second = ledger.events()[:2]
    spelled = f'{{"at":"{first.at}","body":"{{\\"run\\":\\"r1\\"}}","kind":"run.started","prev":"{GENESIS}","seq":1}}'
    assert first.hash == hashlib.sha256(spelled.encode()).hexdigest()
    assert second.prev == first.hash
    assert ledger.head() == (5, ledger.events()[-1].hash)
    assert ledger.verify() == 5


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ('UPDATE events SET body = \'{"run":"rX"}\' WHERE seq = 3', "event 3 .* was edited"),
        ("UPDATE events SET at = '2020' WHERE seq = 2", "event 2 .* was edited"),
        ("UPDATE events SET kind = 'run.failed' WHERE seq = 5", "event 5 .* was edited"),
        ("DELETE FROM events WHERE seq = 4", "event 4 is missing"),
        ("DELETE FROM events WHERE seq = 1", "event 1 is missing"),
    ],
)
def test_verify_names_the_edited_or_deleted_row(
    workspace: Workspace, ledger: Ledger, statement: str, named: str
) -> None:
    _execute(workspace, statement)
    with pytest.raises(InvalidEvidence, match=named):
        ledger.verify()


def test_row_rewritten_with_a_matching_hash_breaks_the_next_one(workspace: Workspace, ledger: Ledger) -> None:
    row = ledger.events()[2]
    forged = event_hash(3, row.at, row.kind, '{"run":"rX"}', row.prev)
    _execute(workspace, f"UPDATE events SET body='{{\"run\":\"rX\"}}', hash='{forged}' WHERE seq=3")
    with pytest.raises(InvalidEvidence, match=r"event 4 .* was edited"):
        ledger.verify()


def test_deleted_tail_is_noticed_up_to_the_newest_anchor(workspace: Workspace, ledger: Ledger) -> None:
    anchor = Anchor(4, ledger.events()[3].hash, "the release of docs")
    _execute(workspace, "DELETE FROM events WHERE seq = 5")
    assert ledger.verify([anchor]) == 4
    _execute(workspace, "DELETE FROM events WHERE seq >= 3")
    with pytest.raises(
        InvalidEvidence, match=r"ends at event 2, but the release of docs was bound to event 4"
    ):
        ledger.verify([anchor])


def test_chain_rewritten_from_the_start_disagrees_with_an_anchor(
    workspace: Workspace, ledger: Ledger
) -> None:
    anchor = Anchor(2, ledger.events()[1].hash, "the release of docs")
    _execute(workspace, "DELETE FROM events")
    for n in range(5):
        ledger.append("run.started", {"run": f"forged{n}"})
    assert ledger.verify() == 5
    with pytest.raises(InvalidEvidence, match="event 2 is not the one the release of docs was bound to"):
        ledger.verify([anchor])


def test_unknown_event_kind_is_a_programming_error(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match=r"run\.begun"):
        ledger.append("run.begun", {})  # type: ignore[arg-type]

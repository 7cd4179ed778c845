"""The reports that a session left."""

from __future__ import annotations

from llmops.records import Report
from llmops.registry.adapters import Registry


def session_reports(registry: Registry, session: str) -> list[Report]:
    """The newest report of each suite and system of a session, in the order they were first made; none: it left none.

    Raises:
        InvalidEvidence: a record is gone from the store, or altered.
    """
    newest: dict[tuple[str, str], str] = {}
    for event in registry.ledger.events("report.stored"):
        if event.body["session"] == session:
            newest[str(event.body["suite"]), str(event.body["model"])] = str(event.body["report"])
    return [registry.store.get_record(Report, digest) for digest in newest.values()]

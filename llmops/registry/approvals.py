"""Approvals: people consent to one decision, and a name moves only with as many as its gate asks for.

An approval is a record bound to the decision's and the candidate's digest and to the ledger's head; an event of the
ledger names it. The approver's name lies in the record alone. While there are no keys a name is taken at its word.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata

from sqlalchemy import Connection, select

from llmops.db import writing
from llmops.errors import BadRequest, InvalidEvidence
from llmops.ledger import Event, append_event
from llmops.records import Approval, Decision
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import now
from llmops.tables import events

MAX_NAME_CHARACTERS = 128


def find_decision(registry: Registry, reference: str) -> Decision:
    """The decision that `reference` names: `latest`, a public name (the newest about it), or the start of a digest.

    Raises:
        BadRequest: none, or more than one, answers to it.
        InvalidEvidence: its record is gone from the store, or altered.
    """
    made = registry.ledger.events("decision.made")
    found = [str(e.body["decision"]) for e in made if reference in ("latest", e.body["public_name"])][-1:]
    if not found:
        digests = dict.fromkeys(str(e.body["decision"]) for e in made)
        found = [d for d in digests if len(reference) >= 6 and d.startswith(reference)]
    if len(found) != 1:
        raise BadRequest(
            f"decision {reference}: {len(found)} decisions answer to it; give a public name, or 6 or more digits that "
            "`llmops ledger log --kind decision` lists"
        )
    return registry.store.get_record(Decision, found[0])


def approve(registry: Registry, reference: str, approver: str, reason: str | None) -> Approval:
    """Consent to a decision (`find_decision`) in the name of `approver`; durable, and in the ledger, on return.

    Raises:
        BadRequest: the decision does not pass, the name cannot be one, or its bearer has approved already.
    """
    name = approver.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise BadRequest(
            f"approver {approver[:40]!r}: give a name of 1 to {MAX_NAME_CHARACTERS} printable characters"
        )
    decision = find_decision(registry, reference)
    digest = decision.digest()
    if decision.verdict != "PASS":
        raise BadRequest(
            f"approve {short(digest)}: the gate said {decision.verdict} about {short(decision.candidate)}; only a PASS "
            "can be approved"
        )
    with registry.ledger.engine.connect() as connection:
        _refuse_twice(connection, digest, name)
    seq, head = registry.ledger.head()
    approval = Approval(digest, decision.candidate, name, reason, seq, head, now())
    body = {
        "approval": registry.store.put_record(approval),
        "decision": digest,
        "candidate": decision.candidate,
        "approver_sha256": _sha256(name),
    }
    with writing(registry.ledger.engine) as connection:
        _refuse_twice(connection, digest, name)  # again, under the lock: two processes in the same name
        append_event(connection, "approval.given", body)
    return approval


def approvals_of(registry: Registry, decision: str) -> list[Approval]:
    """The approvals of a decision (digest), one a person, oldest first, each checked against its event.

    Raises:
        InvalidEvidence: a record is gone or altered, or is not about this decision.
    """
    about = [e for e in registry.ledger.events("approval.given") if e.body["decision"] == decision]
    people: dict[str, Approval] = {}
    for event in about:
        people.setdefault(str(event.body["approver_sha256"]), _verified(registry, event))
    return list(people.values())


def verify_approvals(registry: Registry, digests: tuple[str, ...], decision: Decision) -> None:
    """Check that these approvals (digests) are consent to exactly this decision, from as many people as it asks for.

    Raises:
        InvalidEvidence: one is gone, altered, about something else or not in the ledger, or people are too few.
    """
    wanted = decision.digest()
    given = {str(e.body["approval"]): e for e in registry.ledger.events("approval.given")}
    people = set()
    for digest in digests:
        if digest not in given:
            raise InvalidEvidence(f"approval {short(digest)}: is not in the ledger; restore the database")
        approval = _verified(registry, given[digest])
        if (approval.decision, approval.candidate) != (wanted, decision.candidate):
            raise InvalidEvidence(
                f"approval {short(digest)}: is of decision {short(approval.decision)} about "
                f"{short(approval.candidate)}, not {short(wanted)} about {short(decision.candidate)}; promote again"
            )
        people.add(_sha256(approval.approver))
    if len(people) < decision.n_approvals or len(people) != len(digests):
        raise InvalidEvidence(
            f"decision {short(wanted)}: asks for {decision.n_approvals} approvals and carries {len(digests)} of "
            f"{len(people)} people; run `llmops approve {short(wanted)}`, then promote again"
        )


def _verified(registry: Registry, event: Event) -> Approval:
    body = event.body
    approval = registry.store.get_record(Approval, str(body["approval"]))
    said = (approval.decision, approval.candidate, _sha256(approval.approver))
    if said != (body["decision"], body["candidate"], body["approver_sha256"]):
        raise InvalidEvidence(
            f"approval {short(str(body['approval']))}: does not say what event {event.seq} says of it; restore it"
        )
    return approval


def _refuse_twice(connection: Connection, decision: str, name: str) -> None:
    query = select(events.c.body).where(events.c.kind == "approval.given")
    bodies = [json.loads(row.body) for row in connection.execute(query)]
    if any((b["decision"], b["approver_sha256"]) == (decision, _sha256(name)) for b in bodies):
        raise BadRequest(f"approve {short(decision)}: {name} has approved already; another person is needed")


def _sha256(approver: str) -> str:
    """One digest for every spelling of a name that differs in case, width or outer spaces alone."""
    return hashlib.sha256(unicodedata.normalize("NFKC", approver).strip().casefold().encode()).hexdigest()

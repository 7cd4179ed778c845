"""Gates are declared before the question: name and digest in the ledger, so that nobody moves a margin afterwards.

`llmops eval` declares every gate of the workspace before it asks anything; a decision by a gate that was first declared
after its reports began is INVALID.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from llmops.errors import ConfigError
from llmops.evals.gate.config import GateConfig, load_gate
from llmops.ledger import Ledger
from llmops.schema import short
from llmops.settings import Workspace

log = logging.getLogger("llmops.evals")


def declare_gates(workspace: Workspace, ledger: Ledger, named: Iterable[Path] = ()) -> dict[str, GateConfig]:
    """Write name and digest of every gate in `evals/gates/`, and of those named, into the ledger; by digest.

    A digest that was declared before is not written again. A file of the folder that is no gate is told of and passed
    over.

    Raises:
        ConfigError: a named file is no gate.
    """
    gates = {gate.digest: gate for gate in map(load_gate, named)}
    for path in sorted(workspace.gates.glob("*.yaml")):
        try:
            gate = load_gate(path)
        except ConfigError as error:
            log.warning("not declared, and cannot decide about this evaluation: %s", error)
            continue
        gates[gate.digest] = gate
    known = {str(e.body["digest"]) for e in ledger.events("gate.declared")}
    for digest, gate in gates.items():
        if digest not in known:
            body = {"gate": gate.name, "digest": digest, "public_name": gate.public_name}
            ledger.append("gate.declared", body)
    return gates


def declared_at(ledger: Ledger, digest: str) -> int | None:
    """Number of the event by which a gate was first declared; None when it never was."""
    events = [e.seq for e in ledger.events("gate.declared") if e.body["digest"] == digest]
    return events[0] if events else None


def began_at(ledger: Ledger, session: str) -> int | None:
    """Number of the event with which an evaluation session began; None when the ledger does not know it."""
    events = ledger.events("run.started", "report.stored")
    return next((e.seq for e in events if session in (e.body.get("run"), e.body.get("session"))), None)


def declaration_fault(ledger: Ledger, gate: GateConfig, sessions: Iterable[str]) -> list[str]:
    """Why the gate may not decide about sessions: it was changed, or written, after one began; empty when it may."""
    declared = declared_at(ledger, gate.digest)
    for session in sessions:
        began = began_at(ledger, session)
        if began is None:
            return [
                f"session {session} is not in the ledger: whether the gate was declared before it cannot be told"
            ]
        if declared is None or declared > began:
            earlier = any(
                e.body["gate"] == gate.name and e.seq < began for e in ledger.events("gate.declared")
            )
            what = "was changed after the run" if earlier else "was not declared before the run"
            return [f"gate {gate.name}@{short(gate.digest)} {what} (session {session}); evaluate again"]
    return []

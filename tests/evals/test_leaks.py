"""Whether cases were trained on is asked of everything behind an adapter's weights, and never guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmops.data import find_snapshot
from llmops.evals.evidence import leak_fault
from llmops.evals.gate import check_gate
from llmops.evals.suite import load_suite
from llmops.ratings.preferences import DroppedItem, put_preferences
from llmops.records import AdapterRecord, Case, Lineage, Preference, PreferenceSnapshot
from llmops.registry.adapters import NewAdapter
from tests.evals.conftest import Room, build_questions, write_adapter
from tests.evidence import LINEAGE, NO_PROBES


def trained(room: Room, name: str, seed: int, lineage: Lineage) -> AdapterRecord:
    folder = room.folder / f"{name}-{seed}"
    if not folder.exists():
        write_adapter(folder, seed)
    return room.registry.register(
        NewAdapter(name, folder, room.base, room.base.contract, NO_PROBES, lineage, {})
    )


def cases(room: Room) -> list[Case]:
    return list(load_suite(room.suite(), room.registry).cases)


def leaky_dataset(room: Room) -> str:
    """A snapshot of the same questions whose train pool holds some of the suite's cases."""
    build_questions(room.workspace, room.registry, 300, salt="other")
    digest = find_snapshot(room.registry.store, room.registry.ledger, "questions").digest()
    build_questions(room.workspace, room.registry, 300)
    return digest


def preferences(room: Room, asked: list[Case]) -> str:
    """A snapshot of one pair for each of these cases; the suite's last case is among those dropped."""
    pairs = [
        Preference(case.messages, "good", "bad", case.group, case.source, "1" * 64, ("2" * 64,))
        for case in asked
    ]
    dropped = [DroppedItem("3" * 64, cases(room)[-1].source, "tie")]
    snapshot = PreferenceSnapshot(
        "prefs", put_preferences(room.registry.store, pairs, dropped), "4" * 64, None, len(pairs), {"tie": 1},
        "rule", "CC0-1.0", "2026-01-01T00:00:00.000Z",
    )  # fmt: skip
    return room.registry.store.put_record(snapshot)


def fault(room: Room, record: AdapterRecord) -> str:
    found = leak_fault(room.registry, record, cases(room))
    assert len(found) <= 1
    return found[0] if found else ""


def test_prompts_of_preferences_are_training_data(room: Room) -> None:
    three = cases(room)[:3]
    lineage = replace(LINEAGE, origin="trained", preferences=preferences(room, three))
    assert fault(room, trained(room, "dpo", 2, lineage)) == (
        "3 of 100 cases stand in the adapter's training data"
    )


def test_what_an_ancestor_was_trained_on_counts_however_far_back(room: Room) -> None:
    first = trained(room, "sft", 2, replace(LINEAGE, origin="trained", dataset=leaky_dataset(room)))
    alone = fault(room, first)
    assert "of 100 cases stand in the adapter's training data" in alone
    second = trained(room, "dpo", 3, replace(LINEAGE, origin="trained", continues=first.adapter))
    third = trained(room, "dpo", 4, replace(LINEAGE, origin="trained", continues=second.adapter))
    assert fault(room, second) == fault(room, third) == alone


def test_importing_the_same_weights_again_does_not_hide_what_they_learnt(room: Room) -> None:
    lineage = replace(LINEAGE, origin="trained", preferences=preferences(room, cases(room)[:7]))
    trained(room, "dpo", 2, lineage)
    imported = trained(room, "dpo", 2, LINEAGE)
    assert fault(room, imported).startswith("7 of 100 cases")
    heir = trained(room, "heir", 3, replace(LINEAGE, origin="trained", continues=imported.adapter))
    assert fault(room, heir).startswith("7 of 100 cases")


def test_other_prompts_are_no_leak_along_the_whole_way(room: Room) -> None:
    own = find_snapshot(room.registry.store, room.registry.ledger, "questions").digest()
    first = trained(room, "sft", 2, replace(LINEAGE, origin="trained", dataset=own))
    prefs = preferences(room, [])
    lineage = replace(LINEAGE, origin="trained", preferences=prefs, continues=first.adapter)
    assert fault(room, trained(room, "dpo", 3, lineage)) == ""


def test_adapter_that_claims_to_continue_itself_ends_the_walk(room: Room) -> None:
    first = trained(room, "sft", 2, LINEAGE)
    assert fault(room, trained(room, "sft", 2, replace(LINEAGE, continues=first.adapter))) == ""


def lost_parent(room: Room) -> Lineage:
    return replace(LINEAGE, origin="trained", continues="9" * 64)


def lost_preferences(room: Room) -> Lineage:
    return replace(LINEAGE, origin="trained", preferences="9" * 64)


def altered_preferences(room: Room) -> Lineage:
    digest = preferences(room, [])
    (folder,) = Path(room.registry.store.root / "preferences").iterdir()
    (folder / "pairs.jsonl").chmod(0o644)
    (folder / "pairs.jsonl").write_text("{}\n")
    return replace(LINEAGE, origin="trained", preferences=digest)


def lost_lineage_of_the_parent(room: Room) -> Lineage:
    parent = trained(room, "sft", 8, replace(LINEAGE, seeds={"data": 8}))
    (room.registry.store.path("lineage_record", parent.lineage) / "manifest.json").unlink()
    return replace(LINEAGE, origin="trained", continues=parent.adapter)


@pytest.mark.parametrize(
    "make", [lost_parent, lost_preferences, altered_preferences, lost_lineage_of_the_parent]
)
def test_ancestry_that_cannot_be_read_is_no_evidence(room: Room, make: object) -> None:
    lineage = make(room)  # type: ignore[operator]
    trained(room, "heir", 5, lineage)
    room.run(room.serve(lambda model, prompt, nth: f"{model} says {prompt}"))
    decision = check_gate(room.gate(), room.workspace)
    assert decision.verdict == "INVALID"
    assert any("whether cases were trained on cannot be checked" in reason for reason in decision.reasons)

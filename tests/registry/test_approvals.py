"""Approvals: one a person, bound to one decision; releases carry them and fall with them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llmops.errors import ApprovalsMissing, BadRequest, InvalidEvidence, ReleaseRefused
from llmops.ledger import Ledger
from llmops.records import AdapterRecord, Approval, EngineSignature, Release
from llmops.registry.adapters import Registry
from llmops.registry.approvals import approvals_of, approve, find_decision
from llmops.registry.bases import resolve_base
from llmops.registry.names import name_state, release_anchors
from llmops.registry.release_checks import verify_release
from llmops.registry.releases import request_override, request_promotion, request_rollback
from llmops.settings import Workspace
from tests.evidence import activate, copy_with_other_weights, decide, engine_of, register
from tests.registry.consent import decide_with


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry.of(workspace)


@pytest.fixture
def adapters(registry: Registry, tiny_model: Path, tiny_adapter: Path, tmp_path: Path) -> list[AdapterRecord]:
    base = resolve_base(str(tiny_model))
    other = copy_with_other_weights(tiny_adapter, tmp_path / "second", 2.0)
    return [register(registry, base, tiny_adapter), register(registry, base, other)]


@pytest.fixture
def engine(tiny_model: Path) -> EngineSignature:
    return engine_of(resolve_base(str(tiny_model)))


# ---------------------------------------------------------------- giving


def test_approval_is_bound_to_decision_candidate_and_ledger_and_its_event_holds_no_name(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decision = decide_with(registry, adapters[0], engine, 1)
    head = registry.ledger.head()
    approval = approve(registry, "docs", " ann ", "read them all")
    assert (approval.decision, approval.candidate) == (decision.digest(), adapters[0].adapter)
    assert (approval.approver, approval.reason) == ("ann", "read them all")
    assert (approval.ledger_seq, approval.ledger_head) == head
    body = registry.ledger.events("approval.given")[-1].body
    assert (
        body
        == {
            "approval": approval.digest(),
            "decision": decision.digest(),
            "candidate": adapters[0].adapter,
            "approver_sha256": "49915e0d7d4b402e3017d010bc1c0e83cac6c797d6c16e66340fe3268693a6a1",  # sha256sum of `ann`
        }
    )
    assert approvals_of(registry, decision.digest()) == [approval]


@pytest.mark.parametrize("again", ["ann", "Ann", "ann ", "\uff41nn"])
def test_one_person_approves_a_decision_once_however_the_name_is_spelt(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature, again: str
) -> None:
    decision = decide_with(registry, adapters[0], engine, 2)
    approve(registry, "latest", "ann", None)
    with pytest.raises(BadRequest, match="has approved already"):
        approve(registry, "latest", again, None)
    assert len(approvals_of(registry, decision.digest())) == 1
    assert len(registry.store.digests("approval_record")) == 1


def test_processes_that_approve_at_once_in_one_name_leave_one_approval(
    workspace: Workspace, registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decision = decide_with(registry, adapters[0], engine, 2)
    children = [start(workspace, "approve", "--as", "ann") for _ in range(3)]
    codes = sorted(child.wait(120) for child in children)
    assert codes == [0, 2, 2]
    assert len(approvals_of(registry, decision.digest())) == 1
    assert len(registry.ledger.events("approval.given")) == 1


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "INVALID"])
def test_only_a_pass_can_be_approved(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature, verdict: str
) -> None:
    decide(registry, adapters[0], engine, verdict=verdict)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=f"the gate said {verdict}"):
        approve(registry, "latest", "ann", None)
    assert registry.ledger.events("approval.given") == []


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 129])
def test_what_is_no_name_cannot_approve(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature, name: str
) -> None:
    decide_with(registry, adapters[0], engine, 1)
    with pytest.raises(BadRequest, match="give a name of 1 to 128 printable characters"):
        approve(registry, "latest", name, None)


def test_decision_is_found_by_latest_public_name_and_start_of_its_digest(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    old = decide_with(registry, adapters[0], engine, 1)
    new = decide_with(registry, adapters[1], engine, 1)
    other, _ = decide(registry, adapters[0], engine, public_name="other")
    assert find_decision(registry, "latest") == find_decision(registry, "other") == other
    assert find_decision(registry, "docs") == new
    assert find_decision(registry, old.digest()[:12]) == old
    for wrong in ("nobody", old.digest()[:5], "0" * 12):
        with pytest.raises(BadRequest, match="0 decisions answer to it"):
            find_decision(registry, wrong)


# ---------------------------------------------------------------- promoting


def test_promotion_is_inconclusive_until_as_many_people_as_asked_for_have_approved(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decision = decide_with(registry, adapters[0], engine, 2)
    with pytest.raises(ApprovalsMissing, match="has 0 of 2 approvals; run `llmops approve ") as caught:
        request_promotion(registry, "docs", engine)
    assert (caught.value.exit_code, caught.value.decision) == (3, decision.digest())
    first = approve(registry, "docs", "ann", None)
    with pytest.raises(ApprovalsMissing, match=r"has 1 of 2 approvals \(ann\); another person runs"):
        request_promotion(registry, "docs", engine)
    assert registry.ledger.events("release.requested") == []
    second = approve(registry, "docs", "bob", None)
    approve(registry, "docs", "cat", None)
    _, release = request_promotion(registry, "docs", engine)
    assert release.approvals == (first.digest(), second.digest())


def test_approvals_of_an_older_decision_do_not_carry_a_newer_one(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    old = decide_with(registry, adapters[0], engine, 1)
    approve(registry, "docs", "ann", None)
    decide_with(registry, adapters[0], engine, 1)
    with pytest.raises(ApprovalsMissing):
        request_promotion(registry, "docs", engine)
    with pytest.raises(ReleaseRefused, match="is newer than"):
        request_promotion(registry, "docs", engine, old.digest())


def test_decision_that_does_not_pass_is_refused_before_anyone_is_asked(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decision = replace(decide_with(registry, adapters[0], engine, 1), verdict="FAIL")
    body = {"decision": registry.store.put_record(decision), "public_name": "docs", "verdict": "FAIL"}
    registry.ledger.append("decision.made", {**body, "candidate": adapters[0].adapter})
    with pytest.raises(ReleaseRefused, match="said FAIL") as caught:
        request_promotion(registry, "docs", engine)
    assert caught.value.exit_code == 1


def champion(registry: Registry) -> Release:
    found = name_state(registry, "docs").champion
    assert found is not None
    return found


def released(
    registry: Registry, adapter: AdapterRecord, engine: EngineSignature, rated: bool = False
) -> Release:
    decide_with(registry, adapter, engine, 2, rated)
    approve(registry, "docs", "ann", None)
    approve(registry, "docs", "bob", None)
    activate(registry, request_promotion(registry, "docs", engine)[0])
    return champion(registry)


def test_rollback_carries_the_approvals_of_the_release_it_returns_to(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    first = released(registry, adapters[0], engine)
    decide(registry, adapters[1], engine, baseline=adapters[0].adapter)
    activate(registry, request_promotion(registry, "docs", engine)[0])
    assert champion(registry).approvals == ()
    event, back = request_rollback(registry, "docs", None)
    assert back.approvals == first.approvals
    assert verify_release(registry, back).adapter == adapters[0].adapter
    activate(registry, event)


def test_override_needs_no_approval(registry: Registry, adapters: list[AdapterRecord]) -> None:
    _, release = request_override(registry, "docs", adapters[0], "champion leaks prompts")
    assert release.approvals == ()


# ---------------------------------------------------------------- failing closed


def test_lost_approval_fails_closed(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    release = released(registry, adapters[0], engine)
    shutil.rmtree(registry.store.path("approval_record", release.approvals[0]))
    with pytest.raises(InvalidEvidence, match=f"approval_record {release.approvals[0][:12]} is gone"):
        verify_release(registry, release)


def test_lost_approval_refuses_the_promotion_it_was_given_for(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decide_with(registry, adapters[0], engine, 1)
    approval = approve(registry, "docs", "ann", None)
    shutil.rmtree(registry.store.path("approval_record", approval.digest()))
    with pytest.raises(InvalidEvidence, match="approval_record"):
        request_promotion(registry, "docs", engine)


def test_changed_approval_fails_closed(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    release = released(registry, adapters[0], engine)
    path = registry.store.path("approval_record", release.approvals[1]) / "record.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"bob"', b'"cat"'))
    with pytest.raises(InvalidEvidence, match="was changed after it was stored"):
        verify_release(registry, release)


def test_approvals_that_are_not_the_decisions_own_are_refused(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    release = released(registry, adapters[0], engine)
    first, second = release.approvals
    later = decide_with(registry, adapters[1], engine, 2)
    elsewhere = approve(registry, "docs", "cat", None)
    assert elsewhere.decision == later.digest()
    told = Approval(str(release.decision), release.adapter, "dan", None, 0, "0" * 64, "now")
    untold = registry.store.put_record(told)
    for approvals, why in (
        ((first, elsewhere.digest()), "is of decision"),
        ((first,), "asks for 2 approvals and carries 1"),
        ((first, first), "carries 2 of 1 people"),
        ((), "carries 0"),
        ((first, untold), "is not in the ledger"),
    ):
        with pytest.raises(InvalidEvidence, match=why):
            verify_release(registry, replace(release, approvals=approvals))
    assert verify_release(registry, replace(release, approvals=(second, first)))


def test_event_that_says_other_than_its_record_is_refused(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decision = decide_with(registry, adapters[0], engine, 2)
    approval = approve(registry, "docs", "ann", None)
    body = {
        "approval": approval.digest(), "decision": decision.digest(), "candidate": decision.candidate,
        "approver_sha256": "0" * 64,
    }  # fmt: skip
    registry.ledger.append("approval.given", body)
    with pytest.raises(InvalidEvidence, match="does not say what event"):
        request_promotion(registry, "docs", engine)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE ratings SET choice = 'tie' WHERE number = 2", "#2 was changed"),
        ("DELETE FROM ratings WHERE number = 4", "#4 is missing"),
        ("UPDATE showings SET left = 1 - left", "the showing of #1 was changed"),
    ],
)
def test_release_on_votes_falls_with_a_touched_rating(
    workspace: Workspace,
    registry: Registry,
    adapters: list[AdapterRecord],
    engine: EngineSignature,
    statement: str,
    why: str,
) -> None:
    release = released(registry, adapters[0], engine, rated=True)
    assert verify_release(registry, release)
    with sqlite3.connect(workspace.state / "llmops.db") as connection:
        connection.execute(statement)
    with pytest.raises(InvalidEvidence, match=f"release docs: ratings: {why}"):
        verify_release(registry, release)


@pytest.mark.parametrize("kind", ["votes", "items", "campaign_record"])
def test_release_on_votes_falls_with_a_lost_file_of_theirs(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature, kind: str
) -> None:
    release = released(registry, adapters[0], engine, rated=True)
    (digest,) = registry.store.digests(kind)
    shutil.rmtree(registry.store.path(kind, digest))
    with pytest.raises(InvalidEvidence, match=f"{kind} {digest[:12]} is gone"):
        verify_release(registry, release)


def test_frozen_votes_must_be_ratings_of_the_campaign(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    from llmops.ratings.frozen import verify_votes

    ratings = decide_with(registry, adapters[0], engine, rated=True).ratings
    assert ratings is not None
    verify_votes(registry.store, registry.ledger, ratings)
    text = (registry.store.path("votes", ratings.votes) / "votes.jsonl").read_bytes()
    for changed in (text.replace(b'"first"', b'"second"', 1), text.replace(b'"rating":"', b'"rating":"0', 1)):
        assert changed != text
        forged = replace(ratings, votes=registry.store.put_files("votes", {"votes.jsonl": changed}))
        with pytest.raises(InvalidEvidence, match="is not among the campaign's ratings"):
            verify_votes(registry.store, registry.ledger, forged)


def test_champion_whose_approval_was_lost_earns_new_evidence_in_its_place(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    release = released(registry, adapters[0], engine)
    decide_with(registry, adapters[0], engine, 1)
    with pytest.raises(BadRequest, match="is the champion already"):
        request_promotion(registry, "docs", engine)
    shutil.rmtree(registry.store.path("approval_record", release.approvals[0]))
    approve(registry, "docs", "ann", None)
    activate(registry, request_promotion(registry, "docs", engine)[0])
    assert verify_release(registry, champion(registry))
    assert [r.adapter for r in name_state(registry, "docs").history] == [adapters[0].adapter]


def test_approvals_anchor_the_ledger_outside_the_database(
    workspace: Workspace, registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decision = decide_with(registry, adapters[0], engine, 1)
    approval = approve(registry, "docs", "ann", None)
    (anchor,) = release_anchors(registry.store)
    assert (anchor.seq, anchor.hash) == (approval.ledger_seq, approval.ledger_head)
    with sqlite3.connect(workspace.state / "llmops.db") as connection:
        connection.execute(f"DELETE FROM events WHERE seq >= {anchor.seq}")
    with pytest.raises(InvalidEvidence, match=f"the approval of decision {decision.digest()[:12]} at "):
        Ledger.of(workspace).verify([anchor])


# ---------------------------------------------------------------- the command line


def start(workspace: Workspace, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmops.cli", *arguments]
    return subprocess.Popen(
        command, cwd=workspace.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_promote_waits_for_the_approval_that_another_process_gives_and_goes_on(
    workspace: Workspace, registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decide_with(registry, adapters[0], engine, 1)
    waiting = start(workspace, "release", "promote", "docs", "--wait", "120")
    assert waiting.stderr is not None
    with ThreadPoolExecutor(1) as reader:
        line = reader.submit(waiting.stderr.readline).result(100)
    assert "waits" in line
    assert "has 0 of 1 approvals" in line
    approved = start(workspace, "approve", "docs", "--as", "ann", "--json")
    out, err = approved.communicate(timeout=100)
    assert approved.returncode == 0, err
    out_promoted, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, err
    assert f"docs -> {adapters[0].model_name}" in out_promoted
    release = registry.store.get_record(
        Release, str(registry.ledger.events("release.requested")[-1].body["release"])
    )
    assert release.approvals == (json.loads(out)["approval"],)


def test_promote_that_waited_in_vain_ends_with_3(
    workspace: Workspace, registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decide_with(registry, adapters[0], engine, 1)
    child = start(workspace, "release", "promote", "docs", "--wait", "0.5")
    _, err = child.communicate(timeout=100)
    assert child.returncode == 3
    assert err.splitlines()[-1].startswith("error: release docs: decision ")
    assert registry.ledger.events("release.requested") == []


def test_decision_that_comes_while_one_waits_is_not_promoted_in_its_place(
    workspace: Workspace, registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decide_with(registry, adapters[0], engine, 1)
    waiting = start(workspace, "release", "promote", "docs", "--wait", "120")
    assert waiting.stderr is not None
    with ThreadPoolExecutor(1) as reader:
        assert "waits" in reader.submit(waiting.stderr.readline).result(100)
    decide(registry, adapters[1], engine)
    _, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 4
    assert "is newer than" in err
    assert registry.ledger.events("release.requested") == []

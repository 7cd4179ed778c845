"""Two gateways on one PostgreSQL: one leads, the other follows, and both have one route table on engines of their own.

The product's own polls are in force. Both run in this process, each with its workspace and scripted engine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmops.db import open_database
from llmops.records import RolloutEvidence
from llmops.registry.adapters import Registry
from llmops.registry.releases import request_override
from llmops.registry.rollouts import RolloutState
from llmops.serving.seat import CALLED, seated
from llmops.settings import Workspace, find_workspace
from tests.serving.gateway import wait_for
from tests.serving.staged import (
    Staged,
    make_workspace,
    release_first,
    running_gateway,
    scripted_engines,
)
from tests.storage.backends import execute_on_server
from tests.storage.conftest import database, postgres_uri

__all__ = ["database", "postgres_uri"]

pytestmark = pytest.mark.walk
REASON = "written for this test"
AGREE_S = 2.0


@dataclass
class Two:
    """The gateway that led first, and the one that followed."""

    leader: Staged
    follower: Staged

    def agree(self) -> dict[str, dict[str, str]]:
        """What both say of twelve users within 2 s: version, arm, model and lineage are the same."""
        deadline = time.monotonic() + AGREE_S
        while True:
            found = told(self.leader), told(self.follower)
            if found[0] == found[1]:
                return found[0]
            assert time.monotonic() < deadline, found

    def aborted(self) -> list[Any]:
        return self.leader.registry.ledger.events("rollout.aborted")


def told(gateway: Staged) -> dict[str, dict[str, str]]:
    """By user the headers that say who answered and on what that stands."""
    names = ("x-llmops-route-version", "x-llmops-arm", "x-llmops-model", "x-llmops-lineage")
    answers = {f"user{i}": gateway.chat(user=f"user{i}") for i in range(12)}
    assert {answer.status_code for answer in answers.values()} == {200}
    return {user: {name: answer.headers[name] for name in names} for user, answer in answers.items()}


def of(found: dict[str, dict[str, str]], header: str) -> set[str]:
    """The values of one header."""
    return {said[f"x-llmops-{header}"] for said in found.values()}


def beside(root: Path, first: Workspace) -> Workspace:
    """Another workspace on the same database and store."""
    root.mkdir()
    (root / "llmops.yaml").write_text("name: test\n")
    found = find_workspace(root)
    found.state.mkdir(exist_ok=True)
    found.store_root.symlink_to(first.store_root)
    return found


@contextmanager
def two_gateways(tmp_path: Path) -> Iterator[Two]:
    """Two workspaces that share a store, as pods share a volume."""
    roots = [tmp_path / name for name in ("one", "two")]
    roots[0].mkdir()
    workspace, base, adapters = make_workspace(roots[0])
    release_first(workspace, base, adapters)
    other = beside(roots[1], workspace)
    with ExitStack() as stack:
        stack.enter_context(scripted_engines(base))
        leader = stack.enter_context(running_gateway(workspace, base, adapters))
        follower = stack.enter_context(running_gateway(other, base, adapters))
        yield Two(leader, follower)


@pytest.fixture
def two(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    monkeypatch.setenv("LLMOPS_DATABASE_URL", database)
    with two_gateways(tmp_path) as found:
        yield found


def leads(gateway: Staged) -> bool:
    return bool(gateway.client.get(f"{gateway.url}/llmops/status").json()["gateway"]["leads"])


def canary(two: Two, plan: str = "steps: [0.5]\n", adapter: int = 1) -> None:
    """Begin a canary from the follower's workspace, on a decision."""
    two.leader.decided(two.leader.adapters[adapter])
    path = two.follower.workspace.root / "canary.yaml"
    path.write_text(plan)
    words = ("rollout", "canary", "docs", "--adapter", f"docs{adapter}", "--plan", str(path))
    assert "(event" in two.follower.done(*words)


def test_both_tables_agree_within_two_seconds_of_every_move(two: Two) -> None:
    first, second, third = two.leader.adapters
    assert (leads(two.leader), leads(two.follower)) == (True, False)
    assert of(two.agree(), "model") == {first.adapter}

    out = two.follower.done("release", "override", "docs", "--adapter", "docs2", "--reason", REASON)
    assert "override, event" in out, "a workspace whose own gateway follows waits for the leader's answer"
    moved = two.agree()
    assert (of(moved, "model"), of(moved, "route-version")) == ({third.adapter}, {"2"})

    canary(two)
    shared = two.agree()
    assert (of(shared, "arm"), of(shared, "route-version")) == ({"canary", "champion"}, {"3"})
    assert of(shared, "model") == {second.adapter, third.adapter}

    two.leader.done("rollout", "abort", "docs", "--reason", "it rambles")
    after = two.agree()
    assert (of(after, "arm"), of(after, "route-version")) == ({"champion"}, {"4"})

    two.leader.done("release", "rollback", "docs")
    back = two.agree()
    assert (of(back, "model"), of(back, "route-version")) == ({first.adapter}, {"5"})
    events = two.leader.registry.ledger.events("release.activated", "rollout.started", "rollout.aborted")
    assert len(events) == 5, "each was decided once"


def test_a_step_up_is_taken_over_and_users_stay_where_they_were(two: Two) -> None:
    from tests.serving.test_rollouts import thumbs

    champion, second, _ = two.leader.adapters
    rules = "votes: {looks: [20, 40], margin: 0.2}\nslo: {min_requests: 20, max_error_share: 0.1}\n"
    canary(two, f"steps: [0.3, 0.7]\n{rules}")
    before = two.agree()
    for i in range(60):  # a window is whole with 20 of each, at both together
        for gateway in (two.leader, two.follower):
            gateway.chat(user=f"window{i}")
    source = thumbs(champion.adapter, second.adapter, liked=1.0, n=20)
    two.leader.gateway.control.rollouts.controller.source = source
    wait_for(lambda: two.leader.registry.ledger.events("rollout.stepped"))
    after = two.agree()
    assert of(after, "route-version") == {"3"}
    stayed = [user for user, said in before.items() if said["x-llmops-arm"] == "canary"]
    assert all(after[user]["x-llmops-arm"] == "canary" for user in stayed)


def test_canary_is_aborted_on_the_sum_of_what_both_gateways_saw(two: Two) -> None:
    """A window needs 40 of each; either gateway alone sees fewer of the canary's."""
    canary(two, "steps: [0.5]\nslo: {min_requests: 40, max_error_share: 0.05}\n")
    users = two.agree()
    name = two.leader.adapters[1].model_name
    for gateway in (two.leader, two.follower):
        gateway.engine.failing.add(name)
    ours = [user for user, said in users.items() if said["x-llmops-arm"] == "canary"]
    theirs = [user for user, said in users.items() if said["x-llmops-arm"] == "champion"]
    for gateway in (two.leader, two.follower):
        for group in (ours, theirs):
            for i in range(25):
                gateway.chat(user=group[i % len(group)])
    wait_for(two.aborted)
    event = two.aborted()[0]
    evidence = two.leader.registry.store.get_record(RolloutEvidence, event.body["evidence"])
    failed = next(arm for arm in evidence.arms if arm.arm == "canary")
    assert failed.n_requests >= 40
    assert failed.n_errors <= 50
    assert of(two.agree(), "arm") == {"champion"}
    assert len(two.aborted()) == 1


def test_follower_that_is_silent_is_missing_data_and_aborts_nothing(two: Two) -> None:
    canary(two, "steps: [0.5]\nslo: {min_requests: 40, max_error_share: 0.05}\n")
    users = two.agree()
    two.follower.end()
    two.leader.engine.failing.add(two.leader.adapters[1].model_name)
    ours = [user for user, said in users.items() if said["x-llmops-arm"] == "canary"]
    for i in range(20):
        assert two.leader.chat(user=ours[i % len(ours)]).status_code >= 500
    wait_for(lambda: counted(two.leader) >= 20)
    looked = two.leader.gateway.control.rollouts
    judge, judged = looked.controller.judge, []

    async def counting(state: RolloutState) -> Any:
        judged.append(state)
        return await judge(state)

    looked.controller.judge = counting  # type: ignore[method-assign]
    wait_for(lambda: len(judged) > 2)
    assert (two.aborted(), looked.status("docs")[0]["share"]) == ([], 0.5)


def counted(gateway: Staged) -> int:
    """The canary's requests in the running window."""
    window = gateway.gateway.control.rollouts.status("docs")[0]["window"]
    return sum(arm["n_requests"] for arm in window if arm["arm"] == "canary")


def test_follower_carries_on_when_the_leader_ends(two: Two) -> None:
    canary(two)
    before = two.agree()
    two.leader.end()
    wait_for(lambda: leads(two.follower))
    assert told(two.follower) == before
    [only] = seated(two.follower.workspace.database_url)
    assert (only.leads, f"process {os.getpid()} on" in only.who) == (True, True)
    assert f"gateways   {only.who} (leads)" in two.follower.done("status")
    two.follower.done("rollout", "abort", "docs", "--reason", "it rambles")
    two.follower.done("release", "override", "docs", "--adapter", "docs2", "--reason", REASON)
    found = told(two.follower)
    assert (of(found, "model"), of(found, "route-version")) == ({two.leader.adapters[2].adapter}, {"4"})
    metrics = two.follower.client.get(f"{two.follower.url}/metrics").text
    assert "llmops_gateway_leads 1.0" in metrics


LEADER = """
import sys, time
from pathlib import Path
from tests.serving.staged import make_workspace, release_first, running_gateway, scripted_engines
workspace, base, adapters = make_workspace(Path(sys.argv[1]))
release_first(workspace, base, adapters)
with scripted_engines(base), running_gateway(workspace, base, adapters) as gateway:
    print(gateway.url, flush=True)
    time.sleep(600)
"""


def test_follower_of_a_killed_leader_settles_what_that_left_unanswered(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOPS_DATABASE_URL", database)
    root = tmp_path / "one"
    root.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", LEADER, str(root)], stdout=subprocess.PIPE, text=True
    ) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline().startswith("http://")
        workspace, base, adapters = make_workspace(root)
        registry = Registry.of(workspace)
        with (
            scripted_engines(base),
            running_gateway(beside(tmp_path / "two", workspace), base, adapters) as follower,
        ):
            assert not leads(follower)
            leader.send_signal(signal.SIGSTOP)
            event, _ = request_override(registry, "docs", adapters[2], REASON)
            leader.kill()
            answer = wait_for(lambda: registry.ledger.events("release.activated", after=event.seq))
            assert leads(follower)
            assert [one.body["adapter"] for one in answer] == [adapters[2].adapter]
            assert of(told(follower), "model") == {adapters[2].adapter}


def test_leader_whose_session_the_database_ends_decides_nothing_and_follows(
    two: Two, database: str, postgres_uri: str
) -> None:
    """As after a restart of the server, or when the network was away: somebody else may lead."""
    execute = execute_on_server(database)
    held = "pid = (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 511702002)"
    two.leader.gateway.control.seat.renew = lambda: None  # type: ignore[method-assign]  # it notices nothing
    execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '{CALLED}%' AND {held}"
    )
    wait_for(lambda: leads(two.follower))
    with pytest.raises(Exception, match="does not lead"):
        two.leader.gateway.control.names.tell("release.refused", {"release": "x", "reason": "y"})
    two.leader.done("release", "override", "docs", "--adapter", "docs2", "--reason", REASON)
    wait_for(lambda: of(told(two.follower), "model") == {two.leader.adapters[2].adapter})
    two.follower.done("release", "override", "more", "--adapter", "docs1", "--reason", REASON)
    read = two.leader.registry.ledger.events("release.requested")[-1].seq
    wait_for(lambda: two.leader.gateway.control._last_seq >= read)  # beyond what was decided about the first
    events = two.leader.registry.ledger.events("release.activated", "release.refused")
    assert [event.kind for event in events] == ["release.activated"] * 3
    del two.leader.gateway.control.seat.renew  # type: ignore[attr-defined]
    wait_for(lambda: not leads(two.leader))
    wait_for(lambda: of(told(two.leader), "route-version") == {"3"})
    two.follower.done("release", "rollback", "docs")
    assert of(two.agree(), "route-version") == {"4"}


def test_engine_that_does_not_apply_an_adapter_answers_503_by_its_name_alone(two: Two) -> None:
    first, _, third = two.leader.adapters
    two.leader.done("release", "override", "more", "--adapter", "docs0", "--reason", REASON)
    two.agree()
    two.follower.engine.not_applied.add(third.model_name)
    two.leader.done("release", "override", "docs", "--adapter", "docs2", "--reason", REASON)
    assert two.leader.chat().headers["x-llmops-model"] == third.adapter
    wait_for(lambda: two.follower.chat().status_code == 503)
    refused = two.follower.chat().json()["error"]
    assert "is not applied by the engine" in refused["message"]
    assert two.follower.chat("more").headers["x-llmops-model"] == first.adapter
    assert "NOT SERVING" in two.follower.done("status")
    two.leader.done("release", "rollback", "docs")
    assert of(two.agree(), "model") == {first.adapter}


def test_follower_keeps_the_table_before_until_its_engine_has_the_adapter(two: Two) -> None:
    first, second, third = two.leader.adapters
    canary(two)
    two.agree()
    two.follower.engine.slow_loads = True
    two.leader.done("release", "override", "more", "--adapter", "docs2", "--reason", REASON)
    assert two.leader.chat("more").headers["x-llmops-model"] == third.adapter
    assert two.follower.chat("more").status_code == 404
    two.leader.done("rollout", "abort", "docs", "--reason", "it rambles")
    wait_for(lambda: of(told(two.follower), "arm") == {"champion"})  # before what waits for the engine
    assert two.follower.chat("more").status_code == 404
    two.follower.engine.slow_loads = False
    wait_for(lambda: two.follower.chat("more").status_code == 200)
    assert of(two.agree(), "route-version") == {"4"}
    assert second.adapter != first.adapter


def test_engine_is_not_switched_under_gateways_that_follow(two: Two) -> None:
    profile = two.leader.workspace.root / "green.yaml"
    profile.write_text("base_model: none\nengine: {kind: transformers, dtype: float32, device: cpu}\n")
    refused = two.leader.cli("engine", "start", str(profile))
    assert (refused.code, "1 other gateways follow this one" in refused.err) == (2, True), refused.err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_serve_on_another_base_is_refused_in_one_line(two: Two, tmp_path: Path) -> None:
    from llmops.errors import BadRequest
    from llmops.registry.bases import Base
    from tests.serving.bare import CONTRACT

    workspace = beside(tmp_path / "three", two.leader.workspace)
    base = Base("other", workspace.root, "c" * 64, CONTRACT)
    with (
        scripted_engines(base),
        pytest.raises(
            BadRequest, match=r"base is base@cccccccccccc, but docs stands for docs0@\w+ on base@bbbb"
        ),
        running_gateway(workspace, base, ()),
    ):
        pass
    assert len(seated(workspace.database_url)) == 2


def test_followers_counts_are_taken_away_by_the_leader(two: Two) -> None:
    canary(two, "steps: [0.5]\nslo: {min_requests: 400, max_error_share: 0.05}\n")
    two.agree()
    before = counted(two.leader)
    for i in range(30):
        two.follower.chat(user=f"user{i % 12}")
    wait_for(lambda: counted(two.leader) > before)
    engine = open_database(two.leader.workspace.database_url)

    def rows() -> int:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM arm_counts").scalar() or 0)

    wait_for(lambda: rows() == 0)

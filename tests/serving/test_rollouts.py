"""Rollouts from the command line to what clients, the engine, the request log and the ledger see of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmops.records import LiveVote, RolloutEvidence
from llmops.registry.graph import build_graph
from llmops.schema import digest_of
from llmops.serving.rollout.shadow import ShadowAnswer
from tests.serving.gateway import wait_for
from tests.serving.staged import Staged, staged_gateway

REASON = "written for this test"
PLAN = """\
steps: [0.4, 0.6]
votes: {looks: [20, 40], margin: 0.2}
slo: {min_requests: 20, max_error_share: 0.1}
"""


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Staged]:
    with staged_gateway(tmp_path) as staged:
        yield staged


class Votes:
    """Live votes as a test wants them."""

    def __init__(self, *votes: LiveVote) -> None:
        self.given = votes

    def votes(self, public_name: str, since: str) -> Sequence[LiveVote]:
        assert public_name == "docs"
        assert since
        return self.given


def thumbs(champion: str, canary: str, liked: float, n: int = 60) -> Votes:
    """Each arm gets n thumbs by people of their own; those on the canary say `liked`, the others the opposite."""
    sides = ((champion, 1 - liked), (canary, liked))
    return Votes(
        *(
            LiveVote(2 * i + side, model, worth, f"{side}:{i}")
            for i in range(n)
            for side, (model, worth) in enumerate(sides)
        )
    )


def kinds(staged: Staged) -> Counter[str]:
    events = staged.registry.ledger.events()
    return Counter(e.kind for e in events if e.kind.startswith("rollout."))


def arms(staged: Staged, n: int, prefix: str = "user") -> dict[str, str]:
    """By user the arm that answered; each answer is by the model that its headers and the log say."""
    names = {adapter.adapter: adapter.model_name for adapter in staged.adapters}
    found = {}
    for i in range(n):
        answer = staged.chat(user=f"{prefix}{i}")
        assert answer.status_code == 200, answer.text
        said = answer.json()["choices"][0]["message"]["content"]
        assert said == f"said by {names[answer.headers['x-llmops-model']]}"
        found[f"{prefix}{i}"] = answer.headers["x-llmops-arm"]
    return found


# ---------------------------------------------------------------- what may begin


def test_canary_without_a_passing_decision_gets_no_traffic(staged: Staged) -> None:
    refused = staged.cli("rollout", "canary", "docs", "--adapter", "docs1", "--weight", "0.5")
    assert refused.code == 4
    assert "no gate decision about" in refused.err
    staged.decided(staged.adapters[1], verdict="FAIL")
    refused = staged.cli("rollout", "canary", "docs", "--adapter", "docs1", "--weight", "0.5")
    assert (refused.code, "the gate said FAIL" in refused.err) == (1, True)
    assert kinds(staged) == {}
    assert set(arms(staged, 10).values()) == {"champion"}


def test_canary_is_verified_listed_proved_and_warm_before_its_first_request(staged: Staged) -> None:
    canary = staged.adapters[1]
    staged.decided(canary)
    staged.engine.log.clear()
    out = staged.done("rollout", "canary", "docs", "--adapter", "docs1", "--weight", "0.5")
    assert f"docs: canary {canary.model_name}  (event" in out
    assert set(arms(staged, 20).values()) == {"champion", "canary"}
    done = [what for what, model in staged.engine.log if model in (canary.model_name, "")]
    assert done[:4] == ["load", "models", "proof", "warm-up"]
    assert set(done[4:]) == {"ask"}


def test_adapter_that_the_engine_does_not_list_gets_no_traffic(staged: Staged) -> None:
    staged.engine.unlisted.add(staged.adapters[1].model_name)
    refused = staged.cli(
        "rollout", "canary", "docs", "--adapter", "docs1", "--weight", "0.5", "--override", REASON
    )
    assert refused.code == 4
    assert "does not list it" in refused.err
    assert set(arms(staged, 10).values()) == {"champion"}


def test_arms_are_refused_whole_and_nothing_of_them_stays_loaded(staged: Staged) -> None:
    """The second arm is not applied by the engine: the first, which was, goes as well."""
    staged.engine.unlisted.add(staged.adapters[2].model_name)
    shared = ("--arm", "a=docs1:0.3", "--arm", "b=docs2:0.3")
    refused = staged.cli("rollout", "ab", "docs", *shared, "--override", REASON)
    assert refused.code == 4
    assert set(arms(staged, 10).values()) == {"champion"}
    wait_for(lambda: staged.engine.loaded == [staged.base.model_name, staged.adapters[0].model_name])


def test_altered_canary_is_refused_at_the_gateway(staged: Staged) -> None:
    path = staged.registry.store.path("adapter", staged.adapters[1].adapter) / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"changed")
    refused = staged.cli(
        "rollout", "canary", "docs", "--adapter", "docs1", "--weight", "0.5", "--override", REASON
    )
    assert (refused.code, "was changed" in refused.err) == (4, True)


def test_name_has_one_canary_at_a_time_and_an_override_is_shown(staged: Staged) -> None:
    words = ("rollout", "canary", "docs", "--weight", "0.5", "--override", REASON, "--adapter")
    staged.done(*words, "docs1")
    again = staged.cli(*words, "docs2")
    assert (again.code, "a canary is running already" in again.err) == (2, True)
    assert REASON in staged.done("status")
    assert f"OVERRIDE {REASON}" in staged.done("rollout", "status")
    refused = staged.cli("rollout", "promote", "docs")
    assert (refused.code, "runs on an override" in refused.err) == (4, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("canary", "docs", "--adapter", "docs1"), "either --weight or --plan"),
        (("canary", "docs", "--adapter", "docs1", "--weight", "1"), "no share between 0 and 1"),
        (
            ("canary", "docs", "--adapter", "docs0", "--weight", "0.1", "--override", REASON),
            "champion already",
        ),
        (
            ("canary", "docs", "--adapter", "docs1", "--weight", "0.1", "--override", "so"),
            "at least 10 characters",
        ),
        (("canary", "nobody", "--adapter", "docs1", "--weight", "0.1"), "no champion yet"),
        (("ab", "docs", "--arm", "a=docs1:0.6", "--arm", "b=docs2:0.6"), "add up to 1.2"),
        (("ab", "docs", "--arm", "docs1"), "is not NAME=ADAPTER:SHARE"),
        (("ab", "docs", "--arm", "a=docs1:0.1", "--arm", "a=docs2:0.1"), "one name or one adapter"),
        (("cascade", "docs", "--first", "base"), "give --min-mean-logprob"),
        (("fallback", "docs", "--to", "base@000000000000"), "is not the base of its champion"),
        (("promote", "docs"), "no canary runs"),
        (("abort", "docs"), "no rollout to abort"),
        (("abort", "docs", "--kind", "green"), "--kind green is none"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_one_line(
    words: tuple[str, ...], said: str, unserved: Any
) -> None:
    done = unserved("rollout", *words)
    assert done.code == 2, done.err
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def unserved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The command line of a workspace where docs has a champion and nothing serves."""
    from llmops.registry.adapters import Registry
    from llmops.registry.releases import request_override
    from tests.evidence import activate
    from tests.in_process import llmops
    from tests.serving.staged import make_workspace

    root = tmp_path_factory.mktemp("unserved")
    workspace, _, adapters = make_workspace(root)
    registry = Registry.of(workspace)
    activate(registry, request_override(registry, "docs", adapters[0], REASON)[0])
    return lambda *words: llmops(root, *words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [0.5, 0.2]\nvotes: {looks: [20, 40]}\n", "must rise"),
        ("steps: [0.2, 0.5]\nvotes: {looks: [20]}\n", "2 steps and 1 looks"),
        ("steps: [0.2, 0.5]\n", "several steps need votes"),
        ("steps: [0.2]\nvotes: {looks: [5]}\n", "votes.looks"),
        ("steps: [0.2]\nslo: {max_eror_share: 0.1}\n", "did you mean"),
    ],
)
def test_plan_that_says_something_wrong_is_refused(
    unserved: Any, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "canary.yaml"
    path.write_text(text)
    done = unserved("rollout", "canary", "docs", "--adapter", "docs1", "--plan", str(path))
    assert (done.code, said in done.err) == (2, True), done.err


# ---------------------------------------------------------------- who answers


def test_users_keep_their_arm_over_a_restart_and_so_does_the_lineage(tmp_path: Path) -> None:
    with staged_gateway(tmp_path) as staged:
        staged.done(
            "rollout",
            "ab",
            "docs",
            "--arm",
            "left=docs1:0.3",
            "--arm",
            "right=docs2:0.3",
            "--override",
            REASON,
        )
        before = arms(staged, 24)
        first = staged.chat(user="user1").headers
        assert set(before.values()) == {"left", "right", "champion"}
        assert arms(staged, 24) == before
        lines = [line for line in staged.logged() if line["user"] in before]
        shares = {"left": 0.3, "right": 0.3, "champion": 0.4}
        assert all(line["propensity"] == pytest.approx(shares[line["arm"]]) for line in lines)
        assert {line["arm"] for line in lines if line["user"] == "user1"} == {before["user1"]}
    with staged_gateway(tmp_path) as staged:
        assert arms(staged, 24) == before
        again = staged.chat(user="user1")
        for name in ("x-llmops-arm", "x-llmops-lineage", "x-llmops-route-version", "x-llmops-model"):
            assert again.headers[name] == first[name]
        said = {
            "adapter": first["x-llmops-model"], "prompt_contract": first["x-llmops-prompt-contract"],
            "route_version": int(first["x-llmops-route-version"]), "arm": first["x-llmops-arm"],
        }  # fmt: skip
        assert first["x-llmops-lineage"] == digest_of(said)
        assert {line["lineage"] for line in staged.logged() if line["user"] == "user1"} == {digest_of(said)}


def test_session_header_decides_before_the_user(staged: Staged) -> None:
    staged.done("rollout", "ab", "docs", "--arm", "a=docs1:0.5", "--override", REASON)
    by_session = {
        staged.chat(user=f"u{i}", headers={"x-llmops-session": "one"}).headers["x-llmops-arm"]
        for i in range(12)
    }
    assert len(by_session) == 1
    long = staged.chat(headers={"x-llmops-session": "x" * 129})
    assert (long.status_code, long.json()["error"]["param"]) == (400, "x-llmops-session")


def test_abort_takes_the_traffic_and_then_the_adapter(staged: Staged) -> None:
    canary = staged.adapters[1].model_name
    staged.done("rollout", "canary", "docs", "--adapter", "docs1", "--weight", "0.9", "--override", REASON)
    version = staged.gateway.live.table.version
    staged.engine.held = True
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(staged.chat, user=f"user{i}") for i in range(8)]
        wait_for(lambda: staged.engine.running == 8)
        staged.done("rollout", "abort", "docs", "--reason", "it rambles")
        assert canary in staged.engine.loaded
        staged.engine.held = False
        answers = [one.result() for one in asked]
    assert {a.status_code for a in answers} == {200}
    assert "canary" in {a.headers["x-llmops-arm"] for a in answers}
    assert set(arms(staged, 10).values()) == {"champion"}
    wait_for(lambda: canary not in staged.engine.loaded)
    log = staged.engine.log
    assert log.index(("unload", canary)) > max(i for i, one in enumerate(log) if one == ("ask", canary))
    assert staged.gateway.live.table.version == version + 1
    assert "aborted: it rambles" in staged.done("rollout", "status", "docs")


def test_engine_that_died_gets_the_table_s_adapters_again_and_none_answers_for_another(
    staged: Staged,
) -> None:
    staged.done("rollout", "ab", "docs", "--arm", "a=docs1:0.3", "--arm", "b=docs2:0.3", "--override", REASON)
    before = arms(staged, 30)
    version = staged.gateway.live.table.version
    staged.kill_engine()
    assert len(staged.engines) == 2
    assert arms(staged, 30) == before
    assert {what for what, _ in staged.engine.log} >= {"load", "models", "proof", "warm-up"}
    assert staged.gateway.live.table.version == version


def test_request_made_while_nothing_served_begins_with_the_gateway(tmp_path: Path) -> None:
    with staged_gateway(tmp_path):
        pass
    from tests.in_process import llmops

    done = llmops(tmp_path, "rollout", "ab", "docs", "--arm", "a=docs1:0.5", "--override", REASON)
    assert "recorded, not serving" in done.out
    with staged_gateway(tmp_path) as staged:
        wait_for(lambda: kinds(staged)["rollout.started"])
        assert set(arms(staged, 20).values()) == {"a", "champion"}


# ---------------------------------------------------------------- the controller


def begin(staged: Staged, plan: str = PLAN) -> None:
    staged.decided(staged.adapters[1])
    path = staged.workspace.root / "canary.yaml"
    path.write_text(plan)
    staged.done("rollout", "canary", "docs", "--adapter", "docs1", "--plan", str(path))


def test_bad_votes_abort_a_live_canary_once_and_no_client_sees_an_error(staged: Staged) -> None:
    champion, canary, _ = staged.adapters
    begin(staged)
    assert "canary" in set(arms(staged, 30).values())
    staged.gateway.control.rollouts.controller.source = thumbs(champion.adapter, canary.adapter, liked=0.0)
    served = 0
    while not kinds(staged)["rollout.aborted"]:
        arms(staged, 5, prefix=f"live{served}")
        served += 1
        assert served < 200
    assert set(arms(staged, 20, prefix="after").values()) == {"champion"}
    assert kinds(staged)["rollout.aborted"] == 1
    assert {line["status"] for line in staged.logged()} == {200}
    event = staged.registry.ledger.events("rollout.aborted")[0]
    evidence = staged.registry.store.get_record(RolloutEvidence, event.body["evidence"])
    assert evidence.votes is not None
    assert (evidence.action, evidence.votes.verdict, evidence.votes.n_votes) == ("abort", "FAIL", 40)
    assert (evidence.votes.n_wins, evidence.votes.n_losses) == (0, 40)
    assert staged.registry.ledger.verify() > 0
    assert "aborted: votes: win rate 0.0 %" in staged.done("rollout", "status")


def test_canary_goes_up_only_with_votes_and_whole_windows_and_is_promoted_on_its_decision(
    staged: Staged,
) -> None:
    champion, canary, _ = staged.adapters
    begin(staged)
    staged.gateway.control.rollouts.controller.source = thumbs(champion.adapter, canary.adapter, 1.0, n=20)
    looked = staged.gateway.control.rollouts
    wait_for(lambda: looked.status("docs")[0]["votes"])
    assert looked.status("docs")[0]["votes"]["verdict"] == "PASS"
    assert kinds(staged)["rollout.stepped"] == 0, "the votes pass, but hardly a request was seen"
    before = arms(staged, 100)
    wait_for(lambda: kinds(staged)["rollout.stepped"])
    after = arms(staged, 200)  # a fifth of them are the champion's: its window needs 20
    assert sum(after[user] == "canary" for user in before) > Counter(before.values())["canary"]
    assert all(after[user] == "canary" for user, arm in before.items() if arm == "canary")
    assert kinds(staged)["rollout.ready"] == 0, "the second look needs 40 comparisons"
    looked.controller.source = thumbs(champion.adapter, canary.adapter, 1.0, n=40)
    wait_for(lambda: kinds(staged)["rollout.ready"])
    assert "ready" in staged.done("rollout", "status")
    staged.done("rollout", "promote", "docs")
    assert set(arms(staged, 20).values()) == {"champion"}
    assert staged.chat().headers["x-llmops-model"] == canary.adapter
    assert "promoted: it is the champion now" in staged.done("rollout", "status")
    assert kinds(staged)["rollout.aborted"] == 0


def test_lineage_of_an_adapter_shows_the_rollouts_it_had(staged: Staged) -> None:
    first, second, _ = staged.adapters
    staged.decided(second)
    staged.done("rollout", "canary", "docs", "--adapter", "docs1", "--weight", "0.5")
    assert "canary, started" in staged.done("lineage", "docs1", "--down")
    staged.done("rollout", "abort", "docs", "--reason", "it rambles")
    shown = staged.done("lineage", "docs1", "--down")
    assert "canary, aborted" in shown
    graph = build_graph(staged.registry)
    [rollout] = [node for node in graph.nodes.values() if node.kind == "rollout"]
    ends = {(edge.word, edge.target) for edge in graph.edges if edge.source == rollout.id}
    decision = staged.registry.ledger.events("decision.made")[-1].body["decision"]
    assert ends == {
        ("gives traffic to", second.adapter), ("beside", first.adapter), ("stands on", decision)
    }  # fmt: skip


def test_failing_canary_is_aborted_and_its_fallback_keeps_clients_whole(staged: Staged) -> None:
    staged.done("rollout", "fallback", "docs", "--to", "base")
    begin(staged, "steps: [0.5]\nslo: {min_requests: 20, max_error_share: 0.05}\n")
    canary = staged.adapters[1].model_name
    staged.engine.failing.add(canary)
    seen: Counter[str] = Counter()
    for i in range(400):
        answer = staged.chat(user=f"user{i}")
        assert answer.status_code == 200
        seen[answer.headers["x-llmops-arm"]] += 1
        if kinds(staged)["rollout.aborted"]:
            break
    event = staged.registry.ledger.events("rollout.aborted")[0]
    evidence = staged.registry.store.get_record(RolloutEvidence, event.body["evidence"])
    failed = next(arm for arm in evidence.arms if arm.arm == "canary")
    assert (failed.n_errors, failed.n_requests >= 20) == (failed.n_requests, True)
    assert seen.keys() == {"champion", "fallback"}
    lines = staged.logged()
    assert {line["status"] for line in lines} == {200}
    fallen = [line for line in lines if line["arm"] == "fallback"]
    assert {line["answered_by"] for line in fallen} == {staged.base.digest}
    assert all(line["fell_from"].startswith("canary: ") for line in fallen)


def test_name_that_moves_to_another_champion_ends_its_canary(staged: Staged) -> None:
    begin(staged)
    staged.done("release", "override", "docs", "--adapter", "docs2", "--reason", REASON)
    assert set(arms(staged, 20).values()) == {"champion"}
    assert "was replaced by" in staged.done("rollout", "status")


# ---------------------------------------------------------------- beside the champion


def test_shadow_answers_no_client_is_logged_as_such_and_gives_pairs(staged: Staged) -> None:
    pairs: list[ShadowAnswer] = []
    staged.gateway.relay.router.shadows.on_answer = pairs.append
    staged.done("rollout", "shadow", "docs", "--adapter", "docs2", "--sample", "1")
    assert set(arms(staged, 12).values()) == {"champion"}
    assert staged.chat(stream=True, user="streamed").text.endswith("data: [DONE]\n\n")
    wait_for(lambda: len(pairs) == 13)
    shadow = staged.adapters[2]
    lines = staged.logged()
    assert Counter(line["arm"] for line in lines) == {"champion": 13, "shadow": 13}
    for pair in pairs:
        assert (pair.shown.request_id, pair.shown.arm) == (pair.entry.request_id, "champion")
        assert (pair.entry.answered_by, pair.entry.user) == (shadow.adapter, pair.shown.user)
        said = json.loads(pair.body)["choices"][0]["message"]["content"]
        assert said == f"said by {shadow.model_name}"


@pytest.mark.parametrize(("max_running", "max_busy", "n_shadows"), [(1, 100, 1), (100, 3, 2)])
def test_shadows_are_few_and_none_begins_while_the_engine_is_busy(
    staged: Staged, max_running: int, max_busy: int, n_shadows: int
) -> None:
    """With at most 3 requests under way, the second shadow makes them 4."""
    bounds = ("--max-running", str(max_running), "--max-busy", str(max_busy))
    staged.done("rollout", "shadow", "docs", "--adapter", "docs2", "--sample", "1", *bounds)
    staged.engine.held = True
    with ThreadPoolExecutor(6) as pool:
        asked = []
        for i in range(6):
            asked.append(pool.submit(staged.chat))
            wait_for(lambda n=i + 1: staged.engine.running == n + min(n, n_shadows))
        staged.engine.held = False
        assert {one.result().status_code for one in asked} == {200}
    wait_for(lambda: [line["arm"] for line in staged.logged()].count("shadow") == n_shadows)


def test_fallback_answers_before_the_first_byte_and_never_after_it(staged: Staged) -> None:
    champion, _, other = staged.adapters
    refused = staged.cli("rollout", "fallback", "docs", "--to", "docs2")
    assert refused.code == 4
    staged.done("rollout", "fallback", "docs", "--to", "docs2", "--override", REASON)
    assert staged.chat().headers["x-llmops-arm"] == "champion"
    staged.engine.failing.add(champion.model_name)
    whole, streamed = staged.chat(), staged.chat(stream=True)
    for answer in (whole, streamed):
        assert answer.status_code == 200
        assert (answer.headers["x-llmops-arm"], answer.headers["x-llmops-model"]) == (
            "fallback",
            other.adapter,
        )
    assert other.model_name in streamed.text
    staged.engine.failing.clear()
    staged.engine.broken.add(champion.model_name)
    cut = staged.chat(stream=True)
    assert (cut.headers["x-llmops-arm"], "engine_lost" in cut.text) == ("champion", True)
    assert other.model_name not in cut.text


def test_client_s_own_mistake_does_not_fall_back(staged: Staged) -> None:
    staged.done("rollout", "fallback", "docs", "--to", "base")
    assert staged.chat(n=99).status_code == 400
    assert staged.chat("nobody").status_code == 404


def test_cascade_passes_a_sure_answer_on_and_asks_the_champion_otherwise(staged: Staged) -> None:
    base = staged.base.model_name
    staged.done(
        "rollout", "cascade", "docs", "--first", "base", "--min-mean-logprob=-0.5", "--max-characters", "100"
    )
    champion = staged.adapters[0]
    for stream in (False, True):
        staged.engine.logprob[base] = -0.4
        sure = staged.chat(stream=stream)
        assert (sure.headers["x-llmops-arm"], sure.headers["x-llmops-model"]) == (
            "cascade",
            staged.base.digest,
        )
        assert base in sure.text
        assert "logprob" not in sure.text.replace('"logprobs":null', "")
        staged.engine.logprob[base] = -0.6
        unsure = staged.chat(stream=stream)
        assert (unsure.headers["x-llmops-arm"], unsure.headers["x-llmops-model"]) == (
            "champion",
            champion.adapter,
        )
        assert base not in unsure.text
    staged.engine.logprob[base] = -0.1
    n_asked = staged.engine.log.count(("ask", base))
    assert staged.chat(text="x" * 101).headers["x-llmops-arm"] == "champion"
    assert staged.engine.log.count(("ask", base)) == n_asked
    asked = staged.chat(logprobs=True)
    assert asked.json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.1
    staged.engine.failing.add(base)
    assert staged.chat().headers["x-llmops-arm"] == "champion"
    assert Counter(line["arm"] for line in staged.logged()) == {"cascade": 3, "champion": 4, "draft": 3}


def test_stream_of_a_sure_cascade_is_the_stream_of_the_model_itself(staged: Staged) -> None:
    staged.done("rollout", "cascade", "docs", "--first", "base", "--min-mean-logprob=-0.5")
    own = staged.chat(staged.base.model_name, stream=True)
    through = staged.chat(stream=True)
    assert through.headers["x-llmops-arm"] == "cascade"

    def shown(text: str) -> list[tuple[str, Any]]:
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        return [(c["delta"]["content"], c["finish_reason"]) for e in events for c in e["choices"]]

    assert shown(through.text) == shown(own.text)
    assert through.text.endswith("data: [DONE]\n\n")
    line = staged.logged()[-1]
    assert (line["n_completion_tokens"], line["status"], line["error"]) == (3, 200, None)


def test_embeddings_have_no_first_answer_and_no_shadow(staged: Staged) -> None:
    staged.done("rollout", "cascade", "docs", "--first", "base", "--max-characters", "9")
    staged.done("rollout", "shadow", "docs", "--adapter", "docs2", "--sample", "1")
    answer = staged.client.post(f"{staged.url}/v1/embeddings", json={"model": "docs", "input": "Hi"})
    assert (answer.status_code, answer.headers["x-llmops-arm"]) == (200, "champion")
    asked = [entry for entry in staged.engine.log if entry[0] == "embed"]
    assert asked == [("embed", staged.adapters[0].model_name)]
    assert [line["arm"] for line in staged.logged()] == ["champion"]

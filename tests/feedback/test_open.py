"""Campaigns are opened on what models really answered: from two reports, or sampled through the endpoint."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmops.data import find_snapshot, load_pool
from llmops.engines.completions import load_answers
from llmops.engines.endpoint import Patience
from llmops.errors import BadRequest, ConfigError, CouldNotRun, InvalidEvidence
from llmops.feedback.campaign_file import GateCampaign, TrainCampaign, load_campaign_file
from llmops.feedback.open import Comparison, open_from_reports
from llmops.feedback.samples import SampleRequest, open_from_samples
from llmops.ratings.campaigns import campaigns, close_campaign, find_campaign, load_items
from llmops.records import Campaign, Item, Report
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.registry.names import name_state
from llmops.registry.releases import request_promotion
from llmops.settings import Workspace
from tests.evals.conftest import Room, build_questions, right, room, write
from tests.evals.counterpart import Counterpart, Fault
from tests.evidence import activate, decide, engine_of
from tests.loop import Loop
from tests.ratings.campaign import book_of, vote
from tests.serving.gateway import register_proved, serving, wait_for, write_profile

__all__ = ["room"]

QUICK = Patience(answer_s=10, retry_s=0.5)


def sampled(room: Room, counterpart: Counterpart, **settings: Any) -> Campaign:
    """Open a train campaign at the counterpart."""
    config = {
        "name": "train", "purpose": "train", "dataset": "questions", "models": ["docs"],
        "decoding": {"temperature": 0.8, "max_tokens": 16}, "n_items": 10, **settings,
    }  # fmt: skip
    file = load_campaign_file(write(room.workspace.root / "train.yaml", config))
    assert isinstance(file, TrainCampaign)
    return open_from_samples(room.registry, file, SampleRequest(counterpart.url, 4, QUICK))


def compared(room: Room, report: Report, **settings: Any) -> Campaign:
    """Open a gate campaign on the newest reports."""
    candidate = room.registry.adapter("latest")
    baseline = name_state(room.registry, "docs").baseline_for(candidate.adapter, candidate.base)
    about = Comparison(baseline, report.suite, settings.pop("suite_digest", report.suite_digest), None)
    config = {"name": "gate", "purpose": "gate", "gate": "gate.yaml", **settings}
    file = load_campaign_file(write(room.workspace.root / "campaign.yaml", config))
    assert isinstance(file, GateCampaign)
    return open_from_reports(room.registry, file, about)


def items_of(room: Room, campaign: Campaign) -> list[Item]:
    return load_items(room.registry.store, campaign)


def listed(room: Room, campaign: Campaign) -> list[str]:
    """Reasons of what became no item, one a line of the stored file."""
    path = room.registry.store.verify("items", campaign.items) / "dropped.jsonl"
    return [json.loads(line)["reason"] for line in path.read_bytes().splitlines()]


def prompts(room: Room, pool: str) -> set[str]:
    snapshot = find_snapshot(room.registry.store, room.registry.ledger, "questions")
    return {row.messages[0].content for row in load_pool(room.registry.store, snapshot, pool)}


def numbered(model: str, prompt: str, nth: int) -> str:
    return f"{right(prompt)}, try {nth}"


# ---------------------------------------------------------------- on the real endpoint, by the command line


@pytest.fixture
def loop(workspace: Workspace, tiny_model: Path, tiny_adapter: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    registry, base = Registry.of(workspace), resolve_base(str(tiny_model))
    build_questions(workspace, registry, 80)
    register_proved(registry, base, tiny_adapter)
    write(
        workspace.root / "suite.yaml",
        {
            "name": "questions", "cases": {"kind": "dataset", "name": "questions", "n_max": 8},
            "metrics": ["chrf"], "decoding": {"temperature": 0, "max_tokens": 10},
        },
    )  # fmt: skip
    guard = {"metric": "chrf", "margin": 99}
    write(
        workspace.root / "gate.yaml",
        {"name": "docs", "public_name": "docs", "suite": "suite.yaml", "min_cases": 4, "guardrails": [guard]},
    )
    with serving(write_profile(workspace.root, base.path, max_model_tokens=512), workspace):
        yield Loop(workspace.root, tmp_path / "cache")


def asked(loop: Loop) -> list[str]:
    """Who answered each chat, as far as the log is written by now."""
    return [str(r["answered_by"]) for r in loop.requests() if r["path"] == "/v1/chat/completions"]


def test_campaigns_hold_what_the_served_models_answered(workspace: Workspace, loop: Loop) -> None:
    registry = Registry.of(workspace)
    record = registry.adapter("latest")
    write(
        workspace.root / "train.yaml",
        {
            "name": "docs-train", "purpose": "train", "dataset": "questions", "models": ["docs"],
            "decoding": {"temperature": 0.8, "max_tokens": 10}, "n_items": 6,
        },
    )  # fmt: skip
    opened = loop.llmops("feedback", "open", "train.yaml")
    assert "items    6, 1 vote(s) each" in opened.out
    train = find_campaign(registry.store, registry.ledger, "docs-train")
    items = load_items(registry.store, train)
    snapshot = find_snapshot(registry.store, registry.ledger, "questions")
    rate = {row.messages[0].content for row in load_pool(registry.store, snapshot, "rate")}
    assert (train.systems, train.dataset) == ((record.adapter, record.adapter), snapshot.digest())
    assert len({i.messages[0].content for i in items} & rate) == len(items) == train.n_items == 6
    assert all(i.answers[0].strip() != i.answers[1].strip() for i in items)
    n_asked = 12 + 4 * sum(train.n_dropped.values())
    answered = wait_for(lambda: said if len(said := asked(loop)) >= n_asked else None)
    assert (set(answered), len(answered)) == ({record.adapter}, n_asked)

    loop.llmops("feedback", "close", "docs-train")
    loop.llmops("feedback", "open", "train.yaml", "--concurrency", "2")
    again = find_campaign(registry.store, registry.ledger, "docs-train")
    assert (again.items, again.digest() != train.digest()) == (train.items, True)

    loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml")
    write(
        workspace.root / "gate-campaign.yaml", {"name": "docs-gate", "purpose": "gate", "gate": "gate.yaml"}
    )
    shown = json.loads(loop.llmops("feedback", "open", "gate-campaign.yaml", "--json").out)
    assert shown["systems"] == [record.adapter, record.base]
    assert shown["dataset"] == snapshot.digest()
    gate = find_campaign(registry.store, registry.ledger, "docs-gate")
    assert gate.reports is not None
    ours, theirs = (
        {c.messages: a.text for c, a in load_answers(registry.store, registry.store.get_record(Report, r))}
        for r in gate.reports
    )
    found = load_items(registry.store, gate)
    assert [i.answers for i in found] == [(ours[i.messages], theirs[i.messages]) for i in found]
    assert gate.n_items + sum(gate.n_dropped.values()) == len(ours) == 8
    assert len(answered) + 12 < len(loop.requests())
    table = loop.llmops("feedback", "list").out.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["docs-train", "docs-train", "docs-gate"]


# ---------------------------------------------------------------- sampled


def test_two_answers_of_one_model_are_asked_with_seeds_of_their_own(room: Room) -> None:
    counterpart = room.serve(numbered)
    campaign = sampled(room, counterpart)
    items = items_of(room, campaign)
    assert (campaign.n_items, campaign.n_dropped, len(items)) == (10, {}, 10)
    for item in items:
        assert item.answers == tuple(numbered("", item.messages[0].content, n) for n in (1, 2))
    assert Counter(counterpart.asked) == {(room.adapter.model_name, i.messages[0].content): 2 for i in items}
    assert len({body["seed"] for body in counterpart.bodies}) == 20
    assert {body["temperature"] for body in counterpart.bodies} == {0.8}
    assert {i.messages[0].content for i in items} <= prompts(room, "rate")
    assert len({i.group for i in items}) == 10  # one of each group before any second


def test_two_models_answer_once_each_in_the_files_order(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: f"{model} says {nth}")
    campaign = sampled(room, counterpart, models=["docs", "base"])
    assert campaign.systems == (room.adapter.adapter, room.base.digest)
    expected = (f"{room.adapter.model_name} says 1", f"{room.base.model_name} says 1")
    assert {i.answers for i in items_of(room, campaign)} == {expected}


def test_public_name_is_its_champion_and_else_the_newest_adapter_of_that_name(room: Room) -> None:
    newer = room.new_adapter("docs", 2)
    assert sampled(room, room.serve(numbered)).systems[0] == newer.adapter
    decide(room.registry, room.adapter, engine_of(room.base))
    activate(room.registry, request_promotion(room.registry, "docs", None)[0])
    again = sampled(room, room.serve(numbered), name="champion")
    assert again.systems[0] == room.adapter.adapter
    with pytest.raises(BadRequest, match="are one model; name it once"):
        sampled(room, room.serve(numbered), name="twice", models=["docs", room.adapter.model_name])


def test_same_answer_is_sampled_again_three_times_and_then_dropped(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str:
        digit = prompt[-1]
        if digit in "13":
            return f"  {right(prompt)}\n" if nth % 2 else right(prompt)  # alike on the page
        if digit in "57":
            return right(prompt) if nth < 5 else "another at last"
        return numbered(model, prompt, nth)

    counterpart = room.serve(script)
    campaign = sampled(room, counterpart, n_items=1000)
    asked = Counter(prompt for _, prompt in counterpart.asked)
    pool = prompts(room, "rate")
    assert {n for prompt, n in asked.items() if prompt[-1] in "1357"} == {5}
    assert {n for prompt, n in asked.items() if prompt[-1] not in "1357"} == {2}
    same = [p for p in pool if p[-1] in "13"]
    assert campaign.n_dropped == {"same answer": len(same)}
    assert listed(room, campaign) == ["same answer: in each of 4 tries"] * len(same)
    assert campaign.n_items == len(pool) - len(same) > 10
    seeds = defaultdict(list)
    for (_, prompt), body in zip(counterpart.asked, counterpart.bodies, strict=True):
        seeds[prompt].append(body["seed"])
    assert all(len(set(found)) == len(found) for found in seeds.values())


def test_prompt_without_a_pair_makes_room_for_another(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        if prompt[-1] in "02":
            return Fault(status=400, message="prompt is too long")
        return "" if prompt[-1] == "4" else numbered(model, prompt, nth)

    campaign = sampled(room, room.serve(script), n_items=12)
    assert campaign.n_items == 12
    assert set(campaign.n_dropped) == {"errored", "empty answer"}
    assert f"errored: {room.adapter.model_name}: HTTP 400: prompt is too long" in listed(room, campaign)
    assert all(all(i.answers) for i in items_of(room, campaign))


def test_prompt_that_a_gate_ever_decided_on_is_not_asked(room: Room) -> None:
    once_gate = prompts(room, "gate")
    build_questions(room.workspace, room.registry, 300, salt="other")
    pool = prompts(room, "rate")
    counterpart = room.serve(numbered)
    campaign = sampled(room, counterpart, n_items=1000)
    assert {prompt for _, prompt in counterpart.asked} == pool - once_gate
    assert campaign.n_items == len(pool - once_gate) > 0
    assert campaign.n_dropped == {"gate prompt": len(pool & once_gate)}
    assert len(pool & once_gate) > 0


SAID_BY = {
    "x-llmops-model": "an answer came from ffffffffffff",
    "x-llmops-prompt-contract": "was made under prompt contract ffffffffffff",
}


@pytest.mark.parametrize("header", SAID_BY)
def test_answer_of_another_model_or_contract_opens_nothing(room: Room, header: str) -> None:
    def script(model: str, prompt: str, nth: int) -> Fault:
        wrong = prompt.endswith("7") and nth == 2
        return Fault(numbered(model, prompt, nth), headers={header: "f" * 64} if wrong else {})

    with pytest.raises(InvalidEvidence, match=SAID_BY[header]):
        sampled(room, room.serve(script), n_items=1000)
    assert campaigns(room.registry.store, room.registry.ledger) == []


def test_engine_that_changes_meanwhile_opens_nothing(room: Room) -> None:
    counterpart = room.serve(numbered)
    counterpart.engine_after = engine_of(room.base, "bfloat16")
    with pytest.raises(InvalidEvidence, match="its engine changed meanwhile"):
        sampled(room, counterpart)
    assert campaigns(room.registry.store, room.registry.ledger) == []


def test_answer_of_another_engine_is_no_answer(room: Room) -> None:
    counterpart = room.serve(lambda m, p, n: Fault(numbered(m, p, n), headers={"x-llmops-engine": "e" * 64}))
    with pytest.raises(BadRequest, match=r"nothing to rate.*answered by engine eeeeeeeeeeee"):
        sampled(room, counterpart)
    assert len(counterpart.asked) == 10  # not the whole pool


def test_endpoint_that_goes_away_could_not_run(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: Fault(cut=True))
    with pytest.raises(CouldNotRun, match="no longer answers"):
        sampled(room, counterpart)


def test_endpoint_with_another_base_is_refused_before_anything_is_asked(room: Room) -> None:
    counterpart = room.serve(numbered)
    counterpart.base = type(room.base)(room.base.ref, room.base.path, "d" * 64, room.base.contract)
    with pytest.raises(BadRequest, match="its base is bbbbbbbbbbbb, the endpoint serves dddddddddddd"):
        sampled(room, counterpart)
    assert counterpart.asked == []


# ---------------------------------------------------------------- from reports


def differing(model: str, prompt: str, nth: int) -> str:
    """The models differ, but for questions that end with 3."""
    return right(prompt) if prompt.endswith("3") else f"{right(prompt)} by {model}"


def test_each_differing_pair_is_an_item_and_the_rest_is_listed(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        return Fault(status=400) if prompt.endswith("9") else differing(model, prompt, nth)

    base, tuned = room.run(room.serve(script), room.suite(max_errored_frac=0.3))
    campaign = compared(room, tuned)
    items = items_of(room, campaign)
    assert campaign.reports == (tuned.digest(), base.digest())
    assert campaign.systems == (room.adapter.adapter, room.base.digest)
    for item in items:
        prompt = item.messages[0].content
        assert item.answers == (differing(tuned.system, prompt, 1), differing(base.system, prompt, 1))
    assert set(campaign.n_dropped) == {"errored", "same answer"}
    assert campaign.n_items + sum(campaign.n_dropped.values()) == base.n_cases == 100
    assert campaign.n_dropped["errored"] == base.n_errored > 0
    assert len(listed(room, campaign)) == sum(campaign.n_dropped.values())


def test_items_are_drawn_and_ordered_by_seed(room: Room) -> None:
    tuned = room.run(room.serve(differing))[1]
    orders = [
        [i.digest for i in items_of(room, compared(room, tuned, name=f"c{n}", seed=seed, n_items=20))]
        for n, seed in enumerate((0, 0, 1))
    ]
    assert orders[0] == orders[1]
    assert set(orders[0]) != set(orders[2])
    full = compared(room, tuned, name="full")
    assert sorted(orders[0]) != orders[0]
    assert [i.digest for i in items_of(room, full)][:20] == orders[0]
    capped = find_campaign(room.registry.store, room.registry.ledger, "c0")
    assert capped.n_items + sum(capped.n_dropped.values()) == 100
    assert capped.n_dropped["over n_items"] == full.n_items - 20


def test_evidence_that_is_none_opens_nothing(room: Room) -> None:
    with pytest.raises(InvalidEvidence, match="no report of docs@"):
        open_from_reports(
            room.registry, gate_file(), Comparison(room.base.digest, "questions", "0" * 64, None)
        )
    base, tuned = room.run(room.serve(differing))
    with pytest.raises(InvalidEvidence, match="its file or its data changed"):
        compared(room, tuned, suite_digest="0" * 64)
    path = room.registry.store.path("completions", base.completions) / "completions.jsonl"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"answer", b"Answer"))
    with pytest.raises(InvalidEvidence, match=r"completions\.jsonl was changed"):
        compared(room, tuned)
    wrong = room.serve(lambda m, p, n: Fault(differing(m, p, n), headers={"x-llmops-model": "f" * 64}))
    invalid = room.run(wrong)[1]
    with pytest.raises(InvalidEvidence, match=r"is no evidence .*answers came from ffffffffffff"):
        compared(room, invalid)
    assert campaigns(room.registry.store, room.registry.ledger) == []


def gate_file(name: str = "gate") -> GateCampaign:
    return GateCampaign(name=name, purpose="gate", gate="gate.yaml")


def test_baseline_without_a_report_in_the_session_is_named(room: Room) -> None:
    tuned = room.run(room.serve(differing))[1]
    champion = room.new_adapter("docs", 5)
    decide(room.registry, champion, engine_of(room.base))
    activate(room.registry, request_promotion(room.registry, "docs", None)[0])
    about = Comparison(champion.adapter, tuned.suite, tuned.suite_digest, None)
    with pytest.raises(
        InvalidEvidence, match=f"no report of {champion.adapter[:12]}, the baseline, in session"
    ):
        open_from_reports(room.registry, gate_file(), about, room.adapter.adapter)


def test_models_that_answer_alike_leave_nothing_to_rate(room: Room) -> None:
    tuned = room.run(room.serve(lambda model, prompt, nth: right(prompt)))[1]
    with pytest.raises(BadRequest, match=r"campaign gate: nothing to rate \(100 same answer"):
        compared(room, tuned)


def test_campaign_that_is_being_rated_is_not_replaced_until_it_is_closed_or_complete(room: Room) -> None:
    tuned = room.run(room.serve(differing))[1]
    first = compared(room, tuned, n_items=2)
    vote(book_of(room.workspace, first), "ann", "first")
    with pytest.raises(BadRequest, match="campaign gate: is open, 1 of 2 items rated; end it with"):
        compared(room, tuned)
    vote(book_of(room.workspace, first), "ann", "first")
    second = compared(room, tuned, n_items=3)
    close_campaign(room.registry.ledger, second)
    third = compared(room, tuned, n_items=4)
    store, ledger = room.registry.store, room.registry.ledger
    assert campaigns(store, ledger) == [first, second, third]
    assert find_campaign(store, ledger, "gate") == third
    assert find_campaign(store, ledger, first.digest()[:12]) == first
    with pytest.raises(BadRequest, match="campaign nothing: not opened"):
        find_campaign(store, ledger, "nothing")


# ---------------------------------------------------------------- the file

TRAIN = {
    "name": "t", "purpose": "train", "dataset": "d", "models": ["m"], "n_items": 5,
    "decoding": {"temperature": 0.8, "max_tokens": 9},
}  # fmt: skip
WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no purpose": (lambda c: c.pop("purpose"), "purpose is missing"),
    "another purpose": (
        lambda c: c.update(purpose="fun"),
        "purpose: must be one of gate, train .found 'fun'.",
    ),
    "misspelt": (lambda c: c.update(n_item=5), "n_item is not a setting; did you mean n_items"),
    "greedy": (lambda c: c["decoding"].update(temperature=0), "decoding.temperature: .*greater than 0"),
    "seed": (lambda c: c["decoding"].update(seed=1), "decoding.seed is not a setting"),
    "three models": (lambda c: c.update(models=["a", "b", "c"]), "models: .*at most 2"),
    "one model twice": (lambda c: c.update(models=["a", "a"]), "models: a model is named twice"),
    "no items": (lambda c: c.update(n_items=0), "n_items: .*greater than or equal to 1"),
    "a gate's": (lambda c: c.update(gate="g.yaml"), "gate is not a setting"),
}


@pytest.mark.parametrize("what", WRONG)
def test_file_that_says_something_wrong_is_named_with_its_setting(tmp_path: Path, what: str) -> None:
    config = json.loads(json.dumps(TRAIN))
    change, said = WRONG[what]
    change(config)
    with pytest.raises(ConfigError, match=said):
        load_campaign_file(write(tmp_path / "c.yaml", config))


def test_options_that_do_not_belong_to_the_purpose_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    loop = Loop(workspace.root, tmp_path)
    write(workspace.root / "train.yaml", TRAIN)
    write(workspace.root / "gate.yaml", {"name": "g", "purpose": "gate", "gate": "x.yaml"})
    for file, option, said in (
        ("train.yaml", ("--adapter", "latest"), "--adapter: a train campaign asks the models its file names"),
        ("gate.yaml", ("--endpoint", "http://127.0.0.1:1"), "--endpoint: a gate campaign shows the answers"),
        ("train.yaml", (), "endpoint: nothing serves in this workspace"),
        ("gate.yaml", (), "x.yaml: no such file"),
    ):
        done = loop.llmops("feedback", "open", file, *option, check=False)
        assert (done.code, said in done.err) == (2, True), done.err

"""Scoring, correcting, typing a prompt and signing in, through a real browser and by keyboard alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser
from sqlalchemy import text

from llmops.auth import Keys, NewKey
from llmops.feedback.sign_in import COOKIE
from llmops.ledger import Ledger
from llmops.settings import Workspace
from llmops.tables import metadata
from tests.evals.conftest import Room, room
from tests.feedback.browser import (
    ROOT,
    Rater,
    chromium,
    plain_items,
    press,
    put_campaign,
    rater_id,
    ratings_of,
    serious_faults,
    serving_page,
    started,
)
from tests.feedback.test_arms import by_model, put_typed
from tests.feedback.test_desk import one

__all__ = ["room"]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def rubric(workspace: Workspace) -> None:
    (workspace.root / "feedback_ui").mkdir()
    shipped = (ROOT / "feedback_ui" / "rubric.yaml").read_bytes()
    (workspace.root / "feedback_ui" / "rubric.yaml").write_bytes(shipped)


def checked(rater: Rater) -> list[str]:
    """The values that are chosen, question by question."""
    return rater.page.eval_on_selector_all("[data-question] :checked", "es => es.map(e => e.value)")  # type: ignore[no-any-return]


@pytest.mark.usefixtures("rubric")
def test_an_answer_is_scored_question_by_question_with_digits_alone(
    browser: Browser, workspace: Workspace
) -> None:
    put_campaign(workspace, [one(f"p{i}", f"answer {i}") for i in range(3)], kind="rate")
    with serving_page(workspace) as served:
        ann = Rater(browser, served.url, "Ann")
        ann.page.fill("#llmops-rater", "Ann")
        press(ann, "Enter")
        ann.page.wait_for_selector("[data-choice=scored]:not([aria-disabled=true]):visible")
        assert not ann.page.is_visible("[data-part=second]")
        assert not ann.page.is_visible("[data-choice=a]")
        assert serious_faults(ann) == []
        press(ann, "Control+Enter")
        ann.page.wait_for_function(
            "document.querySelector('[data-part=status]').innerText.startsWith('Not saved yet')"
        )
        assert ratings_of(workspace) == []
        press(ann, "4", "5")
        assert checked(ann) == ["4", "5"]
        press(ann, "2", "Control+Enter")
        ann.saved()
        ann.page.wait_for_selector("[data-choice=scored]:not([aria-disabled=true]):visible")
        assert checked(ann) == []
        line = ann.text("status")
        press(ann, "1", "1", "Control+Enter")  # the last question need not be answered
        ann.saved(line)
        press(ann, "z")
        ann.page.wait_for_selector("[data-part=review]:visible")
        assert checked(ann) == ["1", "1"]
        ann.close()
    rows = ratings_of(workspace, "Ann")
    assert [r.scores for r in rows] == [
        {"correct": 4, "helpful": 5, "clear": 2},
        {"correct": 1, "helpful": 1},
    ]
    assert {r.choice for r in rows} == {"rated"}


def test_an_answer_is_corrected_or_kept_with_the_keyboard_alone(
    browser: Browser, workspace: Workspace
) -> None:
    put_campaign(workspace, [one("p", "teh answer"), one("q", "right"), one("r", "skipped")], kind="edit")
    ready = "[data-choice=edited]:not([aria-disabled=true]):visible"
    with serving_page(workspace) as served:
        bea = Rater(browser, served.url, "Bea", viewport={"width": 390, "height": 844})
        bea.page.fill("#llmops-rater", "Bea")
        press(bea, "Enter")
        bea.page.wait_for_selector(ready)
        assert serious_faults(bea) == []
        assert bea.page.inner_text("[data-choice=edited]").startswith("Keep as it is")
        press(bea, "e", "Control+a")
        bea.page.keyboard.type("the answer, 1 2 3 s u")
        assert bea.page.inner_text("[data-choice=edited]").startswith("Save correction")
        press(bea, "Control+Enter")
        bea.saved()
        bea.page.wait_for_selector(ready)
        line = bea.text("status")
        press(bea, "Control+Enter")
        bea.saved(line)
        bea.page.wait_for_selector(ready)
        assert bea.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        press(bea, "s")
        bea.page.wait_for_selector("[data-view=done]:visible")
        press(bea, "z")
        bea.page.wait_for_selector("[data-part=review]:visible")
        press(bea, "z")
        bea.page.wait_for_function(
            "document.querySelector('[data-part=review]').innerText.includes('Kept as it is')"
        )
        press(bea, "z")
        bea.page.wait_for_function("document.querySelector('#llmops-edit').value === 'the answer, 1 2 3 s u'")
        bea.close()
    assert [r.choice for r in ratings_of(workspace, "Bea")] == ["edited", "kept", "skip"]


@pytest.mark.walk
def test_a_typed_prompt_is_answered_by_both_and_voted_on(browser: Browser, room: Room) -> None:
    counterpart = room.serve(by_model)
    put_typed(room, counterpart)
    command = [sys.executable, "-P", "-m", "llmops.cli", "feedback", "ui", "typed", "--port", "0"]
    environment = {**os.environ, "LLMOPS_WORKSPACE": str(room.workspace.root)}
    served = started([*command, "--endpoint", counterpart.url], room.workspace, env=environment)
    try:
        cid = Rater(browser, served.url, "Cid")
        cid.page.fill("#llmops-rater", "Cid")
        press(cid, "Enter")
        cid.page.wait_for_selector("[data-view=ask]:visible")
        assert serious_faults(cid) == []
        cid.page.keyboard.type("Say 1 or 2, s!")
        press(cid, "Control+Enter")
        prompt, *texts = cid.ready().shown()
        assert prompt == "Say 1 or 2, s!"
        assert sorted(texts) == ["Say 1 or 2, s! adapted 1", "Say 1 or 2, s! base 1"]
        press(cid, "2")
        cid.saved()
        cid.page.wait_for_selector("[data-view=ask]:visible")
        assert cid.page.input_value("#llmops-prompt") == ""
        names = (room.adapter.model_name, room.base.model_name, room.adapter.adapter, room.base.digest)
        assert not [name for name in names if name in "".join(cid.bodies.values())]
        cid.close()
    finally:
        served.kill()
    (row,) = ratings_of(room.workspace, "Cid", "typed")
    assert (row.choice, row.preferred == 0) == ("right", "adapted" in texts[1])


def test_raters_sign_in_by_password_or_key_and_no_name_or_address_is_kept(
    browser: Browser, workspace: Workspace
) -> None:
    put_campaign(workspace, plain_items(3), votes=9)
    keys = Keys.of(workspace)
    keys.create(NewKey("Ann Rater", "rater", password="correct horse"))
    token = keys.create(NewKey("Boss", "operator")).token
    assert token is not None
    with serving_page(workspace) as served:
        ann = Rater(browser, served.url, "Ann Rater")
        ann.page.wait_for_selector("#llmops-password:visible")
        assert serious_faults(ann) == []
        ann.page.keyboard.type("Ann Rater")
        press(ann, "Tab")
        ann.page.keyboard.type("wrong horse")
        press(ann, "Enter")
        ann.page.wait_for_selector("[data-part=error]:visible")
        assert "no live key or password" in ann.text("error-text")
        ann.page.fill("#llmops-password", "correct horse")
        press(ann, "Enter")
        ann.ready().answer("a")
        assert not ann.page.is_visible("[data-tab=admin]")
        ann.page.reload()
        ann.ready().answer("b")
        assert COOKIE not in ann.page.evaluate("document.cookie")
        assert ann.page.evaluate("Object.values(localStorage).join()") == ""
        boss = Rater(browser, served.url, "Boss")
        boss.page.click("[data-do=other]")
        boss.page.fill("#llmops-key", token)
        press(boss, "Enter")
        boss.ready().page.click("[data-tab=admin]")
        boss.page.wait_for_selector(".plot:visible >> nth=3")
        assert "Ann Rater" in boss.page.inner_text("[data-part=numbers]")
        ann.page.click("[data-do=leave]")
        ann.page.wait_for_selector("#llmops-password:visible")
        ann.page.reload()
        ann.page.wait_for_selector("#llmops-password:visible")
        ann.close()
        boss.close()
    assert {r.rater for r in ratings_of(workspace)} == {rater_id(workspace, "Ann Rater")}
    _require_nobody(workspace)


def _require_nobody(workspace: Workspace) -> None:
    """No row but those of the keys has a name, no row at all and no log an address."""
    with Ledger.of(workspace).engine.connect() as connection:
        for table in metadata.sorted_tables:
            rows = str(connection.execute(text(f"SELECT * FROM {table.name}")).all())
            assert "127.0.0.1" not in rows
            assert table.name == "access_keys" or "Ann Rater" not in rows
    logs = list(workspace.logs.glob("*")) if workspace.logs.is_dir() else []
    assert not [log for log in logs if "127.0.0.1" in log.read_text() or "Ann Rater" in log.read_text()]

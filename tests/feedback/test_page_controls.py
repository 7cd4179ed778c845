"""Every control of the page beside the five answers, by mouse and by keyboard, through a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser

from llmops.ratings.outcomes import live
from llmops.settings import find_workspace
from tests.feedback.browser import (
    ROOT,
    Rater,
    Served,
    chromium,
    item,
    press,
    put_campaign,
    ratings_of,
    serious_faults,
    serving_page,
    sit,
)

pytestmark = pytest.mark.browser

MARKED = "Use **this**:\n\n```py\nprint(1)\n```\n\n![cat](https://elsewhere.example/cat.png) [go](https://elsewhere.example)"
NAMING = "As an AI made by Acme, I say: 4."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with the shipped rubric whose three items every rater of this file may rate."""
    root: Path = tmp_path_factory.mktemp("page")
    (root / "llmops.yaml").write_text("name: test\n")
    (root / "feedback_ui").mkdir()
    (root / "feedback_ui" / "rubric.yaml").write_bytes((ROOT / "feedback_ui" / "rubric.yaml").read_bytes())
    workspace = find_workspace(root)
    items = [
        item("How is it **printed**?", MARKED, "You print it.\n\n- so\n- or so"),
        item("What is 2 + 2?", NAMING, "4."),
        item("plain prompt", "plain answer", "other answer"),
    ]
    put_campaign(workspace, items, votes=99)
    with serving_page(workspace) as page:
        yield page


@pytest.fixture(scope="module")
def seat(browser: Browser, served: Served) -> Iterator[Rater]:
    """An open page on which one rater after the other sits down: loading Gradio's front end costs seconds."""
    opened = Rater(browser, served.url, "nobody", viewport={"width": 1280, "height": 900})
    yield opened
    opened.close()


def come_to(rater: Rater, prompt: str) -> Rater:
    """Skip until an item is on the screen."""
    while rater.ready().shown()[0] != prompt:
        rater.answer("skip")
    return rater


def test_reasons_and_a_note_are_saved_with_the_answer_and_shown_again(seat: Rater, served: Served) -> None:
    ann = sit(seat, "Ann")
    ann.page.click(".chip:has-text('too long')")
    ann.page.click(".chip:has-text('wrong')")
    ann.page.fill("#llmops-note", "  B is 1 line shorter  ")
    ann.answer("b")
    ann.ready()
    assert ann.page.locator(".chip :checked").count() == 0
    assert ann.page.input_value("#llmops-note") == ""
    (row,) = ratings_of(served.workspace, "Ann")
    assert (row.choice, row.tags) == ("right", ("wrong", "too long"))
    assert row.dwell_ms is not None
    assert 0 < row.dwell_ms < 60_000
    press(ann, "z")
    ann.page.wait_for_selector("[data-part=review]:visible")
    assert ann.page.input_value("#llmops-note") == "B is 1 line shorter"
    assert ann.page.locator(".chip:has(:checked)").all_text_contents() == ["wrong", "too long"]


def test_what_was_begun_outlives_a_reload(seat: Rater, served: Served) -> None:
    kim = sit(seat, "Kim")
    kim.page.click(".chip:has-text('unclear')")
    kim.page.fill("#llmops-note", "half a thought")
    kim.page.reload()
    kim.ready()
    assert kim.page.input_value("#llmops-note") == "half a thought"
    assert kim.page.locator(".chip:has(:checked)").all_text_contents() == ["unclear"]
    kim.answer("a")
    kim.ready()
    assert kim.page.input_value("#llmops-note") == ""


def test_keys_do_nothing_in_the_note_and_escape_makes_them_keys_again(seat: Rater, served: Served) -> None:
    bea = sit(seat, "Bea")
    bea.page.click("#llmops-note")
    bea.page.keyboard.type("1 2 3 4 s u z abtx gr")
    press(bea, "Enter", "Control+Enter")
    assert bea.page.input_value("#llmops-note") == "1 2 3 4 s u z abtx gr\n"
    assert ratings_of(served.workspace, "Bea") == []
    press(bea, "Escape", "s")
    bea.saved()
    assert [r.choice for r in ratings_of(served.workspace, "Bea")] == ["skip"]


def test_undo_by_key_or_button_takes_the_last_answer_back(seat: Rater, served: Served) -> None:
    cid = sit(seat, "Cid")
    first = cid.shown()
    press(cid, "u")
    cid.page.wait_for_function(
        "document.querySelector('[data-part=status]').innerText.startsWith('Nothing to undo')"
    )
    cid.answer("a")
    second = cid.ready().shown()
    press(cid, "u")
    cid.page.wait_for_selector("[data-part=review]:visible")
    assert cid.text("status").startswith("undone #")
    assert cid.ready().shown() == first
    assert "0 of 3 rated by you" in cid.text("standing")
    cid.answer("tie", "3")
    assert cid.ready().shown() == second
    cid.page.click("[data-do=undo]")
    cid.page.wait_for_selector("[data-part=review]:visible")
    press(cid, "n")
    cid.page.wait_for_selector("[data-part=review]", state="hidden")
    rows = ratings_of(served.workspace, "Cid")
    assert [r.choice for r in rows] == ["left", "undone", "tie", "undone"]
    assert [r.supersedes for r in rows] == [None, *(r.digest for r in rows[:3])]
    assert [r.choice for r in live(rows)] == ["undone"]


def test_markdown_is_drawn_and_the_raw_text_is_one_key_away(seat: Rater, served: Served) -> None:
    dan = sit(seat, "Dan")
    rich = dan.page.locator(".answer .rich")
    come_to(dan, "How is it **printed**?")
    code = dan.page.locator(".answer .rich pre code")
    assert code.text_content() == "print(1)\n"
    assert rich.locator("strong").text_content() == "this"
    assert rich.locator("li").count() == 2
    assert "image: cat (https://elsewhere.example/cat.png)" in "".join(rich.all_text_contents())
    assert dan.page.locator(".desk :is(img, a, script)").count() == 0
    assert not dan.page.locator(".answer .text").nth(0).is_visible()
    press(dan, "r")
    assert dan.page.get_attribute("[data-do=raw]", "aria-pressed") == "true"
    assert MARKED in dan.page.locator(".answer .text").all_text_contents()
    assert not rich.nth(0).is_visible()
    dan.page.click("[data-do=raw]")
    assert rich.nth(0).is_visible()
    assert not dan.foreign()


def test_an_answer_that_names_its_writer_is_marked_and_shown_whole(seat: Rater, served: Served) -> None:
    eve = sit(seat, "Eve")
    _, *answers = come_to(eve, "What is 2 + 2?").shown()
    side = "ab"[answers.index(NAMING)]
    assert eve.text(f"named-{side}") == "It says who wrote it: “As an AI made by Acme”. Judge the rest."
    assert eve.page.locator(f"[data-part=text-{side}] mark").text_content() == "As an AI made by Acme"
    assert not eve.page.is_visible(f"[data-part=named-{'ba'['ab'.index(side)]}]")


def test_guidelines_open_and_close_by_key_and_button(seat: Rater, served: Served) -> None:
    fay = sit(seat, "Fay")
    opener = fay.page.locator(".top [data-do=guide]")
    assert opener.get_attribute("aria-expanded") == "false"
    press(fay, "g")
    guide = fay.page.locator("[data-part=guide]")
    assert guide.is_visible()
    assert "Length is no merit" in guide.inner_text()
    assert opener.get_attribute("aria-expanded") == "true"
    fay.page.click(".guide .close")
    assert not guide.is_visible()
    assert fay.page.evaluate("document.activeElement.dataset.do") == "guide"


def test_the_browsers_back_button_leaves_the_admin_tab_and_votes_nothing(seat: Rater, served: Served) -> None:
    gus = sit(seat, "Gus")
    gus.answer("a")
    shown = gus.ready().shown()
    gus.page.click("[data-tab=admin]")
    gus.page.wait_for_selector(".plot:visible >> nth=3")
    assert gus.page.get_attribute("[data-tab=admin]", "aria-current") == "page"
    assert not gus.page.is_visible("[data-part=choices]")
    press(gus, "1", "2", "3")
    gus.page.go_back()
    assert gus.ready().shown() == shown
    gus.page.go_forward()
    gus.page.wait_for_selector("[data-view=admin]:visible")
    gus.page.goto("about:blank")
    gus.page.go_back()
    gus.page.wait_for_selector("[data-view=item]:visible")
    assert gus.ready().shown() == shown
    assert len(ratings_of(served.workspace, "Gus")) == 1


def test_leaving_asks_for_a_name_again_and_the_next_rater_is_another(seat: Rater, served: Served) -> None:
    hal = sit(seat, "Hal")
    hal.page.click("[data-do=leave]")
    hal.page.wait_for_selector(".name:visible")
    assert hal.page.input_value("#llmops-rater") == "Hal"
    sit(seat, "Ida").answer("a")
    assert ratings_of(served.workspace, "Hal") == []
    assert len(ratings_of(served.workspace, "Ida")) == 1


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_no_serious_fault_wherever_a_rater_comes(
    browser: Browser, served: Served, scheme: Literal["light", "dark"], width: int
) -> None:
    size = {"width": width, "height": 844}
    joy = Rater(browser, served.url, f"Joy {scheme}", color_scheme=scheme, viewport=size)
    joy.page.wait_for_selector(".name:visible")
    faults = [serious_faults(joy)]
    come_to(joy.sign_in(), "How is it **printed**?").page.click(".chip:has-text('wrong')")
    press(joy, "g")
    faults.append(serious_faults(joy))
    press(joy, "g")
    while not joy.page.is_visible("[data-view=done]"):
        joy.ready().answer("tie")
        joy.page.wait_for_selector(
            "[data-choice=a]:not([aria-disabled=true]):visible, [data-view=done]:visible"
        )
    faults.append(serious_faults(joy))
    joy.page.click("[data-tab=admin]")
    joy.page.wait_for_selector(".plot:visible >> nth=3")
    faults.append(serious_faults(joy))
    assert faults == [[]] * 4
    assert joy.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    joy.close()

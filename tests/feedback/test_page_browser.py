"""The rating page through a real browser: what a rater sees, what they press, and what the database then holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from llmops.ledger import Ledger
from llmops.ratings.campaigns import close_campaign
from llmops.ratings.check import verify_ratings
from llmops.ratings.outcomes import live
from llmops.registry.adapters import Registry
from llmops.settings import Workspace, find_workspace
from tests.feedback.browser import (
    GROUP,
    SOURCE,
    SYSTEMS,
    Rater,
    Served,
    chromium,
    item,
    plain_items,
    put_campaign,
    rater_id,
    ratings_of,
    require_same,
    serving_page,
    sit,
    start_page,
)

pytestmark = pytest.mark.browser

HOSTILE = [
    "<script>window.hit = 1</script><b>bold</b> &amp; &lt;",
    '<img src="/nothing" onerror="window.hit = 2"><svg onload="window.hit = 3">',
    "$$x^2$$ \\(y\\) ${window.hit = 4} {{value}} `tick`",
    "# heading\n\n* star\n\n| a | b |\n|---|---|\n[link](javascript:alert(1))",
    "x" * 5000,
    "emoji \U0001f469\u200d\U0001f4bb and \u0643\u0644\u0645\u0629 \u05e9\u05dc\u05d5\u05dd right to left",
    "  leading blanks\n\tand a tab\r\nand a carriage return\n\n\ntwo empty lines  ",
]
CONTRAST = """selectors => {
  const parse = text => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return selectors.flatMap(s => [...document.querySelectorAll(s)].map(e => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    return [s, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page whose campaign of seven items every rater of this file may rate."""
    root: Path = tmp_path_factory.mktemp("page")
    (root / "llmops.yaml").write_text("name: test\n")
    workspace = find_workspace(root)
    put_campaign(workspace, plain_items(7), votes=99)
    with serving_page(workspace) as page:
        yield page


@pytest.fixture(scope="module")
def seat(browser: Browser, served: Served) -> Iterator[Rater]:
    """An open page on which one rater after the other sits down."""
    opened = Rater(browser, served.url, "nobody")
    yield opened
    opened.close()


def test_each_answer_by_mouse_or_key_is_the_row_of_the_text_that_was_shown(
    seat: Rater, served: Served
) -> None:
    ann = sit(seat, "Ann")
    ways = [
        ("a", None), ("b", "2"), ("tie", "t"), ("both_bad", "x"), ("skip", "5"), ("b", "ArrowRight"), ("a", "A"),
    ]  # fmt: skip
    seen = []
    for choice, key in ways:
        seen.append(ann.ready().answer(choice, key))
        assert f"{len(seen)} of 7 rated by you" in ann.text("standing")
    ann.page.wait_for_selector("[data-view=done]:visible")
    assert "All 7 answers of yours are saved" in ann.text("done-text")
    require_same(served.workspace, "Ann", seen)
    assert not ann.foreign()
    assert not [c for c in ann.complaints if "Content Security Policy" in c or "Error" in c]


def test_reload_shows_the_same_item_on_the_same_sides_and_keeps_the_name(seat: Rater, served: Served) -> None:
    bea = sit(seat, "Bea")
    seen = [bea.answer("a")]
    before = bea.ready().shown()
    bea.page.reload()
    assert bea.ready().shown() == before
    assert bea.text("rater") == "Bea"
    seen.append(bea.answer("b", "b"))
    require_same(served.workspace, "Bea", seen)


def test_back_shows_the_sides_again_and_another_answer_supersedes(seat: Rater, served: Served) -> None:
    cid = sit(seat, "Cid")
    first = cid.shown()
    seen = [cid.answer("a")]
    second = cid.ready().shown()
    seen.append(cid.answer("tie"))
    third = cid.ready().shown()
    cid.page.keyboard.press("z")
    cid.page.wait_for_selector("[data-part=review]:visible")
    assert cid.shown() == second
    assert cid.page.get_attribute("[data-choice=tie]", "aria-pressed") == "true"
    cid.page.click(".bar [data-do=back]")
    cid.page.wait_for_function("text => document.body.innerText.includes(text)", arg=f"#{seen[0].number}")
    assert cid.ready().shown() == first
    seen.append(cid.answer("b"))
    assert cid.ready().shown() == third, "after a change the open item comes back"
    require_same(served.workspace, "Cid", seen)
    rows = ratings_of(served.workspace, "Cid")
    assert rows[-1].supersedes == rows[0].digest
    assert [r.number for r in live(rows)] == [seen[1].number, seen[2].number]


def test_nothing_that_tells_the_systems_or_the_drawn_side_reaches_the_browser(
    browser: Browser, served: Served
) -> None:
    dan = Rater(browser, served.url, "Dan").sign_in()
    dan.answer("a")
    dan.ready().page.keyboard.press("z")
    dan.page.wait_for_selector("[data-part=review]:visible")
    bodies = [*dan.bodies.values(), dan.page.content()]
    replies = [body for key, body in dan.bodies.items() if "component_server" in key]
    assert len(replies) == 4
    for body in bodies:
        assert not [word for word in (*SYSTEMS, "5ec2e7", GROUP, SOURCE, '"left"') if word in body]
    for row in ratings_of(served.workspace, "Dan"):
        assert not [body for body in bodies if row.item in body or row.campaign in body]
    known = {
        "rater", "about", "standing", "item", "saved", "given", "showing", "messages", "role", "content", "html",
        "answers", "text", "named", "n_items", "n_full", "n_mine", "number", "choice", "tags", "scores", "note", "edit",
        "question", "questions", "kind", "typed", "admin", "guidelines", "accounts", "signed_in", "id", "scale",
        "required", "overall",
    }  # fmt: skip
    assert set(re.findall(r'"(\w+)":', "".join(replies))) <= known
    dan.close()


def test_a_second_press_never_answers_the_next_item(seat: Rater, served: Served) -> None:
    eve = sit(seat, "Eve")
    # Two presses at once, and one more in the moment in which the next item is drawn.
    eve.page.evaluate("""() => {
      const press = repeat => document.body.dispatchEvent(
        new KeyboardEvent('keydown', { key: '1', bubbles: true, cancelable: true, repeat }));
      new MutationObserver(() => press(false))
        .observe(document.querySelector('[data-part=text-a]'), { childList: true });
      press(false); press(false); press(true);
    }""")
    eve.saved()
    eve.ready()
    assert len(ratings_of(served.workspace, "Eve")) == 1
    line = eve.text("status")
    eve.page.dblclick("[data-choice=b]")
    eve.saved(line)
    eve.ready()
    assert [r.choice for r in ratings_of(served.workspace, "Eve")] == ["left", "right"]


def test_keys_with_modifiers_or_in_the_name_field_rate_nothing(seat: Rater, served: Served) -> None:
    fay = seat
    if fay.page.is_visible("[data-do=leave]"):
        fay.page.click("[data-do=leave]")
    fay.page.fill("#llmops-rater", "")
    fay.page.keyboard.type("Fay a1b2 x")
    assert fay.page.input_value("#llmops-rater") == "Fay a1b2 x"
    fay.page.keyboard.press("Enter")
    fay.ready()
    for combination in ("Control+1", "Alt+2", "Meta+3", "Control+s", "Backspace", "q"):
        fay.page.keyboard.press(combination)
    fay.page.keyboard.press("4")
    fay.saved()
    assert [r.choice for r in ratings_of(served.workspace, "Fay a1b2 x")] == ["both_bad"]


def test_one_rater_in_two_tabs_has_one_live_rating_of_an_item(browser: Browser, served: Served) -> None:
    gus = Rater(browser, served.url, "Gus").sign_in()
    first = gus.page
    second = gus.context.new_page()
    second.goto(served.url)
    gus.page = second
    shown = gus.ready().shown()
    gus.page = first
    assert gus.shown() == shown
    seen = [gus.answer("a")]
    gus.page = second
    seen.append(gus.answer("b"))
    require_same(served.workspace, "Gus", seen)
    rows = ratings_of(served.workspace, "Gus")
    assert len({r.item for r in rows}) == 1
    assert [r.choice for r in live(rows)] == ["right"]
    gus.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable_in_light_and_dark(browser: Browser, served: Served, scheme: str) -> None:
    hal = Rater(browser, served.url, f"Hal {scheme}", color_scheme=scheme)
    names = [".name h1", ".name label", ".hint", ".name .go"]
    hal.page.wait_for_selector(".name:visible")
    ratios = hal.page.evaluate(CONTRAST, names)
    hal.sign_in().answer("a")
    hal.ready().page.keyboard.press("z")
    hal.page.wait_for_selector("[data-part=review]:visible")
    texts = [
        ".question",
        ".text",
        "h2",
        ".letter",
        ".choice",
        "kbd",
        ".plain",
        ".progress",
        ".who",
        ".status b",
    ]
    ratios += hal.page.evaluate(CONTRAST, texts)
    assert len(ratios) > 20
    assert [pair for pair in ratios if pair[1] < 4.5] == []
    hal.close()


def test_answers_stand_side_by_side_or_stacked_and_buttons_stay_in_view(seat: Rater, served: Served) -> None:
    for width, height, stacked in ((1280, 800, False), (390, 844, True)):
        seat.page.set_viewport_size({"width": width, "height": height})
        ira = sit(seat, f"Ira {width}")
        a, b = (ira.page.locator(".answer").nth(i).bounding_box() for i in (0, 1))
        assert a is not None and b is not None  # noqa: PT018 - boxes, for the type checker
        assert (b["y"] >= a["y"] + a["height"]) == stacked
        assert (b["x"] >= a["x"] + a["width"]) != stacked
        assert ira.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for choice in ("a", "b", "tie", "both_bad", "skip"):
            box = ira.page.locator(f"[data-choice={choice}]").bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= height
            assert box["height"] >= 44, "large enough for a finger"


def test_saved_is_announced_and_errors_are_alerts_and_all_buttons_have_names(
    seat: Rater, served: Served
) -> None:
    joy = sit(seat, "Joy")
    joy.answer("a")
    tree = joy.page.locator(".desk").aria_snapshot()
    assert re.search(r"status:.*saved #", tree, re.DOTALL)
    for name in ("A better 1", "B better 2", "Tie 3", "Both bad 4", "Skip s", "Undo u", "Back z"):
        assert f'button "{name}"' in tree
    assert 'region "Prompt"' in tree
    assert joy.page.get_attribute("[data-part=status]", "aria-live") == "polite"
    assert joy.page.get_attribute("[data-part=error]", "role") == "alert"
    joy.page.keyboard.press("Tab")
    outline = joy.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_hostile_texts_are_shown_literally(browser: Browser, workspace: Workspace) -> None:
    items = [item(text, text + " first", text + " second") for text in HOSTILE]
    put_campaign(workspace, items)
    with serving_page(workspace) as served:
        kim = Rater(browser, served.url, "<i>Kim</i>").sign_in()
        seen = []
        for hostile in items:
            prompt, *answers = kim.ready().shown()
            assert prompt == hostile.messages[0].content
            assert sorted(answers) == sorted(hostile.answers)
            assert kim.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert (
                kim.page.locator(".desk :is(script, img, a, svg, iframe, [onerror], [onload])").count() == 0
            )
            seen.append(kim.answer("a"))
        kim.page.wait_for_selector("[data-view=done]:visible")
        assert "Every item is done" in kim.text("done-head")
        assert kim.page.evaluate("window.hit") is None
        assert not kim.foreign()
        assert not [url for url in kim.requests if url.endswith("/nothing")]
        require_same(workspace, "<i>Kim</i>", seen)
        kim.close()


def test_two_raters_at_once_never_rate_the_same_item_when_one_vote_is_wanted(
    browser: Browser, workspace: Workspace
) -> None:
    put_campaign(workspace, plain_items(6), votes=1)
    with serving_page(workspace) as served:
        raters = [Rater(browser, served.url, name).sign_in() for name in ("Lea", "Max")]
        for _ in range(3):
            for rater in raters:
                rater.ready().answer("a")
        for rater in raters:
            rater.page.wait_for_selector("[data-view=done]:visible")
            rater.close()
    rows = ratings_of(workspace)
    assert [r.rater for r in rows] == [rater_id(workspace, name) for name in ("Lea", "Max")] * 3
    assert len({r.item for r in rows}) == 6


def test_a_closed_campaign_and_a_dead_server_never_say_saved(browser: Browser, workspace: Workspace) -> None:
    campaign = put_campaign(workspace, plain_items(4))
    served = start_page(workspace)
    ned = Rater(browser, served.url, "Ned").sign_in()
    seen = [ned.answer("a")]
    ned.ready()
    served.kill()
    shown = ned.shown()
    ned.page.keyboard.press("2")
    ned.page.wait_for_selector("[data-part=error]:visible")
    assert "did not confirm" in ned.text("error-text")
    assert "saved" not in ned.text("status")
    assert ned.shown() == shown

    restarted = start_page(workspace, port=int(served.url.rsplit(":", 1)[1]))
    try:
        seen.append(ned.answer("b"))
        assert not ned.page.is_visible("[data-part=error]")
        close_campaign(Ledger.of(workspace), campaign)
        ned.ready().page.keyboard.press("1")
        ned.page.wait_for_selector("[data-part=error]:visible")
        assert ned.text("error-text").startswith("Not saved: campaign c: is closed")
        assert "saved" not in ned.text("status")
    finally:
        restarted.kill()
    require_same(workspace, "Ned", seen)
    registry = Registry.of(workspace)
    assert verify_ratings(registry.store, registry.ledger) == 2
    ned.close()

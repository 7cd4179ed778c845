"""Pictures of figures: where things are drawn is closed form, and nothing that is named can do anything."""

from __future__ import annotations

import re

import pytest

from llmops.feedback.admin import figures
from llmops.feedback.plots import EDGE, SHARE, Axis, Plot, Row, bars, box, figure, interval, parts
from llmops.ratings.book import Answer
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from tests.feedback.browser import SYSTEMS, book_of, item, plain_items, put_campaign
from tests.feedback.test_texts import Listing

INSIDE = 100 - 2 * EDGE


def places(drawing: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'\b{name}="([0-9.]+)%"', drawing)]


def test_a_value_lies_at_its_share_of_the_axis_and_what_is_outside_at_the_edge() -> None:
    axis = Axis(10, 30, ())
    assert [axis.at(v) for v in (10, 15, 30)] == pytest.approx([EDGE, EDGE + INSIDE / 4, 100 - EDGE])
    assert (axis.at(-5), axis.at(99)) == (EDGE, 100 - EDGE)
    log = Axis(1, 100, (), log=True)
    assert log.at(10) == pytest.approx(50)


def test_an_interval_is_a_line_from_low_to_high_with_its_value_in_it() -> None:
    drawn = interval(SHARE, 0.5, 0.25, 0.75)
    assert places(drawn, "cx") == [50.0]
    assert 'class="span" x1="26.50%" x2="73.50%"' in drawn


def test_counts_side_by_side_fill_their_shares() -> None:
    drawn = parts([(1, 3), (2, 1)], 8)
    assert places(drawn, "x")[1:] == [0.0, 37.5]
    assert places(drawn, "width")[1:] == [37.5, 12.5]
    assert places(parts([(1, 0)], 0), "width") == [100.0, 0.0]


def test_bars_are_as_high_as_their_counts() -> None:
    assert places(bars([2, 0, 4], 4), "height") == [50.0, 100.0]


def test_a_box_runs_from_quartile_to_quartile() -> None:
    drawn = box(Axis(0, 100, ()), (0, 25, 50, 75, 100))
    assert places(drawn, "x") == [EDGE + INSIDE / 4]
    assert places(drawn, "width") == [INSIDE / 2]


def test_names_in_a_picture_are_text() -> None:
    html = str(
        figure(
            Plot(
                "<b>", "<i>", (Row('"><script>', parts([], 1), "<u>"),), ("<a>", "<s>"), legend=((1, "<q>"),)
            )
        )
    )
    listing = Listing(html)
    assert not listing.tags & {"b", "i", "script", "u", "a", "s", "q"}
    assert all(name in listing.text for name in ("<b>", "<i>", '"><script>', "<u>", "<q>"))


# ---------------------------------------------------------------- the admin tab


def rated(workspace: Workspace, rater: str, choices: list[str]) -> None:
    book = book_of(workspace)
    for choice in choices:
        showing = book.next(rater)
        assert showing is not None
        book.rate(showing.id, Answer(choice, dwell_ms=4000))


def test_the_admin_tab_says_in_words_what_it_draws(workspace: Workspace) -> None:
    put_campaign(workspace, plain_items(6), votes=2)
    rated(workspace, "a" * 64, ["left"] * 6)
    rated(workspace, "b" * 64, ["left", "left", "tie", "skip"])
    html = str(figures(Registry.of(workspace), book_of(workspace), {"a" * 64: "<Ann>"}))
    text = Listing(html).text
    for said in (
        "9 answers by 2 raters; 0 items in view now", "3 of 6 done", "<Ann>", "#bbbbbb", "6 / 0", "3 / 1",
        "median 4.0 s", "100 % [54, 100] of 6", "100 % [63, 100] of 8", "Leaderboard",
    ):  # fmt: skip
        assert said in text, said
    assert "script" not in html
    assert (
        '<tr class="off"><th scope="row" title="&lt;Ann&gt;">' in html
    )  # six of six on the left call for a look


def test_who_wins_a_gate_is_not_drawn_before_its_votes_are_in(workspace: Workspace) -> None:
    from tests.ratings.campaign import book_of as opened
    from tests.ratings.campaign import make_campaign

    campaign = make_campaign(workspace, [item(f"p{i}", f"a{i}", f"b{i}") for i in range(3)], purpose="gate")
    book, registry = opened(workspace, campaign), Registry.of(workspace)
    for place in range(3):
        html = str(figures(registry, book, {}))
        assert "Not shown: nobody looks at a gate" in html
        assert not [system for system in campaign.systems if system[:12] in html], place
        showing = book.next("ann")
        assert showing is not None
        book.rate(showing.id, "left" if showing.left == 0 else "right")
    html = str(figures(registry, book, {}))
    assert "Outcomes of items: first 3" in html
    assert campaign.systems[0][:12] in html


def test_systems_of_a_train_campaign_are_ranked_by_their_names(workspace: Workspace) -> None:
    put_campaign(workspace, plain_items(4))
    rated(workspace, "a" * 64, ["tie"] * 4)
    text = Listing(str(figures(Registry.of(workspace), book_of(workspace), {}))).text
    assert all(system[:12] in text for system in SYSTEMS)
    assert "+0.00 [+0.00, +0.00]" in text


def test_the_admin_tab_ranks_over_all_campaigns_once_another_one_counts(workspace: Workspace) -> None:
    def rated(name: str) -> str:
        put_campaign(workspace, plain_items(4), name=name)
        book = book_of(workspace, name)
        while (showing := book.next("ann")) is not None:
            book.rate(showing.id, "left" if showing.left == 0 else "right")
        return str(figures(Registry.of(workspace), book, {}))

    assert "over all campaigns" not in rated("one")
    both = rated("two")
    assert "Leaderboard over all campaigns" in both
    assert "8 votes in 2 campaigns" in both

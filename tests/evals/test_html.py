"""The page: self-contained, escaped, and showing the numbers of the reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from llmops.evals.plots import forest, histogram, scatter
from llmops.evals.run import report_page
from llmops.stats import Interval
from tests.evals.conftest import Room, number, right
from tests.evals.counterpart import Fault

HOSTILE = "<script>alert('gotcha')</script><img src=x onerror=alert(1)>\"'&amp; \u202e"
VOID = {"meta", "br", "img", "link", "line", "circle", "rect", "path"}


class Elements(HTMLParser):
    """Tags, attributes and text of a page; checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        # HTML lets these two stay open.
        while self.stack[-1] != tag and self.stack[-1] in ("p", "li"):
            self.stack.pop()
        assert self.stack.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    assert elements.stack == []
    return elements


def page_of(room: Room, script) -> tuple[str, list]:  # type: ignore[no-untyped-def,type-arg]
    reports = room.run(room.serve(script), room.suite(metrics=["rougeL", "bleu", "exact_match"]))
    return report_page(room.workspace, reports[0].session).read_text(encoding="utf-8"), reports


def test_hostile_answers_are_shown_as_text_and_nothing_is_loaded_from_elsewhere(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str:
        tuned = model == room.adapter.model_name
        return right(prompt) if tuned == (number(prompt) % 3 == 0) else f"{HOSTILE} {prompt}"

    page, _ = page_of(room, script)
    elements = parsed(page)
    assert any(HOSTILE in text for text in elements.text)
    names = {tag for tag, _ in elements.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "image", "use"}
    attributes = {name for _, found in elements.tags for name in found}
    assert not attributes & {"src", "href", "xlink:href", "srcset", "action", "background"}
    assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page
    policy = [a["content"] for tag, a in elements.tags if tag == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_page_shows_values_intervals_signatures_and_cases_side_by_side(room: Room) -> None:
    page, (base, tuned) = page_of(
        room, lambda m, p, n: right(p) if m == room.adapter.model_name else "no idea"
    )
    text = re.sub(r"\s+", " ", " ".join(parsed(page).text))
    for report in (base, tuned):
        found = report.metrics["rougeL"]
        assert f"{found.value:.1f} {found.low:.1f} – {found.high:.1f}" in text
        assert report.digest() in text
        assert report.completions in text
        assert report.metrics["rougeL"].signature in text
    assert base.suite_digest in text
    assert "Where it gained most" in text
    assert "Where it lost most" not in text
    assert re.search(
        r"question (\d+) reference answer \1 base@\w+ · 0\.0 no idea docs@\w+ · 100\.0 answer \1 ", text
    )
    assert "100 better, 0 worse, 0 equal." in text
    assert "+100.00 [+100.00, +100.00]" in text


def test_invalid_report_says_so_on_top(room: Room) -> None:
    page, _ = page_of(
        room, lambda m, p, n: Fault(status=400, message="<b>no</b>") if p.endswith("7") else right(p)
    )
    text = " ".join(parsed(page).text)
    assert "is no evidence" in text
    assert "first: HTTP 400: <b>no</b>" in text


def test_session_without_a_single_answer_still_has_a_page(room: Room) -> None:
    page, reports = page_of(room, lambda m, p, n: Fault(status=400))
    assert [r.metrics for r in reports] == [{}, {}]
    assert "cases errored" in " ".join(parsed(page).text)


def interval(estimate: float, low: float, high: float) -> Interval:
    return Interval(estimate, low, high, 0.95, 100, 1.0, "t")


def test_forest_always_shows_zero_and_every_bound_lies_on_the_axis() -> None:
    plot = forest({"a": interval(12, 9, 15), "b": interval(-3, -7.5, 1.5), "c": interval(-2, -3, -1)})
    assert [row.side for row in plot.rows] == ["+", "0", "-"]
    ticks = {tick.label: tick.at for tick in plot.ticks}
    assert ticks["0"] == plot.zero
    unit = (ticks["+5"] - ticks["0"]) / 5
    for row, expected in zip(plot.rows, [(9, 12, 15), (-7.5, -3, 1.5), (-3, -2, -1)], strict=True):
        assert (
            (row.low - plot.zero) / unit,
            (row.estimate - plot.zero) / unit,
            (row.high - plot.zero) / unit,
        ) == (pytest.approx(expected, abs=0.05))
        assert plot.left <= row.low <= row.high <= plot.right
    flat = forest({"a": interval(0, 0, 0)})
    assert flat.left <= flat.rows[0].low == flat.zero <= flat.right


def test_histogram_heights_are_shares_on_one_scale() -> None:
    plot = histogram([[0.0, 0.0, 100.0, 100.0], [50.0]], height=150)
    first, second = ([float(v) for v in re.findall(r"V([\d.]+)H", path)] for path in plot.paths)
    tall = plot.bottom - 8
    assert [plot.bottom - v for v in (first[0], first[10], first[19])] == [tall / 2, 0, tall / 2]
    assert [plot.bottom - v for v in (second[0], second[10], second[19])] == [0, tall, 0]
    assert plot.means[0] == plot.means[1] == 180


def test_scatter_places_cases_on_one_range_along_both_axes() -> None:
    plot = scatter([0, 50, 100, 30], [100, 50, 0, 40], size=340)
    assert plot.points[:3] == ((36, 36), (170, 170), (304, 304))

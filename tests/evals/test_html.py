"""The page: self-contained, escaped, and showing the numbers of the reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmops.evals.html import render
from llmops.evals.plots import forest, histogram, range_of, scatter
from llmops.evals.reports import markdown, marks
from llmops.evals.run import report_page
from llmops.records import Completion, ToolCall
from llmops.stats import Interval
from tests.evals.conftest import Room, number, right
from tests.evals.counterpart import Fault
from tests.evals.sessions import METRICS, SYSTEMS, case, completion, evaluated, seconds

BASE = next(iter(SYSTEMS))
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
    assert "+100.00 [+94.10, +100.00]" in text  # at most 1 - 0.05^(1/100) of other cases differ


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


def test_seconds_have_an_axis_of_their_own_and_less_of_them_is_green() -> None:
    cases = [case(i) for i in range(40)]

    def answering(system: str, i: int, k: int) -> Completion:
        slow = system.startswith("base")
        return completion(
            cases[i], system, f"answer {i if slow else 0}", latency_s=0.4 + i / 100 if slow else 0.2
        )

    page = render([evaluated(cases, answering, [METRICS["exact_match"], seconds()])])
    text = re.sub(r"\s+", " ", " ".join(parsed(page).text))
    assert "wait s ↓" in text
    assert "0.595 0.564 – 0.626 " in text
    low, high = (
        -0.395 + sign * 1.684875 * 0.1169045 / 40**0.5 for sign in (-1, 1)
    )  # t, 39 degrees of freedom
    (row,) = re.findall(r'style="fill: var\(--(\w+)\)">-0.395 s \[(-0\.\d+), (-0\.\d+)\]<', page)
    assert row == ("up", f"{low:.3f}", f"{high:.3f}")
    (points,) = re.findall(r'style="fill: var\(--(\w+)\)">-97.50 \[', page)
    assert points == "down"
    assert page.count('aria-label="Paired differences with intervals') == 2


def test_slices_show_each_systems_interval_and_the_difference() -> None:
    cases = [case(i, slices={"topic": "law" if i < 6 else "art"}) for i in range(7)]
    part = evaluated(
        cases, lambda system, i, k: f"answer {i}" if system.startswith("docs") and i < 3 else "no"
    )
    text = re.sub(r"\s+", " ", " ".join(parsed(render([part])).text))
    law = part.comparisons[0].slices[1].metrics[0].difference
    assert (law.estimate, law.n) == (50.0, 6)
    assert "law 6 0.0 0.0 – " in text
    assert f"+50.00 {law.low:+.2f} – {law.high:+.2f}" in text
    assert "art 1 – – –" in text  # one case has no interval


def test_conversations_calls_and_samples_stand_in_the_case_they_belong_to() -> None:
    call = ToolCall("look_up", '{"of":"<b>"}')
    cases = [
        case(i, follow_ups=("And in one word?",), references=(), expected={"tool": "look_up"})
        for i in range(3)
    ]

    def answering(system: str, i: int, k: int) -> Completion:
        wait = 0.5 if system.startswith("docs") else 0.25
        return completion(
            cases[i], system, "", earlier=(f"first said {k}",), tool_calls=(call,), sample=k, latency_s=wait
        )

    part = evaluated(cases, answering, [seconds()], samples=3, decoding={"temperature": 1, "max_tokens": 16})
    text = re.sub(r"\s+", " ", " ".join(parsed(render([part])).text))
    asked = 'user question 0 expected {"tool":"look_up"}'
    said = '{} · {} · first of 3 samples, the score is of all first said 0 And in one word? look_up({{"of":"<b>"}})'
    both = " ".join(
        said.format(name, wait) for name, wait in zip(SYSTEMS, ("0.250 s", "0.500 s"), strict=True)
    )
    assert f"{asked} {both}" in text
    assert "first said 1" not in text
    assert "3 cases from 2 groups, 3 answers each" in text


def test_answers_of_earlier_sessions_are_counted_where_there_are_any() -> None:
    cases = [case(i) for i in range(4)]
    texts = []
    for n in (0, 3):
        part = evaluated(cases, lambda s, i, k, n=n: completion(cases[i], s, f"answer {i}", cached=i < n))  # type: ignore[misc]
        texts.append(re.sub(r"\s+", " ", " ".join(parsed(render([part])).text)))
    assert "cached" not in texts[0]
    assert (
        f"of them cached errored cut at 16 tokens tokens, mean latency, median {BASE} 4 3 0 0 %" in texts[1]
    )


def test_a_difference_in_doubt_is_neither_better_nor_worse_and_says_why() -> None:
    cases = [case(i, group="same") for i in range(40)]
    part = evaluated(
        cases, lambda system, i, k: f"answer {i}" if system != BASE or i % 4 == 0 else "no", cluster="group"
    )
    (line,) = part.comparisons[0].metrics
    assert (line.difference.low > 0, line.side) == (True, "0")
    page, said = render([part]), "in doubt, all 40 cases are of one cluster"
    assert said in page
    assert "var(--up)" not in page[page.index("Paired differences") :]
    assert said.replace(",", ":") in markdown.of_session([part])
    assert marks.of_session("f", part) == []


def test_a_session_of_two_suites_has_a_section_for_each() -> None:
    parts = [
        evaluated([case(i) for i in range(n)], lambda system, i, k: f"answer {i}", name=name)
        for name, n in (("first", 3), ("second", 5))
    ]
    text = re.sub(r"\s+", " ", " ".join(parsed(render(parts)).text))
    first, second = text.index(" first 3 cases from 2 groups"), text.index(" second 5 cases from 3 groups")
    assert first < text.index("Difference, paired over 3 cases") < second
    assert second < text.index("Difference, paired over 5 cases")


@pytest.mark.browser
def test_page_fits_a_phone_and_follows_the_readers_colours(tmp_path: Path) -> None:
    from tests.feedback.browser import chromium

    cases = [case(i, slices={"topic": "law" if i % 2 else "art"}) for i in range(9)]
    names = {f"a-system-with-a-long-name-{i}@{i:012}": f"{i:064}" for i in range(3)}
    part = evaluated(
        cases, lambda s, i, k: completion(cases[i], s, f"answer {i}" * (1 + 40 * (i % 2)), latency_s=i + 0.1),
        [METRICS["rougeL"], METRICS["chrf"], seconds("a_metric_with_a_long_name_in_seconds")], names,
    )  # fmt: skip
    path = tmp_path / "report.html"
    path.write_text(render([part]), encoding="utf-8")
    papers = []
    with chromium() as browser:
        for width, scheme in ((390, "light"), (1180, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            messages: list[str] = []
            page.on("console", lambda message, kept=messages: kept.append(message.text))
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert messages == []  # nothing that the policy refuses
            papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(251, 251, 250)", "rgb(20, 22, 26)"]


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


def test_axes_of_other_units_end_at_round_numbers_that_hold_every_value() -> None:
    assert range_of([[0.11, 0.42], [0.3]]) == (0.0, 0.6)
    assert range_of([[-2.2, -1.1]]) == (-2.5, -1.0)
    assert range_of([[1040.0, 1090.0]]) == (1040.0, 1100.0)
    assert range_of([[7.0, 7.0]]) == (0.0, 8.0)
    assert range_of([[0.0], []]) == (0.0, 1.0)
    plot = scatter([1040.0], [1090.0], ends=(1040.0, 1100.0), size=340)
    assert plot.points == ((36.0, pytest.approx(340 - 36 - 268 * 50 / 60, abs=0.01)),)

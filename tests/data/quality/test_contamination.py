"""A training row holds a case when enough of the case's n-grams stand in that one row: at, below and above the line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops.data.quality.config import Contamination
from llmops.data.quality.contamination import build_index, contamination, overlaps
from tests.data.quality.planted import case, pair, row, words

N = 13


def holding(prompt: list[str], n_grams: int, seed: int = 99) -> str:
    """Text with exactly the first `n_grams` 13-grams of a prompt, between words of its own."""
    other = words(seed, 30)
    return " ".join([*other[:15], "zebra", *prompt[: n_grams + N - 1], "zebra", *other[15:]])


def reasons(rows: list, cases: list, **changes: object) -> list[str]:
    return [f.reason for f in contamination(rows, cases, Contamination(**changes)).findings]  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_grams", "held"), [(69, False), (70, True), (71, True), (100, True)])
def test_the_line_is_the_declared_fraction_of_a_cases_n_grams(n_grams: int, held: bool) -> None:
    prompt = words(1, 100 + N - 1)  # 100 n-grams
    rows = [row(" ".join(words(2, 80)), line=1), row(holding(prompt, n_grams), line=2)]
    found = contamination(rows, [case(prompt)], Contamination())
    assert [f.index for f in found.findings] == ([1] if held else [])
    assert found.distribution["largest_frac"] == n_grams / 100
    assert found.distribution["n_cases_held"] == int(held)


def test_halves_in_two_rows_hold_no_case() -> None:
    prompt = words(1, 112)
    rows = [row(" ".join(prompt[:62])), row(" ".join(prompt[50:]))]
    found = contamination(rows, [case(prompt)], Contamination(min_overlap_frac=0.6))
    assert found.findings == ()
    assert found.distribution["largest_frac"] == 0.5


@given(st.integers(0, 60), st.integers(14, 60), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_overlap_is_what_sets_of_word_tuples_give(start: int, length: int, seed: int) -> None:
    prompt = words(seed, 60)
    text = [*words(seed + 1, 20), *prompt[start : start + length], *words(seed + 2, 20)]
    one = row(" ".join(text), "Fine.")
    index = build_index([case(prompt)], Contamination())

    def grams(of: list[str]) -> set[tuple[str, ...]]:
        return {tuple(of[i : i + N]) for i in range(len(of) - N + 1)}

    shared = len(grams(prompt) & grams([*text, "fine"])) / len(grams(prompt))
    assert sum(o.frac for o in overlaps([one], index)) == pytest.approx(shared)


def test_unrelated_text_is_never_flagged() -> None:
    rows = [row(" ".join(words(s, 120)), line=s) for s in range(300)]
    cases = [case(words(1000 + s, 40 + s % 60), number=s) for s in range(300)]
    found = contamination(rows, cases, Contamination())
    assert found.findings == ()
    assert found.distribution["largest_frac"] == 0


def test_case_marks_and_line_breaks_do_not_hide_a_case() -> None:
    prompt = words(1, 40)
    text = ",\n".join(word.upper() for word in prompt)
    assert len(reasons([row(f"Note: {text}!")], [case(prompt)])) == 1


def test_a_case_in_an_answer_or_in_a_pairs_rejected_side_is_found() -> None:
    prompt = words(1, 40)
    text = " ".join(prompt)
    assert len(reasons([row("Tell me.", text)], [case(prompt)])) == 1
    assert len(reasons([pair("Tell me.", "No.", text)], [case(prompt)])) == 1


def test_one_changed_word_does_not_hide_a_short_case() -> None:
    prompt = words(1, 24)
    changed = [*prompt[:20], "zebra", *prompt[21:]]
    assert reasons([row(" ".join(changed))], [case(prompt)], min_overlap_frac=0.6) != []


def test_a_prompt_under_eight_words_counts_only_as_a_whole_prompt() -> None:
    short = case(["what", "is", "it"])
    assert len(reasons([row("What is it?")], [short])) == 1
    assert reasons([row("What is it good for?"), row("Say: what is it?", "What is it?")], [short]) == []


def test_a_template_that_all_cases_share_is_no_overlap() -> None:
    template = words(5, 60)
    cases = [case([*template, *words(100 + i, 20)], number=i) for i in range(20)]
    rows = [row(" ".join([*template, *words(200 + i, 20)]), line=i) for i in range(5)]
    assert reasons(rows, cases) == []
    assert len(reasons(rows, cases, template_frac=1, min_overlap_frac=0.6)) == 5
    leaked = row(" ".join([*template, *words(107, 20)]), line=9)
    assert reasons([leaked], cases) == ["contamination: 100% of case 000000000000 of suite s (cases.jsonl:8)"]


def test_suites_have_templates_of_their_own() -> None:
    text = words(1, 40)
    cases = [
        case(text, number=0, suite="a"),
        case(text, number=1, suite="b"),
        case(text, number=2, suite="c"),
    ]
    assert len(reasons([row(" ".join(text))], cases)) == 1


def test_the_reason_says_when_the_answer_stands_there_too() -> None:
    prompt = words(1, 40)
    known = case(prompt, ["The sum of both."])
    assert reasons([row(" ".join(prompt), "It is the sum of both.")], [known])[0].endswith("with its answer")
    assert not reasons([row(" ".join(prompt), "The sum.")], [known])[0].endswith("with its answer")


def test_a_row_is_named_with_the_case_it_holds_most_of() -> None:
    first, second = words(1, 60), words(2, 60)
    rows = [row(" ".join([*first[:50], "zebra", *second]))]
    assert "100% of case" in reasons(rows, [case(first, number=0), case(second, number=1)])[0]


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "数据质量检查很重要因为训练数据不能包含评测题目"
    assert len(reasons([row(f"请看{text}好吗")], [case(list(text))])) == 1
    assert reasons([row("今天天气很好我们一起去公园散步吧然后回家吃饭")], [case(list(text))]) == []


def test_nothing_to_compare_with_finds_nothing() -> None:
    assert contamination([row("a")], [], Contamination()).findings == ()
    assert contamination([], [case(words(1, 40))], Contamination()).findings == ()

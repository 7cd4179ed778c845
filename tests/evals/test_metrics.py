"""Numbers against sacrebleu and rouge_score themselves; comparisons against the test that fits their kind."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from llmops.errors import DataError, InvalidEvidence
from llmops.evals.metrics import METRICS, Scores, difference, interval
from tests.evals.scoring import score_texts
from tests.stats.calibration import CLOSE, NOMINAL, ROUGH, assert_holds, population, synthetic_texts

REFERENCES, BASELINE, CANDIDATE = synthetic_texts(60, ROUGH, CLOSE, seed=1)
ONE_EACH = [[text] for text in REFERENCES]
ROUGES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
CORPUS = ["bleu", "chrf", "chrf++", "ter"]
TEXTUAL = [*CORPUS, *ROUGES, "exact_match", "token_f1"]
ORACLES: dict[str, Any] = {
    "bleu": sacrebleu.BLEU(),
    "chrf": sacrebleu.CHRF(),
    "chrf++": sacrebleu.CHRF(word_order=2),
    "ter": sacrebleu.TER(),
}
SENTENCE_ORACLES = {**ORACLES, "bleu": sacrebleu.BLEU(effective_order=True)}

AWKWARD = [
    ("", [""]),
    ("", ["Return the absolute path."]),
    ("Return it.", [""]),
    ("a b", ["a b"]),
    ("Naïve café – 東京 🚀", ["naive café - 東京 🚀"]),
    ("First line.\nSecond line.\n\n", ["Second line.\nFirst line."]),
    ("the the the the", ["the cat", "the the"]),
    ("  padded \t", ["padded"]),
    ("...", ["!!!"]),
    ("Returning the directories listed.", ["Returns the directory listing."]),
]

TEXT = st.text("ab c\n.ÉİK", max_size=20)


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """References in sacrebleu's layout: one stream per position, None where a case has fewer."""
    width = max(map(len, references))
    return [[texts[k] if k < len(texts) else None for texts in references] for k in range(width)]


def rouge_oracle(name: str, completions: list[str], references: list[list[str]]) -> list[float]:
    scorer = RougeScorer([name], use_stemmer=False)
    pairs = zip(completions, references, strict=True)
    return [100 * scorer.score_multi(texts, text)[name].fmeasure for text, texts in pairs]


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_values_equal_sacrebleu_exactly(name: str) -> None:
    scored = score_texts([name], BASELINE, ONE_EACH)[name]
    assert scored.value == ORACLES[name].corpus_score(BASELINE, [REFERENCES]).score


@pytest.mark.parametrize("name", CORPUS)
def test_awkward_texts_score_as_in_sacrebleu_with_varying_references(name: str) -> None:
    texts, references = [text for text, _ in AWKWARD], [refs for _, refs in AWKWARD]
    scored = score_texts([name], texts, references)[name]
    assert scored.value == ORACLES[name].corpus_score(texts, streams(references)).score
    oracle = SENTENCE_ORACLES[name]
    assert scored.per_case == pytest.approx([oracle.sentence_score(t, r).score for t, r in AWKWARD])


@pytest.mark.parametrize("name", CORPUS)
def test_resampled_score_equals_sacrebleu_on_every_left_out_corpus(name: str) -> None:
    texts, references = [text for text, _ in AWKWARD], [refs for _, refs in AWKWARD]
    stats, resampled = score_texts([name], texts, references)[name].stats, METRICS[name].resampled
    assert stats is not None
    assert resampled is not None
    for i, value in enumerate(resampled(stats.sum(axis=0) - stats)):
        kept = [k for k in range(len(texts)) if k != i]
        theirs = ORACLES[name].corpus_score([texts[k] for k in kept], streams([references[k] for k in kept]))
        assert value == pytest.approx(theirs.score, rel=1e-12)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
@settings(deadline=None)
def test_resampled_score_equals_sacrebleu_on_any_text(pairs: list[tuple[str, str]]) -> None:
    texts, references = [text for text, _ in pairs], [[reference] for _, reference in pairs]
    for scored in score_texts(CORPUS, texts, references).values():
        resampled = METRICS[scored.metric].resampled
        assert scored.stats is not None
        assert resampled is not None
        assert resampled(scored.stats.sum(axis=0)[None])[0] == pytest.approx(scored.value, rel=1e-12)


@pytest.mark.parametrize("name", ROUGES)
def test_rouge_equals_rouge_score(name: str) -> None:
    for texts, references in (
        (BASELINE, ONE_EACH),
        ([text for text, _ in AWKWARD], [refs for _, refs in AWKWARD]),
    ):
        scored = score_texts([name], texts, references)[name]
        expected = rouge_oracle(name, texts, references)
        assert scored.per_case.tolist() == expected
        assert scored.value == pytest.approx(np.mean(expected))


@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4))
@settings(deadline=None)
def test_rouge_equals_rouge_score_on_any_text_and_number_of_references(
    cases: list[tuple[str, list[str]]],
) -> None:
    texts, references = [text for text, _ in cases], [refs for _, refs in cases]
    for name, scored in score_texts(ROUGES, texts, references).items():
        assert scored.per_case.tolist() == rouge_oracle(name, texts, references)


@pytest.mark.parametrize("name", ROUGES)
def test_rouge_is_the_same_without_the_fast_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = score_texts([name], CANDIDATE, ONE_EACH)[name]
    for module in [m for m in sys.modules if m.split(".")[0] == "rouge_score_rs"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "rouge_score_rs", None)
    slow = score_texts([name], CANDIDATE, ONE_EACH)[name]
    assert slow.per_case.tolist() == fast.per_case.tolist()
    assert "package:rouge-score-rs|" in fast.signature
    assert "package:rouge-score|" in slow.signature


def test_rouge_lsum_takes_lines_as_sentences_and_rouge_l_does_not() -> None:
    scored = score_texts(ROUGES, ["a b c\nd e f"], [["d e f\na b c"]])
    assert scored["rougeLsum"].value == 100.0
    assert scored["rougeL"].value == 50.0
    one_line = score_texts(ROUGES, ["a b c d e f"], [["d e f a b c"]])
    assert one_line["rougeLsum"].value == 50.0


def test_exact_match_forgives_outer_whitespace_alone() -> None:
    texts = ["Paris", " Paris\n", "paris", "", "P aris"]
    scored = score_texts(["exact_match"], texts, [["Rome", "Paris"]] * 3 + [[""], ["Paris"]])["exact_match"]
    assert scored.per_case.tolist() == [100, 100, 0, 100, 0]
    assert scored.value == 60.0


def test_the_reference_scores_best_and_silence_worst() -> None:
    for name, scored in score_texts(TEXTUAL, REFERENCES, ONE_EACH).items():
        assert scored.value == pytest.approx(0.0 if name == "ter" else 100.0), name
    for name, scored in score_texts(TEXTUAL, [""] * 60, ONE_EACH).items():
        assert set(scored.per_case) == {100.0 if name == "ter" else 0.0}, name


def test_signatures_name_implementation_version_and_references() -> None:
    scored = score_texts(TEXTUAL, BASELINE, ONE_EACH)
    labels = {"bleu": "BLEU", "chrf": "chrF2", "chrf++": "chrF2++", "ter": "TER"}
    for name, label in labels.items():
        ORACLES[name].corpus_score(BASELINE, [REFERENCES])
        assert scored[name].signature == f"{label}|{ORACLES[name].get_signature()}"
    assert "|stem:no|" in scored["rougeL"].signature
    assert "|sentences:lines|" in scored["rougeLsum"].signature
    varying = score_texts(TEXTUAL, BASELINE[:2], [["x"], ["y", "z"]])
    assert all("nrefs:var" in found.signature for found in varying.values())
    assert len({found.signature for found in scored.values()}) == len(TEXTUAL)


@pytest.mark.parametrize("name", TEXTUAL)
def test_interval_and_difference_centre_on_the_reported_values(name: str) -> None:
    a = score_texts([name], BASELINE[:-2] + REFERENCES[-2:], ONE_EACH)[name]
    b = score_texts([name], CANDIDATE[:-4] + REFERENCES[-4:], ONE_EACH)[name]
    found = difference(a, b)
    assert found.estimate == pytest.approx(b.value - a.value, abs=1e-9)
    assert found.low < found.estimate < found.high
    alone = interval(b)
    assert alone.estimate == pytest.approx(b.value)
    assert alone.low < b.value < alone.high
    assert (found.n, found.level, alone.level) == (60, 0.95, 0.95)


def test_each_kind_is_compared_by_its_own_test() -> None:
    a, b = score_texts(TEXTUAL, BASELINE, ONE_EACH), score_texts(TEXTUAL, CANDIDATE, ONE_EACH)
    methods = {name: difference(a[name], b[name]).method for name in TEXTUAL}
    assert methods == {
        **dict.fromkeys(CORPUS, "paired jackknife t"),
        **dict.fromkeys(ROUGES, "paired t"),
        "exact_match": "tango",
        "token_f1": "paired t",
    }
    differences = b["rougeL"].per_case - a["rougeL"].per_case
    assert difference(a["rougeL"], b["rougeL"]).estimate == pytest.approx(differences.mean())
    assert difference(a["rougeL"], b["rougeL"]).sd == pytest.approx(differences.std(ddof=1))


@pytest.mark.parametrize("name", TEXTUAL)
def test_clusters_are_the_units_of_every_kind_of_metric(name: str) -> None:
    """Each case asked three times: as many numbers, no more evidence."""
    a, b = BASELINE[:-2] + REFERENCES[-2:], CANDIDATE[:-4] + REFERENCES[-4:]
    once = [score_texts([name], texts, ONE_EACH)[name] for texts in (a, b)]
    thrice = [score_texts([name], texts * 3, list(ONE_EACH) * 3)[name] for texts in (a, b)]
    groups = [str(i) for i in range(len(a))] * 3
    plain, clustered = difference(*once), difference(*thrice, clusters=groups)
    assert (clustered.n, clustered.n_clusters, plain.n_clusters) == (3 * len(a), len(a), None)
    assert clustered.high - clustered.low == pytest.approx(plain.high - plain.low, rel=0.2)
    assert clustered.high - clustered.low > 1.4 * (difference(*thrice).high - difference(*thrice).low)
    alone = interval(thrice[1], clusters=groups)
    assert alone.high - alone.low > 1.4 * (interval(thrice[1]).high - interval(thrice[1]).low)


def test_exact_match_differences_are_in_points() -> None:
    a = score_texts(["exact_match"], ["x"] * 10, [["x"]] * 5 + [["y"]] * 5)["exact_match"]
    b = score_texts(["exact_match"], ["y"] * 9 + ["x"], [["x"]] * 5 + [["y"]] * 5)["exact_match"]
    assert (difference(a, b).estimate, interval(b).estimate) == (pytest.approx(-10.0), pytest.approx(40.0))


def test_numbers_of_different_make_are_not_compared() -> None:
    scored = score_texts(["rouge1", "bleu"], BASELINE, ONE_EACH)
    bleu = scored["bleu"]
    others: list[Scores] = [
        scored["rouge1"],
        replace(bleu, signature=bleu.signature + "0"),
        score_texts(["bleu"], BASELINE[:50], ONE_EACH[:50])["bleu"],
        replace(bleu, stats=None),
    ]
    for other in others:
        with pytest.raises(InvalidEvidence):
            difference(bleu, other)


def test_one_case_has_a_score_but_no_interval() -> None:
    scored = score_texts(["rougeL"], ["a b"], [["a b"]])["rougeL"]
    assert scored.value == 100.0
    with pytest.raises(InvalidEvidence, match="2 cases"):
        interval(scored)


def test_nothing_to_score_and_a_case_without_reference_are_refused() -> None:
    with pytest.raises(DataError, match="0 completions"):
        score_texts(TEXTUAL, [], [])
    with pytest.raises(DataError, match=r"case cases\.jsonl:2 has no reference, and bleu needs one"):
        score_texts(TEXTUAL, ["a", "b"], [["a"], []])


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_equal_systems_rarely_differ_and_a_better_one_shows_more_often_with_more_cases(name: str) -> None:
    """The quick form of tests/stats/test_corpus.py, through the front door."""
    people = population(name, 400, ROUGH, replace(ROUGH, dropped=0.2), seed=2)
    like = score_texts([name], BASELINE, ONE_EACH)[name]
    rng = np.random.default_rng(3)

    def compared(n: int, null: bool) -> bool:
        a, b = people.sample_null(rng, n) if null else people.sample(rng, n)
        return difference(replace(like, stats=a), replace(like, stats=b)).high < 0

    assert_holds(sum(compared(128, null=True) for _ in range(1000)), 1000)
    few, many = (np.mean([compared(n, null=False) for _ in range(300)]) for n in (32, 256))
    assert NOMINAL < few < many - 0.2


def test_difference_far_beyond_doubt_is_bounded_without_an_approximation() -> None:
    """One case of 24 differs from the rest: Student's t is in doubt, and an exact bound still lies far above 0."""
    texts = [f"answer number {i}" for i in range(24)]
    a = score_texts(["rougeL"], ["x"] * 24, [[text] for text in texts])["rougeL"]
    b = score_texts(["rougeL"], [*texts[:-1], "answer of none"], [[text] for text in texts])["rougeL"]
    found = difference(a, b)
    assert (found.method, found.doubt) == ("rule of three", None)
    assert found.low > 60
    assert difference(b, b).low == pytest.approx(-100 * (1 - 0.05 ** (1 / 24)))
    assert difference(a, a).doubt is not None, "0 for every answer of both tells nothing"
    in_groups = difference(a, b, clusters=[i // 2 for i in range(24)])
    assert in_groups.doubt is not None, "cases that are alike are fewer than they seem"

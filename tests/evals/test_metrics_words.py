"""Exact match, token F1, sacrebleu's and ROUGE's settings: numbers against other programs and closed forms."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from llmops.errors import ConfigError
from llmops.evals.metrics import METRICS, Metric, Scores, score
from llmops.evals.metrics.config import check_metrics, suite_metrics
from tests.evals.scoring import answers, score_texts

# Letters that change length or class when folded, words of several scripts, and what ROUGE takes as one word or two.
SCRIPTS = st.text("aB \n\t.'9ıİÉßΣ東ก𝒳é\u0301\u200d\U0001f1e9", max_size=30)


def resolved(spelt: Any, folder: Path = Path(), samples: int = 1) -> Metric:
    """The one metric that a suite spells so."""
    (metric,) = suite_metrics(check_metrics((spelt,)), folder / "suite.yaml", samples)
    return metric


def scored(spelt: Any, texts: list[str], references: list[list[str]]) -> Scores:
    metric = resolved(spelt)
    return score([metric], answers(texts, references))[metric.name]


TEXTS = ["Das ist, na ja, gut!", "他说了 什么 都 不对", "Ein Haus.", "completely different words here now"]
REFS = [["Das ist ja gut."], ["他什么都没说"], ["ein haus"], ["nothing"]]


@pytest.mark.parametrize(
    ("spelt", "oracle"),
    [
        ({"kind": "bleu", "tokenize": "intl"}, sacrebleu.BLEU(tokenize="intl")),
        ({"kind": "bleu", "tokenize": "zh"}, sacrebleu.BLEU(tokenize="zh")),
        ({"kind": "bleu", "tokenize": "char", "lowercase": True}, sacrebleu.BLEU(tokenize="char", lowercase=True)),
        ({"kind": "chrf", "word_order": 2, "lowercase": True}, sacrebleu.CHRF(word_order=2, lowercase=True)),
        ({"kind": "chrf", "whitespace": True}, sacrebleu.CHRF(whitespace=True)),
        ({"kind": "ter", "lowercase": False}, sacrebleu.TER(case_sensitive=True)),
        ({"kind": "ter", "punctuation": False}, sacrebleu.TER(no_punct=True)),
        (
            {"kind": "ter", "normalized": True, "asian_support": True},
            sacrebleu.TER(normalized=True, asian_support=True),
        ),
    ],
)  # fmt: skip
def test_settings_of_sacrebleu_give_its_numbers_and_stand_in_the_signature(spelt: Any, oracle: Any) -> None:
    found = scored(spelt, TEXTS, REFS)
    assert found.value == oracle.corpus_score(TEXTS, [[refs[0] for refs in REFS]]).score > 0
    assert str(oracle.get_signature()) in found.signature


def test_translation_edit_rate_may_pass_100_and_is_better_lower() -> None:
    found = scored("ter", ["a b c d e f"], [["x"]])
    assert (found.value, found.better, found.unit) == (600.0, "lower", "edits per 100 words")


@given(st.lists(st.tuples(SCRIPTS, st.lists(SCRIPTS, min_size=1, max_size=2)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_rouge_of_any_script_equals_rouge_score(cases: list[tuple[str, list[str]]]) -> None:
    texts, references = [text for text, _ in cases], [refs for _, refs in cases]
    for stem in (False, True):
        variants = ["rouge1", "rouge2", "rouge4", "rougeL", "rougeLsum"]
        metrics = [resolved({"kind": "rouge", "variant": v, "stem": stem}) for v in variants]
        scorer = RougeScorer(variants, use_stemmer=stem)
        found = score(metrics, answers(texts, references))
        for i, (text, refs) in enumerate(cases):
            theirs = scorer.score_multi(refs, text)
            assert {v: found[v].per_case[i] for v in variants} == {
                v: 100 * theirs[v].fmeasure for v in variants
            }


def test_variants_asked_for_together_score_as_each_alone() -> None:
    texts = ["the cats sat\non mats", "nothing", "the cat"]
    references = [["a cat sat on the mat", "the cats\nsat"], ["something"], ["the cat"]]
    names = ["rougeL", "exact_match", "rouge1", "rouge2"]
    stemmed = resolved({"kind": "rouge", "variant": "rouge1", "stem": True, "name": "stemmed"})
    together = score([*(METRICS[n] for n in names), stemmed], answers(texts, references))
    assert list(together) == [*names, "stemmed"]
    for name in names:
        alone = score_texts([name], texts, references)[name]
        assert together[name].per_case.tolist() == alone.per_case.tolist()
    assert together["stemmed"].per_case[0] > together["rouge1"].per_case[0]


def test_rouge_counts_words_of_other_scripts_where_asked() -> None:
    texts, references = ["東京は晴れ", "красивый дом"], [["東京は雨"], ["красивый сад"]]
    assert scored("rouge1", texts, references).value == 0.0
    character = scored(
        {"kind": "rouge", "variant": "rouge1", "words": "character"}, texts[:1], references[:1]
    )
    assert character.value == pytest.approx(100 * 2 * 3 / (5 + 4))  # three of five and of four characters
    unicode = scored({"kind": "rouge", "variant": "rouge1", "words": "unicode"}, texts[1:], references[1:])
    assert unicode.value == 50.0
    with pytest.raises(ConfigError, match=r"suite\.yaml: metrics: rougeL: stem works with words: a-z0-9"):
        resolved({"kind": "rouge", "stem": True, "words": "unicode"})


def test_exact_match_forgives_what_the_suite_says() -> None:
    texts, references = ["The cat, sat!", "cat  sat", "CAT sat"], [["cat sat"]] * 3

    def hits(**forgive: bool) -> list[float]:
        return scored({"kind": "exact_match", "forgive": forgive}, texts, references).per_case.tolist()

    assert hits() == [0, 0, 0]
    assert hits(case=True) == [0, 0, 100]
    assert hits(whitespace=True) == [0, 100, 0]
    assert hits(case=True, punctuation=True, articles=True) == [100, 0, 100]
    squad = scored({"kind": "exact_match", "forgive": "squad"}, texts, references)
    assert squad.per_case.tolist() == [100, 100, 100]
    assert "forgives:case,punctuation,articles,whitespace" in squad.signature


def test_token_f1_of_known_answers() -> None:
    texts = ["The cat sat on a mat.", "", "the", "dog dog dog", "cat"]
    references = [["a cat sat", "mats"], ["x"], [""], ["dog dog"], ["dog"]]
    found = scored("token_f1", texts, references).per_case
    # cat sat on mat / cat sat: 2 shared of 4 and 2; nothing; both empty without articles; 2 of 3 and 2; none shared
    assert found == pytest.approx([100 * 4 / 6, 0, 100, 100 * 4 / 5, 0])


def test_token_f1_and_squad_match_equal_the_formula_of_squads_scorer() -> None:
    """SQuAD's official scorer, written out: https://rajpurkar.github.io/SQuAD-explorer/ (evaluate-v2.0)."""
    import collections
    import re
    import string

    def normal(text: str) -> str:
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def f1(expected: str, found: str) -> float:
        gold, said = normal(expected).split(), normal(found).split()
        same = sum((collections.Counter(gold) & collections.Counter(said)).values())
        if not gold or not said:
            return float(gold == said)
        if same == 0:
            return 0.0
        precision, recall = same / len(said), same / len(gold)
        return 2 * precision * recall / (precision + recall)

    rng = random.Random(0)
    words = ["a", "The", "an", "cat,", "cat", "Cat.", "Éa", "--", "\n", "don't"]
    texts = [" ".join(rng.choices(words, k=rng.randint(0, 6))) for _ in range(300)]
    references = [[" ".join(rng.choices(words, k=rng.randint(0, 6))) for _ in range(2)] for _ in range(300)]
    graded = scored("token_f1", texts, references).per_case
    matched = scored({"kind": "exact_match", "forgive": "squad"}, texts, references).per_case
    pairs = list(zip(texts, references, strict=True))
    assert graded == pytest.approx([100 * max(f1(r, text) for r in refs) for text, refs in pairs])
    assert matched.tolist() == [100.0 * any(normal(r) == normal(text) for r in refs) for text, refs in pairs]


@pytest.mark.parametrize(
    ("spelt", "message"),
    [
        ({"kind": "bleu", "tokenize": "14a"}, r"metric of kind bleu: tokenize: must be one of 13a, .*did you mean 13a"),
        ({"kind": "bleu", "lower": True}, "metric of kind bleu: lower is not a setting; did you mean lowercase"),
        ({"kind": "blue"}, r"metric: kind: must be one of .* \(found 'blue'\); did you mean bleu"),
        ({"tokenize": "zh"}, "metric: kind is missing"),
        ({"kind": "regex", "pattern": "("}, r"metric of kind regex: pattern: '\(' is no regular expression"),
        ({"kind": "pass_at_k", "k": 2, "of": "exact"}, "metric of kind pass_at_k: of: exact is not a metric"),
        ({"kind": "limits"}, "no limit is set"),
        ({"kind": "limits", "min_words": 5, "max_words": 4}, "min_words 5 is above max_words 4"),
        ({"kind": "contains", "all": [""]}, "an empty text is in every answer"),
        ("cost", "cost needs settings; write a mapping with `kind: cost`"),
        (7, "metric: "),
    ],
)  # fmt: skip
def test_metric_that_does_not_say_what_it_must_is_refused(spelt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_metrics((spelt,))


def test_two_metrics_of_one_kind_need_two_names() -> None:
    twice = ({"kind": "regex", "pattern": "a"}, {"kind": "regex", "pattern": "b"})
    with pytest.raises(ValueError, match="metric regex is named twice"):
        check_metrics(twice)
    named = check_metrics(({**twice[0], "name": "first"}, twice[1]))
    assert [m.name for m in suite_metrics(named, Path("suite.yaml"), 1)] == ["first", "regex"]

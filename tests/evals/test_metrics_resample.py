"""Bootstrap resamples from sufficient statistics: sacrebleu's own numbers on sacrebleu's own draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import _bootstrap_resample

from llmops.errors import BadRequest, InvalidEvidence
from llmops.evals.metrics import METRICS, difference, interval, resample, resampling, score
from llmops.evals.metrics.resampling import SEED, Resampling, paired_bootstrap
from llmops.stats import CorpusScore, FloatArray
from tests.evals.scoring import answers, score_texts
from tests.evals.test_metrics_words import resolved
from tests.stats.calibration import CLOSE, REPLICATIONS, ROUGH, assert_holds, population, synthetic_texts

REFERENCES, BASELINE, CANDIDATE = synthetic_texts(40, ROUGH, CLOSE, seed=5)
ONE_EACH = [[text] for text in REFERENCES]
N = 10
METRICS_OF_SACREBLEU = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF(), "ter": sacrebleu.TER()}


def part(name: str, texts: list[str]) -> tuple[FloatArray, CorpusScore]:
    stats, resampled = score_texts([name], texts, ONE_EACH)[name].stats, METRICS[name].resampled
    assert stats is not None
    assert resampled is not None
    return stats, resampled


def test_values_equal_sacrebleu_recomputed_from_text_on_the_same_resamples() -> None:
    names = list(METRICS_OF_SACREBLEU)
    found = resample([part(name, texts) for name in names for texts in (BASELINE, CANDIDATE)], N)
    drawn = np.random.default_rng(SEED).integers(0, len(REFERENCES), (N, len(REFERENCES)))
    theirs = [
        [
            METRICS_OF_SACREBLEU[name].corpus_score([texts[i] for i in row], [[REFERENCES[i] for i in row]]).score
            for row in drawn
        ]
        for name in names
        for texts in (BASELINE, CANDIDATE)
    ]  # fmt: skip
    assert np.array(found) == pytest.approx(np.array(theirs), rel=1e-12)


def test_values_equal_sacrebleus_own_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    bleu = METRICS_OF_SACREBLEU["bleu"]
    stats, resampled = part("bleu", CANDIDATE)
    _, theirs = _bootstrap_resample(stats.astype(int).tolist(), bleu, 200)
    (ours,) = resample([(stats, resampled)], 200, seed=7)
    assert ours == pytest.approx([one.score for one in theirs], rel=1e-6)  # theirs are summed in float32


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = resample([part("chrf", BASELINE)], 33)
    monkeypatch.setattr("llmops.evals.metrics.resampling._CELLS", 150)
    (pieces,) = resample([part("chrf", BASELINE)], 33)
    assert pieces.tolist() == whole.tolist()


def test_resampling_nothing_or_unlike_cases_is_refused() -> None:
    stats, resampled = part("bleu", BASELINE)
    with pytest.raises(BadRequest, match="0 resamples say nothing"):
        resample([(stats, resampled)], 0)
    with pytest.raises(InvalidEvidence, match=r"parts of \[39, 40\] cases"):
        resample([(stats, resampled), (stats[:-1], resampled)], 10)
    with pytest.raises(InvalidEvidence, match=r"parts of \[1\] cases"):
        resample([(stats[:1], resampled)], 10)


def test_suite_chooses_bootstrap_intervals_and_they_agree_with_the_jackknife() -> None:
    spelt: dict[str, Any] = {"kind": "bleu", "resamples": 4000}
    metric = resolved(spelt)
    a, b = (score([metric], answers(texts, ONE_EACH))["bleu"] for texts in (BASELINE, CANDIDATE))
    ours, theirs = difference(a, b), difference(replace(a, resamples=0), replace(b, resamples=0))
    assert ours.method == "paired bootstrap, 4000 resamples"
    assert "|interval:bootstrap-4000" in a.signature
    assert ours.estimate == theirs.estimate == pytest.approx(b.value - a.value)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.1)
    alone = interval(b)
    assert alone.low < b.value < alone.high
    assert alone.method == "bootstrap, 4000 resamples"


def test_clusters_are_drawn_as_a_whole() -> None:
    """Every case three times is no more evidence: bounds as of the cases once, and the method says so."""
    metric, groups = resolved({"kind": "chrf", "resamples": 2000}), [f"g{i}" for i in range(40)] * 3
    once = [score([metric], answers(texts, ONE_EACH))["chrf"] for texts in (BASELINE, CANDIDATE)]
    thrice = [score([metric], answers(texts * 3, ONE_EACH * 3))["chrf"] for texts in (BASELINE, CANDIDATE)]
    plain, clustered = difference(*once), difference(*thrice, clusters=groups)
    assert (clustered.low, clustered.high) == pytest.approx((plain.low, plain.high), rel=0.1)
    assert clustered.method == "paired clustered bootstrap, 2000 resamples"
    assert (clustered.n, clustered.n_clusters, plain.n_clusters) == (120, 40, None)
    assert difference(*thrice, clusters=["one"] * 120).doubt is not None


def test_few_cases_are_in_doubt() -> None:
    metric = resolved({"kind": "chrf", "resamples": 500})
    few = [score([metric], answers(texts[:5], ONE_EACH[:5]))["chrf"] for texts in (BASELINE, CANDIDATE)]
    assert difference(*few).doubt == "5 independent units are too few: at least 8 are needed"


@pytest.mark.stats
@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_bootstrap_of_equal_systems_errs_as_often_as_it_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped resamples are the same for every corpus of a size, so that they are drawn once here."""
    counts = list(resampling.counts_of(100, 400))
    monkeypatch.setattr(resampling, "counts_of", lambda *_: counts)
    people, rng = population(name, 400, CLOSE, CLOSE, seed=2), np.random.default_rng(8)
    wrong = [
        paired_bootstrap(people.sample_null(rng, 100), people.score, 0.95, Resampling(400)).low > 0
        for _ in range(REPLICATIONS)
    ]
    assert_holds(sum(wrong), len(wrong))

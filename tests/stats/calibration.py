"""What the calibration tests share: the rule they fail by, and populations whose true difference is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special
from scipy import stats as scipy_stats

from llmops.evals.metrics import METRICS
from llmops.stats import CorpusScore, FloatArray, Interval
from llmops.stats.interval import IntArray
from llmops.stats.looks import boundaries, crossing
from tests.evals.scoring import answers

NOMINAL = 0.05


REPLICATIONS = 10_000


def assert_holds(n_wrong: int, n: int = REPLICATIONS, nominal: float = NOMINAL) -> None:
    """A false rate above nominal is not shown: Clopper and Pearson's 99 % lower bound of it is not above nominal."""
    least = float(scipy_stats.beta.ppf(0.01, n_wrong, n - n_wrong + 1)) if n_wrong else 0.0
    assert least <= nominal, f"wrong in {n_wrong} of {n}: at least {least:.4f}, nominal {nominal}"


@dataclass(frozen=True)
class Tally:
    """How often decided bounds missed the truth on either side, and how many replications decided nothing."""

    n: int
    n_low_wrong: int
    n_high_wrong: int
    n_in_doubt: int

    def assert_holds(self, nominal: float = NOMINAL, decided: float = 0.5) -> None:
        """Neither bound errs above nominal, and at least so large a share decided: a rule that never does is none."""
        assert_holds(self.n_low_wrong, self.n, nominal)
        assert_holds(self.n_high_wrong, self.n, nominal)
        assert 1 - self.n_in_doubt / self.n >= decided, self

    @property
    def coverage(self) -> float:
        """Share of the decided intervals that hold the truth."""
        n = self.n - self.n_in_doubt
        return 1 - (self.n_low_wrong + self.n_high_wrong) / n


def tally(replicate: Callable[[], Interval], truth: float, n: int = REPLICATIONS) -> Tally:
    """Repeat an interval of new data and count; one in doubt decides nothing, so it is not wrong."""
    low = high = doubt = 0
    for _ in range(n):
        found = replicate()
        if found.doubt is not None:
            doubt += 1
        else:
            low += found.low > truth + 1e-9
            high += found.high < truth - 1e-9
    return Tally(n, low, high, doubt)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Sizes of clusters and how alike their cases are; `skewed` makes cluster effects exponential."""

    sizes: IntArray
    icc: float
    skewed: bool = False

    @property
    def labels(self) -> IntArray:
        """[N] the cluster of each case."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """[N] values with mean 0 and variance 1."""
        n = len(self.sizes)
        effect = rng.exponential(1.0, n) - 1 if self.skewed else rng.normal(size=n)
        own = rng.normal(size=int(self.sizes.sum()))
        return np.sqrt(self.icc) * np.repeat(effect, self.sizes) + np.sqrt(1 - self.icc) * own


def rouge_like_pair(rng: np.random.Generator, n: int, gain: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """[n] scores of two systems on cases of differing difficulty: skewed, many zeros, some 100s.

    `gain` is added to the candidate's scores in the mean; 0 makes the two systems exchangeable.
    """
    difficulty = rng.beta(0.8, 2.0, n)
    a, b = (100 * np.round(rng.beta(4 * difficulty + 0.05, 4 * (1 - difficulty) + 0.05), 3) for _ in range(2))
    return a, b + gain * rng.exponential(1.0, n)


@dataclass(frozen=True, eq=False)
class Population:
    """The statistics [P, S] of two systems on P cases; corpora drawn from it have a known truth."""

    a: FloatArray
    b: FloatArray
    score: CorpusScore

    @property
    def difference(self) -> float:
        """The true difference b - a of a corpus drawn from this population."""
        return float(self.score(self.b.sum(axis=0)[None])[0] - self.score(self.a.sum(axis=0)[None])[0])

    def sample(self, rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
        """Both systems on n cases drawn at random."""
        cases = rng.integers(0, len(self.a), n)
        return self.a[cases], self.b[cases]

    def sample_null(self, rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
        """The same, with who is who tossed for every case: the systems are equal in law."""
        a, b = self.sample(rng, n)
        swapped = rng.random((n, 1)) < 0.5
        return np.where(swapped, b, a), np.where(swapped, a, b)


@dataclass(frozen=True)
class Noise:
    """How a system spoils a reference: share of words replaced (drawn per case in a range), share dropped."""

    replaced: tuple[float, float]
    dropped: float


CLOSE = Noise((0.0, 0.8), 0.1)  # BLEU about 31
ROUGH = Noise((0.3, 0.95), 0.1)  # BLEU about 11
FAR = Noise((0.7, 1.0), 0.2)  # BLEU about 1.4: few 4-grams match in a whole corpus


def synthetic_texts(
    n: int, noise_a: Noise, noise_b: Noise, seed: int
) -> tuple[list[str], list[str], list[str]]:
    """n references of 4 to 25 words from a Zipf vocabulary, and two systems' spoilt copies of each."""
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnoprstuvw")
    vocabulary = np.array(
        ["".join(rng.choice(letters, min(12, 1 + int(rng.geometric(0.25))))) for _ in range(2000)],
        dtype=object,
    )
    weights = 1 / np.arange(1, 2001)
    weights /= weights.sum()
    references, a, b = [], [], []
    for _ in range(n):
        words = rng.choice(vocabulary, int(rng.integers(4, 26)), p=weights)
        hardness = rng.random()
        references.append(" ".join(words))
        for noise, texts in ((noise_a, a), (noise_b, b)):
            share = noise.replaced[0] + hardness * (noise.replaced[1] - noise.replaced[0])
            spoilt = words.copy()
            at = rng.random(len(words)) < share
            spoilt[at] = rng.choice(vocabulary, int(at.sum()), p=weights)
            texts.append(" ".join(spoilt[rng.random(len(words)) >= noise.dropped]))
    return references, a, b


def population(metric: str, n: int, noise_a: Noise, noise_b: Noise, seed: int) -> Population:
    """A population of n cases for a corpus metric, its statistics computed from text by the metric itself."""
    references, a, b = synthetic_texts(n, noise_a, noise_b, seed)
    chosen = METRICS[metric]
    assert chosen.resampled is not None
    one_each = [[text] for text in references]
    stats_a, stats_b = (chosen.measure(answers(texts, one_each)).stats for texts in (a, b))
    assert stats_a is not None
    assert stats_b is not None
    return Population(stats_a, stats_b, chosen.resampled)


def inflation(fractions: tuple[float, ...], alpha: float, power: float) -> float:
    """How much more evidence the last look needs than one look alone would, for the same power (by its definition)."""
    limits = boundaries(fractions, alpha)
    fixed = float(special.ndtri(power) - special.ndtri(alpha))
    drift = optimize.brentq(lambda d: crossing(fractions, limits, d) - power, 0.0, 3 * fixed, xtol=1e-10)
    return float((drift / fixed) ** 2)


def design_effect(per_cluster: float, icc: float) -> float:
    """By how much clusters of one size multiply the variance of a mean (Kish)."""
    return 1 + (per_cluster - 1) * icc

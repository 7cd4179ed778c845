"""How fast answers are scored, beside the programs whose numbers they are.

    python bench/metrics.py --pairs 10000 --cases 1000 --resamples 10000

Two figures, each with its goal in the signature. ROUGE: four variants of every pair, against rouge_score, equal on each
of them; the pairs are of different lengths and scripts. Paired resampling of BLEU and chrF: two systems' values on
every resample, against sacrebleu's corpus scores of the resampled texts. Both compute the very same resamples; the
peer runs on the first few of them, since all would take hours.

Times are CPU seconds of this process with one thread, the least of the repetitions: neighbours on the machine only add.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before rouge-score-rs is loaded
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is

from _figure import say, signature

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
OTHER_WORDS = ("naïve", "ÉTÉ", "東京", "größe", "don't", "🚀", "ﬁne", "3.14", "Straße", "İstanbul")


def timed(work: Callable[[], Any], n_repeats: int) -> tuple[float, Any]:
    """Least CPU seconds of several runs, and what the last one gave."""
    seconds, found = [], None
    for _ in range(n_repeats):
        started = time.process_time()
        found = work()
        seconds.append(time.process_time() - started)
    return min(seconds), found


def texts(n: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """References of 1 to 5 lines, about 100 words in the mean, and two systems' spoilt copies of each."""
    rng = random.Random(seed)
    letters = "etaoinshrdlu"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 10))) for _ in range(3000)] + list(OTHER_WORDS)

    def line(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    def spoilt(text: str, share: float) -> str:
        kept = [word if rng.random() > share else rng.choice(words) for word in text.split(" ")]
        return " ".join(word for word in kept if rng.random() > 0.1)

    references = ["\n".join(line(rng.randint(1, 66)) for _ in range(rng.randint(1, 5))) for _ in range(n)]
    return references, [spoilt(r, 0.6) for r in references], [spoilt(r, 0.4) for r in references]


def answers_of(completions: list[str], references: list[str]) -> list[Any]:
    from llmops.evals.metrics import Answer
    from llmops.records import Case, Completion, Message

    found = []
    for i, (text, reference) in enumerate(zip(completions, references, strict=True)):
        case = Case((Message("user", f"question {i}"),), (reference,), f"g{i}", f"cases.jsonl:{i + 1}")
        said = Completion(case.digest, "x", "answered", text, "stop", 1, 1, 0.0, None, None)
        found.append(Answer(case, (said,)))
    return found


def rouge(n_pairs: int, n_repeats: int) -> None:
    """Four variants of every pair, as a suite scores them."""
    from rouge_score.rouge_scorer import RougeScorer

    from llmops.evals.metrics import METRICS, score

    references, completions, _ = texts(n_pairs, seed=1)
    answers = answers_of(completions, references)
    metrics = [METRICS[name] for name in VARIANTS]
    ours_s, ours = timed(lambda: score(metrics, answers), n_repeats)

    def peer() -> list[dict[str, Any]]:
        scorer = RougeScorer(list(VARIANTS), use_stemmer=False)
        return [scorer.score(r, text) for r, text in zip(references, completions, strict=True)]

    peer_s, theirs = timed(peer, 1)
    n_equal = sum(
        all(ours[v].per_case[i] == 100 * theirs[i][v].fmeasure for v in VARIANTS) for i in range(n_pairs)
    )
    if n_equal != n_pairs:
        raise SystemExit(f"rouge: {n_pairs - n_equal} of {n_pairs} pairs differ from rouge_score's")
    n_words = sum(len(text.split()) for text in (*references, *completions))
    sign = signature(
        "rouge-score", "rouge-score-rs",
        variants=list(VARIANTS), n_pairs=n_pairs, n_equal=n_equal, words_each=round(n_words / (2 * n_pairs)),
        threads=1, clock="CPU", goal_ratio=100,
    )  # fmt: skip
    say("ROUGE of 4 variants", [n_pairs / ours_s], "pairs/s", sign, {"rouge_score": [n_pairs / peer_s]})


def resampling(n_cases: int, n_resamples: int, n_peer: int, n_repeats: int) -> None:
    """BLEU and chrF of two systems on the same resamples."""
    import numpy as np
    from sacrebleu.metrics import BLEU, CHRF

    from llmops.evals.metrics import METRICS, resample, score
    from llmops.evals.metrics.resampling import SEED

    references, *systems = texts(n_cases, seed=2)
    names = ("bleu", "chrf")
    scored = [score([METRICS[n] for n in names], answers_of(system, references)) for system in systems]
    parts = [(own[name].stats, own[name].resampled) for own in scored for name in names]
    ours_s, ours = timed(lambda: resample(parts, n_resamples), n_repeats)
    drawn = np.random.default_rng(SEED).integers(0, n_cases, (n_peer, n_cases))

    def peer() -> list[list[float]]:
        kinds = (BLEU(), CHRF())
        return [
            [
                kind.corpus_score([system[i] for i in row], [[references[i] for i in row]]).score
                for row in drawn
            ]
            for system in systems
            for kind in kinds
        ]

    peer_s, theirs = timed(peer, 1)
    differences = np.abs(np.array([values[:n_peer] for values in ours]) - np.array(theirs))
    if differences.max() > 1e-9:
        raise SystemExit(f"resampling: differs from sacrebleu's by {differences.max():g}")
    sign = signature(
        "sacrebleu", "numpy",
        metrics=list(names), systems=2, n_cases=n_cases, n_resamples=n_resamples, n_resamples_of_peer=n_peer,
        n_equal=int((differences <= 1e-9).sum()), n_compared=differences.size,
        largest_difference=float(differences.max()), threads=1, clock="CPU", goal_ratio=1000,
    )  # fmt: skip
    rates = n_resamples / ours_s, n_peer / peer_s
    say(
        "paired resamples of BLEU and chrF",
        [rates[0]],
        "resamples/s",
        sign,
        {"sacrebleu on texts": [rates[1]]},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs of ROUGE")
    parser.add_argument("--cases", type=int, default=1000, help="cases that are resampled")
    parser.add_argument("--resamples", type=int, default=10_000, help="resamples")
    parser.add_argument("--peer-resamples", type=int, default=5, help="resamples that sacrebleu recomputes")
    parser.add_argument("--repeat", type=int, default=5, help="how often our side runs")
    given = parser.parse_args()
    rouge(given.pairs, given.repeat)
    resampling(given.cases, given.resamples, given.peer_resamples, given.repeat)


if __name__ == "__main__":
    main()

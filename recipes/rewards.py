"""Rewards for method grpo: each is called as name(prompt, completion, reference) and returns a number.

`prompt` is the turns that were asked, a list of {"role", "content"}; `completion` is the sampled answer's text;
`reference` is the row's own answer. An underscore before a name says that it is not looked at. An error in here ends
the run and is told with the row.
"""

from __future__ import annotations

import re
from collections import Counter


def words_in_common(_prompt: list[dict[str, str]], completion: str, reference: str) -> float:
    """F1 of the words of answer and reference, from 0 to 1 (what ROUGE-1 measures)."""
    ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (completion, reference))
    n_common = sum((ours & theirs).values())
    return 2 * n_common / (sum(ours.values()) + sum(theirs.values())) if n_common else 0.0


def one_sentence(_prompt: list[dict[str, str]], completion: str, _reference: str) -> float:
    """1 for an answer of one line that ends like a sentence, else 0."""
    text = completion.strip()
    return float("\n" not in text and text.endswith((".", "!", "?")))

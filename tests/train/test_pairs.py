"""Pairs: prompt and answers as token ids, each pair kept or dropped with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from llmops.chat import read_contract
from llmops.errors import RowRefused
from llmops.records import Message, Preference
from llmops.registry.adapters import Registry
from llmops.train.pairs import encode_pair, encode_pairs, read_preferences
from llmops.train.recipe import PreferenceSource, load_recipe
from llmops.train.rows import Examples, Pair
from tests.train.support import Bench

PAIRS = tuple((f"What does f{i} do?", f"Return value {i}.", f"It is function {i}!") for i in range(8))


def _encode(bench: Bench, pairs: Sequence[tuple[str, str, str]], **changes: Any) -> Examples[Pair]:
    bench.prefer(pairs)
    recipe = load_recipe(bench.dpo_recipe(**changes))
    assert isinstance(recipe.data, PreferenceSource)
    found = read_preferences(recipe.data, Registry.of(bench.workspace))
    contract = recipe.contract_on(read_contract(bench.base))
    return encode_pairs(found, recipe, AutoTokenizer.from_pretrained(bench.base), contract)


def test_every_pair_is_trained_on_held_out_or_dropped_with_its_reason(bench: Bench) -> None:
    odd = (("Which?", "same", "same"), ("Long?", "short", "x" * 300))
    found = _encode(bench, (*PAIRS, *odd), held_out_frac=0.25)
    reasons = {"dropped: no preference": 1, "dropped: too long": 1}
    assert found.n_rows == {"train": 6, "held_out": 2, "dropped": 2} | reasons
    assert [d.source for d in found.dropped] == ["rate.jsonl:9", "rate.jsonl:10"]
    assert found.dropped[0].reason == "no preference: chosen and rejected are the same; leave the pair out"
    assert found.dropped[1].reason.endswith("tokens, max_tokens is 256")
    kept = {p.source for p in (*found.train, *found.held_out)}
    assert kept == {f"rate.jsonl:{i}" for i in range(1, 9)}


def test_answers_are_scored_with_their_end_token_and_nothing_else(bench: Bench) -> None:
    """Also after a conversation that has answers already: only the one that was rated is scored."""
    tokenizer, contract = AutoTokenizer.from_pretrained(bench.base), read_contract(bench.base)
    turns = (Message("user", "Hi"), Message("assistant", "Hello, 世界."), Message("user", "And?"))
    pair = encode_pair(Preference(turns, "Yes é.", "No", "g", "s:1", "i", ()), tokenizer, contract)
    assert tokenizer.decode(list(pair.chosen_ids)) == "Yes é.<|im_end|>"
    assert tokenizer.decode(list(pair.rejected_ids)) == "No<|im_end|>"
    assert tokenizer.decode(list(pair.prompt_ids)) == tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in turns], tokenize=False, add_generation_prompt=True
    )


def test_pair_whose_answer_the_template_changes_is_dropped(bench: Bench) -> None:
    contract = read_contract(bench.base)
    trimming = replace(
        contract,
        chat_template=contract.chat_template.replace("message['content']", "message['content'] | trim"),
    )
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    with pytest.raises(RowRefused, match="does not render the answer as written"):
        encode_pair(Preference((Message("user", "a"),), "b", "c ", "g", "s:1", "i", ()), tokenizer, trimming)


def test_prompt_that_reads_otherwise_with_its_answer_is_dropped(bench: Bench) -> None:
    """A template that marks the last turn: the prompt alone is not how the pair begins."""
    contract = read_contract(bench.base)
    template = contract.chat_template.replace(
        "message['role'] + '\n'",
        "message['role'] + (' ' if loop.last and message['role'] == 'user' else '\n')",
    )
    assert template != contract.chat_template
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    preference = Preference((Message("user", "a"),), "b", "c", "g", "s:1", "i", ())
    with pytest.raises(RowRefused, match="writes the prompt otherwise once it is answered"):
        encode_pair(preference, tokenizer, replace(contract, chat_template=template))

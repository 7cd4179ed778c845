"""A recipe's judged answers as token ids, in pairs or one by one: each is trained on, held out, or dropped.

Reads preference snapshots. Prompt and answers are encoded by the same prompt contract as a conversation's rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmops.chat import Tokenizer, encode, encode_prompt
from llmops.errors import DataError
from llmops.ratings.preferences import find_preferences, load_pairs
from llmops.records import Dropped, Labelled, Message, Preference, PreferenceSnapshot, PromptContract
from llmops.registry.adapters import Registry
from llmops.train.recipe import PreferenceSource, Recipe
from llmops.train.rows import Examples, Judged, Pair, hold_out


def read_preferences(
    data: PreferenceSource, registry: Registry
) -> tuple[PreferenceSnapshot, list[Preference]]:
    """The newest preference snapshot that `data` names, and its pairs.

    Raises:
        BadRequest: nothing was exported under that name.
        InvalidEvidence: the snapshot was altered.
    """
    snapshot = find_preferences(registry.store, registry.ledger, data.name)
    return snapshot, load_pairs(registry.store, snapshot)


def encode_pairs(
    found: tuple[PreferenceSnapshot, Sequence[Preference]],
    recipe: Recipe,
    tokenizer: Tokenizer,
    contract: PromptContract,
) -> Examples[Pair]:
    """Every pair with its checked answers, split into trained on, held out and dropped.

    A pair is dropped when both answers are the same, when one has no exact loss mask, or when its longer side has more
    than `recipe.max_tokens` tokens. Whether that is too many is for `require_within_budget`.
    """
    snapshot, preferences = found
    kept: list[Pair] = []
    dropped: list[Dropped] = []
    for preference in preferences:
        try:
            pair = encode_pair(preference, tokenizer, contract)
        except DataError as error:
            dropped.append(Dropped(preference.source, str(error)))
            continue
        if pair.n_tokens > recipe.max_tokens:
            reason = f"too long: {pair.n_tokens} tokens, max_tokens is {recipe.max_tokens}"
            dropped.append(Dropped(preference.source, reason))
            continue
        kept.append(pair)
    train, held_out = hold_out(kept, recipe.held_out_frac, recipe.seed)
    return Examples(snapshot, tuple(train), tuple(held_out), tuple(dropped))


def encode_pair(preference: Preference, tokenizer: Tokenizer, contract: PromptContract) -> Pair:
    """Token ids of a preference's prompt and of its two answers, each with the end token that follows it.

    Raises:
        DataError: both answers are the same, or one of them has no exact loss mask after this prompt.
    """
    if preference.chosen == preference.rejected:
        raise DataError("no preference: chosen and rejected are the same")
    prompt_ids = encode_prompt(tokenizer, contract, preference.messages)
    chosen_ids, rejected_ids = (
        _answer_ids(text, preference.messages, (tokenizer, contract), prompt_ids)
        for text in (preference.chosen, preference.rejected)
    )
    return Pair(prompt_ids, chosen_ids, rejected_ids, preference.group, preference.source)


def judged_of_pairs(pairs: Examples[Pair]) -> Examples[Judged]:
    """Both answers of every pair, one by one: the chosen one is good, the rejected one is not."""

    def both(pair: Pair) -> tuple[Judged, Judged]:
        return (
            Judged(pair.prompt_ids, pair.chosen_ids, True, pair.group, pair.source),
            Judged(pair.prompt_ids, pair.rejected_ids, False, pair.group, pair.source),
        )

    train, held_out = (
        tuple(j for pair in part for j in both(pair)) for part in (pairs.train, pairs.held_out)
    )
    return Examples(pairs.snapshot, train, held_out, pairs.dropped)


def encode_judged(row: Labelled, tokenizer: Tokenizer, contract: PromptContract) -> Judged:
    """Token ids of a judged answer and of its prompt.

    Raises:
        DataError: the answer has no exact loss mask after this prompt.
    """
    prompt_ids = encode_prompt(tokenizer, contract, row.messages)
    answer_ids = _answer_ids(row.completion, row.messages, (tokenizer, contract), prompt_ids)
    return Judged(prompt_ids, answer_ids, row.good, row.group, row.source)


def _answer_ids(
    answer: str,
    messages: Sequence[Message],
    encoder: tuple[Tokenizer, PromptContract],
    prompt_ids: tuple[int, ...],
) -> tuple[int, ...]:
    """The tokens an answer is scored on: those its loss mask marks after the prompt, which must be a prefix of it all.

    What the template puts after the end token is left out: the model never writes it.
    """
    try:
        encoded = encode(*encoder, (*messages, Message("assistant", answer)))
    except DataError as error:
        raise DataError(f"no exact loss mask: {error}") from None
    n = len(prompt_ids)
    if encoded.input_ids[:n] != prompt_ids:
        raise DataError(
            "no exact loss mask: the prompt has other tokens with the answer than alone, so the model would be taught "
            f"on what it is never asked ({answer[:40]!r})"
        )
    # Answers earlier in the conversation carry a mask too, but all answers to the prompt share them.
    return tuple(
        token for token, scored in zip(encoded.input_ids[n:], encoded.loss_mask[n:], strict=True) if scored
    )

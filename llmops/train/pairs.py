"""A recipe's judged answers as token ids, in pairs or one by one: each is trained on, held out, or dropped.

Reads preference snapshots. Prompt and answers are encoded by the same prompt contract as a conversation's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmops.chat import Encoder, Tokenizer, in_chunks
from llmops.data.rows import labelled_line
from llmops.errors import RowRefused
from llmops.ratings.preferences import DroppedItem, find_preferences, load_pairs, put_preferences
from llmops.records import (
    DatasetSnapshot,
    Dropped,
    Labelled,
    Message,
    Preference,
    PreferenceSnapshot,
    PromptContract,
)
from llmops.registry.adapters import Registry
from llmops.schema import canonical_json
from llmops.train.frozen import Frozen, counts_with
from llmops.train.gate import UNCHECKED, Gate
from llmops.train.recipe import PreferenceSource, Recipe
from llmops.train.rows import Examples, Judged, Pair, hold_out, too_long


def read_preferences(
    data: PreferenceSource, registry: Registry, gate: Gate = UNCHECKED
) -> tuple[PreferenceSnapshot, Sequence[Preference], tuple[Dropped, ...]]:
    """The newest preference snapshot that `data` names, its pairs, and those that `gate` drops.

    Where the gate drops or redacts pairs, the others are frozen as a snapshot of their own: what a run names is what it
    learnt from.

    Raises:
        BadRequest: nothing was exported under that name.
        DataError: the gate refuses the pairs.
        InvalidEvidence: the snapshot was altered.
    """
    snapshot = find_preferences(registry.store, registry.ledger, data.name)
    pairs = load_pairs(registry.store, snapshot)
    checked = gate.check(pairs)
    if not checked.changed:
        return snapshot, pairs, ()
    reasons = {d.source: d.reason for d in checked.dropped}
    dropped = [DroppedItem(p.item, p.source, reasons[p.source]) for p in pairs if p.source in reasons]
    rest = replace(
        snapshot,
        artifact=put_preferences(registry.store, checked.rows, dropped),
        n_pairs=len(checked.rows),
        n_dropped=counts_with(snapshot.n_dropped, checked.dropped),
    )
    registry.store.put_record(rest)
    return rest, checked.rows, checked.dropped


def encode_pairs(
    found: tuple[PreferenceSnapshot, Sequence[Preference], Sequence[Dropped]],
    recipe: Recipe,
    tokenizer: Tokenizer,
    contract: PromptContract,
) -> Examples[Pair]:
    """Every pair with its checked answers, split into trained on, held out and dropped.

    A pair is dropped when both answers are the same, when one has no exact loss mask, or when its longer side has more
    than `recipe.max_tokens` tokens. Whether that is too many is for `require_within_budget`.
    """
    snapshot, preferences, already = found
    encoder = Encoder(tokenizer, contract)
    kept: list[Pair] = []
    dropped = list(already)
    outcomes = in_chunks(lambda part: [_pair_or_refusal(one, encoder) for one in part], preferences)
    for preference, pair in zip(preferences, outcomes, strict=True):
        reason = pair.reason if isinstance(pair, RowRefused) else too_long(pair.n_tokens, recipe)
        if reason or isinstance(pair, RowRefused):
            dropped.append(Dropped(preference.source, str(reason), _text(preference)))
        else:
            kept.append(pair)
    train, held_out = hold_out(kept, recipe.held_out_frac, recipe.seed)
    return Examples(snapshot, tuple(train), tuple(held_out), tuple(dropped))


def encode_pair(preference: Preference, tokenizer: Tokenizer, contract: PromptContract) -> Pair:
    """Token ids of a preference's prompt and of its two answers, each with the end token that follows it.

    Raises:
        RowRefused: both answers are the same, or one of them has no exact loss mask after this prompt.
    """
    return _pair(preference, Encoder(tokenizer, contract))


def _pair(preference: Preference, encoder: Encoder) -> Pair:
    if preference.chosen == preference.rejected:
        raise RowRefused("no preference", "chosen and rejected are the same; leave the pair out")
    prompt_ids = encoder.encode_prompt(preference.messages)
    chosen_ids, rejected_ids = (
        _answer_ids(text, preference.messages, encoder, prompt_ids)
        for text in (preference.chosen, preference.rejected)
    )
    return Pair(prompt_ids, chosen_ids, rejected_ids, preference.group, preference.source)


def _pair_or_refusal(preference: Preference, encoder: Encoder) -> Pair | RowRefused:
    try:
        return _pair(preference, encoder)
    except RowRefused as error:
        return error


def _text(preference: Preference) -> str:
    """A preference as a line of its own, to be mended."""
    prompt = [m.to_turn() for m in preference.messages]
    value = {"prompt": prompt, "chosen": preference.chosen, "rejected": preference.rejected}
    return canonical_json(value).decode()


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


def _judged(row: Labelled, encoder: Encoder) -> Judged:
    prompt_ids = encoder.encode_prompt(row.messages)
    answer_ids = _answer_ids(row.completion, row.messages, encoder, prompt_ids)
    return Judged(prompt_ids, answer_ids, row.good, row.group, row.source)


def encode_all_judged(
    found: Frozen[DatasetSnapshot, Labelled], recipe: Recipe, tokenizer: Tokenizer, contract: PromptContract
) -> Examples[Judged]:
    """Every judged answer, split into trained on, held out and dropped, as `encode_pairs` does with pairs."""
    kept: list[Judged] = []
    dropped = list(found.dropped)
    encoder = Encoder(tokenizer, contract)
    for row in found.rows:
        try:
            judged = _judged(row, encoder)
        except RowRefused as error:
            reason: str | None = error.reason
        else:
            reason = too_long(judged.n_tokens, recipe)
        if reason:
            dropped.append(Dropped(row.source, reason, labelled_line(row).decode()))
        else:
            kept.append(judged)
    train, held_out = hold_out(kept, recipe.held_out_frac, recipe.seed)
    return Examples(found.snapshot, tuple(train), tuple(held_out), tuple(dropped))


def _answer_ids(
    answer: str, messages: Sequence[Message], encoder: Encoder, prompt_ids: tuple[int, ...]
) -> tuple[int, ...]:
    """The tokens an answer is scored on: those its loss mask marks after the prompt, which must be a prefix of it all.

    What the template puts after the end token is left out: the model never writes it.
    """
    encoded = encoder.encode_answer((*messages, Message("assistant", answer)))
    n = len(prompt_ids)
    if encoded.input_ids[:n] != prompt_ids:
        raise RowRefused(
            "fused tokens",
            "the prompt has other tokens with the answer than alone, so the model would be taught on what it is never "
            f"asked ({answer[:40]!r}); strip outer white space",
        )
    return tuple(token for token, scored in zip(encoded.input_ids, encoded.loss_mask, strict=True) if scored)

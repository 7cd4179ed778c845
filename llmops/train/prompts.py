"""A recipe's rows as prompts to answer: what is asked, in token ids and in turns, and the row's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmops.chat import Tokenizer, encode_prompt
from llmops.records import Dropped, Message, PromptContract, Row
from llmops.train.recipe import Grpo, Recipe
from llmops.train.rows import Example, Examples


@dataclass(frozen=True)
class Asked:
    """One prompt as the trainer sees it; `reference` is the row's own answer, `row_ids` is the whole row."""

    prompt_ids: tuple[int, ...]
    row_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    reference: str
    group: str
    source: str

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and the row's own answer, as the model reads them."""
        return self.row_ids

    @property
    def n_tokens(self) -> int:
        """Length of the prompt, in tokens."""
        return len(self.prompt_ids)


def prompts_of_rows(
    examples: Examples[Example],
    rows: Sequence[Row],
    recipe: Recipe,
    encoder: tuple[Tokenizer, PromptContract],
) -> Examples[Asked]:
    """The prompts of encoded rows, in their order; a prompt that leaves no room for an answer is dropped.

    Args:
        examples: the rows as they were encoded.
        rows: the same rows before that, among others, told by their `source`.
        recipe: says how much room an answer needs.
        encoder: tokenizer and prompt contract.
    """
    assert isinstance(recipe.method, Grpo)
    room = recipe.method.max_answer_tokens
    by_source = {row.source: row for row in rows}
    dropped = list(examples.dropped)

    def ask(kept: Sequence[Example]) -> tuple[Asked, ...]:
        found = []
        # A row that became several examples has one prompt all the same.
        for example in {example.source: example for example in reversed(kept)}.values():
            row = by_source[example.source]
            messages = row.messages
            prompt_ids = encode_prompt(*encoder, messages[:-1], row.tools)
            if len(prompt_ids) + room > recipe.max_tokens:
                reason = (
                    f"too long: {len(prompt_ids)} tokens leave no room for {room} (method.max_answer_tokens), "
                    f"max_tokens is {recipe.max_tokens}"
                )
                dropped.append(Dropped(example.source, reason))
                continue
            asked, answer = messages[:-1], messages[-1].content
            found.append(Asked(prompt_ids, example.token_ids, asked, answer, example.group, example.source))
        return tuple(reversed(found))

    train, held_out = ask(examples.train), ask(examples.held_out)
    return Examples(examples.snapshot, train, held_out, tuple(dropped))

"""From conversations to token ids and loss masks, one at a time or many; both ways run the same code.

Masks are checked, not trusted: the trained tokens of each turn must decode to exactly what the template writes for it,
an end token must follow, and the tokens before it must be those of the prompt that a server sends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llmops.chat.masks import SHOWN, Encoded, Rendered, Turn, rendered
from llmops.chat.template import Template, Tokenizer
from llmops.errors import RowRefused
from llmops.records import Message, PromptContract

Conversation = tuple[Sequence[Message], str | None]
"""Turns, and the functions the assistant may call, as JSON (`Row.tools`)."""

_LONGEST_HEADER = 64  # characters; longer ones are questions, of which few come twice


class Encoder:
    """A base model's tokenizer at work under a prompt contract."""

    def __init__(self, tokenizer: Tokenizer, contract: PromptContract) -> None:
        """`contract` has the recipe's default system prompt."""
        self.template = Template(tokenizer, contract)
        self._backend: Any = tokenizer.backend_tokenizer
        # What tokenizer.json may ask for would cut rows in silence; transformers turns it off at every call.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._ends = frozenset(contract.eos_token_ids)
        self._added = frozenset(self._backend.get_added_tokens_decoder())
        self._headers: dict[str, list[int]] = {}

    def encode_prompt(self, messages: Sequence[Message], tools: str | None = None) -> tuple[int, ...]:
        """Token ids of a prompt, up to where the assistant starts to write."""
        text = self.template.render(messages, open_answer=True, tools=tools)
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def encode(self, messages: Sequence[Message], tools: str | None = None) -> Encoded:
        """Token ids [T] and loss mask [T] of a conversation: 1 on what the assistant writes and its end tokens.

        Args:
            messages: the turns, the last of them the assistant's.
            tools: the functions the assistant may call, as JSON (`Row.tools`).

        Raises:
            RowRefused: the template changes, drops or fuses a turn so that no exact mask exists, or there is no answer.
        """
        found = rendered(self.template, messages, tools)
        return self._masked(found, self._backend.encode(found.text, add_special_tokens=False))

    def encode_answer(self, messages: Sequence[Message], tools: str | None = None) -> Encoded:
        """The conversation with 1 on its last turn alone; arguments and errors are those of `encode`."""
        found = rendered(self.template, messages, tools, last_only=True)
        return self._masked(found, self._backend.encode(found.text, add_special_tokens=False))

    def encode_all(self, messages: Sequence[Message], tools: str | None = None) -> tuple[Encoded, ...]:
        """The conversation as `encode` has it, and one sequence for each turn that is only read there.

        Together they train on every turn of the assistant once, each after exactly the prompt that a server would send.
        Arguments and errors are those of `encode`.
        """
        (found,) = self.encode_many([(messages, tools)])
        if isinstance(found, RowRefused):
            raise found
        return found

    def encode_many(
        self, conversations: Sequence[Conversation]
    ) -> Iterator[tuple[Encoded, ...] | RowRefused]:
        """What `encode_all` says of each conversation, in order; a refused one gives its error."""
        texts = [self._rendered_all(*conversation) for conversation in conversations]
        flat = [one.text for found in texts if not isinstance(found, RowRefused) for one in found]
        encodings = iter(self._backend.encode_batch(flat, add_special_tokens=False))
        for found in texts:
            if isinstance(found, RowRefused):
                yield found
                continue
            mine = [next(encodings) for _ in found]
            try:
                yield tuple(self._masked(one, tokens) for one, tokens in zip(found, mine, strict=True))
            except RowRefused as error:
                yield error

    def _rendered_all(
        self, messages: Sequence[Message], tools: str | None
    ) -> tuple[Rendered, ...] | RowRefused:
        try:
            whole = rendered(self.template, messages, tools)
            alone = (
                rendered(self.template, messages[: i + 1], tools, last_only=True) for i in whole.context_turns
            )
            return (whole, *alone)
        except RowRefused as error:
            return error

    def _masked(self, found: Rendered, encoding: Any) -> Encoded:
        """Ids and mask of a rendered conversation, given its tokens."""
        ids: list[int] = encoding.ids
        mask = [0] * len(ids)
        for turn in found.turns:
            first, end = self._span(turn, ids, encoding)
            self._require_exact(turn, found.text, ids, (first, end), encoding.token_to_chars(end)[0])
            self._require_served(turn, found.text, ids[:first], encoding)
            mask[first : end + 1] = [1] * (end + 1 - first)
        return Encoded(tuple(ids), tuple(mask), found.context_turns, found.unrendered)

    def _span(self, turn: Turn, ids: Sequence[int], encoding: Any) -> tuple[int, int]:
        """First token of what a turn writes, and its end token."""
        stop = turn.start + len(turn.written)
        covering = (encoding.char_to_token(c) for c in range(turn.start, stop))
        first = next((t for t in covering if t is not None), len(ids))
        end = next((t for t in range(first, len(ids)) if ids[t] in self._ends), len(ids))
        if end == len(ids) or encoding.token_to_chars(end)[1] > stop:
            raise RowRefused(
                "no end token",
                f"{turn.where}: no end token follows the answer; the model would never learn to stop",
            )
        return first, end

    def _require_exact(
        self, turn: Turn, text: str, ids: Sequence[int], span: tuple[int, int], stop: int
    ) -> None:
        """Refuse a turn whose tokens are not its text, which ends at character `stop`."""
        (first, end), wanted = span, text[turn.start : stop]
        if turn.exact and not wanted.endswith(turn.answer):
            raise RowRefused(
                "end token inside",
                f"{turn.where}: the answer holds an end token after {wanted[-SHOWN:]!r}; "
                "a server would stop there, remove it",
            )
        if not wanted:
            raise RowRefused("no supervised token", f"{turn.where}: the answer is empty; give it a text")
        found = self._decoded(ids[first:end])
        if found != wanted:
            found = self.text_of(ids, first, end)
        if found != wanted:
            raise RowRefused(
                "undecodable",
                f"{turn.where}: the loss mask decodes to {found[:SHOWN]!r}, not to the answer ({wanted[:SHOWN]!r}); "
                "write it as the tokenizer keeps it (Unicode form NFC, no white space at its ends)",
            )

    def _require_served(self, turn: Turn, text: str, before: list[int], encoding: Any) -> None:
        """Refuse a turn before which the prompt has other tokens than it has alone, as a server sends it.

        Added tokens divide a text, so only what follows the last of them can have come out otherwise.
        """
        last = next((t for t in range(len(before) - 1, -1, -1) if before[t] in self._added), None)
        begin = 0 if last is None else encoding.token_to_chars(last)[0]
        if self._alone(text[begin : turn.start]) != before[last or 0 :]:
            raise RowRefused(
                "fused tokens",
                f"{turn.where}: the prompt has other tokens with the answer than alone, so the model would be taught "
                f"on what it is never asked ({text[turn.start : turn.start + SHOWN]!r}); strip outer white space",
            )

    def _alone(self, header: str) -> list[int]:
        """Tokens of what stands between an added token and an answer: mostly the same few words in every row."""
        found = self._headers.get(header)
        if found is None:
            found = self._backend.encode(header, add_special_tokens=False).ids
            if len(header) <= _LONGEST_HEADER:
                self._headers[header] = found
        return found

    def text_of(self, ids: Sequence[int], first: int, end: int) -> str:
        """What the tokens `first` to `end` (not included) of a sequence add to its text.

        Decoders of the SentencePiece kind drop a text's first space, so they are read after the token before them.
        """
        if not first:
            return self._decoded(ids[:end])
        return self._decoded(ids[first - 1 : end]).removeprefix(self._decoded(ids[first - 1 : first]))

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text


def render(
    tokenizer: Tokenizer,
    contract: PromptContract,
    messages: Sequence[Message],
    open_answer: bool,
    tools: str | None = None,
) -> str:
    """One conversation as text; see `Template.render`."""
    return Template(tokenizer, contract).render(messages, open_answer, tools)


def encode_prompt(
    tokenizer: Tokenizer, contract: PromptContract, messages: Sequence[Message], tools: str | None = None
) -> tuple[int, ...]:
    """Token ids of one prompt; see `Encoder.encode_prompt`."""
    return Encoder(tokenizer, contract).encode_prompt(messages, tools)


def encode(
    tokenizer: Tokenizer, contract: PromptContract, messages: Sequence[Message], tools: str | None = None
) -> Encoded:
    """One conversation's token ids and loss mask; see `Encoder.encode`."""
    return Encoder(tokenizer, contract).encode(messages, tools)


def encode_all(
    tokenizer: Tokenizer, contract: PromptContract, messages: Sequence[Message], tools: str | None = None
) -> tuple[Encoded, ...]:
    """All sequences that train one conversation; see `Encoder.encode_all`."""
    return Encoder(tokenizer, contract).encode_all(messages, tools)

"""Loss masks: which tokens of a conversation are the assistant's own writing, proved for each of its turns.

What the assistant writes in a turn is the difference of two renderings: the conversation up to the turn, open for the
answer, which is what a server sends; and the conversation through the turn. Its tokens up to the end token are trained
on: the answer, the calls of tools and the reasoning, as the template writes them. Nothing else is.

Some templates write an earlier turn otherwise once the conversation goes on (Qwen3 leaves its thinking out, Mistral
moves the tools to the last question). Trained there, the model would learn what it is never asked to write. Such a turn
is only read in the whole conversation and gets a sequence of its own that ends with it (`Encoder.encode_all`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmops.chat.template import Template
from llmops.errors import RowRefused
from llmops.records import Message

SHOWN = 40  # characters of a text that a message quotes


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids [T] and its loss mask [T]: 1 = trained on.

    `context_turns` are the assistant's turns that are read here and trained on elsewhere; `unrendered` those whose
    reasoning the template does not write. Both count messages as they were given.
    """

    input_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    context_turns: tuple[int, ...] = ()
    unrendered: tuple[int, ...] = ()

    @property
    def n_supervised(self) -> int:
        """Number of tokens trained on."""
        return sum(self.loss_mask)


@dataclass(frozen=True)
class Turn:
    """One turn of the assistant in a rendered conversation: where it starts to write, and what it writes.

    `written` goes through the end token to whatever the template puts after it. `exact` asks that the text up to the
    end token ends with the answer as it was given; a turn with calls or reasoning is held to the template's writing.
    """

    index: int
    start: int
    written: str
    answer: str
    exact: bool

    @property
    def where(self) -> str:
        """The turn in messages."""
        return f"messages[{self.index}]"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text and the turns of it that are trained on; the other two are as in `Encoded`."""

    text: str
    turns: tuple[Turn, ...]
    context_turns: tuple[int, ...]
    unrendered: tuple[int, ...]


def rendered(
    template: Template, messages: Sequence[Message], tools: str | None, last_only: bool = False
) -> Rendered:
    """The conversation as text, with what the assistant writes in each turn that is trained on.

    Args:
        template: renders it.
        messages: the turns.
        tools: the functions the assistant may call, as JSON (`Row.tools`).
        last_only: train on the last turn alone.

    Raises:
        RowRefused: the template refuses the conversation, changes or drops a turn of the assistant, or there is none.
    """
    text = template.render(messages, open_answer=False, tools=tools)
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        raise RowRefused(
            "no supervised token", "conversation: has no assistant turn; nothing would be trained"
        )
    turns, context, unrendered = [], [], []
    for i in answers[-1:] if last_only else answers:
        prefix = template.render(messages[:i], open_answer=True, tools=tools)
        whole = i + 1 == len(messages)
        through = text if whole else template.render(messages[: i + 1], open_answer=False, tools=tools)
        if not through.startswith(prefix):
            raise _prompt_changed(i, prefix, through)
        turn = _turn(i, messages[i], len(prefix), through[len(prefix) :])
        if messages[i].reasoning and turn.exact and not messages[i].tool_calls:
            unrendered.append(i)
        if whole or (text.startswith(prefix) and text.startswith(turn.written, turn.start)):
            turns.append(turn)
        else:
            context.append(i)
    if not turns:
        raise RowRefused(
            "no supervised token",
            f"messages[{answers[-1]}]: the chat template writes the last answer otherwise once the conversation goes "
            "on; end the conversation with it",
        )
    return Rendered(text, tuple(turns), tuple(context), tuple(unrendered))


def _turn(index: int, message: Message, start: int, written: str) -> Turn:
    """One turn, after its parts were looked for in what the template writes."""
    reasoning = (message.reasoning or "").strip()
    exact = not message.tool_calls and not (reasoning and reasoning in written)
    content = message.content if exact else message.content.strip()
    turn = Turn(index, start, written, message.content, exact)
    if content not in written:
        raise RowRefused(
            "answer changed",
            f"{turn.where}: the chat template does not render the answer as written "
            f"({message.content[:SHOWN]!r}); strip outer white space or mend the template",
        )
    lost = [call.name for call in message.tool_calls if call.name not in written]
    if lost:
        raise RowRefused(
            "tool call not rendered",
            f"{turn.where}: the chat template does not write the call of {lost[0]}; use a base whose template does",
        )
    return turn


def _prompt_changed(index: int, prefix: str, through: str) -> RowRefused:
    same = next((t for t, (a, b) in enumerate(zip(prefix, through, strict=False)) if a != b), len(through))
    return RowRefused(
        "prompt changed",
        f"messages[{index}]: the chat template writes the prompt otherwise once it is answered "
        f"({prefix[same : same + SHOWN]!r} becomes {through[same : same + SHOWN]!r}), so training would not see what "
        "is served; mend the template or leave such rows out",
    )

"""The prompt contract: how a conversation becomes token ids, which of them are trained on, and how both are hashed.

One contract is made from a base model's files, carried by every adapter trained on it, and compared by train, eval and
serve. Reading a contract needs no transformers; encoding needs the tokenizer of the base.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmops.errors import ConfigError, DataError, InvalidEvidence
from llmops.records import Message, PromptContract
from llmops.schema import JsonDict, short
from llmops.store import sha256_file

CONTRACT_FILE = "prompt_contract.json"


class Tokenizer(Protocol):
    """What is used of a transformers fast tokenizer."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        chat_template: str,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> Any:
        """The conversation as one string."""

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Any:
        """Token ids and character offsets of a string."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The string of token ids."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids [T] and its loss mask [T]: 1 = trained on."""

    input_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]

    @property
    def n_supervised(self) -> int:
        """Number of tokens trained on."""
        return sum(self.loss_mask)


def read_contract(model_dir: Path, system: str | None = None) -> PromptContract:
    """The contract that a model folder's own files spell, with `system` as its default system prompt.

    Raises:
        ConfigError: the folder has no tokenizer.json, no chat template, or no end token.
    """
    tokenizer = model_dir / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConfigError(f"{model_dir}: has no tokenizer.json; save the model with its fast tokenizer")
    config = _read_json(model_dir / "tokenizer_config.json")
    template_file = model_dir / "chat_template.jinja"
    template = (
        template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    )
    if not isinstance(template, str):
        raise ConfigError(f"{model_dir}: has no single chat template; add chat_template.jinja")
    return PromptContract(template, sha256_file(tokenizer), _eos_token_ids(model_dir), system)


def _eos_token_ids(model_dir: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        found = _read_json(model_dir / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    raise ConfigError(f"{model_dir}: no eos_token_id in generation_config.json or config.json; add it")


def _read_json(path: Path) -> JsonDict:
    data: JsonDict = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return data


def write_contract(contract: PromptContract, adapter_dir: Path) -> None:
    """Put the contract into an adapter's folder, where its digest covers it."""
    (adapter_dir / CONTRACT_FILE).write_text(json.dumps(contract.to_dict(), indent=1, sort_keys=True) + "\n")


def require_same_contract(adapter: PromptContract, base: PromptContract, where: str) -> None:
    """Refuse an adapter whose template, tokenizer or end tokens are not the base model's (`where` names the adapter).

    Raises:
        InvalidEvidence: names the first part that differs.
    """
    parts = {
        "chat template": (adapter.chat_template, base.chat_template),
        "tokenizer": (adapter.tokenizer_sha256, base.tokenizer_sha256),
        "end tokens": (adapter.eos_token_ids, base.eos_token_ids),
    }
    for name, (mine, theirs) in parts.items():
        if mine != theirs:
            raise InvalidEvidence(
                f"{where}: prompt contract {short(adapter.without_system().digest())} has another {name} than the base "
                f"({short(base.without_system().digest())}); use the base it was trained on"
            )


def with_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The conversation with the default system prompt before it, unless it brings its own or there is none."""
    if system is None or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message("system", system), *messages)


def render(
    tokenizer: Tokenizer, contract: PromptContract, messages: Sequence[Message], open_answer: bool
) -> str:
    """The conversation as the model reads it; `open_answer` ends it where the assistant starts to write.

    Raises:
        DataError: the chat template refuses the conversation (its own words are kept).
    """
    turns = [m.to_turn() for m in with_system(messages, contract.system)]
    try:
        text: str = tokenizer.apply_chat_template(
            turns, chat_template=contract.chat_template, tokenize=False, add_generation_prompt=open_answer
        )
    except Exception as error:  # jinja2 and templates' own raise_exception share no narrower class
        raise DataError(f"chat template: refuses the conversation ({error}); mend its roles") from error
    return text


def encode_prompt(
    tokenizer: Tokenizer, contract: PromptContract, messages: Sequence[Message]
) -> tuple[int, ...]:
    """Token ids of a prompt, up to where the assistant starts to write."""
    text = render(tokenizer, contract, messages, open_answer=True)
    return tuple(tokenizer(text, add_special_tokens=False, return_offsets_mapping=False)["input_ids"])


def encode(tokenizer: Tokenizer, contract: PromptContract, messages: Sequence[Message]) -> Encoded:
    """Token ids [T] and loss mask [T] of a conversation: 1 on every assistant turn's text and its end token.

    The mask is checked, not trusted: its tokens must decode to exactly the assistants' texts, each with an end token.

    Raises:
        DataError: the template changes, drops or fuses an answer so that no exact mask exists, or there is no answer.
    """
    text = render(tokenizer, contract, messages, open_answer=False)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tuple(encoding["input_ids"]), encoding["offset_mapping"]
    mask = [0] * len(ids)
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        raise DataError("conversation: has no assistant turn; nothing would be trained")
    for i in answers:
        prefix = render(tokenizer, contract, messages[:i], open_answer=True)
        start, stop = len(prefix), len(prefix) + len(messages[i].content)
        if not text.startswith(prefix) or text[start:stop] != messages[i].content:
            raise DataError(
                f"messages[{i}]: the chat template does not render the answer as written "
                f"({messages[i].content[:40]!r}); strip outer white space or mend the template"
            )
        span = [t for t, (low, high) in enumerate(offsets) if low >= start and high <= stop and high > low]
        end = span[-1] + 1 if span else -1
        if not span or end >= len(ids) or ids[end] not in contract.eos_token_ids:
            raise DataError(
                f"messages[{i}]: no end token follows the answer; the model would never learn to stop"
            )
        decoded = tokenizer.decode(ids[span[0] : end], skip_special_tokens=False)
        if decoded != messages[i].content:
            raise DataError(f"messages[{i}]: the loss mask decodes to {decoded[:40]!r}, not to the answer")
        for t in (*span, end):
            mask[t] = 1
    return Encoded(ids, tuple(mask))

"""What can be wrong with a base model's tokenizer and template before any row is read: findings, each with its advice.

Reads the base's config.json and asks its tokenizer; loads no weights. Whether a finding stops a run is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmops.chat import encode, render
from llmops.errors import DataError
from llmops.records import Message, PromptContract
from llmops.registry.bases import Base
from llmops.schema import JsonDict

Severity = Literal["ok", "warn", "refuse"]

ABSURD_MAX_TOKENS = 10_000_000
"""A tokenizer's length limit above this is no limit (transformers writes 1e30 where nobody said one)."""
_PROBE = (Message("user", "Are you there?"), Message("assistant", "Yes, I am."))
_N_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """What one check found; `advice` says what to do about a warning or a refusal, and is empty when all is well."""

    check: str
    severity: Severity
    what: str
    advice: str = ""

    def __str__(self) -> str:
        """The finding in the form of error messages."""
        return f"{self.check}: {self.what}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class _Parts:
    """What every check looks at."""

    base: Base
    tokenizer: Any
    contract: PromptContract
    config: JsonDict  # the base's config.json

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding matrix, as config.json states them."""
        found = self.config.get("vocab_size") or self.config.get("text_config", {}).get("vocab_size")
        return int(found) if isinstance(found, int) else None

    def name(self, token_id: int) -> str:
        """A token as it is written, with its id."""
        return f"{self.tokenizer.convert_ids_to_tokens(token_id)!r} ({token_id})"


def tokenizer_findings(base: Base, tokenizer: Any, contract: PromptContract) -> tuple[Finding, ...]:
    """Everything that `CHECKS` find out about a base model's tokenizer, template and special tokens.

    Args:
        base: the base model, whose config.json is read.
        tokenizer: its transformers fast tokenizer.
        contract: its prompt contract with the recipe's default system prompt.
    """
    config = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    parts = _Parts(base, tokenizer, contract, config)
    return tuple(finding for check in CHECKS for finding in check(parts))


def _template(parts: _Parts) -> Iterator[Finding]:
    """The template renders a plain conversation, and writes the recipe's system prompt where there is one."""
    try:
        text = render(parts.tokenizer, parts.contract, _PROBE[:1], open_answer=True)
    except DataError as error:
        yield Finding(
            "chat template", "refuse", f"refuses a plain question ({error})", "mend chat_template.jinja"
        )
        return
    system = parts.contract.system
    if system is not None and system.strip() not in text:
        yield Finding(
            "chat template",
            "refuse",
            f"does not write the system prompt {system[:40]!r}",
            "leave `system` out, or put it into the questions",
        )
    elif "strftime_now" in parts.contract.chat_template:
        yield Finding(
            "chat template",
            "warn",
            "writes the date of the day: prompts of tomorrow differ from those trained on today",
            "train with the date fixed in chat_template.jinja where that matters",
        )
    else:
        yield Finding("chat template", "ok", "renders a plain conversation")


def _end_token(parts: _Parts) -> Iterator[Finding]:
    """An answer ends with a token at which generation stops, and engines know that token."""
    stops = parts.contract.eos_token_ids
    try:
        encoded = encode(parts.tokenizer, parts.contract, _PROBE)
    except DataError as error:
        yield Finding(
            "end token",
            "refuse",
            f"{error} (generation stops at {', '.join(map(parts.name, stops))})",
            "add the token that the template writes after an answer to eos_token_id in generation_config.json",
        )
        return
    end = [t for t, scored in zip(encoded.input_ids, encoded.loss_mask, strict=True) if scored][-1]
    unused = [t for t in stops if t != end]
    also = f"; generation also stops at {', '.join(map(parts.name, unused))}" if unused else ""
    yield Finding("end token", "ok", f"an answer ends with {parts.name(end)}, where generation stops{also}")
    own = parts.tokenizer.eos_token_id
    if own is not None and own not in stops:
        yield Finding(
            "end token",
            "warn",
            f"the tokenizer's eos_token {parts.name(own)} is not among those of generation_config.json",
            "programs that ask the tokenizer would not stop where this model does; make them equal",
        )


def _pad_token(parts: _Parts) -> Iterator[Finding]:
    """Padding never hides or becomes a label: it is masked by position, not by id."""
    pad, stops = parts.tokenizer.pad_token_id, parts.contract.eos_token_ids
    masked = "padding is masked by position, so the end token is still trained on"
    if pad is None:
        yield Finding("pad token", "ok", f"none; {parts.name(stops[0])} pads, and {masked}")
    elif pad in stops:
        yield Finding("pad token", "ok", f"{parts.name(pad)} is also an end token; {masked}")
    else:
        yield Finding("pad token", "ok", f"{parts.name(pad)}, apart from the end tokens")


def _bos_token(parts: _Parts) -> Iterator[Finding]:
    """Who writes the first token: the template, the tokenizer, both or nobody."""
    bos = parts.tokenizer.bos_token_id
    if bos is None:
        yield Finding("bos token", "ok", "none")
        return
    try:
        text = render(parts.tokenizer, parts.contract, _PROBE[:1], open_answer=True)
    except DataError:
        return  # told by the template's check
    plain = list(parts.tokenizer(text, add_special_tokens=False)["input_ids"])
    with_own = list(parts.tokenizer(text, add_special_tokens=True)["input_ids"])
    name = parts.name(bos)
    if plain[:2] == [bos, bos]:
        yield Finding(
            "bos token", "warn", f"the template writes {name} twice", "remove one from chat_template.jinja"
        )
    elif with_own[:2] == [bos, bos]:
        yield Finding(
            "bos token",
            "warn",
            f"the template writes {name} and the tokenizer would add another; rows are encoded without the tokenizer's",
            "send chat messages when serving; a rendered text needs add_special_tokens=false",
        )
    elif plain[:1] != [bos] and with_own[:1] == [bos]:
        yield Finding(
            "bos token",
            "warn",
            f"the tokenizer adds {name} but the template does not, so conversations begin without it",
            "write it in chat_template.jinja if the base was trained with it",
        )
    else:
        where = "written once" if plain[:1] == [bos] else "which conversations begin without"
        yield Finding("bos token", "ok", f"{name}, {where}")


def _length(parts: _Parts) -> Iterator[Finding]:
    """The tokenizer's length limit is one, and not under the model's."""
    limit, positions = parts.tokenizer.model_max_length, parts.config.get("max_position_embeddings")
    if limit > ABSURD_MAX_TOKENS:
        yield Finding(
            "model_max_length",
            "warn",
            f"{limit:.3g} is no limit; the model reads {positions or 'an unknown number of'} positions",
            "set model_max_length in tokenizer_config.json; rows are held against max_tokens here",
        )
    elif isinstance(positions, int) and limit > positions:
        yield Finding(
            "model_max_length",
            "warn",
            f"{limit:,} is over the model's {positions:,} positions",
            "lower model_max_length in tokenizer_config.json",
        )
    else:
        yield Finding("model_max_length", "ok", f"{limit:,} tokens")


def _vocabulary(parts: _Parts) -> Iterator[Finding]:
    """Every token the tokenizer can give has a row in the embedding matrix, added ones included."""
    size = parts.vocab_size
    if size is None:
        yield Finding("vocabulary", "warn", "config.json states no vocab_size", "add it")
        return
    vocabulary: dict[str, int] = parts.tokenizer.get_vocab()
    added: dict[str, int] = parts.tokenizer.get_added_vocab()
    outside = _named({t: i for t, i in vocabulary.items() if i >= size})
    if outside:
        yield Finding(
            "vocabulary",
            "refuse",
            f"the embeddings have {size:,} rows, none for {outside}",
            "use the base's own tokenizer; tokens added to one cannot be trained or served with an adapter",
        )
        return
    yield Finding(
        "vocabulary",
        "ok",
        f"{len(vocabulary):,} tokens, {len(added):,} of them added, in {size:,} rows of embeddings",
    )
    missing = [t for t in parts.contract.eos_token_ids if not 0 <= t < size]
    if missing:
        yield Finding(
            "vocabulary",
            "refuse",
            f"eos_token_id {missing[0]} is beyond the {size:,} rows of the embeddings",
            "correct generation_config.json",
        )


def _named(tokens: dict[str, int]) -> str:
    ordered = sorted(tokens.items(), key=lambda item: item[1])
    more = f" and {len(ordered) - _N_NAMED} more" if len(ordered) > _N_NAMED else ""
    return ", ".join(f"{token!r} ({i})" for token, i in ordered[:_N_NAMED]) + more


CHECKS: Sequence[Callable[[_Parts], Iterator[Finding]]] = (
    _template,
    _end_token,
    _pad_token,
    _bos_token,
    _length,
    _vocabulary,
)
"""In the order in which their findings are listed; each gives at least one unless another check told it already."""

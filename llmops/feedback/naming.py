"""Where an answer says who wrote it: flagged on the page, never hidden, so that a rater knows to judge the rest.

Found by form ("As an AI made by X", "I am Claude") and by names of models and their makers; a name that the prompt
itself speaks of gives nothing away.
"""

from __future__ import annotations

import re

MOST_PHRASES = 5

_MAKERS = (
    "OpenAI", "Anthropic", "DeepMind", "Google AI", "Meta AI", "Mistral AI", "Hugging Face", "HuggingFace",
    "Alibaba Cloud", "Moonshot AI", "Cohere", "xAI", "Zhipu AI", "Stability AI", "01.AI",
)  # fmt: skip
_MODELS = (
    "ChatGPT", "GPT", "Mixtral", "DeepSeek", "Qwen", "SmolLM", "ChatGLM", "Baichuan", "Vicuna", "Ministral",
    "Codestral", "InternLM", "OLMo", "Nemotron", "Gemma", "Qwen2", "Qwen3",
)  # fmt: skip
_AMBIGUOUS = (
    "Claude", "Gemini", "Bard", "Llama", "Mistral", "Falcon", "Phi", "Grok", "Copilot", "Kimi", "Command R", "Yi",
)  # fmt: skip
"""Also ordinary words: they name a model when a version follows, or where somebody says that they are it."""

_KIND = r"(?:model|assistant|chatbot|system)"
_AI = rf"(?:an? )?(?:(?:large |small )?language model|(?:AI|artificial intelligence)(?:[ -](?:language )?{_KIND})?)"
_BY = r"(?:made|created|developed|trained|built|designed|provided) by"
_NAME = r"[A-Z0-9][\w.-]*(?: [A-Z][\w.-]*)?"
_ANY = "|".join(re.escape(name) for name in (*_MODELS, *_AMBIGUOUS))
_PHRASES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b[Aa]s {_AI}\b(?:,? {_BY} {_NAME})?",
        rf"\bI(?:'m|’m| am) (?:just |only )?{_AI}\b(?:,? {_BY} {_NAME})?",
        rf"\bI (?:was|am|have been) {_BY} {_NAME}",
        rf"\b(?:I(?:'m|’m| am)|[Mm]y name is|[Tt]his is|[Cc]all me) (?:{_ANY})\b[\w.-]*",
        rf"\b(?:{'|'.join(_AMBIGUOUS)})[ -]?v?\d[\w.-]*",
        rf"\b(?:{'|'.join(_MODELS)})(?:[ -]?v?\d[\w.-]*)?\b",
        rf"\b(?:{'|'.join(re.escape(m) for m in _MAKERS)})(?!\w)",
        r"\b[\w.-]+@[0-9a-f]{12}\b",
    )
)


def names_itself(answer: str, prompt: str = "") -> tuple[str, ...]:
    """The phrases by which an answer gives its writer away, as they stand in it; those the prompt holds are left out.

    >>> names_itself("As an AI made by OpenAI, I cannot."), names_itself("Paris.")
    (('As an AI made by OpenAI',), ())
    """
    spans: list[tuple[int, int]] = []
    for pattern in _PHRASES:
        for match in pattern.finditer(answer):
            start, end = match.span()
            if all(end <= s or start >= e for s, e in spans):  # the first pattern says most
                spans.append((start, end))
    asked = prompt.casefold()
    phrases = (answer[start:end].rstrip(" .,-") for start, end in sorted(spans))
    told = [phrase for phrase in phrases if phrase.casefold() not in asked]
    return tuple(dict.fromkeys(told))[:MOST_PHRASES]

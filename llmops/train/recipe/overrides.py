"""Settings that replace a recipe's own, as `--set` gives them. Reads nothing."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import yaml

from llmops.errors import ConfigError

Overrides = tuple[tuple[str, Any], ...]
"""Settings that replace a recipe's: dotted name and value, as `--set` gives them."""


def parse_override(text: str) -> tuple[str, Any]:
    """A `--set` option's dotted name and its value, which is YAML.

    >>> parse_override("lora.r=8")
    ('lora.r', 8)

    Raises:
        ConfigError: it is not NAME=VALUE.
    """
    name, equals, value = text.partition("=")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: the value is not YAML; quote it") from None
    if not equals or not name:
        raise ConfigError(f"--set {text}: is not NAME=VALUE, such as lora.r=8")
    # YAML 1.1 reads 1e-4 as text; every other program reads a number.
    if isinstance(found, str) and value.strip() == found:
        with suppress(ValueError):
            found = float(found)
    return name, found


def set_words(overrides: Overrides) -> tuple[str, ...]:
    """Overrides as the options of `llmops finetune` that give them.

    >>> set_words((("lora.r", 8),))
    ('--set', 'lora.r=8')
    """
    return tuple(word for name, value in overrides for word in ("--set", f"{name}={json.dumps(value)}"))

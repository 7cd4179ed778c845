"""Secrets of sources, which stand in environment variables and nowhere else."""

from __future__ import annotations

import os

from llmops.errors import ConfigError


def from_environment(name: str, what: str) -> str:
    """The value of a variable that a YAML file names.

    Raises:
        ConfigError: it is not set.
    """
    value = os.environ.get(name)
    if not value:
        raise ConfigError(f"{what}: the environment variable {name} is not set; set it")
    return value


def without(secret: str | None, text: str) -> str:
    """The first line of a text, with the secret, should it stand there, as stars."""
    line = text.partition("\n")[0][:300]
    return line.replace(secret, "***") if secret else line

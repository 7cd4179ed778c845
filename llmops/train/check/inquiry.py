"""Collects what the checks find, so that a recipe's faults are told together and not one a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmops.errors import ConfigError, LlmopsError
from llmops.train.sanity import Finding

T = TypeVar("T")


@dataclass
class Inquiry:
    """Findings in the order they were made; each refusal among them has the error that a run would end with."""

    findings: list[Finding] = field(default_factory=list)
    errors: list[LlmopsError] = field(default_factory=list)

    def attempt(self, check: str, step: Callable[..., T], *arguments: Any) -> T | None:
        """The result of a step, or None if it refuses the recipe; what it says is noted under `check`."""
        try:
            return step(*arguments)
        except LlmopsError as error:
            self.errors.append(error)
            self.findings.append(Finding(check, "refuse", str(error)))
            return None

    def note(self, findings: Iterable[Finding]) -> None:
        """Add findings; a refusal among them is one that no step raised."""
        for finding in findings:
            self.findings.append(finding)
            if finding.severity == "refuse":
                self.errors.append(ConfigError(str(finding)))

    def require(self) -> None:
        """Raise the first refusal, with all others in its message.

        Raises:
            LlmopsError: there is a refusal; of the class that the first one has.
        """
        if not self.errors:
            return
        first, *others = self.errors
        if others:
            first.args = ("\nalso: ".join(map(str, self.errors)),)
        raise first

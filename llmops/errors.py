"""Every error llmops raises on purpose, and the exit code each one ends the command with.

Messages read `where: what, with the value; what to do`. Nothing here imports anything: every layer may use it.

| code | meaning |
|---|---|
| 0 | done, or the gate says PASS |
| 1 | FAIL: the gate decided against |
| 2 | bad request: the input can be corrected by whoever typed it |
| 3 | INCONCLUSIVE: more cases, votes or approvals are needed |
| 4 | INVALID: the evidence is broken, missing or does not belong together |
| 5 | could not run: infrastructure, or our own fault |
| 130, 143 | ended by Ctrl-C, by SIGTERM (128 and the signal's number, as shells have it); says how to go on |
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAIL = 1
EXIT_BAD_REQUEST = 2
EXIT_INCONCLUSIVE = 3
EXIT_INVALID = 4
EXIT_COULD_NOT_RUN = 5
EXIT_SIGNAL = 128  # and the signal's number
SIGINT = 2

VERDICT_EXIT_CODES = {
    "PASS": EXIT_DONE,
    "FAIL": EXIT_FAIL,
    "INCONCLUSIVE": EXIT_INCONCLUSIVE,
    "INVALID": EXIT_INVALID,
}


class LlmopsError(Exception):
    """Root of all deliberate errors; ends a command with `exit_code`."""

    exit_code = EXIT_COULD_NOT_RUN


class BadRequest(LlmopsError):
    """The input is wrong and whoever typed it can correct it."""

    exit_code = EXIT_BAD_REQUEST


class ConfigError(BadRequest):
    """A YAML file, flag or environment variable does not say what it must."""


class DataError(BadRequest):
    """A data row or file cannot be used; the message carries file and line."""


class RowRefused(DataError):
    """One row cannot be trained on; `kind` is the class of reasons it is counted under."""

    def __init__(self, kind: str, message: str) -> None:
        """Keep the kind, such as "no end token"."""
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[RowRefused], tuple[str, str]]:
        """Pickle with both arguments: rows are encoded in processes of their own."""
        return type(self), (self.kind, str(self))

    @property
    def reason(self) -> str:
        """`kind: message`, as dropped rows state it."""
        return f"{self.kind}: {self}"


class InvalidEvidence(LlmopsError):
    """A file, record or chain of the evidence is missing, altered or does not belong with the rest."""

    exit_code = EXIT_INVALID


class ReleaseRefused(LlmopsError):
    """A public name may not move; the exit code follows the verdict that stands in the way."""

    def __init__(self, message: str, verdict: str = "INVALID") -> None:
        """Keep the verdict ("FAIL", "INCONCLUSIVE" or "INVALID") whose exit code the command ends with."""
        super().__init__(message)
        self.exit_code = VERDICT_EXIT_CODES[verdict]


class ApprovalsMissing(ReleaseRefused):
    """A decision passes, but too few people have approved it yet."""

    def __init__(self, message: str, decision: str) -> None:
        """Keep the digest of the decision that waits."""
        super().__init__(message, "INCONCLUSIVE")
        self.decision = decision


class CouldNotRun(LlmopsError):
    """The machine, a library or our own code stood in the way; says nothing about any model."""


class EngineFailed(CouldNotRun):
    """An engine did not start, died, or answered something it must not."""


class StoreError(CouldNotRun):
    """An artifact could not be written or read for reasons of the machine (disk full, permissions)."""


class TrainingFailed(CouldNotRun):
    """Training ended without an adapter worth storing (no effect, not finite, interrupted)."""


class Interrupted(TrainingFailed):
    """Somebody ended training with Ctrl-C or SIGTERM; the exit code is 128 and the signal's number."""

    def __init__(self, message: str, signum: int | None = None) -> None:
        """Keep the signal's number; None counts as Ctrl-C."""
        super().__init__(message)
        self.signum = signum or SIGINT
        self.exit_code = EXIT_SIGNAL + self.signum

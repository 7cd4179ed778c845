"""Where the rating page listens: on this machine alone, or for other machines once raters have to sign in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmops.auth import Keys
from llmops.errors import ConfigError
from llmops.feedback.sign_in import RATERS
from llmops.listening import is_loopback, require_certificate
from llmops.settings import now

HERE = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """A host (an address, or a name of this machine), a port (0: any free), and PEM files for HTTPS."""

    port: int = 0
    host: str = HERE
    certificate: Path | None = None
    key: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def url(self, port: int) -> str:
        """How a browser asks for the page on the port that was taken."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{port}"


def require_guarded(at: Address, keys: Keys) -> None:
    """Refuse an address that other machines reach while nobody could sign in there, and a certificate that is none.

    Raises:
        ConfigError: there is no live key or password that opens the page, or the PEM files cannot be used.
    """
    if not at.is_loopback and not any(key.role in RATERS and key.live(now()) for key in keys.list()):
        raise ConfigError(
            f"--host: this address can be reached from other machines and nobody has a key or password to sign in with "
            f"(found {at.host!r}); make one with `llmops key create NAME --role rater`, or use {HERE}"
        )
    if (at.certificate is None) != (at.key is None):
        raise ConfigError("--tls-certificate, --tls-key: HTTPS needs both; give the other one too")
    if at.certificate is not None and at.key is not None:
        require_certificate("--tls-certificate", at.certificate, at.key)

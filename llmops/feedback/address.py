"""Where the rating page listens: on this machine alone, or for other machines once raters have to sign in."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from llmops.auth import Keys
from llmops.errors import ConfigError, CouldNotRun
from llmops.feedback.sign_in import RATERS
from llmops.settings import now

BACKLOG = 2048
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
        """Whether only this machine can reach it.

        >>> [Address(host=h).is_loopback for h in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "box.example")]
        [True, True, True, False, False]
        """
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

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
    if at.certificate is None or at.key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(at.certificate, at.key, password="")  # asked for nothing on a terminal
    except (OSError, ValueError) as error:
        said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--tls-certificate: {at.certificate} with {at.key} cannot be used ({said}); give a certificate and its "
            "key as PEM"
        ) from None


def bind(at: Address) -> socket.socket:
    """A listening socket.

    Raises:
        CouldNotRun: the port is taken, or the host is none of this machine's.
    """
    listener = None
    try:
        family, *_, where = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise CouldNotRun(f"page: port {at.port} on {at.host}: {error}; choose another port, or 0") from None
    listener.setblocking(False)
    return listener

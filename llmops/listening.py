"""What the gateway and the rating page share before they serve: who reaches an address, its socket, its certificate."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from functools import lru_cache
from pathlib import Path

from llmops.errors import ConfigError, CouldNotRun

BACKLOG = 2048


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`.

    >>> [is_loopback(h) for h in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "box.example")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int, who: str = "serve") -> socket.socket:
    """A listening socket; connections wait in it until `who` takes them.

    Raises:
        CouldNotRun: the port is taken, or may not be had, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise CouldNotRun(
            f"{who}: port {port} on {host}: {reason}; stop what uses it, or choose another port"
        ) from None
    listener.setblocking(False)
    return listener


def require_certificate(where: str, certificate: Path, key: Path) -> None:
    """Refuse PEM files that are no certificate with its key; `where` is the setting that names them.

    Raises:
        ConfigError: they cannot be read, are none, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")  # asked for nothing on a terminal
    except (OSError, ValueError) as error:
        said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{where}: {certificate} with {key} cannot be used ({said}); give a certificate and its key as PEM"
        ) from None

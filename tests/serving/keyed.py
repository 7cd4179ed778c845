"""A bare gateway with keys, and a raw socket for requests that no client library would send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from llmops.auth import KeyLimits, Keys, NewKey
from llmops.records import AccessRole
from tests.serving.bare import Bare, bare_gateway, table_of

SCOPES: dict[str, tuple[AccessRole, str, tuple[str, ...]]] = {
    "docs": ("client", "acme", ("docs",)),
    "all": ("client", "acme", ()),
    "other": ("client", "bolt", ("mail",)),
    "operator": ("operator", "local", ()),
    "rater": ("rater", "local", ()),
}
"""Keys by holder: role, tenant, public names."""


@dataclass
class Keyed:
    """The gateway, its keys, and the token of each holder."""

    bare: Bare
    keys: Keys
    tokens: dict[str, str]

    def headers(self, holder: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[holder]}"}

    def get(self, path: str, holder: str) -> httpx.Response:
        return self.bare.client.get(self.bare.url + path, headers=self.headers(holder))

    def chat(self, holder: str, model: str = "docs", **fields: Any) -> httpx.Response:
        return self.bare.chat(model, headers=self.headers(holder), **fields)

    def models(self, holder: str) -> set[str]:
        return {card["id"] for card in self.get("/v1/models", holder).json()["data"]}

    def add(self, holder: str, limits: KeyLimits, tenant: str = "acme") -> str:
        """A further client key; its id."""
        made = self.keys.create(NewKey(holder, "client", tenant, (), limits))
        self.tokens[holder] = str(made.token)
        return made.key.id


@contextmanager
def keyed_gateway(root: Path, **profile: Any) -> Iterator[Keyed]:
    """Public names docs and mail, and one key for every holder of SCOPES."""
    with bare_gateway(root, table_of(docs="docs", mail="mail"), **profile) as bare:
        keys = Keys.of(bare.workspace)
        tokens = {
            holder: str(keys.create(NewKey(holder, role, tenant, names)).token)
            for holder, (role, tenant, names) in SCOPES.items()
        }
        bare.run(bare.gateway.access.ring._look())  # from here on it is closed
        yield Keyed(bare, keys, tokens)


def raw(bare: Bare, request: bytes, whole: bool = True) -> tuple[int, bytes]:
    """Status and all bytes of the answer to bytes sent as they are; (0, ...) when none came.

    Reads the first answer, or until the connection ends when not `whole`.
    """
    host, _, port = bare.url.partition("://")[2].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        found = b""
        while not whole or not _whole(found):
            piece = connection.recv(65536)
            if not piece:
                break
            found += piece
    status = found.split(b" ", 2)[1] if found.startswith(b"HTTP/1.1 ") else b"0"
    return int(status), found


def _whole(found: bytes) -> bool:
    head, _, body = found.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0].partition(b":")[2])

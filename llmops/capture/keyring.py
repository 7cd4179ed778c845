"""The keys that captured texts are encrypted with: AES-256-GCM, from the environment variable LLMOPS_CAPTURE_KEY.

The variable holds one key in base64, or several separated by commas: the first encrypts, all decrypt. A key's id is
taken from its digest and stored beside what it encrypted. Nothing here writes a key anywhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from llmops.errors import ConfigError, InvalidEvidence

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VARIABLE = "LLMOPS_CAPTURE_KEY"
PLAIN = "none"
"""Key id of what is not encrypted."""
KEY_BYTES = 32
_NONCE_BYTES = 12
_MARK_DIGITS = 32
_COMPRESS_FROM = 1024  # below it deflate costs more than it saves
_STORED, _DEFLATED = b"\0", b"\1"
ADVICE = "make one with `llmops capture key`"


class NoKey(ConfigError):
    """What is stored was encrypted with a key that the environment does not have."""


@dataclass(frozen=True)
class Keyring:
    """Keys by id. `writer` is the id of the key that encrypts, `none` for plain text, or None: no text is taken."""

    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    writer: str | None = None

    @classmethod
    def of_environment(cls) -> Keyring:
        """The keys of the environment; empty when the variable is not set.

        Raises:
            ConfigError: it holds something that is no key; never shows it.
        """
        given = [part.strip() for part in os.environ.get(VARIABLE, "").split(",") if part.strip()]
        keys = {key_id(key): key for key in map(_decoded, given)}
        return cls(keys, next(iter(keys), None))

    def plain(self) -> Keyring:
        """The same keys for reading; what is written is not encrypted."""
        return Keyring(self.keys, PLAIN)

    def seal(self, row: str, data: bytes) -> tuple[str, str]:
        """Id of the key and the encrypted data in base64; only `open` for the same `row` reads it again.

        A plain ring gives the data, which is JSON, as it is.

        Raises:
            ConfigError: there is no key.
        """
        if self.writer is None:
            raise ConfigError(f"{VARIABLE}: is not set, and texts are kept encrypted; {ADVICE}")
        if self.writer == PLAIN:
            return PLAIN, data.decode()
        packed = _DEFLATED + zlib.compress(data, 1) if len(data) >= _COMPRESS_FROM else _STORED + data
        nonce = os.urandom(_NONCE_BYTES)
        sealed = _cipher(self.keys[self.writer]).encrypt(nonce, packed, _bound(self.writer, row))
        return self.writer, base64.b64encode(nonce + sealed).decode()

    def open(self, row: str, key: str, payload: str) -> bytes:
        """What `seal` was given for `row`.

        Raises:
            NoKey: `key` is not among the keys.
            InvalidEvidence: the payload was altered, or belongs to another row.
        """
        from cryptography.exceptions import InvalidTag

        if key == PLAIN:
            return payload.encode()
        if key not in self.keys:
            raise NoKey(f"{row}: was encrypted with key {key}, which is not in {VARIABLE}; add that key")
        try:
            data = base64.b64decode(payload, validate=True)
            nonce, sealed = data[:_NONCE_BYTES], data[_NONCE_BYTES:]
            packed = _cipher(self.keys[key]).decrypt(nonce, sealed, _bound(key, row))
            return zlib.decompress(packed[1:]) if packed[:1] == _DEFLATED else packed[1:]
        except (InvalidTag, binascii.Error, zlib.error, ValueError):
            raise InvalidEvidence(
                f"{row}: its text was altered or belongs to another row; delete it"
            ) from None

    def mark(self, tenant: str, user: str) -> str:
        """What is stored in a user's place: the same for the same user, and without the key no way back."""
        return _mark(self.keys.get(self.writer or ""), tenant, user)

    def marks(self, tenant: str, user: str) -> Sequence[str]:
        """Every mark a user may have been stored under: by each key, and by none."""
        return tuple(_mark(key, tenant, user) for key in (*self.keys.values(), None))


def new_key() -> str:
    """A fresh key as LLMOPS_CAPTURE_KEY takes it."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def key_id(key: bytes) -> str:
    """The id that is stored beside what a key encrypted; tells nothing about the key."""
    return hashlib.sha256(b"llmops capture key id\0" + key).hexdigest()[:12]


def _decoded(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{VARIABLE}: holds something that is not {KEY_BYTES} bytes in base64; {ADVICE}")
    return key


@lru_cache(maxsize=4096)  # most users come again soon
def _mark(key: bytes | None, tenant: str, user: str) -> str:
    said = f"{len(tenant)}:{tenant}:{user}".encode(errors="surrogatepass")
    if key is None:
        digest = hashlib.sha256(b"llmops capture user\0" + said).hexdigest()
    else:
        digest = hmac.new(_user_secret(key), said, "sha256").hexdigest()
    return digest[:_MARK_DIGITS]


@cache
def _user_secret(key: bytes) -> bytes:
    return hmac.new(key, b"llmops capture users", "sha256").digest()


def _bound(key: str, row: str) -> bytes:
    return f"{key}:{row}".encode()


@cache
def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)

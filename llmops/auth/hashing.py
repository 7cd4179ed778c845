"""Secrets and their hashes: tokens of 256 random bits (SHA-256 is enough), and passwords people choose (scrypt).

Reads and writes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

PREFIX = "llmops"
TOKEN = re.compile(r"llmops-[0-9a-f]{12}-[A-Za-z0-9_-]{43}")
MIN_PASSWORD = 12
MAX_PASSWORD = 256
# 16 MiB a guess, as OWASP's cheat sheet on storing passwords has it (N=2^14, r=8, p=5).
_N, _R, _P = 2**14, 8, 5
_SALT_BYTES, _HASH_BYTES = 16, 32


def new_token(key_id: str) -> str:
    """A new key: `llmops-ID-SECRET`, with 256 random bits."""
    return f"{PREFIX}-{key_id}-{secrets.token_urlsafe(32)}"


def token_hash(token: str) -> str:
    """What is kept of a key.

    No salt and no slow function: nobody finds 256 random bits by trying, and the gateway hashes at every request.
    """
    return hashlib.sha256(token.encode()).hexdigest()


def password_hash(password: str) -> str:
    """What is kept of a password: the function, its cost, a salt of its own and the hash."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_scrypt(password, salt, (_N, _R, _P)).hex()}"


def password_fits(password: str, kept: str) -> bool:
    """Whether a password is the one that `password_hash` was given; takes as long either way."""
    _, n, r, p, salt, found = kept.split("$")
    cost = (int(n), int(r), int(p))
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt), cost), bytes.fromhex(found))


NO_PASSWORD = f"scrypt${_N}${_R}${_P}${'00' * _SALT_BYTES}${'00' * _HASH_BYTES}"
"""Fits nothing; compared with when there is no such name, so that an answer's time does not tell names."""


def _scrypt(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    most = 128 * n * r * 2  # bytes OpenSSL may take; it needs a little more than 128 n r
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=most, dklen=_HASH_BYTES)

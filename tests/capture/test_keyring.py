"""What is encrypted is read back by its key for its row, and by nothing else."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmops.capture.keyring import VARIABLE, Keyring, NoKey, key_id, new_key
from llmops.errors import ConfigError, InvalidEvidence


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Keyring:
    monkeypatch.setenv(VARIABLE, new_key())
    return Keyring.of_environment()


@pytest.mark.parametrize("n_bytes", [0, 1, 1023, 1024, 100_000])
def test_what_is_sealed_is_opened_again(ring: Keyring, n_bytes: int) -> None:
    data = bytes(range(256)) * 400
    assert ring.open("row", *ring.seal("row", data[:n_bytes])) == data[:n_bytes]


def test_payload_is_aes_gcm_over_the_row_with_a_nonce_of_its_own(ring: Keyring) -> None:
    """Decrypted by the library alone."""
    (name, key), *_ = ring.keys.items()
    payloads = [base64.b64decode(ring.seal("row", b"text")[1]) for _ in range(50)]
    assert len({payload[:12] for payload in payloads}) == 50
    for payload in payloads:
        assert AESGCM(key).decrypt(payload[:12], payload[12:], f"{name}:row".encode()) == b"\0text"


def test_one_changed_byte_anywhere_is_noticed(ring: Keyring) -> None:
    key, payload = ring.seal("row", b"some text of a person")
    data = base64.b64decode(payload)
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises(InvalidEvidence, match="altered"):
            ring.open("row", key, base64.b64encode(changed).decode())
    with pytest.raises(InvalidEvidence, match="belongs to another row"):
        ring.open("other", key, payload)
    with pytest.raises(InvalidEvidence):
        ring.open("row", key, "no base64!")


def test_other_keys_do_not_open_it(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    key, payload = ring.seal("row", b"text")
    monkeypatch.setenv(VARIABLE, new_key())
    with pytest.raises(NoKey, match=key):
        Keyring.of_environment().open("row", key, payload)


@pytest.mark.parametrize("given", ["secret", "c2hvcnQ=", base64.b64encode(bytes(33)).decode(), "a,b"])
def test_what_is_no_key_is_refused_without_being_shown(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(
        ConfigError, match="LLMOPS_CAPTURE_KEY: holds something that is not 32 bytes"
    ) as refused:
        Keyring.of_environment()
    assert given not in str(refused.value)


def test_without_a_key_no_text_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="make one with `llmops capture key`"):
        Keyring.of_environment().seal("row", b"text")


def test_mark_tells_users_and_tenants_apart_and_changes_with_the_key(ring: Keyring) -> None:
    marks = {
        ring.mark("acme", "ada"), ring.mark("acme", "bob"), ring.mark("globex", "ada"), ring.mark("acmea", "da"),
        Keyring().mark("acme", "ada"),
    }  # fmt: skip
    assert len(marks) == 5
    assert ring.mark("acme", "ada") == ring.mark("acme", "ada")
    assert set(ring.marks("acme", "ada")) == {ring.mark("acme", "ada"), Keyring().mark("acme", "ada")}


def test_id_of_a_key_does_not_hold_it() -> None:
    key = bytes(range(32))
    assert len(key_id(key)) == 12
    assert key_id(key) not in key.hex()

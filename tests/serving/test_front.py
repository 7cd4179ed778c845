"""What is judged before anything of a request is read: headers, hosts, and the encryption around it all."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llmops.auth import Keys, NewKey
from llmops.errors import ConfigError
from llmops.serving.app import Gateway
from llmops.settings import Workspace
from tests.serving.bare import Bare, bare_gateway, profile_of, table_of
from tests.serving.keyed import keyed_gateway, raw


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    hosts = ["llm.example.com", "*.internal.example"]
    with bare_gateway(tmp_path_factory.mktemp("bare"), allowed_hosts=hosts) as bare:
        yield bare


def asked_at(bare: Bare, host: str) -> int:
    return raw(bare, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())[0]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1:8000",
        "127.9.9.9",
        "[::1]:1",
        "LLM.example.com",
        "llm.example.com:443",
        "a.internal.example",
    ],
)
def test_host_of_this_machine_or_of_the_profile_is_answered(bare: Bare, host: str) -> None:
    assert asked_at(bare, host) == 200
    assert asked_at(bare, host) == 200  # also once it is known


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "internal.example", "xinternal.example", "llm.example.com.evil.example",
        "127.0.0.1.evil.example", "10.0.0.7", "localhost.", "localhost:80:80", "[::1", "evil.example#localhost",
        "localhost@evil.example", "localhost evil.example", "2130706433", "0.0.0.0", "",
    ],
)  # fmt: skip
def test_foreign_host_is_refused(bare: Bare, host: str) -> None:
    for _ in range(2):
        assert asked_at(bare, host) in (400, 403)


def test_gateway_on_all_addresses_is_asked_by_address_and_by_listed_names(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("bound")
    with keyed_gateway(root, host="0.0.0.0", allowed_hosts=["llm.example.com"]) as keyed:
        key = f"Authorization: Bearer {keyed.tokens['docs']}"
        for host, status in (("10.1.2.3:8000", 200), ("llm.example.com", 200), ("evil.example", 403)):
            head = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n{key}\r\nConnection: close\r\n\r\n"
            assert raw(keyed.bare, head.encode())[0] == status


def test_address_that_others_reach_is_closed_while_there_are_no_keys_whoever_bound_it(
    workspace: Workspace,
) -> None:
    """As under an ASGI server of the user's that was told another address than the profile."""

    async def asked(address: str) -> httpx.Response:
        gateway = Gateway(profile_of(host="0.0.0.0"), workspace)
        gateway.live.table = table_of(docs="docs")
        await gateway.open()
        try:
            transport = httpx.ASGITransport(app=gateway)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{address}:8000") as client:
                return await client.get("/v1/models")
        finally:
            await gateway.close()

    here, there = asyncio.run(asked("127.0.0.1")), asyncio.run(asked("10.0.0.7"))
    assert here.status_code == 200
    assert (there.status_code, there.json()["error"]["code"]) == (403, "no_keys")
    Keys.of(workspace).create(NewKey("app"))
    assert asyncio.run(asked("10.0.0.7")).status_code == 401


@pytest.mark.parametrize(
    ("n", "size", "status", "code"),
    [
        (90, 10, 200, b""),
        (120, 10, 431, b"too_many_headers"),
        (10, 5_000, 431, b"headers_too_large"),
    ],
)
def test_headers_are_bounded_in_number_and_size(
    bare: Bare, n: int, size: int, status: int, code: bytes
) -> None:
    headers = "".join(f"X-{i}: {'a' * size}\r\n" for i in range(n))
    head = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"
    got, answer = raw(bare, head.encode())
    assert got == status
    assert code in answer


@pytest.mark.parametrize(
    "hosts", [["http://llm.example"], ["llm.example:443"], ["*"], ["a.*.example"], ["Llm.Example"]]
)
def test_host_that_is_no_name_is_refused_in_the_profile(workspace: Workspace, hosts: list[str]) -> None:
    from llmops.serving.profile import load_profile

    path = workspace.root / "profile.yaml"
    path.write_text(f"base_model: none\nengine: {{kind: transformers}}\nallowed_hosts: {hosts}\n")
    with pytest.raises(ConfigError, match=r"allowed_hosts.*is no host name"):
        load_profile(path)


# ------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(form, kind, serialization.NoEncryption()))
    return paths


def test_endpoint_with_a_certificate_speaks_https_and_nothing_else(
    certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tls = {"certificate": str(certificate[0]), "key": str(certificate[1])}
    with bare_gateway(tmp_path_factory.mktemp("https"), tls=tls) as bare:
        assert bare.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(certificate[0]))
        with httpx.Client(verify=trusting) as client:
            body = {"model": "docs", "messages": [{"role": "user", "content": "Hi."}]}
            answer = client.post(f"{bare.url}/v1/chat/completions", json=body)
            assert answer.json()["choices"][0]["message"]["content"] == "one two three"
        with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
            httpx.get(f"{bare.url}/healthz")
        with pytest.raises(httpx.HTTPError):
            httpx.get(bare.url.replace("https", "http") + "/healthz")


def test_key_of_another_certificate_is_refused(certificate: tuple[Path, Path]) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from llmops.listening import require_certificate

    other = certificate[0].with_name("other.pem")
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for encryption in (serialization.NoEncryption(), serialization.BestAvailableEncryption(b"secret")):
        other.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(form, kind, encryption))
        with pytest.raises(ConfigError, match="cannot be used"):
            require_certificate("tls", certificate[0], other)

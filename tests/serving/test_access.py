"""Who is let through to what: keys, roles, scopes and tenants, and the ways around them that must not work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from llmops.auth import Keys, NewKey
from llmops.auth.hashing import new_token
from llmops.db import open_database, writing
from llmops.ledger import Ledger
from llmops.tables import access_keys
from tests.in_process import llmops
from tests.serving.bare import Bare, bare_gateway, target
from tests.serving.gateway import wait_for
from tests.serving.keyed import Keyed, keyed_gateway, raw
from tests.serving.staged import staged_gateway

DOCS, BASE = target("docs").engine_name, target("base").engine_name
OPEN_ERROR = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with keyed_gateway(tmp_path_factory.mktemp("keyed")) as keyed:
        yield keyed


@pytest.fixture
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    with bare_gateway(tmp_path_factory.mktemp("bare")) as bare:
        yield bare


# ------------------------------------------------------------ who


def test_gateway_is_open_until_the_first_key_and_closed_from_then_on(bare: Bare) -> None:
    assert bare.chat().status_code == 200
    assert bare.chat(headers={"Authorization": "Bearer whatever"}).status_code == 200
    made = llmops(bare.workspace.root, "key", "create", "app", "--json")
    assert "nothing is open without a key" in made.err
    key = json.loads(made.out)
    wait_for(lambda: bare.chat().status_code == 401)
    assert bare.chat(headers={"Authorization": f"Bearer {key['token']}"}).status_code == 200
    assert llmops(bare.workspace.root, "key", "revoke", key["id"]).code == 0
    wait_for(lambda: bare.chat(headers={"Authorization": f"Bearer {key['token']}"}).status_code == 401)
    assert bare.chat().status_code == 401  # the last key's end opens nothing


def test_new_key_works_at_once(keyed: Keyed) -> None:
    made = llmops(keyed.bare.workspace.root, "key", "create", "new")
    token = made.out.splitlines()[-1]
    assert keyed.bare.chat(headers={"Authorization": f"bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer none"},
        {"Authorization": "Basic {token}"},
        {"Authorization": "{token}"},
        {"Authorization": "Bearer {token} {token}"},
        {"Authorization": "Bearer {token}x"},
        {"Authorization": "Bearer {hash}"},
        {"Authorization": "Bearer {id}"},
        {"Authorization": "Bearer ' OR 1=1 --"},
        {"X-Api-Key": "{token}"},
        {"Proxy-Authorization": "Bearer {token}"},
        {"Cookie": "Authorization=Bearer {token}"},
    ],
)
def test_request_without_a_key_in_its_place_is_refused_in_openai_s_shape(
    keyed: Keyed, headers: dict[str, str]
) -> None:
    token, n_asked = keyed.tokens["docs"], len(keyed.bare.engine.asked)
    with open_database(keyed.bare.workspace.database_url).connect() as connection:
        row = connection.execute(access_keys.select().where(access_keys.c.name == "docs")).one()
    said = {name: text.format(token=token, hash=row.hash, id=row.id) for name, text in headers.items()}
    answer = keyed.bare.chat(headers=said)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error.keys() == OPEN_ERROR
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert token not in answer.text
    assert len(keyed.bare.engine.asked) == n_asked


@pytest.mark.parametrize("field", ["api_key", "key", "access_token", "authorization"])
def test_key_in_the_address_opens_nothing(keyed: Keyed, field: str) -> None:
    token = keyed.tokens["operator"]
    for path in ("/v1/models", "/llmops/status"):
        assert keyed.bare.client.get(keyed.bare.url + path, params={field: token}).status_code == 401
        assert (
            keyed.bare.client.get(keyed.bare.url + path, params={field: f"Bearer {token}"}).status_code == 401
        )


def test_expired_key_is_refused(keyed: Keyed) -> None:
    made = keyed.keys.create(NewKey("brief", days=1))
    headers = {"Authorization": f"Bearer {made.token}"}
    assert keyed.bare.chat(headers=headers).status_code == 200
    with writing(open_database(keyed.bare.workspace.database_url)) as connection:
        last = connection.execute(access_keys.select().order_by(access_keys.c.revision.desc())).first()
        assert last is not None
        change = {"expires_at": "2020-01-01T00:00:00.000Z", "revision": last.revision + 1}
        connection.execute(access_keys.update().where(access_keys.c.id == made.key.id).values(change))
    wait_for(lambda: keyed.bare.chat(headers=headers).status_code == 401)


def test_openai_s_client_gets_its_own_errors(keyed: Keyed) -> None:
    def client(key: str) -> openai.OpenAI:
        return openai.OpenAI(api_key=key, base_url=f"{keyed.bare.url}/v1", max_retries=0)

    def ask(key: str, model: str) -> None:
        client(key).chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])

    ask(keyed.tokens["docs"], "docs")
    with pytest.raises(openai.AuthenticationError):
        ask("sk-wrong", "docs")
    with pytest.raises(openai.NotFoundError):
        ask(keyed.tokens["docs"], "mail")
    with pytest.raises(openai.PermissionDeniedError):
        ask(keyed.tokens["docs"], DOCS)
    with pytest.raises(openai.PermissionDeniedError):
        ask(keyed.tokens["rater"], "docs")
    assert client(keyed.tokens["operator"]).models.retrieve(DOCS).id == DOCS


# ------------------------------------------------------------ what


def test_client_sees_and_uses_the_names_in_its_scope_and_no_others(keyed: Keyed) -> None:
    assert keyed.models("docs") == {"docs"}
    assert keyed.models("all") == {"docs", "mail"}
    assert keyed.models("operator") == {"docs", "mail", DOCS, BASE, target("mail").engine_name}
    for holder, model, status in (
        ("docs", "docs", 200), ("docs", "mail", 404), ("all", "mail", 200), ("other", "docs", 404),
        ("operator", "mail", 200), ("operator", DOCS, 200), ("all", DOCS, 403), ("all", BASE, 403),
    ):  # fmt: skip
        assert keyed.chat(holder, model).status_code == status, (holder, model)
        assert keyed.get(f"/v1/models/{model}", holder).status_code == status, (holder, model)


def test_name_out_of_scope_looks_like_one_that_does_not_exist(keyed: Keyed) -> None:
    hidden, missing = keyed.chat("docs", "mail"), keyed.chat("docs", "nail")
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json()["error"]["message"].replace("mail", "nail") == missing.json()["error"]["message"]
    immutable, unknown = keyed.chat("docs", BASE), keyed.chat("docs", "base@000000000000")
    assert immutable.json() == unknown.json()


@pytest.mark.parametrize("path", ["/llmops/status", "/llmops/adapters", "/metrics", "/llmops/unknown", "/"])
def test_what_is_an_operator_s_is_refused_to_everyone_else(keyed: Keyed, path: str) -> None:
    for holder in ("docs", "all", "rater"):
        for method in ("GET", "POST"):
            answer = keyed.bare.client.request(
                method, keyed.bare.url + path, headers=keyed.headers(holder), json={}
            )
            assert answer.status_code == 403, (holder, method)
            assert answer.json()["error"]["code"] == "wrong_role"


def test_operator_reads_status_and_metrics(keyed: Keyed) -> None:
    assert keyed.get("/llmops/status", "operator").json()["keys_required"] is True
    keyed.bare.chat()
    assert 'llmops_refused_total{code="invalid_api_key"}' in keyed.get("/metrics", "operator").text


def test_document_of_the_endpoint_is_for_whoever_has_a_key(keyed: Keyed) -> None:
    assert keyed.get("/openapi.json", "docs").json()["openapi"].startswith("3.")
    assert keyed.bare.client.get(f"{keyed.bare.url}/openapi.json").status_code == 401


def test_rater_s_key_asks_no_model(keyed: Keyed) -> None:
    for answer in (keyed.chat("rater"), keyed.get("/v1/models", "rater")):
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


def test_health_needs_no_key_and_metrics_only_where_the_profile_says_so(
    keyed: Keyed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 401)):
        assert keyed.bare.client.get(keyed.bare.url + path).status_code == status
    with keyed_gateway(tmp_path_factory.mktemp("open"), open_metrics=True) as other:
        assert "llmops_engine_up" in other.bare.client.get(f"{other.bare.url}/metrics").text
        assert other.get("/metrics", "docs").status_code == 200
        assert other.bare.client.get(f"{other.bare.url}/llmops/status").status_code == 401


# ------------------------------------------------------------ ways around


TRICKS = [
    "/llmops/../llmops/status", "//llmops/status", "/%6clmops/status", "/llmops%2fstatus", "/llmops/status/",
    "/LLMOPS/status", "/llmops/status%00", "/llmops/status%20", "/llmops/./status", "/v1/../llmops/status",
    "/v1/models/../../llmops/status", "/v1/models/..%2f..%2fllmops/status", "/v1/models/%2e%2e/%2e%2e/llmops/status",
    "/healthz/../llmops/status", "/healthz/..%2fllmops/status", "/readyz%2f..%2fllmops%2fstatus",
    "/llmops/status;a=b", "/v1;/llmops/status", "/v1/chat/completions/../../../llmops/status",
    "/healthz?/../llmops/status", "/metrics?x=/healthz", "/llmops/status?path=/healthz", "/%2fllmops/status",
    "/llmops\\status", "/v1/%6dodels", "http://127.0.0.1/llmops/status", "http://x/healthz", "*", "/./metrics",
]  # fmt: skip


@pytest.mark.parametrize("target_", TRICKS)
def test_no_spelling_of_a_path_opens_what_its_plain_one_does_not(keyed: Keyed, target_: str) -> None:
    for holder in (None, "docs", "rater"):
        key = f"Authorization: Bearer {keyed.tokens[holder]}\r\n" if holder else ""
        request = f"GET {target_} HTTP/1.1\r\nHost: localhost\r\n{key}Connection: close\r\n\r\n"
        status, answer = raw(keyed.bare, request.encode())
        health = target_ in ("/healthz?/../llmops/status", "http://x/healthz")  # which is open to all
        assert status in ((200,) if health else (400, 401, 403, 404)), answer
        assert b"keys_required" not in answer
        assert b"llmops_engine_up" not in answer
        assert DOCS.encode() not in answer


@pytest.mark.parametrize("target_", ["/%6clmops/status", "/v1/%6dodels", "//v1/models", "/v1/models?a=/../x"])
def test_only_the_plain_spelling_is_served_even_to_operators(keyed: Keyed, target_: str) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {keyed.tokens['operator']}\r\nConnection: close\r\n\r\n"
    status, _ = raw(keyed.bare, f"GET {target_} HTTP/1.1\r\n{head}".encode())
    assert status == (200 if "?" in target_ else 404)


def test_second_authorization_is_refused_whichever_is_right(keyed: Keyed) -> None:
    good, weak = keyed.tokens["operator"], keyed.tokens["docs"]
    for first, second in ((good, weak), (weak, good), (good, good), ("none", good)):
        keys = f"Authorization: Bearer {first}\r\nauthorization: Bearer {second}\r\n"
        request = f"GET /llmops/status HTTP/1.1\r\nHost: localhost\r\n{keys}Connection: close\r\n\r\n"
        status, answer = raw(keyed.bare, request.encode())
        assert (status, b"repeated_header" in answer) == (400, True)


@pytest.mark.parametrize(
    "head",
    [
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: localhost\r\nContent-Type: application/json\r\nContent-Type: text/plain\r\n",
        "Host: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n",
        "Host: localhost\r\n Authorization: Bearer x\r\n",
        "Host: localhost\r\nAuthorization : Bearer x\r\n",
    ],
)
def test_head_that_two_readers_would_read_differently_is_refused(keyed: Keyed, head: str) -> None:
    request = f"GET /v1/models HTTP/1.1\r\n{head}Connection: close\r\n\r\n"
    status, _ = raw(keyed.bare, request.encode())
    assert status in (400, 403)


def test_key_of_another_tenant_shares_no_prefix_cache_and_cannot_name_its_salt(keyed: Keyed) -> None:
    def salt(holder: str, **fields: object) -> str:
        assert keyed.chat(holder, "mail" if holder == "other" else "docs", **fields).status_code == 200
        return str(keyed.bare.engine.asked[-1]["cache_salt"])

    acme, bolt = salt("docs"), salt("other")
    assert acme == salt("all") != bolt
    assert salt("other", cache_salt=acme) not in (acme, bolt)
    assert (
        salt("docs", cache_salt="user-1")
        == salt("all", cache_salt="user-1")
        != salt("docs", cache_salt="user-2")
    )
    assert keyed.chat("docs", cache_salt=5).json()["error"]["param"] == "cache_salt"


def test_salt_is_left_alone_where_there_are_no_keys(bare: Bare) -> None:
    bare.chat()
    assert "cache_salt" not in bare.engine.asked[-1]
    bare.chat(cache_salt="mine")
    assert bare.engine.asked[-1]["cache_salt"] == "mine"


def test_log_says_whose_key_asked_and_never_the_key(keyed: Keyed) -> None:
    keyed.chat("other", "mail")
    line = keyed.bare.logged()[-1]
    ids = {key.name: key.id for key in keyed.keys.list()}
    assert (line["key"], line["tenant"]) == (ids["other"], "bolt")
    path = keyed.bare.gateway.log.path
    assert all(token not in path.read_text() for token in keyed.tokens.values())


# ------------------------------------------------------------ the ledger, the database


def test_every_changing_call_of_an_operator_is_in_the_ledger(keyed: Keyed) -> None:
    for body in ({"adapter": "nobody@000000000000"}, {"wrong": 1}):
        answer = keyed.bare.client.post(
            f"{keyed.bare.url}/llmops/adapters", json=body, headers=keyed.headers("operator")
        )
        assert answer.status_code in (400, 404)
    keyed.bare.client.post(f"{keyed.bare.url}/llmops/adapters", json={}, headers=keyed.headers("docs"))
    keyed.get("/llmops/status", "operator")
    ids = {key.name: key.id for key in keyed.keys.list()}
    found = [event.body for event in Ledger.of(keyed.bare.workspace).events("admin.called")]
    call = {"key": ids["operator"], "role": "operator", "call": "POST /llmops/adapters"}
    assert found == [{**call, "status": 404}, {**call, "status": 400}]


def test_adapter_that_was_loaded_stands_in_the_ledger_with_the_key_that_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged_gateway(tmp_path) as staged:
        made = json.loads(staged.done("key", "create", "ada", "--role", "operator", "--json"))
        adapter = staged.adapters[2]
        monkeypatch.setenv("LLMOPS_API_KEY", "wrong")
        wait_for(lambda: staged.chat().status_code == 401)
        assert "does not say which" in staged.done("gc", "--dry-run")  # not to just anybody
        monkeypatch.setenv("LLMOPS_API_KEY", made["token"])
        assert "does not say which" not in staged.done("gc", "--dry-run")
        headers = {"Authorization": f"Bearer {made['token']}"}
        body = {"adapter": adapter.model_name}
        answer = staged.client.post(f"{staged.url}/llmops/adapters", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        (event,) = staged.registry.ledger.events("admin.called")
        assert event.body == {
            "key": made["id"], "role": "operator", "call": "POST /llmops/adapters", "status": 200,
            "adapter": adapter.adapter,
        }  # fmt: skip


def test_database_that_is_away_for_long_closes_the_gateway(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = keyed.bare.gateway.access.ring

    def away() -> int:
        from llmops.errors import CouldNotRun

        raise CouldNotRun("database: could not be read (gone)")

    monkeypatch.setattr(ring._keys, "revision", away)
    assert keyed.chat("docs").status_code == 200  # a short absence is nobody's fault
    monkeypatch.setattr("llmops.serving.keyring.GRACE_S", -1.0)
    answer = keyed.chat("docs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "keys_unavailable")
    assert answer.headers["retry-after"] == "5"
    monkeypatch.undo()
    wait_for(lambda: keyed.chat("docs").status_code == 200)


def test_many_unknown_keys_share_a_look_at_the_database(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = keyed.bare.gateway.access.ring
    n_looks = 0
    real = ring._keys.revision

    def counted() -> int:
        nonlocal n_looks
        n_looks += 1
        return real()

    monkeypatch.setattr(ring._keys, "revision", counted)
    monkeypatch.setattr("llmops.serving.keyring.LOOK_S", 3600.0)

    async def many() -> list[object]:
        import asyncio

        return await asyncio.gather(*(ring.who(new_token(f"{i:012x}")) for i in range(500)))

    assert keyed.bare.run(many()) == [None] * 500
    assert n_looks <= 2  # theirs, and one of the clock's


def test_tools_of_the_command_line_send_the_key_of_the_environment(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from llmops.engines.endpoint import Endpoint, Patience
    from llmops.errors import BadRequest

    async def models() -> list[str]:
        async with Endpoint(keyed.bare.url, 1, Patience()) as endpoint:
            return await endpoint.models()

    monkeypatch.delenv("LLMOPS_API_KEY", raising=False)
    with pytest.raises(BadRequest, match="LLMOPS_API_KEY"):
        asyncio.run(models())
    monkeypatch.setenv("LLMOPS_API_KEY", keyed.tokens["operator"])
    assert DOCS in asyncio.run(models())


def test_keys_of_a_workspace_open_only_its_own_gateway(keyed: Keyed, bare: Bare) -> None:
    Keys.of(bare.workspace).create(NewKey("app"))
    bare.run(bare.gateway.access.ring._look())
    assert bare.chat(headers=keyed.headers("operator")).status_code == 401


@pytest.mark.parametrize("path", ["/green/v1/models", "/green/llmops/status", "/green/", "/green/metrics"])
def test_second_engine_is_for_operators_alone(keyed: Keyed, path: str) -> None:
    assert keyed.get(path, "all").status_code == 403
    assert keyed.get(path, "rater").status_code == 403
    assert keyed.bare.client.get(keyed.bare.url + path).status_code == 401
    asked = keyed.get(path, "operator")
    assert (asked.status_code, asked.json()["error"]["code"]) == (404, "no_second_engine")

"""Keys and passwords: what is kept of them and whom they stand for, through the command line where it has a word."""

from __future__ import annotations

import hashlib
import io
import json

import pytest

from llmops.auth import Keys, NewKey, SignInPaused
from llmops.auth.keys import MAX_FAILURES
from llmops.errors import BadRequest
from llmops.ledger import Ledger
from llmops.settings import Workspace, find_workspace
from tests.in_process import llmops

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords that cost little to compare, but where the cost is what is tested."""
    if "scrypt" not in request.node.name:
        monkeypatch.setattr("llmops.auth.hashing._N", 2**4)


def created(workspace: Workspace, *words: str, typed: str | None = None) -> dict[str, object]:
    stdin = None if typed is None else io.StringIO(typed + "\n")
    done = llmops(workspace.root, "key", "create", *words, "--json", typed=stdin)
    assert done.code == 0, done.err
    found: dict[str, object] = json.loads(done.out)
    return found


def stored(workspace: Workspace) -> bytes:
    """All bytes of the workspace's state."""
    return b"".join(path.read_bytes() for path in workspace.state.rglob("*") if path.is_file())


def test_nothing_in_the_workspace_holds_a_key_or_a_password(workspace: Workspace) -> None:
    token = str(created(workspace, "app")["token"])
    created(workspace, "ada", "--role", "rater", "--password", typed=PASSWORD)
    kept = stored(workspace)
    assert hashlib.sha256(token.encode()).hexdigest().encode() in kept
    assert token.rpartition("-")[2].encode() not in kept
    assert PASSWORD.encode() not in kept


def test_password_s_hash_is_scrypt_with_a_salt_of_its_own(workspace: Workspace) -> None:
    for name in ("ada", "bob"):
        created(workspace, name, "--role", "rater", "--password", typed=PASSWORD)
    from sqlalchemy import select

    from llmops.db import open_database
    from llmops.tables import access_keys

    with open_database(workspace.database_url).connect() as connection:
        kept = connection.execute(select(access_keys.c.hash)).scalars().all()
    fields = [text.split("$") for text in kept]
    for kind, n, r, p, salt, found in fields:
        again = hashlib.scrypt(
            PASSWORD.encode(),
            salt=bytes.fromhex(salt),
            n=int(n),
            r=int(r),
            p=int(p),
            dklen=32,
            maxmem=1 << 26,
        )
        assert (kind, again.hex()) == ("scrypt", found)
        assert int(n) * int(r) * 128 >= 1 << 24  # 16 MiB a guess
    assert fields[0][4] != fields[1][4]


def test_key_stands_for_its_role_tenant_and_names_until_it_is_revoked(workspace: Workspace) -> None:
    made = created(workspace, "app", "--tenant", "acme", "--model", "docs", "--model", "mail")
    keys, token = Keys.of(workspace), str(made["token"])
    found = keys.authenticate(token)
    assert found is not None
    assert (found.key, found.role, found.tenant) == (made["id"], "client", "acme")
    assert found.names == {"docs", "mail"}
    assert keys.authenticate(token[:-1]) is None
    assert llmops(workspace.root, "key", "revoke", "app").code == 0
    assert keys.authenticate(token) is None
    listed = json.loads(llmops(workspace.root, "key", "list", "--json").out)
    assert [(row["name"], row["live"]) for row in listed] == [("app", False)]
    assert token not in json.dumps(listed)


def test_expired_key_stands_for_nobody(workspace: Workspace) -> None:
    token = str(created(workspace, "app", "--days", "1")["token"])
    keys = Keys.of(workspace)
    assert keys.authenticate(token) is not None
    from llmops.db import open_database, writing
    from llmops.tables import access_keys

    with writing(open_database(workspace.database_url)) as connection:
        connection.execute(access_keys.update().values(expires_at="2020-01-01T00:00:00.000Z"))
    assert keys.authenticate(token) is None
    assert "expired" in llmops(workspace.root, "key", "list").out


def test_rater_signs_in_by_name_and_password_and_by_nothing_else(workspace: Workspace) -> None:
    made = created(workspace, "ada", "--role", "rater", "--password", typed=PASSWORD)
    assert "token" not in made
    keys = Keys.of(workspace)
    found = keys.sign_in("ada", PASSWORD)
    assert found is not None
    assert (found.key, found.role) == (made["id"], "rater")
    assert keys.sign_in("ada", PASSWORD + "x") is None
    assert keys.sign_in("eve", PASSWORD) is None
    assert keys.authenticate(PASSWORD) is None
    keys.revoke("ada")
    assert keys.sign_in("ada", PASSWORD) is None


def test_guessing_a_password_is_paused_for_that_name_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmops.auth.keys.password_fits", lambda password, kept: password == PASSWORD)
    keys = Keys.of(workspace)
    keys.create(NewKey("ada", "rater", password=PASSWORD))
    keys.create(NewKey("bob", "rater", password=PASSWORD))
    minute = [7]
    monkeypatch.setattr("llmops.auth.keys._minute", lambda: minute[0])
    for i in range(MAX_FAILURES):
        assert keys.sign_in("ada", f"guess {i}") is None
    with pytest.raises(SignInPaused, match="ada"):
        keys.sign_in("ada", PASSWORD)
    assert keys.sign_in("bob", PASSWORD) is not None
    minute[0] += 1
    assert keys.sign_in("ada", PASSWORD) is not None


def test_renewed_key_is_the_same_rater_and_no_other_workspace_can_tell_who(
    workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = Keys.of(workspace)
    first = keys.authenticate(str(keys.create(NewKey("ada", "rater")).token))
    second = keys.authenticate(str(keys.create(NewKey("ada", "rater")).token))
    other = keys.authenticate(str(keys.create(NewKey("bob", "rater")).token))
    assert first is not None
    assert second is not None
    assert other is not None
    assert keys.rater_id(first) == keys.rater_id(second) == Keys.of(workspace).pseudonym("ada")
    assert keys.rater_id(first) != keys.rater_id(other)
    assert "ada" not in keys.rater_id(first)
    root = tmp_path_factory.mktemp("other")
    (root / "llmops.yaml").write_text("name: other\n")
    assert Keys.of(find_workspace(root)).pseudonym("ada") != keys.pseudonym("ada")


def test_ledger_learns_ids_and_never_names_or_hashes(workspace: Workspace) -> None:
    made = created(workspace, "Ada Lovelace", "--tenant", "acme", "--role", "operator")
    llmops(workspace.root, "key", "revoke", str(made["id"]))
    events = Ledger.of(workspace).events("key.created", "key.revoked")
    assert [e.body for e in events] == [
        {"key": made["id"], "role": "operator", "sort": "key"},
        {"key": made["id"]},
    ]
    assert llmops(workspace.root, "ledger", "verify").code == 0


def test_keys_come_back_from_a_backup(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
    token = str(created(workspace, "app")["token"])
    pseudonym = Keys.of(workspace).pseudonym("ada")
    place = tmp_path_factory.mktemp("backup")
    file, root = place / "all.tar", place / "again"
    done = llmops(workspace.root, "backup", str(file))
    assert done.code == 0, done.err
    done = llmops(place, "restore", str(file), str(root))
    assert done.code == 0, done.err
    again = Keys.of(find_workspace(root))
    assert again.authenticate(token) == Keys.of(workspace).authenticate(token) is not None
    assert again.pseudonym("ada") == pseudonym


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["app", "--role", "root"], "'root' is none; use client, rater, operator, admin"),
        (["app", "--tenant", "Acme Inc"], "tenant 'Acme Inc' is not a name"),
        (["app", "--role", "admin", "--model", "docs"], "role admin is not bound to models"),
        (["app", "--tokens-per-day", "0"], "tokens_per_day is 0"),
        (["app", "--days", "0"], "0 days is no lifetime"),
        (["\n"], "is not a printable name"),
        (["app", "--password"], "role client takes a key; only raters have passwords"),
        (["ada", "--role", "rater", "--password"], "the password has 5 characters; use 12 to 256"),
    ],
)
def test_wish_that_cannot_be_met_is_refused_in_one_line(
    workspace: Workspace, words: list[str], said: str
) -> None:
    done = llmops(workspace.root, "key", "create", *words, typed=io.StringIO("short\n"))
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert Keys.of(workspace).list() == ()


def test_revoking_what_is_not_there_or_not_one_is_refused(workspace: Workspace) -> None:
    keys = Keys.of(workspace)
    for _ in range(2):
        keys.create(NewKey("app"))
    for which, said in (("nobody", "is no live key"), ("app", "names 2 keys")):
        done = llmops(workspace.root, "key", "revoke", which)
        assert (done.code, said in done.err) == (2, True), done.err


def test_name_has_one_password_at_a_time(workspace: Workspace) -> None:
    keys = Keys.of(workspace)
    keys.create(NewKey("ada", "rater", password=PASSWORD))
    with pytest.raises(BadRequest, match="has a password already"):
        keys.create(NewKey("ada", "rater", password=PASSWORD))
    keys.revoke("ada")
    keys.create(NewKey("ada", "rater", password=PASSWORD + "2"))
    assert keys.sign_in("ada", PASSWORD + "2") is not None


def test_list_says_what_each_key_may_do(workspace: Workspace) -> None:
    created(workspace, "app", "--model", "docs", "--requests-per-minute", "60", "--tokens-per-day", "1000000")
    line = llmops(workspace.root, "key", "list").out.splitlines()[1]
    for said in ("app", "client", "local", "docs", "60 req/min", "1,000,000 tok/day", "live"):
        assert said in line

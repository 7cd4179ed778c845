"""HTTP endpoints: pages in every form, asked again when they fail, within bounds, secrets to one host alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

from llmops.data.sources import HttpSource, fetch, open_source
from llmops.errors import ConfigError, CouldNotRun, DataError
from llmops.records import Dropped, Row
from tests.data.web import Answer, serve

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(7)]
PAGES = [ROWS[:3], ROWS[3:6], ROWS[6:]]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.001)


def source(url: str, **settings: Any) -> HttpSource:
    return HttpSource(kind="http", url=url, **settings)


def prompts(found: HttpSource) -> list[str]:
    (part,) = open_source(found, Path())
    rows = list(part.found)
    assert all(isinstance(row, Row) for row in rows), rows
    host = urlsplit(found.url)
    assert [row.source for row in rows] == [f"{host.hostname}{host.path}:{i + 1}" for i in range(len(rows))]
    return [row.messages[0].content for row in rows if isinstance(row, Row)]


EXPECTED = [row["prompt"] for row in ROWS]


def body(value: object, **headers: str) -> Answer:
    return Answer(json.dumps(value).encode(), headers=headers)


def parameter(path: str, name: str, default: str = "0") -> str:
    return parse_qs(urlsplit(path).query).get(name, [default])[0]


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        (body(ROWS), "/rows"),
        (Answer("".join(json.dumps(row) + "\n" for row in ROWS).encode()), "/rows"),
        (Answer("".join(json.dumps(row) + "\n" for row in ROWS).encode()), "/rows.jsonl?x=1"),
        (
            Answer(
                "\n".join(json.dumps(row) for row in ROWS).encode(),
                headers={"Content-Type": "application/x-ndjson"},
            ),
            "/r",
        ),
    ],
)
def test_one_page_of_json_or_json_lines_is_read(answer: Answer, path: str) -> None:
    with serve(lambda asked, nth: answer) as web:
        assert prompts(source(web.url + path)) == EXPECTED


def test_pages_are_followed_by_link_header() -> None:
    def answer(path: str, nth: int) -> Answer:
        n = int(parameter(path, "page"))
        links = f'</rows?page={n + 1}>; rel="next", </rows>; rel="first"' if n < 2 else '</rows>; rel="first"'
        return body(PAGES[n], Link=links)

    with serve(answer) as web:
        assert prompts(source(f"{web.url}/rows")) == EXPECTED
        assert len(web.asked) == 3


def test_pages_are_followed_by_a_field_that_holds_the_next_address() -> None:
    def answer(path: str, nth: int) -> Answer:
        n = int(parameter(path, "page"))
        return body({"data": {"rows": PAGES[n]}, "next": f"?page={n + 1}" if n < 2 else None})

    with serve(answer) as web:
        assert prompts(source(f"{web.url}/rows", rows_field="data.rows", next_field="next")) == EXPECTED


def test_pages_are_followed_by_a_cursor() -> None:
    def answer(path: str, nth: int) -> Answer:
        n = int(parameter(path, "after"))
        return body({"rows": PAGES[n], "cursor": str(n + 1) if n < 2 else ""})

    with serve(answer) as web:
        found = source(f"{web.url}/rows?size=3", rows_field="rows", next_field="cursor", next_param="after")
        assert prompts(found) == EXPECTED
        assert web.paths[-1] == "/rows?size=3&after=2"


def test_pages_are_counted_until_one_is_empty() -> None:
    def answer(path: str, nth: int) -> Answer:
        n = int(parameter(path, "page", "99"))
        return body({"rows": PAGES[n] if n < 3 else []})

    with serve(answer) as web:
        assert (
            prompts(source(f"{web.url}/rows", rows_field="rows", page_param="page", first_page=0)) == EXPECTED
        )
        assert web.paths == [f"/rows?page={n}" for n in range(4)]


@pytest.mark.parametrize(
    "trouble",
    [Answer(status=503), Answer(status=429, headers={"Retry-After": "0"}), Answer(b'[{"pro', cut=True)],
)
def test_page_that_fails_is_asked_for_again_and_no_row_comes_twice(trouble: Answer) -> None:
    with serve(lambda path, nth: trouble if nth < 2 else body(ROWS)) as web:
        assert prompts(source(f"{web.url}/rows")) == EXPECTED
        assert len(web.asked) == 3


def test_endpoint_that_never_answers_well_is_given_up_by_name() -> None:
    with serve(lambda path, nth: Answer(status=502)) as web:
        with pytest.raises(CouldNotRun, match=r"127\.0\.0\.1/rows: answered 502, asked 3 times"):
            prompts(source(f"{web.url}/rows", n_retries=2))
        assert len(web.asked) == 3
    with pytest.raises(CouldNotRun, match=r"127\.0\.0\.1/rows: no whole answer .*asked 1 times"):
        prompts(source(f"{web.url}/rows", n_retries=0))


@pytest.mark.parametrize(
    ("answer", "settings", "message"),
    [
        (Answer(status=404), {}, "answered 404"),
        (Answer(b"<html>"), {}, "a page is no JSON"),
        (
            body({"items": ROWS, "n": 7}),
            {"next_field": "n"},
            "the page is dict, not a list of rows; it has items, n; set rows_field",
        ),
        (body({"items": ROWS}), {"rows_field": "rows"}, "rows is NoneType, not a list of rows; it has items"),
        (body(ROWS), {"max_bytes": 50}, "more than max_bytes came"),
        (body(ROWS), {"max_s": 1e-9}, "took longer than max_s"),
        (
            body({"rows": ROWS, "next": "/rows"}),
            {"rows_field": "rows", "next_field": "next"},
            "page 1 leads back to an earlier one",
        ),
    ],
)
def test_endpoint_that_gives_no_usable_rows_is_an_error(
    answer: Answer, settings: dict[str, Any], message: str
) -> None:
    with serve(lambda path, nth: answer) as web, pytest.raises(DataError, match=message):
        prompts(source(f"{web.url}/rows", **settings))


def test_object_that_is_no_row_is_dropped_with_its_fields() -> None:
    with serve(lambda path, nth: body({"error": "busy"})) as web:
        (part,) = open_source(source(f"{web.url}/rows"), Path())
        (found,) = part.found
    assert isinstance(found, Dropped)
    assert found.reason.startswith("unknown format: has error")


def test_secret_headers_come_from_the_environment_and_stay_with_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"header_env": {"Authorization": "ROWS_TOKEN"}}
    with serve(lambda path, nth: body(ROWS)) as other:

        def answer(path: str, nth: int) -> Answer:
            if path == "/away":
                return Answer(status=302, headers={"Location": f"{other.url}/rows"})
            if path == "/near":
                return Answer(status=302, headers={"Location": "/rows"})
            if path == "/linked":
                return body(ROWS, Link=f'<{other.url}/rows>; rel="next"')
            return body(ROWS)

        with serve(answer) as web:
            with pytest.raises(ConfigError, match="the environment variable ROWS_TOKEN is not set"):
                prompts(source(f"{web.url}/rows", **settings))
            monkeypatch.setenv("ROWS_TOKEN", "Bearer s3cr3t")
            assert prompts(source(f"{web.url}/near", **settings)) == EXPECTED
            assert web.asked[-1][1]["authorization"] == "Bearer s3cr3t"
            for path in ("/away", "/linked"):
                with pytest.raises(DataError, match=r"headers from the environment are not sent"):
                    prompts(source(web.url + path, **settings))
            assert prompts(source(f"{web.url}/away")) == EXPECTED
    assert all("authorization" not in headers for _, headers in other.asked)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:s3cr3t@host/rows",
        "https://s3cr3t@host/rows",
        "ftp://me:s3cr3t@host/rows",
        "https://host/rows?api_key=s3cr3t",
        "https://host/rows?a=1&access_token=s3cr3t",
    ],
)
def test_secret_in_an_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        source(url)
    assert re.search("holds a password or key", caught.value.errors()[0]["msg"])


def test_cursor_parameter_needs_the_field_it_comes_from() -> None:
    with pytest.raises(ValidationError, match="needs next_field"):
        source("http://host/rows", next_param="after")


def test_parameters_that_only_sound_like_secrets_are_none() -> None:
    assert source("https://host/rows?max_tokens=5&keys=all").url.endswith("keys=all")

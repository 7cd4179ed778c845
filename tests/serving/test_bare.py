"""The gateway in front of a scripted engine: what reaches the engine, and what reaches client and log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.bare import Bare, bare_gateway, target


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    with bare_gateway(tmp_path_factory.mktemp("bare")) as bare:
        yield bare


def test_engine_is_asked_under_its_own_name_and_the_client_sees_the_public_one(bare: Bare) -> None:
    answer = bare.chat("docs", "Hello.", user="ada")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "one two three"
    assert answer.json()["model"] == "docs"
    assert bare.engine.asked[-1]["model"] == target("docs").engine_name
    line = bare.logged()[-1]
    assert (line["user"], line["tenant"], line["answered_by"]) == ("ada", "local", target("docs").digest)


@pytest.mark.parametrize("user", [5, "x" * 129, ["ada"]])
def test_user_that_is_no_short_text_is_refused(bare: Bare, user: object) -> None:
    answer = bare.chat("docs", user=user)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "user"

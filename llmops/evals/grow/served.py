"""Failures among answers that were served: what people called bad or corrected, where the texts were captured.

Reads captures and feedback; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmops.capture.interaction import Interaction
from llmops.capture.keyring import Keyring
from llmops.capture.reading import Filter, feedback_rows, interactions
from llmops.capture.said import Said, said_of_answers
from llmops.data import asked_digest
from llmops.data.conversation import check_prompt
from llmops.db import open_database
from llmops.errors import BadRequest
from llmops.evals.grow.sources import Seen
from llmops.records import Case
from llmops.settings import Workspace

SHOWN_COMMENT = 200


def from_served(workspace: Workspace, name: str) -> list[Seen]:
    """The captured answers under a public name that most people called bad, or that somebody corrected.

    A correction is proposed as the reference.

    Raises:
        BadRequest: nobody called any answer under that name bad.
        ConfigError: texts were encrypted with a key that the environment does not have.
    """
    engine, keyring = open_database(workspace.database_url), Keyring.of_environment()
    wanted = Filter(asked=name)
    said = said_of_answers(feedback_rows(engine, keyring, wanted))
    bad = {key: one for key, one in said.items() if one.correction is not None or one.good is False}
    if not bad:
        raise BadRequest(f"--served {name}: no answer under that name was called bad or corrected yet")
    responses = {response for response, _ in bad}
    found = (one for one in interactions(engine, keyring, wanted) if one.response in responses)
    return [seen for one in found for seen in _of(one, bad)]


def _of(one: Interaction, bad: dict[tuple[str, int], Said]) -> Iterator[Seen]:
    try:
        check_prompt(one.messages)
    except ValueError:
        return  # a plain completion, or a text that cannot be read: no case can ask it
    for i, answer in enumerate(one.answers):
        said = bad.get((one.response, i))
        if said is None:
            continue
        references = (said.correction,) if said.correction is not None else ()
        case = Case(
            one.messages, references, asked_digest(one.messages), f"capture:{one.response}", tools=one.tools
        )
        yield Seen(case, _why(said), f"response {one.response}", (answer.content,) if answer.content else ())


def _why(said: Said) -> str:
    n = said.n_good + said.n_bad
    what = f"called bad by {said.n_bad} of {n}" if said.n_bad else "corrected"
    return f"{what}: {said.comments[-1][:SHOWN_COMMENT]}" if said.comments else what

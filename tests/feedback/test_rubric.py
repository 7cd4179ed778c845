"""The rubric: what its file must say, what it refuses of a rating, and that a campaign goes on with its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmops.errors import BadRequest, ConfigError, InvalidEvidence
from llmops.feedback.page import open_desk
from llmops.feedback.rubric import DEFAULT, freeze_rubric, frozen_rubric, load_rubric, rubric_of
from llmops.settings import Workspace
from llmops.store import Store
from tests import in_process
from tests.evals.conftest import Room, room
from tests.evals.conftest import write as write_yaml
from tests.evals.counterpart import Counterpart
from tests.feedback.browser import ROOT

__all__ = ["room"]

SHIPPED = load_rubric(ROOT / "feedback_ui" / "rubric.yaml")
SCALE = "scale: [a, b, c, d, e]"


def write(folder: Path, text: str) -> Path:
    path = folder / "rubric.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("text", "said"), [
    ("tag: [wrong]\n", "tag is not a setting; did you mean tags?"),
    ("tags: [wrong, wrong]\n", "tag 'wrong' is given twice"),
    (f"questions: [{{id: x, text: Is it, {SCALE}}}, {{id: x, text: And, {SCALE}}}]\n", "question 'x' is given twice"),
    (f"tags: [a1]\nquestions: [{{id: x, text: Is it, tags: [a1], {SCALE}}}]\n", "tag 'a1' is given twice"),
    ("questions: [{id: x, text: Is it, scale: [a, b]}]\n", "questions.0.scale"),
    ("questions: [{id: X-1, text: Is it, scale: [a, b, c, d, e]}]\n", "questions.0.id"),
])  # fmt: skip
def test_a_file_that_says_something_else_is_one_line_with_the_place(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_rubric(write(tmp_path, text))
    assert said in str(caught.value).splitlines()[0]


def test_scores_off_the_scale_unknown_or_missing_are_refused() -> None:
    whole = {"correct": 4, "helpful": 5}
    assert SHIPPED.require_scores({"helpful": 5, "correct": 4}) == whole
    for change, said in (
        ({"helpful": 6}, "helpful: 6 is not on the scale; give 1 to 5"),
        ({"helpful": 0}, "helpful: 0 is not on the scale; give 1 to 5"),
        ({"kind": 3}, "question 'kind' is not in the rubric"),
    ):
        with pytest.raises(BadRequest, match=said):
            SHIPPED.require_scores({**whole, **change})
    with pytest.raises(BadRequest, match=r"'Does it do what was asked\?' is not answered"):
        SHIPPED.require_scores({"correct": 4, "clear": 2})


def test_tags_are_those_of_the_rubric_and_its_questions_each_once() -> None:
    assert SHIPPED.require_tags(["great", "made up", "great", "wrong"]) == ("wrong", "great", "made up")
    with pytest.raises(BadRequest, match="tag 'nice' is not in the rubric"):
        SHIPPED.require_tags(["nice"])


def test_a_campaign_goes_on_with_the_rubric_it_was_opened_with(workspace: Workspace) -> None:
    store, folder = Store.of(workspace), workspace.root / "feedback_ui"
    assert rubric_of(workspace) == DEFAULT
    folder.mkdir()
    path = write(folder, "tags: [first]\n")
    pinned = freeze_rubric(store, rubric_of(workspace))
    write(folder, "tags: [second]\n")
    assert rubric_of(workspace).tags == ("second",)
    assert frozen_rubric(store, pinned).tags == ("first",)
    assert freeze_rubric(store, rubric_of(workspace)) != pinned
    path.unlink()
    stored = store.path("rubric", pinned) / "rubric.json"
    stored.chmod(0o600)
    stored.write_text(stored.read_text().replace("first", "fIrst"))
    with pytest.raises(InvalidEvidence):
        frozen_rubric(store, pinned)


def opened(room: Room, counterpart: Counterpart, kind: str) -> in_process.Done:
    """Open a campaign of one model's answers by the command line."""
    config = {
        "name": "train", "purpose": "train", "dataset": "questions", "models": ["docs"], "kind": kind, "n_items": 3,
        "decoding": {"temperature": 0.8, "max_tokens": 16},
    }  # fmt: skip
    write_yaml(room.workspace.root / "train.yaml", config)
    words = ("feedback", "open", "train.yaml", "--endpoint", counterpart.url)
    return in_process.llmops(room.workspace.root, *words)


def test_the_command_pins_the_rubric_beside_the_campaigns_file(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: f"{prompt} {nth}")
    path = write(room.workspace.root, "tags: [a]\n")
    refused = opened(room, counterpart, "rate")
    assert refused.code == BadRequest.exit_code
    assert "kind rate needs questions; add them to rubric.yaml" in refused.err
    path.write_text(f"questions: [{{id: x, text: Before, {SCALE}}}]\n")
    assert opened(room, counterpart, "rate").code == 0
    path.write_text(f"questions: [{{id: x, text: After, {SCALE}}}]\n")
    desk, _, campaign = open_desk(room.workspace, "train")
    shown = desk.next_item({"rater": "Ann"})
    assert [q["text"] for q in shown["about"]["questions"]] == ["Before"]
    call = {"rater": "Ann", "showing": shown["item"]["showing"], "choice": "rated", "scores": {"x": 4}}
    assert desk.rate_item(call)["saved"] == 1
    assert campaign.rubric is not None
    assert in_process.llmops(room.workspace.root, "gc", "--older-than", "0").code == 0
    assert frozen_rubric(room.registry.store, campaign.rubric).questions[0].text == "Before"

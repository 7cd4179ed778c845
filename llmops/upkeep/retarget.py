"""What changes in each of the shipped YAML files when a workspace is made of a user's own rows, or of another base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import yaml

from llmops.data.config import Limits
from llmops.upkeep.own_rows import Shape
from llmops.upkeep.rewrite import EXAMPLE, renamed, with_block, with_values, without_example_comments

COMMAND = "# llmops "
"""How the first line of a file begins that llmops runs."""
QUESTION = "Which answer is better?"
RUBRIC = "How well does the answer do what the request asks?"
DEFAULT_MODEL_TOKENS = 2048  # what the shipped profiles serve at once


@dataclass(frozen=True)
class OwnData:
    """A user's rows: what the dataset is called, its files in `data/`, and what may be dropped while training."""

    name: str
    files: tuple[str, ...]
    licence: str
    drop_too_long_frac: float


@dataclass(frozen=True)
class Change:
    """What the shipped files are changed to; `base_model` None leaves the shipped one."""

    own: OwnData
    shape: Shape
    base_model: str | None

    @property
    def model_tokens(self) -> int:
        """Tokens of prompt and answer together that are served: more than shipped when the rows are longer."""
        return max(DEFAULT_MODEL_TOKENS, -(-self.shape.usual_tokens // 1024) * 1024)

    @property
    def row_tokens(self) -> int:
        """Longest row in tokens that is trained on; none is longer, unless the rows are very long."""
        return min(self.shape.most_tokens, self.model_tokens)


def is_config(text: str) -> bool:
    """Whether a file is one that llmops runs: its first line is the command."""
    return text.startswith(COMMAND)


def with_base(text: str, path: PurePosixPath, base_model: str) -> str:
    """A shipped file with another base model; files that name none stay as they are."""
    if path.parent.as_posix() in ("recipes", "serving") and "base_model" in yaml.safe_load(text):
        return with_values(text, {"base_model": base_model}, str(path))
    return text


def retarget(text: str, path: PurePosixPath, change: Change) -> str:
    """A shipped file as the user's own; `path` is the shipped one, relative to the workspace.

    Raises:
        CouldNotRun: the file has not the settings that must change (a fault of what is shipped).
    """
    if path.parts[0] != "serving":  # engines do not depend on the data
        text = without_example_comments(text)
    text = renamed(text, change.own.name)
    if change.base_model is not None:
        text = with_base(text, path, change.base_model)
    edit = _EDITS.get(path.parent.as_posix())
    return edit(text, str(path), change) if edit else text


def _data(text: str, where: str, change: Change) -> str:
    own, pools = change.own, change.shape.pools
    blocks: Mapping[str, object] = {
        "licence": own.licence,
        "origin": "rows of " + ", ".join(own.files),
        "source": {"kind": "files", "paths": own.files},
        "pools": {"train": pools.train, "rate": pools.rate, "gate": pools.gate},
        "limits": Limits().model_dump(),
        "drop_budget_frac": 0,
    }
    for key, value in blocks.items():
        text = with_block(text, key, value, where)
    return text


def _recipe(text: str, where: str, change: Change) -> str:
    shipped, shape = yaml.safe_load(text), change.shape
    values: dict[str, object] = {
        "max_tokens": change.row_tokens,
        "drop_budget_frac": change.own.drop_too_long_frac,
    }
    method = shipped["method"]
    if method["kind"] in ("sft", "distill"):
        if "n_steps" in shipped:  # passes over the rows need no other number
            values["n_steps"] = shape.n_steps(shipped["n_steps"], shipped["batch"]["per_device"])
    else:  # answers that were sampled: to any prompt, as long as the longest
        values["max_tokens"] = min(shape.most_tokens + shape.answer_tokens, change.model_tokens)
    if "max_answer_tokens" in method:
        values["max_answer_tokens"] = shape.answer_tokens
    if "decoding" in method.get("teacher", {}):
        values["decoding"] = method["teacher"]["decoding"] | {"max_tokens": shape.answer_tokens}
    return with_values(text, values, where)


def _suite(text: str, where: str, change: Change) -> str:
    # General, safety and fairness ask the same of every task, in answers as long.
    if PurePosixPath(where).stem != EXAMPLE:
        return text
    return with_values(text, {"max_tokens": change.shape.answer_tokens}, where)


def _gate(text: str, where: str, change: Change) -> str:
    shipped, shape = yaml.safe_load(text), change.shape
    values: dict[str, object] = {"min_cases": min(shipped["min_cases"], shape.min_cases)}
    if "ratings" in shipped:
        values["min_items"] = min(shipped["ratings"]["min_items"], shape.min_items)
    return with_values(text, values, where)


def _judge(text: str, where: str, _change: Change) -> str:
    """The judge asks what people are asked; a rubric about the shipped data is one question about any."""
    if yaml.safe_load(text)["kind"] == "pairwise":
        return with_values(text, {"question": QUESTION}, where)
    questions = [{"id": "good", "text": RUBRIC, "scale": [1, 5], "pass_mark": 4}]
    return with_block(text, "questions", questions, where)


def _campaign(text: str, where: str, change: Change) -> str:
    if where.endswith("rubric.yaml"):
        return text  # its questions fit any answers
    values: dict[str, object] = {"question": QUESTION}
    if "decoding" in yaml.safe_load(text):
        values["max_tokens"] = change.shape.answer_tokens
    return with_values(text, values, where)


def _profile(text: str, where: str, change: Change) -> str:
    return with_values(text, {"max_model_tokens": change.model_tokens}, where)


_EDITS: dict[str, Callable[[str, str, Change], str]] = {
    "data": _data,
    "recipes": _recipe,
    "evals/suites": _suite,
    "evals/gates": _gate,
    "evals/judges": _judge,
    "serving": _profile,
    "feedback_ui": _campaign,
}

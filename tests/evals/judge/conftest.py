"""An evaluated session whose every case has a known winner, and judges of it with scripted referees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from llmops.evals.suite import load_suite
from llmops.records import JudgeCalibration, JudgementSet, Report
from llmops.registry.adapters import Registry
from llmops.schema import load_record
from llmops.settings import find_workspace
from tests.evals.conftest import Room, new_room, right, serving, write
from tests.evals.judge.referee import Referee, Script, refereeing
from tests.in_process import llmops
from tests.loop import Done

N_WINS, N_LOSSES, N_TIES, N_SAME = 14, 7, 3, 3
"""Cases, in the suite's order, that the adapter is right on, the base, neither, and both alike."""


@dataclass
class Court:
    """The session, and how its answers are put before a judge."""

    room: Room
    reports: list[Report]  # of the base, of the adapter
    seat: Callable[..., Referee]

    @property
    def root(self) -> Path:
        return self.room.workspace.root

    def judge(self, referee: Referee, name: str = "judge.yaml", **settings: Any) -> Path:
        """Write a judge's file; settings replace the usual ones."""
        endpoint = {"url": referee.url, "model": "judge", "retry_s": 1, **settings.pop("endpoint", {})}
        config: dict[str, Any] = {"name": "j", "kind": "pairwise", **settings}
        if config["kind"] == "pairwise":
            config.setdefault("question", "Which is better?")
        decoding = {"temperature": 0, "max_tokens": 64, "seed": 7}
        return write(self.root / name, {"decoding": decoding, **config, "endpoint": endpoint})

    def run(self, file: Path, *options: str) -> Done:
        """`llmops eval judge FILE ...` in the workspace."""
        return llmops(self.root, "eval", "judge", str(file), *options)

    def again(self, *gates: Path, **suite: Any) -> None:
        """Evaluate anew, after these gates were declared, with these settings of the suite."""
        self.reports = _evaluated(self.room, suite, gates=gates)

    def judged(self, file: Path, *options: str, code: int = 0) -> JudgementSet:
        """The set of judgements that the command prints."""
        return load_record(JudgementSet, self._said(file, options, code)["judgements"])

    def calibrated(self, file: Path, *options: str) -> JudgeCalibration:
        """The calibration that the command prints."""
        return load_record(JudgeCalibration, self._said(file, options, 0)["calibration"])

    def _said(self, file: Path, options: tuple[str, ...], code: int) -> dict[str, Any]:
        done = self.run(file, *options, "--json")
        assert done.code == code, done.err
        found: dict[str, Any] = json.loads(done.out)
        return found


def _evaluated(
    room: Room, settings: Mapping[str, Any] = MappingProxyType({}), **request: Any
) -> list[Report]:
    """Reports of the base and the adapter with so many wins, losses, ties and equal answers of the adapter's."""
    n = N_WINS + N_LOSSES + N_TIES + N_SAME
    cases = {"kind": "dataset", "name": "questions", "pool": "gate", "n_max": n, "seed": 0}
    suite = room.suite(**{"cases": cases, **settings})
    place = {c.messages[-1].content: i for i, c in enumerate(load_suite(suite, room.registry).cases)}

    def script(model: str, prompt: str, nth: int) -> str:
        i, is_base = place[prompt], model == room.base.model_name
        wins, losses, ties = N_WINS, N_WINS + N_LOSSES, N_WINS + N_LOSSES + N_TIES
        if i >= ties or (i < wins and not is_base) or (wins <= i < losses and is_base):
            return right(prompt)
        return f"no idea, says {model}"

    return room.run(room.serve(script), suite, **request)


@pytest.fixture(scope="session")
def judged_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Room, list[Report]]]:
    """The session, evaluated once; every test works on a copy of its workspace."""
    root, folder = tmp_path_factory.mktemp("court"), tmp_path_factory.mktemp("court-base")
    (root / "llmops.yaml").write_text("name: test\n")
    with ExitStack() as stack:
        room = new_room(find_workspace(root), folder, stack)
        yield room, _evaluated(room)


@pytest.fixture
def court(judged_room: tuple[Room, list[Report]], tmp_path: Path) -> Iterator[Court]:
    first, reports = judged_room
    shutil.copytree(first.workspace.root, tmp_path, dirs_exist_ok=True)
    workspace = find_workspace(tmp_path)
    registry = Registry.of(workspace)
    with ExitStack() as stack:
        serve = serving(first.base, registry, stack)
        room = replace(first, workspace=workspace, registry=registry, serve=serve)

        def seat(script: Script, **settings: Any) -> Referee:
            return stack.enter_context(refereeing(Referee(script, **settings)))

        yield Court(room, reports, seat)

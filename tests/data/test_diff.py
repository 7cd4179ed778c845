"""Two sets of rows compared: every row of both sides is accounted for once, by what it teaches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.data.diff import Side, compare
from llmops.errors import BadRequest, DataError
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from tests.data.quality.planted import row

OLD = [("same", "a"), ("gone", "a"), ("answered anew", "old"), ("twice", "a"), ("twice", "a")]
NEW = [("new", "a"), ("same", "a"), ("answered anew", "new"), ("twice", "a")]


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c, "group": p}) + "\n" for p, c in pairs))
    return path


def diff(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "diff", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


@pytest.fixture
def files(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(workspace.root)
    return write(workspace.root / "old.jsonl", OLD), write(workspace.root / "new.jsonl", NEW)


def test_rows_are_told_as_same_added_removed_and_changed(files: tuple[Path, Path]) -> None:
    code, out = diff(*files, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["n_rows"], found["n_same"]) == ([5, 4], 2)
    assert [r["source"].rpartition(":")[2] for r in found["added"]] == ["1"]
    assert sorted(r["source"].rpartition(":")[2] for r in found["removed"]) == ["2", "5"]
    (changed,) = found["changed"]
    assert (changed["before"]["answer"], changed["after"]["answer"]) == ("old", "new")
    assert found["moved"] == []


def test_exit_code_is_1_for_a_difference_only_when_asked(files: tuple[Path, Path]) -> None:
    assert diff(*files)[0] == 0
    assert diff(*files, "--exit-code")[0] == 1
    assert diff(files[0], files[0], "--exit-code")[0] == 0


def test_snapshots_are_found_by_name_and_digest_and_rows_that_changed_pool_are_moved(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    write(workspace.root / "rows.jsonl", [(f"question {i}", f"answer {i}") for i in range(40)])

    def build(salt: str) -> str:
        config = {
            "name": "docs", "licence": "CC0-1.0", "origin": "made up", "salt": salt,
            "source": {"kind": "files", "paths": ["rows.jsonl"]},
            "pools": {"train": 0.5, "rate": 0.0, "gate": 0.5},
        }  # fmt: skip
        (workspace.root / "data.yaml").write_text(yaml.safe_dump(config))
        assert CliRunner().invoke(app, ["data", "build", "data.yaml"]).exit_code == 0
        registry = Registry.of(workspace)
        return str(registry.ledger.events("dataset.snapshotted")[-1].body["snapshot"])

    first, second = build("a"), build("b")
    found = json.loads(diff(f"docs@{first[:12]}", "docs", "--json")[1])
    assert found["after"] == f"docs@{second[:12]}"
    assert found["moved"]
    assert found["n_same"] + len(found["moved"]) == 40
    assert found["added"] == found["removed"] == found["changed"] == []
    assert all({m["before"]["pool"], m["after"]["pool"]} == {"train", "gate"} for m in found["moved"])
    assert json.loads(diff(first[:10], second[:10], "--json")[1])["moved"] == found["moved"]
    with pytest.raises(BadRequest, match="nothing of that name"):
        diff("docs", "elsewhere")


def test_a_file_with_a_malformed_row_is_refused(files: tuple[Path, Path]) -> None:
    files[0].write_text("oops\n")
    with pytest.raises(DataError, match=r"old\.jsonl:1: malformed JSON"):
        diff(*files)


texts = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.sampled_from(("train", "gate"))), max_size=12
)


def side(name: str, rows: list[tuple[str, str, str]]) -> Side:
    pools: dict[str, list] = {"train": [], "gate": []}
    for i, (prompt, answer, pool) in enumerate(rows):
        pools[pool].append(row(prompt, answer, line=i))
    return Side(name, pools)


@given(texts, texts)
@settings(max_examples=60, deadline=None)
def test_every_row_of_both_sides_counts_exactly_once(old: list, new: list) -> None:
    found = compare(side("old", old), side("new", new))
    paired = found.n_same + len(found.changed) + len(found.moved)
    assert paired + len(found.removed) == len(old)
    assert paired + len(found.added) == len(new)
    assert found.n_same == sum(min(old.count(r), new.count(r)) for r in set(old))
    assert found.any == (sorted(old) != sorted(new))
    back = compare(side("new", new), side("old", old))
    assert (len(back.added), len(back.removed), back.n_same) == (
        len(found.removed), len(found.added), found.n_same,
    )  # fmt: skip

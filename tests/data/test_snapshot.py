"""Snapshots: accounted for, frozen by content, found by name, and refused when altered."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmops.data import DataConfig, build_snapshot, find_snapshot, load_pool
from llmops.data.snapshot import config_digest
from llmops.errors import BadRequest, ConfigError, DataError, InvalidEvidence
from llmops.ledger import Ledger
from llmops.records import DatasetSnapshot, Row
from llmops.registry.adapters import Registry
from llmops.settings import Workspace, WorkspaceConfig, load_yaml

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    root = tmp_path / "workspace"
    root.mkdir()
    return Registry.of(Workspace(root, WorkspaceConfig()))


@pytest.fixture(scope="module")
def standard_library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, DatasetSnapshot]:
    registry = Registry.of(Workspace(tmp_path_factory.mktemp("stdlib"), WorkspaceConfig()))
    return registry, build_snapshot(DATA / "docstrings.yaml", registry.store, registry.ledger)


def write_config(folder: Path, source: dict[str, object], **settings: object) -> Path:
    config = {
        "name": "mine",
        "licence": "CC0-1.0",
        "origin": "written for a test",
        "source": source,
        "pools": {"train": 0.5, "rate": 0.0, "gate": 0.5},
        **settings,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_rows(path: Path, numbers: range) -> None:
    lines = [{"prompt": f"question {i}", "completion": f"answer {i}", "group": f"g{i % 7}"} for i in numbers]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def build(registry: Registry, config: Path):  # type: ignore[no-untyped-def]
    return build_snapshot(config, registry.store, registry.ledger)


def pools_of(registry: Registry, snapshot) -> dict[str, list[Row]]:  # type: ignore[no-untyped-def]
    return {name: load_pool(registry.store, snapshot, name) for name, n in snapshot.n_rows.items() if n}


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yaml")), ids=lambda p: p.name)
def test_every_data_file_loads_and_opens_with_the_command_that_runs_it(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"# llmops data build data/{path.name}"
    assert load_yaml(path, DataConfig).name == path.stem


def test_standard_library_gives_thousands_of_rows_in_disjoint_pools(
    standard_library: tuple[Registry, DatasetSnapshot],
) -> None:
    registry, snapshot = standard_library
    pools = pools_of(registry, snapshot)
    assert {name: len(rows) for name, rows in pools.items()} == snapshot.n_rows
    assert snapshot.n_rows["train"] > 1000
    assert min(snapshot.n_rows.values()) > 200
    assert len({row.group for rows in pools.values() for row in rows}) > 100
    groups = {name: {row.group for row in rows} for name, rows in pools.items()}
    assert not groups["train"] & groups["gate"]
    assert not groups["train"] & groups["rate"]
    assert not groups["rate"] & groups["gate"]


def test_docstrings_never_stand_in_the_code_they_answer(
    standard_library: tuple[Registry, DatasetSnapshot],
) -> None:
    registry, snapshot = standard_library
    rows = load_pool(registry.store, snapshot, "gate")
    for row in rows:
        question, answer = row.messages
        assert answer.content == " ".join(answer.content.split())
        assert 4 <= len(answer.content.split()) <= 30
        instruction, _, code = question.content.partition("\n\n")
        assert ast.get_docstring(ast.parse(code).body[0]) is None  # type: ignore[arg-type]
        assert instruction.endswith("does.")
    assert not any(
        row.messages[1].content in row.messages[0].content
        for row in rows
        if len(row.messages[1].content) > 60
    )


@pytest.mark.walk
def test_same_python_gives_the_same_digest_in_another_process_and_folder(
    standard_library: tuple[Registry, DatasetSnapshot], tmp_path: Path
) -> None:
    _, snapshot = standard_library
    (tmp_path / "llmops.yaml").write_text("name: other\n")
    code = (
        "from pathlib import Path; from llmops.data import build_snapshot;"
        "from llmops.registry.adapters import Registry;"
        "from llmops.settings import find_workspace; r = Registry.of(find_workspace());"
        f"print(build_snapshot(Path({str(DATA / 'docstrings.yaml')!r}), r.store, r.ledger).digest())"
    )
    environment = {
        **os.environ,
        "LLMOPS_WORKSPACE": str(tmp_path),
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(DATA.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == snapshot.digest()


def test_snapshot_names_no_path_of_this_machine(
    standard_library: tuple[Registry, DatasetSnapshot],
) -> None:
    registry, snapshot = standard_library
    folder = registry.store.path("dataset", snapshot.artifact)
    sources = [
        json.loads(line)["source"]
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]
    assert len(sources) > 3000
    assert not [s for s in sources if s.startswith(("/", "~")) or "site-packages" in s]


def test_builder_serves_any_folder_and_any_installed_package(registry: Registry, tmp_path: Path) -> None:
    code = 'def f(a):\n    """Add one to a. Then more."""\n    a += 1\n    return a\n'
    for i in range(40):
        (tmp_path / f"m{i}.py").write_text(code.replace("+= 1", f"+= {i}"))
    (tmp_path / "broken.py").write_text("def f(:\n")
    source = {
        "kind": "builder",
        "function": str(DATA / "docstrings.py") + "::rows",
        "options": {"root": str(tmp_path)},
    }
    snapshot = build(registry, write_config(tmp_path, source, drop_budget_frac=0.1))
    assert sum(snapshot.n_rows.values()) == 40
    assert snapshot.n_dropped == {"not Python": 1}
    row = load_pool(registry.store, snapshot, "gate")[0]
    assert row.messages[0].content.endswith(
        "does.\n\ndef f(a):\n    a += " + row.group[1:] + "\n    return a"
    )
    assert row.messages[1].content == "Add one to a."
    source["options"] = {"root": "package:yaml"}
    assert sum(build(registry, write_config(tmp_path, source)).n_rows.values()) > 3


def test_account_adds_up_and_every_dropped_line_is_listed(registry: Registry, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", range(30))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(
            '{"prompt": "x"}\nnot json\n'
            + '{"prompt": "question 3", "completion": "answer 3", "group": "g3"}\n'
        )
    snapshot = build(
        registry, write_config(tmp_path, {"kind": "files", "paths": ["a.jsonl"]}, drop_budget_frac=0.1)
    )
    assert sum(snapshot.n_rows.values()) == 30
    assert snapshot.n_dropped == {"duplicate": 1, "malformed JSON": 1, "missing field": 1}
    listed = (registry.store.path("dataset", snapshot.artifact) / "dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in listed] == ["a.jsonl:31", "a.jsonl:32", "a.jsonl:33"]


def test_one_row_over_the_budget_is_an_error_naming_the_first_line_and_the_list(
    registry: Registry, tmp_path: Path
) -> None:
    write_rows(tmp_path / "a.jsonl", range(30))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completion": ""}\n[]\n')
    config = write_config(tmp_path, {"kind": "files", "paths": ["a.jsonl"]}, drop_budget_frac=0.05)
    with pytest.raises(
        DataError, match=r"a\.jsonl:31: empty answer: messages\[1\]; 2 of 32 rows dropped"
    ) as error:
        build(registry, config)
    listed = str(error.value).split("listed in ")[1].split(";")[0]
    assert [json.loads(line)["source"] for line in Path(listed).read_text().splitlines()] == [
        "a.jsonl:31",
        "a.jsonl:32",
    ]
    assert registry.ledger.events("dataset.snapshotted") == []


def test_file_order_changes_no_digest_and_one_changed_answer_does(registry: Registry, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", range(20))
    write_rows(tmp_path / "b.jsonl", range(20, 40))
    digests = [
        build(registry, write_config(tmp_path, {"kind": "files", "paths": paths})).artifact
        for paths in (["a.jsonl", "b.jsonl"], ["b.jsonl", "a.jsonl"])
    ]
    assert digests[0] == digests[1]
    text = (tmp_path / "b.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(text.replace("answer 33", "answer 33!"))
    assert (
        build(registry, write_config(tmp_path, {"kind": "files", "paths": ["a.jsonl", "b.jsonl"]})).artifact
        != digests[0]
    )


def test_altered_pool_is_refused_by_file_name(registry: Registry, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", range(30))
    snapshot = build(registry, write_config(tmp_path, {"kind": "files", "paths": ["a.jsonl"]}))
    path = registry.store.path("dataset", snapshot.artifact) / "gate.jsonl"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"answer", b"anzwer", 1))
    with pytest.raises(InvalidEvidence, match=r"gate\.jsonl was changed"):
        load_pool(registry.store, snapshot, "train")


def test_newest_snapshot_of_a_name_is_found_and_an_equal_one_adds_no_event(
    registry: Registry, tmp_path: Path
) -> None:
    config = write_config(tmp_path, {"kind": "files", "paths": ["a.jsonl"]})
    write_rows(tmp_path / "a.jsonl", range(30))
    first = build(registry, config)
    assert build(registry, config) == first
    assert len(registry.ledger.events("dataset.snapshotted")) == 1
    write_rows(tmp_path / "a.jsonl", range(31))
    second = build(registry, config)
    assert find_snapshot(registry.store, registry.ledger, "mine") == second != first
    with pytest.raises(BadRequest, match="llmops data build"):
        find_snapshot(registry.store, registry.ledger, "other")
    with pytest.raises(BadRequest, match="pool rate has no rows"):
        load_pool(registry.store, second, "rate")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the dataset is empty"),
        ('{"prompt": "a"}\n', "1 of 1 rows dropped"),
        ('{"prompt": "a", "completion": "b"}\n', "gets no rows"),
    ],
)
def test_dataset_without_rows_for_its_pools_is_refused(
    registry: Registry, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        build(registry, write_config(tmp_path, {"kind": "files", "paths": ["a.jsonl"]}, drop_budget_frac=1.0))


def test_missing_rows_file_is_refused_by_name(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        build(registry, write_config(tmp_path, {"kind": "files", "paths": ["gone.jsonl"]}))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def other(): pass", "has no function rows"),
        ("import nothing_like_this", "does not load"),
        ("def rows(root): yield {}", "known: root"),
    ],
)
def test_builder_that_cannot_run_is_refused_with_its_reason(
    registry: Registry, tmp_path: Path, code: str, message: str
) -> None:
    (tmp_path / "b.py").write_text(code + "\n")
    with pytest.raises(ConfigError, match=message):
        build(
            registry,
            write_config(tmp_path, {"kind": "builder", "function": "b.py::rows", "options": {"x": 1}}),
        )


def test_builder_that_fails_half_way_gives_no_snapshot(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(
        "def rows():\n"
        "    yield {'prompt': 'a', 'completion': 'b', 'source': 'f:1'}\n"
        "    raise KeyError('lost')\n"
    )
    with pytest.raises(DataError, match=r"failed after 1 rows \(KeyError: 'lost'\)"):
        build(registry, write_config(tmp_path, {"kind": "builder", "function": "b.py::rows"}))
    assert registry.ledger.events() == []


def test_unknown_setting_and_pools_that_do_not_add_up_are_named(registry: Registry, tmp_path: Path) -> None:
    source = {"kind": "files", "paths": ["a.jsonl"]}
    with pytest.raises(ConfigError, match="did you mean salt"):
        build(registry, write_config(tmp_path, source, salz="x"))
    with pytest.raises(ConfigError, match=r"add up to 0\.9, not 1"):
        build(registry, write_config(tmp_path, source, pools={"train": 0.5, "rate": 0.2, "gate": 0.2}))


def test_config_digest_covers_the_builders_code(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("def rows(): yield {}\n")
    config = load_yaml(write_config(tmp_path, {"kind": "builder", "function": "b.py::rows"}), DataConfig)
    before = config_digest(config, tmp_path)
    (tmp_path / "b.py").write_text("def rows(): yield {'dropped': 'x', 'source': 'f:1'}\n")
    assert config_digest(config, tmp_path) != before


def test_ledger_event_carries_ids_only(registry: Registry, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", range(30))
    snapshot = build(registry, write_config(tmp_path, {"kind": "files", "paths": ["a.jsonl"]}))
    (event,) = Ledger.of(Workspace(registry.store.root.parents[1], WorkspaceConfig())).events(
        "dataset.snapshotted"
    )
    assert set(event.body) == {"name", "snapshot", "artifact", "config"}
    assert (event.body["name"], event.body["snapshot"], event.body["artifact"]) == (
        "mine",
        snapshot.digest(),
        snapshot.artifact,
    )

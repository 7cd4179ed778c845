"""Recipes over every kind of source: told formats, frozen rows, mixtures, and what a method does not learn from."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmops.cli.commands import app
from llmops.data import find_snapshot, load_pool
from llmops.errors import DataError
from llmops.evals.evidence import leak_fault
from llmops.ratings.preferences import load_pairs
from llmops.records import Case, DatasetSnapshot, Labelled, Lineage, Message, PreferenceSnapshot
from llmops.registry.adapters import Registry
from llmops.registry.graph import build_graph
from llmops.train.frozen import (
    Asked,
    freeze_judged,
    freeze_preferences,
    freeze_rows,
    labelled_line,
    labelled_of_line,
)
from llmops.train.gate import UNCHECKED
from llmops.train.gather import NOT_DRAWN_FILE
from llmops.train.recipe import AnySource, load_recipe
from tests.data.containers import write_csv, write_jsonl, write_parquet
from tests.data.test_sources import write_sqlite
from tests.data.web import Answer, serve
from tests.train.support import PAIRS, Bench

CONVERSATIONS = [{"prompt": p, "completion": c} for p, c in PAIRS]
JUDGED = [{"prompt": p, "chosen": c, "rejected": "I do not know."} for p, c in PAIRS]
QUERY = "SELECT prompt, completion FROM rows ORDER BY number"


def run(bench: Bench, *words: str) -> Result:
    return CliRunner(env={"LLMOPS_WORKSPACE": str(bench.root)}).invoke(app, [*words])


def trained(bench: Bench, **changes: Any) -> tuple[str, Lineage]:
    """What `llmops finetune` says of a recipe, and the lineage it registers."""
    done = run(bench, "finetune", str(bench.recipe(n_steps=2, **changes)))
    assert done.exit_code == 0, (done.output, done.exception)
    registry = Registry.of(bench.workspace)
    return done.output, registry.lineage(registry.adapter("tiny-sft"))


def data_of(bench: Bench, data: dict[str, Any], **changes: Any) -> AnySource:
    return load_recipe(bench.recipe(data=data, **changes)).data


def asked(bench: Bench, data: dict[str, Any], **changes: Any) -> Asked:
    return Asked(data_of(bench, data, **changes), "tiny", bench.root, UNCHECKED)


@pytest.mark.walk
def test_csv_parquet_and_a_query_train_the_adapter_that_jsonl_trains(bench: Bench) -> None:
    write_csv(bench.root / "rows.csv", CONVERSATIONS)
    write_parquet(bench.root / "rows.parquet", CONVERSATIONS)
    write_sqlite(bench.root / "rows.db", CONVERSATIONS)
    sources: dict[str, dict[str, Any]] = {
        "rows.jsonl": {"kind": "files", "paths": ["rows.jsonl"]},
        "rows.csv": {"kind": "files", "paths": ["rows.csv"]},
        "rows.parquet": {"kind": "files", "paths": ["rows.parquet"]},
        "rows.db": {"kind": "sql", "url": "sqlite:///rows.db", "query": QUERY},
    }
    registry = Registry.of(bench.workspace)
    digests = set()
    for name, source in sources.items():
        output, lineage = trained(bench, data=source)
        assert f"(data of the recipe: {name} (prompt-completion))" in output
        snapshot = registry.store.get_record(DatasetSnapshot, str(lineage.dataset))
        rows = load_pool(registry.store, snapshot, "train")
        first = 2 if name == "rows.csv" else 1
        assert [row.source for row in rows] == [f"{name}:{n + first}" for n in range(4)]
        digests.add(registry.adapter("tiny-sft").adapter)
    assert len(digests) == 1


def test_preferences_of_a_file_train_dpo_and_stand_in_lineage_and_leak_check(bench: Bench) -> None:
    write_csv(bench.root / "pairs.csv", [*JUDGED, {"prompt": "p", "chosen": "same", "rejected": ""}])
    source = {"kind": "files", "paths": ["pairs.csv"]}
    output, lineage = trained(bench, data=source, method={"kind": "dpo"}, drop_budget_frac=0.2, seed=1)
    assert "learnt   4 preferences of tiny-sft-files@" in output
    assert "(pairs of the recipe's data: pairs.csv (preference))" in output
    n_rows = {"train": 4, "held_out": 0, "dropped": 1, "dropped: missing field": 1}
    assert (lineage.dataset, lineage.n_rows) == (None, n_rows)
    registry = Registry.of(bench.workspace)
    snapshot = registry.store.get_record(PreferenceSnapshot, str(lineage.preferences))
    assert (snapshot.campaign, snapshot.created_at, snapshot.n_dropped) == (None, None, {"missing field": 1})
    assert [(p.source, p.item, p.ratings) for p in load_pairs(registry.store, snapshot)] == [
        (f"pairs.csv:{n}", "", ()) for n in (2, 3, 4, 5)
    ]
    case = Case((Message("user", PAIRS[0][0]),), ("x",), "g", "s:1")
    assert leak_fault(registry, registry.adapter("tiny-sft"), [case]) == [
        "1 of 1 cases stand in the adapter's training data"
    ]
    graph = build_graph(registry)
    assert [node.problem for node in graph.nodes.values() if node.kind == "preferences"] == [None]


def test_judged_answers_of_a_file_train_kto(bench: Bench) -> None:
    labelled = [
        {"prompt": p, "completion": text, "label": good}
        for p, c in PAIRS
        for text, good in ((c, True), ("No.", False))
    ]
    write_jsonl(bench.root / "judged.jsonl", labelled)
    source = {"kind": "files", "paths": ["judged.jsonl"]}
    output, lineage = trained(bench, data=source, method={"kind": "kto"}, seed=1)
    assert "judged.jsonl (kto)" in output
    assert lineage.n_rows["train"] == 8
    registry = Registry.of(bench.workspace)
    case = Case((Message("user", PAIRS[2][0]),), ("x",), "g", "s:1")
    assert len(leak_fault(registry, registry.adapter("tiny-sft"), [case])) == 1


def test_preferences_are_two_judged_answers_each(bench: Bench) -> None:
    write_jsonl(bench.root / "pairs.jsonl", JUDGED)
    frozen = freeze_judged(
        asked(bench, {"kind": "files", "paths": ["pairs.jsonl"]}, method={"kind": "kto"}),
        Registry.of(bench.workspace),
    )
    assert [(row.completion, row.good, row.source) for row in frozen.rows][:2] == [
        (PAIRS[0][1], True, "pairs.jsonl:1"),
        ("I do not know.", False, "pairs.jsonl:1"),
    ]
    assert len(frozen.rows) == 8


def test_line_of_a_judged_answer_gives_it_back() -> None:
    row = Labelled((Message("system", "s"), Message("user", "é")), "a\nb", False, "g", "f:1")
    assert labelled_of_line(labelled_line(row)) == row


@pytest.mark.parametrize(
    ("rows", "method", "message"),
    [
        (
            JUDGED,
            "sft",
            r"rows\.jsonl: holds preferences \(format preference\), where conversations are needed; methods dpo",
        ),
        (
            CONVERSATIONS,
            "dpo",
            r"rows\.jsonl: holds conversations \(format prompt-completion\), where preferences are needed; method sft",
        ),
        (CONVERSATIONS, "kto", r"holds conversations .*, where judged answers are needed"),
    ],
)
def test_method_that_does_not_learn_from_a_file_is_told_which_does(
    bench: Bench, rows: list[dict[str, str]], method: str, message: str
) -> None:
    write_jsonl(bench.root / "rows.jsonl", rows)
    done = run(bench, "finetune", str(bench.recipe(method={"kind": method})))
    assert isinstance(done.exception, DataError)
    with pytest.raises(DataError, match=message):
        raise done.exception


def test_same_preferences_are_one_snapshot_whenever_they_are_read(bench: Bench) -> None:
    write_jsonl(bench.root / "pairs.jsonl", JUDGED)
    data = asked(bench, {"kind": "files", "paths": ["pairs.jsonl"]}, method={"kind": "dpo"})
    registry = Registry.of(bench.workspace)
    assert len({freeze_preferences(data, registry).snapshot.digest() for _ in range(2)}) == 1


def mixture(*parts: tuple[str, float], seed: int = 0) -> dict[str, Any]:
    sources = [{"source": {"kind": "files", "paths": [path]}, "weight": weight} for path, weight in parts]
    return {"kind": "mixture", "parts": sources, "seed": seed}


def sources_of(bench: Bench, data: dict[str, Any]) -> list[str]:
    return [row.source for row in freeze_rows(asked(bench, data), Registry.of(bench.workspace)).rows]


@pytest.mark.parametrize(
    ("weight", "n"), [(1.0, 100), (0.25, 25), (0.004, 0), (0.006, 1), (2.0, 200), (2.5, 250)]
)
def test_weight_is_how_often_a_row_comes(bench: Bench, weight: float, n: int) -> None:
    write_jsonl(bench.root / "many.jsonl", [{"prompt": f"p{i}", "completion": "c"} for i in range(100)])
    found = sources_of(bench, mixture(("rows.jsonl", 1), ("many.jsonl", weight)))
    assert found[:4] == [f"rows.jsonl:{i}" for i in (1, 2, 3, 4)]
    times = Counter(found[4:])
    assert sum(times.values()) == n
    assert set(times.values()) <= {int(weight), int(weight) + 1}


def test_draw_of_a_mixture_follows_its_seed_and_what_is_left_out_is_listed(bench: Bench) -> None:
    write_jsonl(bench.root / "many.jsonl", [{"prompt": f"p{i}", "completion": "c"} for i in range(100)])
    first, again, other = (
        sources_of(bench, mixture(("rows.jsonl", 1), ("many.jsonl", 0.25), seed=seed)) for seed in (3, 3, 4)
    )
    assert first == again != other
    registry = Registry.of(bench.workspace)
    frozen = freeze_rows(asked(bench, mixture(("rows.jsonl", 1), ("many.jsonl", 0.25), seed=3)), registry)
    assert frozen.snapshot.origin == (
        "data of the recipe: rows.jsonl (prompt-completion), "
        "many.jsonl (prompt-completion) at weight 0.25, 75 not drawn"
    )
    lines = (
        (registry.store.path("dataset", frozen.snapshot.artifact) / NOT_DRAWN_FILE).read_text().splitlines()
    )
    left_out = [json.loads(line)["source"] for line in lines]
    assert sorted(first[4:] + left_out) == sorted(f"many.jsonl:{i + 1}" for i in range(100))


def test_mixture_of_a_dataset_a_table_and_an_endpoint_trains(bench: Bench) -> None:
    (bench.root / "data.yaml").write_text(
        "name: docs\nlicence: CC0-1.0\norigin: a test\nsource: {kind: files, paths: [rows.jsonl]}\n"
        "pools: {train: 1, rate: 0, gate: 0}\n"
    )
    assert run(bench, "data", "build", str(bench.root / "data.yaml")).exit_code == 0
    write_csv(bench.root / "alpaca.csv", [{"instruction": "Say", "input": "yes", "output": "Yes."}])
    page = json.dumps([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}])
    with serve(lambda path, nth: Answer(page.encode())) as web:
        parts = [
            {"source": {"kind": "dataset", "name": "docs"}},
            {"source": {"kind": "files", "paths": ["alpaca.csv"]}, "weight": 3},
            {"source": {"kind": "http", "url": f"{web.url}/chat"}},
        ]
        output, lineage = trained(bench, data={"kind": "mixture", "parts": parts})
    digest = find_snapshot(
        Registry.of(bench.workspace).store, Registry.of(bench.workspace).ledger, "docs"
    ).digest()
    told = (
        f"dataset docs@{digest[:12]} (snapshot), alpaca.csv (alpaca) at weight 3, 127.0.0.1/chat (sharegpt)"
    )
    assert f"(data of the recipe: {told})" in output
    assert lineage.n_rows == {"train": 8, "held_out": 0, "dropped": 0}


def test_mixture_of_exported_and_published_preferences_keeps_their_ratings(bench: Bench) -> None:
    bench.prefer([("q", "yes", "no")])
    write_jsonl(bench.root / "pairs.jsonl", JUDGED)
    parts = [
        {"source": {"kind": "preferences", "name": "docs-train"}, "weight": 2},
        {"source": {"kind": "files", "paths": ["pairs.jsonl"]}},
    ]
    data = asked(bench, {"kind": "mixture", "parts": parts}, method={"kind": "dpo"})
    frozen = freeze_preferences(data, Registry.of(bench.workspace))
    assert [pair.item for pair in frozen.rows] == ["ab" * 32] * 2 + [""] * 4


def test_copies_of_a_row_are_never_on_both_sides_of_the_hold_out(bench: Bench) -> None:
    write_jsonl(bench.root / "many.jsonl", [{"prompt": f"p{i}", "completion": "c"} for i in range(20)])
    _, lineage = trained(bench, data=mixture(("many.jsonl", 2)), held_out_frac=0.2)
    assert lineage.n_rows == {"train": 32, "held_out": 8, "dropped": 0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "mixture", "parts": []}, "data.parts"),
        (mixture(("rows.jsonl", 0)), "weight"),
        (
            {"kind": "mixture", "parts": [{"source": {"kind": "mixture", "parts": []}}]},
            "must be one of dataset, preferences",
        ),
        (
            {"kind": "mixture", "parts": [{"source": {"kind": "preferences", "name": "d"}}]},
            "preferences are for method dpo",
        ),
        ({"kind": "http", "url": "ftp://host/x"}, "url"),
        (
            {"kind": "sql", "url": "sqlite:///x.db", "query": "SELECT 1", "password": "x"},
            "password is not a setting",
        ),
    ],
)
def test_impossible_source_is_refused_with_the_recipe(
    bench: Bench, data: dict[str, Any], message: str
) -> None:
    done = run(bench, "finetune", str(bench.recipe(data=data)))
    assert message in str(done.exception)


def test_every_setting_of_a_source_has_a_description() -> None:
    from llmops.data.sources import config

    parts = [v for v in vars(config).values() if isinstance(v, type) and issubclass(v, config.SourceSettings)]
    bare = [f"{p.__name__}.{n}" for p in parts for n, info in p.model_fields.items() if not info.description]
    assert (len(parts), bare) == (5, [])

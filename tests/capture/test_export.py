"""`llmops capture` where a gateway served and users spoke: rows for training, and every answer accounted for."""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from llmops.capture.keyring import VARIABLE, new_key
from llmops.data import build_snapshot, read_rows
from llmops.data.rows import read_any
from llmops.ledger import Ledger
from llmops.records import Labelled, Preference
from llmops.registry.adapters import Registry
from tests.in_process import Done, llmops
from tests.serving.bare import Bare, bare_gateway, table_of, target

UP, DOWN = {"thumb": "up"}, {"thumb": "down"}


@dataclass(frozen=True)
class Room:
    """A workspace after its gateway has stopped; `ids` are response ids by prompt."""

    root: Path
    ids: dict[str, str]

    def llmops(self, *arguments: str) -> Done:
        return llmops(self.root, *arguments)

    def export(self, form: str, name: str, *options: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Rows, and reasons by source."""
        done = self.llmops("capture", "export", f"{name}.jsonl", "--as", form, *options)
        assert done.code == 0, done.err
        dropped = lines(self.root / f"{name}.dropped.jsonl")
        return lines(self.root / f"{name}.jsonl"), {d["source"]: d["reason"] for d in dropped}

    def source(self, prompt: str, answer: int = 0) -> str:
        return f"capture:{self.ids[prompt]}#{answer}"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def gate_pool(root: Path) -> str:
    """Build a dataset; a prompt of its gate pool."""
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}", "group": f"g{i}"} for i in range(12)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "mine", "licence": "CC0-1.0", "origin": "written for a test",
        "source": {"kind": "files", "paths": ["rows.jsonl"]}, "pools": {"train": 0.5, "rate": 0.0, "gate": 0.5},
    }  # fmt: skip
    (root / "mine.yaml").write_text(yaml.safe_dump(config))
    from llmops.data import load_pool
    from llmops.settings import find_workspace

    registry = Registry.of(find_workspace(root))
    snapshot = build_snapshot(root / "mine.yaml", registry.store, registry.ledger)
    return load_pool(registry.store, snapshot, "gate")[0].messages[0].content


async def reply(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Answers with the prompt in capitals, by the model's name; "cut" is cut off, "two" has two answers."""
    reply.n = getattr(reply, "n", 0) + 1  # type: ignore[attr-defined]
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    text = f"{prompt.upper()} {body['model'].partition('@')[0]}"
    reason = "length" if prompt == "cut" else "stop"
    choices = []
    for i in range(body.get("n") or 1):
        said = f"{text} {i}" if body.get("n") else text
        more = {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
        choices.append({"index": i, "finish_reason": reason, **more})
    return web.json_response({"id": f"chatcmpl-{reply.n:04}", "model": body["model"], "choices": choices})  # type: ignore[attr-defined]


def say(bare: Bare, response: str, user: str, **body: Any) -> None:
    said = bare.client.post(f"{bare.url}/v1/feedback", json={"response_id": response, "user": user, **body})
    assert said.status_code == 201, said.text


def speak(bare: Bare, ids: dict[str, str], gate: str) -> None:
    for prompt in ("good", "bad", "split", "mended", "silent", "cut", gate):
        ids[prompt] = bare.chat(text=prompt, user="ada").json()["id"]
    ids["two"] = bare.chat(text="two", n=2).json()["id"]
    ids["same/docs"] = bare.chat("docs", text="same").json()["id"]
    ids["same/other"] = bare.chat("other", text="same").json()["id"]
    ids["loved"] = bare.chat("other", text="loved").json()["id"]
    plain = {"model": "docs", "prompt": "plain", "max_tokens": 4}
    ids["plain"] = bare.client.post(f"{bare.url}/v1/completions", json=plain).json()["id"]
    for prompt in ("good", "cut", gate, "plain"):
        say(bare, ids[prompt], "ada", **UP)
    say(bare, ids["good"], "bob", **DOWN)
    say(bare, ids["good"], "bob", score=5)  # changed his mind
    say(bare, ids["bad"], "ada", score=1, comment="It shouts.")
    say(bare, ids["split"], "ada", **UP)
    say(bare, ids["split"], "bob", **DOWN)
    say(bare, ids["mended"], "ada", correction="first try")
    say(bare, ids["mended"], "ada", correction="mended, gently")
    say(bare, ids["two"], "ada", choice=1, preferred_over={"response_id": ids["two"], "choice": 0})
    for user in ("ada", "bob"):
        say(bare, ids["same/other"], user, preferred_over={"response_id": ids["same/docs"]})
    say(bare, ids["same/docs"], "eve", preferred_over={"response_id": ids["same/other"]})
    say(bare, ids["loved"], "ada", preferred_over={"response_id": ids["good"]})


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("export")
    (root / "llmops.yaml").write_text("name: test\n")
    gate = gate_pool(root)
    ids: dict[str, str] = {}
    capture = {"sample_frac": 1.0, "personal_data": "off"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, new_key())
        with bare_gateway(root, table_of(docs="docs", other="other"), capture=capture) as bare:
            bare.engine.reply = reply
            speak(bare, ids, gate)
            bare.gateway.recorder.settings = bare.gateway.recorder.settings.model_copy(
                update={"sample_frac": 0.0}
            )
            ids["unseen"] = bare.chat(text="unseen").json()["id"]
            say(bare, ids["unseen"], "ada", **UP)
        ids["gate"] = ids.pop(gate)
        yield Room(root, ids)


def test_good_and_corrected_answers_become_rows_and_all_others_are_listed_with_why(room: Room) -> None:
    rows, dropped = room.export("sft", "sft")
    found = {row["source"]: [m["content"] for m in row["messages"]] for row in rows}
    assert found == {
        room.source("good"): ["good", "GOOD docs"],
        room.source("mended"): ["mended", "mended, gently"],
    }
    assert {source: reason.partition(":")[0] for source, reason in dropped.items()} == {
        room.source("bad"): "called bad",
        room.source("split"): "split",
        room.source("silent"): "no feedback",
        room.source("cut"): "cut off",
        room.source("gate"): "gate prompt",
        room.source("two"): "no feedback",
        room.source("two", 1): "no feedback",
        room.source("same/docs"): "no feedback",
        room.source("same/other"): "no feedback",
        room.source("loved"): "no feedback",
        room.source("plain"): "no conversation",
        room.source("unseen"): "no text",
    }
    read = list(read_rows(room.root / "sft.jsonl"))
    assert [[m.content for m in row.messages] for row in read] == list(found.values())  # type: ignore[union-attr]
    manifest = json.loads((room.root / "sft.manifest.json").read_text())
    assert manifest["n_rows"] == 2
    assert manifest["n_dropped"] == dict(Counter(reason.partition(":")[0] for reason in dropped.values()))
    for name in ("sft.jsonl", "sft.dropped.jsonl", "sft.manifest.json"):
        assert stat.S_IMODE((room.root / name).stat().st_mode) == 0o600


def test_preferences_are_what_most_prefer_and_corrections_over_what_they_correct(room: Room) -> None:
    rows, dropped = room.export("preferences", "pairs")
    assert [(r["prompt"][-1]["content"], r["chosen"], r["rejected"]) for r in rows] == [
        ("mended", "mended, gently", "MENDED docs"),
        ("two", "TWO docs 1", "TWO docs 0"),
        ("same", "SAME other", "SAME docs"),
    ]
    both = " ".join(sorted((room.source("good"), room.source("loved"))))
    assert dropped[both].startswith("different prompts")
    assert dropped[room.source("good")].startswith("no correction")
    assert all(isinstance(row, Preference) for row in read_any(room.root / "pairs.jsonl"))


def test_answers_judged_alone_become_labelled_rows(room: Room) -> None:
    rows, dropped = room.export("kto", "kto")
    assert {r["source"]: (r["completion"], r["label"]) for r in rows} == {
        room.source("good"): ("GOOD docs", True),
        room.source("bad"): ("BAD docs", False),
        room.source("mended"): ("MENDED docs", False),
    }
    assert dropped[room.source("split")].startswith("split")
    assert all(isinstance(row, Labelled) for row in read_any(room.root / "kto.jsonl"))


def test_export_is_told_to_the_ledger_by_digest_and_overwrites_nothing(room: Room) -> None:
    import hashlib

    room.export("sft", "told", "--name", "docs")
    from llmops.settings import find_workspace

    event = Ledger.of(find_workspace(room.root)).events("capture.exported")[-1]
    data = (room.root / "told.jsonl").read_bytes()
    assert (event.body["sha256"], event.body["n_rows"]) == (hashlib.sha256(data).hexdigest(), 2)
    again = room.llmops("capture", "export", "told.jsonl", "--as", "kto")
    assert (again.code, (room.root / "told.jsonl").read_bytes()) == (2, data)
    assert "told.jsonl: is there already" in again.err


def test_export_without_rows_writes_nothing_and_says_why(room: Room) -> None:
    done = room.llmops("capture", "export", "none.jsonl", "--as", "sft", "--since", "2999-01-01")
    assert (done.code, "nothing was captured" in done.err) == (2, True)
    done = room.llmops("capture", "export", "none.jsonl", "--as", "sft", "--name", "other")
    assert (done.code, "2 no feedback" in done.err) == (2, True)
    assert list(room.root.glob("*none*")) == []


def test_list_show_and_stats_tell_what_is_kept(room: Room) -> None:
    listed = room.llmops("capture", "list", "--name", "docs", "--limit", "3", "--json")
    rows = [json.loads(line) for line in listed.out.splitlines()]
    assert [row["response"] for row in rows] == [room.ids[p] for p in ("plain", "same/docs", "two")]
    assert "GOOD" not in room.llmops("capture", "list").out
    shown = json.loads(room.llmops("capture", "show", room.ids["bad"], "--json").out)
    assert shown["messages"] == [{"role": "user", "content": "bad"}]
    assert shown["answers"] == [{"content": "BAD docs", "finish_reason": "stop"}]
    assert [(f["score"], f["comment"]) for f in shown["feedback"]] == [(1, "It shouts.")]
    assert "It shouts." in room.llmops("capture", "show", room.ids["bad"]).out
    missing = room.llmops("capture", "show", room.ids["unseen"])
    assert (missing.code, "no texts are kept of it" in missing.err) == (2, True)
    stats = json.loads(room.llmops("capture", "stats", "--json").out)
    by_model = {line["asked"]: line for line in stats["lines"]}
    assert by_model["docs"]["adapter"] == target("docs").digest
    assert [by_model["docs"][name] for name in ("n_responses", "n_texts", "n_up", "n_down")] == [11, 10, 6, 2]
    assert by_model["docs"]["mean_score"] == 3.0
    assert (by_model["other"]["n_preferred"], by_model["docs"]["n_corrected"]) == (3, 2)
    assert (stats["n_texts"], sum(stats["keys"].values())) == (12, 12)
    assert re.search(
        r"docs +[0-9a-f]{12} +champion +11 +10 +6 +2 +3\.00 \(2\) +2 +2", room.llmops("capture", "stats").out
    )


def test_answers_called_bad_or_corrected_become_cases(room: Room) -> None:
    (room.root / "hard.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "hard",
                "cases": {"kind": "file", "path": "hard.jsonl"},
                "metrics": ["chrf"],
                "decoding": {"temperature": 0, "max_tokens": 8},
            }
        )
    )
    done = room.llmops("eval", "grow", "hard.yaml", "--served", "docs", "--propose", "proposed.jsonl")
    assert done.code == 0, done.err
    proposed = {line["case"]["messages"][0]["content"]: line for line in lines(room.root / "proposed.jsonl")}
    assert set(proposed) == {"bad", "mended"}
    assert proposed["bad"]["why"] == "called bad by 1 of 1: It shouts."
    assert proposed["bad"]["answers"] == ["BAD docs"]
    assert proposed["mended"]["case"]["references"] == ["mended, gently"]
    assert proposed["mended"]["origin"] == f"response {room.ids['mended']}"
    nothing = room.llmops("eval", "grow", "hard.yaml", "--served", "other", "--propose", "x.jsonl")
    assert (nothing.code, "no answer under that name was called bad" in nothing.err) == (2, True)


def test_time_that_is_none_is_refused(room: Room) -> None:
    done = room.llmops("capture", "list", "--since", "yesterday")
    assert (done.code, "--since 'yesterday': is no time" in done.err) == (2, True)


def test_new_key_is_one_that_is_taken(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmops.capture import Keyring

    first, second = (room.llmops("capture", "key").out.strip() for _ in range(2))
    assert first != second
    monkeypatch.setenv(VARIABLE, f"{first},{second}")
    ring = Keyring.of_environment()
    assert ring.open("row", *ring.seal("row", b"text" * 1000)) == b"text" * 1000


def test_captures_come_back_from_a_backup(room: Room, tmp_path: Path) -> None:
    assert room.llmops("backup", str(tmp_path / "all.tar")).code == 0
    done = llmops(tmp_path, "restore", str(tmp_path / "all.tar"), str(tmp_path / "again"))
    assert done.code == 0, done.err
    before, after = (
        llmops(root, "capture", "stats", "--json").out for root in (room.root, tmp_path / "again")
    )
    assert json.loads(before) == json.loads(after)
    shown = llmops(tmp_path / "again", "capture", "show", room.ids["bad"], "--json")
    assert json.loads(shown.out)["answers"][0]["content"] == "BAD docs"

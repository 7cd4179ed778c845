"""From rows to a rollback, through the command line and HTTP alone, with a tiny model and the real engine.

Which adapter answered is read from the gateway's request log.
"""

from __future__ import annotations

import getpass
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evidence import copy_with_other_weights
from tests.loop import ANSWERS, DATA, GATE, NAME, PROFILE, RECIPE, SUITE, Loop
from tests.tiny import build_tiny_model

pytestmark = [pytest.mark.walk, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A workspace with data built, an adapter trained, and an endpoint running."""
    root = tmp_path_factory.mktemp("loop")
    loop = Loop(root, tmp_path_factory.mktemp("cache"))
    base = build_tiny_model(root / "base", max_len=512)
    (root / "llmops.yaml").write_text("name: loop\n")
    loop.write_rows()
    loop.write("data.yaml", DATA)
    common = {"base": base, "r": 16, "alpha": 32, "learning_rate": "1e-2", "tracking": "none"}
    loop.write("recipe.yaml", RECIPE, n_steps=60, seed=0, **(common | {"tracking": "mlflow"}))
    loop.write("second.yaml", RECIPE, n_steps=90, seed=1, **common)
    loop.write("worse.yaml", RECIPE, n_steps=2, seed=2, **common)
    loop.write("serve.yaml", PROFILE, base=base)
    loop.write("suite.yaml", SUITE, n_cases=24)
    loop.write("gate.yaml", GATE, kind="superior", bound="by: 0")
    loop.write("keep.yaml", GATE, kind="non_inferior", bound="margin: 20")
    loop.llmops("base", "fetch", str(base))
    loop.llmops("data", "build", "data.yaml")
    loop.llmops("finetune", "recipe.yaml")
    loop.llmops("serve", "serve.yaml", "--detach")
    try:
        yield loop
    finally:
        loop.llmops("stop")


def _adapters(loop: Loop) -> list[str]:
    return re.findall(r"docs@[0-9a-f]{12}", loop.llmops("adapter", "list").out)


def _base(loop: Loop) -> str:
    return str(json.loads((loop.root / ".llmops/serve.json").read_text())["engine"]["base"])[:12]


def test_the_loop_from_rows_to_rollback(loop: Loop) -> None:
    first = _adapters(loop)[0]
    data = json.loads(loop.llmops("data", "show", "docs", "--json").out)
    assert sum(data["n_rows"].values()) == 180
    assert data["n_dropped"] == {}

    refused = loop.llmops("release", "promote", NAME, check=False)
    assert refused.code == 4
    assert "no gate decision" in refused.err

    evaluated = loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml", "--gate", "keep.yaml").out
    assert re.search(r"^base@[0-9a-f]{12} +24 ", evaluated, re.MULTILINE)
    assert re.search(rf"^{first} +24 ", evaluated, re.MULTILINE)
    decided = loop.llmops("gate", "check", "gate.yaml")
    assert decided.out.splitlines()[-1].startswith(f"PASS  docs: {first[5:]} against ")
    promoted = loop.llmops("release", "promote", NAME).out
    assert f"docs -> {first}" in promoted

    answer, headers = loop.chat(NAME, "add 7")
    assert answer["choices"][0]["message"]["content"] in ANSWERS
    assert answer["model"] == NAME
    assert headers["x-llmops-model"].startswith(first[5:])
    assert loop.answered_by(NAME, "add 7") == first[5:]
    pid = json.loads((loop.root / ".llmops/serve.json").read_text())["pid"]

    loop.llmops("finetune", "second.yaml")
    second = _adapters(loop)[-1]
    assert second != first
    loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml", "--gate", "keep.yaml")
    assert (
        loop.llmops("gate", "check", "keep.yaml")
        .out.splitlines()[-1]
        .startswith(f"PASS  docs: {second[5:]} against {first[5:]}")
    )
    loop.llmops("release", "promote", NAME)
    assert loop.answered_by(NAME, "add 8") == second[5:]

    rolled = loop.llmops("release", "rollback", NAME, "--reason", "drill").out
    assert f"docs -> {first}" in rolled
    assert loop.answered_by(NAME, "add 9") == first[5:]
    assert json.loads((loop.root / ".llmops/serve.json").read_text())["pid"] == pid

    status = json.loads(loop.llmops("status", "--json").out)
    name = status["names"][0]
    assert (name["champion"], name["by"], name["previous"]) == (first, "rollback", None) or name[
        "champion"
    ] == first
    assert name["evidence"].startswith("PASS ")
    assert "chain whole, 3 anchors" in loop.llmops("ledger", "verify").out


def test_a_worse_adapter_fails_the_gate_and_moves_nothing(loop: Loop) -> None:
    loop.llmops("finetune", "worse.yaml")
    worse = _adapters(loop)[-1]
    loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml", "--gate", "keep.yaml")
    decided = loop.llmops("gate", "check", "keep.yaml", check=False)
    assert decided.code == 1
    assert decided.out.splitlines()[-1].startswith(f"FAIL  docs: {worse[5:]} against ")
    refused = loop.llmops("release", "promote", NAME, check=False)
    assert refused.code == 1
    assert "the gate said FAIL" in refused.err
    assert loop.answered_by(NAME, "add 10") != worse[5:]
    assert worse[5:] not in {r["answered_by"][:12] for r in loop.requests() if r["model"] == NAME}


def test_override_moves_the_name_and_shows_in_every_status_after(loop: Loop) -> None:
    worse = _adapters(loop)[-1]
    reason = "champion leaks prompts, ticket 17"
    loop.llmops("release", "override", NAME, "--adapter", worse, "--reason", reason)
    assert loop.answered_by(NAME, "add 11") == worse[5:]
    status = loop.llmops("status").out
    assert f"OVERRIDE {reason} (by {getpass.getuser()})" in status
    assert "NONE: emergency override" in status
    loop.llmops("release", "rollback", NAME)
    assert "OVERRIDE" not in loop.llmops("status").out


def test_adapter_from_elsewhere_is_imported_evaluated_gated_and_served(loop: Loop, tmp_path: Path) -> None:
    status = json.loads(loop.llmops("status", "--json").out)
    champion = status["names"][0]["champion"]
    stored = next((loop.root / ".llmops/store/adapter").glob(champion.split("@")[1] + "*"))
    foreign = copy_with_other_weights(stored, tmp_path / "foreign", 1.01)
    loop.llmops("adapter", "import", str(foreign), "--base", str(loop.root / "base"), "--name", "foreign")
    imported = re.findall(r"foreign@[0-9a-f]{12}", loop.llmops("adapter", "list").out)[0]
    loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml", "--gate", "keep.yaml")
    assert f"PASS  docs: {imported[8:]} against " in loop.llmops("gate", "check", "keep.yaml").out
    assert f"docs -> {imported}" in loop.llmops("release", "promote", NAME).out
    assert loop.answered_by(NAME, "add 3") == imported[8:]
    loop.llmops("release", "rollback", NAME)
    assert loop.answered_by(NAME, "add 3") == champion[5:]


def test_report_page_is_self_contained_and_shows_both_systems(loop: Loop) -> None:
    out = loop.llmops(
        "eval", "suite.yaml", "--gate", "gate.yaml", "--gate", "keep.yaml", "--adapter", _adapters(loop)[0]
    ).out
    page = Path(re.search(r"^page +(.+)$", out, re.MULTILINE)[1]).read_text()  # type: ignore[index]
    assert _adapters(loop)[0] in page
    assert re.search(r"base@[0-9a-f]{12}", page)
    assert "<svg" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_lineage_names_recipe_data_base_contract_seeds_and_packages(loop: Loop) -> None:
    shown = json.loads(loop.llmops("adapter", "show", _adapters(loop)[0], "--json").out)
    lineage, adapter = shown["lineage"], shown["adapter"]
    assert lineage["recipe"]["n_steps"] == 60
    assert lineage["seeds"]
    assert lineage["packages"]["torch"].startswith("2.13")
    assert len(lineage["dataset"]) == len(adapter["base"]) == len(adapter["prompt_contract"]) == 64
    assert lineage["tracking_run"]


def test_second_serve_on_the_same_workspace_is_refused_and_names_the_first(loop: Loop) -> None:
    done = loop.llmops("serve", "serve.yaml", check=False)
    assert done.code == 5
    assert loop.url() in done.err
    assert loop.chat(NAME, "add 1")[0]["choices"]


def test_changed_byte_of_the_champion_refuses_it_by_name_after_a_restart(loop: Loop) -> None:
    status = json.loads(loop.llmops("status", "--json").out)
    champion = status["names"][0]["champion"]
    folder = next((loop.root / ".llmops/store/adapter").glob(champion.split("@")[1] + "*"))
    weights = folder / "adapter_model.safetensors"
    original = weights.read_bytes()
    loop.llmops("stop")
    weights.chmod(0o644)
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        loop.llmops("serve", "serve.yaml", "--detach")
        done = subprocess.run(
            ["curl", "-s", "-w", "%{http_code}", f"{loop.url()}/v1/chat/completions",
             "-H", "Content-Type: application/json",
             "-d", json.dumps({"model": NAME, "messages": [{"role": "user", "content": "add 1"}]})],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.endswith("503")
        assert "adapter_model.safetensors was changed" in done.stdout
        shown = json.loads(loop.llmops("status", "--json").out)
        assert "BROKEN" in shown["names"][0]["evidence"]
        assert "adapter_model.safetensors was changed" in shown["names"][0]["not_serving"]
        assert loop.answered_by(f"base@{_base(loop)}", "add 1") == _base(loop)
    finally:
        weights.write_bytes(original)
        loop.llmops("stop")
        loop.llmops("serve", "serve.yaml", "--detach")
    assert loop.answered_by(NAME, "add 12") == champion[5:]


def test_champion_moves_to_another_engine_by_new_evidence_alone(loop: Loop) -> None:
    """Measured in float32, it must not serve in bfloat16 until it was measured there."""
    champion = json.loads(loop.llmops("status", "--json").out)["names"][0]["champion"]
    loop.llmops("stop")
    profile = loop.root / "serve.yaml"
    profile.write_text(profile.read_text().replace("float32", "bfloat16"))
    loop.llmops("serve", "serve.yaml", "--detach")
    name = json.loads(loop.llmops("status", "--json").out)["names"][0]
    assert "measured on dtype=float32, this engine has dtype=bfloat16" in name["not_serving"]
    loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml", "--gate", "keep.yaml", "--adapter", champion)
    loop.llmops("gate", "check", "gate.yaml", "--adapter", champion)
    assert f"docs -> {champion}" in loop.llmops("release", "promote", NAME).out
    assert loop.answered_by(NAME, "add 4") == champion[5:]
    assert json.loads(loop.llmops("status", "--json").out)["names"][0]["not_serving"] is None

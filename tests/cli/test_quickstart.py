from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.loop import DATA, GATE, PROFILE, RECIPE, SUITE, Loop
from tests.tiny import build_tiny_model

PATHS = ("--data", "data.yaml", "--recipe", "recipe.yaml", "--profile", "serve.yaml", "--suite", "suite.yaml")


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    base = build_tiny_model(tmp_path / "base")
    loop = Loop(tmp_path, tmp_path / "cache")
    (tmp_path / "llmops.yaml").write_text("name: quick\n")
    loop.write_rows()
    loop.write("data.yaml", DATA)
    tiny = {"r": 16, "alpha": 32, "learning_rate": "1e-2", "tracking": "none", "seed": 0}
    loop.write("recipe.yaml", RECIPE, base=base, n_steps=60, **tiny)
    loop.write("serve.yaml", PROFILE, base=base)
    loop.write("suite.yaml", SUITE, n_cases=24)
    loop.write("gate.yaml", GATE, kind="superior", bound="by: 0")
    return loop


@pytest.mark.walk
def test_quickstart_walks_all_steps_and_stops_its_endpoint_in_ci(loop: Loop) -> None:
    done = loop.llmops("quickstart", *PATHS, "--gate", "gate.yaml", CI="1")
    shown = [line for line in done.out.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in shown] == [f"[{i}/7" for i in range(1, 8)]
    assert all("left)" in line for line in shown)
    assert "It answered, from adapter" in done.out
    assert not (loop.root / ".llmops/serve.json").exists()
    times = json.loads((loop.root / ".llmops/quickstart.json").read_text())
    assert len(times) == 7
    assert min(times.values()) > 0

    again = loop.llmops("quickstart", *PATHS, "--gate", "gate.yaml")
    try:
        assert "has a champion already" in again.out
        url = json.loads((loop.root / ".llmops/serve.json").read_text())["url"]
        curl = f"curl {url}/v1/chat/completions"
        assert curl in again.out
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
            assert "docs" in [m["id"] for m in json.load(response)["data"]]
    finally:
        loop.llmops("stop")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/v1/models", timeout=5)


def test_quickstart_ends_with_the_exit_code_of_the_step_that_failed(
    loop: Loop, capfd: pytest.CaptureFixture[str]
) -> None:
    (loop.root / "rows.jsonl").write_text("{broken\n")
    done = loop.llmops("quickstart", *PATHS, "--gate", "gate.yaml", check=False)
    assert done.code == 2
    assert "rows.jsonl:1" in capfd.readouterr().err  # a step is a process of its own
    assert "stopped at `llmops data build data.yaml` (exit 2)" in done.err

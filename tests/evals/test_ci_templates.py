"""The CI templates: each is what its server reads, runs eval and gate, and every command in it is one of ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.command_line import parse
from tests.in_process import llmops
from tests.schemas import refusal

ROOT = Path(__file__).parent.parent.parent
CI = ROOT / "evals" / "ci"
NAMES = ("github-actions.yml", "gitlab-ci.yml", "Jenkinsfile")


class _Loader(yaml.SafeLoader):
    """Reads `on` as a word, as GitHub does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def loaded(name: str):  # type: ignore[no-untyped-def]
    return yaml.load((CI / name).read_text(), _Loader)


def commands(name: str) -> list[str]:
    """Every `llmops` command that a template's shell runs."""
    if name == "Jenkinsfile":
        shell = re.findall(r"\bsh '([^']*)'", (CI / name).read_text())
    elif name == "gitlab-ci.yml":
        job = loaded(name)["llmops-gate"]
        shell = [*job["script"], *job["after_script"]]
    else:
        shell = [step["run"] for step in loaded(name)["jobs"]["gate"]["steps"] if "run" in step]
    lines = [line.strip() for text in shell for line in text.splitlines()]
    return [line for line in lines if line.startswith("llmops ")]


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_template_is_what_its_server_takes(name: str, tmp_path: Path) -> None:
    schema = {"github-actions.yml": "github-workflows", "gitlab-ci.yml": "gitlab-ci"}[name]
    assert refusal(schema, CI / name) == ""
    wrong = tmp_path / name
    wrong.write_text((CI / name).read_text() + "\nstages: 3\njobs: 4\n")
    assert refusal(schema, wrong) != ""


@pytest.mark.parametrize("name", NAMES)
def test_every_command_parses_and_names_files_that_are_there(name: str) -> None:
    found = commands(name)
    nouns = [shlex.split(command, comments=True)[1] for command in found]
    assert nouns == ["data", "finetune", "serve", "eval", "gate", "stop"]
    assert len(re.findall(r"\bllmops (?:data|finetune|serve|eval|gate|stop)\b", (CI / name).read_text())) == 6
    for command in found:
        words = shlex.split(command, comments=True)[1:]
        values = parse(words)
        for word in words:
            assert not word.endswith(".yaml") or (ROOT / word).is_file(), command
        if words[0] in ("eval", "gate"):
            assert (str(values["junit"]), str(values["markdown"])) == (f"{words[0]}.xml", f"{words[0]}.md")


def test_github_workflow_has_the_shape_that_github_asks_for_and_always_reports() -> None:
    flow = loaded("github-actions.yml")
    assert set(flow) <= {"name", "on", "permissions", "concurrency", "env", "defaults", "jobs"}
    assert set(flow["on"]) == {"pull_request"}
    assert {"recipes/**", "evals/**"} <= set(flow["on"]["pull_request"]["paths"])
    assert set(flow["permissions"].values()) <= {"read", "write", "none"}
    (job,) = flow["jobs"].values()
    assert set(job) <= {"name", "runs-on", "timeout-minutes", "env", "steps", "needs", "if", "permissions"}
    assert int(job["timeout-minutes"]) > 0
    known = {"name", "uses", "with", "run", "if", "env", "id", "shell", "continue-on-error"}
    for step in job["steps"]:
        assert set(step) <= known
        assert ("uses" in step) != ("run" in step)
        assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        # Text of the change must not become shell: values come in by variables.
        assert "${{" not in step.get("run", "")
    after = job["steps"][[s.get("name") == "Decide" or False for s in job["steps"]].index(True) + 1 :]
    assert len(after) == 3
    assert all(step["if"].startswith("always()") for step in after)


def test_gitlab_job_has_the_shape_that_gitlab_asks_for_and_always_reports() -> None:
    pipeline = loaded("gitlab-ci.yml")
    assert set(pipeline) == {"stages", "llmops-gate"}
    job = pipeline["llmops-gate"]
    known = {"stage", "image", "timeout", "variables", "rules", "script", "after_script", "artifacts", "tags"}
    assert set(job) <= known
    assert job["stage"] in pipeline["stages"]
    assert all(isinstance(line, str) for line in (*job["script"], *job["after_script"]))
    (rule,) = job["rules"]
    assert set(rule) <= {"if", "changes", "when", "exists", "allow_failure", "variables"}
    assert {"recipes/**/*", "evals/**/*"} <= set(rule["changes"])
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"]["junit"] == ["eval.xml", "gate.xml"]
    assert any("gate.md" in line and "/notes" in line for line in job["after_script"])


def test_jenkinsfile_is_a_declarative_pipeline_that_always_reports() -> None:
    text = (CI / "Jenkinsfile").read_text()
    bare = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"|//[^\n]*", "", text)
    depth = 0
    for bracket in re.findall(r"[{}]", bare):
        depth += 1 if bracket == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert bare.count("(") == bare.count(")")
    assert bare.lstrip().startswith("pipeline {")
    top = [m for m in re.findall(r"^  (\w+) ", text, re.M) if not m.startswith("/")]
    assert top == ["agent", "options", "environment", "stages"]
    assert all(f"changeset '{folder}/**'" in text for folder in ("recipes", "evals"))
    always = text[text.index("always {") :]
    assert "junit testResults: 'eval.xml, gate.xml'" in always
    assert "readFile('gate.md')" in always


def test_init_copies_the_templates_and_names_the_users_own_files_in_them(tmp_path: Path) -> None:
    rows = "".join(f'{{"prompt": "ticket {i}", "completion": "answer {i}"}}\n' for i in range(120))
    (tmp_path / "rows.jsonl").write_text(rows)
    done = llmops(tmp_path, "init", "ws", "--name", "tickets", "--rows", "rows.jsonl")
    assert done.code == 0, done.err
    for name in NAMES:
        text = (tmp_path / "ws/evals/ci" / name).read_text()
        assert "docstrings" not in text
        for path in re.findall(r"\S+/\S+\.yaml", text):
            assert (tmp_path / "ws" / path.strip("'")).is_file(), path

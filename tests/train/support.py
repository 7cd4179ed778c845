"""A small recipe over JSONL files and a tiny model, for tests that train for real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmops.ratings.preferences import put_preferences
from llmops.records import Message, Preference, PreferenceSnapshot
from llmops.registry.adapters import Registry
from llmops.settings import Workspace, now

PAIRS = (
    ("What does open do?", "Open the file."),
    ("What does close do?", "Close the file."),
    ("What does area do?", "Return width times height."),
    ("What does first do?", "Return the first item."),
)


@dataclass(frozen=True)
class Bench:
    """A workspace with rows, and recipes written into it."""

    workspace: Workspace
    base: Path

    @property
    def root(self) -> Path:
        return self.workspace.root

    def rows(self, pairs: Sequence[tuple[str, str]] = PAIRS, name: str = "rows.jsonl") -> Path:
        lines = [json.dumps({"prompt": p, "completion": c}) for p, c in pairs]
        path = self.root / name
        path.write_text("\n".join(lines) + "\n")
        return path

    def prefer(self, pairs: Sequence[tuple[str, str, str]], name: str = "docs-train") -> PreferenceSnapshot:
        """Freeze (question, chosen, rejected) as a preference snapshot of a campaign, as an export does."""
        registry = Registry.of(self.workspace)
        preferences = [
            Preference((Message("user", q),), chosen, rejected, f"g{i}", f"rate.jsonl:{i + 1}", "ab" * 32, ())
            for i, (q, chosen, rejected) in enumerate(pairs)
        ]
        snapshot = PreferenceSnapshot(
            name=name,
            artifact=put_preferences(registry.store, preferences, ()),
            campaign="cd" * 32,
            dataset=None,
            n_pairs=len(preferences),
            n_dropped={},
            rule="made up for a test",
            licence="CC0-1.0",
            created_at=now(),
        )
        digest = registry.store.put_record(snapshot)
        body = {"name": name, "preferences": digest, "artifact": snapshot.artifact, "campaign": "cd" * 32}
        registry.ledger.append("preferences.snapshotted", body)
        return snapshot

    def dpo_recipe(self, file: str = "dpo.yaml", **changes: Any) -> Path:
        """A recipe over the preferences `docs-train`; None leaves a setting out."""
        values: dict[str, Any] = {
            "name": "tiny-dpo",
            "method": {"kind": "dpo", "beta": 0.1},
            "data": {"kind": "preferences", "name": "docs-train"},
            "lora": None,
            "continue_from": "tiny-sft",
        }
        return self.recipe(file, **values | changes)

    def recipe(self, file: str = "recipe.yaml", **changes: Any) -> Path:
        values: dict[str, Any] = {
            "name": "tiny-sft",
            "base_model": str(self.base),
            "method": {"kind": "sft"},
            "data": {"kind": "files", "paths": ["rows.jsonl"]},
            "lora": {"r": 16, "alpha": 32},
            "max_tokens": 256,
            "batch": {"per_device": 4},
            "n_steps": 4,
            "learning_rate": 1e-2,
            "precision": "fp32",
            "device": "cpu",
            "held_out_frac": 0,
            "tracking": "none",
        }
        values |= changes
        path = self.root / file
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        return path

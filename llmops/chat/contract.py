"""The prompt contract as files: read from a base model's folder, written into an adapter's, compared between the two.

Needs no transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmops.errors import ConfigError, InvalidEvidence
from llmops.manifest import sha256_file
from llmops.records import PromptContract
from llmops.schema import JsonDict, short

CONTRACT_FILE = "prompt_contract.json"


def read_contract(model_dir: Path, system: str | None = None) -> PromptContract:
    """The contract that a model folder's own files spell, with `system` as its default system prompt.

    Raises:
        ConfigError: the folder has no tokenizer.json, no chat template, or no end token.
    """
    tokenizer = model_dir / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConfigError(f"{model_dir}: has no tokenizer.json; save the model with its fast tokenizer")
    config = _read_json(model_dir / "tokenizer_config.json")
    template_file = model_dir / "chat_template.jinja"
    template = (
        template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    )
    if not isinstance(template, str):
        raise ConfigError(f"{model_dir}: has no single chat template; add chat_template.jinja")
    return PromptContract(template, sha256_file(tokenizer), _eos_token_ids(model_dir), system)


def _eos_token_ids(model_dir: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        found = _read_json(model_dir / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    raise ConfigError(f"{model_dir}: no eos_token_id in generation_config.json or config.json; add it")


def _read_json(path: Path) -> JsonDict:
    data: JsonDict = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return data


def write_contract(contract: PromptContract, adapter_dir: Path) -> None:
    """Put the contract into an adapter's folder, where its digest covers it."""
    (adapter_dir / CONTRACT_FILE).write_text(json.dumps(contract.to_dict(), indent=1, sort_keys=True) + "\n")


def require_same_contract(adapter: PromptContract, base: PromptContract, where: str) -> None:
    """Refuse an adapter whose template, tokenizer or end tokens are not the base model's (`where` names the adapter).

    Raises:
        InvalidEvidence: names the first part that differs.
    """
    parts = {
        "chat template": (adapter.chat_template, base.chat_template),
        "tokenizer": (adapter.tokenizer_sha256, base.tokenizer_sha256),
        "end tokens": (adapter.eos_token_ids, base.eos_token_ids),
    }
    for name, (mine, theirs) in parts.items():
        if mine != theirs:
            raise InvalidEvidence(
                f"{where}: prompt contract {short(adapter.without_system().digest())} has another {name} than the base "
                f"({short(base.without_system().digest())}); use the base it was trained on"
            )

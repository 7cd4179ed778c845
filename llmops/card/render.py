"""The card as Markdown: front matter for a model hub, the claims by section, the recipe, and every digest in full."""

from __future__ import annotations

import re

import yaml

from llmops.card.claim import SECTIONS, Claim
from llmops.card.evidence import gate_claims, release_claims, score_claims
from llmops.card.origin import data_claims, model_claims, training_claims
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<commit>[0-9a-f]{7,40}))?")
FORMATS = ("peft", "safetensors", "gguf", "compressed")
NOT_ON_RECORD = {
    "Data": "Nothing about its data is on record.",
    "Training": "Nothing about its training is on record.",
    "Scores": "No evaluation report about this adapter is on record.",
    "Gate": "No gate has decided about this adapter.",
    "Releases": "No public name has stood for this adapter.",
}
_READERS = (model_claims, data_claims, training_claims, score_claims, gate_claims, release_claims)
_ABOUT = {
    "peft": "A LoRA adapter; its base model is needed beside it.",
    "safetensors": "Base model and LoRA adapter merged into one model.",
    "gguf": "Base model and LoRA adapter merged into one model, as GGUF.",
    "compressed": "Base model and LoRA adapter merged into one model, quantised.",
}


def claims_of(registry: Registry, record: AdapterRecord) -> list[Claim]:
    """Everything the record says about an adapter, each record read and compared with its digest.

    Raises:
        InvalidEvidence: names the record that is missing or was altered.
    """
    return [claim for read in _READERS for claim in read(registry, record)]


def front_matter(record: AdapterRecord, format: str) -> JsonDict:
    """What a model hub reads of a card. The base is named only where it is a hub's own id."""
    values: JsonDict = {"library_name": "peft" if format == "peft" else "transformers"}
    if match := HUB_ID.fullmatch(record.base_ref):
        values["base_model"] = match["id"]
        relation = {"peft": "adapter", "safetensors": "merge", "gguf": "quantized", "compressed": "quantized"}
        values["base_model_relation"] = relation[format]
    values["pipeline_tag"] = "text-generation"
    values["tags"] = ["lora", "llmops", *([format] if format in ("gguf", "compressed") else [])]
    return values


def render_card(
    registry: Registry, record: AdapterRecord, format: str = "peft", licence: str | None = None
) -> str:
    """The card of an adapter.

    Args:
        registry: where its records are.
        record: the adapter.
        format: what the card lies beside, one of `FORMATS`.
        licence: a hub's licence id that the user gives; the record knows none for the adapter itself.

    Raises:
        InvalidEvidence: a record that a claim would stand on is missing or was altered.
    """
    shown = [claim for claim in claims_of(registry, record) if claim.shown]
    front = front_matter(record, format) | ({"license": licence} if licence else {})
    lines = ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", f"# {record.model_name}", ""]
    lines += [_ABOUT[format], "", "Every statement below names the record it was read from."]
    for section in SECTIONS:
        about = [claim.line for claim in shown if claim.section == section]
        lines += ["", f"## {section}", "", *(about or [NOT_ON_RECORD[section]])]
        if section == "Training":
            lines += _recipe(registry, record)
    lines += ["", "## Digests", "", "| record | sha256 |", "|---|---|"]
    lines += dict.fromkeys(digest_line(claim) for claim in shown)
    return "\n".join(lines) + "\n"


def digest_line(claim: Claim) -> str:
    """The digest behind a claim, in full, as the card's table has it."""
    return f"| {claim.kind} | `{claim.digest}` |"


def _recipe(registry: Registry, record: AdapterRecord) -> list[str]:
    recipe = registry.lineage(record).recipe
    if not recipe:
        return []
    return [
        "",
        "The recipe, every default written out:",
        "",
        "```yaml",
        yaml.safe_dump(recipe).rstrip(),
        "```",
    ]

"""What is exported and what came of it: the adapter with its base, and the record beside the written files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from llmops import __version__
from llmops.card import render_card
from llmops.chat import require_same_contract
from llmops.errors import BadRequest
from llmops.manifest import manifest_of
from llmops.records import AdapterRecord, Probes, PromptContract
from llmops.registry.adapters import Registry, require_generating
from llmops.registry.bases import SOURCE_FILE, Base, resolve_base
from llmops.schema import JsonDict, Progress, digest_of, no_progress, short
from llmops.train.export.match import Match
from llmops.train.libraries import quiet_libraries

CARD_FILE = "README.md"
SCHEMA = "llmops.exported/1"


@dataclass(frozen=True)
class Source:
    """What is exported: a registered adapter with its verified folder, its base, contract and probes."""

    registry: Registry
    record: AdapterRecord
    folder: Path
    base: Base
    contract: PromptContract
    probes: Probes

    @property
    def where(self) -> str:
        """The adapter, for messages."""
        return f"adapter {self.record.model_name}"


@dataclass(frozen=True)
class Exported:
    """What was written: where, in which format and type, the digest of its files, and how well it matches.

    `as_base` is the digest the folder has as a base model; None of a format that is none. `system` is the default
    system prompt the adapter was trained with, which no format carries.
    """

    folder: Path
    format: str
    dtype: str
    files: str
    match: Match
    as_base: str | None = None
    system: str | None = None


def open_source(registry: Registry, reference: str, progress: Progress = no_progress) -> Source:
    """The adapter `reference` names, verified, with the base it belongs to.

    Raises:
        BadRequest: no such adapter, or its base is not there any more, or is another model now.
        InvalidEvidence: a file of it was altered.
        CouldNotRun: the base was not delivered.
    """
    record = registry.adapter(reference)
    require_generating(record)
    folder, contract = registry.verify(record), registry.contract(record)
    progress(0, 0, "loading libraries")
    quiet_libraries()
    base = resolve_base(record.base_ref, lambda note: progress(0, 0, note))
    if base.digest != record.base:
        raise BadRequest(
            f"adapter {record.model_name}: belongs to base {short(record.base)}, and {record.base_ref} is "
            f"{short(base.digest)} now; bring that base back"
        )
    require_same_contract(contract, base.contract, f"adapter {record.model_name}")
    return Source(registry, record, folder, base, contract, registry.probes(record))


def finish(source: Source, stage: Path, made: Exported) -> Exported:
    """Put the card and the record of what the files were made from beside them; returns `made` with their digest.

    Args:
        source: what was exported.
        stage: the folder that holds the checked files.
        made: what was written there, its `files` not known yet.
    """
    manifest = manifest_of(stage)
    digest = digest_of(manifest)
    found: JsonDict = {
        "schema": SCHEMA,
        "adapter": source.record.adapter,
        "adapter_name": source.record.model_name,
        "base": source.base.digest,
        "base_ref": source.base.ref,
        "prompt_contract": source.record.prompt_contract,
        "system": source.contract.system,
        "format": made.format,
        "dtype": made.dtype,
        "match": made.match.to_dict(),
        "files": manifest["files"],
        "files_digest": digest,
        "llmops": __version__,
    }
    (stage / SOURCE_FILE).write_text(json.dumps(found, indent=1) + "\n")
    write_card(source.registry, source.record, stage, made.format)
    for path in stage.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # some libraries write files that nobody else can read
    return replace(made, files=digest, system=source.contract.system)


def write_card(
    registry: Registry, record: AdapterRecord, folder: Path, format: str, licence: str | None = None
) -> None:
    """Write an adapter's card where model hubs look for it."""
    (folder / CARD_FILE).write_text(render_card(registry, record, format, licence), encoding="utf-8")


def note_export(source: Source, made: Exported, stored: str | None = None) -> None:
    """Write an export into the ledger: which adapter, in which format and type, and the digests of what was made.

    Args:
        source: what was exported.
        made: what was written.
        stored: digest of the files in the store (kind `merged`), where they were put there.
    """
    body: JsonDict = {
        "adapter": source.record.adapter,
        "format": made.format,
        "dtype": made.dtype,
        "files": made.files,
    }
    more = {"as_base": made.as_base, "merged": stored}
    source.registry.ledger.append("adapter.exported", body | {k: v for k, v in more.items() if v})

"""Adapters: canonical form, registration under a digest, lookup by any unambiguous reference, verification.

An adapter's digest covers its weights, canonical config and prompt contract, nothing else: the same training result has
the same digest wherever it was made. Probes and lineage are records of their own; the ledger ties them together.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmops.chat import CONTRACT_FILE, write_contract
from llmops.errors import BadRequest, InvalidEvidence
from llmops.ledger import Ledger
from llmops.records import AdapterRecord, Lineage, Probes, PromptContract, RewardProbes
from llmops.registry.bases import Base
from llmops.schema import JsonDict, load_record
from llmops.settings import Workspace
from llmops.store import Store

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class NewAdapter:
    """What is needed to register an adapter: a PEFT folder and everything that is known about it.

    `extras` are files to keep beside the lineage (resolved recipe, git.diff ...), by name.
    """

    name: str
    folder: Path
    base: Base
    contract: PromptContract
    probes: Probes | RewardProbes
    lineage: Lineage
    extras: dict[str, bytes]


class Registry:
    """Adapters of one workspace: files and records in its store, their registration in its ledger."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        """Use a store and the ledger that names what is in it."""
        self.store = store
        self.ledger = ledger

    @classmethod
    def of(cls, workspace: Workspace) -> Registry:
        """The registry of a workspace."""
        return cls(Store.of(workspace), Ledger.of(workspace))

    def register(self, new: NewAdapter) -> AdapterRecord:
        """Store an adapter and write it into the ledger; registering the same files again adds another event.

        Raises:
            BadRequest: the name is no adapter name.
            StoreError: the disk did not take it; nothing is registered.
        """
        require_name(new.name)
        with tempfile.TemporaryDirectory() as scratch:
            folder = canonical_folder(new, Path(scratch) / "adapter")
            config = json.loads((folder / CONFIG_FILE).read_text())
            adapter = self.store.put_folder("adapter", folder)
        lineage = self.store.put_record(new.lineage)
        if new.extras:
            extras = self.store.put_files("lineage_files", new.extras)
        record = AdapterRecord(
            name=new.name,
            adapter=adapter,
            base=new.base.digest,
            base_ref=new.base.ref,
            prompt_contract=new.contract.digest(),
            probes=self.store.put_record(new.probes),
            lineage=lineage,
            lora_rank=int(config["r"]),
            kind="reward" if isinstance(new.probes, RewardProbes) else "generating",
        )
        self.store.put_record(new.contract)
        digest = self.store.put_record(record)
        body: JsonDict = {"adapter": adapter, "record": digest, "name": new.name}
        if new.extras:
            body["lineage_files"] = extras
        self.ledger.append("adapter.registered", body)
        return record

    def make_newest(self, adapter: str) -> AdapterRecord:
        """Write an adapter's registration into the ledger once more, so that its name means it; nothing if it does.

        Raises:
            BadRequest: no such adapter.
        """
        events = [e for e in self.ledger.events("adapter.registered") if e.body["adapter"] == adapter]
        if not events:
            raise BadRequest(f"adapter {adapter}: no such adapter; `llmops adapter list` shows them")
        record = self.store.get_record(AdapterRecord, str(events[-1].body["record"]))
        if self.adapter(record.name).adapter != adapter:
            self.ledger.append("adapter.registered", events[-1].body)
        return record

    def adapters(self) -> list[AdapterRecord]:
        """All registered adapters, oldest first; each once, as it was registered last."""
        newest = {
            str(e.body["adapter"]): str(e.body["record"]) for e in self.ledger.events("adapter.registered")
        }
        return [self.store.get_record(AdapterRecord, digest) for digest in newest.values()]

    def adapter(self, reference: str) -> AdapterRecord:
        """The adapter that `reference` names: `latest`, a name (its newest), `name@digest12`, or 6+ digits of a digest.

        Raises:
            BadRequest: no adapter, or more than one, answers to it.
            InvalidEvidence: its record is gone from the store, or altered.
        """
        wanted = reference.rpartition("@")[2]
        found: dict[str, str] = {}
        for event in reversed(self.ledger.events("adapter.registered")):
            adapter, name, record = (str(event.body[k]) for k in ("adapter", "name", "record"))
            if reference in ("latest", name):
                return self.store.get_record(AdapterRecord, record)
            if (
                len(wanted) >= 6
                and adapter.startswith(wanted)
                and ("@" not in reference or reference == f"{name}@{wanted}")
            ):
                found.setdefault(adapter, record)
        if len(found) == 1:
            return self.store.get_record(AdapterRecord, next(iter(found.values())))
        problem = f"{len(found)} adapters answer to it" if found else "no such adapter"
        raise BadRequest(f"adapter {reference}: {problem}; `llmops adapter list` shows them")

    def verify(self, record: AdapterRecord) -> Path:
        """Every byte of the adapter's files and its probes compared with their digests; returns the adapter's folder.

        Raises:
            InvalidEvidence: names what is missing or changed.
        """
        self.store.get_record(RewardProbes if record.kind == "reward" else Probes, record.probes)
        return self.store.verify("adapter", record.adapter)

    def probes(self, record: AdapterRecord) -> Probes:
        """The probes an engine must reproduce to prove that it applies this adapter.

        Raises:
            BadRequest: it is a reward model, which no engine serves.
        """
        require_generating(record)
        return self.store.get_record(Probes, record.probes)

    def reward_probes(self, record: AdapterRecord) -> RewardProbes:
        """The rewards that a reward adapter must give again."""
        return self.store.get_record(RewardProbes, record.probes)

    def lineage(self, record: AdapterRecord) -> Lineage:
        """Where the adapter comes from."""
        return self.store.get_record(Lineage, record.lineage)

    def contract(self, record: AdapterRecord) -> PromptContract:
        """The prompt contract the adapter carries, read from its own files.

        Raises:
            InvalidEvidence: the file is gone or is not the contract that was registered.
        """
        path = self.store.path("adapter", record.adapter) / CONTRACT_FILE
        try:
            contract = load_record(PromptContract, json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise InvalidEvidence(
                f"adapter {record.model_name}: {CONTRACT_FILE} cannot be read ({error}); restore it"
            ) from error
        if contract.digest() != record.prompt_contract:
            raise InvalidEvidence(f"adapter {record.model_name}: {CONTRACT_FILE} was changed; restore it")
        return contract


def require_generating(record: AdapterRecord) -> None:
    """Refuse a reward model where text shall be written.

    Raises:
        BadRequest: says what it is for.
    """
    if record.kind == "reward":
        raise BadRequest(
            f"adapter {record.model_name}: is a reward model: it gives a number for a text and writes none, so it "
            "cannot be served or released; name it as a reward of method grpo, or name another adapter"
        )


def require_name(name: str) -> None:
    """Refuse what cannot be an adapter's or a public name.

    Raises:
        BadRequest: not lower-case letters, digits, `-` and `_`, or one of the reserved words.
    """
    if not NAME.fullmatch(name) or name in ("base", "latest"):
        raise BadRequest(f"name {name!r}: use lower-case letters, digits, - and _ (not `base` or `latest`)")


def canonical_folder(new: NewAdapter, target: Path) -> Path:
    """A copy of a PEFT folder in the one form that is hashed: weights, sorted config with the logical base id.

    PEFT writes `target_modules` in hash-random order, a machine's path as the base, and a README that differs.

    Raises:
        BadRequest: config or weights are missing.
    """
    target.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (new.folder / name).is_file():
            raise BadRequest(f"{new.folder}: has no {name}; give a folder saved by PEFT with safetensors")
    shutil.copyfile(new.folder / WEIGHTS_FILE, target / WEIGHTS_FILE)
    config: JsonDict = json.loads((new.folder / CONFIG_FILE).read_text())
    config = {
        k: sorted(v) if isinstance(v, list) and all(isinstance(x, str) for x in v) else v
        for k, v in config.items()
    }
    config |= {"base_model_name_or_path": new.base.ref, "revision": new.base.digest, "inference_mode": True}
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    write_contract(new.contract, target)
    return target

"""`import_adapter`: a LoRA adapter trained elsewhere comes in through the checks that a trained one has passed.

What is not known about it (its data, its recipe) stays unknown in its lineage; what can be measured here is measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from llmops.chat import encode
from llmops.engines.servability import refusals
from llmops.errors import BadRequest
from llmops.records import AdapterRecord, Lineage, Message, PromptContract
from llmops.registry.adapters import CONFIG_FILE, WEIGHTS_FILE, NewAdapter, Registry, require_name
from llmops.registry.bases import Base, folder_digest, resolve_base
from llmops.schema import JsonDict, Progress, digest_of, no_progress, short
from llmops.settings import Workspace
from llmops.train.libraries import quiet_libraries
from llmops.train.probes import choose_probes, compute_probes, require_effect

N_NAMED_KEYS = 3
_KEPT_FILES = (CONFIG_FILE, "README.md")  # as they came, beside the lineage

BUILT_IN_PROBES: tuple[tuple[str, str], ...] = (
    (
        "What does this function do?\n\ndef total(items):\n    return sum(i.price for i in items)",
        "It adds up the prices of the items.",
    ),
    (
        "Rewrite politely: send me the report now.",
        "Could you please send me the report when you have a moment?",
    ),
    ("Name three primary colours.", "Red, yellow and blue."),
    (
        "Translate into French: The library closes at six.",
        "La bibliothèque ferme à six heures.",
    ),
    (
        "Write a SQL query that counts the orders of each customer.",
        "SELECT customer_id, COUNT(*) FROM orders GROUP BY customer_id;",
    ),
    (
        "Is 91 a prime number? Answer with a reason.",
        "No: 91 is 7 times 13.",
    ),
    (
        "Summarise: The river rose overnight, and by noon the lower bridge had to be closed to traffic.",
        "Flooding closed the lower bridge.",
    ),
    ('Give a JSON object with the keys "city" and "country".', '{"city": "Lima", "country": "Peru"}'),
)
"""Conversations for probing adapters that come without texts of their own; written for this project."""


@dataclass(frozen=True)
class ImportRequest:
    """An adapter to let in: its PEFT folder, the base it was trained on, and the name it gets here.

    `system` is the default system prompt it was trained with. `texts` are what to probe it with; without them fixed
    conversations are used, which an adapter for a narrow task may hardly change.
    """

    folder: Path
    base: str
    name: str
    system: str | None = None
    texts: tuple[str, ...] = ()


def import_adapter(
    request: ImportRequest, workspace: Workspace, progress: Progress = no_progress
) -> AdapterRecord:
    """Check an adapter trained elsewhere against its base and register it.

    Raises:
        BadRequest: files are missing, it belongs to another base, could not be served, has other layers than the base,
            or weights that are not finite.
        TrainingFailed: it has no effect on the probes.
        StoreError: the disk did not take it; nothing is registered.
    """
    require_name(request.name)
    config = _read_config(request.folder)
    reasons = refusals(config)
    if reasons:
        raise BadRequest(f"{request.folder}: could not be served: {'; '.join(reasons)}")
    progress(0, 0, "loading libraries")
    quiet_libraries()
    base = resolve_base(request.base, lambda note: progress(0, 0, note))
    _require_base(config, base, request.folder)
    progress(0, 0, "checking weights")
    _require_weights(request.folder, base)
    contract = replace(base.contract, system=request.system)
    token_ids = choose_probes(_conversations(request, base, contract))
    progress(0, 0, "probing base and adapter")
    probes = compute_probes(base.path, request.folder, token_ids)
    effect = require_effect(probes, f"adapter {request.folder}")
    extras = {n: (request.folder / n).read_bytes() for n in _KEPT_FILES if (request.folder / n).is_file()}
    lineage = _unknown_lineage({"effect_nats": effect})
    return Registry.of(workspace).register(
        NewAdapter(request.name, request.folder, base, contract, probes, lineage, extras)
    )


def _read_config(folder: Path) -> JsonDict:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise BadRequest(f"{folder}: has no {name}; give a folder saved by PEFT with safetensors")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadRequest(f"{folder}/{CONFIG_FILE}: is not JSON ({error}); save it again with PEFT") from None
    if not isinstance(config, dict):
        raise BadRequest(
            f"{folder}/{CONFIG_FILE}: holds {type(config).__name__}, not settings; save it again with PEFT"
        )
    return config


def _require_base(config: JsonDict, base: Base, folder: Path) -> None:
    """Refuse an adapter whose configuration names another base than the one given.

    A folder that is not on this machine says nothing about what was in it: names, shapes and effect must do then.
    """
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named or named in (base.ref, str(base.path)):
        return
    if config.get("revision") == base.digest:  # as this registry writes it
        return
    path = Path(named).expanduser()
    if path.is_dir():
        found = folder_digest(path)
        if found == base.digest:
            return
        problem = f"{named} ({short(found)})"
    elif path.is_absolute() or named.startswith((".", "~")):
        return
    else:
        problem = named
    raise BadRequest(
        f"{folder}: was trained on {problem}, not on {base.ref} ({short(base.digest)}); give that base, or correct "
        f"base_model_name_or_path in {CONFIG_FILE} if both are the same model"
    )


def _require_weights(folder: Path, base: Base) -> None:
    """Compare the tensors with what PEFT itself would make of this configuration on this base.

    Renamed keys would load as nothing in some engines, and answers would come from the base.

    Raises:
        BadRequest: a tensor is missing, extra, of another shape, or not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from llmops.train.model import adapter_shapes, read_lora_config

    expected = adapter_shapes(base, read_lora_config(folder))
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise BadRequest(f"{folder}/{WEIGHTS_FILE}: cannot be read ({error}); copy it again") from None
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise BadRequest(
            f"{folder}/{WEIGHTS_FILE}: tensor names are not those of {base.ref}: {_named(missing, 'missing')}"
            f"{'; ' if missing and extra else ''}{_named(extra, 'not known')}; save it again with PEFT on that base"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise BadRequest(
                f"{folder}/{WEIGHTS_FILE}: {name} is {list(tensor.shape)}, the rank and base ask for "
                f"{list(expected[name])}; correct r in {CONFIG_FILE} or give the base it was trained on"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise BadRequest(
                f"{folder}/{WEIGHTS_FILE}: {name} has values that are not finite; train it again"
            )


def _named(keys: list[str], what: str) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - N_NAMED_KEYS} more" if len(keys) > N_NAMED_KEYS else ""
    return f"{what}: {', '.join(keys[:N_NAMED_KEYS])}{more}"


def _conversations(request: ImportRequest, base: Base, contract: PromptContract) -> list[tuple[int, ...]]:
    """Token ids to probe with: the given texts as they are, or the built-in conversations through the contract."""
    from llmops.train.model import load_tokenizer

    tokenizer = load_tokenizer(base)
    if request.texts:
        return [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in request.texts]
    turns = [(Message("user", asked), Message("assistant", answer)) for asked, answer in BUILT_IN_PROBES]
    return [encode(tokenizer, contract, messages).input_ids for messages in turns]


def _unknown_lineage(metrics: dict[str, float]) -> Lineage:
    return Lineage(
        origin="imported",
        recipe={},
        recipe_digest=digest_of({}),
        dataset=None,
        preferences=None,
        continues=None,
        n_rows={},
        git_sha=None,
        git_diff_sha256=None,
        seeds={},
        packages={},
        hardware={},
        tracking_run=None,
        metrics=metrics,
    )
